//! Layouts: how the GPUs of a node are offered where the API server keeps no counters, as devices that do not overlap.
//!
//! ```text
//! label nvidia.com/mig.config, layout file -> choice -> apply -> what is published
//! ```
//!
//! A layout only decides which devices can be allocated; each instance is created when a claim is prepared.

mod apply;
mod choice;
mod decision;
mod file;
mod fit;
mod mix;

pub use apply::{Offer, apply};
pub use choice::{GpuLayout, Layouts, Refusal, choose, default_layouts};
pub use decision::Decision;
pub use file::{Devices, Entry, FileError, LayoutFile, MAX_FILE};
pub use fit::{Candidate, dropped, fit};
pub use mix::{all_of, balanced, candidates, possible};
