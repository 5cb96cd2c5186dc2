//! Errors of GPUs as NVML reports them: XIDs and ECC errors.
//!
//! Called directly, because nvml-wrapper drops the ids of the instances that an event is about, panics where the driver is
//! too old to have a function, and frees a set when registering for it fails. Events are the whole GPU's business: MIG
//! devices are never registered.
#![expect(unsafe_code, reason = "with `device` the one file that talks to the C library directly")]

use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper_sys::bindings as sys;

use super::device::{DeviceHandle, function};
use super::discover::answers;
use super::error::check;
use super::{CallError, Code};

/// What an event says is not known (nvml.h at nvmlEventData_t).
const NOT_ATTRIBUTABLE: u32 = u32::MAX;

const XID: u64 = sys::nvmlEventTypeXidCriticalError as u64;
const SINGLE_BIT_ECC: u64 = sys::nvmlEventTypeSingleBitEccError as u64;
const DOUBLE_BIT_ECC: u64 = sys::nvmlEventTypeDoubleBitEccError as u64;

/// An event of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuEvent {
    /// UUID of the GPU.
    pub gpu: String,
    /// What happened.
    pub kind: EventKind,
    /// GPU instance on which it happened, if NVML reports it.
    pub gpu_instance: Option<u32>,
    /// Compute instance on which it happened, if NVML reports it.
    pub compute_instance: Option<u32>,
}

/// What happened to a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// The driver reports an error by its number.
    Xid(u64),
    /// An error in memory that was corrected.
    SingleBitEcc,
    /// An error in memory that could not be corrected.
    DoubleBitEcc,
}

/// GPUs that are listened to. It is freed when it is dropped; until then the driver may count it as a user of its GPUs.
#[derive(Debug)]
pub struct EventSet<'nvml> {
    nvml: &'nvml Nvml,
    raw: sys::nvmlEventSet_t,
    gpus: Vec<(sys::nvmlDevice_t, String)>,
}

impl<'nvml> EventSet<'nvml> {
    /// An empty event set. FUNCTION_NOT_FOUND if the driver is too old to report events with the
    /// instances that they are about.
    pub fn new(nvml: &'nvml Nvml) -> Result<Self, CallError> {
        function!(nvml, nvmlEventSetWait_v2)?;
        function!(nvml, nvmlDeviceRegisterEvents)?;
        function!(nvml, nvmlEventSetFree)?;
        let function = function!(nvml, nvmlEventSetCreate)?;
        let mut raw = ptr::null_mut();
        // SAFETY: a writable pointer.
        check("nvmlEventSetCreate", unsafe { function(&raw mut raw) })?;
        Ok(Self { nvml, raw, gpus: Vec::new() })
    }

    /// Adds the supported error events of the GPU at this NVML index. NOT_SUPPORTED if it supports none, GPU_IS_LOST
    /// where it has gone: waiting for all of a set fails while one of them is lost.
    pub fn add(&mut self, uuid: &str, index: u32) -> Result<(), CallError> {
        let device = DeviceHandle::by_uuid(self.nvml, uuid, index)?;
        answers(&device)?;
        let supported = function!(self.nvml, nvmlDeviceGetSupportedEventTypes)?;
        let mut types = 0;
        // SAFETY: a live handle and a writable integer.
        let code = unsafe { supported(device.raw(), &raw mut types) };
        check("nvmlDeviceGetSupportedEventTypes", code)?;
        let wanted = types & (XID | SINGLE_BIT_ECC | DOUBLE_BIT_ECC);
        if wanted == 0 {
            return Err(CallError { call: "nvmlDeviceGetSupportedEventTypes", code: Code::NOT_SUPPORTED });
        }
        let register = function!(self.nvml, nvmlDeviceRegisterEvents)?;
        // SAFETY: a live handle and a set that was not freed.
        check("nvmlDeviceRegisterEvents", unsafe { register(device.raw(), wanted, self.raw) })?;
        self.gpus.push((device.raw(), uuid.to_owned()));
        Ok(())
    }

    /// Waits for the next event, no longer than `timeout`. `None` where there was none, or none that is of interest.
    /// GPU_IS_LOST where one of the GPUs has gone.
    pub fn wait(&self, timeout: Duration) -> Result<Option<GpuEvent>, CallError> {
        let function = function!(self.nvml, nvmlEventSetWait_v2)?;
        let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let mut data = MaybeUninit::<sys::nvmlEventData_t>::zeroed();
        // SAFETY: a set that was not freed and a writable struct.
        let code = unsafe { function(self.raw, data.as_mut_ptr(), milliseconds) };
        match check("nvmlEventSetWait_v2", code) {
            Ok(()) => {}
            Err(error) if error.code == Code::TIMEOUT => return Ok(None),
            Err(error) => return Err(error),
        }
        // SAFETY: zeroed before and filled by NVML; a pointer and integers have no invalid values.
        let data = unsafe { data.assume_init() };
        let kind = match data.eventType {
            XID => EventKind::Xid(data.eventData),
            SINGLE_BIT_ECC => EventKind::SingleBitEcc,
            DOUBLE_BIT_ECC => EventKind::DoubleBitEcc,
            _ => return Ok(None),
        };
        let known = |id: u32| (id != NOT_ATTRIBUTABLE).then_some(id);
        let of_set = |(raw, uuid): &(sys::nvmlDevice_t, String)| (*raw == data.device).then(|| uuid.clone());
        let gpu = self.gpus.iter().find_map(of_set);
        Ok(gpu.map(|gpu| GpuEvent {
            gpu,
            kind,
            gpu_instance: known(data.gpuInstanceId),
            compute_instance: known(data.computeInstanceId),
        }))
    }

    /// Whether it listens to this GPU.
    #[must_use]
    pub fn has(&self, uuid: &str) -> bool {
        self.gpus.iter().any(|it| it.1 == uuid)
    }

    /// The GPUs that it listens to.
    pub fn gpus(&self) -> impl Iterator<Item = &str> {
        self.gpus.iter().map(|it| it.1.as_str())
    }
}

impl Drop for EventSet<'_> {
    fn drop(&mut self) {
        if let Ok(function) = function!(self.nvml, nvmlEventSetFree) {
            // SAFETY: made by this library, and freed only here. A failure leaves nothing to do.
            let _ = unsafe { function(self.raw) };
        }
    }
}
