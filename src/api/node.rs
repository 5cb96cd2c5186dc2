//! This node's own Node object: the label that names a layout, the one that says how it stands, and events about it.

use std::collections::BTreeMap;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
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
/// Longest note of an event, bytes (events.k8s.io/v1).
const MAX_NOTE: usize = 1024;

/// The Node object of this node.
#[derive(Debug, Clone)]
pub struct OwnNode {
    nodes: Api<Node>,
    events: Api<Event>,
    name: String,
    driver: String,
}

/// What the node's labels say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayoutLabels {
    /// UID of the Node object.
    pub uid: String,
    /// The layout that is asked for.
    pub config: Option<String>,
    /// What was said of it last, by whomever.
    pub state: Option<String>,
}

impl OwnNode {
    /// The node of this name. Events are reported in the name of `driver`.
    #[must_use]
    pub fn new(client: Client, name: &str, driver: &str) -> Self {
        let (nodes, events) = (Api::all(client.clone()), Api::namespaced(client, "default"));
        Self { nodes, events, name: name.to_owned(), driver: driver.to_owned() }
    }

    /// The labels now, and whenever the Node changes. Reconnects for ever.
    pub fn labels(&self) -> impl Stream<Item = LayoutLabels> + Send + use<> {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        watcher(self.nodes.clone(), config).default_backoff().filter_map(async |event| match event {
            Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => Some(labels(&node)),
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
        call(operation, self.nodes.patch_metadata(&self.name, &PatchParams::default(), &patch))
            .await
            .map(drop)
    }

    /// Reports something about the node as an event. One that cannot be stored is logged: nothing depends on it.
    pub async fn report(&self, uid: &str, is_warning: bool, reason: &str, note: &str) {
        let now = Timestamp::now();
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", self.name, now.as_nanosecond())),
                namespace: Some("default".to_owned()),
                ..Default::default()
            },
            event_time: Some(MicroTime(now)),
            action: Some("Layout".to_owned()),
            reason: Some(reason.to_owned()),
            note: Some(shorten(note)),
            type_: Some(if is_warning { "Warning" } else { "Normal" }.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(self.name.clone()),
                uid: Some(uid.to_owned()),
                ..Default::default()
            }),
            reporting_controller: Some(self.driver.clone()),
            reporting_instance: Some(self.name.clone()),
            ..Default::default()
        };
        if let Err(error) =
            call("create an event".to_owned(), self.events.create(&PostParams::default(), &event)).await
        {
            warn!(%error, reason, note, "the event could not be stored");
        }
    }
}

fn labels(node: &Node) -> LayoutLabels {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let label = |name: &str| labels.get(name).filter(|it| !it.is_empty()).cloned();
    LayoutLabels {
        uid: node.metadata.uid.clone().unwrap_or_default(),
        config: label(CONFIG_LABEL),
        state: label(STATE_LABEL),
    }
}

fn shorten(note: &str) -> String {
    if note.len() <= MAX_NOTE {
        return note.to_owned();
    }
    let end = (0..=MAX_NOTE - '…'.len_utf8()).rev().find(|it| note.is_char_boundary(*it)).unwrap_or(0);
    format!("{}…", &note[..end])
}
