//! Pods, claims and classes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use k8s_openapi::jiff::Timestamp;
use mig_controller::demand::PendingPod;
use serde_json::{Value, json};

/// The class of all devices of the driver, and one of another driver.
pub(crate) fn classes() -> Vec<DeviceClass> {
    let class = |name: &str, driver: &str| {
        let cel = format!("device.driver == \"{driver}\"");
        serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"selectors": [{"cel": {"expression": cel}}]}
        }))
        .unwrap()
    };
    vec![class("mig", "mig.dra-driver.dev"), class("nic", "nic.example.com")]
}

pub(crate) fn selector(cel: &str) -> Value {
    let own = "device.attributes[\"mig.dra-driver.dev\"]";
    json!([{"cel": {"expression": cel.replace("own", own)}}])
}

/// A request for so many devices of a profile.
pub(crate) fn profile(profile: &str, count: u32) -> Value {
    json!({"name": "gpu", "exactly": {"deviceClassName": "mig", "allocationMode": "ExactCount", "count": count,
        "selectors": selector(&format!("own.profile == \"{profile}\""))}})
}

pub(crate) fn claim(uid: &str, requests: Value) -> ResourceClaim {
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": uid, "uid": uid},
        "spec": {"devices": {"requests": requests}}
    }))
    .unwrap()
}

/// A pod with one claim, unschedulable since it exists.
pub(crate) fn pod(uid: &str, created: Timestamp, claim: ResourceClaim) -> PendingPod {
    PendingPod {
        uid: uid.to_owned(),
        namespace: "default".to_owned(),
        name: uid.to_owned(),
        priority: 0,
        created,
        unschedulable: Some(created),
        lacks_only_devices: true,
        spec: Arc::new(PodSpec::default()),
        claims: vec![Arc::new(claim)],
    }
}

/// A pod that waits for one device of a profile.
pub(crate) fn for_profile(uid: &str, created: Timestamp, name: &str) -> PendingPod {
    pod(uid, created, claim(&format!("claim-{uid}"), json!([profile(name, 1)])))
}

/// Seconds after a fixed time.
pub(crate) fn at(seconds: f64) -> Timestamp {
    #[expect(clippy::cast_possible_truncation, reason = "times are small")]
    Timestamp::from_millisecond(1_796_000_000_000 + (seconds * 1000.0).round() as i64).unwrap()
}
