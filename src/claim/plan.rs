//! From an allocation to a record of what has to exist. Pure.

use serde_json::Map;

use super::{AllocatedDevice, ClaimRef};
use crate::checkpoint::{Progress, Record, RecordedDevice, RecordedKind, VERSION};
use crate::inventory::{DeviceKind, Inventory};

/// An allocation that this node cannot carry out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The device is not (or no longer) one of this node's.
    #[error(
        "device `{device}` of ResourceClaim {claim} is not offered by this node (any more); delete the pod and its claim \
         to have another one allocated"
    )]
    UnknownDevice {
        /// The claim.
        claim: ClaimRef,
        /// The device.
        device: String,
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

/// Plans a claim: which device is made where. `others` are the records of all claims; one that overlaps is a conflict,
/// which the scheduler can cause after a pod was deleted by force (kubernetes#141471).
pub fn plan(
    claim: &ClaimRef,
    allocated: &[AllocatedDevice],
    inventory: &Inventory,
    others: &[Record],
    boot_id: &str,
) -> Result<Record, PlanError> {
    let mut devices = Vec::new();
    for it in allocated {
        let unknown = || PlanError::UnknownDevice { claim: claim.clone(), device: it.device.clone() };
        let offered = inventory.device(&it.device).ok_or_else(unknown)?;
        let kind = match &offered.kind {
            DeviceKind::Gpu => RecordedKind::Gpu,
            DeviceKind::Mig(spec) => RecordedKind::Mig { spec: spec.clone(), progress: Progress::Intended },
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
    Ok(Record { version: VERSION, boot_id, claim, devices, prepared: false, unknown: Map::new() })
}

/// True where another claim's record of this boot needs a part of the same GPU that this device needs.
pub(super) fn is_held_by_another(
    claim: &ClaimRef,
    device: &RecordedDevice,
    others: &[Record],
    boot_id: &str,
) -> bool {
    conflict(claim, device, others, boot_id).is_some()
}

fn conflict(claim: &ClaimRef, device: &RecordedDevice, others: &[Record], boot_id: &str) -> Option<Conflict> {
    let others = others.iter().filter(|it| it.claim.uid != claim.uid && it.boot_id == boot_id);
    let mut held = others.flat_map(|record| record.devices.iter().map(move |it| (record, it)));
    let in_the_way =
        held.find(|(_, it)| it.parent_uuid == device.parent_uuid && overlap(&it.kind, &device.kind));
    in_the_way.map(|(record, it)| Conflict {
        claim: claim.clone(),
        device: device.name.clone(),
        held: it.name.clone(),
        holder: record.claim.clone(),
    })
}

/// A whole GPU overlaps everything on it.
fn overlap(left: &RecordedKind, right: &RecordedKind) -> bool {
    match (left, right) {
        (RecordedKind::Mig { spec: left, .. }, RecordedKind::Mig { spec: right, .. }) => {
            left.placement.overlaps(right.placement)
        }
        _ => true,
    }
}
