//! This node's own Node object: the label that names a layout, and the one that says how it stands.

use std::collections::BTreeMap;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;
use tracing::warn;

use super::slices::{SliceError, call};
use super::with_causes;

/// The label by which people name a layout, as they do with the GPU Operator's MIG manager.
pub const CONFIG_LABEL: &str = "nvidia.com/mig.config";
/// The label that tells how far it is: `pending`, `success` or `failed`.
pub const STATE_LABEL: &str = "nvidia.com/mig.config.state";

/// The Node object of this node.
#[derive(Debug, Clone)]
pub struct OwnNode {
    /// Only the metadata: a node's status is long, and changes all the time.
    nodes: Api<PartialObjectMeta<Node>>,
    name: String,
}

/// What the node's labels say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayoutLabels {
    /// The layout that is asked for.
    pub config: Option<String>,
    /// What was said of it last, by whomever.
    pub state: Option<String>,
}

impl OwnNode {
    /// The node of this name.
    #[must_use]
    pub fn new(client: Client, name: &str) -> Self {
        Self { nodes: Api::all(client), name: name.to_owned() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The labels now, and whenever the Node changes. Reconnects for ever.
    pub fn labels(&self) -> impl Stream<Item = LayoutLabels> + Send + use<> {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        watcher(self.nodes.clone(), config).default_backoff().filter_map(async |event| match event {
            Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => Some(labels(&node.metadata)),
            Ok(_) => None,
            Err(error) => {
                warn!(error = with_causes(&error), "watching the node's labels failed, trying again");
                None
            }
        })
    }

    /// Sets the state label, or removes it.
    pub async fn set_state(&self, state: Option<&str>) -> Result<(), SliceError> {
        let patch = Patch::Merge(json!({"metadata": {"labels": {STATE_LABEL: state}}}));
        let operation = format!("label node {}", self.name);
        call(operation, self.nodes.patch(&self.name, &PatchParams::default(), &patch)).await.map(drop)
    }
}

fn labels(metadata: &ObjectMeta) -> LayoutLabels {
    let empty = BTreeMap::new();
    let labels = metadata.labels.as_ref().unwrap_or(&empty);
    let label = |name: &str| labels.get(name).filter(|it| !it.is_empty()).cloned();
    LayoutLabels { config: label(CONFIG_LABEL), state: label(STATE_LABEL) }
}
