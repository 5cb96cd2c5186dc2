//! The NVIDIA management library: the only folder that loads or calls libnvidia-ml.so.
//!
//! `mig_model::facts` is the output (plain data), `device` holds the calls, `discover` reads a node once (its table says which fact
//! is essential for what), `profiles` reads what MIG can do, `queue` gives each GPU its own thread, since NVML calls
//! block and changes to one GPU must not overlap. `event` and `monitor` receive errors as they happen. Nothing here knows a
//! GPU model, Kubernetes, or why an instance is wanted.

mod call_timer;
mod device;
mod discover;
mod error;
mod event;
mod monitor;
mod profiles;
mod queue;
mod samples;
mod unknown;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

pub use call_timer::{CallTimer, InFlight};
pub use device::{DeviceHandle, GpuInstanceHandle};
pub use discover::{Discovery, answers, discover, live_instances};
pub use event::{EventKind, EventSet, GpuEvent};
pub use mig_model::call::{CallError, Code, OLDEST_DRIVER, RESET_ADVICE};
pub(crate) use monitor::is_unsupported;
pub use monitor::{Listening, Monitor, Monitoring, NvmlEvent};
pub use queue::{GpuQueue, QueueClosed, Submitted};

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
    /// Too many sessions cannot be closed.
    #[error(
        "calls into NVML of {count} earlier sessions have not come back, so it is not opened again; reboot the node; \
         `nvidia-smi` and the kernel log of the node show more"
    )]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// The sessions of this process that have not been closed. A call that hangs keeps its thread, and its session open; so that
/// such threads do not pile up, NVML is not opened again behind [`Self::MOST`] of them.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<Vec<Weak<Nvml>>>);

impl Sessions {
    /// A session has two threads for a GPU at most, and one more.
    pub const MOST: usize = 4;

    /// Opens another one. Waits a moment for earlier sessions to be closed, as each is once its threads have ended: the one that
    /// listens to events is in a call of half a second.
    ///
    /// # Errors
    /// [`OpenError`] where the library cannot be opened, or so many sessions stay open.
    pub fn open(&self, path: &Path) -> Result<Arc<Nvml>, OpenError> {
        const PATIENCE: Duration = Duration::from_secs(5);
        const PAUSE: Duration = Duration::from_millis(20);
        let deadline = Instant::now() + PATIENCE;
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            sessions.retain(|it| 0 < it.strong_count());
            match sessions.len() {
                count if count < Self::MOST => break,
                count if deadline <= Instant::now() => return Err(OpenError::TooMany { count }),
                _ => thread::sleep(PAUSE),
            }
        }
        let opened = open(path)?;
        sessions.push(Arc::downgrade(&opened));
        Ok(opened)
    }
}

/// Loads and initialises the library at an absolute path.
pub fn open(path: &Path) -> Result<Arc<Nvml>, OpenError> {
    let nvml = Nvml::builder().lib_path(path.as_os_str()).init();
    nvml.map(Arc::new).map_err(|source| OpenError::Init { path: path.to_owned(), source })
}
