//! One question to the allocator, in JSON that other implementations can read, too.

use dra_allocator::{Allocated, ClaimRef, Cluster, DeviceId, Explanation, Features, Finding, Refusal};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};
use serde_json::{Value, json};

/// A question.
pub(crate) struct Case {
    pub(crate) features: Features,
    pub(crate) node: Node,
    pub(crate) slices: Vec<ResourceSlice>,
    pub(crate) classes: Vec<DeviceClass>,
    pub(crate) allocated: Allocated,
    pub(crate) claims: Vec<ResourceClaim>,
}

fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    T::deserialize(value).unwrap_or_else(|error| panic!("{error} in {value}"))
}

impl Case {
    pub(crate) fn read(case: &Value) -> Self {
        let on = |name: &str| case["features"][name] == true;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut allocated = Allocated::default();
        for id in case["inUse"].as_array().into_iter().flatten() {
            let id = DeviceId {
                driver: text(&id["Driver"]),
                pool: text(&id["Pool"]),
                device: text(&id["Device"]),
            };
            allocated.insert(id, ClaimRef { namespace: "default".into(), name: "other".into() });
        }
        Self {
            features: Features {
                admin_access: on("AdminAccess"),
                device_taints: on("DeviceTaints"),
                partitionable_devices: on("PartitionableDevices"),
                prioritized_list: on("PrioritizedList"),
            },
            node: typed(&case["node"]),
            slices: typed(&case["slices"]),
            classes: typed(&case["classes"]),
            allocated,
            claims: typed(&case["claims"]),
        }
    }

    pub(crate) fn explain(&self) -> Explanation {
        Cluster::new(&self.slices, &self.classes, self.features).explain(
            &self.node,
            &self.claims,
            &self.allocated,
        )
    }
}

/// The answer as upstream's is recorded: the outcome, and the allocations of a `yes`.
pub(crate) fn answer(outcome: &Result<Vec<AllocationResult>, Refusal>) -> Value {
    match outcome {
        Ok(allocations) => json!({"outcome": "yes", "allocations": allocations}),
        Err(Refusal::DoesNotFit) => json!({"outcome": "no"}),
        Err(Refusal::InvalidPools(_)) => json!({"outcome": "invalidPools"}),
        Err(Refusal::TimedOut) => json!({"outcome": "timeout"}),
        Err(Refusal::Aborted(_)) => json!({"outcome": "error"}),
    }
}

/// What does not fit together in an explanation.
pub(crate) fn contradictions(case: &Case, explanation: &Explanation) -> Vec<String> {
    let mut found = Vec::new();
    let report = |claim: usize, request: &str| {
        explanation.requests.iter().find(|r| r.claim_index == claim && r.request == request)
    };
    match &explanation.outcome {
        Ok(allocations) => {
            for (claim, allocation) in allocations.iter().enumerate() {
                for result in allocation.devices.iter().flat_map(|d| d.results.iter().flatten()) {
                    let finding = report(claim, &result.request).and_then(|report| {
                        let same = |d: &&dra_allocator::DeviceReport| {
                            d.id.device == result.device
                                && d.id.pool == result.pool
                                && d.id.driver == result.driver
                        };
                        report.devices.iter().find(same).map(|d| &d.finding)
                    });
                    if finding != Some(&Finding::Usable) {
                        found.push(format!("{} has {}: {finding:?}", result.request, result.device));
                    }
                }
            }
        }
        Err(Refusal::Aborted(_)) => {
            let reported = explanation.requests.iter().any(|r| r.abort.is_some());
            let joint = case.claims.iter().any(|claim| {
                claim.spec.devices.as_ref().is_some_and(|devices| {
                    devices.constraints.is_some() || devices.requests.iter().flatten().count() > 1
                })
            });
            if !reported && !joint {
                found.push("aborted without a report".to_owned());
            }
        }
        Err(_) => {
            let single = explanation.requests.len() == 1 && case.claims.len() == 1;
            let constrained =
                case.claims.iter().any(|c| c.spec.devices.as_ref().is_some_and(|d| d.constraints.is_some()));
            if single && !constrained && explanation.requests[0].fits_alone {
                found.push("the only request fits alone, but not in the pod".to_owned());
            }
        }
    }
    found
}

/// The part of an answer that is compared, normalized: empty lists are absent.
pub(crate) fn essence(answer: &Value) -> Value {
    let mut essence = json!({"outcome": answer["outcome"]});
    if answer["outcome"] == "yes" {
        essence["allocations"] = answer["allocations"].clone();
        strip(&mut essence);
    }
    essence
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(strip);
            map.retain(|_, v| !v.is_null() && *v != json!([]) && *v != json!({}));
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}
