//! What of a device is in use: memory, engines, processes; of a GPU or of a MIG device.

use super::call::nvml;
use super::types::{
    Attributes, Bar1, Device, Handle, Memory, MemoryV2, Out, ProcessInfo, ProcessInfoV1, Utilization, list,
    version,
};
use crate::code::{Answer, Code};
use crate::machine::{Machine, Process};
use crate::mig;
use mig_models::Profile;

/// What the driver keeps for itself on a whole GPU, MiB: an assumption.
const RESERVED_MIB: u64 = 600;
/// A MIG device's total is a little more than its profile's memory: 20096 to 19968 in NVIDIA's guide
/// (reference 1.4).
const DEVICE_EXTRA_MIB: u64 = 128;
/// "Not attributable to an instance".
pub(super) const NO_INSTANCE: u32 = u32::MAX;

/// The profile of the GPU instance that a MIG device lies in.
pub(super) fn mig_profile(device: &Device<'_>) -> Answer<Profile> {
    let (instance, _) = device.mig.ok_or(Code::INVALID_ARGUMENT)?;
    mig::profile_by_id(device.gpu, instance.profile_id)
}

/// Total, reserved and used memory in bytes: of the GPU, or of the GPU instance that the MIG device lies in.
fn memory(device: &Device<'_>) -> Answer<(u64, u64, u64)> {
    let (total, reserved) = match device.mig {
        None => (device.gpu.model().ok_or(Code::UNKNOWN)?.data().memory_mib, RESERVED_MIB),
        Some(_) => (mig_profile(device)?.memory_mib + DEVICE_EXTRA_MIB, DEVICE_EXTRA_MIB),
    };
    let within =
        |process: &&Process| device.mig.is_none_or(|(instance, _)| process.gpu_instance == Some(instance.id));
    let used: u64 = device.gpu.processes.iter().filter(within).map(|process| process.memory_mib).sum();
    Ok((total << 20, reserved << 20, used.min(total - reserved) << 20))
}

fn attributes(device: &Device<'_>) -> Answer<Attributes> {
    let Some((_, compute)) = device.mig else {
        // Only MIG devices have attributes (go-nvlib relies on NOT_SUPPORTED here).
        return Err(Code::NOT_SUPPORTED);
    };
    let profile = mig_profile(device)?;
    let own = mig::compute_profile(device.gpu, &profile, compute.profile_id)?;
    Ok(Attributes {
        sm: own.sm,
        ce: profile.ce,
        dec: profile.dec,
        enc: profile.enc,
        jpeg: profile.jpeg,
        ofa: profile.ofa,
        gi_slices: profile.slices,
        ci_slices: own.slices,
        memory_mb: profile.memory_mib,
    })
}

/// Processes of a GPU or a MIG device. On a MIG device the ids of its instance are known; elsewhere they are
/// 0xFFFFFFFF.
fn processes(device: &Device<'_>) -> Vec<ProcessInfo> {
    let mut found = Vec::new();
    for process in &device.gpu.processes {
        let here = device.mig.is_none_or(|(instance, compute)| {
            process.gpu_instance == Some(instance.id)
                && process.compute_instance.is_none_or(|id| id == compute.id)
        });
        if here {
            found.push(ProcessInfo {
                pid: process.pid,
                memory: process.memory_mib << 20,
                gpu_instance: process.gpu_instance.unwrap_or(NO_INSTANCE),
                compute_instance: process.compute_instance.unwrap_or(NO_INSTANCE),
            });
        }
    }
    found
}

fn list_processes(machine: &Machine, device: Handle, count: Out<u32>, infos: Out<ProcessInfo>) -> Answer<()> {
    list(infos, count, Some(count.get()?), &processes(&device.device(machine)?))
}

fn no_processes(machine: &Machine, device: Handle, count: Out<u32>) -> Answer<()> {
    device.device(machine)?;
    count.set(0)
}

/// Utilisation of a whole GPU: not available on MIG devices, nor on a GPU in MIG mode.
fn utilization(machine: &Machine, device: Handle) -> Answer<(u32, u32)> {
    let device = device.device(machine)?;
    if device.mig.is_some() || device.gpu.mig_current {
        Err(Code::NOT_SUPPORTED)
    } else {
        Ok(device.gpu.utilization)
    }
}

fn engine_utilization(machine: &Machine, device: Handle, percent: Out<u32>, period: Out<u32>) -> Answer<()> {
    utilization(machine, device)?;
    percent.set(0)?;
    period.set(1_000_000)
}

nvml! {
    fn nvmlDeviceGetMemoryInfo(device: Handle, info: Out<Memory>) on device, |s| {
        let (total, reserved, used) = memory(&device.device(s.machine())?)?;
        // The first version counts what is reserved as used.
        info.set(Memory { total, free: total - reserved - used, used: reserved + used })
    }

    fn nvmlDeviceGetMemoryInfo_v2(device: Handle, info: Out<MemoryV2>) on device, |s| {
        if info.cast::<u32>().get()? != version::<MemoryV2>(2) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        let (total, reserved, used) = memory(&device.device(s.machine())?)?;
        let (version, free) = (version::<MemoryV2>(2), total - reserved - used);
        info.set(MemoryV2 { version, total, reserved, free, used })
    }

    fn nvmlDeviceGetBAR1MemoryInfo(device: Handle, info: Out<Bar1>) on device, |s| {
        let total = memory(&device.device(s.machine())?)?.0.next_power_of_two();
        info.set(Bar1 { total, free: total, used: 0 })
    }

    fn nvmlDeviceGetAttributes(device: Handle, result: Out<Attributes>) on device, |s| {
        result.set(attributes(&device.device(s.machine())?)?)
    }

    fn nvmlDeviceGetAttributes_v2(device: Handle, result: Out<Attributes>) on device, |s| {
        result.set(attributes(&device.device(s.machine())?)?)
    }

    fn nvmlDeviceGetUtilizationRates(device: Handle, rates: Out<Utilization>) on device, |s| {
        let (gpu, memory) = utilization(s.machine(), device)?;
        rates.set(Utilization { gpu, memory })
    }

    fn nvmlDeviceGetEncoderUtilization(device: Handle, percent: Out<u32>, period: Out<u32>) on device, |s| {
        engine_utilization(s.machine(), device, percent, period)
    }

    fn nvmlDeviceGetDecoderUtilization(device: Handle, percent: Out<u32>, period: Out<u32>) on device, |s| {
        engine_utilization(s.machine(), device, percent, period)
    }

    fn nvmlDeviceGetJpgUtilization(device: Handle, percent: Out<u32>, period: Out<u32>) on device, |s| {
        engine_utilization(s.machine(), device, percent, period)
    }

    fn nvmlDeviceGetOfaUtilization(device: Handle, percent: Out<u32>, period: Out<u32>) on device, |s| {
        engine_utilization(s.machine(), device, percent, period)
    }

    fn nvmlDeviceGetComputeRunningProcesses(
        device: Handle,
        count: Out<u32>,
        infos: Out<ProcessInfoV1>,
    ) on device, |s| {
        let all = processes(&device.device(s.machine())?);
        let old = all.iter().map(|info| ProcessInfoV1 { pid: info.pid, memory: info.memory });
        let old: Vec<ProcessInfoV1> = old.collect();
        list(infos, count, Some(count.get()?), &old)
    }

    fn nvmlDeviceGetComputeRunningProcesses_v2(
        device: Handle,
        count: Out<u32>,
        infos: Out<ProcessInfo>,
    ) on device, |s| {
        list_processes(s.machine(), device, count, infos)
    }

    fn nvmlDeviceGetComputeRunningProcesses_v3(
        device: Handle,
        count: Out<u32>,
        infos: Out<ProcessInfo>,
    ) on device, |s| {
        list_processes(s.machine(), device, count, infos)
    }

    fn nvmlDeviceGetGraphicsRunningProcesses(device: Handle, count: Out<u32>) on device, |s| {
        no_processes(s.machine(), device, count)
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v2(device: Handle, count: Out<u32>) on device, |s| {
        no_processes(s.machine(), device, count)
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v3(device: Handle, count: Out<u32>) on device, |s| {
        no_processes(s.machine(), device, count)
    }

    fn nvmlDeviceGetMPSComputeRunningProcesses(device: Handle, count: Out<u32>) on device, |s| {
        no_processes(s.machine(), device, count)
    }

    fn nvmlDeviceGetMPSComputeRunningProcesses_v2(device: Handle, count: Out<u32>) on device, |s| {
        no_processes(s.machine(), device, count)
    }

    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(device: Handle, count: Out<u32>) on device, |s| {
        no_processes(s.machine(), device, count)
    }
}
