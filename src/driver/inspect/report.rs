//! The report of `inspect` about a node, as data; `-o json` prints it as it is here, and docs/inspect.md describes it. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use mig_model::claim::ClaimUid;
use mig_model::facts::{Engine, GpuInstance, Memory, MigMode, Placement, Profile, SkippedGpu};
use mig_model::health::{UnhealthyInstance, UnhealthyReason};
use mig_model::inventory::{Adopted, CounterPlan, Gpu, adoptable, fits_into, remaining};
use serde::Serialize;

use super::usage::Usage;
use crate::checkpoint::{ClaimState, Progress, Record, RecordedDevice, RecordedKind, Stored};
use crate::hardware::Hardware;
use crate::health::Remembered;

/// Version of the form of `inspect -o json`. A field that is renamed, removed or changes its meaning raises it; a new field
/// does not.
pub const SCHEMA_VERSION: u32 = 1;

/// The owner of an instance that the driver did not create and no claim has.
pub(super) const UNMANAGED: &str = "unmanaged";

/// A node as `inspect -o json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Version of the document's form: [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// NVIDIA driver version; `null` where NVML does not report it, as with each fact below that may be `null`.
    pub driver_version: Option<String>,
    /// Newest CUDA version the driver serves.
    pub cuda_version: Option<String>,
    /// NVML calls for facts of the node that failed.
    pub unknown_facts: Vec<String>,
    /// GPUs in PCI order.
    pub gpus: Vec<GpuReport>,
    /// GPUs that the driver leaves out, and why.
    pub skipped: Vec<SkippedGpu>,
    /// Claims with a state file, by namespace and name.
    pub claims: Vec<ClaimReport>,
}

/// A GPU.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuReport {
    /// NVML index.
    pub index: u32,
    /// UUID.
    pub uuid: String,
    /// PCI address.
    pub pci: String,
    /// Product name.
    pub product_name: Option<String>,
    /// Architecture.
    pub architecture: Option<String>,
    /// Frame buffer, MiB.
    pub memory_mib: Option<u64>,
    /// How much of it is used, MiB; `null` if NVML does not report it.
    pub memory_used_mib: Option<u64>,
    /// How busy it was lately, as of an instance; `null` in MIG mode.
    pub utilization: Option<BTreeMap<Engine, f64>>,
    /// Why it cannot be read at the moment, if so.
    pub problem: Option<String>,
    /// What it suffers from, if it has had an error that no application causes.
    pub unhealthy: Option<UnhealthyReport>,
    /// `namespace/name` of the claim that holds the whole GPU, if one does.
    pub owner: Option<String>,
    /// Claims that have a time-shared device of the GPU, by its number.
    pub shares: BTreeMap<u32, String>,
    /// MIG; `null` on a GPU without it.
    pub mig: Option<MigReport>,
    /// NVML calls for facts of the GPU that failed.
    pub unknown_facts: Vec<String>,
}

/// What MIG makes of a GPU.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigReport {
    /// MIG mode now and after the next reset.
    pub mode: MigMode,
    /// Whether the mode can be switched without a reset.
    pub resetless: bool,
    /// Memory slices of the whole GPU.
    pub memory_slices: u32,
    /// Profiles in NVML's order.
    pub profiles: Vec<ProfileReport>,
    /// Live instances by placement.
    pub instances: Vec<InstanceReport>,
}

/// A profile and where it still fits.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileReport {
    /// What NVML says of it.
    #[serde(flatten)]
    pub profile: Profile,
    /// Placements that could be made now.
    pub free: Vec<Placement>,
}

/// A live GPU instance.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceReport {
    /// GPU instance id.
    pub gpu_instance: u32,
    /// Profile name, or its id where the driver does not know it.
    pub profile: String,
    /// Where it sits.
    pub placement: Placement,
    /// UUIDs of its MIG devices.
    pub mig_devices: Vec<String>,
    /// `namespace/name` of the claim that holds it, or `unmanaged`.
    pub owner: String,
    /// True where the driver did not make it, whether or not a claim has it.
    pub unmanaged: bool,
    /// Why `--existing-instances=adopt` does not offer it, if it does not.
    pub not_adopted: Option<String>,
    /// Memory of its MIG device, MiB; `null` if NVML does not report it.
    pub memory_mib: Option<u64>,
    /// How much of it is used, MiB.
    pub memory_used_mib: Option<u64>,
    /// How busy its parts were for the moment of the look, from 0 to 1, `null` where
    /// that is not measured.
    pub utilization: Option<BTreeMap<Engine, f64>>,
    /// What it suffers from by itself, if it has had an error that no application causes.
    pub unhealthy: Option<UnhealthyReport>,
}

/// What a GPU or an instance suffers from, as the driver has noted it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnhealthyReport {
    /// The error.
    pub reason: String,
    /// When it came, as RFC 3339.
    pub since: String,
}

/// A claim with a state file on this node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimReport {
    /// Namespace; empty where the state file cannot be read.
    pub namespace: String,
    /// Name; empty where the state file cannot be read.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Its state.
    pub state: ClaimState,
    /// Seconds since the last step of its life: for a prepared claim, since it was prepared. `null` if it is unknown.
    pub age_seconds: Option<u64>,
    /// Pods that it is reserved for; `null` where the API server was not asked or did not answer.
    pub pods: Option<Vec<String>>,
    /// Its devices.
    pub devices: Vec<DeviceReport>,
}

/// A device of a claim.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceReport {
    /// Name in the ResourceSlice.
    pub name: String,
    /// UUID of the GPU.
    pub parent_uuid: String,
    /// Profile, `full` for a whole GPU.
    pub profile: String,
    /// UUID of the MIG device, once there is one.
    pub mig_uuid: Option<String>,
}

/// Everything that a report is made from.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    pub(super) hardware: &'a Hardware,
    pub(super) gpus: &'a [Gpu],
    /// State files, with the time since the last step.
    pub(super) claims: &'a [(ClaimUid, Arc<Stored>, Option<Duration>)],
    /// Pods by the claim that is reserved for them, if the API server reported them.
    pub(super) pods: &'a BTreeMap<ClaimUid, Vec<String>>,
    /// What is used.
    pub(super) used: &'a Usage,
    /// What the driver has noted of errors.
    pub(super) unhealthy: &'a Remembered,
}

impl Seen<'_> {
    pub(super) fn report(&self) -> NodeReport {
        let facts = &self.hardware.facts;
        let mut gpus: Vec<&Gpu> = self.gpus.iter().collect();
        gpus.sort_by_key(|it| it.facts.pci);
        let mut claims: Vec<ClaimReport> = self.claims.iter().filter_map(|it| self.claim(it)).collect();
        claims.sort_by(|left, right| {
            (&left.namespace, &left.name, &left.uid).cmp(&(&right.namespace, &right.name, &right.uid))
        });
        NodeReport {
            schema_version: SCHEMA_VERSION,
            driver_version: facts.driver_version.clone(),
            cuda_version: facts.cuda_version.map(|(major, minor)| format!("{major}.{minor}")),
            unknown_facts: facts.unknown.iter().map(ToString::to_string).collect(),
            gpus: gpus.into_iter().map(|it| self.gpu(it)).collect(),
            skipped: facts.skipped.clone(),
            claims,
        }
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        self.claims.iter().filter_map(|(_, stored, _)| match &**stored {
            Stored::Record(record) => Some(&**record),
            Stored::Nothing | Stored::Unreadable(_) | Stored::Inaccessible(_) => None,
        })
    }

    fn claim(&self, (uid, stored, age): &(ClaimUid, Arc<Stored>, Option<Duration>)) -> Option<ClaimReport> {
        let state = ClaimState::of(stored, &self.hardware.boot_id)?;
        let (namespace, name, devices) = stored.record().map_or_else(Default::default, |record| {
            let devices = record.devices.iter().map(device).collect();
            (record.claim.namespace.clone(), record.claim.name.clone(), devices)
        });
        Some(ClaimReport {
            namespace,
            name,
            uid: uid.to_string(),
            state,
            age_seconds: age.map(|it| it.as_secs()),
            pods: self.pods.get(uid).cloned(),
            devices,
        })
    }

    fn gpu(&self, gpu: &Gpu) -> GpuReport {
        let uuid = &gpu.facts.uuid;
        let owner = self.holder(uuid, &RecordedKind::Gpu).map(|it| it.claim.to_string());
        let share = |(record, device): (&Record, &RecordedDevice)| match device.kind {
            RecordedKind::Share { index } => Some((index, record.claim.to_string())),
            _ => None,
        };
        let mig = gpu.facts.mig.as_ref().map(|mig| {
            let can_be_cut = owner.is_none()
                && gpu.state.problem.is_none()
                && (mig.resetless || gpu.state.mode.is_some_and(|it| it.current));
            let plan = CounterPlan::of(&mig.profiles);
            let left = remaining(&plan, gpu);
            let free = |profile: &Profile| {
                let placements = profile.placements.iter().copied();
                placements.filter(|it| can_be_cut && fits_into(&plan.cost(profile, *it), &left)).collect()
            };
            let mut instances: Vec<InstanceReport> =
                gpu.state.instances.iter().map(|it| self.instance(gpu, it)).collect();
            instances.sort_by_key(|it| it.placement);
            MigReport {
                mode: gpu.state.mode.unwrap_or(mig.mode),
                resetless: mig.resetless,
                memory_slices: mig.memory_slices(),
                profiles: mig
                    .profiles
                    .iter()
                    .map(|it| ProfileReport { free: free(it), profile: it.clone() })
                    .collect(),
                instances,
            }
        });
        GpuReport {
            index: gpu.facts.index,
            uuid: uuid.clone(),
            pci: gpu.facts.pci.to_string(),
            product_name: gpu.facts.product_name.clone(),
            architecture: gpu.facts.architecture.clone(),
            memory_mib: gpu.facts.memory_bytes.map(|it| it >> 20),
            memory_used_mib: self.memory_of(uuid, None).map(|it| it.used >> 20),
            utilization: self.utilization_of(uuid, None),
            problem: gpu.state.problem.clone(),
            unhealthy: self.unhealthy.gpus.get(uuid).map(unhealthy_report),
            owner,
            shares: self.held_of(uuid).filter_map(share).collect(),
            mig,
            unknown_facts: gpu.facts.unknown.iter().map(ToString::to_string).collect(),
        }
    }

    /// What claims of this boot hold of a GPU.
    fn held_of(&self, gpu: &str) -> impl Iterator<Item = (&Record, &RecordedDevice)> {
        let now = self.records().filter(|it| it.boot_id == self.hardware.boot_id);
        let devices = now.flat_map(|record| record.devices.iter().map(move |it| (record, it)));
        devices.filter(move |(_, it)| it.parent_uuid == gpu)
    }

    fn holder(&self, gpu: &str, kind: &RecordedKind) -> Option<&Record> {
        self.held_of(gpu).find(|(_, it)| it.kind == *kind).map(|(record, _)| record)
    }

    fn instance(&self, gpu: &Gpu, instance: &GpuInstance) -> InstanceReport {
        let uuid = &gpu.facts.uuid;
        let maker = self.records().find(|it| self.hardware.is_recorded(uuid, instance, it));
        let adopted = adoptable(&gpu.facts, instance);
        let adopter = || self.holder(uuid, &RecordedKind::Adopted(adopted.clone().ok()?));
        let holder = maker.or_else(adopter);
        let memory = self.memory_of(uuid, Some(instance.id));
        let is_it = |it: &&UnhealthyInstance| {
            it.parent == *uuid && instance.compute_instances.iter().any(|own| own.uuid == it.uuid)
        };
        let profile = gpu.facts.profile(instance.profile_id);
        InstanceReport {
            gpu_instance: instance.id,
            profile: profile.map_or_else(|| instance.profile_id.to_string(), |it| it.name.clone()),
            placement: instance.placement,
            mig_devices: instance.compute_instances.iter().map(|it| it.uuid.clone()).collect(),
            owner: holder.map_or_else(|| UNMANAGED.to_owned(), |it| it.claim.to_string()),
            unmanaged: maker.is_none(),
            not_adopted: adopted.as_ref().err().filter(|_| maker.is_none()).map(ToString::to_string),
            memory_mib: memory.map(|it| it.total >> 20),
            memory_used_mib: memory.map(|it| it.used >> 20),
            utilization: self.utilization_of(uuid, Some(instance.id)),
            unhealthy: self
                .unhealthy
                .instances
                .iter()
                .find(is_it)
                .map(|it| unhealthy_report(&it.unhealthy_reason)),
        }
    }

    fn memory_of(&self, gpu: &str, gpu_instance: Option<u32>) -> Option<&Memory> {
        self.used.get(&(gpu.to_owned(), gpu_instance))?.memory.as_ref()
    }

    fn utilization_of(&self, gpu: &str, gpu_instance: Option<u32>) -> Option<BTreeMap<Engine, f64>> {
        let engines = &self.used.get(&(gpu.to_owned(), gpu_instance))?.engines;
        let named = || engines.iter().map(|(engine, share)| (*engine, *share)).collect();
        (!engines.is_empty()).then(named)
    }
}

fn unhealthy_report(UnhealthyReason { cause, since }: &UnhealthyReason) -> UnhealthyReport {
    let since = i64::try_from(*since).ok().and_then(|it| Timestamp::from_second(it).ok()).unwrap_or_default();
    UnhealthyReport { reason: cause.to_string(), since: since.to_string() }
}

fn device(device: &RecordedDevice) -> DeviceReport {
    let (profile, mig_uuid) = match &device.kind {
        RecordedKind::Gpu | RecordedKind::AdminAccess | RecordedKind::Share { .. } => {
            ("full".to_owned(), None)
        }
        RecordedKind::Adopted(Adopted { spec, uuid, .. }) => (spec.profile.clone(), Some(uuid.clone())),
        RecordedKind::Mig { spec, progress: Progress::Complete { uuid, .. } } => {
            (spec.profile.clone(), Some(uuid.clone()))
        }
        RecordedKind::Mig { spec, .. } => (spec.profile.clone(), None),
    };
    DeviceReport { name: device.name.clone(), parent_uuid: device.parent_uuid.clone(), profile, mig_uuid }
}
