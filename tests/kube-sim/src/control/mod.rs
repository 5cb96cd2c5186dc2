//! The loops of a control plane, as far as a pod with claims needs them: Deployments, StatefulSets, DaemonSets, Jobs and CronJobs
//! become pods, templates become claims, the scheduler allocates and binds, and what no pod uses any more is released.
//!
//! Every loop is a step over the whole state ("level-triggered"): it looks, and does what is missing. They run one after the
//! other whenever anything has changed.

mod claims;
mod disruption;
mod events;
mod extended;
mod jobs;
mod objects;
mod orphans;
mod owned;
mod quota;
mod release;
mod scheduler;
mod sets;
mod workloads;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::api::server::ApiServer;
use crate::api::store::Store;

pub use events::record as record_event;
pub(crate) use objects::finished;
pub use objects::{claim_name, extended_claim_name};

/// The running control plane; it stops when this is dropped.
#[derive(Debug)]
pub struct ControlPlane {
    settled: Arc<AtomicU64>,
    _stop: DropGuard,
}

impl ControlPlane {
    /// Starts the loops on a server's objects.
    #[must_use]
    pub fn start(server: &ApiServer) -> Self {
        let stop = CancellationToken::new();
        let store = server.store();
        let stopped = stop.clone();
        let settled = Arc::new(AtomicU64::new(0));
        let done = settled.clone();
        tokio::spawn(async move {
            let mut revisions = store.subscribe();
            loop {
                revisions.borrow_and_update();
                let before = store.revision();
                reconcile(&store);
                if store.revision() == before {
                    done.store(before, Ordering::Release);
                }
                tokio::select! {
                    () = stopped.cancelled() => return,
                    changed = revisions.changed() => if changed.is_err() { return },
                }
            }
        });
        Self { settled, _stop: stop.drop_guard() }
    }

    /// The last resource version at which the loops had nothing to do. Where it is the store's, they are idle.
    #[must_use]
    pub fn settled_at(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }
}

/// One round of every loop.
pub fn reconcile(store: &Store) {
    // Deployments last: their pods take one step more, so those of a Job that was created at the same time come first.
    jobs::reconcile(store);
    sets::reconcile(store);
    workloads::reconcile(store);
    orphans::reconcile(store);
    quota::reconcile(store);
    disruption::reconcile(store);
    claims::reconcile(store);
    release::reconcile(store);
    scheduler::reconcile(store);
}
