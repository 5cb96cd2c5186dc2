//! What the process says of itself: its log, and whether it is ready.

mod health;
mod logging;

pub use health::{Health, HealthError, bind_health, serve_health};
pub use logging::{LogFormat, init_logging};
