//! The MigNode of this node: watches it, creates it and writes its status. One stream of it serves every part of the driver.
//!
//! The kind is optional. Where the API server does not have it, or this account has no right to it, that is looked at again from
//! time to time, and nothing else changes.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, future, stream};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Error};
use mig_model::mig_node::{MigNode, MigNodeStatus};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::CALL_TIMEOUT;
use super::node::refusal_pauses;
use crate::telemetry::with_causes;

/// After how long at most a kind that the API server does not have is looked for again.
const ABSENT_PAUSE: Duration = Duration::from_secs(300);
/// Name under which the status is written. Fixed, so that a driver of another name takes the status over.
const MANAGER: &str = "dra-driver-mig";

/// What the API server has of this node's MigNode.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum OwnMigNode {
    /// That is not known yet, or this account may not read it.
    #[default]
    Unknown,
    /// It does not have the kind: the CustomResourceDefinition is not installed.
    NoKind,
    /// There is no such object.
    Absent,
    /// This object; without its managed fields.
    Present(Arc<MigNode>),
}

/// The MigNode of one node.
#[derive(Debug, Clone)]
pub struct MigNodes {
    objects: Api<MigNode>,
    nodes: Api<Node>,
    name: String,
}

/// Why a write came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {message}")]
pub struct MigNodeError {
    operation: &'static str,
    message: String,
    /// What to do about it.
    pub kind: MigNodeErrorKind,
}

/// What to do about a write that came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigNodeErrorKind {
    /// There is no such object, or no such kind: what the watch says next decides.
    Absent,
    /// An object of that name exists already.
    Exists,
    /// This account may not do it.
    Forbidden,
    /// The API server, or a policy in it, does not accept what was written.
    Refused,
    /// The result is unknown; trying again may help.
    Unavailable,
}

impl MigNodes {
    /// The object of this node.
    #[must_use]
    pub fn new(client: Client, node: &str) -> Self {
        Self { objects: Api::all(client.clone()), nodes: Api::all(client), name: node.to_owned() }
    }

    /// Name of the object, which is that of the node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the API server has now, and whenever that changes. Reconnects for ever.
    pub fn changes(&self) -> impl Stream<Item = OwnMigNode> + Send + use<> {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut has_logged = false;
        let mut is_listed = false;
        let mut refusals = refusal_pauses(&self.name);
        watcher(self.objects.clone(), config).default_backoff().flat_map(move |event| {
            let mut pause = Duration::ZERO;
            let item = match event {
                Ok(watcher::Event::Apply(it) | watcher::Event::InitApply(it)) => {
                    is_listed = true;
                    refusals.succeeded();
                    if std::mem::take(&mut has_logged) {
                        info!("this account may list and watch mignodes.mig.dra-driver.dev now");
                    }
                    Some(present(it))
                }
                Ok(watcher::Event::Delete(_)) => Some(OwnMigNode::Absent),
                Ok(watcher::Event::Init) => {
                    is_listed = false;
                    None
                }
                Ok(watcher::Event::InitDone) => {
                    refusals.succeeded();
                    (!is_listed).then_some(OwnMigNode::Absent)
                }
                Err(error) => match code(&error) {
                    Some(404) => {
                        pause = refusals.failed().min(ABSENT_PAUSE);
                        Some(OwnMigNode::NoKind)
                    }
                    Some(403) => {
                        pause = refusals.failed();
                        if !std::mem::replace(&mut has_logged, true) {
                            warn!(
                                reason = with_causes(&error),
                                "this account may not list and watch mignodes.mig.dra-driver.dev, trying again: until then no \
                                 status of the node is written, and no demand is followed; a kube-apiserver that has just \
                                 started answers so for some seconds, otherwise add the rule to the ClusterRole, or start \
                                 the driver with --mig-node=off"
                            );
                        }
                        Some(OwnMigNode::Unknown)
                    }
                    _ => {
                        info!(error = with_causes(&error), "watching the MigNode failed, retrying");
                        None
                    }
                },
            };
            // The next request is made when this stream has ended.
            let paused = stream::once(async move {
                sleep(pause).await;
                None
            });
            stream::iter(item).chain(paused.filter_map(future::ready))
        })
    }

    /// Creates the object, owned by the Node, so that it goes when the Node goes.
    pub async fn create(&self) -> Result<(), MigNodeError> {
        let node = named("get node", timeout(CALL_TIMEOUT, self.nodes.get(&self.name)).await)?;
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.name.clone(),
            uid: node.metadata.uid.unwrap_or_default(),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta {
            name: Some(self.name.clone()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        };
        let object = MigNode { metadata, ..MigNode::default() };
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let created = timeout(CALL_TIMEOUT, self.objects.create(&params, &object)).await;
        named("create mignode", created).map(drop)
    }

    /// Writes the whole status, and answers with the one that the API server has now.
    pub async fn write_status(&self, status: &MigNodeStatus) -> Result<Option<MigNodeStatus>, MigNodeError> {
        let object = json!({
            "apiVersion": <MigNode as k8s_openapi::Resource>::API_VERSION,
            "kind": <MigNode as k8s_openapi::Resource>::KIND,
            "metadata": {"name": self.name},
            "status": status,
        });
        // No other program owns fields of the status.
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        let written = self.objects.patch_status(&self.name, &params, &patch);
        let stored = named("write the status of mignode", timeout(CALL_TIMEOUT, written).await)?;
        Ok(stored.status)
    }
}

fn present(mut object: MigNode) -> OwnMigNode {
    object.metadata.managed_fields = None;
    OwnMigNode::Present(Arc::new(object))
}

fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(Error::Api(status))
        | watcher::Error::WatchStartFailed(Error::Api(status))
        | watcher::Error::WatchFailed(Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

fn named<T>(
    operation: &'static str,
    answer: Result<Result<T, Error>, tokio::time::error::Elapsed>,
) -> Result<T, MigNodeError> {
    let (message, kind) = match answer {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(Error::Api(status))) => {
            let kind = match status.code {
                404 => MigNodeErrorKind::Absent,
                409 if status.is_already_exists() => MigNodeErrorKind::Exists,
                403 => MigNodeErrorKind::Forbidden,
                400 | 422 => MigNodeErrorKind::Refused,
                _ => MigNodeErrorKind::Unavailable,
            };
            (status.message.clone(), kind)
        }
        Ok(Err(error)) => (with_causes(&error), MigNodeErrorKind::Unavailable),
        Err(_) => (format!("no answer within {} s", CALL_TIMEOUT.as_secs()), MigNodeErrorKind::Unavailable),
    };
    Err(MigNodeError { operation, message, kind })
}
