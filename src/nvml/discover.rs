//! Reads what a node has. A GPU that cannot be read is left out with a reason; it does not hide the others.

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::GpuVirtualizationMode;
use tracing::{debug, warn};

use super::device::DeviceHandle;
use super::error::{CallError, Code};
use super::facts::{GpuFacts, GpuInstance, MigFacts, NodeFacts, Profile, SkippedGpu};

/// Reads driver and GPUs. Fails only where NVML does not even count the GPUs.
pub fn discover(nvml: &Nvml) -> Result<NodeFacts, CallError> {
    let driver_version =
        nvml.sys_driver_version().map_err(CallError::wrapped("nvmlSystemGetDriverVersion"))?;
    let cuda =
        nvml.sys_cuda_driver_version().map_err(CallError::wrapped("nvmlSystemGetCudaDriverVersion_v2"))?;
    // NVML encodes 12.8 as 12080.
    let cuda = u32::try_from(cuda).unwrap_or_default();
    let mut facts =
        NodeFacts { driver_version, cuda_version: (cuda / 1000, cuda % 1000 / 10), ..NodeFacts::default() };
    for index in 0..nvml.device_count().map_err(CallError::wrapped("nvmlDeviceGetCount_v2"))? {
        match gpu(nvml, index) {
            Ok(gpu) => facts.gpus.push(gpu),
            Err(skipped) => facts.skipped.push(skipped),
        }
    }
    Ok(facts)
}

/// Asks the GPU for something that only it can tell, so that one which has fallen off the bus is noticed.
pub fn answers(device: &DeviceHandle<'_>) -> Result<(), CallError> {
    device.wrapper().memory_info().map(|_| ()).map_err(CallError::wrapped("nvmlDeviceGetMemoryInfo"))
}

/// Every live GPU instance of a GPU, whoever made it. Listed by GPU instance, because one without a compute instance
/// has no MIG device and would be missed. None where MIG mode is off.
pub fn live_instances(
    device: &DeviceHandle<'_>,
    profiles: &[Profile],
) -> Result<Vec<GpuInstance>, CallError> {
    if !device.mig_mode()?.current {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for profile in profiles {
        for handle in device.gpu_instances(profile.id)? {
            all.push(device.read(handle)?);
        }
    }
    Ok(all)
}

fn gpu(nvml: &Nvml, index: u32) -> Result<GpuFacts, SkippedGpu> {
    let skip = |uuid: Option<&str>, reason: String, is_gone| SkippedGpu {
        index,
        uuid: uuid.map(str::to_owned),
        reason,
        is_gone,
        is_for_good: false,
    };
    let failed =
        |uuid: Option<&str>, error: CallError| skip(uuid, error.to_string(), error.code == Code::GPU_IS_LOST);
    let device = nvml
        .device_by_index(index)
        .map_err(CallError::wrapped("nvmlDeviceGetHandleByIndex_v2"))
        .map_err(|error| failed(None, error))?;
    let uuid = device
        .uuid()
        .map_err(CallError::wrapped("nvmlDeviceGetUUID"))
        .map_err(|error| failed(None, error))?;
    if let Ok(GpuVirtualizationMode::Vgpu) = device.virtualization_mode() {
        let reason = "this is a vGPU in a virtual machine; its host decides on MIG";
        return Err(SkippedGpu { is_for_good: true, ..skip(Some(&uuid), reason.to_owned(), true) });
    }
    describe(nvml, &device, index, uuid.clone()).map_err(|error| failed(Some(&uuid), error))
}

fn describe(
    nvml: &Nvml,
    device: &nvml_wrapper::Device<'_>,
    index: u32,
    uuid: String,
) -> Result<GpuFacts, CallError> {
    const PCI: &str = "nvmlDeviceGetPciInfo_v3";
    let info = device.pci_info().map_err(CallError::wrapped(PCI))?;
    let pci = info.bus_id.parse().map_err(|error| {
        warn!(index, %error, "NVML reports a PCI address that cannot be read");
        CallError { call: PCI, code: Code::UNKNOWN }
    })?;
    let capability =
        device.cuda_compute_capability().map_err(CallError::wrapped("nvmlDeviceGetCudaComputeCapability"))?;
    let memory_bytes = device.memory_info().map_err(CallError::wrapped("nvmlDeviceGetMemoryInfo"))?.total;
    Ok(GpuFacts {
        index,
        pci,
        pci_device_id: info.pci_device_id,
        product_name: device.name().map_err(CallError::wrapped("nvmlDeviceGetName"))?,
        // Brand and architecture are for people; a value newer than nvml-wrapper must not hide the GPU.
        brand: device.brand().map_or_else(|_| "Unknown".to_owned(), |it| format!("{it:?}")),
        architecture: device.architecture().map_or_else(|_| "Unknown".to_owned(), |it| it.to_string()),
        compute_capability: (
            u32::try_from(capability.major).unwrap_or_default(),
            u32::try_from(capability.minor).unwrap_or_default(),
        ),
        memory_bytes,
        mig: mig(&DeviceHandle::of(nvml, device), &uuid, memory_bytes)?,
        uuid,
    })
}

fn mig(device: &DeviceHandle<'_>, uuid: &str, memory_bytes: u64) -> Result<Option<MigFacts>, CallError> {
    let mode = match device.mig_mode() {
        Ok(mode) => mode,
        Err(error) if [Code::NOT_SUPPORTED, Code::FUNCTION_NOT_FOUND].contains(&error.code) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // A driver too old for the question is also too old for GPUs that switch without a reset.
    let resetless = device.is_mig_resetless().unwrap_or(false);
    let profiles = profiles(device, uuid, memory_bytes)?;
    if profiles.is_empty() {
        // Not the same as a GPU without MIG: handed out whole it might be in MIG mode.
        return Err(CallError { call: "nvmlDeviceGetGpuInstanceProfileInfo", code: Code::NOT_FOUND });
    }
    Ok(Some(MigFacts { resetless, profiles, mode }))
}

/// Enumerates profiles until INVALID_ARGUMENT. What this GPU does not have, and what cannot be described, is left out.
fn profiles(device: &DeviceHandle<'_>, uuid: &str, memory_bytes: u64) -> Result<Vec<Profile>, CallError> {
    let mut found: Vec<Profile> = Vec::new();
    for index in 0..super::MAX_PROFILES {
        let mut profile = match device.profile(index) {
            Ok(profile) => profile,
            Err(error) if error.code == Code::INVALID_ARGUMENT => break,
            Err(error) if error.code == Code::NOT_SUPPORTED => continue,
            Err(error) if concerns_the_profile(&error) => {
                warn!(uuid, index, %error, "MIG profile skipped");
                continue;
            }
            Err(error) => return Err(error),
        };
        if profile.name.is_empty() {
            let Some(name) = formula_name(&profile, memory_bytes) else {
                warn!(
                    uuid,
                    index,
                    id = profile.id,
                    "MIG profile skipped: this driver does not tell its name"
                );
                continue;
            };
            profile.name = name;
        }
        match device.placements(profile.id) {
            Ok(placements) if placements.iter().all(|it| it.is_plausible()) => {
                profile.placements = placements
            }
            Ok(placements) => {
                warn!(
                    uuid,
                    profile = profile.name,
                    ?placements,
                    "MIG profile skipped: no GPU has such placements"
                );
                continue;
            }
            Err(error) if concerns_the_profile(&error) => {
                warn!(uuid, profile = profile.name, %error, "MIG profile skipped: it has no placements");
                continue;
            }
            Err(error) => return Err(error),
        }
        if found.iter().any(|it| it.name == profile.name || it.id == profile.id) {
            warn!(
                uuid,
                profile = profile.name,
                id = profile.id,
                "MIG profile skipped: its name or id is taken"
            );
            continue;
        }
        debug!(
            uuid,
            profile = profile.name,
            id = profile.id,
            placements = profile.placements.len(),
            "MIG profile"
        );
        found.push(profile);
    }
    Ok(found)
}

/// True for errors that say something of one profile, which can be left out, rather than of the GPU or of our rights.
fn concerns_the_profile(error: &CallError) -> bool {
    const ARGUMENT_VERSION_MISMATCH: Code = Code(25);
    [Code::NOT_SUPPORTED, Code::INVALID_ARGUMENT, Code::NOT_FOUND, Code::UNKNOWN, ARGUMENT_VERSION_MISMATCH]
        .contains(&error.code)
}

/// Name of a profile whose driver does not tell it, as go-nvlib computes it (mig_profile.go, getMigMemorySizeGB).
/// The revised profiles of those drivers are known by index: 7 and 8 are `+me`. Others have no certain name.
fn formula_name(profile: &Profile, total_bytes: u64) -> Option<String> {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let suffix = match profile.index {
        0..=6 | 9 => "",
        7 | 8 => "+me",
        _ => return None,
    };
    let eighths = (profile.memory_mib * MIB * 8).div_ceil(total_bytes.max(1));
    // Rounded to the nearest integer, halves up.
    let gigabytes = (eighths * total_bytes.div_ceil(GIB) + 4) / 8;
    Some(format!("{}g.{gigabytes}gb{suffix}", profile.slices))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvml::facts::MediaEngines;

    fn profile(index: u32, slices: u32, memory_mib: u64) -> Profile {
        Profile {
            index,
            id: 0,
            name: String::new(),
            slices,
            max_instances: 1,
            multiprocessors: 0,
            copy_engines: 0,
            media: MediaEngines::default(),
            memory_mib,
            placements: Vec::new(),
        }
    }

    #[test]
    fn names_follow_the_formula_where_the_driver_is_silent() {
        let a100_40 = 40_960 << 20;
        assert_eq!(formula_name(&profile(0, 1, 4864), a100_40).unwrap(), "1g.5gb");
        assert_eq!(formula_name(&profile(9, 1, 9856), a100_40).unwrap(), "1g.10gb");
        assert_eq!(formula_name(&profile(7, 1, 4864), a100_40).unwrap(), "1g.5gb+me");
        assert_eq!(formula_name(&profile(4, 7, 40_192), a100_40).unwrap(), "7g.40gb");
        let h100_80 = 81_559 << 20;
        assert_eq!(formula_name(&profile(2, 3, 40_448), h100_80).unwrap(), "3g.40gb");
        assert_eq!(formula_name(&profile(15, 1, 40_448), h100_80), None);
    }
}
