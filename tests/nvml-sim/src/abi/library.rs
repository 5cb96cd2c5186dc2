//! Initialising, finding the node, and what concerns the driver as a whole.

use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::call::{broken, guarded, nvml, perform};
use super::client::{STORE, USERS, initialised};
use super::types::{Branch, Out, Subject, Text, name, version};
use crate::code::Code;
use crate::node::is_node;
use crate::store::Store;

/// Functions here that are not made by `nvml!`.
pub(super) const OWN: &[&str] =
    &["nvmlInit", "nvmlInit_v2", "nvmlInitWithFlags", "nvmlShutdown", "nvmlErrorString"];

fn initialise(call: &str) -> Code {
    guarded(|| {
        let store = match STORE.get() {
            Some(store) => store,
            None => {
                // Without a node there is no GPU, which is what a host without the driver is like.
                let root = find_node().ok_or(Code::DRIVER_NOT_LOADED)?;
                let opened = Store::open(&root).map_err(|error| broken(&error))?;
                STORE.get_or_init(|| opened)
            }
        };
        perform(store, call, Subject::default(), |session| {
            if !session.config().driver_loaded {
                return Err(Code::DRIVER_NOT_LOADED);
            }
            USERS.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    })
}

/// The node: named by the environment, or around the file that this code was loaded from.
fn find_node() -> Option<PathBuf> {
    if let Some(root) = std::env::var_os("NVML_SIM_STATE") {
        return Some(PathBuf::from(root));
    }
    let file = std::path::absolute(own_file()?).ok()?;
    file.ancestors().find(|dir| is_node(dir)).map(Path::to_path_buf)
}

/// The path by which this library was loaded.
fn own_file() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    let here = own_file as *const c_void;
    // SAFETY: `here` is an address in this library and `info` is writable.
    let found = unsafe { libc::dladdr(here, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr has set it to a NUL-terminated string that lives as long as this library is loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(OsStr::from_bytes(CString::from(name).as_bytes())))
}

// SAFETY (all below): the names are NVML's and exist once in the program.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the names are NVML's")]
extern "C" fn nvmlInit() -> Code {
    initialise("nvmlInit")
}

#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the names are NVML's")]
extern "C" fn nvmlInit_v2() -> Code {
    initialise("nvmlInit_v2")
}

#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the names are NVML's")]
extern "C" fn nvmlInitWithFlags(_flags: u32) -> Code {
    initialise("nvmlInitWithFlags")
}

#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the names are NVML's")]
extern "C" fn nvmlShutdown() -> Code {
    guarded(|| {
        let store = initialised()?;
        perform(store, "nvmlShutdown", Subject::default(), |_| {
            let down = USERS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |users| users.checked_sub(1));
            down.map(|_| ()).map_err(|_| Code::UNINITIALIZED)
        })
    })
}

#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the names are NVML's")]
extern "C" fn nvmlErrorString(code: Code) -> *const c_char {
    code.text().as_ptr()
}

/// CUDA 13.0, as major * 1000 + minor * 10: what the 580 driver supports.
const CUDA_VERSION: i32 = 13000;

nvml! {
    fn nvmlSystemGetDriverVersion(text: Text, length: u32), |session| {
        text.put(&session.machine().driver_version, length)
    }

    fn nvmlSystemGetNVMLVersion(text: Text, length: u32), |session| {
        text.put(&format!("13.{}", session.machine().driver_version), length)
    }

    fn nvmlSystemGetCudaDriverVersion(cuda: Out<i32>), |_session| { cuda.set(CUDA_VERSION) }

    fn nvmlSystemGetCudaDriverVersion_v2(cuda: Out<i32>), |_session| { cuda.set(CUDA_VERSION) }

    fn nvmlSystemGetDriverBranch(branch: Out<Branch>, length: u32), |session| {
        if branch.cast::<u32>().get()? != version::<Branch>(1) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        let major = session.machine().driver_version.split('.').next().unwrap_or_default().to_owned();
        let text = format!("r{major}_00");
        if text.len() >= length as usize {
            return Err(Code::INSUFFICIENT_SIZE);
        }
        branch.set(Branch { version: version::<Branch>(1), branch: name(&text) })
    }

    fn nvmlSystemGetProcessName(pid: u32, text: Text, length: u32), |session| {
        let mut processes = session.machine().gpus.iter().flat_map(|gpu| &gpu.processes);
        let known = processes.any(|process| process.pid == pid);
        if known { text.put(&format!("process-{pid}"), length) } else { Err(Code::NOT_FOUND) }
    }

    fn nvmlGetExcludedDeviceCount(count: Out<u32>), |_session| { count.set(0) }
}
