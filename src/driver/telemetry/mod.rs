//! What the process says of itself: its log, whether it is ready, and its numbers.

mod bind;
mod grpc;
mod health;
mod logging;
pub mod metrics;
mod watchdog;

pub(crate) use grpc::health_service;
pub use health::{Health, HealthError, bind_health, serve_health};
pub use logging::{LogFormat, init_logging};
pub use watchdog::{Silent, Watchdog};
