//! What containers learn of their devices (KEP-5304): a `DeviceMetadata` for each request of a claim. Pure.

use std::collections::BTreeMap;

use mig_model::inventory::{AllocatableDevice, Attribute, Capacity, Inventory};
use serde_json::{Map, Value, json};

use super::allocation::base_of;
use crate::checkpoint::{Progress, Record, RecordedDevice, RecordedKind};

/// The metadata of one request of a claim, as the content of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestMetadata {
    /// The index of the first device of the request, which brings the file into a container.
    pub(super) first: usize,
    /// One JSON object for each version of the format, each on a line.
    pub(super) json: String,
}

/// Metadata by request, without the names of alternatives.
pub(super) fn by_request(
    record: &Record,
    inventory: &Inventory,
    driver: &str,
) -> BTreeMap<String, RequestMetadata> {
    let mut requests: BTreeMap<String, (usize, String, Vec<Value>)> = BTreeMap::new();
    for (index, device) in record.devices.iter().enumerate() {
        for name in &device.requests {
            let (_, _, devices) =
                requests.entry(base_of(name).to_owned()).or_insert_with(|| (index, name.clone(), Vec::new()));
            devices.push(device_metadata(device, inventory.find(&device.name).as_deref(), driver));
        }
    }
    let claim = &record.claim;
    let whole = |(base, (first, name, devices)): (String, (usize, String, Vec<Value>))| {
        let mut object = json!({
            "kind": "DeviceMetadata",
            "apiVersion": "metadata.resource.k8s.io/v1alpha1",
            "metadata": {
                "name": claim.name, "namespace": claim.namespace, "uid": claim.uid.as_str(), "generation": 1,
            },
            "requests": [{"name": name, "devices": devices}],
        });
        if let Some(name) = &record.pod_claim_name {
            object["podClaimName"] = json!(name);
        }
        (base, RequestMetadata { first, json: format!("{object}\n") })
    };
    requests.into_iter().map(whole).collect()
}

fn device_metadata(device: &RecordedDevice, known: Option<&AllocatableDevice>, driver: &str) -> Value {
    let mut attributes = known.map(slice_attributes).unwrap_or_default();
    attributes.extend(live_attributes(device));
    json!({"driver": driver, "pool": device.pool, "name": device.name, "attributes": attributes})
}

/// What the ResourceSlice says of the device, capacities as numbers: metadata has no capacities.
fn slice_attributes(device: &AllocatableDevice) -> Map<String, Value> {
    let attribute = |it: &Attribute| match it {
        Attribute::Int(it) => json!({"int": it}),
        Attribute::Bool(it) => json!({"bool": it}),
        Attribute::String(it) => json!({"string": it}),
        Attribute::Version(it) => json!({"version": it}),
    };
    let capacity = |it: &Capacity| match it {
        Capacity::Count(it) => json!({"int": it}),
        Capacity::Mebibytes(it) => json!({"int": it << 20}),
    };
    let attributes = device.attributes.iter().map(|(name, it)| ((*name).to_owned(), attribute(it)));
    let capacities = device.capacities.iter().map(|(name, it)| ((*name).to_owned(), capacity(it)));
    capacities.chain(attributes).collect()
}

/// What has become of it.
fn live_attributes(device: &RecordedDevice) -> Map<String, Value> {
    let parent = device.parent_uuid.as_str();
    let (kind, profile, uuid) = match &device.kind {
        RecordedKind::Gpu | RecordedKind::AdminAccess | RecordedKind::Share { .. } => {
            ("gpu", "full", Some(parent))
        }
        RecordedKind::Adopted(it) => ("mig", it.spec.profile.as_str(), Some(it.uuid.as_str())),
        RecordedKind::Mig { spec, progress: Progress::Complete { uuid, .. } } => {
            ("mig", spec.profile.as_str(), Some(uuid.as_str()))
        }
        RecordedKind::Mig { spec, .. } => ("mig", spec.profile.as_str(), None),
    };
    let text = [("type", kind), ("profile", profile), ("parentUUID", parent)];
    let text = text.into_iter().chain(uuid.map(|it| ("uuid", it)));
    text.map(|(name, it)| (name.to_owned(), json!({"string": it}))).collect()
}
