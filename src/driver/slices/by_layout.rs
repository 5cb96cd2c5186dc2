//! What is published where the API server keeps no counters: devices that don't overlap, by layout.
//!
//! Nothing is published in place of a device before it is certain that nobody has taken it; see `transition`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::resource::v1::ResourceSlice;
use mig_model::inventory::Inventory;
use mig_model::placement::Ranking;

use super::publish::{GATE_RETRY, RESYNC};
use super::{CounterSupport, Held, Owner, Pool, Publication, Publisher, names, render};
use crate::api::SliceError;
use crate::hardware::NodeState;
use crate::layout::{Decision, GpuLayout, Layouts, apply};
use crate::slices::Mode;

/// Why nothing is published while the node's label is not known: free space must not be cut twice.
const NO_LABELS: &str = "the node's labels are not read yet; the driver's service account must be allowed to list and watch nodes";

impl Publisher {
    /// Whether other devices are to be published because of what claims hold now.
    pub(super) fn makes_room(&self, now: &NodeState) -> bool {
        let layouts = self.layouts(&now.inventory).layouts;
        let held = &now.held | &self.taken;
        !self.counts()
            && names(&apply(&now.inventory, &layouts, &held).inventory) != *self.transition.published()
    }

    /// How GPUs are to be cut. Whoever insists on counters that are dropped gets whole ones.
    fn layouts(&self, inventory: &Inventory) -> Decision {
        match self.parts.mode {
            Mode::Partitionable => {
                let whole = inventory.gpus.iter().map(|it| (it.counter_set.clone(), GpuLayout::Whole));
                Decision { layouts: whole.collect(), ..Decision::default() }
            }
            Mode::Auto | Mode::Layout => self.parts.layouts.borrow().clone(),
        }
    }

    /// Publishes what the layouts allow at the moment, and says when to look again.
    pub(super) async fn publish_layout(
        &mut self,
        inventory: &Inventory,
        held: &BTreeSet<String>,
        published: &[ResourceSlice],
        owner: &Owner,
    ) -> Result<Duration, SliceError> {
        let insists = self.parts.mode == Mode::Partitionable;
        let decision = self.layouts(inventory);
        if decision.revision == 0 && !insists && !inventory.gpus.is_empty() {
            self.tell(Publication::Pending { reason: NO_LABELS.to_owned() });
            return Ok(RESYNC);
        }
        let pool = self.pool(published);
        let (read_at, is_held_up) =
            self.read_claims(inventory, &decision.layouts, held, pool.as_ref()).await?;
        let prepared = held;
        let held: BTreeSet<String> = prepared | &self.taken;
        let target = apply(inventory, &decision.layouts, &held);
        // Where nothing changes, nobody asked.
        let allocated = if self.taken.is_empty() { prepared } else { &self.taken };
        let claims = Held { prepared, allocated, read_at };
        let next = self.transition.step(inventory, &target.inventory, pool.as_ref(), claims);
        self.kept.leave_to_layouts();
        let ranking = Ranking::of(&next, &held, self.parts.offer.policy);
        let slices =
            self.publish(render(&next, &ranking, owner), &ranking, prepared, published, owner).await?;
        self.transition.written(Instant::now());

        let devices = next.devices().count();
        let settling =
            !self.transition.is_open() || self.transition.next().is_some() && next != target.inventory;
        self.tell(if insists {
            let withheld = inventory.devices().count().saturating_sub(devices);
            let support = self.counters.unwrap_or(CounterSupport::Dropped);
            Publication::WithoutCounters { support, devices, withheld }
        } else {
            let (revision, waiting) = (decision.revision, target.waiting);
            Publication::Layout { revision, slices, devices, waiting, settling }
        });
        let gate = if self.parts.mode == Mode::Layout { RESYNC } else { GATE_RETRY };
        // Claims that are allocated, but not prepared, are not heard of when they are released.
        let claims = if is_held_up { self.parts.settle_time } else { RESYNC };
        // Also where nothing waits for it: what was taken in the meantime has to come back.
        Ok(gate.min(claims).min(self.due()))
    }

    /// Asks which devices are allocated, if something is to change. Returns from when the answer is, and whether allocations
    /// that are not prepared stand in the way of a layout.
    async fn read_claims(
        &mut self,
        inventory: &Inventory,
        layouts: &Layouts,
        held: &BTreeSet<String>,
        published: Option<&Pool>,
    ) -> Result<(Instant, bool), SliceError> {
        let now = Instant::now();
        let wanted = names(&apply(inventory, layouts, held).inventory);
        let is_there = published.is_some_and(|it| it.is_open && !it.is_counted && it.devices == wanted);
        if is_there && self.transition.next().is_none() {
            self.taken.clear();
            return Ok((now, false));
        }
        let (read_at, allocated) = self.allocated().await?;
        self.taken = allocated;
        let possible = names(&apply(inventory, layouts, &(held | &self.taken)).inventory);
        Ok((read_at, possible != wanted))
    }
}
