//! Reports a call into NVML that does not return: log, event of the node, readiness.
//!
//! It does no more. A call that hangs, hangs in the kernel module; a thread there cannot be killed, the container with it
//! cannot end, and a new process would hang in the same place. Other GPUs go on being served, and so does this one once
//! it answers.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::{EventReason, Events};
use crate::hardware::NodeState;
use crate::nvml::CallTimer;

/// What does not answer (`NVML`, `GPU <uuid>`, or the events of GPUs), and for how long at the last check.
pub type HungCalls = BTreeMap<String, Duration>;

/// The thread that listens to all GPUs. It asks NVML to wait for half a second at most, so it does not count as hung when nothing
/// happens.
const EVENTS: &str = "events of GPUs";

/// Looks from time to time whether calls into NVML come back.
#[derive(Debug)]
pub struct Watchdog {
    /// The GPUs, each with its own thread.
    pub node: watch::Receiver<NodeState>,
    /// Opening NVML and looking for GPUs.
    pub opening: CallTimer,
    /// A call that takes longer is reported.
    pub patience: Duration,
    /// Kubernetes events.
    pub events: Events,
    /// The calls that hang now.
    pub report: watch::Sender<HungCalls>,
}

impl Watchdog {
    /// Looks until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        const LONGEST_PAUSE: Duration = Duration::from_secs(5);
        let mut clock = interval(LONGEST_PAUSE.min(self.patience / 4));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = clock.tick() => {}
            }
            let now = self.hung();
            let before = self.report.send_replace(now.clone());
            self.emit(&before, &now);
        }
    }

    fn hung(&self) -> HungCalls {
        let hardware = self.node.borrow().hardware.clone();
        let gpus = hardware.iter().flat_map(|it| it.busy());
        let gpus = gpus.map(|(gpu, time)| (format!("GPU {gpu}"), time));
        let opening = self.opening.busy_for().map(|time| ("NVML".to_owned(), time));
        let listening = hardware.iter().find_map(|it| it.listening_for());
        let listening = listening.map(|time| (EVENTS.to_owned(), time));
        gpus.chain(opening).chain(listening).filter(|(_, time)| self.patience <= *time).collect()
    }

    fn emit(&self, before: &HungCalls, now: &HungCalls) {
        for (what, time) in now.iter().filter(|(it, _)| !before.contains_key(*it)) {
            let seconds = time.as_secs();
            warn!(what, seconds, "a call into NVML does not come back");
            let meanwhile = match what.as_str() {
                EVENTS => "Errors of GPUs are not noticed until it does; claims are served.",
                _ => "Claims on it fail until it does; others are served.",
            };
            let note = format!(
                "{what}: a call into NVML has not come back for {seconds} s. {meanwhile} `nvidia-smi` and the kernel log of the \
                 node show more; a restart of the driver's pod does not help."
            );
            self.events.emit(EventReason::NvmlHung, note);
        }
        for what in before.keys().filter(|it| !now.contains_key(*it)) {
            info!(what, "the call into NVML came back");
            self.events.emit(EventReason::NvmlRecovered, format!("{what}: the call into NVML came back."));
        }
    }
}
