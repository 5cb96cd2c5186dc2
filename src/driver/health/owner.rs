//! Maps an event to its owner: from the ids that NVML reports to the claim. Pure.

use std::sync::Arc;

use mig_model::claim::ClaimRef;
use mig_model::inventory::{DeviceKind, Inventory};

use crate::checkpoint::{Progress, Record, RecordedDevice, RecordedKind};
use crate::nvml::GpuEvent;

/// Who is concerned by an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// The GPU as a whole, no particular instance.
    Gpu,
    /// A claim, by one of its devices.
    Claim(Holder),
    /// An adopted instance, published at the moment or not; no claim has it.
    Unclaimed(Instance),
    /// Any other instance that no claim of this driver has.
    Unmanaged,
}

/// A device that a claim holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The claim.
    pub claim: ClaimRef,
    /// Its device.
    pub device: String,
    /// `None` where the claim holds the whole GPU.
    pub instance: Option<Instance>,
}

/// An instance that is a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The device.
    pub device: String,
    /// GPU instance id.
    pub gpu_instance: u32,
    /// UUID of the MIG device.
    pub uuid: String,
    /// Whether it is unmanaged, so that it outlives the claim.
    pub is_adopted: bool,
}

/// Finds out whom an event concerns. A GPU that a claim holds as a whole is that claim's, whatever happens on it. An
/// instance is known by its GPU instance: this driver makes one compute instance in each, and adopts no others. `adopted`
/// has the unmanaged instances that are devices, offered at the moment or not.
#[must_use]
pub fn owner(event: &GpuEvent, records: &[Arc<Record>], boot_id: &str, adopted: &Inventory) -> Owner {
    let of_this_boot = records.iter().filter(|it| it.boot_id == boot_id);
    let devices = of_this_boot.flat_map(|record| record.devices.iter().map(move |it| (record, it)));
    let on_this_gpu = devices.filter(|(_, it)| it.parent_uuid == event.gpu);
    let held = |(record, device): (&Arc<Record>, &RecordedDevice)| {
        let instance = |uuid: &str, gpu_instance, is_adopted| {
            let (device, uuid) = (device.name.clone(), uuid.to_owned());
            Some(Instance { device, gpu_instance, uuid, is_adopted })
        };
        let instance = match (&device.kind, event.gpu_instance) {
            (RecordedKind::Gpu, _) => None,
            (RecordedKind::Mig { progress: Progress::Complete { gpu_instance, uuid, .. }, .. }, Some(id))
                if *gpu_instance == id =>
            {
                instance(uuid, id, false)
            }
            // It is another claim's, if any; of a shared one NVML does not report which of its users it was.
            (RecordedKind::AdminAccess | RecordedKind::Share { .. }, _) => return None,
            (RecordedKind::Adopted(it), Some(id)) if it.gpu_instance == id => instance(&it.uuid, id, true),
            (RecordedKind::Mig { .. } | RecordedKind::Adopted(_), _) => return None,
        };
        Some(Holder { claim: record.claim.clone(), device: device.name.clone(), instance })
    };
    match (on_this_gpu.filter_map(held).next(), event.gpu_instance) {
        (Some(holder), _) => Owner::Claim(holder),
        (None, Some(id)) => unclaimed(&event.gpu, id, adopted).map_or(Owner::Unmanaged, Owner::Unclaimed),
        (None, None) => Owner::Gpu,
    }
}

/// The adopted instance.
fn unclaimed(gpu: &str, gpu_instance: u32, adopted: &Inventory) -> Option<Instance> {
    let all = adopted.gpus.iter().flat_map(|it| it.devices.iter().chain(&it.withheld));
    all.filter(|it| it.parent_uuid == gpu).find_map(|device| match &device.kind {
        DeviceKind::Adopted(it) if it.gpu_instance == gpu_instance => {
            let (device, uuid) = (device.name.to_string(), it.uuid.clone());
            Some(Instance { device, gpu_instance, uuid, is_adopted: true })
        }
        _ => None,
    })
}

#[cfg(test)]
pub(super) mod fixture {
    use super::*;
    use crate::checkpoint::{Stage, VERSION};
    use crate::nvml::EventKind;
    use mig_model::facts::Placement;
    use mig_model::inventory::MigSpec;

    /// A claim of this boot that holds an instance of the GPU, or all of it.
    pub(in super::super) fn record(name: &str, gpu: &str, instance: Option<u32>) -> Arc<Record> {
        let kind = instance.map_or(RecordedKind::Gpu, |gpu_instance| RecordedKind::Mig {
            spec: MigSpec {
                profile: "1g.10gb".to_owned(),
                profile_id: 19,
                slices: 1,
                placement: Placement { start: 0, size: 1 },
            },
            progress: Progress::Complete { gpu_instance, compute_instance: 0, uuid: format!("MIG-{name}") },
        });
        let claim = ClaimRef::new("team".to_owned(), name.to_owned(), format!("uid-{name}")).unwrap();
        Arc::new(Record {
            version: VERSION,
            boot_id: "boot".to_owned(),
            claim,
            devices: vec![RecordedDevice {
                name: format!("device-of-{name}"),
                pool: "pool".to_owned(),
                requests: Vec::new(),
                parent_uuid: gpu.to_owned(),
                kind,
                unknown: serde_json::Map::new(),
            }],
            stage: Stage::Prepared,
            pod_claim_name: None,
            unknown: serde_json::Map::new(),
        })
    }

    pub(in super::super) fn xid(gpu: &str, number: u64, gpu_instance: Option<u32>) -> GpuEvent {
        let compute_instance = gpu_instance.map(|_| 0);
        GpuEvent { gpu: gpu.to_owned(), kind: EventKind::Xid(number), gpu_instance, compute_instance }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{record, xid};
    use super::*;

    fn name(owner: &Owner) -> &str {
        match owner {
            Owner::Gpu => "the GPU",
            Owner::Unmanaged => "unmanaged",
            Owner::Unclaimed(instance) => &instance.device,
            Owner::Claim(holder) => &holder.claim.name,
        }
    }

    #[test]
    fn an_event_finds_its_claim_by_gpu_and_instance() {
        let records =
            [record("a", "GPU-0", Some(7)), record("b", "GPU-1", Some(7)), record("c", "GPU-1", Some(8))];
        let of = |event| name(&owner(&event, &records, "boot", &Inventory::default())).to_owned();
        assert_eq!(of(xid("GPU-1", 94, Some(7))), "b");
        assert_eq!(of(xid("GPU-1", 94, Some(8))), "c");
        assert_eq!(of(xid("GPU-1", 94, Some(9))), "unmanaged");
        assert_eq!(of(xid("GPU-1", 94, None)), "the GPU");
        assert_eq!(of(xid("GPU-2", 94, None)), "the GPU");
    }

    #[test]
    fn the_holder_of_the_whole_gpu_is_concerned_by_all_of_it() {
        let records = [record("a", "GPU-0", None)];
        assert_eq!(name(&owner(&xid("GPU-0", 31, None), &records, "boot", &Inventory::default())), "a");
    }

    #[test]
    fn records_of_another_boot_own_nothing() {
        let records = [record("a", "GPU-0", Some(7))];
        let event = xid("GPU-0", 94, Some(7));
        assert_eq!(owner(&event, &records, "later", &Inventory::default()), Owner::Unmanaged);
    }
}
