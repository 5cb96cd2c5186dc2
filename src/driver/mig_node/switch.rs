//! The flag that says whether the driver has to do with the MigNode of its node.

use clap::ValueEnum;

/// Whether the driver writes the status of its MigNode and follows the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MigNodeSwitch {
    /// It does, where the API server has the kind.
    On,
    /// It does not, and does not look for the kind.
    Off,
}
