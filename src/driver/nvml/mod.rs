//! The NVIDIA management library: the only folder that loads or calls libnvidia-ml.so.
//!
//! `facts` is what comes out (plain data), `device` holds the calls, `discover` reads a node once (its table says which fact
//! is essential for what), `profiles` reads what MIG can do, `queue` gives each GPU a thread of its own, since NVML calls
//! block and changes to one GPU must not overlap. `event` and `monitor` hear of errors as they happen. Nothing here knows a
//! GPU model, Kubernetes, or why an instance is wanted.

mod device;
mod discover;
mod error;
mod event;
mod monitor;
mod profiles;
mod pulse;
mod queue;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

pub use device::{DeviceHandle, GpuInstanceHandle};
pub use discover::{answers, discover, live_instances};
pub use event::{EventKind, EventSet, GpuEvent};
pub use mig_model::call::{CallError, Code, OLDEST_DRIVER, RESET_ADVICE};
pub(crate) use monitor::is_unsupported;
pub use monitor::{Heard, Hearing, Listening, Monitor};
pub use pulse::{Beat, Pulse};
pub use queue::{GpuQueue, QueueClosed};

/// Upper bound for enumerating profiles, far above `NVML_GPU_INSTANCE_PROFILE_COUNT` (18 in CUDA 13.3): a library that
/// never answers INVALID_ARGUMENT must not hold us for ever.
const MAX_PROFILES: u32 = 64;

/// The library could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No library was found below the driver root.
    #[error(
        "no libnvidia-ml.so.1 below the driver root `{root}`; install the NVIDIA driver, or point --driver-root \
         (or --driver-library) at it"
    )]
    NotFound {
        /// The driver root that was searched.
        root: PathBuf,
    },
    /// It exists, but does not load or initialise.
    #[error("cannot initialise `{path}`: {source}; `nvidia-smi` on the host shows whether the driver works")]
    Init {
        /// The library.
        path: PathBuf,
        /// What nvml-wrapper says.
        source: NvmlError,
    },
}

/// Loads and initialises the library at an absolute path.
pub fn open(path: &Path) -> Result<Arc<Nvml>, OpenError> {
    let nvml = Nvml::builder().lib_path(path.as_os_str()).init();
    nvml.map(Arc::new).map_err(|source| OpenError::Init { path: path.to_owned(), source })
}
