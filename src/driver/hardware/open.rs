//! Opens NVML and reads the node.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::info;

use super::session::{HardwareError, Session};
use super::{Hardware, HardwareArgs};
use crate::host;
use crate::nvml::{Discovery, Sessions};
use crate::telemetry::metrics::Metrics;
use crate::threads;

/// Opens NVML.
#[derive(Debug)]
pub struct Opener {
    args: HardwareArgs,
    metrics: Metrics,
    hung_after: Duration,
    sessions: Sessions,
}

impl Opener {
    /// Opens it as the arguments say. A GPU whose thread is in one piece of work for longer than `hung_after` hangs.
    #[must_use]
    pub fn new(args: HardwareArgs, metrics: Metrics, hung_after: Duration) -> Self {
        Self { args, metrics, hung_after, sessions: Sessions::default() }
    }

    /// Opens NVML and reads the node. Blocks for as long as NVML itself takes; a GPU that does not answer is skipped.
    pub fn open(&self) -> Result<Hardware, HardwareError> {
        let args = &self.args;
        let boot_id = host::boot_id(&args.proc_root)?;
        let library = args.nvml_library()?;
        let nvml = self.sessions.open(&library)?;
        let session = Session {
            discovery: Discovery::new(Arc::clone(&nvml), args.nvml_step_time),
            nvml,
            hung_after: self.hung_after,
            threads: Mutex::default(),
            events: Arc::default(),
            sys_root: args.sys_root.clone(),
            is_stale: Arc::default(),
            metrics: self.metrics.clone(),
        };
        let opened = Hardware::discover(Arc::new(session), boot_id, None)?;
        opened.log_missing(None);
        let (facts, gpus) = (&opened.facts, opened.gpus.len());
        let driver = facts.driver_version.as_deref().unwrap_or("unknown");
        info!(library = %library.display(), driver, gpus, skipped = facts.skipped.len(), "NVML opened");
        Ok(opened)
    }
}

impl Hardware {
    /// Opens NVML once and reads the node, for a program that looks at it and ends. [`HardwareError::Hung`] where NVML does not
    /// answer in time.
    pub async fn open(args: HardwareArgs) -> Result<Self, HardwareError> {
        /// Nothing changes a GPU here.
        const NEVER: Duration = Duration::MAX;
        /// The driver goes on without it far earlier; here nothing else is to do.
        const STEPS: u32 = 6;
        let patience = args.nvml_step_time * STEPS;
        let open = move || Opener::new(args, Metrics::default(), NEVER).open();
        threads::run_within("open", patience, open).await?.unwrap_or(Err(HardwareError::Hung))
    }
}
