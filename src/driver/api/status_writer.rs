//! Reads and writes the entries of this driver in `status.devices` of one claim.
//!
//! Never changes entries of other drivers or other fields of a claim's status: it uses server-side apply with its own field
//! manager, and removes only what it wrote.

use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Error};
use mig_model::claim::ClaimRef;
use mig_model::hash::fnv1a;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::CALL_TIMEOUT;
use super::device_status::{Ailments, device_statuses, name_of, now};
use crate::checkpoint::Record;
use crate::telemetry::with_causes;

/// Writes the entries of this driver with its own field manager.
#[derive(Debug)]
pub(super) struct StatusWriter {
    api: Api<ResourceClaim>,
    pub(super) driver: String,
    manager: String,
}

/// What came of a call.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The claim says what the record says, ready since then.
    Reported(String),
    /// There is no such claim any more, or nothing of ours in it.
    Gone,
    /// The API server does not take it; saying it again would not help.
    Refused(String),
    /// The account may not do it.
    Forbidden(String),
    /// The field was dropped without a word: the feature gate is off.
    Dropped,
    /// The result is unknown.
    Failed(String),
}

impl StatusWriter {
    /// For this driver on this node.
    pub(super) fn new(client: Client, node: &str, driver: &str) -> Self {
        Self { api: Api::all(client), driver: driver.to_owned(), manager: manager(driver, node) }
    }

    /// Reads the claim and writes only what is missing or another.
    pub(super) async fn compare(&self, record: &Record, ailments: &Ailments) -> Outcome {
        let claim = &record.claim;
        let api = self.api.clone().constrain(&claim.namespace);
        let object = match timeout(CALL_TIMEOUT, api.get(&claim.name)).await {
            Ok(Ok(object)) if object.metadata.uid.as_deref() == Some(claim.uid.as_str()) => object,
            Ok(Ok(_)) => return Outcome::Gone,
            Ok(Err(error)) => return outcome_of(&error),
            Err(_) => return no_answer(),
        };
        let (there, since) = self.ours(&object);
        let since = since.unwrap_or_else(now);
        let mut wanted = device_statuses(record, &self.driver, &since, ailments);
        wanted.sort_by_key(name_of);
        if there == wanted { Outcome::Reported(since) } else { self.write(record, ailments, since).await }
    }

    pub(super) async fn write(&self, record: &Record, ailments: &Ailments, since: String) -> Outcome {
        let statuses = device_statuses(record, &self.driver, &since, ailments);
        match self.apply(&record.claim, Some(&statuses)).await {
            Ok(stored) => {
                let is_allocated = stored.status.as_ref().is_some_and(|it| it.allocation.is_some());
                let is_dropped = self.ours(&stored).0.is_empty();
                if is_allocated && is_dropped { Outcome::Dropped } else { Outcome::Reported(since) }
            }
            Err(outcome) => outcome,
        }
    }

    /// Applies our part of the status: these entries, or none.
    pub(super) async fn apply(
        &self,
        claim: &ClaimRef,
        statuses: Option<&[Value]>,
    ) -> Result<ResourceClaim, Outcome> {
        let mut object = json!({
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            // The UID is a precondition: another claim may have this name by now.
            "metadata": {"namespace": claim.namespace, "name": claim.name, "uid": claim.uid.as_str()},
        });
        if let Some(statuses) = statuses {
            object["status"] = json!({"devices": statuses});
        }
        let api = self.api.clone().constrain(&claim.namespace);
        // No other manager owns entries of these devices.
        let params = PatchParams::apply(&self.manager).force();
        match timeout(CALL_TIMEOUT, api.patch_status(&claim.name, &params, &Patch::Apply(&object))).await {
            Ok(Ok(stored)) => Ok(stored),
            Ok(Err(error)) => Err(outcome_of(&error)),
            Err(_) => Err(no_answer()),
        }
    }

    /// The entries of this driver in a claim, by device, and since when the first of those that are ready is.
    fn ours(&self, object: &ResourceClaim) -> (Vec<Value>, Option<String>) {
        let devices = object.status.iter().flat_map(|it| it.devices.iter().flatten());
        let ours = devices.filter(|it| it.driver == self.driver);
        let mut entries: Vec<Value> = ours.filter_map(|it| serde_json::to_value(it).ok()).collect();
        entries.sort_by_key(name_of);
        let is_ready = |it: &&Value| it.pointer("/conditions/0/status").is_none_or(|it| it == "True");
        let ready = entries.iter().find(is_ready);
        let since = ready.and_then(|it| it.pointer("/conditions/0/lastTransitionTime")?.as_str());
        let since = since.map(str::to_owned);
        (entries, since)
    }
}

fn outcome_of(error: &Error) -> Outcome {
    match error {
        Error::Api(status) => match status.code {
            404 => Outcome::Gone,
            // Another claim of this name, as some API servers put it. Any other conflict is a race that passes.
            409 if status.message.to_lowercase().contains("uid") => Outcome::Gone,
            // Not allocated any more, other devices, or (`metadata.uid: field is immutable`) another claim.
            400 | 422 => Outcome::Refused(status.message.clone()),
            401 | 403 => Outcome::Forbidden(status.message.clone()),
            _ => Outcome::Failed(status.message.clone()),
        },
        error => Outcome::Failed(with_causes(error)),
    }
}

fn no_answer() -> Outcome {
    Outcome::Failed(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))
}

/// Name under which the entries are applied. One for each node: a claim may have gone to another node, whose entries are
/// not ours to take back. The API server takes 128 bytes.
fn manager(driver: &str, node: &str) -> String {
    const LONGEST: usize = 128;
    let name = format!("{driver}/{node}");
    if name.len() <= LONGEST { name } else { format!("{driver}/{:016x}", fnv1a(node.as_bytes())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_known_by_driver_and_node_and_never_too_long() {
        assert_eq!(manager("mig.dra-driver.dev", "node-1"), "mig.dra-driver.dev/node-1");
        let long = manager("mig.dra-driver.dev", &"n".repeat(253));
        assert!(long.len() < 128 && long.starts_with("mig.dra-driver.dev/"), "{long}");
        assert_ne!(long, manager("mig.dra-driver.dev", &"m".repeat(253)));
    }
}
