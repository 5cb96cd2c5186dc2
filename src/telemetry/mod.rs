//! What the process says of itself: its log, whether it is ready, and its numbers.

mod health;
mod logging;
pub mod metrics;

pub use health::{Health, HealthError, bind_health, serve_health};
pub use logging::{LogFormat, init_logging};
