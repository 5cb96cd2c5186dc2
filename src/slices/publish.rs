//! The loop that keeps the API server's slices as the inventory wants them.
//!
//! It reads before it writes, every time: the kubelet wipes a node's slices at its start, people delete things, and a
//! list of one node's slices is cheap. Where the API server drops counters (feature gate `DRAPartitionableDevices` off)
//! the overlapping devices are withdrawn and the loop keeps asking whether that has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::resource::v1::{Counter, CounterSet, ResourceSlice};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{Change, Owner, diff, lost_counters, quantity, render};
use crate::api::{NodeSlices, SliceError};
use crate::hardware::NodeState;
use crate::inventory::Inventory;

/// How long changes made by others are collected before they are looked at.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// How long a burst of changes may put the next look off.
const LONGEST_BURST: Duration = Duration::from_secs(5);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Full comparison even if nothing was heard: a watch may lose a deletion.
const RESYNC: Duration = Duration::from_secs(300);
/// How often a gate that is off is asked for again.
const GATE_RETRY: Duration = Duration::from_secs(30);

/// What is published, for readiness and people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// Nothing was accepted yet.
    Pending {
        /// Why not, or what is awaited.
        reason: String,
    },
    /// The API server has what is wanted.
    Complete {
        /// Slices.
        slices: usize,
        /// Devices in them.
        devices: usize,
    },
    /// The API server drops counters, so only devices that cannot overlap are published.
    WithoutCounters {
        /// Devices published all the same.
        devices: usize,
        /// Devices held back.
        withheld: usize,
    },
}

/// Keeps the slices of one node and driver.
#[derive(Debug)]
pub struct Publisher {
    api: NodeSlices,
    driver: String,
    node: String,
    report: watch::Sender<Publication>,
    /// Whether the API server keeps counters; `None` before it was asked.
    keeps_counters: Option<bool>,
    /// Resource versions of our own last writes, to tell them from those of others.
    written: BTreeMap<String, Option<String>>,
}

impl Publisher {
    /// Publishes for this node and driver, and reports how that stands.
    #[must_use]
    pub fn new(api: NodeSlices, node: &str, driver: &str, report: watch::Sender<Publication>) -> Self {
        let (driver, node) = (driver.to_owned(), node.to_owned());
        Self { api, driver, node, report, keeps_counters: None, written: BTreeMap::new() }
    }

    /// Runs until the sender of the node's state is gone.
    pub async fn run(mut self, mut node: watch::Receiver<NodeState>) {
        let mut changes = pin!(self.api.changes());
        loop {
            let state = node.borrow_and_update().clone();
            let pause = match (&state.hardware, state.held.is_empty()) {
                // Claims hold devices that cannot be described now; an allocated device is never withdrawn.
                (Err(reason), false) => {
                    self.report.send_replace(Publication::Pending { reason: reason.clone() });
                    RESYNC
                }
                _ => self.sync_or_report(&state).await,
            };
            tokio::select! {
                is_alive = self.news(&mut node, &state) => if !is_alive { return },
                () = self.foreign_change(&mut changes) => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// One round, and how long to wait before the next.
    async fn sync_or_report(&mut self, state: &NodeState) -> Duration {
        match self.sync(&state.inventory, &state.held).await {
            Ok(()) if self.keeps_counters == Some(false) => GATE_RETRY,
            Ok(()) => RESYNC,
            Err(error) if error.is_conflict => {
                debug!(%error, "slices changed underneath, reading again");
                DEBOUNCE
            }
            Err(error) => {
                let pending = Publication::Pending { reason: error.to_string() };
                if *self.report.borrow() != pending {
                    warn!(%error, "cannot publish resourceslices, trying again");
                }
                self.report.send_replace(pending);
                RETRY
            }
        }
    }

    /// Returns once something that is published differs from `seen`; false when nobody tells it any more. What claims hold
    /// changes with every pod, and matters only where it decides what is offered: with counters it does not.
    async fn news(&self, node: &mut watch::Receiver<NodeState>, seen: &NodeState) -> bool {
        while node.changed().await.is_ok() {
            let now = node.borrow_and_update();
            let held_matters = now.hardware.is_err() || self.keeps_counters == Some(false);
            if now.inventory != seen.inventory
                || now.hardware.as_ref().err() != seen.hardware.as_ref().err()
                || held_matters && now.held != seen.held
            {
                return true;
            }
        }
        false
    }

    /// Returns after somebody else changed our slices, and after the burst that often follows has ended.
    async fn foreign_change(&self, changes: &mut (impl Stream<Item = (String, Option<String>)> + Unpin)) {
        while let Some((name, version)) = changes.next().await {
            if version.is_none() || self.written.get(&name) != Some(&version) {
                let burst =
                    async { while timeout(DEBOUNCE, changes.next()).await.is_ok_and(|it| it.is_some()) {} };
                // A burst that does not end is no reason to wait for ever.
                let _ = timeout(LONGEST_BURST, burst).await;
                return;
            }
        }
        std::future::pending().await
    }

    async fn sync(&mut self, inventory: &Inventory, held: &BTreeSet<String>) -> Result<(), SliceError> {
        let node_uid = self.api.node_uid().await?;
        let owner = Owner { driver: self.driver.clone(), node: self.node.clone(), node_uid };
        let needs_counters = inventory.gpus.iter().any(|it| !it.counters.is_empty());
        let published = self.api.list().await?;
        // An update keeps the counters that a slice already has, whatever the gate says now; a new slice would lose them.
        let creates = published.len() < render(inventory, &owner).len();
        if needs_counters && (creates || self.keeps_counters != Some(true)) {
            self.set_gate(keeps_counters(&self.api, &owner).await?);
        }
        let reduced;
        let (offered, withheld) = if needs_counters && self.keeps_counters == Some(false) {
            reduced = inventory.without_overlaps(held);
            (&reduced, inventory.devices().count() - reduced.devices().count())
        } else {
            (inventory, 0)
        };
        let slices = render(offered, &owner);
        self.write(&slices, &published).await?;
        let devices = offered.devices().count();
        let publication = match withheld {
            0 => Publication::Complete { slices: slices.len(), devices },
            _ => Publication::WithoutCounters { devices, withheld },
        };
        self.report.send_if_modified(|it| {
            let changed = *it != publication;
            if changed {
                info!(slices = slices.len(), devices, withheld, "resourceslices published");
                it.clone_from(&publication);
            }
            changed
        });
        Ok(())
    }

    async fn write(
        &mut self,
        wanted: &[ResourceSlice],
        published: &[ResourceSlice],
    ) -> Result<(), SliceError> {
        for change in diff(wanted, published) {
            let stored = self.api.apply(&change).await?;
            debug!(?change, "resourceslice written");
            let (Change::Create(sent) | Change::Update(sent)) = &change else { continue };
            let Some(stored) = stored else { continue };
            if let Some(name) = &sent.metadata.name {
                self.written.insert(name.clone(), stored.metadata.resource_version.clone());
            }
            if lost_counters(sent, &stored) {
                self.set_gate(false);
                // Whatever was written is withdrawn by the next round, which starts at once.
                return Err(SliceError::lost_counters());
            }
        }
        Ok(())
    }

    fn set_gate(&mut self, keeps_counters: bool) {
        if self.keeps_counters != Some(keeps_counters) {
            self.keeps_counters = Some(keeps_counters);
            if keeps_counters {
                info!("the API server keeps counters: every placement is published");
            } else {
                warn!(
                    "kube-apiserver drops shared counters: only devices that cannot overlap are published; start \
                     kube-apiserver and kube-scheduler with --feature-gates=DRAPartitionableDevices=true"
                );
            }
        }
    }
}

/// Asks the API server whether it keeps the counters of slices (feature gate `DRAPartitionableDevices`). Stores nothing.
pub async fn keeps_counters(api: &NodeSlices, owner: &Owner) -> Result<bool, SliceError> {
    let probe = probe(owner);
    Ok(!lost_counters(&probe, &api.try_create(&probe).await?))
}

/// A slice that is never stored: it asks whether counters survive.
fn probe(owner: &Owner) -> ResourceSlice {
    let mut slices = render(&Inventory::default(), owner);
    let mut probe = slices.swap_remove(0);
    probe.metadata.name = Some(format!("probe-{}", probe.metadata.name.unwrap_or_default()));
    probe.spec.pool.name.push_str("/probe");
    probe.spec.pool.generation = 1;
    probe.spec.devices = None;
    let counters = [("probe".to_owned(), Counter { value: quantity::count(1) })].into();
    probe.spec.shared_counters = Some(vec![CounterSet { name: "probe".to_owned(), counters }]);
    probe
}
