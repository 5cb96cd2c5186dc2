//! The simulated machine as data: what `state.json` holds. The rules of partitioning are in [`crate::mig`].

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::code::{Answer, Code};
use mig_models::{MAX_GPUS, Model, Profile, Seat};

/// Everything that outlives a process that uses the library.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Changes at each reboot, as `/proc/sys/kernel/random/boot_id` does.
    pub boot_id: String,
    /// How many reboots there were; part of the boot id.
    pub boots: u32,
    /// The driver's version, such as `580.82.07`.
    pub driver_version: String,
    /// The serial number that the next instance gets. Never re-used, so that stale handles are recognised.
    pub next_serial: u32,
    /// The GPUs in NVML's order: by PCI address.
    pub gpus: Vec<Gpu>,
    /// How many of them NVML counts, the first ones; `None` for all. The kernel lists all. So it is in a container that lacks
    /// the device nodes of the last ones.
    #[serde(default)]
    pub counted: Option<usize>,
    /// The last events, oldest first.
    pub events: VecDeque<Event>,
    /// The sequence number of the next event.
    pub next_event: u64,
}

/// One GPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gpu {
    /// Name of the model in the tables.
    pub model: String,
    /// `GPU-...`.
    pub uuid: String,
    /// Board serial number.
    pub serial: String,
    /// `0000:3b:00.0`: domain, bus, device, function.
    pub pci: String,
    /// The PCI root complex above it, `pci0000:3a`.
    pub pci_root: String,
    /// Number of `/dev/nvidia<minor>`.
    pub minor: u32,
    /// NUMA node; -1 where the machine has none.
    pub numa: i32,
    /// MIG mode now.
    pub mig_current: bool,
    /// MIG mode after the next reset.
    pub mig_pending: bool,
    /// `nvmlGpuVirtualizationMode_t`: 0 bare metal, 1 passthrough, 2 vGPU guest, 3 and 4 host of vGPUs.
    pub virtualization: u32,
    /// Off the bus: every call answers GPU_IS_LOST.
    pub lost: bool,
    /// Where set, `nvmlDeviceGetHandleByIndex` answers this code.
    pub handle_error: Option<u32>,
    /// `nvmlDeviceGpuRecoveryAction_t`; `None` is a driver before 565, which does not know it.
    #[serde(default)]
    pub recovery_action: Option<u32>,
    /// `nvmlComputeMode_t`.
    pub compute_mode: u32,
    /// Utilisation in percent: GPU and memory.
    pub utilization: (u32, u32),
    /// Partitions.
    pub instances: Vec<GpuInstance>,
    /// Which compute instance answers to which MIG device index; `None` is a hole left by a destroy.
    pub mig_slots: Vec<Option<(u32, u32)>>,
    /// Running processes.
    pub processes: Vec<Process>,
    /// Other programs that hold the GPU or an instance open, such as a monitoring agent.
    pub holders: Vec<Holder>,
    /// Product name, where it is not that of the model.
    #[serde(default)]
    pub product_name: Option<String>,
    /// `nvmlBrandType_t`, where it is not that of the model.
    #[serde(default)]
    pub brand: Option<u32>,
    /// `nvmlDeviceArchitecture_t`, where it is not that of the model.
    #[serde(default)]
    pub architecture: Option<u32>,
    /// Profiles that the tables do not have: an unknown future one, or a changed row (same index replaces).
    pub extra_profiles: Vec<Profile>,
}

/// One GPU instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuInstance {
    /// The id in the device file's name; depends on the placement.
    pub id: u32,
    /// Tells it from an earlier instance with the same id.
    pub serial: u32,
    /// The profile's id.
    pub profile_id: u32,
    /// First memory unit.
    pub start: u32,
    /// Memory units.
    pub size: u32,
    /// Compute instances in it.
    pub compute_instances: Vec<ComputeInstance>,
}

/// One compute instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeInstance {
    /// Id within the GPU instance.
    pub id: u32,
    /// Tells it from an earlier instance with the same id.
    pub serial: u32,
    /// The compute instance profile's id.
    pub profile_id: u32,
    /// First compute slice.
    pub start: u32,
    /// Compute slices.
    pub size: u32,
    /// `MIG-...`.
    pub uuid: String,
}

/// A process that uses a GPU or an instance of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// GPU instance, where it runs on one.
    pub gpu_instance: Option<u32>,
    /// Compute instance, where it runs on one.
    pub compute_instance: Option<u32>,
    /// Memory it uses, MiB.
    pub memory_mib: u64,
}

/// Another client with an open handle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its name, for `release`.
    pub client: String,
    /// The GPU instance it holds; `None` is the whole GPU.
    pub gpu_instance: Option<u32>,
}

/// One event, as `nvmlEventSetWait` delivers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Sequence number; an event set delivers those posted after it was made.
    pub sequence: u64,
    /// Index of the GPU.
    pub gpu: usize,
    /// One bit of `nvmlEventType*`.
    pub kind: u64,
    /// The XID.
    pub data: u64,
    /// GPU instance, where attributable.
    pub gpu_instance: Option<u32>,
    /// Compute instance, where attributable.
    pub compute_instance: Option<u32>,
}

/// `nvmlEventTypeSingleBitEccError`.
pub const EVENT_SINGLE_BIT_ECC: u64 = 0x1;
/// `nvmlEventTypeDoubleBitEccError`.
pub const EVENT_DOUBLE_BIT_ECC: u64 = 0x2;
/// `nvmlEventTypeXidCriticalError`.
pub const EVENT_XID: u64 = 0x8;
/// `nvmlEventMigConfigChange`.
pub const EVENT_MIG_CONFIG_CHANGE: u64 = 0x100;
/// How many events are kept for slow readers.
const EVENTS_KEPT: usize = 256;

impl Machine {
    /// A machine that was just switched on. `seed` makes its UUIDs differ from another machine's.
    pub fn new(models: &[Model], seed: &str) -> Result<Machine, String> {
        if models.len() > MAX_GPUS {
            return Err(format!("a node has at most {MAX_GPUS} GPUs"));
        }
        let gpus = models.iter().enumerate().map(|(index, model)| Gpu::new(*model, index, seed)).collect();
        Ok(Machine {
            boot_id: boot_id(seed, 0),
            boots: 0,
            driver_version: "580.82.07".into(),
            next_serial: 1,
            gpus,
            counted: None,
            events: VecDeque::new(),
            next_event: 0,
        })
    }

    /// The GPU of that index.
    pub fn gpu(&self, index: usize) -> Answer<&Gpu> {
        self.gpus.get(index).ok_or(Code::INVALID_ARGUMENT)
    }

    /// The GPU of that index, to change it.
    pub fn gpu_mut(&mut self, index: usize) -> Answer<&mut Gpu> {
        self.gpus.get_mut(index).ok_or(Code::INVALID_ARGUMENT)
    }

    /// A serial number that no instance had before. The handle format has room for 24 bits.
    pub fn take_serial(&mut self) -> u32 {
        let serial = self.next_serial;
        self.next_serial = if serial >= 0xff_ffff { 1 } else { serial + 1 };
        serial
    }

    /// How many GPUs NVML counts.
    pub fn count(&self) -> usize {
        self.counted.map_or(self.gpus.len(), |it| it.min(self.gpus.len()))
    }

    /// Adds an event; old ones make room.
    pub fn post(
        &mut self,
        gpu: usize,
        kind: u64,
        data: u64,
        gpu_instance: Option<u32>,
        compute_instance: Option<u32>,
    ) {
        let sequence = self.next_event;
        self.next_event += 1;
        self.events.push_back(Event { sequence, gpu, kind, data, gpu_instance, compute_instance });
        while self.events.len() > EVENTS_KEPT {
            self.events.pop_front();
        }
    }

    /// Power cycle: no instance and no process survives, MIG mode only on Ampere (InfoROM bit; reference
    /// 3.1).
    pub fn reboot(&mut self) {
        self.boots += 1;
        let seed = self.boot_id.clone();
        self.boot_id = boot_id(&seed, self.boots);
        self.events.clear();
        for gpu in &mut self.gpus {
            let keeps_mode = !gpu.model().is_some_and(|model| model.resetless_mig());
            gpu.mig_pending = keeps_mode && gpu.mig_pending;
            gpu.lost = false;
            gpu.compute_mode = 0;
            gpu.processes.clear();
            gpu.holders.clear();
            gpu.reset();
        }
    }
}

impl Gpu {
    fn new(model: Model, index: usize, seed: &str) -> Gpu {
        let seat = Seat::of(index);
        let pci = format!("0000:{:02x}:00.0", seat.bus);
        Gpu {
            model: model.name().into(),
            uuid: format!("GPU-{}", uuid_of(&format!("{seed}/{pci}/{}", model.name()))),
            serial: format!("13240240{index:05}"),
            pci_root: format!("pci0000:{:02x}", seat.root),
            pci,
            minor: u32::try_from(index).unwrap_or(0),
            numa: i32::try_from(seat.numa).unwrap_or(0),
            mig_current: false,
            mig_pending: false,
            virtualization: 0,
            lost: false,
            handle_error: None,
            recovery_action: None,
            compute_mode: 0,
            utilization: (0, 0),
            instances: Vec::new(),
            mig_slots: Vec::new(),
            processes: Vec::new(),
            holders: Vec::new(),
            product_name: None,
            brand: None,
            architecture: None,
            extra_profiles: Vec::new(),
        }
    }

    /// The model's table entry. `None` if someone wrote an unknown name into the file.
    pub fn model(&self) -> Option<Model> {
        Model::named(&self.model).ok()
    }

    /// What the GPU offers: the table with the node's own additions, by profile index.
    pub fn profiles(&self) -> Vec<Profile> {
        let mut profiles = self.model().map(|model| model.profiles()).unwrap_or_default();
        profiles.retain(|profile| !self.extra_profiles.iter().any(|extra| extra.index == profile.index));
        profiles.extend(self.extra_profiles.iter().cloned());
        profiles
    }

    /// Memory units; 0 without MIG.
    pub fn memory_units(&self) -> u32 {
        self.model().map_or(0, |model| model.data().memory_units)
    }

    /// The GPU instance with that id.
    pub fn instance(&self, id: u32) -> Option<&GpuInstance> {
        self.instances.iter().find(|instance| instance.id == id)
    }

    /// A GPU reset: the pending mode comes into force and all partitions are gone.
    pub fn reset(&mut self) {
        self.mig_current = self.mig_pending;
        self.instances.clear();
        self.mig_slots.clear();
        self.recovery_action = self.recovery_action.map(|_| 0);
    }
}

/// A version 5 UUID over the given identity.
pub(crate) fn uuid_of(identity: &str) -> String {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, identity.as_bytes()).to_string()
}

fn boot_id(seed: &str, boots: u32) -> String {
    uuid_of(&format!("boot/{seed}/{boots}"))
}
