//! What makes the publisher look again: the node's state, and what others do to its slices.

use std::time::Duration;

use futures::{Stream, StreamExt};
use mig_model::placement::Ranking;
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};

use super::Publisher;
use super::publish::DEBOUNCE;
use super::shelves::shelves;
use crate::hardware::NodeState;

/// How long a burst of changes may put the next look off.
const LONGEST_BURST: Duration = Duration::from_secs(5);

impl Publisher {
    /// Returns once what is published has to change; false when nobody tells the state any more.
    pub(super) async fn news(&self, node: &mut watch::Receiver<NodeState>, seen: &NodeState) -> bool {
        while node.changed().await.is_ok() {
            if self.is_news(&node.borrow_and_update(), seen) {
                return true;
            }
            let burst = async {
                while timeout(DEBOUNCE, node.changed()).await.is_ok_and(|it| it.is_ok()) {
                    if self.is_news(&node.borrow(), seen) {
                        return;
                    }
                }
            };
            let _ = timeout(LONGEST_BURST, burst).await;
            let now = node.borrow_and_update();
            if self.is_news(&now, seen) || !self.is_served(&now) {
                return true;
            }
        }
        false
    }

    /// True where something that is published differs from `seen`. What claims hold rarely matters: with a layout where it makes
    /// room for more of it, and where something stays published only because it is held.
    fn is_news(&self, now: &NodeState, seen: &NodeState) -> bool {
        now.inventory != seen.inventory
            || now.health != seen.health
            || now.hardware.as_ref().err() != seen.hardware.as_ref().err()
            || now.held != seen.held
                && (now.hardware.is_err() || self.makes_room(now) || self.may_lose_a_stranger(now))
    }

    fn may_lose_a_stranger(&self, now: &NodeState) -> bool {
        self.strangers.names().any(|it| !now.held.contains(it) && !self.kept.taken().contains(it))
    }

    /// True where the published slices have what is offered, in an order that leads to the choices of the ranking. Of a
    /// layout only what it makes room for counts.
    fn is_served(&self, state: &NodeState) -> bool {
        if !self.counts() {
            return true;
        }
        let inventory = state.inventory_with(self.kept.taken());
        let held = &state.held | self.kept.taken();
        let offered = self.offered(&inventory, &held);
        let ranking = Ranking::of(&offered, &held, self.parts.offer.policy);
        let shelves = shelves(&offered);
        let is_served = |(shelf, names): (&Vec<_>, &Vec<String>)| {
            let names = || names.iter().map(String::as_str);
            shelf.len() == names().count()
                && names().all(|it| ranking.place(it) < usize::MAX)
                && ranking.agrees_with(names())
        };
        shelves.len() == self.published.len() && shelves.iter().zip(&self.published).all(is_served)
    }

    /// Returns after somebody else changed our slices, and after the burst that often follows has ended. True where the watch
    /// began anew.
    pub(super) async fn foreign_change(
        &self,
        changes: &mut (impl Stream<Item = (String, Option<String>)> + Unpin),
    ) -> bool {
        sleep_until(self.overwritten.not_before()).await;
        while let Some((name, version)) = changes.next().await {
            if version.is_none() || self.written.get(&name) != Some(&version) {
                let mut is_restart = name.is_empty();
                let burst = async {
                    while let Ok(Some((name, _))) = timeout(DEBOUNCE, changes.next()).await {
                        is_restart |= name.is_empty();
                    }
                };
                // A burst that does not end is no reason to wait for ever.
                let _ = timeout(LONGEST_BURST, burst).await;
                return is_restart;
            }
        }
        std::future::pending().await
    }
}
