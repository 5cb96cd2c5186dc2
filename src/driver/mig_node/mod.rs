//! The MigNode of this node: one watch of it for every part of the driver, and its status.
//!
//! `watch` hands out what the API server has, `report` makes the status of what the driver knows (no call), `writer` writes it
//! where it differs. What the spec demands is followed elsewhere; what became of it comes here as a
//! [`mig_model::mig_node::Followed`].

mod report;
mod switch;
mod watch;
mod writer;

pub use switch::MigNodeSwitch;
pub use watch::watch_own;
pub use writer::{StatusParts, StatusWriter};
