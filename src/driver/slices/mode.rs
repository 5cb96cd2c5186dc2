//! The flag that says what is published.

use clap::ValueEnum;

/// What is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// `partitionable` where the API server keeps counters, else `layout`; follows when that changes.
    Auto,
    /// Every placement of every profile, kept apart by counters.
    Partitionable,
    /// Devices that don't overlap, chosen by a layout.
    Layout,
}
