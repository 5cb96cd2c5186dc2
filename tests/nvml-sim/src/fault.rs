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
    /// A GPU whose events somebody listens to is in use: its MIG mode cannot be switched, and no instance of it destroyed,
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

/// Latencies of real hardware as far as anyone has told: assumptions (reference 3.2), for sandboxes and
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
    /// The name of the C function.
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
}

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
}

/// The plan for a call, and whether a counter in `faults` has moved.
pub(crate) fn plan(config: &Config, faults: &mut Vec<Fault>, call: &str, gpu: Option<usize>) -> (Plan, bool) {
    let mut plan =
        Plan { latency_ms: config.latency_ms.get(call).copied().unwrap_or(0.0), ..Plan::default() };
    let mut moved = false;
    for fault in faults.iter_mut() {
        if fault.call != call || (fault.gpu.is_some() && fault.gpu != gpu) {
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
        }
    }
    faults.retain(|fault| fault.times != Some(0));
    (plan, moved)
}
