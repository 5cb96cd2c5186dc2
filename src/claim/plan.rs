//! From an allocation to a record of what has to exist. Pure.

use std::sync::Arc;

use serde_json::Map;

use super::{AllocatedDevice, ClaimRef};
use crate::checkpoint::{Progress, Record, RecordedDevice, RecordedKind, Stage, VERSION};
use crate::inventory::{Adopted, DeviceKind, DeviceName, Inventory};

/// An allocation that this node cannot carry out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No GPU of this node can be cut into the device.
    #[error(
        "no GPU of this node can be cut into device `{device}` of ResourceClaim {claim}; delete the pod and its claim to \
         have another one allocated"
    )]
    UnknownDevice {
        /// The claim.
        claim: ClaimRef,
        /// The device.
        device: String,
    },
    /// Not every GPU of this node can be read now, and the device may be one of those that cannot.
    #[error(
        "device `{device}` of ResourceClaim {claim} is not known while not every GPU of the node can be used ({unread}); the \
         kubelet asks again; `nvidia-smi` and `dra-driver-mig inspect` on the node show more"
    )]
    Unread {
        /// The claim.
        claim: ClaimRef,
        /// The device.
        device: String,
        /// Which GPUs, and why.
        unread: Box<str>,
    },
    /// The device stood for an instance that is gone.
    #[error(
        "device `{device}` of ResourceClaim {claim} stands for a MIG instance that the driver did not make, and there is no \
         such instance any more; delete the pod and its claim to have another device allocated"
    )]
    UnknownInstance {
        /// The claim.
        claim: ClaimRef,
        /// The device.
        device: String,
    },
    /// The device is another node's.
    #[error(
        "device `{device}` of ResourceClaim {claim} was allocated from pool {pool}, which is not this node's; the pod was \
         sent to the wrong node, delete it and let the scheduler choose"
    )]
    OtherPool {
        /// The claim.
        claim: ClaimRef,
        /// The device.
        device: String,
        /// Its pool.
        pool: String,
    },
    /// Another claim still holds the same part of the GPU.
    #[error(transparent)]
    Held(#[from] Box<Conflict>),
}

/// Two claims that need the same part of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "device `{device}` of ResourceClaim {claim} overlaps `{held}`, which ResourceClaim {holder} still holds; it is free \
     once the pod of that claim has ended"
)]
pub struct Conflict {
    /// The claim that comes later.
    pub claim: ClaimRef,
    /// Its device.
    pub device: String,
    /// The device that is in the way.
    pub held: String,
    /// The claim that has it.
    pub holder: ClaimRef,
}

/// The node as a plan sees it.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// This node's pool.
    pub pool: &'a str,
    /// What its GPUs can be cut into.
    pub inventory: &'a Inventory,
    /// Which GPUs cannot be used now, and why; empty where the inventory has everything.
    pub unread: &'a str,
    /// The present boot.
    pub boot_id: &'a str,
}

/// Plans a claim: which device is made where. `others` are the records of all claims; one that overlaps is a conflict,
/// which the scheduler can cause after a pod was deleted by force (kubernetes#141471).
pub fn plan(
    claim: &ClaimRef,
    allocated: &[AllocatedDevice],
    ground: Ground<'_>,
    others: &[Arc<Record>],
) -> Result<Record, PlanError> {
    let Ground { pool, inventory, unread, boot_id } = ground;
    let mut devices = Vec::new();
    for it in allocated {
        if it.pool != pool {
            let (claim, device, pool) = (claim.clone(), it.device.clone(), it.pool.clone());
            return Err(PlanError::OtherPool { claim, device, pool });
        }
        let unknown = || {
            let (claim, device) = (claim.clone(), it.device.clone());
            if !unread.is_empty() {
                PlanError::Unread { claim, device, unread: unread.into() }
            } else if DeviceName::is_adopted(&device) {
                PlanError::UnknownInstance { claim, device }
            } else {
                PlanError::UnknownDevice { claim, device }
            }
        };
        let offered = inventory.find(&it.device).ok_or_else(unknown)?;
        let kind = match &offered.kind {
            DeviceKind::Gpu => RecordedKind::Gpu,
            DeviceKind::Share { index } => RecordedKind::Share { index: *index },
            DeviceKind::Adopted(adopted) => RecordedKind::Adopted(adopted.clone()),
            DeviceKind::Mig(spec) => RecordedKind::Mig { spec: spec.clone(), progress: Progress::Reserved },
        };
        devices.push(RecordedDevice {
            name: it.device.clone(),
            pool: it.pool.clone(),
            requests: it.requests.clone(),
            parent_uuid: offered.parent_uuid.clone(),
            kind,
            unknown: Map::new(),
        });
    }
    if let Some(conflict) = devices.iter().find_map(|it| conflict(claim, it, others, boot_id)) {
        return Err(Box::new(conflict).into());
    }
    let (claim, boot_id) = (claim.clone(), boot_id.to_owned());
    Ok(Record { version: VERSION, boot_id, claim, devices, stage: Stage::Preparing, unknown: Map::new() })
}

/// True where another claim's record of this boot needs a part of the same GPU that this device needs.
pub(super) fn is_held_by_another(
    claim: &ClaimRef,
    device: &RecordedDevice,
    others: &[Arc<Record>],
    boot_id: &str,
) -> bool {
    conflict(claim, device, others, boot_id).is_some()
}

fn conflict(
    claim: &ClaimRef,
    device: &RecordedDevice,
    others: &[Arc<Record>],
    boot_id: &str,
) -> Option<Conflict> {
    let others = others.iter().filter(|it| it.claim.uid != claim.uid && it.boot_id == boot_id);
    let held = others.flat_map(|record| record.devices.iter().map(move |it| (record, it)));
    // Of a claim that is being taken down nothing is left of such a device.
    let is_gone = |record: &Record, it: &RecordedDevice| {
        record.stage == Stage::Unpreparing
            && matches!(it.kind, RecordedKind::Mig { progress: Progress::Reserved, .. })
    };
    let mut held = held.filter(|(record, it)| !is_gone(record, it));
    let in_the_way =
        held.find(|(_, it)| it.parent_uuid == device.parent_uuid && overlap(&it.kind, &device.kind));
    in_the_way.map(|(record, it)| Conflict {
        claim: claim.clone(),
        device: device.name.clone(),
        held: it.name.clone(),
        holder: record.claim.clone(),
    })
}

/// A whole GPU overlaps everything on it; shares only themselves.
fn overlap(left: &RecordedKind, right: &RecordedKind) -> bool {
    let placement = |it: &RecordedKind| match it {
        RecordedKind::Mig { spec, .. } | RecordedKind::Adopted(Adopted { spec, .. }) => Some(spec.placement),
        RecordedKind::Gpu | RecordedKind::Share { .. } => None,
    };
    match (left, right) {
        (RecordedKind::Share { index: left }, RecordedKind::Share { index: right }) => left == right,
        _ => match (placement(left), placement(right)) {
            (Some(left), Some(right)) => left.overlaps(right),
            _ => true,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::MigSpec;
    use crate::nvml::facts::Placement;

    fn claim(name: &str) -> ClaimRef {
        ClaimRef::new("ns".into(), name.into(), format!("uid-{name}")).unwrap()
    }

    fn record(name: &str, parent: &str, kind: RecordedKind) -> Record {
        let device = RecordedDevice {
            name: format!("device-of-{name}"),
            pool: "n/d".into(),
            requests: Vec::new(),
            parent_uuid: parent.into(),
            kind,
            unknown: Map::new(),
        };
        let (claim, boot_id) = (claim(name), "boot".to_owned());
        Record {
            version: VERSION,
            boot_id,
            claim,
            devices: vec![device],
            stage: Stage::Prepared,
            unknown: Map::new(),
        }
    }

    fn mig(start: u32, size: u32) -> RecordedKind {
        let placement = Placement { start, size };
        let spec = MigSpec { profile: "p".into(), profile_id: 1, slices: 1, placement };
        RecordedKind::Mig { spec, progress: Progress::Reserved }
    }

    #[test]
    fn only_what_shares_memory_slices_of_one_gpu_in_this_boot_is_in_the_way() {
        let check = |other: Record, expected: bool| {
            let device = &record("late", "GPU-1", mig(4, 2)).devices[0];
            assert_eq!(is_held_by_another(&claim("late"), device, &[Arc::new(other)], "boot"), expected);
        };
        check(record("a", "GPU-1", mig(5, 1)), true);
        check(record("a", "GPU-1", RecordedKind::Gpu), true);
        check(record("a", "GPU-1", adopted(5, 1)), true);
        check(record("a", "GPU-1", adopted(6, 1)), false);
        check(record("a", "GPU-1", mig(6, 1)), false);
        check(record("a", "GPU-2", mig(5, 1)), false);
        check(record("late", "GPU-1", mig(5, 1)), false);
        check(Record { boot_id: "older".into(), ..record("a", "GPU-1", mig(5, 1)) }, false);
    }

    fn adopted(start: u32, size: u32) -> RecordedKind {
        let RecordedKind::Mig { spec, .. } = mig(start, size) else { unreachable!("it is one") };
        RecordedKind::Adopted(Adopted { spec, gpu_instance: 1, compute_instance: 0, uuid: "MIG-1".into() })
    }

    #[test]
    fn shares_of_a_gpu_are_in_the_way_of_the_whole_and_of_themselves_only() {
        let share = |index| RecordedKind::Share { index };
        for (kind, is_in_the_way) in [(share(0), true), (share(1), false), (RecordedKind::Gpu, true)] {
            let device = &record("late", "GPU-1", kind).devices[0];
            let held = [Arc::new(record("holder", "GPU-1", share(0)))];
            assert_eq!(is_held_by_another(&claim("late"), device, &held, "boot"), is_in_the_way);
        }
    }

    #[test]
    fn a_conflict_names_both_claims_and_what_to_wait_for() {
        let late = record("late", "GPU-1", mig(4, 2));
        let held = [record("holder", "GPU-1", mig(5, 1))];
        let text = conflict(&late.claim, &late.devices[0], &held.map(Arc::new), "boot").unwrap().to_string();
        assert!(
            text.contains("ns/late") && text.contains("ns/holder") && text.contains("free once"),
            "{text}"
        );
    }

    #[test]
    fn an_unknown_device_and_another_pool_are_told_apart() {
        let inventory = Inventory::default();
        let ground = Ground { pool: "n/d", inventory: &inventory, unread: "", boot_id: "boot" };
        let allocated =
            |pool: &str| AllocatedDevice { device: "x".into(), pool: pool.into(), requests: Vec::new() };
        let planned = |pool| plan(&claim("c"), &[allocated(pool)], ground, &[]);
        let gone = AllocatedDevice { device: "gpu-0-adopted-1".into(), ..allocated("n/d") };
        let gone = plan(&claim("c"), &[gone], ground, &[]);
        assert!(matches!(gone, Err(PlanError::UnknownInstance { .. })));
        assert!(matches!(planned("n/d"), Err(PlanError::UnknownDevice { .. })));
        assert!(matches!(planned("m/d"), Err(PlanError::OtherPool { .. })));
        let ground = Ground { unread: "GPU 1: it does not answer", ..ground };
        let unread = plan(&claim("c"), &[allocated("n/d")], ground, &[]).unwrap_err();
        assert!(matches!(unread, PlanError::Unread { .. }));
        let text = unread.to_string();
        assert!(text.contains("GPU 1: it does not answer") && !text.contains("delete"), "{text}");
    }
}
