//! What stays published because it is allocated, although nothing of it is prepared here; see `kept`.
//!
//! What the node can still describe comes back into the inventory, as if it were prepared. Anything else, of a GPU that was
//! lost or of an instance that is gone, is a stranger: it stays as it was published, and is remembered, so that neither a write
//! that fails halfway nor somebody who deletes the slices takes it from its claim.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use k8s_openapi::api::resource::v1::{CounterSet, Device, ResourceSlice};

use super::by_sharing::is_of;
use super::render::names as names_in;
use super::{Devices, Pool, Publisher, names};
use crate::api::SliceError;
use crate::hardware::NodeState;

/// Devices that the node cannot describe, as they were published. Pure.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    devices: BTreeMap<String, Device>,
    /// The counters that they take from.
    sets: BTreeMap<String, CounterSet>,
}

impl Strangers {
    pub(super) fn has(&self, name: &str) -> bool {
        self.devices.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.devices.keys()
    }

    pub(super) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    pub(super) fn sets(&self) -> impl Iterator<Item = &CounterSet> {
        self.sets.values()
    }

    /// These are strangers now, and no others. What is published of them counts, and what was before where that is nothing.
    pub(super) fn are(&mut self, names: &BTreeSet<String>, published: &[ResourceSlice]) {
        let mut devices = std::mem::take(&mut self.devices);
        let theirs = published.iter().flat_map(|it| it.spec.devices.iter().flatten());
        devices.extend(theirs.filter(|it| names.contains(&it.name)).map(|it| (it.name.clone(), it.clone())));
        devices.retain(|name, _| names.contains(name));
        let sets = published.iter().flat_map(|it| it.spec.shared_counters.iter().flatten());
        self.sets.extend(sets.map(|it| (it.name.clone(), it.clone())));
        let consumed = devices.values().flat_map(|it| it.consumes_counters.iter().flatten());
        let consumed: BTreeSet<&String> = consumed.map(|it| &it.counter_set).collect();
        self.sets.retain(|name, _| consumed.contains(name));
        self.devices = devices;
    }
}

impl Publisher {
    /// Asks which devices are allocated, if some are about to go, and takes note of those that stay.
    pub(super) async fn keep_allocated(
        &mut self,
        state: &NodeState,
        slices: &[ResourceSlice],
    ) -> Result<(), SliceError> {
        let (inventory, held) = (&*state.inventory, &state.held);
        let mut known = names(inventory);
        known.extend(inventory.gpus.iter().flat_map(|it| &it.withheld).map(|it| it.name.to_string()));
        let prepared = known.intersection(held).cloned().collect();
        // Layouts see to what they withdraw, and so do GPUs that are not cut.
        let offered = if self.counts() { names(&self.offered(inventory, held)) } else { known.clone() };
        let is_cut = |name: &&String| !inventory.gpus.iter().any(|it| !it.can_be_cut() && is_of(name, it));
        let withheld = known.difference(&offered).filter(is_cut).cloned().collect();
        // Also what somebody has deleted since: it may be allocated all the same.
        let published: BTreeSet<String> = slices.iter().flat_map(names_in).map(str::to_owned).collect();
        let before = published.iter().chain(self.published.iter().flatten()).chain(self.strangers.names());
        let before: BTreeSet<String> = before.filter(is_cut).cloned().collect();
        let devices = Devices {
            offered: &(&offered | held),
            withheld: &withheld,
            published: &before,
            prepared: &prepared,
        };
        if self.kept.asks(devices, Instant::now()) {
            let (read_at, allocated) = self.allocated().await?;
            self.kept.found(&allocated, devices, read_at);
        }
        self.before.clone_from(&before);
        let stays = |it: &&String| held.contains(*it) || self.kept.taken().contains(*it);
        let strangers = before.difference(&known).filter(stays).cloned().collect();
        self.strangers.are(&strangers, slices);
        Ok(())
    }

    /// What claims have by the API server, and when the read that told it began: one for each round.
    pub(super) async fn allocated(&mut self) -> Result<(Instant, BTreeSet<String>), SliceError> {
        if let Some(known) = &self.claims {
            return Ok(known.clone());
        }
        let read = (Instant::now(), self.parts.allocations.read().await?);
        Ok(self.claims.insert(read).clone())
    }

    /// The pool that is published, without what only stays in it.
    pub(super) fn pool(&self, published: &[ResourceSlice]) -> Option<Pool> {
        let mut pool = Pool::of(published)?;
        pool.devices.retain(|it| !self.strangers.has(it));
        Some(pool)
    }
}
