//! Log and metrics of the process. Imports no other module of the driver.

mod args;
pub mod metrics;

pub use args::OutputFormat;
pub use mig_telemetry::{
    HealthError, LogFormat, bind_health, init_logging, log_level, seconds, stop_on_signal, with_causes,
};
