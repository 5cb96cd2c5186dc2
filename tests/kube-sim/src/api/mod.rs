//! The API server: a store of JSON objects behind plain HTTP, for the kinds that DRA touches.
//!
//! It refuses to be a general API server: no authentication, no admission but what a test sets, and of custom
//! resources only those of this project, where their definition is there.

pub mod clock;
mod custom;
pub mod discovery;
pub mod error;
pub(crate) mod eviction;
pub mod faults;
mod history;
mod http;
pub mod kinds;
pub mod patch;
mod plugins;
pub mod quota;
pub mod schema;
pub mod selector;
pub mod server;
pub mod store;
mod strategy;
pub mod table;
pub mod version;
mod watch;
