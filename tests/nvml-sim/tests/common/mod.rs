//! What the ABI tests share: a node, and a client that calls the library through nvml-wrapper-sys, which this
//! project did not write.

#![allow(clippy::macro_metavars_in_unsafe, reason = "arguments of C calls are mere values and pointers")]

use std::path::PathBuf;

use nvml_sim::{SimNode, parse_gpus};
use nvml_wrapper_sys::bindings::{
    NvmlLib, nvmlComputeInstance_t, nvmlDevice_t, nvmlGpuInstance_t, nvmlGpuInstancePlacement_t,
};

pub(crate) const SUCCESS: u32 = 0;
pub(crate) const UNINITIALIZED: u32 = 1;
pub(crate) const INVALID_ARGUMENT: u32 = 2;
pub(crate) const NOT_SUPPORTED: u32 = 3;
pub(crate) const NO_PERMISSION: u32 = 4;
pub(crate) const NOT_FOUND: u32 = 6;
pub(crate) const INSUFFICIENT_SIZE: u32 = 7;
pub(crate) const DRIVER_NOT_LOADED: u32 = 9;
pub(crate) const TIMEOUT: u32 = 10;
pub(crate) const GPU_IS_LOST: u32 = 15;
pub(crate) const RESET_REQUIRED: u32 = 16;
pub(crate) const IN_USE: u32 = 19;
pub(crate) const INSUFFICIENT_RESOURCES: u32 = 23;
pub(crate) const VERSION_MISMATCH: u32 = 25;

/// Profile ids of 8-unit GPUs.
pub(crate) const ONE: u32 = 19;
pub(crate) const ONE_MEDIA: u32 = 20;
pub(crate) const TWO: u32 = 14;
pub(crate) const THREE: u32 = 9;
pub(crate) const SEVEN: u32 = 0;

/// Calls a C function by name and gives its return code.
macro_rules! c {
    ($client:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let function = *$client.lib.$function.as_ref().expect(stringify!($function));
        // SAFETY: the library is loaded for as long as the client lives, and every pointer that the tests
        // pass is valid for what the function's documentation says it writes, or deliberately NULL or
        // invented.
        unsafe { function($($argument),*) }
    }};
}

/// Calls a C function whose last argument is a pointer to one number, and gives code and number.
macro_rules! number {
    ($client:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let mut value = Default::default();
        let code = $crate::common::c!($client, $function($($argument,)* &mut value));
        (code, value)
    }};
}

pub(crate) use {c, number};

/// A node in its own temporary directory.
pub(crate) struct Bench {
    pub(crate) node: SimNode,
    _dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new(gpus: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let node = SimNode::create(&dir.path().join("node"), &parse_gpus(gpus).unwrap()).unwrap();
        Bench { node, _dir: dir }
    }

    /// A node, and an initialised client whose GPU 0 has MIG mode on.
    pub(crate) fn with_mig(gpus: &str) -> (Bench, Client) {
        let bench = Bench::new(gpus);
        let client = bench.client();
        assert_eq!(client.set_mode(0, 1), (SUCCESS, SUCCESS));
        (bench, client)
    }

    /// An initialised client.
    pub(crate) fn client(&self) -> Client {
        let client = Client::open(self.node.library());
        assert_eq!(c!(client, nvmlInit_v2()), SUCCESS);
        client
    }

    /// A file below the node's root.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.node.driver_root().join(path)
    }
}

/// The library, loaded.
pub(crate) struct Client {
    pub(crate) lib: NvmlLib,
}

impl Client {
    pub(crate) fn open(library: PathBuf) -> Client {
        // SAFETY: loading the simulator runs no initialisers but the standard library's.
        Client { lib: unsafe { NvmlLib::new(library) }.unwrap() }
    }

    pub(crate) fn gpu(&self, index: u32) -> nvmlDevice_t {
        let mut device = std::ptr::null_mut();
        assert_eq!(c!(self, nvmlDeviceGetHandleByIndex_v2(index, &mut device)), SUCCESS);
        device
    }

    /// Code and activation status.
    pub(crate) fn set_mode(&self, gpu: u32, mode: u32) -> (u32, u32) {
        number!(self, nvmlDeviceSetMigMode(self.gpu(gpu), mode))
    }

    /// Code, current and pending mode.
    pub(crate) fn mode(&self, gpu: u32) -> (u32, u32, u32) {
        let (mut current, mut pending) = (9, 9);
        let code = c!(self, nvmlDeviceGetMigMode(self.gpu(gpu), &mut current, &mut pending));
        (code, current, pending)
    }

    /// Creates a GPU instance at a placement.
    pub(crate) fn create_at(
        &self,
        gpu: u32,
        profile: u32,
        start: u32,
        size: u32,
    ) -> Result<nvmlGpuInstance_t, u32> {
        let placement = nvmlGpuInstancePlacement_t { start, size };
        let mut made = std::ptr::null_mut();
        let device = self.gpu(gpu);
        match c!(self, nvmlDeviceCreateGpuInstanceWithPlacement(device, profile, &placement, &mut made)) {
            SUCCESS => Ok(made),
            code => Err(code),
        }
    }

    /// Creates a GPU instance anywhere.
    pub(crate) fn create(&self, gpu: u32, profile: u32) -> Result<nvmlGpuInstance_t, u32> {
        let mut made = std::ptr::null_mut();
        match c!(self, nvmlDeviceCreateGpuInstance(self.gpu(gpu), profile, &mut made)) {
            SUCCESS => Ok(made),
            code => Err(code),
        }
    }

    /// Creates a compute instance anywhere.
    pub(crate) fn compute(
        &self,
        instance: nvmlGpuInstance_t,
        profile: u32,
    ) -> Result<nvmlComputeInstance_t, u32> {
        let mut made = std::ptr::null_mut();
        match c!(self, nvmlGpuInstanceCreateComputeInstance(instance, profile, &mut made)) {
            SUCCESS => Ok(made),
            code => Err(code),
        }
    }

    pub(crate) fn destroy(&self, instance: nvmlGpuInstance_t) -> u32 {
        c!(self, nvmlGpuInstanceDestroy(instance))
    }

    pub(crate) fn destroy_compute(&self, instance: nvmlComputeInstance_t) -> u32 {
        c!(self, nvmlComputeInstanceDestroy(instance))
    }

    /// The MIG device of a compute instance.
    pub(crate) fn mig_device(&self, instance: nvmlComputeInstance_t) -> nvmlDevice_t {
        self.compute_info(instance).unwrap().device
    }

    pub(crate) fn compute_info(
        &self,
        instance: nvmlComputeInstance_t,
    ) -> Result<nvml_wrapper_sys::bindings::nvmlComputeInstanceInfo_t, u32> {
        let mut info = zeroed();
        match c!(self, nvmlComputeInstanceGetInfo_v2(instance, &mut info)) {
            SUCCESS => Ok(info),
            code => Err(code),
        }
    }

    pub(crate) fn info(
        &self,
        instance: nvmlGpuInstance_t,
    ) -> Result<nvml_wrapper_sys::bindings::nvmlGpuInstanceInfo_t, u32> {
        let mut info = zeroed();
        match c!(self, nvmlGpuInstanceGetInfo(instance, &mut info)) {
            SUCCESS => Ok(info),
            code => Err(code),
        }
    }

    /// A device's UUID.
    pub(crate) fn uuid(&self, device: nvmlDevice_t) -> Result<String, u32> {
        let mut buffer = [0; 96];
        text(c!(self, nvmlDeviceGetUUID(device, buffer.as_mut_ptr(), 96)), &buffer)
    }

    /// A device's name.
    pub(crate) fn name(&self, device: nvmlDevice_t) -> Result<String, u32> {
        let mut buffer = [0; 96];
        text(c!(self, nvmlDeviceGetName(device, buffer.as_mut_ptr(), 96)), &buffer)
    }

    /// The MIG device at an index.
    pub(crate) fn mig_at(&self, gpu: u32, index: u32) -> Result<nvmlDevice_t, u32> {
        let mut device = std::ptr::null_mut();
        match c!(self, nvmlDeviceGetMigDeviceHandleByIndex(self.gpu(gpu), index, &mut device)) {
            SUCCESS => Ok(device),
            code => Err(code),
        }
    }
}

/// The text in a buffer, if the call succeeded.
pub(crate) fn text(code: u32, buffer: &[std::ffi::c_char]) -> Result<String, u32> {
    let bytes = buffer.iter().take_while(|byte| **byte != 0).map(|byte| byte.cast_unsigned());
    if code == SUCCESS { Ok(String::from_utf8(bytes.collect()).unwrap()) } else { Err(code) }
}

/// An empty structure of NVML's.
pub(crate) fn zeroed<T: Copy>() -> T {
    // SAFETY: the tests ask for NVML's structures only, which are numbers, arrays and raw pointers: zero is
    // valid.
    unsafe { std::mem::zeroed() }
}
