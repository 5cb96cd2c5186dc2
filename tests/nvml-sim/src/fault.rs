//! What a test or an operator may do to calls: delay them, fail them, crash the caller. Data and matching
//! only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::code::Code;

/// `config.json`: switches of the node. Every field may be left out.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Without it `nvmlInit` answers DRIVER_NOT_LOADED.
    pub driver_loaded: bool,
    /// The caller is not root: privileged calls answer NO_PERMISSION.
    pub unprivileged: bool,
    /// GPU instance ids of one size run from the right, as on some boards.
    pub permuted_gi_ids: bool,
    /// A GPU whose events a client listens to is in use: its MIG mode cannot be switched, and no instance of it destroyed,
    /// until the event set is freed. No document says so of any driver; a program that copes with it need not know.
    pub events_hold_gpus: bool,
    /// Write each call to `calls.jsonl`.
    pub log_calls: bool,
    /// Time that a call takes before its effect, milliseconds, by the name of the call. Calls with a latency
    /// are serial per GPU, as on hardware.
    pub latency_ms: BTreeMap<String, f64>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            driver_loaded: true,
            unprivileged: false,
            permuted_gi_ids: false,
            events_hold_gpus: false,
            log_calls: false,
            latency_ms: BTreeMap::new(),
        }
    }
}

/// Latencies of real hardware as far as is reported: assumptions (reference 3.2), for sandboxes and
/// demonstrations.
pub const HARDWARE_LATENCY_MS: &[(&str, f64)] = &[
    ("nvmlDeviceCreateGpuInstance", 300.0),
    ("nvmlDeviceCreateGpuInstanceWithPlacement", 300.0),
    ("nvmlGpuInstanceCreateComputeInstance", 100.0),
    ("nvmlGpuInstanceCreateComputeInstanceWithPlacement", 100.0),
    ("nvmlGpuInstanceDestroy", 300.0),
    ("nvmlComputeInstanceDestroy", 100.0),
    ("nvmlDeviceSetMigMode", 1500.0),
];

/// One planted fault: `faults.json` is a list of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The name of the C function; [`ANY_CALL`] is any.
    pub call: String,
    /// Only calls for the GPU of this index; `None` is any.
    #[serde(default)]
    pub gpu: Option<usize>,
    /// Let this many matching calls pass first.
    #[serde(default)]
    pub skip: u32,
    /// Then strike this often; `None` is until cleared.
    #[serde(default)]
    pub times: Option<u32>,
    /// What happens.
    pub action: Action,
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Answer this code without any effect.
    Return(u32),
    /// Take effect, then answer this code.
    ReturnAfter(u32),
    /// End the calling process with [`CRASH_STATUS`] before the effect.
    CrashBefore,
    /// End it after the effect.
    CrashAfter,
    /// Take this many milliseconds longer.
    Latency(f64),
    /// Do not come back before the fault is removed.
    Hang,
}

/// Stands for every function, where a fault names one.
pub const ANY_CALL: &str = "*";

/// Exit status of a process that a fault has ended.
pub const CRASH_STATUS: i32 = 86;

impl Fault {
    /// Every call of that name answers `code`.
    pub fn returning(call: &str, code: Code) -> Fault {
        Fault::new(call, Action::Return(code.0))
    }

    /// Every call of that name does `action`.
    pub fn new(call: &str, action: Action) -> Fault {
        Fault { call: call.into(), gpu: None, skip: 0, times: None, action }
    }

    /// Every call about this GPU hangs until the fault is removed.
    pub fn hanging_gpu(gpu: usize) -> Fault {
        Fault::new(ANY_CALL, Action::Hang).on_gpu(gpu)
    }

    /// Every call of that name hangs until the fault is removed.
    pub fn hanging(call: &str) -> Fault {
        Fault::new(call, Action::Hang)
    }

    fn is_about(&self, call: &str, gpu: Option<usize>) -> bool {
        (self.call == call || self.call == ANY_CALL) && (self.gpu.is_none() || self.gpu == gpu)
    }

    /// Only for one GPU.
    pub fn on_gpu(self, gpu: usize) -> Fault {
        Fault { gpu: Some(gpu), ..self }
    }

    /// Only after `skip` calls.
    pub fn skipping(self, skip: u32) -> Fault {
        Fault { skip, ..self }
    }

    /// Only so often.
    pub fn times(self, times: u32) -> Fault {
        Fault { times: Some(times), ..self }
    }
}

/// What one call has to suffer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) latency_ms: f64,
    pub(crate) refuse: Option<Code>,
    pub(crate) report: Option<Code>,
    pub(crate) crash_before: bool,
    pub(crate) crash_after: bool,
    pub(crate) hangs: bool,
}

/// The plan for a call, and whether a counter in `faults` has moved.
pub(crate) fn plan(config: &Config, faults: &mut Vec<Fault>, call: &str, gpu: Option<usize>) -> (Plan, bool) {
    let mut plan =
        Plan { latency_ms: config.latency_ms.get(call).copied().unwrap_or(0.0), ..Plan::default() };
    let mut moved = false;
    for fault in faults.iter_mut() {
        if !fault.is_about(call, gpu) {
            continue;
        }
        if fault.skip > 0 {
            fault.skip -= 1;
            moved = true;
            continue;
        }
        if let Some(times) = &mut fault.times {
            if *times == 0 {
                continue;
            }
            *times -= 1;
            moved = true;
        }
        match fault.action {
            Action::Return(code) => plan.refuse = plan.refuse.or(Some(Code(code))),
            Action::ReturnAfter(code) => plan.report = plan.report.or(Some(Code(code))),
            Action::CrashBefore => plan.crash_before = true,
            Action::CrashAfter => plan.crash_after = true,
            Action::Latency(ms) => plan.latency_ms += ms,
            Action::Hang => plan.hangs = true,
        }
    }
    // What hangs is let go by removing the fault.
    faults.retain(|fault| fault.times != Some(0) || fault.action == Action::Hang);
    (plan, moved)
}

/// Whether a call that hangs has not been let go yet.
pub(crate) fn still_hangs(faults: &[Fault], call: &str, gpu: Option<usize>) -> bool {
    faults.iter().any(|fault| fault.action == Action::Hang && fault.is_about(call, gpu))
}
