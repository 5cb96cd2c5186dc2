use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{CounterSet, Device};
use nvml_sim::Model;
use serde_json::{Value, json};

use super::*;
use crate::claim::ClaimRef;
use crate::inventory::{DeviceName, Gpu, MigAccess, OfferPolicy, inventory_on};
use crate::placement::{Policy, Ranking};
use crate::simulated::{gpus, node_facts};
use crate::slices::{Owner, render};

/// The object of a node with these GPUs, as a program reads it that has nothing else.
fn read(gpus: &[Gpu], policy: &OfferPolicy) -> MigNode {
    let inventory = inventory_on(&node_facts(), gpus, policy);
    let published = inventory.devices().map(|it| it.name.to_string()).collect();
    let held = policy.held.iter().map(|it| (it.clone(), None)).collect();
    let problems = BTreeMap::new();
    let seen = Observed {
        gpus,
        policy,
        inventory: &inventory,
        published: &published,
        held: &held,
        problems: &problems,
        is_counted: true,
    };
    let status = MigNodeStatus { gpus: describe(&seen), ..MigNodeStatus::default() };
    let object = MigNode { status: Some(status), ..MigNode::default() };
    let object: MigNode = serde_json::from_str(&serde_json::to_string(&object).unwrap()).unwrap();
    assert_eq!(object.invalid, Invalid::default());
    object
}

/// Devices and counter sets that the driver publishes where counters keep devices apart.
fn published(gpus: &[Gpu], policy: &OfferPolicy) -> (BTreeMap<String, Device>, BTreeMap<String, CounterSet>) {
    let inventory = inventory_on(&node_facts(), gpus, policy);
    let ranking = Ranking::of(&inventory, &policy.held, Policy::Pack);
    let owner = Owner { driver: "d".to_owned(), node: "n".to_owned(), node_uid: "u".to_owned() };
    let slices = render(&inventory, &ranking, &owner);
    let devices = slices.iter().flat_map(|it| it.spec.devices.iter().flatten());
    let sets = slices.iter().flat_map(|it| it.spec.shared_counters.iter().flatten());
    (
        devices.map(|it| (it.name.clone(), it.clone())).collect(),
        sets.map(|it| (it.name.clone(), it.clone())).collect(),
    )
}

fn possible_of(object: &MigNode) -> (BTreeMap<String, Device>, BTreeMap<String, CounterSet>) {
    let gpus = object.possible_devices();
    let devices =
        gpus.iter().flat_map(|it| &it.devices).map(|it| (it.device.name.clone(), it.device.clone()));
    let sets = gpus.iter().filter_map(|it| it.counters.clone()).map(|it| (it.name.clone(), it));
    (devices.collect(), sets.collect())
}

#[test]
fn the_possible_devices_of_a_status_are_those_that_counters_would_publish_on_every_model() {
    let mut compared = 0;
    for model in Model::all() {
        let name = model.name();
        for is_mig_on in [false, true] {
            let gpus = gpus(&format!("2x{name}"), is_mig_on, &[]);
            let policy = OfferPolicy::default();
            let expected = published(&gpus, &policy);
            assert_eq!(possible_of(&read(&gpus, &policy)), expected, "{name}, MIG mode {is_mig_on}");
            assert!(!expected.0.is_empty(), "{name}");
            compared += expected.0.len();
        }
    }
    assert!(500 < compared, "{compared}");
}

#[test]
fn what_unmanaged_instances_occupy_is_not_possible_and_what_claims_hold_is() {
    let mut fewer = 0;
    for model in Model::all().filter(|it| it.has_mig()) {
        let names: Vec<String> = model.profiles().into_iter().map(|it| it.name).collect();
        let all = published(&gpus(model.name(), true, &[]), &OfferPolicy::default()).0.len();
        for name in &names {
            let gpus = gpus(model.name(), true, &[name.as_str()]);
            let first = DeviceName::mig(gpus[0].facts.pci, &names[0], 0).to_string();
            let held = if name == &names[0] { BTreeSet::new() } else { BTreeSet::from([first]) };
            let policy = OfferPolicy { held, ..OfferPolicy::default() };
            let expected = published(&gpus, &policy);
            assert_eq!(possible_of(&read(&gpus, &policy)), expected, "{} with {name}", model.name());
            fewer += usize::from(expected.0.len() < all);
        }
    }
    assert!(50 < fewer, "{fewer}");
}

#[test]
fn a_host_without_the_right_to_partition_leaves_whole_gpus_possible() {
    let gpus = gpus("H100-80GB", false, &[]);
    let policy = OfferPolicy { mig_access: MigAccess::None, ..OfferPolicy::default() };
    let names: Vec<String> = possible_of(&read(&gpus, &policy)).0.into_keys().collect();
    assert_eq!(names, ["gpu-0000-1a-00"]);
}

#[test]
fn a_time_shared_gpu_and_one_with_a_problem_have_no_possible_device() {
    let policy = OfferPolicy { time_slices: 4, ..OfferPolicy::default() };
    assert_eq!(possible_of(&read(&gpus("L4", false, &[]), &policy)).0.len(), 0);
    let mut object = read(&gpus("H100-80GB", false, &[]), &OfferPolicy::default());
    object.status.as_mut().unwrap().gpus[0].problem = Some("XID 48".to_owned());
    assert_eq!(possible_of(&object).0.len(), 0);
}

#[test]
fn devices_that_need_one_memory_slice_overlap() {
    let object = read(&gpus("H100-80GB", false, &[]), &OfferPolicy::default());
    let gpu = object.possible_devices().remove(0);
    let find = |name: &str| gpu.devices.iter().find(|it| it.device.name.ends_with(name)).unwrap();
    let (whole, left, right) = (find("1a-00"), find("mig-3g-40gb-0"), find("mig-3g-40gb-4"));
    assert!(whole.overlaps(left) && whole.overlaps(right) && !left.overlaps(right));
    assert_eq!((whole.profile.as_str(), left.profile.as_str()), (WHOLE, "3g.40gb"));
    assert!(left.overlaps(find("mig-1g-10gb-0")));
}

fn claim() -> ClaimRef {
    ClaimRef::new("team".to_owned(), "one".to_owned(), "11111111-2222".to_owned()).unwrap()
}

#[test]
fn held_and_published_devices_are_told_apart_and_counted() {
    let gpus = gpus("2xH100-80GB", true, &[]);
    let name =
        |bus: usize, profile: &str, start| DeviceName::mig(gpus[bus].facts.pci, profile, start).to_string();
    let layout = [name(0, "1g.10gb", 6), name(0, "3g.40gb", 0), name(1, "1g.10gb", 0), name(1, "1g.10gb", 1)];
    let policy = OfferPolicy { held: BTreeSet::from([layout[1].clone()]), ..OfferPolicy::default() };
    let inventory = inventory_on(&node_facts(), &gpus, &policy);
    let held = BTreeMap::from([(layout[1].clone(), Some(claim())), ("gpu-0000-1b-00-gone".to_owned(), None)]);
    let published = layout.iter().cloned().collect();
    let problems = BTreeMap::new();
    let seen = Observed {
        gpus: &gpus,
        policy: &policy,
        inventory: &inventory,
        published: &published,
        held: &held,
        problems: &problems,
        is_counted: false,
    };
    let described = describe(&seen);
    let expected = HeldDevice {
        device: Some(layout[1].clone()),
        profile: "3g.40gb".to_owned(),
        start: 0,
        size: 4,
        claim: Some(claim()),
    };
    assert_eq!(described[0].held, [expected]);
    let unknown = &described[1].held[0];
    assert_eq!((unknown.profile.as_str(), unknown.size), (UNKNOWN, 0), "the node cannot describe it");
    let free = |gpu: &GpuStatus| gpu.published.iter().map(|it| it.device.clone()).collect::<Vec<_>>();
    assert_eq!(free(&described[0]), [layout[0].clone()]);
    assert_eq!(free(&described[1]), [layout[2].clone(), layout[3].clone()]);
    let summary = summary(&described, false);
    assert_eq!((summary.gpus, summary.product.as_str()), (2, "NVIDIA H100 80GB HBM3"));
    assert_eq!((summary.unused.as_str(), summary.held.as_str()), ("3x1g.10gb", "1x3g.40gb,1xunknown"));
}

#[test]
fn where_counters_keep_devices_apart_what_still_fits_is_free_and_the_largest_is_counted() {
    let gpus = gpus("2xH100-80GB", true, &[]);
    let held_name = DeviceName::mig(gpus[0].facts.pci, "4g.40gb", 0).to_string();
    let policy = OfferPolicy { held: BTreeSet::from([held_name.clone()]), ..OfferPolicy::default() };
    let inventory = inventory_on(&node_facts(), &gpus, &policy);
    let published = inventory.devices().map(|it| it.name.to_string()).collect();
    let seen = Observed {
        gpus: &gpus,
        policy: &policy,
        inventory: &inventory,
        published: &published,
        held: &BTreeMap::from([(held_name, Some(claim()))]),
        problems: &BTreeMap::new(),
        is_counted: true,
    };
    let described = describe(&seen);
    assert!(described[0].published.iter().all(|it| 4 <= it.start), "{:?}", described[0].published);
    assert_eq!(summary(&described, true).unused, "1x3g.40gb,1xfull");
    assert_eq!(summary(&[], true).unused, "-");
}

fn with_spec(spec: &Value) -> MigNode {
    serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap()
}

#[test]
fn a_spec_within_the_bounds_is_read_whole_and_written_as_it_was() {
    let spec = json!({
        "demand": {"renewTime": "2026-11-29T12:00:00Z", "profiles": [{"profile": "1g.10gb+me", "count": 4}]},
        "floor": [{"profile": "full", "count": 1}],
        "holds": [{"gpu": "gpu-0000-3b-00", "profile": "7g.80gb", "until": "2026-11-29T12:05:00Z",
                   "claim": {"namespace": "team", "name": "big", "uid": "1-2"}}],
    });
    let object = with_spec(&spec);
    assert_eq!(object.invalid, Invalid::default());
    let written = serde_json::to_value(&object).unwrap();
    assert_eq!(written["spec"], spec);
    assert_eq!(
        (&written["apiVersion"], &written["kind"]),
        (&json!("mig.dra-driver.dev/v1alpha1"), &json!("MigNode"))
    );
    assert_eq!(with_spec(&Value::Null), with_spec(&json!({})));
}

#[test]
fn a_spec_that_breaks_a_bound_is_left_out_with_the_reason() {
    let count = |profile: &str, count: Value| json!({"profile": profile, "count": count});
    let counts = |number: usize| (0..number).map(|it| count(&format!("p{it}"), json!(1))).collect::<Vec<_>>();
    let hold = |gpu: &str, until: Value| json!({"gpu": gpu, "profile": "1g.10gb", "until": until, "claim": {"namespace": "t", "name": "c", "uid": "u"}});
    let time = json!("2026-11-29T12:05:00Z");
    for (spec, why) in [
        (json!({"floor": counts(65)}), "spec.floor: has 65 entries; at most 64 are allowed"),
        (json!({"demand": {"profiles": counts(65)}}), "spec.demand.profiles: has 65 entries"),
        (json!({"floor": [count("1g.10gb", json!(0))]}), "spec.floor[0].count: is 0; it must be 1 to 512"),
        (json!({"floor": [count("1g.10gb", json!(513))]}), "it must be 1 to 512"),
        (json!({"floor": [count("1g.10gb", json!(-1))]}), "invalid value: integer `-1`"),
        (json!({"floor": [count("1g.10gb", json!("many"))]}), "invalid type"),
        (
            json!({"floor": [count("a", json!(1)), count("a", json!(2))]}),
            "another entry has the same profile",
        ),
        (json!({"floor": [count(&"p".repeat(96), json!(1))]}), "has 96 bytes; at most 95 are allowed"),
        (json!({"floor": [count("a\nb", json!(1))]}), "printable"),
        (json!({"floor": [count("", json!(1))]}), "printable"),
        (json!({"holds": [hold("g", Value::Null)]}), "invalid type: null"),
        (json!({"holds": [hold("g", json!("tomorrow"))]}), "spec: failed to parse"),
        (
            json!({"holds": [hold("g", time.clone()), hold("g", time.clone())]}),
            "another hold has the same GPU",
        ),
        (
            json!({"holds": (0..33).map(|it| hold(&it.to_string(), time.clone())).collect::<Vec<_>>()}),
            "has 33 entries",
        ),
        (json!({"demand": {"renewTime": "x".repeat(100_000), "profiles": []}}), "spec: "),
        (json!({"floor": [count("p", json!("€".repeat(100_000)))]}), "…"),
        (json!("x"), "invalid type"),
    ] {
        let object = with_spec(&spec);
        let said = object.invalid.spec.clone().unwrap_or_default();
        assert!(said.contains(why), "{why:?} is not in {said:?}");
        assert!(said.len() < 2000 && !said.contains('\n'), "{said:?}");
        assert_eq!(object.spec, MigNodeSpec::default());
        assert_eq!(object.metadata.name.as_deref(), Some("n"));
    }
}

#[test]
fn a_status_that_breaks_a_bound_is_left_out_with_the_reason() {
    let status = |status: Value| -> MigNode { serde_json::from_value(json!({"status": status})).unwrap() };
    let placements = |count: usize| (0..count).map(|_| json!({"start": 0, "size": 1})).collect::<Vec<_>>();
    let gpu = |profiles: Value| json!({"gpus": [{"name": "gpu-0000-1a-00", "profiles": profiles}]});
    for (given, why) in [
        (
            json!({"gpus": (0..33).map(|it| json!({"name": format!("g{it}")})).collect::<Vec<_>>()}),
            "status.gpus: has 33",
        ),
        (
            gpu(json!([{"profile": "p", "placements": placements(33)}])),
            "status.gpus[0].profiles[0].placements: has 33",
        ),
        (gpu(json!([{"profile": "p", "placements": [{"start": -1, "size": 1}]}])), "invalid value"),
        (gpu(json!([{"profile": "p", "attributes": {"a": {"int": "x"}}}])), "invalid type"),
        (json!({"gpus": [{"name": ""}]}), "status.gpus[0].name"),
        (json!({"gpus": {}}), "invalid type"),
    ] {
        let object = status(given);
        let said = object.invalid.status.clone().unwrap_or_default();
        assert!(said.contains(why), "{why:?} is not in {said:?}");
        assert_eq!((object.status.clone(), object.possible_devices()), (None, Vec::new()));
    }
}

#[test]
fn a_hostile_status_within_the_bounds_has_possible_devices_or_none_and_no_end_of_work() {
    let placements: Vec<Value> = (0..32).map(|it| json!({"start": it, "size": u32::MAX - it})).collect();
    let whole: Vec<Value> = (0..27).map(|it| json!({"start": it, "size": 27 - it})).collect();
    let profile = |name: String, engines: &str, placements: &[Value]| json!({"profile": name, "placements": placements, "capacity": {"decoders": engines, "encoders": "-1", "memory": "x"}});
    let mut profiles: Vec<Value> =
        (0..15).map(|it| profile(format!("p{it}"), "99999999999", &placements)).collect();
    profiles.extend((0..16).map(|it| profile(format!("q{it}"), &(1u64 << it).to_string(), &whole)));
    profiles.push(profile(WHOLE.to_owned(), "1", &[]));
    for name in ["gpu-0000-1a-00", "gpu-zzzz-1a-00", "gpu-0000-1a-00-mig", "x", "gpu-00000000-1a-00"] {
        let object: MigNode =
            serde_json::from_value(json!({"status": {"gpus": [{"name": name, "profiles": profiles}]}}))
                .unwrap();
        assert_eq!(object.invalid.status, None);
        let devices: usize = object.possible_devices().iter().map(|it| it.devices.len()).sum();
        assert_eq!(devices, if name == "gpu-0000-1a-00" { 16 * 27 + 1 } else { 0 }, "{name}");
    }
}
