//! `/healthz`, `/readyz` and gRPC health: whether the process lives, and whether a pod could be served now.

mod grpc;
mod health;

pub use grpc::health_service;
pub use health::{Health, HealthError, bind_health, serve_health};
