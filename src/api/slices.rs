//! ResourceSlices of one node and driver.

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Error};
use tokio::time::timeout;
use tracing::warn;

use super::{CALL_TIMEOUT, with_causes};
use crate::slices::Change;

/// Reads and writes the slices of one node and driver.
#[derive(Debug, Clone)]
pub struct NodeSlices {
    slices: Api<ResourceSlice>,
    /// Their metadata, to be watched: what they say is large, and is read when it matters.
    heads: Api<PartialObjectMeta<ResourceSlice>>,
    nodes: Api<PartialObjectMeta<Node>>,
    node: String,
    selector: String,
}

/// A call about slices that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed: {message}")]
pub struct SliceError {
    operation: String,
    message: String,
    /// True where somebody else changed the object in between, so that reading again helps at once.
    pub is_conflict: bool,
}

impl SliceError {
    /// The API server took a slice and dropped its counters; reading and rendering again withdraws it.
    #[must_use]
    pub fn lost_counters() -> Self {
        let message = "kube-apiserver dropped the counters of a resourceslice".to_owned();
        Self { operation: "publish resourceslices".to_owned(), message, is_conflict: true }
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
            selector: format!("spec.driver={driver},spec.nodeName={node}"),
        }
    }

    /// UID of the Node object.
    pub async fn node_uid(&self) -> Result<String, SliceError> {
        let operation = || format!("get node {}", self.node);
        let node = call(operation(), self.nodes.get(&self.node)).await?;
        node.metadata.uid.ok_or_else(|| SliceError {
            operation: operation(),
            message: "the object has no UID".to_owned(),
            is_conflict: false,
        })
    }

    /// All of them.
    pub async fn list(&self) -> Result<Vec<ResourceSlice>, SliceError> {
        let params = ListParams::default().fields(&self.selector);
        Ok(call("list resourceslices".to_owned(), self.slices.list(&params)).await?.items)
    }

    /// An item for every change that anybody makes to them, carrying name and resource version. One without a name says that
    /// the watch began anew or failed, as it does when the API server restarts. Reconnects for ever.
    pub fn changes(&self) -> impl Stream<Item = (String, Option<String>)> + Send + use<> {
        let config = watcher::Config::default().fields(&self.selector);
        watcher(self.heads.clone(), config).default_backoff().filter_map(async |event| match event {
            Ok(watcher::Event::Apply(it)) => Some((it.metadata.name?, it.metadata.resource_version)),
            Ok(watcher::Event::Delete(it)) => Some((it.metadata.name?, None)),
            Ok(watcher::Event::InitDone) => Some((String::new(), None)),
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => None,
            Err(error) => {
                warn!(error = with_causes(&error), "watching resourceslices failed, trying again");
                Some((String::new(), None))
            }
        })
    }

    /// What the API server would store, without storing it.
    pub async fn try_create(&self, slice: &ResourceSlice) -> Result<ResourceSlice, SliceError> {
        let params = PostParams { dry_run: true, ..Default::default() };
        call("dry-run create of a resourceslice".to_owned(), self.slices.create(&params, slice)).await
    }

    /// Makes one change and returns what is stored now; nothing after a delete.
    pub async fn apply(&self, change: &Change) -> Result<Option<ResourceSlice>, SliceError> {
        let params = PostParams::default();
        match change {
            Change::Create(slice) => {
                let operation = format!("create resourceslice {}", name(slice));
                call(operation, self.slices.create(&params, slice)).await.map(Some)
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
            let is_conflict = status.is_conflict() || status.is_already_exists();
            Err(SliceError { operation, message: status.message.clone(), is_conflict })
        }
        Ok(Err(error)) => Err(SliceError { operation, message: with_causes(&error), is_conflict: false }),
        Err(_) => {
            let message = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
            Err(SliceError { operation, message, is_conflict: false })
        }
    }
}
