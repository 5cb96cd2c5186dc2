//! Follows the node label `nvidia.com/mig.config` and the layout file, and reports how the layout stands.
//!
//! `follow` is the loop, `source` reads the file, `demand` follows what the node's MigNode demands, `memory` is the last layout on
//! disk, `report` writes events and the state label. What a layout means is in `mig_model::layout`. No instance is created here.

mod demand;
mod follow;
mod memory;
mod report;
mod source;
mod state_label;
#[cfg(test)]
pub(crate) mod tests;

pub use follow::{LayoutFollower, LayoutFollowerParts};
pub use memory::{InForce, LayoutMemory};
pub use state_label::StateLabel;
