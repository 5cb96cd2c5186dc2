//! What the loops read of objects.

use std::sync::Arc;

use serde_json::Value;

use crate::api::kinds::KindRef;
use crate::api::selector::Selectors;
use crate::api::store::Store;

pub(super) fn all(store: &Store, kind: KindRef) -> Vec<Arc<Value>> {
    store.list(kind, None, &Selectors::default()).0
}

pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("")
}

/// Namespace and name.
pub(super) fn place(object: &Value) -> (&str, &str) {
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
