//! The loops of a control plane, as far as a pod with claims needs them: Deployments become pods, templates become claims, the
//! scheduler allocates and binds, and what no pod uses any more is released.
//!
//! Every loop is a step over the whole state ("level-triggered"): it looks, and does what is missing. They run one after the
//! other whenever anything has changed.

mod claims;
mod events;
mod release;
mod scheduler;
mod workloads;

use std::sync::Arc;

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
    _stop: DropGuard,
}

impl ControlPlane {
    /// Starts the loops on a server's objects.
    #[must_use]
    pub fn start(server: &ApiServer) -> Self {
        let stop = CancellationToken::new();
        let store = server.store();
        let stopped = stop.clone();
        tokio::spawn(async move {
            let mut revisions = store.subscribe();
            loop {
                revisions.borrow_and_update();
                reconcile(&store);
                tokio::select! {
                    () = stopped.cancelled() => return,
                    changed = revisions.changed() => if changed.is_err() { return },
                }
            }
        });
        Self { _stop: stop.drop_guard() }
    }
}

/// One round of every loop.
pub fn reconcile(store: &Store) {
    workloads::reconcile(store);
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
