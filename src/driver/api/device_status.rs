//! Builds `status.devices` of a ResourceClaim from the devices that are prepared for it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use mig_model::facts::Placement;
use mig_model::health::{Condition, Report};
use mig_model::inventory::{Adopted, MigSpec};
use serde_json::{Value, json};

use crate::checkpoint::{Progress, Record, RecordedDevice, RecordedKind, Stage};

/// Version of the object in an entry's `data`.
pub const DATA_VERSION: &str = "status.mig.dra-driver.dev/v1";

/// Why devices of a claim are not ready although they are prepared, by their names.
pub type Ailments = BTreeMap<String, Ailment>;

/// Why a device is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ailment {
    /// The condition's reason.
    pub reason: &'static str,
    /// What it suffers from.
    pub message: String,
    /// Since when, seconds since the epoch.
    pub since: u64,
}

/// What the devices of a claim suffer from, by themselves or with their GPU.
#[must_use]
pub fn ailments(record: &Record, health: &Report) -> Ailments {
    let ailment = |device: &RecordedDevice| {
        let condition = health.device(&device.parent_uuid, &device.name);
        let (reason, since) = match &condition {
            Condition::Unhealthy(unhealthy_reason) => ("Unhealthy", unhealthy_reason.since),
            Condition::Lost { since, .. } => ("Lost", *since),
            Condition::Healthy | Condition::Unmonitored { .. } => return None,
        };
        Some((device.name.clone(), Ailment { reason, message: condition.text(), since }))
    };
    // The usual case, and evaluated for every claim at every change.
    if health.instances.is_empty() && !health.gpus.values().any(Condition::is_bad) {
        return Ailments::new();
    }
    record.devices.iter().filter_map(ailment).collect()
}

/// What `status.devices` says of a claim, in the order of its devices: nothing unless it is prepared. `since` is when its
/// devices became ready, as RFC 3339; unhealthy devices are not ready since the error. Entries name driver, pool and device of
/// the allocation.
#[must_use]
pub fn device_statuses(record: &Record, driver: &str, since: &str, ailments: &Ailments) -> Vec<Value> {
    if record.stage != Stage::Prepared {
        return Vec::new();
    }
    record.devices.iter().map(|it| device_status(it, driver, since, ailments.get(&it.name))).collect()
}

fn device_status(device: &RecordedDevice, driver: &str, since: &str, ailment: Option<&Ailment>) -> Value {
    let parent = &device.parent_uuid;
    let (message, data) = match &device.kind {
        RecordedKind::Gpu => {
            let data = json!({"kind": "Gpu", "parentUUID": parent, "profile": "full"});
            (format!("GPU {parent} as a whole"), data)
        }
        RecordedKind::AdminAccess => {
            let data = json!({"kind": "Gpu", "parentUUID": parent, "profile": "full", "adminAccess": true});
            (format!("GPU {parent} as it is, with adminAccess"), data)
        }
        RecordedKind::Share { index } => {
            let data = json!({"kind": "GpuShare", "parentUUID": parent, "profile": "full", "share": index});
            (format!("GPU {parent}, shared with others"), data)
        }
        RecordedKind::Adopted(Adopted { spec, gpu_instance, compute_instance, uuid }) => {
            let mut data = mig_data(parent, spec);
            data["gpuInstance"] = json!(gpu_instance);
            data["computeInstance"] = json!(compute_instance);
            data["migUUID"] = json!(uuid);
            (format!("{} at {} of GPU {parent}, not made by the driver", spec.profile, spec.placement), data)
        }
        RecordedKind::Mig { spec, progress } => {
            let mut data = mig_data(parent, spec);
            if let Progress::Complete { gpu_instance, compute_instance, uuid } = progress {
                data["gpuInstance"] = json!(gpu_instance);
                data["computeInstance"] = json!(compute_instance);
                data["migUUID"] = json!(uuid);
            }
            (format!("{} at {} of GPU {parent}", spec.profile, spec.placement), data)
        }
    };
    let mut data = data;
    data["apiVersion"] = json!(DATA_VERSION);
    let (status, reason, message, since) = match ailment {
        None => ("True", "Prepared", message, since.to_owned()),
        Some(it) => ("False", it.reason, format!("{message}: {}", it.message), at(it.since)),
    };
    json!({
        "driver": driver,
        "pool": device.pool,
        "device": device.name,
        "conditions": [{
            "type": "Ready",
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": since,
        }],
        "data": data,
    })
}

fn mig_data(parent: &str, spec: &MigSpec) -> Value {
    let Placement { start, size } = spec.placement;
    let placement = json!({"start": start, "size": size});
    json!({"kind": "MigDevice", "parentUUID": parent, "profile": spec.profile, "placement": placement})
}

/// By what entries are put in order; equal only for entries of one device.
pub(super) fn name_of(entry: &Value) -> (String, String) {
    let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    (text("pool"), text("device"))
}

/// The present time as the API server writes it.
pub(super) fn now() -> String {
    text(Timestamp::now())
}

/// Seconds since the epoch as the API server writes a time.
fn at(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or_default();
    text(Timestamp::from_second(seconds).unwrap_or_default())
}

fn text(time: Timestamp) -> String {
    let time = serde_json::to_value(Time(time)).ok();
    time.and_then(|it| it.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod fixture {
    use std::sync::Arc;

    use super::*;
    use crate::checkpoint::VERSION;
    use mig_model::claim::ClaimRef;

    pub(crate) const SINCE: &str = "2026-01-02T03:04:05Z";

    pub(crate) fn record(kind: RecordedKind, stage: Stage) -> Arc<Record> {
        let device = RecordedDevice {
            name: "d-1".to_owned(),
            pool: "n/x".to_owned(),
            requests: vec!["gpu".to_owned()],
            parent_uuid: "GPU-1".to_owned(),
            kind,
            unknown: serde_json::Map::new(),
        };
        Arc::new(Record {
            version: VERSION,
            boot_id: "boot".to_owned(),
            claim: ClaimRef::new("ns".to_owned(), "c".to_owned(), "u-1".to_owned()).unwrap(),
            devices: vec![device],
            stage,
            pod_claim_name: None,
            unknown: serde_json::Map::new(),
        })
    }

    pub(crate) fn mig(uuid: &str) -> RecordedKind {
        let placement = Placement { start: 6, size: 1 };
        let spec = MigSpec { profile: "1g.10gb".to_owned(), profile_id: 19, slices: 1, placement };
        let progress = Progress::Complete { gpu_instance: 9, compute_instance: 0, uuid: uuid.to_owned() };
        RecordedKind::Mig { spec, progress }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{SINCE, mig, record};
    use super::*;
    use mig_model::health::{Cause, UnhealthyReason};

    #[test]
    fn a_prepared_device_says_which_instance_it_is() {
        let well = Ailments::new();
        let record_of = |stage| record(mig("MIG-7"), stage);
        let statuses = device_statuses(&record_of(Stage::Prepared), "mig.example.com", SINCE, &well);
        let expected = json!([{
            "driver": "mig.example.com", "pool": "n/x", "device": "d-1",
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Prepared", "lastTransitionTime": SINCE,
                "message": "1g.10gb at 6:1 of GPU GPU-1",
            }],
            "data": {
                "apiVersion": "status.mig.dra-driver.dev/v1", "kind": "MigDevice", "parentUUID": "GPU-1",
                "profile": "1g.10gb", "placement": {"start": 6, "size": 1}, "gpuInstance": 9, "computeInstance": 0,
                "migUUID": "MIG-7",
            },
        }]);
        assert_eq!(json!(statuses), expected);
        let whole = device_statuses(&record(RecordedKind::Gpu, Stage::Prepared), "d", SINCE, &well);
        assert_eq!(
            (&whole[0]["data"]["kind"], &whole[0]["data"]["profile"]),
            (&json!("Gpu"), &json!("full"))
        );
        for stage in [Stage::Preparing, Stage::Unpreparing] {
            assert!(device_statuses(&record_of(stage), "d", SINCE, &well).is_empty());
        }
    }

    #[test]
    fn an_unhealthy_device_is_not_ready_since_its_error_and_says_why() {
        let record = record(mig("MIG-7"), Stage::Prepared);
        let unhealthy = Condition::Unhealthy(UnhealthyReason { cause: Cause::Xid(48), since: 1_767_323_045 });
        let health = Report { gpus: [("GPU-1".to_owned(), unhealthy)].into(), instances: Vec::new() };
        assert_eq!(ailments(&record, &Report::default()), Ailments::new());
        let statuses = device_statuses(&record, "d", "2001-01-01T00:00:00Z", &ailments(&record, &health));
        let expected = json!([{
            "type": "Ready", "status": "False", "reason": "Unhealthy", "lastTransitionTime": SINCE,
            "message": "1g.10gb at 6:1 of GPU GPU-1: unhealthy: XID 48 (a double-bit ECC error)",
        }]);
        assert_eq!(statuses[0]["conditions"], expected);
    }
}
