//! When what the node knows by itself makes another round necessary. Pure.

use std::time::Instant;

use crate::placement::Ranking;

use super::layout_mode::makes_room;
use super::memory::Memory;
use super::packing::packing;
use super::world::{NodeView, World};
use crate::layout::hidden;

impl World<'_> {
    /// True where something that is published differs from when the node was as in `seen`. What claims hold rarely matters: with
    /// a layout where it makes room for more of it, on a GPU that is held back, and where something stays published only because
    /// it is held.
    #[must_use]
    pub fn is_news(&self, memory: &Memory, seen: &NodeView<'_>) -> bool {
        let now = &self.node;
        let hides = |node: &NodeView<'_>| hidden(node.inventory, &self.layout.held_back, node.held);
        now.inventory != seen.inventory
            || now.health != seen.health
            || now.inputs.err() != seen.inputs.err()
            || now.held != seen.held
                && (now.inputs.is_err()
                    || !self.is_counted() && makes_room(memory, self, seen)
                    || self.is_counted() && hides(now) != hides(seen)
                    || memory.may_lose_undescribed(now.held))
    }

    /// True where the published slices have what is offered, in an order that leads to choices as good as those of the ranking, or
    /// that may not change yet. Of a layout only what it makes room for counts.
    #[must_use]
    pub fn is_served(&self, memory: &Memory, now: Instant) -> bool {
        if !self.is_counted() {
            return true;
        }
        let inventory = self.node.inventory_with(memory.retained());
        let held = self.node.held | memory.retained();
        let offered = self.offered(&inventory, &held);
        let ranking = Ranking::of(&offered, &held, self.settings.placement);
        let wanted = packing(&offered);
        let is_served = |(slice, names): (&Vec<_>, &Vec<String>)| {
            let names = || names.iter().map(String::as_str);
            slice.len() == names().count()
                && names().all(|it| ranking.place(it) < usize::MAX)
                && (ranking.agrees_with(names()) || !memory.may_reorder(names(), now))
        };
        wanted.len() == memory.published().len() && wanted.iter().zip(memory.published()).all(is_served)
    }
}
