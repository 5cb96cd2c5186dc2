//! Turns an allocation into a record of what has to exist. Pure.

use std::sync::Arc;

use mig_model::claim::ClaimRef;
use mig_model::inventory::{Adopted, AllocatableDevice, DeviceKind, DeviceName, Inventory, lacking};
use serde_json::Map;

use super::AllocatedDevice;
use crate::checkpoint::{Progress, Record, RecordedDevice, RecordedKind, Stage, VERSION};

/// An allocation that this node cannot carry out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No GPU of this node can provide the device.
    #[error(
        "no GPU of this node can provide device `{device}` of ResourceClaim {claim}; delete the pod and its claim to \
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
        "device `{device}` of ResourceClaim {claim} is unknown while a GPU of the node cannot be used ({unread}); the \
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
        "device `{device}` of ResourceClaim {claim} stands for an unmanaged MIG instance, and there is no \
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
    /// The device is no whole GPU, and only those are given with adminAccess.
    #[error(
        "ResourceClaim {claim} was allocated `{device}` with adminAccess, which this driver serves for whole GPUs only: a MIG \
         device exists only while an ordinary claim holds it; select devices of the type `gpu` that are not time-shared, or \
         remove adminAccess from the request"
    )]
    AdminAccess {
        /// The claim.
        claim: ClaimRef,
        /// The device.
        device: String,
    },
    /// Another claim still holds the same part of the GPU.
    #[error(transparent)]
    Held(#[from] Box<Conflict>),
    /// Devices of the claim exclude each other.
    #[error(transparent)]
    Impossible(#[from] Box<ImpossibleClaim>),
}

/// A claim that was allocated devices which cannot exist together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "ResourceClaim {claim} was allocated `{}` of GPU {gpu}, which need more {lacking} than the GPU has; nothing was created; \
     delete the pod and its claim to have other devices allocated", devices.join("`, `")
)]
pub struct ImpossibleClaim {
    /// The claim.
    pub claim: ClaimRef,
    /// UUID of the GPU.
    pub gpu: String,
    /// Devices that exclude each other.
    pub devices: Vec<String>,
    /// What there is too little of: the counters of the ResourceSlice.
    pub lacking: String,
}

/// Two claims that need the same part of a GPU. The text does not name a claim of another namespace: the owner of this one reads it in
/// events, also in those of the kubelet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "device `{device}` of ResourceClaim {claim} overlaps `{held}`, which {} still holds; it is free once the pod of that claim has ended",
    as_seen_from(.claim, .holder)
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

/// What the owner of a claim may know of another one.
fn as_seen_from(claim: &ClaimRef, other: &ClaimRef) -> String {
    if claim.namespace == other.namespace {
        format!("ResourceClaim {other}")
    } else {
        "a ResourceClaim of another namespace (the log of the driver names it)".to_owned()
    }
}

/// The node as a plan sees it.
#[derive(Debug, Clone, Copy)]
pub struct PlanContext<'a> {
    /// This node's pool.
    pub pool: &'a str,
    /// The devices that its GPUs can provide.
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
    context: PlanContext<'_>,
    others: &[Arc<Record>],
) -> Result<Record, PlanError> {
    let PlanContext { pool, inventory, unread, boot_id } = context;
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
            DeviceKind::Gpu if it.admin_access => RecordedKind::AdminAccess,
            _ if it.admin_access => {
                return Err(PlanError::AdminAccess { claim: claim.clone(), device: it.device.clone() });
            }
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
    if let Some(impossible) = impossible(claim, &devices, inventory) {
        return Err(Box::new(impossible).into());
    }
    if let Some(conflict) = devices.iter().find_map(|it| conflict(claim, it, others, boot_id)) {
        return Err(Box::new(conflict).into());
    }
    let (claim, boot_id) = (claim.clone(), boot_id.to_owned());
    Ok(Record {
        version: VERSION,
        boot_id,
        claim,
        devices,
        stage: Stage::Preparing,
        pod_claim_name: None,
        unknown: Map::new(),
    })
}

/// Devices of one claim that exclude each other: kube-scheduler counts what they take, but an allocation can be written by
/// any authorized client, and counters are ignored if the feature gate is off.
fn impossible(
    claim: &ClaimRef,
    devices: &[RecordedDevice],
    inventory: &Inventory,
) -> Option<ImpossibleClaim> {
    let of = |gpu: &str, devices: &[&RecordedDevice], lacking: &[&str]| ImpossibleClaim {
        claim: claim.clone(),
        gpu: gpu.to_owned(),
        devices: devices.iter().map(|it| it.name.clone()).collect(),
        lacking: lacking.join(", "),
    };
    let pairs =
        devices.iter().enumerate().flat_map(|(at, it)| devices[..at].iter().map(move |other| (other, it)));
    let mut overlapping = pairs
        .filter(|(left, right)| left.parent_uuid == right.parent_uuid && overlap(&left.kind, &right.kind));
    if let Some((left, right)) = overlapping.next() {
        return Some(of(&left.parent_uuid, &[left, right], &["its memory slices"]));
    }
    // Without an overlap they can still need more media engines than there are.
    inventory.gpus.iter().find_map(|gpu| {
        let mine: Vec<(&RecordedDevice, &AllocatableDevice)> = devices
            .iter()
            .filter(|it| it.kind.holds())
            .filter_map(|it| {
                let mut offered = gpu.devices.iter().chain(&gpu.withheld);
                offered.find(|offered| offered.name.as_str() == it.name).map(|offered| (it, offered))
            })
            .collect();
        let consumed: Vec<_> = mine.iter().map(|(_, it)| &it.consumes).collect();
        let lacking = lacking(&gpu.counters, &consumed);
        let takes = |it: &AllocatableDevice| lacking.iter().any(|counter| it.consumes.contains_key(*counter));
        let devices: Vec<&RecordedDevice> =
            mine.iter().filter(|(_, it)| takes(it)).map(|(it, _)| *it).collect();
        let first = devices.first()?;
        Some(of(&first.parent_uuid, &devices, &lacking))
    })
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

/// True where a claim other than this one has a MIG device on the GPU or is about to have one, in any process. What is being
/// unprepared needs no MIG mode once its instance is destroyed, and until then the instance is seen.
pub(super) fn needs_mig_mode(gpu: &str, claim: &ClaimRef, records: &[Arc<Record>], boot_id: &str) -> bool {
    let is_on_gpu =
        |it: &RecordedDevice| it.parent_uuid == gpu && matches!(it.kind, RecordedKind::Mig { .. });
    records.iter().any(|it| {
        it.claim.uid != claim.uid
            && it.boot_id == boot_id
            && it.stage != Stage::Unpreparing
            && it.devices.iter().any(is_on_gpu)
    })
}

fn conflict(
    claim: &ClaimRef,
    device: &RecordedDevice,
    others: &[Arc<Record>],
    boot_id: &str,
) -> Option<Conflict> {
    let others = others.iter().filter(|it| it.claim.uid != claim.uid && it.boot_id == boot_id);
    let held = others.flat_map(|record| record.devices.iter().map(move |it| (record, it)));
    // Nothing is left of the device if its claim is being unprepared.
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

/// A whole GPU overlaps everything on it; shares only themselves; and adminAccess nothing.
fn overlap(left: &RecordedKind, right: &RecordedKind) -> bool {
    let placement = |it: &RecordedKind| match it {
        RecordedKind::Mig { spec, .. } | RecordedKind::Adopted(Adopted { spec, .. }) => Some(spec.placement),
        RecordedKind::Gpu | RecordedKind::AdminAccess | RecordedKind::Share { .. } => None,
    };
    match (left, right) {
        _ if !left.holds() || !right.holds() => false,
        (RecordedKind::Share { index: left }, RecordedKind::Share { index: right }) => left == right,
        _ => match (placement(left), placement(right)) {
            (Some(left), Some(right)) => left.overlaps(right),
            _ => true,
        },
    }
}

#[cfg(test)]
mod tests;
