//! The allocator's decisions, one fact each. Longer than other files: it is a list, and all facts share its pools and claims.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

use std::collections::BTreeMap;

use dra_allocator::cel_env::EvaluationError;
use dra_allocator::{
    Abort, Allocated, ClaimRef, Cluster, DeviceId, Explanation, Features, Finding, PoolProblem, Refusal,
    SelectorPlace,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};
use serde_json::{Value, json};

const DRIVER: &str = "mig.dra-driver.dev";

/// A device of GPU `gpu` that takes the memory slices `slices`.
fn mig(gpu: usize, profile: &str, slices: std::ops::Range<usize>) -> Value {
    let counters: BTreeMap<String, Value> =
        slices.clone().map(|n| (format!("memory-slice-{n}"), json!({"value": "1"}))).collect();
    json!({"name": format!("gpu-{gpu}-mig-{profile}-{}", slices.start),
        "attributes": {"type": {"string": "mig"}, "profile": {"string": profile},
            "parentUUID": {"string": format!("GPU-{gpu}")}},
        "consumesCounters": [{"counterSet": format!("gpu-{gpu}"), "counters": counters}]})
}

/// The two slices of a pool: counters of `gpus` GPUs with 8 memory slices each, and the devices.
fn pool(gpus: usize, devices: Vec<Value>) -> Vec<ResourceSlice> {
    let counters: BTreeMap<String, Value> =
        (0..8).map(|n| (format!("memory-slice-{n}"), json!({"value": "1"}))).collect();
    let sets: Vec<Value> =
        (0..gpus).map(|g| json!({"name": format!("gpu-{g}"), "counters": counters})).collect();
    [json!({"sharedCounters": sets}), json!({"devices": devices})]
        .into_iter()
        .enumerate()
        .map(|(index, mut spec)| {
            spec["driver"] = json!(DRIVER);
            spec["nodeName"] = json!("node-0");
            spec["pool"] = json!({"name": "p", "generation": 1, "resourceSliceCount": 2});
            serde_json::from_value(json!({"metadata": {"name": format!("{index:05}")}, "spec": spec}))
                .unwrap()
        })
        .collect()
}

fn claim(devices: Value) -> ResourceClaim {
    serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {"devices": devices}})).unwrap()
}

fn profile(name: &str, profile: &str) -> Value {
    let cel = format!("device.attributes[\"{DRIVER}\"].profile == \"{profile}\"");
    json!({"name": name, "exactly": {"deviceClassName": "mig", "allocationMode": "ExactCount", "count": 1,
        "selectors": [{"cel": {"expression": cel}}]}})
}

struct Setup {
    slices: Vec<ResourceSlice>,
    allocated: Allocated,
}

fn setup(slices: Vec<ResourceSlice>) -> Setup {
    Setup { slices, allocated: Allocated::default() }
}

/// `count` requests for a 1g each.
fn small(count: usize) -> Vec<Value> {
    (0..count).map(|it| profile(&format!("r{it}"), "1g")).collect()
}

impl Setup {
    fn using(mut self, device: &str) -> Self {
        let id = DeviceId { driver: DRIVER.into(), pool: "p".into(), device: device.into() };
        let holder = ClaimRef { namespace: "default".into(), name: "other".into() };
        self.allocated.insert(id, holder);
        self
    }

    fn allocate(&self, claims: &[ResourceClaim]) -> Result<Vec<AllocationResult>, Refusal> {
        self.explain(claims).outcome
    }

    fn explain(&self, claims: &[ResourceClaim]) -> Explanation {
        self.explain_within(claims, 100_000)
    }

    fn explain_within(&self, claims: &[ResourceClaim], max_steps: usize) -> Explanation {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "node-0"}})).unwrap();
        let class: DeviceClass =
            serde_json::from_value(json!({"metadata": {"name": "mig"}, "spec": {"selectors": [
            {"cel": {"expression": format!("device.driver == \"{DRIVER}\"")}}]}}))
            .unwrap();
        Cluster::new(&self.slices, [&class], Features::ALL).with_max_steps(max_steps).explain(
            &node,
            claims,
            &self.allocated,
        )
    }

    /// `request: device` of everything allocated.
    fn devices(&self, claims: &[ResourceClaim]) -> Result<Vec<String>, Refusal> {
        let results = self.allocate(claims)?.into_iter().flat_map(|a| a.devices.unwrap().results.unwrap());
        Ok(results.map(|r| format!("{}: {}", r.request, r.device)).collect())
    }
}

fn requests(list: &[Value]) -> ResourceClaim {
    claim(json!({ "requests": list }))
}

#[test]
fn the_first_device_that_fits_in_slice_order_wins() {
    let pool = setup(pool(1, vec![mig(0, "1g", 6..7), mig(0, "1g", 0..1)]));
    assert_eq!(pool.devices(&[requests(&[profile("a", "1g")])]).unwrap(), ["a: gpu-0-mig-1g-6"]);
}

#[test]
fn overlapping_devices_are_never_given_together() {
    let devices = vec![mig(0, "3g", 0..4), mig(0, "1g", 0..1), mig(0, "1g", 4..5)];
    let pool = setup(pool(1, devices));
    let both = requests(&[profile("big", "3g"), profile("small", "1g")]);
    assert_eq!(pool.devices(&[both]).unwrap(), ["big: gpu-0-mig-3g-0", "small: gpu-0-mig-1g-4"]);
}

#[test]
fn counters_of_devices_in_use_are_gone() {
    let pool = setup(pool(1, vec![mig(0, "7g", 0..8), mig(0, "1g", 0..1)])).using("gpu-0-mig-1g-0");
    assert_eq!(pool.allocate(&[requests(&[profile("a", "7g")])]), Err(Refusal::DoesNotFit));
}

#[test]
fn an_earlier_choice_is_undone_when_a_later_request_needs_it() {
    // "any" takes gpu-0 first, then the 7g no longer fits anywhere: it must move to gpu-1's 1g.
    let pool = setup(pool(2, vec![mig(0, "1g", 0..1), mig(0, "7g", 0..8), mig(1, "1g", 0..1)]));
    let both = requests(&[profile("any", "1g"), profile("whole", "7g")]);
    assert_eq!(pool.devices(&[both]).unwrap(), ["any: gpu-1-mig-1g-0", "whole: gpu-0-mig-7g-0"]);
}

#[test]
fn all_claims_of_a_pod_fit_together_or_none_does() {
    let pool = setup(pool(1, vec![mig(0, "3g", 0..4), mig(0, "3g", 4..8)]));
    let one = requests(&[profile("a", "3g")]);
    assert_eq!(
        pool.devices(&[one.clone(), one.clone()]).unwrap(),
        ["a: gpu-0-mig-3g-0", "a: gpu-0-mig-3g-4"]
    );
    assert_eq!(pool.allocate(&[one.clone(), one.clone(), one]), Err(Refusal::DoesNotFit));
}

#[test]
fn the_first_available_alternative_that_fits_is_taken() {
    let alternative = |name: &str| {
        let mut one = profile(name, name)["exactly"].clone();
        one["name"] = json!(name);
        one
    };
    let wanted = requests(&[json!({"name": "r", "firstAvailable": [alternative("3g"), alternative("2g")]})]);
    let devices = || vec![mig(0, "2g", 0..2), mig(0, "3g", 0..4)];
    assert_eq!(
        setup(pool(1, devices())).devices(std::slice::from_ref(&wanted)).unwrap(),
        ["r/3g: gpu-0-mig-3g-0"]
    );
    let mut crowded = devices();
    crowded.push(mig(0, "1g", 3..4));
    let crowded = setup(pool(1, crowded)).using("gpu-0-mig-1g-3");
    assert_eq!(crowded.devices(&[wanted]).unwrap(), ["r/2g: gpu-0-mig-2g-0"]);
}

/// Two requests that need one parent, and devices of which only the last two have one.
fn siblings() -> (Vec<Value>, ResourceClaim) {
    let devices = vec![mig(0, "1g", 0..1), mig(1, "1g", 0..1), mig(1, "2g", 2..4)];
    let both = claim(json!({"requests": [profile("a", "1g"), profile("b", "2g")],
        "constraints": [{"matchAttribute": format!("{DRIVER}/parentUUID")}]}));
    (devices, both)
}

#[test]
fn match_attribute_keeps_requests_on_one_parent() {
    let (mut devices, both) = siblings();
    for device in &mut devices {
        device.as_object_mut().unwrap().remove("consumesCounters");
    }
    let pool = setup(pool(2, devices));
    assert_eq!(pool.devices(&[both]).unwrap(), ["a: gpu-1-mig-1g-0", "b: gpu-1-mig-2g-2"]);
}

#[test]
fn a_device_that_a_constraint_refuses_keeps_its_counters_for_the_rest_of_the_attempt() {
    // As upstream (kubernetes #140436): gpu-1's 2g is refused beside gpu-0's 1g, and then has no counters beside gpu-1's.
    let (devices, both) = siblings();
    let pool = setup(pool(2, devices));
    assert_eq!(pool.allocate(std::slice::from_ref(&both)), Err(Refusal::DoesNotFit));
    assert_eq!(pool.explain(&[both]).fits_without_leak, Some(true));
}

#[test]
fn count_takes_so_many_devices_and_all_takes_every_one() {
    let slices = || pool(1, (0..4).map(|n| mig(0, "1g", n..n + 1)).collect());
    let mut some = profile("a", "1g");
    some["exactly"]["count"] = json!(3);
    assert_eq!(setup(slices()).devices(&[requests(&[some])]).unwrap().len(), 3);
    let mut all = profile("a", "1g");
    all["exactly"]["allocationMode"] = json!("All");
    let all = requests(&[all]);
    assert_eq!(setup(slices()).devices(std::slice::from_ref(&all)).unwrap().len(), 4);
    assert_eq!(setup(slices()).using("gpu-0-mig-1g-0").allocate(&[all]), Err(Refusal::DoesNotFit));
}

/// A search of all orders in which requests can take devices tries so many candidates: with each of the devices that are left,
/// those that are left then.
fn steps(devices: usize) -> usize {
    (1..=devices).fold(0, |fewer, left| left * (1 + fewer))
}

#[test]
fn a_search_counts_every_order_of_equal_requests_as_upstream_tries_them() {
    for count in [3, 4, 5, 6] {
        let pool = setup(pool(1, (0..count).map(|n| mig(0, "1g", n..n + 1)).collect()));
        let wanted = [requests(&small(count + 1))];
        let within = |max_steps| pool.explain_within(&wanted, max_steps).outcome;
        assert_eq!(within(steps(count)), Err(Refusal::DoesNotFit), "{count}");
        assert_eq!(within(steps(count) - 1), Err(Refusal::TimedOut), "{count}");
    }
}

#[test]
fn equal_requests_in_several_claims_are_searched_in_every_order_too() {
    let pool = setup(pool(1, (0..5).map(|n| mig(0, "1g", n..n + 1)).collect()));
    let wanted = [requests(&small(2)), requests(&small(4))];
    let within = |max_steps| pool.explain_within(&wanted, max_steps).outcome;
    assert_eq!(within(steps(5)), Err(Refusal::DoesNotFit));
    assert_eq!(within(steps(5) - 1), Err(Refusal::TimedOut));
}

#[test]
fn a_request_that_cannot_be_served_beside_some_devices_may_be_beside_others() {
    // Three 1g and then the 3g: no three of the first four leave room for it, and the last two are found nevertheless.
    let mut devices: Vec<Value> = (0..4).map(|n| mig(0, "1g", n..n + 1)).collect();
    devices.extend([mig(1, "1g", 0..1), mig(1, "1g", 4..5), mig(0, "3g", 0..3)]);
    let pool = setup(pool(2, devices));
    let mut wanted = small(3);
    wanted.push(profile("big", "3g"));
    assert_eq!(
        pool.devices(&[requests(&wanted)]).unwrap(),
        ["r0: gpu-0-mig-1g-3", "r1: gpu-1-mig-1g-0", "r2: gpu-1-mig-1g-4", "big: gpu-0-mig-3g-0"]
    );
}

#[test]
fn equal_requests_under_a_constraint_get_devices_of_one_parent() {
    let mut devices: Vec<Value> = (0..3).map(|n| mig(0, "1g", n..n + 1)).collect();
    devices.extend((0..4).map(|n| mig(1, "1g", n..n + 1)));
    for device in &mut devices {
        device.as_object_mut().unwrap().remove("consumesCounters");
    }
    let pool = setup(pool(2, devices));
    let of_one_parent = |count| {
        let constraint = json!({"matchAttribute": format!("{DRIVER}/parentUUID")});
        [claim(json!({"requests": small(count), "constraints": [constraint]}))]
    };
    let devices = pool.devices(&of_one_parent(4)).unwrap();
    assert!(devices.iter().all(|it| it.contains("gpu-1")), "{devices:?}");
    assert_eq!(pool.allocate(&of_one_parent(5)), Err(Refusal::DoesNotFit));
}

#[test]
fn equal_requests_have_equal_reports_under_their_names() {
    let pool = setup(pool(1, vec![mig(0, "1g", 0..1), mig(0, "2g", 2..4)])).using("gpu-0-mig-2g-2");
    let mut wanted = small(2);
    wanted.push(profile("other", "2g"));
    let reports = pool.explain(&[requests(&wanted)]).requests;
    let names: Vec<&str> = reports.iter().map(|it| it.request.as_str()).collect();
    assert_eq!(names, ["r0", "r1", "other"]);
    assert_eq!((&reports[0].devices, reports[0].fits_alone), (&reports[1].devices, reports[1].fits_alone));
    assert!(reports[1].fits_alone && !reports[2].fits_alone);
}

#[test]
fn an_error_of_a_selector_names_its_own_request_among_equal_ones() {
    let mut broken = profile("a", "1g");
    broken["exactly"]["selectors"][0]["cel"]["expression"] = json!("device.attributes[\"x\"].none == 1");
    let mut second = broken.clone();
    second["name"] = json!("b");
    let explanation = setup(pool(1, vec![mig(0, "1g", 0..1)])).explain(&[requests(&[broken, second])]);
    for (report, name) in explanation.requests.iter().zip(["a", "b"]) {
        let Finding::SelectorError { error } = &report.devices[0].finding else { panic!("{report:?}") };
        assert!(
            matches!(&error.place, SelectorPlace::Request { request, .. } if request == name),
            "{error:?}"
        );
    }
}

#[test]
fn a_selector_answers_for_what_it_reads_of_each_device() {
    let with_parent = |gpu: usize, parent: &str| {
        let mut device = mig(gpu, "1g", 0..1);
        device["attributes"]["parentUUID"] = json!({"string": parent});
        device
    };
    let pool = setup(pool(3, vec![with_parent(0, "x"), with_parent(1, "y"), with_parent(2, "x")]));
    let of = |expression: &str| {
        let mut wanted = profile("a", "1g");
        wanted["exactly"]["selectors"] = json!([{"cel": {"expression": expression}}]);
        pool.devices(&[requests(&[wanted])])
    };
    let parent = format!("device.attributes[\"{DRIVER}\"].parentUUID");
    assert_eq!(of(&format!("{parent} == \"y\"")).unwrap(), ["a: gpu-1-mig-1g-0"]);
    let any =
        format!("device.attributes[\"{DRIVER}\"].exists(k, device.attributes[\"{DRIVER}\"][k] == \"y\")");
    assert_eq!(of(&any).unwrap(), ["a: gpu-1-mig-1g-0"]);
    assert_eq!(of(&format!("{parent} == \"z\"")), Err(Refusal::DoesNotFit));
}

#[test]
fn admin_access_may_have_what_others_use_and_blocks_no_request() {
    // A device without counters: with them upstream charges the admin, too.
    let mut device = mig(0, "1g", 0..1);
    device.as_object_mut().unwrap().remove("consumesCounters");
    let pool = setup(pool(1, vec![device])).using("gpu-0-mig-1g-0");
    let mut admin = profile("watch", "1g");
    admin["exactly"]["adminAccess"] = json!(true);
    assert_eq!(pool.devices(&[requests(&[admin])]).unwrap(), ["watch: gpu-0-mig-1g-0"]);
}

#[test]
fn only_the_newest_generation_of_a_pool_counts() {
    let mut slices = pool(1, vec![mig(0, "1g", 0..1)]);
    let mut newer = pool(1, vec![mig(0, "2g", 0..2)]);
    for slice in &mut newer {
        slice.spec.pool.generation = 2;
    }
    slices.extend(newer);
    let pool = setup(slices);
    assert_eq!(pool.allocate(&[requests(&[profile("a", "1g")])]), Err(Refusal::DoesNotFit));
    assert!(pool.allocate(&[requests(&[profile("a", "2g")])]).is_ok());
}

#[test]
fn an_incomplete_pool_gives_nothing() {
    let mut slices = pool(1, vec![mig(0, "1g", 0..1)]);
    for slice in &mut slices {
        slice.spec.pool.resource_slice_count = 3;
    }
    assert_eq!(setup(slices).allocate(&[requests(&[profile("a", "1g")])]), Err(Refusal::DoesNotFit));
}

#[test]
fn a_pool_with_a_dangling_counter_reference_is_invalid() {
    let refusal = setup(pool(0, vec![mig(0, "1g", 0..1)])).allocate(&[requests(&[profile("a", "1g")])]);
    assert!(matches!(refusal, Err(Refusal::InvalidPools(_))), "{refusal:?}");
}

#[test]
fn a_missing_attribute_aborts_the_pod() {
    let mut wanted = profile("a", "1g");
    wanted["exactly"]["selectors"][0]["cel"]["expression"] =
        json!(format!("device.attributes[\"{DRIVER}\"].colour == \"red\""));
    let refusal = setup(pool(1, vec![mig(0, "1g", 0..1)])).allocate(&[requests(&[wanted])]);
    assert!(matches!(refusal, Err(Refusal::Aborted(_))), "{refusal:?}");
}

#[test]
fn a_missing_device_class_aborts_the_pod() {
    let mut wanted = profile("a", "1g");
    wanted["exactly"]["deviceClassName"] = json!("nosuch");
    let refusal = setup(pool(1, vec![mig(0, "1g", 0..1)])).allocate(&[requests(&[wanted])]);
    let Err(Refusal::Aborted(abort)) = refusal else { panic!("{refusal:?}") };
    assert!(matches!(*abort, Abort::ClassMissing { .. }), "{abort:?}");
    assert_eq!(abort.to_string(), "claim c: device class nosuch does not exist");
}

#[test]
fn devices_of_another_node_are_not_given() {
    let mut slices = pool(1, vec![mig(0, "1g", 0..1)]);
    for slice in &mut slices {
        slice.spec.node_name = Some("node-1".into());
    }
    assert_eq!(setup(slices).allocate(&[requests(&[profile("a", "1g")])]), Err(Refusal::DoesNotFit));
}

#[test]
fn a_tainted_device_needs_a_toleration() {
    let mut device = mig(0, "1g", 0..1);
    device["taints"] = json!([{"key": "unhealthy", "effect": "NoSchedule"}]);
    let pool = setup(pool(1, vec![device]));
    let mut wanted = profile("a", "1g");
    assert_eq!(pool.allocate(&[requests(std::slice::from_ref(&wanted))]), Err(Refusal::DoesNotFit));
    wanted["exactly"]["tolerations"] = json!([{"key": "unhealthy", "operator": "Exists"}]);
    assert!(pool.allocate(&[requests(&[wanted])]).is_ok());
}

#[test]
fn the_allocation_names_the_node_and_carries_the_configuration() {
    let pool = setup(pool(1, vec![mig(0, "1g", 0..1)]));
    let opaque = json!({"opaque": {"driver": DRIVER, "parameters": {"kind": "X"}}});
    let wanted = claim(json!({"requests": [profile("a", "1g")], "config": [opaque]}));
    let allocation = serde_json::to_value(&pool.allocate(&[wanted]).unwrap()[0]).unwrap();
    assert_eq!(
        allocation,
        json!({
        "devices": {"results": [{"request": "a", "driver": DRIVER, "pool": "p", "device": "gpu-0-mig-1g-0"}],
            "config": [{"source": "FromClaim", "opaque": {"driver": DRIVER, "parameters": {"kind": "X"}}}]},
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": ["node-0"]}]}]}})
    );
}

#[test]
fn a_search_without_end_is_given_up() {
    let devices: Vec<Value> = (0..30)
        .map(|n| json!({"name": format!("d-{n}"), "attributes": {"profile": {"string": "1g"}}}))
        .collect();
    let mut many = profile("a", "1g");
    many["exactly"]["count"] = json!(15);
    let impossible = requests(&[many, profile("b", "7g")]);
    assert_eq!(setup(pool(1, devices)).allocate(&[impossible]), Err(Refusal::TimedOut));
}

/// What is found of each device for the only request.
fn findings(explanation: &Explanation) -> Vec<&Finding> {
    explanation.requests[0].devices.iter().map(|device| &device.finding).collect()
}

#[test]
fn an_explanation_names_what_stands_between_each_device_and_the_request() {
    let mut tainted = mig(1, "1g", 0..1);
    tainted["taints"] = json!([{"key": "unhealthy", "effect": "NoSchedule"}]);
    let devices = vec![mig(0, "1g", 0..1), mig(0, "1g", 1..2), mig(0, "2g", 0..2), tainted];
    let pool = setup(pool(2, devices)).using("gpu-0-mig-1g-0");
    let explanation = pool.explain(&[requests(&[profile("a", "1g")])]);
    let holder = ClaimRef { namespace: "default".into(), name: "other".into() };
    assert_eq!(
        findings(&explanation),
        [
            &Finding::Allocated { holder: holder.clone() },
            &Finding::Usable,
            &Finding::RequestSelectorFalse { selector: 0 },
            &Finding::Taint { key: "unhealthy".into(), value: None, effect: "NoSchedule".into() },
        ]
    );
    let explanation = pool.explain(&[requests(&[profile("a", "2g")])]);
    let Finding::Counters { shortages } = findings(&explanation)[2] else { panic!("{explanation:?}") };
    let [shortage] = shortages.as_slice() else { panic!("{shortages:?}") };
    assert_eq!((shortage.set.as_str(), shortage.counter.as_str()), ("gpu-0", "memory-slice-0"));
    assert_eq!((shortage.needed.to_string(), shortage.available.to_string()), ("1".into(), "0".into()));
    assert_eq!(
        (shortage.consumers[0].device.as_str(), &shortage.consumers[0].claim),
        ("gpu-0-mig-1g-0", &holder)
    );
}

/// The same devices with the memory that they have, 10 GiB a slice.
fn with_memory(mut slices: Vec<ResourceSlice>) -> Vec<ResourceSlice> {
    use k8s_openapi::api::resource::v1::Counter;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    let add = |counters: &mut BTreeMap<String, Counter>| {
        let memory = Counter { value: Quantity(format!("{}Gi", 10 * counters.len())) };
        counters.insert("memory".to_owned(), memory);
    };
    for slice in &mut slices {
        slice.spec.shared_counters.iter_mut().flatten().for_each(|it| add(&mut it.counters));
        let devices = slice.spec.devices.iter_mut().flatten();
        devices.flat_map(|it| it.consumes_counters.iter_mut().flatten()).for_each(|it| add(&mut it.counters));
    }
    slices
}

#[test]
fn what_only_consumes_memory_of_the_same_gpu_is_not_in_the_way() {
    let devices = vec![mig(0, "4g", 0..4), mig(0, "1g", 4..5), mig(0, "4g", 4..8), mig(0, "8g", 0..8)];
    let pool = setup(with_memory(pool(1, devices))).using("gpu-0-mig-4g-0").using("gpu-0-mig-1g-4");
    let in_the_way = |profile_name: &str, device: usize| {
        let explanation = pool.explain(&[requests(&[profile("a", profile_name)])]);
        let Finding::Counters { shortages } = findings(&explanation)[device] else {
            panic!("{explanation:?}")
        };
        assert!(shortages.iter().any(|it| it.counter == "memory"), "{shortages:?}");
        assert_eq!(shortages[0].counter, if device == 2 { "memory-slice-4" } else { "memory-slice-0" });
        let devices = dra_allocator::in_the_way(shortages).into_iter().map(|it| it.device.clone());
        devices.collect::<Vec<_>>()
    };
    assert_eq!(in_the_way("4g", 2), ["gpu-0-mig-1g-4"], "the other half is not in its way");
    assert_eq!(in_the_way("8g", 3), ["gpu-0-mig-4g-0", "gpu-0-mig-1g-4"]);
}

#[test]
fn an_overdrawn_counter_refuses_the_pool_and_the_explanation_names_it() {
    let devices = vec![mig(0, "1g", 0..1), mig(0, "2g", 0..2), mig(1, "1g", 0..1)];
    let pool = setup(pool(2, devices)).using("gpu-0-mig-1g-0").using("gpu-0-mig-2g-0");
    let explanation = pool.explain(&[requests(&[profile("a", "1g")])]);
    assert_eq!(explanation.outcome, Err(Refusal::DoesNotFit));
    let PoolProblem::Overdrawn { shortages } = &explanation.pools[0].problem else {
        panic!("{explanation:?}")
    };
    assert_eq!((shortages[0].set.as_str(), shortages[0].available.to_string()), ("gpu-0", "-1".to_owned()));
    assert_eq!(shortages[0].consumers.len(), 2);
    assert!(matches!(findings(&explanation)[2], Finding::Counters { .. }));
}

#[test]
fn an_explanation_names_the_device_and_the_key_that_a_selector_lacks() {
    let mut wanted = profile("a", "1g");
    wanted["exactly"]["selectors"][0]["cel"]["expression"] =
        json!(format!("device.attributes[\"{DRIVER}\"].colour == \"red\""));
    let explanation = setup(pool(1, vec![mig(0, "1g", 0..1)])).explain(&[requests(&[wanted])]);
    let Some(Abort::Selector(error)) = &explanation.requests[0].abort else { panic!("{explanation:?}") };
    assert_eq!((error.selector, error.device.device.as_str()), (0, "gpu-0-mig-1g-0"));
    assert_eq!(error.error, EvaluationError::NoSuchKey("colour".into()));
    let SelectorPlace::Request { request, .. } = &error.place else { panic!("{error:?}") };
    assert_eq!(request, "a");
}

#[test]
fn an_explanation_names_the_request_that_a_constraint_leaves_without_devices() {
    let devices = vec![mig(0, "1g", 0..1), mig(1, "2g", 0..2)];
    let both = claim(json!({"requests": [profile("a", "1g"), profile("b", "2g")],
        "constraints": [{"matchAttribute": format!("{DRIVER}/parentUUID")}]}));
    let explanation = setup(pool(2, devices)).explain(&[both]);
    let expected = Finding::Constraint {
        attribute: format!("{DRIVER}/parentUUID"),
        value: "GPU-0".into(),
        request: "b".into(),
        found: 0,
        needed: 1,
    };
    assert_eq!(findings(&explanation)[0], &expected);
    assert!(explanation.requests.iter().all(|request| request.fits_alone));
}

#[test]
fn an_incomplete_pool_of_another_node_aborts_a_request_for_all_devices() {
    let mut slices = pool(1, vec![mig(0, "1g", 0..1)]);
    let mut elsewhere = pool(1, vec![mig(0, "1g", 0..1)]);
    for slice in &mut elsewhere {
        slice.spec.node_name = Some("node-1".into());
        slice.spec.pool.name = "q".into();
        slice.spec.pool.resource_slice_count = 3;
    }
    slices.extend(elsewhere);
    let mut all = profile("a", "1g");
    all["exactly"]["allocationMode"] = json!("All");
    let explanation = setup(slices).explain(&[requests(&[all])]);
    let Err(Refusal::Aborted(abort)) = &explanation.outcome else { panic!("{explanation:?}") };
    assert!(matches!(&**abort, Abort::AllFromBrokenPool { pool, .. } if pool == "q"), "{abort:?}");
    assert_eq!(explanation.pools[0].problem, PoolProblem::Incomplete { found: 2, expected: 3 });
}

#[test]
fn devices_with_counters_need_the_feature() {
    let slices = pool(1, vec![mig(0, "1g", 0..1)]);
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "node-0"}})).unwrap();
    let class: DeviceClass =
        serde_json::from_value(json!({"metadata": {"name": "mig"}, "spec": {}})).unwrap();
    let allocate = |features| {
        Cluster::new(&slices, [&class], features).allocate(
            &node,
            &[requests(&[profile("a", "1g")])],
            &Allocated::default(),
        )
    };
    assert!(allocate(Features::ALL).is_ok());
    assert_eq!(allocate(Features::DEFAULTS), Err(Refusal::DoesNotFit));
}
