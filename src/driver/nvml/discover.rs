//! Discovers the hardware of a node. A missing fact hides only what depends on it: a GPU without a name is still published.
//!
//! A fact is read by the call in the table; an error that concerns the GPU or the NVIDIA driver as a whole
//! ([`CallError::concerns_whole_gpu`]) leaves the GPU out, whichever call failed. Any other error makes the fact unknown: it is in
//! [`GpuFacts::unknown`], which the log, `check` and `inspect` show, and is read again at every rescan unless the answer
//! cannot change ([`CallError::is_lasting`]).
//!
//! | fact | call | essential for | offered without it |
//! |---|---|---|---|
//! | NVML itself | `nvmlInit_v2` | everything | nothing; opened again at every rescan, or as soon as a call that hangs comes back |
//! | boot id | `/proc/sys/kernel/random/boot_id` | which records are of this boot | nothing |
//! | number of GPUs | `nvmlDeviceGetCount_v2` | finding GPUs | nothing; read again at every rescan |
//! | version of the NVIDIA driver | `nvmlSystemGetDriverVersion` | nothing: the names of the driver's libraries have it, too | everything; `driverVersion` is `0.0.0` |
//! | CUDA version | `nvmlSystemGetCudaDriverVersion_v2` | nothing | everything; `cudaDriverVersion` is `0.0.0` |
//! | handle | `nvmlDeviceGetHandleByIndex_v2` | every other call | not this GPU |
//! | handle by UUID | `nvmlDeviceGetHandleByUUID` | nothing: the GPU at its index is asked instead | everything |
//! | UUID | `nvmlDeviceGetUUID` | identity of GPUs, records of claims | not this GPU |
//! | PCI address | `nvmlDeviceGetPciInfo_v3` | names of devices and counter sets | not this GPU |
//! | virtualization mode | `nvmlDeviceGetVirtualizationMode` | see below | everything, as on bare metal |
//! | product name, brand, architecture, compute capability | `nvmlDeviceGetName`, `…Brand`, `…Architecture`, `…CudaComputeCapability` | nothing | everything; the attribute says `unknown` |
//! | memory | `nvmlDeviceGetMemoryInfo_v2`, before driver 510 `nvmlDeviceGetMemoryInfo` | whether a GPU without MIG answers; names of profiles before driver 525 | everything; the capacity `memory` is 0. After an error that is not lasting, not this GPU: that is how a GPU looks that does not answer |
//! | MIG mode | `nvmlDeviceGetMigMode` | whole or in parts | NOT_SUPPORTED, FUNCTION_NOT_FOUND: there is no MIG, the GPU is offered whole. Else not this GPU, since in MIG mode it cannot be used whole |
//! | mode switches without a reset | `nvmlDeviceGetFieldValues` | offering whole GPU and parts side by side | what the present MIG mode allows |
//! | one profile, its placements | `nvmlDeviceGetGpuInstanceProfileInfoV` (before driver 510 without the V), `…PossiblePlacements_v2` | that profile | the GPU and its other profiles |
//! | functions that make and destroy instances | none: whether the library has them | cutting | as without profiles |
//! | all profiles | the same as for one | cutting | the whole GPU, and only while MIG mode is off |
//! | live instances | `nvmlDeviceGetGpuInstances` and what describes them | what is occupied | in MIG mode nothing but what claims hold |
//! | PCIe root, NUMA node | sysfs | nothing | everything; the attribute is left out |
//! | events | `nvmlEventSetCreate`, `nvmlDeviceRegisterEvents` | noticing errors | everything; event `GpuUnmonitored` unless the GPU has none |
//!
//! A call that does not return in time counts as failed, for its GPU only; see [`Discovery`].
//!
//! | virtualization mode | offered |
//! |---|---|
//! | none, passthrough | as the other facts say |
//! | vGPU in a virtual machine, MIG mode off or not supported | whole; the hypervisor decides on MIG |
//! | the same in MIG mode | nothing: it is a MIG instance of the host, and only the host can make or destroy one |
//! | host of vGPUs (vGPU, vSGA) | nothing: the GPU serves virtual machines, and the driver for such hosts has no CUDA |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use mig_model::facts::{GpuFacts, GpuInstance, MigFacts, NodeFacts, Profile, SkippedGpu};
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Brand;
use nvml_wrapper::enums::device::DeviceArchitecture;
use tracing::warn;

use super::device::DeviceHandle;
use super::error::wrapped;
use super::profiles::profiles;
use super::unknown::Unknown;
use super::{CallError, Code};

/// Reads driver and GPUs, once.
pub fn discover(nvml: &Arc<Nvml>) -> Result<NodeFacts, CallError> {
    const PATIENCE: Duration = Duration::from_secs(60);
    Discovery::new(Arc::clone(nvml), PATIENCE).discover()
}

/// Discovers GPUs, each on its own thread: one that hangs does not block the others. Each GPU has one thread
/// at most, and is not waited for again while that is in its call.
#[derive(Debug)]
pub struct Discovery {
    nvml: Arc<Nvml>,
    /// How long a GPU is waited for.
    patience: Duration,
    running: Mutex<BTreeMap<u32, Running>>,
    /// Since when, and by its UUID where that is known, a GPU is being discovered.
    begun: Arc<Mutex<BTreeMap<u32, (Instant, KnownUuid)>>>,
}

type KnownUuid = Arc<OnceLock<String>>;

#[derive(Debug)]
struct Running {
    found: Receiver<Result<GpuFacts, SkippedGpu>>,
    uuid: KnownUuid,
}

impl Discovery {
    /// Nothing is discovered yet.
    #[must_use]
    pub fn new(nvml: Arc<Nvml>, patience: Duration) -> Self {
        Self { nvml, patience, running: Mutex::default(), begun: Arc::default() }
    }

    /// Reads driver and GPUs. Fails only where NVML does not even count the GPUs, or does not fit the driver any more. Takes
    /// no longer than the calls that are about no GPU, and the patience once. One at a time.
    pub fn discover(&self) -> Result<NodeFacts, CallError> {
        let nvml = &*self.nvml;
        let mut unknown = Unknown::default();
        let version = nvml.sys_driver_version().map_err(wrapped("nvmlSystemGetDriverVersion"));
        let driver_version = unknown.fact(version)?;
        let cuda = nvml.sys_cuda_driver_version();
        let cuda = unknown.fact(cuda.map_err(wrapped("nvmlSystemGetCudaDriverVersion_v2")))?;
        // NVML encodes 12.8 as 12080.
        let cuda_version = cuda.and_then(|it| u32::try_from(it).ok()).map(|it| (it / 1000, it % 1000 / 10));
        let mut facts =
            NodeFacts { driver_version, cuda_version, unknown: unknown.0, ..NodeFacts::default() };
        let count = nvml.device_count().map_err(wrapped("nvmlDeviceGetCount_v2"))?;
        for found in self.gpus(count) {
            match found {
                Ok(gpu) => facts.gpus.push(gpu),
                Err(skipped) => facts.skipped.push(skipped),
            }
        }
        Ok(facts)
    }

    /// GPUs whose discovery has not come back, by UUID or index, and for how long.
    #[must_use]
    pub fn busy(&self) -> Vec<(String, Duration)> {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |index: &u32, uuid: &KnownUuid| uuid.get().cloned().unwrap_or_else(|| index.to_string());
        begun.iter().map(|(index, (since, uuid))| (name(index, uuid), since.elapsed())).collect()
    }

    fn gpus(&self, count: u32) -> Vec<Result<GpuFacts, SkippedGpu>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed = BTreeMap::new();
        let hung: BTreeSet<u32> = running.keys().copied().collect();
        for index in (0..count).filter(|it| !hung.contains(it)) {
            match self.start(index) {
                Ok(begun) => drop(running.insert(index, begun)),
                Err(error) => {
                    failed.insert(index, format!("no thread to discover it: {error}"));
                }
            }
        }
        let deadline = Instant::now() + self.patience;
        let found = (0..count).map(|index| {
            let Some(it) = running.get(&index) else {
                let reason = failed.remove(&index).unwrap_or_default();
                return Err(skipped(index, None, reason));
            };
            let patience = match hung.contains(&index) {
                true => Duration::ZERO,
                false => deadline.saturating_duration_since(Instant::now()),
            };
            match it.found.recv_timeout(patience) {
                Ok(found) => {
                    running.remove(&index);
                    found
                }
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = self.patience.as_secs();
                    let reason = format!(
                        "NVML does not answer for this GPU: a call to discover it took more than {seconds} s; `nvidia-smi` and the \
                         kernel log of the node show more"
                    );
                    Err(skipped(index, it.uuid.get().cloned(), reason))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    running.remove(&index);
                    Err(skipped(index, None, "the thread that discovers it has died".to_owned()))
                }
            }
        });
        found.collect()
    }

    fn start(&self, index: u32) -> io::Result<Running> {
        let (send, found) = channel();
        let uuid = KnownUuid::default();
        let (nvml, known, begun) = (Arc::clone(&self.nvml), Arc::clone(&uuid), Arc::clone(&self.begun));
        let entry = (Instant::now(), Arc::clone(&uuid));
        begun.lock().unwrap_or_else(PoisonError::into_inner).insert(index, entry);
        let spawned = thread::Builder::new().name(format!("discover-{index}")).spawn(move || {
            let gpu = gpu(&nvml, index, &known);
            begun.lock().unwrap_or_else(PoisonError::into_inner).remove(&index);
            // Before the result is there, so that the receiver can close NVML.
            drop(nvml);
            // The receiver may be gone.
            let _ = send.send(gpu);
        });
        if let Err(error) = spawned {
            self.begun.lock().unwrap_or_else(PoisonError::into_inner).remove(&index);
            return Err(error);
        }
        Ok(Running { found, uuid })
    }
}

/// A GPU that may answer at another look.
fn skipped(index: u32, uuid: Option<String>, reason: String) -> SkippedGpu {
    SkippedGpu { index, uuid, reason, is_gone: false, is_for_good: false }
}

/// Reads a value that only the GPU itself can report, which detects a GPU that has fallen off the bus. That a GPU has no
/// dedicated memory to report is an answer.
pub fn answers(device: &DeviceHandle<'_>) -> Result<(), CallError> {
    match device.memory() {
        Err(error) if !error.is_lasting() => Err(error),
        _ => Ok(()),
    }
}

/// Every live GPU instance of a GPU, managed or not. Listed by GPU instance, because one without a compute instance
/// has no MIG device and would be missed. None where MIG mode is off.
pub fn live_instances(
    device: &DeviceHandle<'_>,
    profiles: &[Profile],
) -> Result<Vec<GpuInstance>, CallError> {
    if !device.mig_mode()?.current {
        return Ok(Vec::new());
    }
    let of_profile = |profile: &Profile| {
        device.gpu_instances(profile.id)?.into_iter().map(|it| device.read(it)).collect::<Result<Vec<_>, _>>()
    };
    match profiles.iter().map(of_profile).collect::<Result<Vec<_>, _>>() {
        Ok(all) => Ok(all.concat()),
        // It was switched off meanwhile.
        Err(error) if error.code == Code::NOT_SUPPORTED && !device.mig_mode()?.current => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// `nvmlGpuVirtualizationMode_t`: a vGPU in a virtual machine.
const VGPU: u32 = 2;
/// The same: a GPU of a host that serves vGPUs.
const HOST_VGPU: u32 = 3;
/// The same: a GPU of a host that shares it by vSGA.
const HOST_VSGA: u32 = 4;

/// Why a GPU is left out.
enum Skip {
    /// A call failed without which it cannot be offered.
    Failed(CallError),
    /// It serves virtual machines, or is a part of a GPU that a hypervisor partitions. This does not change while the machine runs.
    Virtual(&'static str),
}

impl From<CallError> for Skip {
    fn from(error: CallError) -> Self {
        Self::Failed(error)
    }
}

fn gpu(nvml: &Nvml, index: u32, known_uuid: &OnceLock<String>) -> Result<GpuFacts, SkippedGpu> {
    describe(nvml, index, known_uuid).map_err(|skip| {
        let (reason, is_gone, is_for_good) = match skip {
            Skip::Failed(error) => (error.to_string(), error.code == Code::GPU_IS_LOST, false),
            Skip::Virtual(reason) => (reason.to_owned(), true, true),
        };
        SkippedGpu { index, uuid: known_uuid.get().cloned(), reason, is_gone, is_for_good }
    })
}

fn describe(nvml: &Nvml, index: u32, known_uuid: &OnceLock<String>) -> Result<GpuFacts, Skip> {
    const PCI: &str = "nvmlDeviceGetPciInfo_v3";
    let device = nvml.device_by_index(index).map_err(wrapped("nvmlDeviceGetHandleByIndex_v2"))?;
    let uuid = device.uuid().map_err(wrapped("nvmlDeviceGetUUID"))?;
    // Empty until now.
    let _ = known_uuid.set(uuid.clone());
    let info = device.pci_info().map_err(wrapped(PCI))?;
    let pci = info.bus_id.parse().map_err(|error| {
        warn!(index, %error, "NVML reports a PCI address that cannot be read");
        CallError { call: PCI, code: Code::UNKNOWN }
    })?;
    let handle = DeviceHandle::of(nvml, &device);
    let mut unknown = Unknown::default();
    let name = unknown.fact(device.name().map_err(wrapped("nvmlDeviceGetName")))?;
    let capability = device.cuda_compute_capability();
    let capability = unknown.fact(capability.map_err(wrapped("nvmlDeviceGetCudaComputeCapability")))?;
    let memory_bytes = unknown.fact(handle.memory())?.map(|it| it.total).filter(|it| 0 < *it);
    Ok(GpuFacts {
        index,
        pci,
        pci_device_id: info.pci_device_id,
        product_name: name.filter(|it| !it.is_empty()),
        brand: unknown.fact(handle.brand())?.and_then(brand),
        architecture: unknown.fact(handle.architecture())?.and_then(architecture),
        compute_capability: capability
            .and_then(|it| Some((u32::try_from(it.major).ok()?, u32::try_from(it.minor).ok()?))),
        memory_bytes,
        mig: mig(&handle, &uuid, memory_bytes, &mut unknown)?,
        unknown: unknown.0,
        uuid,
    })
}

/// The name of a brand; its number where that is newer than nvml-wrapper, so that the same brand has the same name.
fn brand(number: u32) -> Option<String> {
    match Brand::try_from(number) {
        Ok(Brand::Unknown) => None,
        Ok(brand) => Some(format!("{brand:?}")),
        Err(_) => Some(format!("brand-{number}")),
    }
}

/// The same of an architecture.
fn architecture(number: u32) -> Option<String> {
    match DeviceArchitecture::try_from(number) {
        Ok(DeviceArchitecture::Unknown) => None,
        Ok(architecture) => Some(architecture.to_string()),
        Err(_) => Some(format!("architecture-{number}")),
    }
}

fn mig(
    device: &DeviceHandle<'_>,
    uuid: &str,
    memory_bytes: Option<u64>,
    unknown: &mut Unknown,
) -> Result<Option<MigFacts>, Skip> {
    let virtualization = unknown.fact(device.virtualization_mode())?;
    if let Some(HOST_VGPU | HOST_VSGA) = virtualization {
        return Err(Skip::Virtual(
            "it serves virtual machines as vGPUs, so it is not for containers of this host",
        ));
    }
    let mode = match device.mig_mode() {
        Ok(mode) => mode,
        Err(error) if error.code == Code::NOT_SUPPORTED => return Ok(None),
        Err(error) if error.code == Code::FUNCTION_NOT_FOUND => {
            unknown.add(error);
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match (virtualization, mode.current) {
        (Some(VGPU), false) => return Ok(None),
        (Some(VGPU), true) => {
            return Err(Skip::Virtual(
                "it is a vGPU in MIG mode: one instance that the host of the virtual machine made, which this driver cannot \
                 make or destroy; give the virtual machine a vGPU without MIG, or the whole GPU",
            ));
        }
        _ => {}
    }
    let resetless = unknown.fact(device.is_mig_resetless())?.unwrap_or(false);
    let found = device.has_functions_of_mig().and_then(|()| profiles(device, uuid, memory_bytes, unknown));
    let profiles = unknown.fact(found)?.unwrap_or_default();
    // Without profiles it is not a GPU without MIG: it may be in MIG mode, and then it cannot be used whole.
    Ok(Some(MigFacts { resetless: resetless && !profiles.is_empty(), profiles, mode }))
}
