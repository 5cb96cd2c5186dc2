//! The flag that says who writes the state of a layout.

use clap::ValueEnum;

/// Whether the state of a layout is written to the node's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StateLabel {
    /// It is.
    On,
    /// It is not; another program owns the label.
    Off,
}
