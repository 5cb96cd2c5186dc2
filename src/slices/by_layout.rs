//! What is published where the API server keeps no counters: devices that don't overlap, by layout.
//!
//! Nothing is published in place of a device before it is certain that nobody has taken it; see `transition`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::resource::v1::ResourceSlice;

use super::publish::{GATE_RETRY, RESYNC};
use super::{Owner, Publication, Publisher, names, render};
use crate::api::SliceError;
use crate::args::Mode;
use crate::hardware::NodeState;
use crate::inventory::Inventory;
use crate::layout::{Decision, GpuLayout, Layouts, apply};
use crate::placement::Ranking;

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
        let before: BTreeSet<String> = published
            .iter()
            .flat_map(|it| it.spec.devices.iter().flatten())
            .map(|it| it.name.clone())
            .collect();
        let (read_at, is_held_up) = self.read_claims(inventory, &decision.layouts, held, &before).await?;
        let held: BTreeSet<String> = held | &self.taken;
        let target = apply(inventory, &decision.layouts, &held);
        let pool = (!published.is_empty()).then_some(&before);
        let next = self.transition.step(inventory, &target.inventory, pool, &held, read_at);
        let ranking = Ranking::of(&next, &held, self.parts.offer.policy);
        let slices = self.publish(render(&next, &ranking, owner), &ranking, published).await?;
        self.transition.written(Instant::now());

        let devices = next.devices().count();
        // Also where nothing waits for it: what was taken in the meantime has to come back.
        let due = self.transition.next();
        let settling = due.is_some() && next != target.inventory;
        self.tell(if insists {
            let withheld = inventory.devices().count().saturating_sub(devices);
            Publication::WithoutCounters { devices, withheld }
        } else {
            let (revision, waiting) = (decision.revision, target.waiting);
            Publication::Layout { revision, slices, devices, waiting, settling }
        });
        let gate = if self.parts.mode == Mode::Layout { RESYNC } else { GATE_RETRY };
        // Claims that are allocated, but not prepared, are not heard of when they are released.
        let claims = if is_held_up { self.parts.settle_time } else { RESYNC };
        let due = due.map_or(RESYNC, |it| it.saturating_duration_since(Instant::now()));
        Ok(gate.min(claims).min(due))
    }

    /// Asks which devices are allocated, if something is to change. Returns from when the answer is, and whether allocations
    /// that are not prepared stand in the way of a layout.
    async fn read_claims(
        &mut self,
        inventory: &Inventory,
        layouts: &Layouts,
        held: &BTreeSet<String>,
        published: &BTreeSet<String>,
    ) -> Result<(Instant, bool), SliceError> {
        let now = Instant::now();
        let wanted = names(&apply(inventory, layouts, held).inventory);
        if wanted == *published && self.transition.next().is_none() {
            self.taken.clear();
            return Ok((now, false));
        }
        self.taken = self.parts.allocations.read().await?;
        let possible = names(&apply(inventory, layouts, &(held | &self.taken)).inventory);
        Ok((now, possible != wanted))
    }
}
