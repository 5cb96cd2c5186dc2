//! What makes the publisher look again: the node's state, and what others do to its slices.

use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};

use super::Publisher;
use super::pauses::DEBOUNCE;
use super::publish::view;
use crate::hardware::NodeState;

/// How long a burst of changes may put the next look off.
const LONGEST_BURST: Duration = Duration::from_secs(5);

impl Publisher {
    /// Returns once what is published has to change; false when the sender of the state is gone.
    pub(super) async fn triggered(&self, node: &mut watch::Receiver<NodeState>, seen: &NodeState) -> bool {
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

    fn is_news(&self, now: &NodeState, seen: &NodeState) -> bool {
        let layout = self.parts.layouts.borrow();
        self.world(now, &layout).is_news(&self.memory, &view(seen))
    }

    /// True where what claims hold now makes no other order of the published devices necessary.
    fn is_served(&self, now: &NodeState) -> bool {
        let layout = self.parts.layouts.borrow();
        self.world(now, &layout).is_served(&self.memory, Instant::now())
    }

    /// Returns after another program changed the slices of this driver, and after the burst that often follows has ended. True where the watch
    /// began again.
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
