//! Taints of the devices of unhealthy GPUs.
//!
//! A GPU is tainted as a whole: Kubernetes 1.35 loses the counters of a candidate that it rejects for a taint until the end of
//! the attempt, so one tainted placement would hide its siblings (kubernetes#140436). For the same reason an unhealthy instance is
//! not tainted: it is allocated, so no other claim gets it. Where the API server drops taints, or is too old to have them,
//! nothing is missing: free devices of an unhealthy GPU are not published at all. The taint is for those that are still
//! allocated: it closes the moment between the end of a claim and the withdrawal of its device, and with `NoExecute` it ends
//! the pods.

use std::time::Instant;

use crate::health::{Condition, Report};
use k8s_openapi::api::resource::v1::{Device, DeviceTaint, ResourceSlice};

use super::world::{Published, Question, TaintEffect, World};

/// Taints the devices of unhealthy GPUs, if the API server keeps taints. It is asked only if there is one to be made.
pub(super) fn taint(
    slices: &mut [ResourceSlice],
    world: &World<'_>,
    published: &Published,
    now: Instant,
) -> Result<(), Question> {
    let driver = &published.owner.driver;
    let of = |it: &Device| taint_of(it, world.node.health, driver, world.settings.taint_effect);
    if !devices(slices).any(|it| of(it).is_some()) {
        return Ok(());
    }
    let gate = &world.gates.taints;
    if !gate.is_fresh(now) {
        return Err(Question::Taints);
    }
    if gate.answer == Some(true) {
        let taint = |it: &Device| of(it).map(|taint| dated(taint, it, &published.slices));
        for device in slices.iter_mut().flat_map(|it| it.spec.devices.iter_mut().flatten()) {
            device.taints = taint(device).map(|it| vec![it]);
        }
    }
    Ok(())
}

/// The taint of a device, if its GPU is unhealthy.
fn taint_of(device: &Device, health: &Report, driver: &str, effect: TaintEffect) -> Option<DeviceTaint> {
    let uuid = device.attributes.as_ref()?.get("parentUUID")?.string.as_ref()?;
    let (name, value) = match health.gpu(uuid) {
        Condition::Unhealthy(unhealthy_reason) => unhealthy_reason.cause.taint(),
        Condition::Lost { .. } => ("lost", "true".to_owned()),
        Condition::Healthy | Condition::Unmonitored { .. } => return None,
    };
    Some(new_taint(driver, name, value, effect))
}

/// A taint with a key of this driver.
pub fn new_taint(driver: &str, name: &str, value: String, effect: TaintEffect) -> DeviceTaint {
    let effect = match effect {
        TaintEffect::NoSchedule => "NoSchedule",
        TaintEffect::NoExecute => "NoExecute",
    };
    let key = format!("{driver}/{name}");
    DeviceTaint { key, value: Some(value), effect: effect.to_owned(), time_added: None }
}

fn devices(slices: &[ResourceSlice]) -> impl Iterator<Item = &Device> {
    slices.iter().flat_map(|it| it.spec.devices.iter().flatten())
}

/// With the time at which the same taint of the same device was published, which the API server has added: it would add
/// another one to each rewrite, and a toleration that ends after some time would begin anew.
fn dated(taint: DeviceTaint, device: &Device, published: &[ResourceSlice]) -> DeviceTaint {
    let before = devices(published).filter(|it| it.name == device.name);
    let is_same = |it: &&DeviceTaint| {
        let it = DeviceTaint { time_added: None, ..(*it).clone() };
        it == taint
    };
    let known = before.flat_map(|it| it.taints.iter().flatten()).find(is_same).cloned();
    known.unwrap_or(taint)
}

/// True where the API server did not keep the taints that it was given, because `DRADeviceTaints` is off there.
pub fn lost_taints(sent: &ResourceSlice, stored: &ResourceSlice) -> bool {
    let count = |it: &ResourceSlice| {
        it.spec.devices.iter().flatten().filter(|it| it.taints.iter().flatten().next().is_some()).count()
    };
    count(stored) < count(sent)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::resource::v1::DeviceAttribute;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::health::{Cause, UnhealthyReason};

    const DRIVER: &str = "mig.example.com";

    fn taint_in(condition: Condition, gpu: &str) -> Option<DeviceTaint> {
        let report = Report { gpus: [("GPU-0".to_owned(), condition)].into(), instances: Vec::new() };
        taint_of(&device(gpu), &report, DRIVER, TaintEffect::NoExecute)
    }

    fn device(gpu: &str) -> Device {
        let uuid = DeviceAttribute { string: Some(gpu.to_owned()), ..DeviceAttribute::default() };
        let attributes = Some([("parentUUID".to_owned(), uuid)].into());
        Device { name: "device".to_owned(), attributes, ..Device::default() }
    }

    fn slice(device: Device) -> ResourceSlice {
        let mut slice = ResourceSlice::default();
        slice.spec.devices = Some(vec![device]);
        slice
    }

    #[test]
    fn only_devices_of_unhealthy_gpus_are_tainted_with_the_reason() {
        let unhealthy = Condition::Unhealthy(UnhealthyReason { cause: Cause::Xid(48), since: 1 });
        let taint = taint_in(unhealthy.clone(), "GPU-0").unwrap();
        assert_eq!((taint.key.as_str(), taint.value.as_deref()), ("mig.example.com/xid", Some("48")));
        assert_eq!(taint.effect, "NoExecute");
        assert_eq!(taint_in(unhealthy, "GPU-1"), None);
        let lost = Condition::Lost { reason: "GPU_IS_LOST".to_owned(), since: 1 };
        assert_eq!(taint_in(lost, "GPU-0").unwrap().key, "mig.example.com/lost");
        let unmonitored = Condition::Unmonitored { reason: "silence".to_owned(), is_for_good: false };
        assert_eq!(taint_in(unmonitored, "GPU-0"), None);
    }

    #[test]
    fn a_taint_that_is_published_keeps_the_time_that_the_server_gave_it() {
        let wanted = new_taint(DRIVER, "xid", "48".to_owned(), TaintEffect::NoExecute);
        let stored = DeviceTaint { time_added: Some(Time(Timestamp::UNIX_EPOCH)), ..wanted.clone() };
        let published = slice(Device { taints: Some(vec![stored.clone()]), ..device("GPU-0") });
        assert_eq!(dated(wanted.clone(), &device("GPU-0"), std::slice::from_ref(&published)), stored);
        let other = DeviceTaint { value: Some("63".to_owned()), ..wanted };
        assert_eq!(dated(other.clone(), &device("GPU-0"), &[published]), other);
    }

    #[test]
    fn dropped_taints_are_noticed() {
        let taint = new_taint(DRIVER, "xid", "48".to_owned(), TaintEffect::NoExecute);
        let sent = slice(Device { taints: Some(vec![taint]), ..device("GPU-0") });
        assert!(lost_taints(&sent, &slice(device("GPU-0"))));
        assert!(!lost_taints(&sent, &sent));
        assert!(!lost_taints(&slice(device("GPU-0")), &sent));
    }
}
