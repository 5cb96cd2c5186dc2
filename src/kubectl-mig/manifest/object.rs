//! Objects of the kinds that matter here.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Event, Node, Pod, ReplicationController, ResourceQuota};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{ManifestError, Place};

/// An object of a manifest.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are the kinds")]
pub enum Object {
    Pod(Box<Pod>),
    Deployment(Box<Deployment>),
    StatefulSet(Box<StatefulSet>),
    DaemonSet(Box<DaemonSet>),
    ReplicaSet(Box<ReplicaSet>),
    ReplicationController(Box<ReplicationController>),
    Job(Box<Job>),
    CronJob(Box<CronJob>),
    ResourceClaim(Box<ResourceClaim>),
    ResourceClaimTemplate(Box<ResourceClaimTemplate>),
    DeviceClass(Box<DeviceClass>),
    ResourceSlice(Box<ResourceSlice>),
    Node(Box<Node>),
    PriorityClass(Box<PriorityClass>),
    ResourceQuota(Box<ResourceQuota>),
    Event(Box<Event>),
    /// Any other kind.
    Other {
        api_version: String,
        kind: String,
        name: String,
        place: Place,
    },
}

impl Object {
    /// Adds an object, or the items of a list of objects.
    ///
    /// # Errors
    /// [`ManifestError::Object`].
    pub(super) fn add(value: Value, place: Place, objects: &mut Vec<Self>) -> Result<(), ManifestError> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if kind.is_empty() {
            let message = "not a Kubernetes object: it has no `kind`".to_owned();
            return Err(ManifestError::Object { place, message });
        }
        if kind.ends_with("List") && place.item.is_none() {
            // Items of a typed list have no kind of their own.
            let (item_kind, mut value) = (kind.trim_end_matches("List").to_owned(), value);
            let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else { return Ok(()) };
            for (index, mut item) in items.into_iter().enumerate() {
                if let Value::Object(fields) = &mut item
                    && !item_kind.is_empty()
                {
                    fields.entry("kind").or_insert_with(|| item_kind.clone().into());
                    fields.entry("apiVersion").or_insert_with(|| api_version.clone().into());
                }
                Self::add(item, Place { item: Some(index + 1), ..place.clone() }, objects)?;
            }
            return Ok(());
        }
        for field in ["name", "namespace"] {
            let text =
                value.pointer(&format!("/metadata/{field}")).and_then(Value::as_str).unwrap_or_default();
            if !is_name(text) {
                let message = format!("{kind}: metadata.{field} is no name that Kubernetes allows");
                return Err(ManifestError::Object { place, message });
            }
        }
        let object = Self::typed(value, &api_version, &kind, &place)
            .map_err(|message| ManifestError::Object { place, message: format!("{kind}: {message}") })?;
        objects.push(object);
        Ok(())
    }

    fn typed(value: Value, api_version: &str, kind: &str, place: &Place) -> Result<Self, String> {
        Ok(match (api_version, kind) {
            ("v1", "Pod") => Self::Pod(parse(value)?),
            ("v1", "Event") => Self::Event(parse(value)?),
            ("v1", "Node") => Self::Node(parse(value)?),
            ("scheduling.k8s.io/v1", "PriorityClass") => Self::PriorityClass(parse(value)?),
            ("v1", "ResourceQuota") => Self::ResourceQuota(parse(value)?),
            ("v1", "ReplicationController") => Self::ReplicationController(parse(value)?),
            ("apps/v1", "Deployment") => Self::Deployment(parse(value)?),
            ("apps/v1", "StatefulSet") => Self::StatefulSet(parse(value)?),
            ("apps/v1", "DaemonSet") => Self::DaemonSet(parse(value)?),
            ("apps/v1", "ReplicaSet") => Self::ReplicaSet(parse(value)?),
            ("batch/v1", "Job") => Self::Job(parse(value)?),
            ("batch/v1", "CronJob") => Self::CronJob(parse(value)?),
            ("resource.k8s.io/v1", "ResourceClaim") => Self::ResourceClaim(parse(value)?),
            ("resource.k8s.io/v1", "ResourceClaimTemplate") => Self::ResourceClaimTemplate(parse(value)?),
            ("resource.k8s.io/v1", "DeviceClass") => Self::DeviceClass(parse(value)?),
            ("resource.k8s.io/v1", "ResourceSlice") => Self::ResourceSlice(parse(value)?),
            _ if api_version.starts_with("resource.k8s.io/") && api_version != "resource.k8s.io/v1" => {
                return Err(format!(
                    "{api_version} is an older version of the API; write it as resource.k8s.io/v1, which Kubernetes has since 1.34"
                ));
            }
            _ => Self::Other {
                api_version: api_version.to_owned(),
                kind: kind.to_owned(),
                name: value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned(),
                place: place.clone(),
            },
        })
    }
}

/// Whether a text can be the name of an object: names go into commands that people paste into a shell.
fn is_name(text: &str) -> bool {
    text.len() <= 253 && text.chars().all(|it| it.is_ascii_alphanumeric() || "-._:".contains(it))
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<Box<T>, String> {
    serde_json::from_value(value).map(Box::new).map_err(|error| error.to_string())
}
