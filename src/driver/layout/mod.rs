//! Follows the node label `nvidia.com/mig.config` and the layout file, and reports how the layout stands.
//!
//! `follow` is the loop, `source` reads the file, `memory` is the last layout on disk. What a layout means is in
//! `mig_model::layout`. No instance is created here.

mod follow;
mod memory;
mod source;
mod state_label;
#[cfg(test)]
pub(crate) mod tests;

pub use follow::LayoutFollower;
pub use memory::LayoutMemory;
pub use state_label::StateLabel;
