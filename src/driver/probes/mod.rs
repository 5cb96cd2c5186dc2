//! `/healthz`, `/readyz` and gRPC health: whether the process is alive, and whether claims can be served now.

mod grpc;
mod health;
mod serve;

pub use grpc::health_service;
pub use health::Health;
pub use serve::serve_health;
