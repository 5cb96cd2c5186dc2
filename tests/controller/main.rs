//! The controller, as it is composed in production, on a simulated API server with its scheduler.
#![allow(clippy::unwrap_used, reason = "what fails in a test is the test")]

mod cluster;
mod docs;
mod election;
mod reasons;
mod scale;
