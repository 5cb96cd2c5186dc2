//! What stays published because it is allocated, although nothing of it is prepared here; see `kept`.
//!
//! What the node can still describe comes back into the inventory, as if it were prepared. Anything else, of a GPU that was
//! lost or of an instance that is gone, stays as it is published.

use std::collections::BTreeSet;
use std::time::Instant;

use k8s_openapi::api::resource::v1::ResourceSlice;

use super::by_sharing::is_of;
use super::{Devices, Pool, Publisher, names};
use crate::api::SliceError;
use crate::hardware::NodeState;

impl Publisher {
    /// Asks which devices are allocated, if some are about to go, and takes note of those that stay.
    pub(super) async fn keep_allocated(
        &mut self,
        state: &NodeState,
        published: &BTreeSet<String>,
    ) -> Result<(), SliceError> {
        let (inventory, held) = (&*state.inventory, &state.held);
        let mut known = names(inventory);
        known.extend(inventory.gpus.iter().flat_map(|it| &it.withheld).map(|it| it.name.to_string()));
        // Layouts see to what they withdraw, and so do GPUs that are not cut.
        let offered = if self.counts() { names(&self.offered(inventory, held)) } else { known.clone() };
        let is_cut = |name: &&String| !inventory.gpus.iter().any(|it| !it.can_be_cut() && is_of(name, it));
        let withheld = known.difference(&offered).filter(is_cut).cloned().collect();
        let published = published.iter().filter(is_cut).cloned().collect();
        let devices = Devices { offered: &(&offered | held), withheld: &withheld, published: &published };
        let read_at = Instant::now();
        if self.kept.asks(devices, read_at) {
            let allocated = self.parts.allocations.read().await?;
            self.kept.found(&allocated, devices, read_at);
        }
        let stays = |it: &&String| held.contains(*it) || self.kept.taken().contains(*it);
        self.strangers = published.difference(&known).filter(stays).cloned().collect();
        Ok(())
    }

    /// The pool that is published, without what only stays in it.
    pub(super) fn pool(&self, published: &[ResourceSlice]) -> Option<Pool> {
        let mut pool = Pool::of(published)?;
        pool.devices.retain(|it| !self.strangers.contains(it));
        Some(pool)
    }
}
