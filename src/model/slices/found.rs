//! What the last list of the claims has found. Pure.

use std::collections::BTreeSet;

use super::world::Claims;

/// What is kept of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// Devices that were allocated and not prepared; without those that were prepared since, of which the node knows itself.
    pub(super) pending: BTreeSet<String>,
    /// Devices that were prepared and not allocated any more.
    pub(super) left_over: BTreeSet<String>,
    /// How often the claims were looked at since.
    pub(super) looks: u32,
}

impl Found {
    pub(super) fn by(claims: &Claims, prepared: &BTreeSet<String>) -> Self {
        let pending = claims.allocated.difference(prepared).cloned().collect();
        Self { pending, left_over: prepared.difference(&claims.allocated).cloned().collect(), looks: 0 }
    }
}
