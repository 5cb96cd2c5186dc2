//! ResourceSlices of one node and driver.

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::core::{PartialObjectMeta, Status};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Error};
use mig_model::slices::Change;
use tokio::time::timeout;
use tracing::warn;

use super::CALL_TIMEOUT;
use crate::telemetry::with_causes;

/// Reads and writes the slices of one node and driver.
#[derive(Debug, Clone)]
pub struct NodeSlices {
    slices: Api<ResourceSlice>,
    /// Their metadata, to be watched: what they say is large, and is read when it matters.
    heads: Api<PartialObjectMeta<ResourceSlice>>,
    nodes: Api<PartialObjectMeta<Node>>,
    node: String,
    driver: String,
    selector: String,
}

/// A call about slices that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed: {message}")]
pub struct SliceError {
    operation: String,
    message: String,
    /// What to do about it.
    pub kind: SliceErrorKind,
}

/// What a failure asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SliceErrorKind {
    /// Another writer changed the object in between: reading again helps.
    Conflict,
    /// An object of that name exists already.
    NameTaken,
    /// The API server takes only devices whose counters are in the same slice.
    CountersRefused,
    /// The API server, or a policy in it, does not accept the request.
    Refused,
    /// No useful answer; trying again may help.
    Unavailable,
}

impl SliceError {
    /// The API server did not keep the counters of a slice; reading and rendering again withdraws what was stored without them.
    #[must_use]
    pub fn lost_counters() -> Self {
        let message = "kube-apiserver did not keep the counters of a resourceslice".to_owned();
        Self { operation: "publish resourceslices".to_owned(), message, kind: SliceErrorKind::Conflict }
    }

    /// Slices of this driver's name and node that are none of this driver's: another program publishes the node's GPUs, or did.
    #[must_use]
    pub fn other_publisher(driver: &str, node: &str, slices: &[&str], pool: &str) -> Self {
        const SHOWN: usize = 8;
        let names = slices.iter().take(SHOWN).copied().collect::<Vec<_>>().join(" ");
        let more = if SHOWN < slices.len() { " …" } else { "" };
        let message = format!(
            "another DRA driver named {driver} publishes devices of node {node} in pool {pool}, so the GPUs would be offered twice. Stop \
             that driver on this node (NVIDIA's: kubectl label node {node} nvidia.com/gpu.deploy.dra-driver=false --overwrite where the GPU \
             Operator deploys it, else the affinity of its DaemonSet); once it has stopped, delete what it left: kubectl delete \
             resourceslice {names}{more}"
        );
        Self { operation: "publish resourceslices".to_owned(), message, kind: SliceErrorKind::Refused }
    }

    /// Another program serves the kubelet under this driver's name.
    #[must_use]
    pub fn other_driver(error: &impl std::error::Error) -> Self {
        let operation = "publish resourceslices".to_owned();
        Self { operation, message: error.to_string(), kind: SliceErrorKind::Refused }
    }

    /// The file that says what is published cannot be removed, so nothing else may be published.
    #[must_use]
    pub fn cannot_forget(error: &std::io::Error) -> Self {
        let message = format!(
            "{error}; until then no device is added to the ResourceSlices: check the disk of the node, and the permissions of the \
             driver's directory below --plugins-dir, or remove published.json there"
        );
        Self::unavailable("remove published.json".to_owned(), message)
    }

    /// A claim that has a device of this node cannot be read. Which one it is stands in the log: others may not know of it.
    #[must_use]
    pub fn unread_claim() -> Self {
        let message = "a claim that has a device of this node cannot be read; the log of the driver names it and the reason".to_owned();
        Self::unavailable("get a resourceclaim".to_owned(), message)
    }

    fn unavailable(operation: String, message: String) -> Self {
        Self { operation, message, kind: SliceErrorKind::Unavailable }
    }
}

impl NodeSlices {
    /// The slices of this node and driver.
    #[must_use]
    pub fn new(client: Client, node: &str, driver: &str) -> Self {
        Self {
            slices: Api::all(client.clone()),
            heads: Api::all(client.clone()),
            nodes: Api::all(client),
            node: node.to_owned(),
            driver: driver.to_owned(),
            selector: format!("spec.driver={driver},spec.nodeName={node}"),
        }
    }

    /// UID of the Node object.
    pub async fn node_uid(&self) -> Result<String, SliceError> {
        let operation = || format!("get node {}", self.node);
        let node = call(operation(), self.nodes.get(&self.node)).await?;
        let missing = || SliceError::unavailable(operation(), "the object has no UID".to_owned());
        node.metadata.uid.ok_or_else(missing)
    }

    /// All of them.
    pub async fn list(&self) -> Result<Vec<ResourceSlice>, SliceError> {
        let params = ListParams::default().fields(&self.selector);
        Ok(call("list resourceslices".to_owned(), self.slices.list(&params)).await?.items)
    }

    /// Says whose slice has the name, where a create failed for it. One of ours was created a moment ago: a race.
    async fn explained<T>(&self, created: Result<T, SliceError>, name: &str) -> Result<T, SliceError> {
        let mut error = match created {
            Err(error) if error.kind == SliceErrorKind::NameTaken => error,
            other => return other,
        };
        // A list of one, because the driver may not `get` slices.
        let params = ListParams::default().fields(&format!("metadata.name={name}"));
        match call(format!("look for resourceslice {name}"), self.slices.list(&params)).await {
            Ok(found) => match found.items.first().map(|it| &it.spec) {
                Some(spec) if spec.driver != self.driver || spec.node_name.as_ref() != Some(&self.node) => {
                    error.message = format!(
                        "the name is taken by a slice of driver {}, node {}, pool {}, which this driver may neither change nor \
                         delete; find out who created it, then run: kubectl delete resourceslice {name}",
                        spec.driver,
                        spec.node_name.as_deref().unwrap_or("(none)"),
                        spec.pool.name
                    );
                }
                _ => error.kind = SliceErrorKind::Conflict,
            },
            Err(unknown) => error.message = format!("{}; {unknown}", error.message),
        }
        Err(error)
    }

    /// One item per change of the ResourceSlices by any client, with name and resource version. An item without a name means that
    /// the watch restarted or failed, as it does when the API server restarts. Reconnects for ever.
    pub fn changes(&self) -> impl Stream<Item = (String, Option<String>)> + Send + use<> {
        let config = watcher::Config::default().fields(&self.selector);
        watcher(self.heads.clone(), config).default_backoff().filter_map(async |event| match event {
            Ok(watcher::Event::Apply(it)) => Some((it.metadata.name?, it.metadata.resource_version)),
            Ok(watcher::Event::Delete(it)) => Some((it.metadata.name?, None)),
            Ok(watcher::Event::InitDone) => Some((String::new(), None)),
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => None,
            Err(error) => {
                warn!(error = with_causes(&error), "watching ResourceSlices failed, retrying");
                Some((String::new(), None))
            }
        })
    }

    /// What the API server would store, without storing it.
    pub async fn try_create(&self, slice: &ResourceSlice) -> Result<ResourceSlice, SliceError> {
        let params = PostParams { dry_run: true, ..Default::default() };
        let created =
            call("dry-run create of a resourceslice".to_owned(), self.slices.create(&params, slice)).await;
        self.explained(created, name(slice)).await
    }

    /// Makes one change and returns what is stored now; nothing after a delete.
    pub async fn apply(&self, change: &Change) -> Result<Option<ResourceSlice>, SliceError> {
        let params = PostParams::default();
        match change {
            Change::Create(slice) => {
                let operation = format!("create resourceslice {}", name(slice));
                let created = call(operation, self.slices.create(&params, slice)).await;
                self.explained(created, name(slice)).await.map(Some)
            }
            Change::Update(slice) => {
                let operation = format!("update resourceslice {}", name(slice));
                call(operation, self.slices.replace(name(slice), &params, slice)).await.map(Some)
            }
            Change::Delete(slice) => {
                let preconditions = Preconditions {
                    uid: slice.metadata.uid.clone(),
                    resource_version: slice.metadata.resource_version.clone(),
                };
                let params = DeleteParams { preconditions: Some(preconditions), ..Default::default() };
                match timeout(CALL_TIMEOUT, self.slices.delete(name(slice), &params)).await {
                    Ok(Err(Error::Api(status))) if status.is_not_found() => Ok(None),
                    answer => named(format!("delete resourceslice {}", name(slice)), answer).map(|_| None),
                }
            }
        }
    }
}

fn name(slice: &ResourceSlice) -> &str {
    slice.metadata.name.as_deref().unwrap_or_default()
}

pub(super) async fn call<T>(
    operation: String,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, SliceError> {
    named(operation, timeout(CALL_TIMEOUT, request).await)
}

fn named<T>(
    operation: String,
    answer: Result<Result<T, Error>, tokio::time::error::Elapsed>,
) -> Result<T, SliceError> {
    match answer {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Error::Api(status))) => {
            let kind = kind_of(&status);
            Err(SliceError { operation, message: status.message.clone(), kind })
        }
        Ok(Err(error)) => Err(SliceError::unavailable(operation, with_causes(&error))),
        Err(_) => {
            let message = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
            Err(SliceError::unavailable(operation, message))
        }
    }
}

fn kind_of(status: &Status) -> SliceErrorKind {
    match status.code {
        409 if status.is_already_exists() => SliceErrorKind::NameTaken,
        409 => SliceErrorKind::Conflict,
        422 if refuses_counters(status) => SliceErrorKind::CountersRefused,
        400 | 403 | 422 => SliceErrorKind::Refused,
        _ => SliceErrorKind::Unavailable,
    }
}

/// Kubernetes 1.34 (`validateDevice` in pkg/apis/resource/validation): "must reference a counterSet defined in the ResourceSlice
/// sharedCounters". Other faults of the same field say something else.
fn refuses_counters(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|it| &it.causes);
    let mut of_counters = causes.filter(|it| it.field.contains(".consumesCounters["));
    of_counters.any(|it| it.message.contains("must reference a counter"))
}
