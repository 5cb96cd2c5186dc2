//! How the slices stand. Pure.

use super::world::CounterSupport;

/// What is published, for readiness and people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// Nothing was accepted yet.
    Pending {
        /// Why not, or what is awaited.
        reason: String,
    },
    /// The API server has what is wanted.
    Complete {
        /// Slices.
        slices: usize,
        /// Devices in them.
        devices: usize,
        /// Whether counters keep devices apart; false where no GPU can be cut, so that nothing overlaps.
        is_counted: bool,
    },
    /// The API server has what the layouts allow at the moment; devices that don't overlap.
    Layout {
        /// Which decision on layouts it is.
        revision: u64,
        /// Slices.
        slices: usize,
        /// Devices in them.
        devices: usize,
        /// What is not yet as its layout says, and why.
        waiting: Vec<String>,
        /// True while devices that were withdrawn still keep others away.
        settling: bool,
    },
    /// The API server does not keep counters although they are insisted on, so only whole GPUs are published.
    WithoutCounters {
        /// What it does with them.
        support: CounterSupport,
        /// Devices published all the same.
        devices: usize,
        /// Devices held back.
        withheld: usize,
    },
}
