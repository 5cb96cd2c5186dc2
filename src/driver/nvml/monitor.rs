//! The thread that monitors the events of all GPUs.
//!
//! It waits in NVML, never for longer than [`WAIT`], so that it ends soon when its session ends. An event set may count
//! as a user of a GPU. So before an error `IN_USE` is attributed to another process, the thread releases that GPU
//! for a while ([`Monitor::step_aside`]); a destroyed instance is worth more than an event, and the gap is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::event::{EventSet, GpuEvent};
use super::{CallError, CallTimer, Code};

/// Longest wait in NVML.
const WAIT: Duration = Duration::from_millis(500);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a GPU that could not be listened to is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// How long monitoring of a GPU is paused after it was in use.
const ASIDE: Duration = Duration::from_secs(5);
/// How long the thread may be in one call.
const SILENCE: Duration = Duration::from_secs(10);
/// Of the thread. NVML's own needs are not documented; the kernel gives a page only when it is touched.
const STACK: usize = 512 * 1024;

/// Whether a GPU is listened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Monitoring {
    /// It is.
    Active,
    /// Monitoring is paused for some seconds, so that an instance of it can be destroyed.
    Paused,
    /// It cannot be.
    Failed(CallError),
}

/// For each GPU, whether it is listened to, or why not.
pub type Listening = BTreeMap<String, Monitoring>;

/// What the thread has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NvmlEvent {
    /// Something happened to a GPU.
    Event(GpuEvent),
    /// Other GPUs than before are listened to.
    Listening(Listening),
}

/// The way to the thread: which GPUs it is to listen to.
#[derive(Debug, Default)]
pub struct Monitor {
    state: Mutex<State>,
    thread: OnceLock<Thread>,
    /// While the thread is inside NVML.
    timer: CallTimer,
}

#[derive(Debug, Default)]
struct State {
    /// UUIDs, with the index in NVML.
    gpus: BTreeMap<String, u32>,
    /// GPUs whose monitoring is paused, and until when.
    aside: BTreeMap<String, Instant>,
    is_closed: bool,
    /// The thread's last sign of life; `None` where it need give none.
    alive: Option<Instant>,
}

impl Monitor {
    /// Starts the thread. It sends events to `nvml_events`, and ends when the receiver is gone, or with
    /// [`Self::close`].
    pub fn start(
        self: &Arc<Self>,
        nvml: Arc<Nvml>,
        nvml_events: mpsc::Sender<NvmlEvent>,
    ) -> io::Result<JoinHandle<()>> {
        let monitor = Arc::clone(self);
        monitor.state().alive = Some(Instant::now());
        let thread = thread::Builder::new().name("gpu-events".to_owned()).stack_size(STACK);
        let handle = thread.spawn(move || {
            let mut listener = Listener {
                nvml: &nvml,
                monitor: &monitor,
                nvml_events,
                set: None,
                listening: Listening::new(),
                reported: Listening::new(),
                tried: None,
            };
            while listener.round().is_some() {}
        })?;
        // Set once: a session starts one thread.
        let _ = self.thread.set(handle.thread().clone());
        Ok(handle)
    }

    /// Whether the thread was started.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.thread.get().is_some()
    }

    /// Listens to these GPUs from now on: UUIDs, with the index in NVML.
    pub fn listen_to(&self, gpus: impl IntoIterator<Item = (String, u32)>) {
        self.state().gpus = gpus.into_iter().collect();
    }

    /// Pauses monitoring of a GPU for some seconds. True if it was not paused already: its events are lost from
    /// now on.
    pub fn step_aside(&self, gpu: &str) -> bool {
        self.state().aside.insert(gpu.to_owned(), Instant::now() + ASIDE).is_none()
    }

    /// How long the thread's present call into NVML takes already; nothing where it is in none. One that waits for events
    /// takes no longer than half a second.
    #[must_use]
    pub fn busy_for(&self) -> Option<Duration> {
        self.timer.busy_for()
    }

    /// False where the thread has given no sign of life for longer than it can wait.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.state().alive.is_none_or(|it| it.elapsed() < SILENCE)
    }

    /// Asks the thread to end.
    pub fn close(&self) {
        self.state().is_closed = true;
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The GPUs to monitor now, and those that are paused; `None` when the thread should end.
    fn wanted(&self) -> Option<(BTreeMap<String, u32>, BTreeSet<String>)> {
        let mut state = self.state();
        let now = Instant::now();
        state.alive = Some(now);
        state.aside.retain(|_, until| now < *until);
        let (aside, wanted): (BTreeMap<String, u32>, BTreeMap<String, u32>) =
            state.gpus.clone().into_iter().partition(|(it, _)| state.aside.contains_key(it));
        (!state.is_closed).then(|| (wanted, aside.into_keys().collect()))
    }
}

/// What the thread knows.
struct Listener<'nvml> {
    nvml: &'nvml Nvml,
    monitor: &'nvml Monitor,
    nvml_events: mpsc::Sender<NvmlEvent>,
    set: Option<EventSet<'nvml>>,
    /// What has become of each GPU.
    listening: Listening,
    /// What was said of that last.
    reported: Listening,
    /// When a GPU was tried last.
    tried: Option<Instant>,
}

impl Listener<'_> {
    /// Brings the set to what is wanted and waits for one event. `None` ends the thread.
    fn round(&mut self) -> Option<()> {
        let (wanted, aside) = self.monitor.wanted()?;
        let busy = self.monitor.timer.begin();
        // A set cannot lose a GPU.
        if self.set.as_ref().is_some_and(|set| set.gpus().any(|it| !wanted.contains_key(it))) {
            debug!("pausing the monitoring of a GPU");
            self.set = None;
        }
        self.prepare(&wanted);
        drop(busy);
        self.listening.extend(aside.into_iter().map(|it| (it, Monitoring::Paused)));
        let Some(set) = self.set.as_ref().filter(|it| it.gpus().next().is_some()) else {
            self.send_listening()?;
            thread::park_timeout(PAUSE);
            return Some(());
        };
        // Report monitoring only after the first wait: a set may be created, and the wait for it can still fail.
        let busy = self.monitor.timer.begin();
        let waited = set.wait(WAIT);
        drop(busy);
        match waited {
            Ok(event) => {
                if let Some(event) = event {
                    self.nvml_events.blocking_send(NvmlEvent::Event(event)).ok()?;
                }
                self.send_listening()
            }
            Err(error) => {
                debug!(%error, "cannot wait for GPU events");
                self.set = None;
                for it in self.listening.values_mut().filter(|it| **it != Monitoring::Paused) {
                    *it = Monitoring::Failed(error.clone());
                }
                self.send_listening()?;
                thread::park_timeout(PAUSE);
                Some(())
            }
        }
    }

    /// Makes the set if there is none, and adds what it lacks.
    fn prepare(&mut self, wanted: &BTreeMap<String, u32>) {
        let is_new = self.set.is_none();
        // A paused GPU is tried at once.
        self.listening.retain(|it, now| wanted.contains_key(it) && *now != Monitoring::Paused);
        let mut set = match self.set.take().map_or_else(|| EventSet::new(self.nvml), Ok) {
            Ok(set) => set,
            Err(error) => {
                self.listening =
                    wanted.keys().map(|it| (it.clone(), Monitoring::Failed(error.clone()))).collect();
                return;
            }
        };
        let is_time = is_new || self.tried.is_none_or(|it| RETRY <= it.elapsed());
        for (gpu, index) in wanted {
            if !set.has(gpu) && (is_time || !self.listening.contains_key(gpu)) {
                self.listening.insert(
                    gpu.clone(),
                    set.add(gpu, *index).map_or_else(Monitoring::Failed, |()| Monitoring::Active),
                );
                self.tried = Some(Instant::now());
            }
        }
        self.set = Some(set);
    }

    /// Reports which GPUs are monitored now, if that changed. Missing event support is reported once and is no error.
    fn send_listening(&mut self) -> Option<()> {
        if self.listening == self.reported {
            return Some(());
        }
        for (gpu, now) in &self.listening {
            match now {
                _ if self.reported.get(gpu) == Some(now) => {}
                Monitoring::Active => debug!(gpu, "monitoring its events"),
                Monitoring::Paused => debug!(gpu, "monitoring of its events is paused"),
                Monitoring::Failed(error) if is_unsupported(error) => {
                    info!(gpu, %error, "no event support: its errors appear in the kernel log only");
                }
                Monitoring::Failed(error) => warn!(gpu, %error, "cannot monitor its events now"),
            }
        }
        self.reported = self.listening.clone();
        self.nvml_events.blocking_send(NvmlEvent::Listening(self.reported.clone())).ok()
    }
}

/// True where neither the driver nor the GPU can do it, however often it is asked.
#[must_use]
pub(crate) fn is_unsupported(error: &CallError) -> bool {
    [Code::FUNCTION_NOT_FOUND, Code::NOT_SUPPORTED].contains(&error.code)
}
