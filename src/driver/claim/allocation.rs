//! Reads the allocation of a claim, as far as it concerns this driver. Pure.

use k8s_openapi::api::resource::v1::{AllocationResult, DeviceRequestAllocationResult, ResourceClaim};

use mig_model::claim::ClaimRef;

use super::config;

/// Results that an allocation has at most (AllocationResultsMaxSize in staging/src/k8s.io/api/resource/v1/types.go).
const MOST_RESULTS: usize = 32;

/// A device that was allocated to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllocatedDevice {
    /// Device name.
    pub device: String,
    /// Pool.
    pub pool: String,
    /// Requests of the claim that it satisfies; `<request>/<alternative>` where one of several was taken.
    pub requests: Vec<String>,
    /// Whether it was given with adminAccess alone, beside the claims that hold it.
    pub admin_access: bool,
}

/// A claim that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// Nothing was allocated.
    #[error("ResourceClaim {0} is not allocated")]
    NotAllocated(ClaimRef),
    /// More devices than an API server lets an allocation have.
    #[error(
        "the allocation of ResourceClaim {0} has more than {MOST_RESULTS} results, which no API server allows; delete the \
         claim"
    )]
    TooMany(ClaimRef),
    /// A configuration for this driver that says more than what holds anyway.
    #[error(
        "ResourceClaim {claim} (or its DeviceClass) carries an opaque configuration for driver {driver} that cannot be \
         honoured: {reason}; remove it"
    )]
    Config {
        /// The claim.
        claim: ClaimRef,
        /// Driver name.
        driver: String,
        /// What of it.
        reason: String,
    },
}

/// The devices that this driver has to prepare for a claim. Results and configurations of other drivers are not ours to
/// look at. A claim without any result of this driver gives an empty list.
pub fn allocated_devices(
    claim: &ClaimRef,
    object: &ResourceClaim,
    driver: &str,
) -> Result<Vec<AllocatedDevice>, AllocationError> {
    let allocation = object.status.as_ref().and_then(|it| it.allocation.as_ref());
    let allocation = allocation.ok_or_else(|| AllocationError::NotAllocated(claim.clone()))?;
    if MOST_RESULTS < results(allocation).count() {
        return Err(AllocationError::TooMany(claim.clone()));
    }
    let mut devices: Vec<AllocatedDevice> = Vec::new();
    for result in results(allocation).filter(|it| it.driver == driver) {
        let request = result.request.clone();
        let admin_access = result.admin_access == Some(true);
        let same = |it: &&mut AllocatedDevice| it.device == result.device && it.pool == result.pool;
        match devices.iter_mut().find(same) {
            Some(known) => {
                // One request holds it, whatever another one asks of it.
                known.admin_access &= admin_access;
                if !known.requests.contains(&request) {
                    known.requests.push(request);
                }
            }
            None => devices.push(AllocatedDevice {
                device: result.device.clone(),
                pool: result.pool.clone(),
                requests: vec![request],
                admin_access,
            }),
        }
    }
    if let Some(reason) = config_refusal(allocation, driver, &devices) {
        return Err(AllocationError::Config { claim: claim.clone(), driver: driver.to_owned(), reason });
    }
    Ok(devices)
}

/// The name of a request, without that of the alternative that was taken.
pub(super) fn base_of(request: &str) -> &str {
    request.split('/').next().unwrap_or_default()
}

fn results(allocation: &AllocationResult) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    allocation.devices.iter().flat_map(|it| it.results.iter().flatten())
}

/// Why the configurations for these devices cannot be honoured. One that names requests is about these alone; the name of a
/// request without an alternative stands for all of its alternatives.
fn config_refusal(
    allocation: &AllocationResult,
    driver: &str,
    devices: &[AllocatedDevice],
) -> Option<String> {
    let names = |named: &String, request: &String| named == request || named == base_of(request);
    let is_about =
        |named: &String, it: &AllocatedDevice| it.requests.iter().any(|request| names(named, request));
    let is_ours = |requests: &[String]| match requests {
        [] => !devices.is_empty(),
        named => named.iter().any(|named| devices.iter().any(|it| is_about(named, it))),
    };
    let configs = allocation.devices.iter().flat_map(|it| it.config.iter().flatten());
    let mut ours = configs.filter(|it| is_ours(it.requests.as_deref().unwrap_or_default()));
    ours.find_map(|it| {
        let opaque = it.opaque.as_ref().filter(|it| it.driver == driver)?;
        config::refusal(&opaque.parameters.0)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(devices: Value) -> Result<Vec<AllocatedDevice>, AllocationError> {
        let claim =
            ClaimRef { namespace: "ns".to_owned(), name: "c".to_owned(), uid: "u-1".parse().unwrap() };
        let object = json!({
            "metadata": {"name": "c"}, "spec": {}, "status": {"allocation": {"devices": devices}},
        });
        allocated_devices(&claim, &serde_json::from_value(object).unwrap(), "mig.dra-driver.dev")
    }

    fn result(request: &str, driver: &str, device: &str) -> Value {
        json!({"request": request, "driver": driver, "pool": "p", "device": device})
    }

    #[test]
    fn results_of_other_drivers_are_not_ours() {
        let found = check(json!({
            "results": [result("net", "nic.example.com", "eth1"), result("gpu/small", "mig.dra-driver.dev", "d1")],
            "config": [{"source": "FromClaim", "opaque": {"driver": "nic.example.com", "parameters": {}}}],
        }));
        let requests = vec!["gpu/small".to_owned()];
        assert_eq!(
            found,
            Ok(vec![AllocatedDevice {
                device: "d1".to_owned(),
                pool: "p".to_owned(),
                requests,
                admin_access: false
            }])
        );
    }

    #[test]
    fn a_configuration_that_the_driver_does_not_know_is_refused() {
        let config =
            json!([{"source": "FromClass", "opaque": {"driver": "mig.dra-driver.dev", "parameters": {}}}]);
        let ours = result("gpu", "mig.dra-driver.dev", "d1");
        let found = check(json!({"results": [ours], "config": config}));
        assert!(matches!(found, Err(AllocationError::Config { .. })));
        let other = result("net", "nic.example.com", "eth1");
        assert_eq!(check(json!({"results": [other], "config": config})), Ok(Vec::new()));
    }

    #[test]
    fn a_configuration_is_judged_where_it_is_about_a_device_of_this_driver() {
        let mps = json!({
            "apiVersion": "resource.nvidia.com/v1beta1", "kind": "MigDeviceConfig", "sharing": {"strategy": "MPS"},
        });
        let found = |requests: Value| {
            let opaque = json!({"driver": "mig.dra-driver.dev", "parameters": mps});
            check(json!({
                "results": [result("gpu/small", "mig.dra-driver.dev", "d1"), result("net", "nic.example.com", "e")],
                "config": [{"source": "FromClaim", "requests": requests, "opaque": opaque}],
            }))
        };
        for requests in [json!([]), json!(["gpu"]), json!(["net", "gpu/small"])] {
            let error = found(requests.clone()).unwrap_err().to_string();
            assert!(error.contains("asks for MPS") && error.ends_with("remove it"), "{requests}: {error}");
        }
        for requests in [json!(["net"]), json!(["gpu/large"])] {
            assert_eq!(found(requests).unwrap().len(), 1, "it is about another device");
        }
    }

    #[test]
    fn a_device_has_admin_access_where_no_request_of_the_claim_holds_it() {
        let held = result("gpu", "mig.dra-driver.dev", "d1");
        let mut admin = result("monitor", "mig.dra-driver.dev", "d1");
        admin["adminAccess"] = json!(true);
        let check = |results: &[&Value]| check(json!({"results": results})).unwrap()[0].admin_access;
        assert!(check(&[&admin]));
        assert!(!check(&[&admin, &held]) && !check(&[&held, &admin]) && !check(&[&held]));
    }

    #[test]
    fn an_allocation_without_end_is_refused() {
        let results = |count| {
            let devices: Vec<Value> =
                (0..count).map(|it| result("a", "mig.dra-driver.dev", &format!("d{it}"))).collect();
            check(json!({"results": devices}))
        };
        assert_eq!(results(32).unwrap().len(), 32);
        assert!(matches!(results(33), Err(AllocationError::TooMany(_))));
    }

    #[test]
    fn one_device_for_two_requests_is_prepared_once() {
        let found = check(json!({
            "results": [result("a", "mig.dra-driver.dev", "d1"), result("b", "mig.dra-driver.dev", "d1")],
        }));
        assert_eq!(found.unwrap()[0].requests, ["a", "b"]);
    }
}
