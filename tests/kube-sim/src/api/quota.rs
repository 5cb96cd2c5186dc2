//! ResourceQuota: what claims and pods count for, and whether a quota has room for one more.
//!
//! Counted are claims, devices of each class, pods, and extended resources; other resources of a quota are not enforced.

use std::collections::BTreeMap;

use dra_allocator::quantity::Quantity;
use serde_json::Value;

/// Amounts by the names that a quota has for them.
pub type Usage = BTreeMap<String, i64>;

/// What a class is counted as, besides its devices: the extended resource names, where their feature gate is on.
pub(super) type ExtendedNames = BTreeMap<String, String>;

/// Devices that a request for all of them counts as.
const WORST_CASE: i64 = 32;

const CLAIMS: &str = "count/resourceclaims.resource.k8s.io";
const PODS: [&str; 2] = ["pods", "count/pods"];
const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
const IMPLICIT: &str = "requests.deviceclass.resource.kubernetes.io/";

/// Whether quotas enforce a resource here.
#[must_use]
pub fn is_enforced(resource: &str) -> bool {
    resource == CLAIMS
        || PODS.contains(&resource)
        || resource.ends_with(DEVICES)
        || resource.strip_prefix("requests.").is_some_and(is_extended_resource)
}

/// Whether a resource of a container is an extended resource, which a device class may serve.
#[must_use]
pub fn is_extended_resource(name: &str) -> bool {
    let Some((domain, _)) = name.split_once('/') else { return false };
    domain == "deviceclass.resource.kubernetes.io"
        || !(domain == "kubernetes.io"
            || domain.ends_with(".kubernetes.io")
            || domain.starts_with("requests."))
}

/// A whole amount of a resource; 0 where it cannot be read.
pub(crate) fn amount(value: &Value) -> i64 {
    let quantity = value.as_str().and_then(|text| Quantity::parse(text).ok());
    quantity.and_then(Quantity::as_integer).unwrap_or(0)
}

/// What a claim counts for. `names` are the extended resources by class where the gate is on; `pod` is the owner of a claim for
/// extended resources, whose own requests count already.
pub(super) fn of_claim(claim: &Value, names: Option<&ExtendedNames>, pod: Option<&Value>) -> Usage {
    let mut usage = Usage::from([(CLAIMS.to_owned(), 1)]);
    let asked = |resource: &str| {
        let containers = ["initContainers", "containers"].into_iter();
        let mut containers = containers.filter_map(|list| pod?["spec"][list].as_array()).flatten();
        containers.any(|container| !container["resources"]["requests"][resource].is_null())
    };
    let count = |request: &Value| match request["allocationMode"].as_str() {
        Some("All") => WORST_CASE,
        _ => request["count"].as_i64().unwrap_or(1),
    };
    for request in claim["spec"]["devices"]["requests"].as_array().into_iter().flatten() {
        let mut devices: BTreeMap<&str, i64> = BTreeMap::new();
        let alternatives = request["firstAvailable"].as_array().into_iter().flatten();
        for one in alternatives.chain(request.get("exactly")) {
            let most = devices.entry(one["deviceClassName"].as_str().unwrap_or("")).or_default();
            *most = count(one).max(*most);
        }
        for (class, count) in devices {
            *usage.entry(format!("{class}{DEVICES}")).or_default() += count;
            let Some(names) = names else { continue };
            if !asked(&format!("deviceclass.resource.kubernetes.io/{class}")) {
                *usage.entry(format!("{IMPLICIT}{class}")).or_default() += count;
            }
            if let Some(name) = names.get(class).filter(|name| !asked(name)) {
                *usage.entry(format!("requests.{name}")).or_default() += count;
            }
        }
    }
    usage
}

/// What a pod counts for: nothing any more once it has ended.
pub(super) fn of_pod(pod: &Value) -> Usage {
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return Usage::new();
    }
    let mut usage: Usage = PODS.into_iter().map(|name| (name.to_owned(), 1)).collect();
    let of = |list: &str| pod["spec"][list].as_array().cloned().unwrap_or_default();
    let requests =
        |container: &Value| container["resources"]["requests"].as_object().cloned().unwrap_or_default();
    for (name, value) in of("containers").iter().flat_map(requests) {
        if is_extended_resource(&name) {
            *usage.entry(format!("requests.{name}")).or_default() += amount(&value);
        }
    }
    // Init containers run before the others, so the larger of both counts.
    for (name, value) in of("initContainers").iter().flat_map(requests) {
        if is_extended_resource(&name) {
            let most = usage.entry(format!("requests.{name}")).or_default();
            *most = amount(&value).max(*most);
        }
    }
    usage
}

/// Adds one usage to another.
pub(super) fn add(sum: &mut Usage, usage: Usage) {
    for (name, amount) in usage {
        *sum.entry(name).or_default() += amount;
    }
}

/// Why a quota has no room for a new object, if it has none.
pub(super) fn exceeded(quota: &Value, used: &Usage, new: &Usage) -> Option<String> {
    let hard = quota["spec"]["hard"].as_object()?;
    let used = |name: &str| used.get(name).copied().unwrap_or(0);
    let over: Vec<(&String, i64, i64)> = new
        .iter()
        .filter_map(|(name, new)| Some((name, *new, amount(hard.get(name)?))))
        .filter(|(name, new, limit)| *new > 0 && used(name) + new > *limit)
        .collect();
    if over.is_empty() {
        return None;
    }
    let list = |of: &dyn Fn(&(&String, i64, i64)) -> i64| {
        let list: Vec<String> = over.iter().map(|it| format!("{}={}", it.0, of(it))).collect();
        list.join(",")
    };
    let name = quota["metadata"]["name"].as_str().unwrap_or("");
    let (requested, limited) = (list(&|it| it.1), list(&|it| it.2));
    let used = list(&|it| used(it.0));
    Some(format!("exceeded quota: {name}, requested: {requested}, used: {used}, limited: {limited}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(requests: &Value) -> Value {
        json!({"spec": {"devices": {"requests": requests}}})
    }

    #[test]
    fn a_claim_counts_the_devices_of_each_class_in_the_worst_case() {
        let requests = json!([
            {"name": "a", "exactly": {"deviceClassName": "x", "allocationMode": "ExactCount", "count": 2}},
            {"name": "b", "firstAvailable": [
                {"name": "1", "deviceClassName": "x", "count": 3}, {"name": "2", "deviceClassName": "y", "count": 1},
                {"name": "3", "deviceClassName": "x", "count": 1}]},
            {"name": "c", "exactly": {"deviceClassName": "z", "allocationMode": "All"}},
        ]);
        let usage = of_claim(&claim(&requests), None, None);
        let devices = |class: &str| usage[&format!("{class}.deviceclass.resource.k8s.io/devices")];
        assert_eq!((devices("x"), devices("y"), devices("z"), usage[CLAIMS]), (5, 1, 32, 1));
        assert_eq!(usage.len(), 4);
    }

    #[test]
    fn extended_resources_count_in_claims_with_the_gate_and_once_for_a_pod_and_its_claim() {
        let names = ExtendedNames::from([("x".to_owned(), "nvidia.com/x".to_owned())]);
        let claim = claim(&json!([{"name": "a", "exactly": {"deviceClassName": "x", "count": 1}}]));
        let alone = of_claim(&claim, Some(&names), None);
        assert_eq!(alone["requests.nvidia.com/x"], 1);
        assert_eq!(alone["requests.deviceclass.resource.kubernetes.io/x"], 1);
        let pod = json!({"spec": {"containers": [{"resources": {"requests": {"nvidia.com/x": "1", "cpu": "2"}}}],
            "initContainers": [{"resources": {"requests": {"nvidia.com/x": "3"}}}]}});
        let of_its_pod = of_claim(&claim, Some(&names), Some(&pod));
        assert_eq!(of_its_pod.get("requests.nvidia.com/x"), None);
        assert_eq!(
            of_pod(&pod),
            Usage::from([
                ("requests.nvidia.com/x".to_owned(), 3),
                ("pods".to_owned(), 1),
                ("count/pods".to_owned(), 1)
            ])
        );
    }

    #[test]
    fn only_what_is_asked_for_and_limited_can_exceed_a_quota() {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"a": "2", "b": "0"}}});
        let usage =
            |list: &[(&str, i64)]| list.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect::<Usage>();
        assert_eq!(exceeded(&quota, &usage(&[("a", 1), ("b", 7)]), &usage(&[("a", 1), ("c", 9)])), None);
        let why = exceeded(&quota, &usage(&[("a", 2)]), &usage(&[("a", 1)])).unwrap();
        assert_eq!(why, "exceeded quota: q, requested: a=1, used: a=2, limited: a=2");
        assert!(
            is_enforced("requests.nvidia.com/gpu")
                && !is_enforced("requests.cpu")
                && !is_enforced("limits.memory")
        );
    }
}
