//! Layouts: how the GPUs of a node are offered where counters are not to be had, as devices that do not overlap.
//!
//! ```text
//! label nvidia.com/mig.config, layout file -> choice -> apply -> what is published
//! ```
//!
//! `file`, `fit`, `mix`, `choice`, `decision` and `apply` are functions from data to data; `follow` is the loop that reads the label and
//! the file (`source`) and reports how it goes. No instance is made here: a layout only decides which devices can be allocated, and each
//! of them is still made when a claim is prepared.

mod apply;
mod choice;
mod decision;
mod file;
mod fit;
mod follow;
mod memory;
mod mix;
mod source;
mod state_label;
#[cfg(test)]
pub(crate) mod tests;

pub use apply::{Offer, apply};
pub use choice::{GpuLayout, Layouts, Refusal, choose, default_layouts};
pub use decision::Decision;
pub use file::{Devices, Entry, FileError, LayoutFile, MAX_FILE};
pub use fit::{Candidate, dropped, fit};
pub use follow::LayoutFollower;
pub use memory::LayoutMemory;
pub use mix::{all_of, balanced, candidates, possible};
pub use state_label::StateLabel;
