//! Creates a MIG device from parent, profile and placement, and destroys it.
//!
//! Runs on the GPU's own thread and takes one step at a time; each step is reported before the next is taken, so that
//! the caller can record it. Every step can be repeated: existing objects are found, missing ones are skipped. An
//! instance is changed only if its id, profile and placement are those of the record.

mod create;
mod destroy;
mod error;
mod existing;
mod lookup;
mod mode;

pub use create::{ensure, is_free};
pub use destroy::destroy;
pub use error::{Found, Holders, MigError, no_mig};
pub use existing::find_existing;
pub use lookup::{MigDevice, is_alive, is_gone, is_recorded};
pub use mode::{ModePolicy, release_mode, switch_mode};
