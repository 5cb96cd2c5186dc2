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
mod orphans;
mod owned;
mod quota;
mod release;
mod scheduler;
mod sets;
mod workloads;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::api::kinds::KindRef;
use crate::api::selector::Selectors;
use crate::api::server::ApiServer;
use crate::api::store::Store;

pub use events::record as record_event;

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

fn all(store: &Store, kind: KindRef) -> Vec<Arc<Value>> {
    store.list(kind, None, &Selectors::default()).0
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("")
}

/// Namespace and name.
fn place(object: &Value) -> (&str, &str) {
    (text(&object["metadata"], "namespace"), text(&object["metadata"], "name"))
}

/// Whether a pod's containers will never run again.
pub(crate) fn finished(pod: &Value) -> bool {
    matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed")
}

/// The claim that the scheduler made for a pod's extended resources.
#[must_use]
pub fn extended_claim_name(pod: &Value) -> Option<&str> {
    pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"].as_str()
}

/// The claim that an entry of `spec.resourceClaims` stands for: named directly, or generated and noted in the status.
/// `None` while the generated one does not exist yet.
#[must_use]
pub fn claim_name(pod: &Value, entry: &Value) -> Option<String> {
    if let Some(name) = entry["resourceClaimName"].as_str() {
        return Some(name.to_owned());
    }
    let statuses = pod["status"]["resourceClaimStatuses"].as_array()?;
    let status = statuses.iter().find(|s| s["name"] == entry["name"])?;
    status["resourceClaimName"].as_str().map(str::to_owned)
}
