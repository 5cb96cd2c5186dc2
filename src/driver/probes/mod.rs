//! `/healthz`, `/readyz` and gRPC health: whether the process is alive, and whether claims can be served now.

mod grpc;
mod health;

pub use grpc::health_service;
pub use health::{Health, HealthError, bind_health, serve_health};
