//! This node's own Node object: the label that names a layout, and the one that reports its state.

use std::collections::BTreeMap;
use std::future::ready;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Error};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::CALL_TIMEOUT;
use crate::backoff::Backoff;
use crate::telemetry::with_causes;

/// The label by which people name a layout, as they do with the GPU Operator's MIG manager.
pub const CONFIG_LABEL: &str = "nvidia.com/mig.config";
/// The label that answers how the layout stands: `pending`, `success` or `failed`.
pub const STATE_LABEL: &str = "nvidia.com/mig.config.state";

/// First and longest pause after something was refused. The first is short, because an API server that has just started refuses what
/// the account may do: it has not read the roles yet. The longest is for an account that an administrator may grant the right.
const REFUSAL_PAUSES: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(600));

/// Pauses after refusals, of a node or claim of this name.
#[must_use]
pub fn refusal_pauses(name: &str) -> Backoff {
    Backoff::new(REFUSAL_PAUSES.0, REFUSAL_PAUSES.1, name)
}

/// The Node object of this node.
#[derive(Debug, Clone)]
pub struct OwnNode {
    /// Only the metadata: a node's status is long, and changes all the time.
    nodes: Api<PartialObjectMeta<Node>>,
    name: String,
    manager: String,
}

/// What the node's labels say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayoutLabels {
    /// The layout that is asked for.
    pub config: Option<String>,
    /// How the layout stands, as written last.
    pub state: Option<String>,
    /// The field manager that wrote `state`, where the API server names one.
    pub state_manager: Option<String>,
}

/// Why the Node could not be labelled.
#[derive(Debug, thiserror::Error)]
#[error("label node {node}: {message}")]
pub struct LabelError {
    node: String,
    message: String,
    /// True where this account may not do it, so that trying again soon is useless.
    pub is_forbidden: bool,
}

impl OwnNode {
    /// The node of this name; what is written to it has the field manager `manager`.
    #[must_use]
    pub fn new(client: Client, name: &str, manager: &str) -> Self {
        Self { nodes: Api::all(client), name: name.to_owned(), manager: manager.to_owned() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The field manager under which this driver writes.
    #[must_use]
    pub fn manager(&self) -> &str {
        &self.manager
    }

    /// The labels now, and whenever the Node changes. Reconnects for ever. An error says that this account may not watch its
    /// Node; it is tried again after [`refusal_pauses`].
    pub fn labels(&self) -> impl Stream<Item = Result<LayoutLabels, String>> + Send + use<> {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut refusals = refusal_pauses(&self.name);
        watcher(self.nodes.clone(), config).default_backoff().flat_map(move |event| {
            let mut pause = Duration::ZERO;
            let item = match event {
                Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => {
                    refusals.succeeded();
                    Some(Ok(labels(&node.metadata)))
                }
                Ok(_) => None,
                Err(error) if is_forbidden(&error) => {
                    pause = refusals.failed();
                    Some(Err(with_causes(&error)))
                }
                Err(error) => {
                    warn!(error = with_causes(&error), "watching the node's labels failed, retrying");
                    None
                }
            };
            // The next request is made when this stream has ended.
            let paused = stream::once(async move {
                sleep(pause).await;
                None
            });
            stream::iter(item).chain(paused.filter_map(ready))
        })
    }

    /// Sets the state label, or removes it.
    pub async fn set_state(&self, state: Option<&str>) -> Result<(), LabelError> {
        let patch = Patch::Merge(json!({"metadata": {"labels": {STATE_LABEL: state}}}));
        let params = PatchParams { field_manager: Some(self.manager.clone()), ..PatchParams::default() };
        let failed =
            |message: String, is_forbidden| LabelError { node: self.name.clone(), message, is_forbidden };
        match timeout(CALL_TIMEOUT, self.nodes.patch(&self.name, &params, &patch)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(Error::Api(status))) => Err(failed(status.message.clone(), status.code == 403)),
            Ok(Err(error)) => Err(failed(with_causes(&error), false)),
            Err(_) => Err(failed(format!("no answer within {} s", CALL_TIMEOUT.as_secs()), false)),
        }
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(Error::Api(status))
        | watcher::Error::WatchStartFailed(Error::Api(status))
        | watcher::Error::WatchFailed(Error::Api(status)) => status.code == 403,
        watcher::Error::WatchError(status) => status.code == 403,
        _ => false,
    }
}

fn labels(metadata: &ObjectMeta) -> LayoutLabels {
    let empty = BTreeMap::new();
    let labels = metadata.labels.as_ref().unwrap_or(&empty);
    let label = |name: &str| labels.get(name).filter(|it| !it.is_empty()).cloned();
    let state = label(STATE_LABEL);
    let state_manager = state.as_ref().and_then(|_| manager_of(metadata, STATE_LABEL));
    LayoutLabels { config: label(CONFIG_LABEL), state, state_manager }
}

/// The field manager of a label; of several, the one that wrote last.
fn manager_of(metadata: &ObjectMeta, label: &str) -> Option<String> {
    let field = format!("f:{label}");
    let has_it = |entry: &&ManagedFieldsEntry| {
        entry.fields_v1.as_ref().is_some_and(|it| it.0["f:metadata"]["f:labels"].get(&field).is_some())
    };
    let entries = metadata.managed_fields.iter().flatten().filter(has_it);
    entries.max_by_key(|it| it.time.as_ref().map(|it| it.0))?.manager.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_asked_for_again_soon_and_then_ever_more_rarely() {
        let mut pauses = refusal_pauses("node-1");
        assert!(pauses.failed() <= Duration::from_secs(20), "an API server that has just started");
        for _ in 0..10 {
            pauses.failed();
        }
        let late = pauses.failed();
        assert!(Duration::from_secs(300) <= late && late <= Duration::from_secs(600), "{late:?}");
        pauses.succeeded();
        assert!(pauses.failed() <= Duration::from_secs(20));
    }

    #[test]
    fn the_manager_of_the_state_label_is_the_last_that_wrote_it() {
        // As kube-apiserver 1.35 writes it.
        let entry = |manager: &str, time: &str, label: &str| {
            json!({"manager": manager, "operation": "Update", "apiVersion": "v1", "time": time,
                   "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {format!("f:{label}"): {}}}}})
        };
        let metadata = json!({
            "labels": {CONFIG_LABEL: "all-balanced", STATE_LABEL: "success"},
            "managedFields": [
                entry("kubectl-label", "2026-11-29T03:00:00Z", CONFIG_LABEL),
                entry("nvidia-mig-manager", "2026-11-29T01:00:00Z", STATE_LABEL),
                entry("mig.dra-driver.dev", "2026-11-29T00:00:00Z", STATE_LABEL),
            ],
        });
        let mut metadata: ObjectMeta = serde_json::from_value(metadata).unwrap();
        let seen = labels(&metadata);
        assert_eq!(seen.state_manager.as_deref(), Some("nvidia-mig-manager"));
        assert_eq!(seen.config.as_deref(), Some("all-balanced"));

        metadata.managed_fields = None;
        assert_eq!(labels(&metadata).state_manager, None);
        metadata.labels = None;
        assert_eq!(labels(&metadata), LayoutLabels::default());
    }
}
