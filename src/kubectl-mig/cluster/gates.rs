//! The feature gates that decide what is published and allocated.

use dra_allocator::Features;

/// Feature gates of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gates {
    /// Those of the allocator.
    pub features: Features,
    /// `DRAExtendedResource`.
    pub extended_resource: bool,
}

impl Gates {
    /// The defaults of Kubernetes 1.36.
    pub const ALL: Self = Self { features: Features::ALL, extended_resource: true };
    /// The defaults of Kubernetes 1.34 and 1.35.
    pub const STOCK: Self = Self { features: Features::DEFAULTS, extended_resource: false };
}
