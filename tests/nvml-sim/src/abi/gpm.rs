//! GPU performance metrics (GPM): what gives utilisation per MIG device, on Hopper and newer.
//!
//! A sample remembers when it was taken and the utilisation that the node had then; two samples make a
//! metric. Until it is freed, the sample of an instance keeps that from being destroyed: an assumption, and the worst
//! case.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::call::nvml;
use super::types::{GpmHead, GpmMetric, GpmSupport, Handle, Kind, Out};
use crate::code::{Answer, Code};
use crate::machine::Machine;
use crate::mig;

/// A sample, once taken: when, the utilisation of GPU and memory in percent, and of which GPU and serial of an instance
/// it is.
type Sample = Option<(Instant, (u32, u32), Option<(usize, u32)>)>;

/// The samples of this program, by the serial number in their handles.
static SAMPLES: Mutex<(u32, BTreeMap<u32, Sample>)> = Mutex::new((1, BTreeMap::new()));

fn samples() -> MutexGuard<'static, (u32, BTreeMap<u32, Sample>)> {
    SAMPLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The versions of the structures here are plain numbers, without the size.
const VERSION: u32 = 1;
/// Samples must be this far apart.
const APART: Duration = Duration::from_millis(100);
/// `NVML_GPM_METRIC_*`: graphics, SM and memory bandwidth utilisation.
const GRAPHICS: u32 = 1;
const SM: u32 = 2;
const DRAM_BANDWIDTH: u32 = 10;

fn supported(machine: &Machine, device: Handle) -> Answer<usize> {
    let index = device.physical(machine)?;
    let hopper =
        machine.gpu(index)?.model().is_some_and(|model| model.data().architecture >= mig_models::HOPPER);
    if hopper { Ok(index) } else { Err(Code::NOT_SUPPORTED) }
}

/// Whether this program has a sample of the instance with this serial number.
pub(super) fn holds(gpu: usize, instance: u32) -> bool {
    samples().1.values().flatten().any(|(_, _, of)| *of == Some((gpu, instance)))
}

fn take(machine: &Machine, gpu: usize, instance: Option<u32>, sample: Handle) -> Answer<()> {
    let mut samples = samples();
    let taken = samples.1.get_mut(&sample.serial_of(Kind::GpmSample)?).ok_or(Code::INVALID_ARGUMENT)?;
    *taken = Some((Instant::now(), machine.gpu(gpu)?.utilization, instance.map(|it| (gpu, it))));
    Ok(())
}

fn taken(sample: Handle) -> Answer<(Instant, (u32, u32))> {
    let found = samples().1.get(&sample.serial_of(Kind::GpmSample)?).copied();
    found.flatten().map(|(when, what, _)| (when, what)).ok_or(Code::INVALID_ARGUMENT)
}

nvml! {
    fn nvmlGpmQueryDeviceSupport(device: Handle, support: Out<GpmSupport>) on device, |s| {
        if support.get()?.version != VERSION {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        device.physical(s.machine())?;
        let supported = u32::from(supported(s.machine(), device).is_ok());
        support.set(GpmSupport { version: VERSION, supported })
    }

    fn nvmlGpmSampleAlloc(sample: Out<Handle>), |_s| {
        let mut samples = samples();
        let serial = samples.0;
        sample.set(Handle::new(Kind::GpmSample, 0, serial))?;
        samples.0 += 1;
        samples.1.insert(serial, None);
        Ok(())
    }

    fn nvmlGpmSampleFree(sample: Handle), |_s| {
        let freed = samples().1.remove(&sample.serial_of(Kind::GpmSample)?);
        freed.map(|_| ()).ok_or(Code::INVALID_ARGUMENT)
    }

    fn nvmlGpmSampleGet(device: Handle, sample: Handle) on device, |s| {
        let index = supported(s.machine(), device)?;
        take(s.machine(), index, None, sample)
    }

    fn nvmlGpmMigSampleGet(device: Handle, instance: u32, sample: Handle) on device, |s| {
        let index = supported(s.machine(), device)?;
        let gpu = s.machine().gpu(index)?;
        mig::enabled(gpu)?;
        let serial = gpu.instance(instance).ok_or(Code::INVALID_ARGUMENT)?.serial;
        take(s.machine(), index, Some(serial), sample)
    }

    fn nvmlGpmMetricsGet(metrics: Out<GpmHead>), |_s| {
        let GpmHead { version, count, first, second } = metrics.get()?;
        if version != VERSION {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        let (first, second) = (taken(first)?, taken(second)?);
        let apart = second.0.saturating_duration_since(first.0) >= APART;
        let results = metrics.behind::<GpmMetric>();
        for at in 0..count as usize {
            let asked = results.get_at(at)?;
            let value = match asked.metric {
                GRAPHICS | SM => Ok(second.1.0),
                DRAM_BANDWIDTH => Ok(second.1.1),
                _ => Err(Code::NOT_SUPPORTED),
            };
            let value = if apart { value } else { Err(Code::NO_DATA) };
            let code = value.err().unwrap_or(Code::SUCCESS);
            results.set_at(at, GpmMetric { code, value: f64::from(value.unwrap_or(0)), ..asked })?;
        }
        Ok(())
    }
}
