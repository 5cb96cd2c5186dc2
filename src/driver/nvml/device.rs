//! The NVML calls that nvml-wrapper lacks or gets wrong: GPU instances, compute instances, profiles, placements.
//!
//! Longer than other files, because all `unsafe` of the driver is in this file and in `event`, where it can be reviewed at once. Calls block; they are made on a GPU's own thread (`queue`). A function
//! that the installed driver does not have is an error, never a panic: nvml-wrapper-sys' methods would panic, its
//! function fields do not, so only the fields are used.
#![expect(unsafe_code, reason = "with `event` the one file that talks to the C library directly")]

use std::ffi::{CStr, c_char, c_uint};
use std::mem::MaybeUninit;
use std::ptr;

use mig_model::facts::{
    ComputeInstance, GpuInstance, MediaEngines, Memory, MigMode, Placement, Profile, RecoveryAction,
};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings as sys;

use super::error::{check, wrapped};
use super::samples::Samples;
use super::{CallError, Code};

/// Upper bound for enumerating profiles, far above `NVML_GPU_INSTANCE_PROFILE_COUNT` (18 in CUDA 13.3): a library that
/// never answers INVALID_ARGUMENT must not hold us for ever.
pub(super) const MAX_PROFILES: u32 = 64;

/// A GPU, or the MIG device that stands for a compute instance, as NVML knows it. Stays on the thread that made it.
#[derive(Debug)]
pub struct DeviceHandle<'nvml> {
    pub(super) nvml: &'nvml Nvml,
    raw: sys::nvmlDevice_t,
    pub(super) samples: Samples<'nvml>,
}

/// A live GPU instance: its id, profile and placement, and the handle that the other calls need.
#[derive(Debug, Clone, Copy)]
pub struct GpuInstanceHandle {
    raw: sys::nvmlGpuInstance_t,
    /// GPU instance id.
    pub id: u32,
    /// Profile id.
    pub profile_id: u32,
    /// Where it sits.
    pub placement: Placement,
}

/// Looks a function up in the loaded library; an old driver may lack it.
macro_rules! function {
    ($nvml:expr, $name:ident) => {
        $nvml
            .lib()
            .$name
            .as_ref()
            .map_err(|_| CallError { call: stringify!($name), code: Code::FUNCTION_NOT_FOUND })
    };
}

pub(super) use function;

/// A profile without its placements from any version of NVML's struct; they have the same fields.
macro_rules! profile {
    ($index:expr, $name:expr, $info:expr) => {
        Profile {
            index: $index,
            id: $info.id,
            name: $name.to_owned(),
            slices: $info.sliceCount,
            max_instances: $info.instanceCount,
            multiprocessors: $info.multiprocessorCount,
            copy_engines: $info.copyEngineCount,
            media: MediaEngines {
                decoders: $info.decoderCount,
                encoders: $info.encoderCount,
                jpegs: $info.jpegCount,
                ofas: $info.ofaCount,
            },
            memory_mib: $info.memorySizeMB,
            placements: Vec::new(),
        }
    };
}

impl<'nvml> DeviceHandle<'nvml> {
    /// The GPU with this UUID. Where NVML does not find it that way, the GPU at this index is asked whether it is that one; no
    /// other is asked, which may hang.
    pub fn by_uuid(nvml: &'nvml Nvml, uuid: &str, index: u32) -> Result<Self, CallError> {
        let found = nvml.device_by_uuid(uuid).map_err(wrapped("nvmlDeviceGetHandleByUUID"));
        let device = match found {
            Err(error) if !error.concerns_whole_gpu() => {
                let at_index = nvml.device_by_index(index).ok();
                at_index.filter(|it| it.uuid().is_ok_and(|it| it == uuid)).ok_or(error)?
            }
            found => found?,
        };
        Ok(Self::of(nvml, &device))
    }

    /// The same GPU as nvml-wrapper's handle.
    #[must_use]
    pub fn of(nvml: &'nvml Nvml, device: &Device<'nvml>) -> Self {
        // SAFETY: the handle is only used together with the `Nvml` it came from, which outlives it by `'nvml`.
        let raw = unsafe { device.handle() };
        Self { nvml, raw, samples: Samples::default() }
    }

    /// The same GPU for nvml-wrapper's safe calls.
    #[must_use]
    pub fn wrapper(&self) -> Device<'nvml> {
        // SAFETY: `raw` came from this `Nvml`, and the result cannot outlive it.
        unsafe { Device::new(self.raw, self.nvml) }
    }

    pub(super) fn raw(&self) -> sys::nvmlDevice_t {
        self.raw
    }

    /// MIG mode now and after the next reset. NOT_SUPPORTED on a GPU without MIG.
    pub fn mig_mode(&self) -> Result<MigMode, CallError> {
        let function = function!(self.nvml, nvmlDeviceGetMigMode)?;
        let (mut current, mut pending) = (0, 0);
        // SAFETY: a live handle and two writable integers.
        let code = unsafe { function(self.raw, &raw mut current, &raw mut pending) };
        check("nvmlDeviceGetMigMode", code)?;
        Ok(MigMode { current: current != 0, pending: pending != 0 })
    }

    /// Fails where the installed driver lacks a function that creating, finding or destroying an instance needs, so that nothing is
    /// begun that cannot be finished or taken back. Everything else that MIG takes is asked for before an instance is created.
    pub fn has_functions_of_mig(&self) -> Result<(), CallError> {
        macro_rules! all {
            ($($name:ident),+ $(,)?) => {{ $(function!(self.nvml, $name)?;)+ }};
        }
        all!(
            nvmlDeviceSetMigMode,
            nvmlDeviceGetGpuInstances,
            nvmlDeviceGetGpuInstanceById,
            nvmlDeviceCreateGpuInstanceWithPlacement,
            nvmlGpuInstanceGetInfo,
            nvmlGpuInstanceDestroy,
            nvmlGpuInstanceGetComputeInstanceProfileInfo,
            nvmlGpuInstanceGetComputeInstances,
            nvmlGpuInstanceCreateComputeInstance,
            nvmlComputeInstanceGetInfo_v2,
            nvmlComputeInstanceDestroy,
        );
        Ok(())
    }

    /// Asks for MIG mode on or off and returns the activation status. NVML answers SUCCESS even where the mode did
    /// not change, so only the status and a fresh [`Self::mig_mode`] show it (nvml.h at nvmlDeviceSetMigMode).
    pub fn set_mig_mode(&self, on: bool) -> Result<Code, CallError> {
        let function = function!(self.nvml, nvmlDeviceSetMigMode)?;
        let mut activation = 0;
        // SAFETY: a live handle and a writable status.
        let code = unsafe { function(self.raw, c_uint::from(on), &raw mut activation) };
        check("nvmlDeviceSetMigMode", code)?;
        Ok(Code(activation))
    }

    /// True where MIG mode can be switched without a GPU reset (field 184 of nvml.h).
    pub fn is_mig_resetless(&self) -> Result<bool, CallError> {
        const NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED: c_uint = 184;
        self.field(NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED).map(|it| it != 0)
    }

    /// What NVML recommends to do with the GPU (`nvmlDeviceGpuRecoveryAction_t` of nvml.h, since driver 565). NOT_SUPPORTED where
    /// the driver or the GPU does not know.
    pub fn recovery_action(&self) -> Result<RecoveryAction, CallError> {
        self.field(sys::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION).map(RecoveryAction::from)
    }

    /// One field value that NVML reports as an unsigned int.
    fn field(&self, id: c_uint) -> Result<c_uint, CallError> {
        let function = function!(self.nvml, nvmlDeviceGetFieldValues)?;
        // SAFETY: every field of the struct is an integer or a union of numbers, for which zero is a value.
        let mut field: sys::nvmlFieldValue_t = unsafe { MaybeUninit::zeroed().assume_init() };
        field.fieldId = id;
        // SAFETY: a live handle and one writable field value, as the count says.
        let code = unsafe { function(self.raw, 1, &raw mut field) };
        check("nvmlDeviceGetFieldValues", code)?;
        check("nvmlDeviceGetFieldValues", field.nvmlReturn)?;
        // SAFETY: all members of the union start with the low bytes of the value; NVML reports this field as an
        // unsigned int, and the union was zeroed, so reading 32 bits is defined for every value type.
        Ok(unsafe { field.value.uiVal })
    }

    /// The profile with this `NVML_GPU_INSTANCE_PROFILE_*` index, without its placements. INVALID_ARGUMENT past the
    /// last one, NOT_SUPPORTED where this GPU does not have it. The name is empty where the driver is too old to
    /// report it.
    pub fn profile(&self, index: u32) -> Result<Profile, CallError> {
        match self.named_profile(index) {
            Err(error)
                if [Code::FUNCTION_NOT_FOUND, Code::ARGUMENT_VERSION_MISMATCH].contains(&error.code) =>
            {
                self.unnamed_profile(index)
            }
            result => result,
        }
    }

    /// Where a profile can be placed on an empty GPU.
    pub fn placements(&self, profile_id: u32) -> Result<Vec<Placement>, CallError> {
        const CALL: &str = "nvmlDeviceGetGpuInstancePossiblePlacements_v2";
        let function = function!(self.nvml, nvmlDeviceGetGpuInstancePossiblePlacements_v2)?;
        let mut count = 0;
        // SAFETY: a live handle; a null buffer asks for the count only (nvml.h).
        check(CALL, unsafe { function(self.raw, profile_id, ptr::null_mut(), &raw mut count) })?;
        let mut found = vec![sys::nvmlGpuInstancePlacement_t { start: 0, size: 0 }; count as usize];
        // SAFETY: the buffer holds as many placements as NVML has just asked for, and `count` says so.
        check(CALL, unsafe { function(self.raw, profile_id, found.as_mut_ptr(), &raw mut count) })?;
        found.truncate(count as usize);
        Ok(found.iter().map(|it| Placement { start: it.start, size: it.size }).collect())
    }

    /// Live GPU instances of one profile.
    pub fn gpu_instances(&self, profile_id: u32) -> Result<Vec<GpuInstanceHandle>, CallError> {
        read_each(|| self.raw_gpu_instances(profile_id), |raw| self.describe(raw))
    }

    /// The live GPU instance with this id, if there is one. MIG mode off counts as none.
    pub fn gpu_instance(&self, id: u32) -> Result<Option<GpuInstanceHandle>, CallError> {
        Ok(read_each(|| self.raw_gpu_instance(id), |raw| self.describe(raw))?.pop())
    }

    /// Makes a GPU instance exactly there. INSUFFICIENT_RESOURCES where a slice or an engine is taken.
    pub fn create_gpu_instance(
        &self,
        profile_id: u32,
        placement: Placement,
    ) -> Result<GpuInstanceHandle, CallError> {
        let function = function!(self.nvml, nvmlDeviceCreateGpuInstanceWithPlacement)?;
        let wanted = sys::nvmlGpuInstancePlacement_t { start: placement.start, size: placement.size };
        let mut raw = ptr::null_mut();
        // SAFETY: a live handle, a placement that NVML only reads, and a writable pointer.
        let code = unsafe { function(self.raw, profile_id, &raw const wanted, &raw mut raw) };
        check("nvmlDeviceCreateGpuInstanceWithPlacement", code)?;
        self.describe(raw)
    }

    /// Destroys a GPU instance. IN_USE while it has compute instances or a process uses it.
    pub fn destroy_gpu_instance(&self, instance: GpuInstanceHandle) -> Result<(), CallError> {
        self.samples.forget(instance.id);
        let function = function!(self.nvml, nvmlGpuInstanceDestroy)?;
        // SAFETY: the handle was returned by this library; NVML checks that it still stands for an instance.
        check("nvmlGpuInstanceDestroy", unsafe { function(instance.raw) })
    }

    /// The compute instances of a GPU instance; none of one that is gone.
    pub fn compute_instances(&self, instance: GpuInstanceHandle) -> Result<Vec<ComputeInstance>, CallError> {
        self.each_compute_instance(instance, |raw| self.describe_compute(raw))
    }

    /// Makes the one compute instance that spans the whole GPU instance, which has `slices` compute slices.
    pub fn create_compute_instance(
        &self,
        instance: GpuInstanceHandle,
        slices: u32,
    ) -> Result<ComputeInstance, CallError> {
        let profile_id = self.spanning_compute_profile(instance, slices)?;
        let function = function!(self.nvml, nvmlGpuInstanceCreateComputeInstance)?;
        let mut raw = ptr::null_mut();
        // SAFETY: a GPU instance handle of this library and a writable pointer.
        let code = unsafe { function(instance.raw, profile_id, &raw mut raw) };
        check("nvmlGpuInstanceCreateComputeInstance", code)?;
        self.describe_compute(raw)
    }

    /// Destroys every compute instance of a GPU instance. IN_USE while a process runs on one.
    pub fn destroy_compute_instances(&self, instance: GpuInstanceHandle) -> Result<(), CallError> {
        self.samples.forget(instance.id);
        let function = function!(self.nvml, nvmlComputeInstanceDestroy)?;
        for raw in self.raw_compute_instances(instance)? {
            // SAFETY: the handle was listed by this library a moment ago.
            check("nvmlComputeInstanceDestroy", unsafe { function(raw) })?;
        }
        Ok(())
    }

    /// A GPU instance with its compute instances, as plain data.
    pub fn read(&self, instance: GpuInstanceHandle) -> Result<GpuInstance, CallError> {
        Ok(GpuInstance {
            id: instance.id,
            profile_id: instance.profile_id,
            placement: instance.placement,
            compute_instances: self.compute_instances(instance)?,
        })
    }

    /// Processes that compute on a GPU instance, by their ids on the host. Asked of its MIG devices, because only there NVML
    /// reports reliably which instance a process is on (nvml.h at nvmlDeviceGetComputeRunningProcesses_v3).
    pub fn processes_on(&self, instance: GpuInstanceHandle) -> Result<Vec<u32>, CallError> {
        let pids = self.each_compute_instance(instance, |raw| {
            let device = self.at(self.compute_info(raw)?.device);
            let running = device.wrapper().running_compute_processes();
            let running = running.map_err(wrapped("nvmlDeviceGetComputeRunningProcesses_v3"))?;
            Ok(running.into_iter().map(|it| it.pid).collect::<Vec<_>>())
        })?;
        Ok(pids.concat())
    }

    /// Memory of this device. NOT_SUPPORTED on a GPU that uses the memory of the system.
    pub fn memory(&self) -> Result<Memory, CallError> {
        match self.wrapper().memory_info().map_err(wrapped("nvmlDeviceGetMemoryInfo_v2")) {
            Ok(it) => Ok(Memory { used: it.used, free: it.free, total: it.total }),
            Err(error) if error.code == Code::FUNCTION_NOT_FOUND => self.memory_of_old_drivers(),
            Err(error) => Err(error),
        }
    }

    /// The same from drivers before 510.
    fn memory_of_old_drivers(&self) -> Result<Memory, CallError> {
        let function = function!(self.nvml, nvmlDeviceGetMemoryInfo)?;
        let mut memory = sys::nvmlMemory_t { total: 0, free: 0, used: 0 };
        // SAFETY: a live handle and a writable struct.
        check("nvmlDeviceGetMemoryInfo", unsafe { function(self.raw, &raw mut memory) })?;
        Ok(Memory { used: memory.used, free: memory.free, total: memory.total })
    }

    /// `nvmlDeviceArchitecture_t`. The number, because nvml-wrapper has no name for those that are newer than itself.
    pub fn architecture(&self) -> Result<u32, CallError> {
        let function = function!(self.nvml, nvmlDeviceGetArchitecture)?;
        let mut architecture = 0;
        // SAFETY: a live handle and a writable integer.
        check("nvmlDeviceGetArchitecture", unsafe { function(self.raw, &raw mut architecture) })?;
        Ok(architecture)
    }

    /// `nvmlGpuVirtualizationMode_t`, for the same reason a number.
    pub fn virtualization_mode(&self) -> Result<u32, CallError> {
        let function = function!(self.nvml, nvmlDeviceGetVirtualizationMode)?;
        let mut mode = 0;
        // SAFETY: a live handle and a writable integer.
        check("nvmlDeviceGetVirtualizationMode", unsafe { function(self.raw, &raw mut mode) })?;
        Ok(mode)
    }

    /// `nvmlBrandType_t`, for the same reason a number.
    pub fn brand(&self) -> Result<u32, CallError> {
        let function = function!(self.nvml, nvmlDeviceGetBrand)?;
        let mut brand = 0;
        // SAFETY: a live handle and a writable integer.
        check("nvmlDeviceGetBrand", unsafe { function(self.raw, &raw mut brand) })?;
        Ok(brand)
    }

    /// Memory of a MIG device; nothing where there is no such instance.
    pub fn memory_of(&self, gpu_instance: u32, compute_instance: u32) -> Result<Option<Memory>, CallError> {
        let of_device = |raw| self.at(self.compute_info(raw)?.device).memory();
        let of_instance = |raw| read_each(|| self.raw_compute_instance(raw, compute_instance), of_device);
        Ok(read_each(|| self.raw_gpu_instance(gpu_instance), of_instance)?.concat().pop())
    }

    /// Minor number of the GPU's device node; may change with MIG mode.
    pub fn minor(&self) -> Result<u32, CallError> {
        self.wrapper().minor_number().map_err(wrapped("nvmlDeviceGetMinorNumber"))
    }

    /// UUID of this device.
    pub fn uuid(&self) -> Result<String, CallError> {
        self.wrapper().uuid().map_err(wrapped("nvmlDeviceGetUUID"))
    }

    fn named_profile(&self, index: u32) -> Result<Profile, CallError> {
        let function = function!(self.nvml, nvmlDeviceGetGpuInstanceProfileInfoV)?;
        // SAFETY: the struct is integers and a character array, for which zero is a value.
        let mut info: sys::nvmlGpuInstanceProfileInfo_v2_t = unsafe { MaybeUninit::zeroed().assume_init() };
        info.version = version_word::<sys::nvmlGpuInstanceProfileInfo_v2_t>(2);
        // SAFETY: a live handle and a struct whose version field gives NVML its layout.
        let code = unsafe { function(self.raw, index, &raw mut info) };
        check("nvmlDeviceGetGpuInstanceProfileInfoV", code)?;
        let name = text(&info.name);
        Ok(profile!(index, name.strip_prefix("MIG ").unwrap_or(&name), info))
    }

    fn unnamed_profile(&self, index: u32) -> Result<Profile, CallError> {
        let function = function!(self.nvml, nvmlDeviceGetGpuInstanceProfileInfo)?;
        // SAFETY: the struct is integers only, for which zero is a value.
        let mut info: sys::nvmlGpuInstanceProfileInfo_t = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: a live handle and a writable struct of the first layout, which has no version word.
        let code = unsafe { function(self.raw, index, &raw mut info) };
        check("nvmlDeviceGetGpuInstanceProfileInfo", code)?;
        Ok(profile!(index, "", info))
    }

    fn raw_gpu_instances(&self, profile_id: u32) -> Result<Vec<sys::nvmlGpuInstance_t>, CallError> {
        /// More than a GPU can have: GPU instance ids end at 14 (KMIGMGR_MAX_GPU_SWIZZID in kernel_mig_manager.h).
        const MOST: usize = 64;
        let function = function!(self.nvml, nvmlDeviceGetGpuInstances)?;
        let mut raw: Vec<sys::nvmlGpuInstance_t> = vec![ptr::null_mut(); MOST];
        let mut count = 0;
        // SAFETY: nvml.h asks for a buffer of the profile's `instanceCount`; this one has room for more instances than
        // any GPU can have. `count` is only written.
        let code = unsafe { function(self.raw, profile_id, raw.as_mut_ptr(), &raw mut count) };
        check("nvmlDeviceGetGpuInstances", code)?;
        raw.truncate(count as usize);
        Ok(raw)
    }

    fn raw_gpu_instance(&self, id: u32) -> Result<Option<sys::nvmlGpuInstance_t>, CallError> {
        let function = function!(self.nvml, nvmlDeviceGetGpuInstanceById)?;
        let mut raw = ptr::null_mut();
        // SAFETY: a live handle and a writable pointer.
        let code = unsafe { function(self.raw, id, &raw mut raw) };
        match check("nvmlDeviceGetGpuInstanceById", code) {
            Ok(()) => Ok(Some(raw)),
            Err(error) if [Code::NOT_FOUND, Code::NOT_SUPPORTED].contains(&error.code) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn raw_compute_instance(
        &self,
        instance: sys::nvmlGpuInstance_t,
        id: u32,
    ) -> Result<Option<sys::nvmlComputeInstance_t>, CallError> {
        let function = function!(self.nvml, nvmlGpuInstanceGetComputeInstanceById)?;
        let mut raw = ptr::null_mut();
        // SAFETY: a GPU instance handle of this library and a writable pointer.
        let code = unsafe { function(instance, id, &raw mut raw) };
        match check("nvmlGpuInstanceGetComputeInstanceById", code) {
            Ok(()) => Ok(Some(raw)),
            Err(error) if error.code == Code::NOT_FOUND => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn describe(&self, raw: sys::nvmlGpuInstance_t) -> Result<GpuInstanceHandle, CallError> {
        let function = function!(self.nvml, nvmlGpuInstanceGetInfo)?;
        let mut info = MaybeUninit::<sys::nvmlGpuInstanceInfo_t>::zeroed();
        // SAFETY: a GPU instance handle of this library and a writable struct.
        check("nvmlGpuInstanceGetInfo", unsafe { function(raw, info.as_mut_ptr()) })?;
        // SAFETY: zeroed before and filled by NVML; a pointer and integers have no invalid values.
        let info = unsafe { info.assume_init() };
        let placement = Placement { start: info.placement.start, size: info.placement.size };
        Ok(GpuInstanceHandle { raw, id: info.id, profile_id: info.profileId, placement })
    }

    /// The compute profile that takes all slices of the instance: the first one, because newer drivers have several
    /// with as many slices (7_SLICE and 7_SLICE_NVL), of which only the first is general purpose.
    fn spanning_compute_profile(&self, instance: GpuInstanceHandle, slices: u32) -> Result<u32, CallError> {
        let profiles = self.compute_profiles(instance)?;
        profiles
            .iter()
            .find(|it| it.sliceCount == slices)
            .map(|it| it.id)
            .ok_or(CallError { call: "nvmlGpuInstanceGetComputeInstanceProfileInfo", code: Code::NOT_FOUND })
    }

    /// Reads each compute instance of a GPU instance.
    fn each_compute_instance<T>(
        &self,
        instance: GpuInstanceHandle,
        read: impl Fn(sys::nvmlComputeInstance_t) -> Result<T, CallError>,
    ) -> Result<Vec<T>, CallError> {
        let all = read_each(|| self.raw_compute_instances(instance), read);
        let all = unless_gone(instance.raw, || self.raw_gpu_instance(instance.id), all)?;
        Ok(all.unwrap_or_default())
    }

    /// Lists compute instance handles. NVML lists them by profile, so every compute profile is asked.
    fn raw_compute_instances(
        &self,
        instance: GpuInstanceHandle,
    ) -> Result<Vec<sys::nvmlComputeInstance_t>, CallError> {
        let function = function!(self.nvml, nvmlGpuInstanceGetComputeInstances)?;
        let mut all = Vec::new();
        for profile in self.compute_profiles(instance)? {
            let mut found = vec![ptr::null_mut(); profile.instanceCount as usize];
            let mut count = profile.instanceCount;
            // SAFETY: the buffer holds `instanceCount` handles, as nvml.h asks.
            let code = unsafe { function(instance.raw, profile.id, found.as_mut_ptr(), &raw mut count) };
            check("nvmlGpuInstanceGetComputeInstances", code)?;
            all.extend(found.into_iter().take(count as usize));
        }
        Ok(all)
    }

    fn compute_profiles(
        &self,
        instance: GpuInstanceHandle,
    ) -> Result<Vec<sys::nvmlComputeInstanceProfileInfo_t>, CallError> {
        const CALL: &str = "nvmlGpuInstanceGetComputeInstanceProfileInfo";
        const ENGINE_PROFILE_SHARED: c_uint = 0;
        let function = function!(self.nvml, nvmlGpuInstanceGetComputeInstanceProfileInfo)?;
        let mut profiles = Vec::new();
        for index in 0..MAX_PROFILES {
            let mut info = MaybeUninit::<sys::nvmlComputeInstanceProfileInfo_t>::zeroed();
            // SAFETY: a GPU instance handle of this library and a writable struct.
            let code = unsafe { function(instance.raw, index, ENGINE_PROFILE_SHARED, info.as_mut_ptr()) };
            match check(CALL, code) {
                // SAFETY: zeroed before and filled by NVML; integers have no invalid values.
                Ok(()) => profiles.push(unsafe { info.assume_init() }),
                Err(error) if error.code == Code::NOT_SUPPORTED => {}
                Err(error) if error.code == Code::INVALID_ARGUMENT => break,
                Err(error) => return Err(error),
            }
        }
        Ok(profiles)
    }

    fn describe_compute(&self, raw: sys::nvmlComputeInstance_t) -> Result<ComputeInstance, CallError> {
        let info = self.compute_info(raw)?;
        Ok(ComputeInstance { id: info.id, uuid: self.at(info.device).uuid()?, slices: info.placement.size })
    }

    /// Id, placement and MIG device of a compute instance. The header calls `device` the parent; it is the MIG device, and
    /// walking all of them instead takes seconds under load (mig-nvml-cdi.md 2.2).
    fn compute_info(
        &self,
        raw: sys::nvmlComputeInstance_t,
    ) -> Result<sys::nvmlComputeInstanceInfo_t, CallError> {
        let function = function!(self.nvml, nvmlComputeInstanceGetInfo_v2)?;
        let mut info = MaybeUninit::<sys::nvmlComputeInstanceInfo_t>::zeroed();
        // SAFETY: a compute instance handle of this library and a writable struct.
        check("nvmlComputeInstanceGetInfo_v2", unsafe { function(raw, info.as_mut_ptr()) })?;
        // SAFETY: zeroed before and filled by NVML; pointers and integers have no invalid values.
        Ok(unsafe { info.assume_init() })
    }

    fn at(&self, raw: sys::nvmlDevice_t) -> DeviceHandle<'nvml> {
        DeviceHandle { nvml: self.nvml, raw, samples: Samples::default() }
    }
}

/// Reads each instance that is listed, but for those that are gone by then.
fn read_each<Raw: Copy + PartialEq, All: IntoIterator<Item = Raw>, T>(
    list: impl Fn() -> Result<All, CallError>,
    read: impl Fn(Raw) -> Result<T, CallError>,
) -> Result<Vec<T>, CallError> {
    list()?.into_iter().filter_map(|raw| unless_gone(raw, &list, read(raw)).transpose()).collect()
}

/// What was read of an instance; nothing where that failed and it is not listed any more: an administrator, or another process
/// of the driver, destroyed it meanwhile.
fn unless_gone<Raw: PartialEq, All: IntoIterator<Item = Raw>, T>(
    raw: Raw,
    list: impl Fn() -> Result<All, CallError>,
    read: Result<T, CallError>,
) -> Result<Option<T>, CallError> {
    match read {
        Ok(it) => Ok(Some(it)),
        Err(error) if error.concerns_whole_gpu() || list()?.into_iter().any(|it| it == raw) => Err(error),
        Err(_) => Ok(None),
    }
}

/// The version word that a versioned NVML struct starts with: its size and its version.
#[expect(clippy::cast_possible_truncation, reason = "the structs have some hundred bytes")]
const fn version_word<T>(version: u32) -> c_uint {
    size_of::<T>() as c_uint | (version << 24)
}

/// A C character array as text; bytes that are not UTF-8 are replaced.
fn text(bytes: &[c_char]) -> String {
    // SAFETY: `c_char` and `u8` have the same size and alignment, and the slice's length is kept.
    let bytes = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<u8>(), bytes.len()) };
    CStr::from_bytes_until_nul(bytes).map(|it| it.to_string_lossy().into_owned()).unwrap_or_default()
}
