//! The `eviction` subresource of pods, with PodDisruptionBudgets as `registry/core/pod/storage/eviction.go` has them.

use serde_json::{Value, json};

use super::clock;
use super::error::ApiError;
use super::kinds::{KindRef, POD, POD_DISRUPTION_BUDGET};
use super::patch::Patch;
use super::selector::Selectors;
use super::store::{DeleteOptions, Part, Store, WriteOptions};

/// Times that a budget is read again because another request has changed it.
const RETRIES: usize = 20;

/// Deletes a pod, if its budget allows that.
pub(super) fn evict(
    store: &Store,
    namespace: &str,
    name: &str,
    body: &Value,
    dry_run: bool,
) -> Result<(), ApiError> {
    if body["metadata"]["name"].as_str().is_some_and(|it| it != name) {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let options = &body["deleteOptions"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let dry_run = dry_run || options["dryRun"].as_array().is_some_and(|it| it.iter().any(|it| it == "All"));
    let deletion = DeleteOptions {
        uid: text(&options["preconditions"]["uid"]),
        resource_version: text(&options["preconditions"]["resourceVersion"]),
        grace_period_seconds: options["gracePeriodSeconds"].as_i64(),
        dry_run,
        orphan: false,
    };
    let pod = store.get(&POD, namespace, name)?;
    if let Some(wanted) = deletion.uid.as_ref().filter(|it| pod["metadata"]["uid"] != it.as_str()) {
        let why = format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {}",
            pod["metadata"]["uid"]
        );
        return Err(ApiError::conflict(&POD, name, &why));
    }
    let is_ended = ["Succeeded", "Failed", "Pending"].iter().any(|it| pod["status"]["phase"] == *it);
    if !is_ended && pod["metadata"]["deletionTimestamp"].is_null() {
        let budgets: Vec<Value> = store
            .list(&POD_DISRUPTION_BUDGET, Some(namespace), &Selectors::default())
            .0
            .iter()
            .filter(|it| selects(store, it, &pod))
            .map(|it| Value::clone(it))
            .collect();
        match budgets.as_slice() {
            [] => {}
            [budget] => take(store, namespace, budget, &pod, dry_run)?,
            _ => {
                let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
                return Err(ApiError::internal(why));
            }
        }
    }
    if !dry_run {
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastTransitionTime": clock::now()});
        let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|it| it["type"] != "DisruptionTarget");
        conditions.push(condition);
        let change = Patch::Merge(json!({"status": {"conditions": conditions}}));
        store.patch(&POD, namespace, name, &change, Part::Status, &WriteOptions::default())?;
    }
    store.delete(&POD, namespace, name, &deletion).map(drop)
}

/// The pods that a budget is about.
pub(crate) fn selected(store: &Store, budget: &Value) -> Vec<std::sync::Arc<Value>> {
    let selector = &budget["spec"]["selector"];
    let mut rules: Vec<String> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        rules.push(format!("{key}={}", value.as_str().unwrap_or("")));
    }
    for it in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = it["key"].as_str().unwrap_or("");
        let values: Vec<&str> =
            it["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        rules.push(match it["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("Exists") => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    let namespace = budget["metadata"]["namespace"].as_str();
    match Selectors::parse(&POD, &rules.join(","), "") {
        Ok(selectors) if !selector.is_null() => store.list(&POD, namespace, &selectors).0,
        _ => Vec::new(),
    }
}

fn selects(store: &Store, budget: &Value, pod: &Value) -> bool {
    selected(store, budget).iter().any(|it| it["metadata"]["uid"] == pod["metadata"]["uid"])
}

/// Whether a pod is ready.
pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|it| it.iter().any(|it| it["type"] == "Ready" && it["status"] == "True"))
}

/// Takes one disruption from a budget.
fn take(store: &Store, namespace: &str, budget: &Value, pod: &Value, dry_run: bool) -> Result<(), ApiError> {
    let kind: KindRef = &POD_DISRUPTION_BUDGET;
    let name = budget["metadata"]["name"].as_str().unwrap_or("");
    for _ in 0..RETRIES {
        let budget = store.get(kind, namespace, name)?;
        let status = &budget["status"];
        let number = |field: &str| status[field].as_i64().unwrap_or(0);
        if !is_ready(pod) {
            let is_healthy =
                0 < number("desiredHealthy") && number("desiredHealthy") <= number("currentHealthy");
            if budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" || is_healthy {
                return Ok(());
            }
        }
        if number("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
            let why = format!("The disruption budget {name} is still being processed by the server.");
            return Err(ApiError::budget(&why, Some(10)));
        }
        if number("disruptionsAllowed") <= 0 {
            let why = format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                number("desiredHealthy"),
                number("currentHealthy")
            );
            return Err(ApiError::budget(&why, None));
        }
        if dry_run {
            return Ok(());
        }
        let mut taken = Value::clone(&budget);
        taken["status"]["disruptionsAllowed"] = json!(number("disruptionsAllowed") - 1);
        let pod = pod["metadata"]["name"].as_str().unwrap_or("");
        taken["status"]["disruptedPods"][pod] = clock::now().into();
        match store.update(kind, namespace, name, taken, Part::Status, &WriteOptions::default()) {
            Err(error) if error.code == 409 => {}
            result => return result.map(drop),
        }
    }
    Err(ApiError::budget("the budget changes all the time", Some(10)))
}
