#![allow(clippy::unwrap_used, reason = "tests")]

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use serde_json::{Value, json};

use super::view::{claims as claims_table, gpus as gpus_table, nodes as nodes_table};
use super::*;
use crate::template::{MigMode, NodeTemplate, TemplateArgs};

const OURS: &str = "mig.dra-driver.dev";

/// What a node with two GPUs of a model publishes, with counters where the GPUs have MIG.
fn published(node: &str, model: &str) -> Vec<ResourceSlice> {
    let all: Value =
        serde_json::from_str(include_str!("../../allocator/examples/agreement/shapes.json")).unwrap();
    let mut slices: Vec<ResourceSlice> = serde_json::from_value(all[model].clone()).unwrap();
    for (index, slice) in slices.iter_mut().enumerate() {
        slice.metadata.name = Some(format!("{index:05x}-{OURS}-{node}"));
        slice.spec.node_name = Some(node.to_owned());
        slice.spec.pool.name = format!("{node}/{OURS}");
        for device in slice.spec.devices.iter_mut().flatten() {
            let address = device.name.strip_prefix("gpu-").unwrap()[..10].replacen('-', ":", 1) + ".0";
            let value = serde_json::from_value(json!({"string": address.replace('-', ":")})).unwrap();
            let attributes = device.attributes.get_or_insert_default();
            attributes.insert("resource.kubernetes.io/pciBusID".to_owned(), value);
        }
    }
    slices
}

/// Keeps the devices that a test names.
fn retain(slices: &mut [ResourceSlice], keeps: impl Fn(&str) -> bool) {
    for slice in slices {
        slice.spec.devices.iter_mut().for_each(|it| it.retain(|it| keeps(&it.name)));
    }
}

/// As an API server stores slices whose counters it does not know.
fn without_counters(slices: &mut [ResourceSlice]) {
    for slice in slices {
        slice.spec.shared_counters = None;
        slice.spec.devices.iter_mut().flatten().for_each(|it| it.consumes_counters = None);
    }
}

/// A claim of `team` that holds these devices of a node, reserved for a pod of its name.
fn claim(name: &str, node: &str, devices: &[&str]) -> ResourceClaim {
    let result = |device: &&str| json!({"request": "r", "driver": OURS, "pool": format!("{node}/{OURS}"), "device": device});
    let results: Vec<Value> = devices.iter().map(result).collect();
    serde_json::from_value(json!({
        "metadata": {"namespace": "team", "name": name, "creationTimestamp": "2026-11-29T08:00:00Z"},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "mig-1g.10gb", "count": 1}}]}},
        "status": {
            "allocation": {"devices": {"results": results}},
            "reservedFor": [{"resource": "pods", "name": format!("pod-{name}"), "uid": "u"}],
        },
    }))
    .unwrap()
}

fn node(value: Value) -> Node {
    serde_json::from_value(value).unwrap()
}

fn snapshot(slices: Vec<ResourceSlice>, claims: Vec<ResourceClaim>) -> Snapshot {
    Snapshot { slices: slices.into_iter().collect(), claims, ..Snapshot::default() }
}

/// An hour and a half after the claims were created.
fn style() -> Style {
    Style { is_wide: false, is_colored: false, now: "2026-11-29T09:30:00Z".parse().unwrap() }
}

fn args(words: &[&str]) -> GetArgs {
    use clap::Parser;
    let words = ["kubectl-mig", "get"].iter().chain(words);
    let cli = crate::args::Cli::try_parse_from(words).unwrap();
    let crate::args::Command::Get(args) = cli.command else { panic!("not get") };
    args
}

fn free(row: &[Free]) -> Vec<String> {
    row.iter().map(|it| format!("{}x{}", it.count, it.profile)).collect()
}

fn states(gpu: &GpuRow) -> String {
    let mark = |it: &Part| match it.state {
        State::Held => 'H',
        State::Free => '.',
        State::Blocked => '-',
        State::NotOffered => 'x',
    };
    gpu.parts.iter().map(mark).collect()
}

#[test]
fn an_empty_gpu_has_room_for_each_of_its_profiles() {
    let fleet = fleet(&snapshot(published("a", "2xH100-80GB"), vec![])).unwrap();
    let gpu = &fleet.gpus[0];
    assert_eq!(
        (gpu.node.as_str(), gpu.name.as_str(), states(gpu).as_str()),
        ("a", "0000:1a:00.0", "........")
    );
    let expected = [
        "7x1g.10gb",
        "4x1g.20gb",
        "3x2g.20gb",
        "2x3g.40gb",
        "1x4g.40gb",
        "1x7g.80gb",
        "1xgpu",
        "1x1g.10gb+me",
    ];
    assert_eq!(free(&gpu.free), expected);
    assert_eq!(gpu.largest.as_deref(), Some("gpu"));
    let node = &fleet.nodes[0];
    assert_eq!((node.gpus, node.idle_gpus, node.used, node.held_devices), (2, 2, 0.0, 0));
    assert_eq!(free(&node.free)[0], "14x1g.10gb");
    assert!(node.problems.is_empty() && gpu.problems.is_empty());
}

#[test]
fn what_a_claim_holds_is_not_free_and_names_its_pods() {
    let held = claim("train", "a", &["gpu-0000-1a-00-mig-4g-40gb-0", "gpu-0000-1a-00-mig-1g-10gb-5"]);
    let fleet = fleet(&snapshot(published("a", "2xH100-80GB"), vec![held])).unwrap();
    let gpu = &fleet.gpus[0];
    // A device of two slices at 6 would fit; the slice 4 is for 1g.10gb only.
    assert_eq!(states(gpu), "HHHH.H..");
    assert_eq!(free(&gpu.free), ["2x1g.10gb", "1x1g.20gb", "1x1g.10gb+me"]);
    assert_eq!(gpu.largest.as_deref(), Some("1g.20gb"));
    let places: Vec<_> =
        gpu.holders.iter().map(|it| (it.profile.as_str(), it.first_slice, it.memory_slices)).collect();
    assert_eq!(places, [("4g.40gb", Some(0), Some(4)), ("1g.10gb", Some(5), Some(1))]);
    assert_eq!(gpu.holders[0].pods, ["pod-train"]);
    assert_eq!(fleet.gpus[1].holders, []);
    let node = &fleet.nodes[0];
    assert_eq!((node.idle_gpus, node.held_devices), (1, 2));
    assert!((node.used - 5.0 / 16.0).abs() < 1e-9);
    let devices: Vec<_> =
        fleet.claims[0].devices.iter().map(|it| (it.profile.as_deref(), it.gpu.as_deref())).collect();
    assert_eq!(devices, [(Some("4g.40gb"), Some("0000:1a:00.0")), (Some("1g.10gb"), Some("0000:1a:00.0"))]);
}

#[test]
fn all_claims_that_hold_one_device_are_listed_and_that_is_a_problem() {
    let device = "gpu-0000-1a-00-mig-1g-10gb-0";
    let claims = vec![claim("held1", "a", &[device]), claim("held2", "a", &[device])];
    let mut shared = claims.clone();
    let both = fleet(&snapshot(published("a", "2xH100-80GB"), claims)).unwrap();
    let gpu = &both.gpus[0];
    let holders: Vec<String> = gpu.holders.iter().map(|it| it.claim.to_string()).collect();
    assert_eq!(holders, ["team/held1", "team/held2"]);
    assert_eq!((states(gpu).as_str(), gpu.parts[0].holder), ("H.......", Some(0)));
    assert_eq!(gpu.problems.len(), 1, "{:?}", gpu.problems);
    assert_eq!(gpu.problems[0].reason, Reason::AllocatedTwice);
    let message = &gpu.problems[0].message;
    assert!(
        message.starts_with("claims team/held1, team/held2 hold gpu-0000-1a-00-mig-1g-10gb-0 at"),
        "{message}"
    );
    assert_eq!(both.nodes[0].problems, gpu.problems);
    assert!(both.gpus[1].problems.is_empty());
    // Shares of one device that the scheduler has allocated.
    for (claim, share) in shared.iter_mut().zip(["s1", "s2"]) {
        let allocation = claim.status.as_mut().unwrap().allocation.as_mut().unwrap();
        let results = allocation.devices.as_mut().unwrap().results.as_mut().unwrap();
        results[0].share_id = Some(share.to_owned());
    }
    let shares = fleet(&snapshot(published("a", "2xH100-80GB"), shared)).unwrap();
    assert_eq!((shares.gpus[0].holders.len(), shares.gpus[0].problems.len()), (2, 0));
}

#[test]
fn a_claim_whose_device_is_not_published_is_a_problem_of_its_gpu() {
    let gone = "gpu-0000-1a-00-mig-1g-10gb-99";
    let claims = vec![claim("held5", "a", &[gone]), claim("odd", "a", &["other-0"])];
    let one = fleet(&snapshot(published("a", "2xH100-80GB"), claims.clone())).unwrap();
    let messages = |it: &[Problem]| -> Vec<String> {
        assert!(it.iter().all(|it| it.reason == Reason::DeviceNotPublished), "{it:?}");
        it.iter().map(|it| it.message.clone()).collect()
    };
    let of_gpu = format!("claim team/held5 holds {gone}, which pool a/{OURS} does not publish");
    let of_pool = format!("claim team/odd holds other-0, which pool a/{OURS} does not publish");
    assert_eq!(messages(&one.gpus[0].problems), [of_gpu.clone(), of_pool.clone()]);
    assert_eq!(messages(&one.gpus[1].problems), std::slice::from_ref(&of_pool));
    assert_eq!(messages(&one.nodes[0].problems), [of_pool.clone(), of_gpu]);
    assert_eq!(one.nodes[0].idle_gpus, 1, "something of the first GPU is held");
    let table = gpus_table(&one, &Style { is_wide: true, ..style() });
    assert!(
        table.contains(&format!("  ! claim team/held5 holds {gone}, which pool a/{OURS} does not")),
        "{table}"
    );
    // A pool without devices.
    let mut empty = published("a", "2xL4");
    retain(&mut empty, |_| false);
    let empty = fleet(&snapshot(empty, vec![claim("odd", "a", &["other-0"])])).unwrap();
    assert!(empty.nodes[0].problems.iter().any(|it| it.message == of_pool), "{:?}", empty.nodes);
    // The slice with the device may be missing.
    let mut slices = published("a", "2xH100-80GB");
    slices.iter_mut().for_each(|it| it.spec.pool.resource_slice_count = 3);
    let incomplete = fleet(&snapshot(slices, claims)).unwrap();
    let mut reasons = incomplete.gpus.iter().flat_map(|it| &it.problems).map(|it| it.reason);
    assert!(reasons.all(|it| it == Reason::PoolIncomplete), "{:?}", incomplete.gpus);
}

#[test]
fn of_an_incomplete_pool_the_gpu_without_devices_is_not_said_to_offer_none() {
    let mut slices = published("a", "2xH100-80GB");
    slices.truncate(1);
    assert!(slices[0].spec.shared_counters.is_some());
    let fleet = fleet(&snapshot(slices, vec![])).unwrap();
    assert_eq!(fleet.gpus.len(), 2);
    for gpu in &fleet.gpus {
        let reasons: Vec<Reason> = gpu.problems.iter().map(|it| it.reason).collect();
        assert_eq!(reasons, [Reason::PoolIncomplete]);
    }
}

#[test]
fn only_nodes_that_are_ready_and_not_cordoned_count_in_the_sum() {
    let mut all = published("a", "2xL4");
    all.extend(published("b", "2xL4"));
    let mut snapshot = snapshot(all, vec![]);
    let sum = |snapshot: &Snapshot| {
        let table = nodes_table(&fleet(snapshot).unwrap(), &style());
        table.lines().last().unwrap().to_owned()
    };
    assert!(sum(&snapshot).starts_with("Free on 0 of 2 nodes"), "{}", sum(&snapshot));
    let ready =
        json!({"metadata": {"name": "a"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    snapshot.nodes = vec![node(ready), node(json!({"metadata": {"name": "b"}}))];
    assert_eq!(sum(&snapshot), "Free on 1 of 2 nodes, each profile by itself: 2xgpu");
}

#[test]
fn a_slice_that_no_device_can_use_any_more_is_blocked() {
    let held: Vec<String> = (0..7).map(|it| format!("gpu-0000-1a-00-mig-1g-10gb-{it}")).collect();
    let held: Vec<&str> = held.iter().map(String::as_str).collect();
    let fleet = fleet(&snapshot(published("a", "2xH100-80GB"), vec![claim("all", "a", &held)])).unwrap();
    assert_eq!(states(&fleet.gpus[0]), "HHHHHHH-");
    assert_eq!((free(&fleet.gpus[0].free), &fleet.gpus[0].largest), (vec![], &None));
}

#[test]
fn in_a_layout_every_free_device_counts() {
    let mut slices = published("a", "2xH100-80GB");
    without_counters(&mut slices);
    let layout = ["mig-3g-40gb-0", "mig-2g-20gb-4", "mig-1g-10gb-6"];
    retain(&mut slices, |name| layout.iter().any(|it| name.ends_with(it)));
    let place = |name: &str| -> (i64, i64) {
        [("3g", (0, 4)), ("2g", (4, 2)), ("1g", (6, 1))].iter().find(|it| name.contains(it.0)).unwrap().1
    };
    for device in slices.iter_mut().flat_map(|it| it.spec.devices.iter_mut().flatten()) {
        let (start, size) = place(&device.name);
        let attributes = device.attributes.get_or_insert_default();
        for (key, value) in [("placementStart", start), ("memorySlices", size)] {
            attributes.insert(key.to_owned(), serde_json::from_value(json!({"int": value})).unwrap());
        }
    }
    let held = claim("one", "a", &["gpu-0000-1a-00-mig-2g-20gb-4"]);
    let fleet = fleet(&snapshot(slices, vec![held])).unwrap();
    let gpu = &fleet.gpus[0];
    assert_eq!((states(gpu).as_str(), gpu.has_counters), ("....HH.x", false));
    assert_eq!(free(&gpu.free), ["1x1g.10gb", "1x3g.40gb"]);
    assert_eq!(gpu.largest.as_deref(), Some("3g.40gb"));
    assert!(gpu.problems.is_empty(), "{:?}", gpu.problems);
}

#[test]
fn an_a100_with_mig_mode_off_is_one_whole_gpu() {
    let mut slices = published("a", "2xA100-40GB");
    let mut whole = slices[1].spec.devices.clone().unwrap()[0].clone();
    whole.name = "gpu-0000-1a-00".to_owned();
    let attributes = whole.attributes.as_mut().unwrap();
    attributes.insert("type".to_owned(), serde_json::from_value(json!({"string": "gpu"})).unwrap());
    let counters = slices[0].spec.shared_counters.clone().unwrap()[0].counters.clone();
    whole.consumes_counters.as_mut().unwrap()[0].counters = counters;
    slices[1].spec.devices = Some(vec![whole]);
    let fleet = fleet(&snapshot(slices, vec![])).unwrap();
    let off = fleet.gpus.iter().find(|it| it.name == "0000:1a:00.0").unwrap();
    assert_eq!((states(off).as_str(), free(&off.free)), ("........", vec!["1xgpu".to_owned()]));
    let other = fleet.gpus.iter().find(|it| it.name != "0000:1a:00.0").unwrap();
    assert_eq!(other.problems[0].reason, Reason::NothingOffered);
    assert_eq!((states(other).as_str(), free(&other.free).len()), ("xxxxxxxx", 0));
}

#[test]
fn time_shares_of_a_gpu_are_its_parts() {
    let mut slices = published("a", "2xL4");
    let devices = slices[0].spec.devices.as_mut().unwrap();
    let whole = devices[0].clone();
    devices.truncate(1);
    devices.clear();
    devices.extend((0..4).map(|it| {
        let mut share = whole.clone();
        share.name = format!("{}-share-{it}", whole.name);
        share
    }));
    let held = claim("one", "a", &["gpu-0000-1a-00-share-1"]);
    let fleet = fleet(&snapshot(slices, vec![held])).unwrap();
    assert_eq!(fleet.gpus.len(), 1);
    let gpu = &fleet.gpus[0];
    assert_eq!((gpu.memory_slices, states(gpu).as_str()), (0, ".H.."));
    assert_eq!((free(&gpu.free), gpu.largest.as_deref()), (vec!["3xshare".to_owned()], Some("share")));
    assert!((fleet.nodes[0].used - 0.25).abs() < 1e-9);
    let table = gpus_table(&fleet, &style());
    assert!(table.contains("..AA...."), "{table}");
}

/// The same GPUs as NVIDIA's driver describes them.
fn nvidia(node: &str) -> Vec<ResourceSlice> {
    let mut slices = published(node, "2xH100-80GB");
    for slice in &mut slices {
        slice.spec.driver = "gpu.nvidia.com".to_owned();
        slice.spec.pool.name = node.to_owned();
        for set in slice.spec.shared_counters.iter_mut().flatten() {
            set.name =
                if set.name.contains("1a") { "gpu-0-counter-set" } else { "gpu-1-counter-set" }.to_owned();
        }
        for device in slice.spec.devices.iter_mut().flatten() {
            let gpu = if device.name.contains("1a") { 0 } else { 1 };
            let rest = device.name.split_once("-mig-").map(|it| format!("-mig-{}", it.1)).unwrap_or_default();
            device.name = format!("gpu-{gpu}{rest}");
            for set in device.consumes_counters.iter_mut().flatten() {
                set.counter_set = format!("gpu-{gpu}-counter-set");
            }
            let attributes = device.attributes.as_mut().unwrap();
            if rest.is_empty() {
                let uuid = attributes.remove("parentUUID").unwrap();
                attributes.insert("uuid".to_owned(), uuid);
                attributes.remove("profile");
            }
        }
    }
    slices
}

#[test]
fn slices_of_nvidias_driver_are_shown_alike() {
    let mut held = claim("one", "a", &["gpu-0-mig-3g-40gb-4"]);
    let result =
        &mut held.status.as_mut().unwrap().allocation.as_mut().unwrap().devices.as_mut().unwrap().results;
    let result = &mut result.as_mut().unwrap()[0];
    result.driver = "gpu.nvidia.com".to_owned();
    result.pool = "a".to_owned();
    let fleet = fleet(&snapshot(nvidia("a"), vec![held])).unwrap();
    assert_eq!(fleet.gpus.len(), 2);
    let gpu = &fleet.gpus[0];
    assert_eq!((gpu.name.as_str(), states(gpu).as_str()), ("0000:1a:00.0", "....HHHH"));
    let expected = ["4x1g.10gb", "2x1g.20gb", "2x2g.20gb", "1x3g.40gb", "1x4g.40gb", "1x1g.10gb+me"];
    assert_eq!(
        (free(&gpu.free), gpu.driver.as_str()),
        (expected.map(str::to_owned).into(), "gpu.nvidia.com")
    );
    assert_eq!(fleet.claims[0].devices[0].profile.as_deref(), Some("3g.40gb"));
}

#[test]
fn overlapping_devices_without_counters_are_a_problem() {
    let mut slices = nvidia("a");
    without_counters(&mut slices);
    let fleet = fleet(&snapshot(slices, vec![])).unwrap();
    assert_eq!(fleet.gpus[0].problems[0].reason, Reason::CountersDropped);
}

#[test]
fn a_tainted_gpu_has_nothing_free_and_says_why() {
    let mut slices = published("a", "2xH100-80GB");
    let taint = json!({"key": format!("{OURS}/xid"), "value": "48", "effect": "NoSchedule"});
    for device in slices.iter_mut().flat_map(|it| it.spec.devices.iter_mut().flatten()) {
        if device.name.contains("1a-00") {
            device.taints = Some(vec![serde_json::from_value(taint.clone()).unwrap()]);
        }
    }
    let fleet = fleet(&snapshot(slices, vec![])).unwrap();
    let gpu = &fleet.gpus[0];
    assert_eq!((states(gpu).as_str(), gpu.free.len(), &gpu.largest), ("--------", 0, &None));
    assert_eq!(gpu.problems.len(), 1);
    assert_eq!(gpu.problems[0].reason, Reason::Tainted);
    assert_eq!(gpu.problems[0].message, "unhealthy, XID 48: taint mig.dra-driver.dev/xid=48:NoSchedule");
    assert_eq!(fleet.nodes[0].problems, gpu.problems);
    assert_eq!(free(&fleet.nodes[0].free)[0], "7x1g.10gb", "of the other GPU");
}

#[test]
fn places_that_are_in_no_device_are_named() {
    let mut slices = published("a", "2xH100-80GB");
    // As with an unmanaged instance in slices 4 and 5 of the first GPU.
    for slice in &mut slices {
        slice.spec.devices.iter_mut().for_each(|it| {
            it.retain(|it| {
                let consumed = it.consumes_counters.iter().flatten().flat_map(|it| it.counters.keys());
                let mut taken = consumed.filter(|it| *it == "memory-slice-4" || *it == "memory-slice-5");
                !it.name.contains("1a-00") || taken.next().is_none()
            })
        });
    }
    let fleet = fleet(&snapshot(slices, vec![])).unwrap();
    assert_eq!(states(&fleet.gpus[0]), "....xx..");
    let problem = &fleet.gpus[0].problems[0];
    assert_eq!(problem.reason, Reason::SlicesNotOffered);
    assert_eq!(problem.message, "memory slices 4-5 are in no device that is offered");
}

#[test]
fn an_incomplete_pool_has_nothing_free() {
    let mut slices = published("a", "2xH100-80GB");
    slices.iter_mut().for_each(|it| it.spec.pool.resource_slice_count = 3);
    let fleet = fleet(&snapshot(slices, vec![])).unwrap();
    assert_eq!(fleet.gpus.len(), 2);
    assert!(
        fleet.gpus.iter().all(|it| it.free.is_empty() && it.problems[0].reason == Reason::PoolIncomplete)
    );
    let node = &fleet.nodes[0];
    assert_eq!(node.problems.len(), 1, "once for the node: {:?}", node.problems);
    assert!(node.problems[0].message.contains("2 of 3 ResourceSlices are there"), "{:?}", node.problems);
}

#[test]
fn a_node_says_whether_it_takes_pods_and_which_layout_it_has() {
    let mut all = published("a", "2xH100-80GB");
    all.extend(published("b", "2xH100-80GB"));
    let mut snapshot = snapshot(all, vec![]);
    snapshot.nodes = vec![
        node(json!({"metadata": {"name": "a", "labels": {
                "nvidia.com/mig.config": "all-1g.10gb", "nvidia.com/mig.config.state": "failed"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}})),
        node(
            json!({"metadata": {"name": "b"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
        ),
    ];
    let fleet = fleet(&snapshot).unwrap();
    let a = &fleet.nodes[0];
    assert_eq!((a.ready, a.unschedulable), (Some(true), Some(true)));
    assert_eq!(a.problems[0].reason, Reason::LayoutFailed);
    let table = nodes_table(&fleet, &style());
    let expected = "\
NODE  STATUS          GPUS  IDLE  USED  LARGEST  FREE
a     Ready,cordoned  2     2     0%    gpu      14x1g.10gb 8x1g.20gb …
  ! layout all-1g.10gb failed; `kubectl describe node a` shows why
b     Ready           2     2     0%    gpu      14x1g.10gb 8x1g.20gb …

Free on 1 of 2 nodes, each profile by itself: 14x1g.10gb 8x1g.20gb 6x2g.20gb
4x3g.40gb 2x4g.40gb 2x7g.80gb 2xgpu 2x1g.10gb+me
";
    assert_eq!(table, expected, "{table}");
}

#[test]
fn the_table_of_gpus_shows_the_bar_the_holders_and_what_is_wrong() {
    let claims = vec![
        claim("train", "a", &["gpu-0000-1a-00-mig-4g-40gb-0"]),
        claim("web", "a", &["gpu-0000-1a-00-mig-1g-10gb-5"]),
    ];
    let fleet = fleet(&snapshot(published("a", "2xH100-80GB"), claims)).unwrap();
    let expected = "\
NODE  GPU           SLICES    LARGEST  FREE
a     0000:1a:00.0  AAAA.B..  1g.20gb  2x1g.10gb 1x1g.20gb 1x1g.10gb+me
  A 4g.40gb  90m  team/pod-train
  B 1g.10gb  90m  team/pod-web
a     0000:1b:00.0  ........  gpu      7x1g.10gb 4x1g.20gb 3x2g.20gb 2x3g.40gb …
";
    let table = gpus_table(&fleet, &style());
    assert_eq!(table, expected, "{table}");
}

#[test]
fn the_table_of_claims_shows_what_they_hold_or_ask_for() {
    let pending = json!({
        "metadata": {"namespace": "team", "name": "later", "creationTimestamp": "2026-11-29T09:29:30Z"},
        "spec": {"devices": {"requests": [
            {"name": "r", "exactly": {"deviceClassName": "mig-1g.10gb", "count": 2}},
            {"name": "s", "firstAvailable": [
                {"name": "x", "deviceClassName": "mig-3g.40gb"}, {"name": "y", "deviceClassName": "mig-2g.20gb"}]},
        ]}},
    });
    let other = json!({
        "metadata": {"namespace": "team", "name": "nic"}, "spec": {},
        "status": {"allocation": {"devices": {"results": [
            {"request": "r", "driver": "nic.example.com", "pool": "a", "device": "eth0"}]}}},
    });
    let claims = vec![
        claim("train", "a", &["gpu-0000-1a-00-mig-1g-10gb-0", "gpu-0000-1a-00-mig-1g-10gb-1"]),
        serde_json::from_value(pending).unwrap(),
        serde_json::from_value(other).unwrap(),
        claim("gone", "a", &["gpu-0000-ff-00"]),
    ];
    let fleet = fleet(&snapshot(published("a", "2xH100-80GB"), claims)).unwrap();
    let table = claims_table(&fleet, &style());
    let expected = "\
NAMESPACE  NAME   STATE               DEVICES               NODE  PODS       AGE
team       gone   allocated,reserved  gpu-0000-ff-00              pod-gone   90m
team       later  pending             2xmig-1g.10gb …                        30s
team       train  allocated,reserved  2x1g.10gb             a     pod-train  90m
";
    assert_eq!(table, expected, "{table}");
}

/// Every name as long as Kubernetes allows it.
fn long_names() -> Snapshot {
    let node_name = format!("{}.internal", "gpu-node-".repeat(26).trim_end_matches('-'));
    let mut slices = published(&node_name, "2xH100-80GB");
    let taint = json!({"key": format!("{}/{}", "d".repeat(200), "k".repeat(60)), "value": "v".repeat(63), "effect": "NoExecute"});
    let devices = slices[1].spec.devices.as_mut().unwrap();
    devices[0].taints = Some(vec![serde_json::from_value(taint).unwrap()]);
    let mut held = claim(&"c".repeat(253), &node_name, &["gpu-0000-1b-00-mig-1g-10gb-0"]);
    held.metadata.namespace = Some("n".repeat(63));
    let mut pending = claim(&"p".repeat(253), &node_name, &[]);
    pending.status = None;
    let mut snapshot = snapshot(slices, vec![held, pending]);
    snapshot.nodes = vec![node(json!({"metadata": {"name": node_name}, "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}))];
    snapshot
}

#[test]
fn tables_fit_eighty_columns_whatever_the_names() {
    let fleet = fleet(&long_names()).unwrap();
    for table in [nodes_table, gpus_table, claims_table] {
        let text = table(&fleet, &style());
        assert!(text.lines().count() > 1, "{text}");
        let long: Vec<&str> = text.lines().filter(|it| 80 < it.chars().count()).collect();
        assert_eq!(long, Vec::<&str>::new(), "{text}");
        let wide = table(&fleet, &Style { is_wide: true, ..style() });
        assert!(!wide.contains('…'), "nothing is cut: {wide}");
    }
}

#[test]
fn a_gpu_has_eight_to_twelve_cells_whatever_it_consists_of() {
    let mut slices = published("a", "2xL4");
    let whole = slices[0].spec.devices.clone().unwrap()[0].clone();
    let widths = |count: usize, slices: &mut Vec<ResourceSlice>| {
        let share = |it: usize| {
            let mut share = whole.clone();
            share.name = format!("{}-share-{it}", whole.name);
            share
        };
        slices[0].spec.devices = Some((0..count).map(share).collect());
        let held = claim("one", "a", &["gpu-0000-1a-00-share-0"]);
        let fleet = fleet(&snapshot(slices.clone(), vec![held])).unwrap();
        let table = gpus_table(&fleet, &style());
        let line = table.lines().nth(1).unwrap().to_owned();
        line.split_whitespace().nth(2).unwrap().chars().count()
    };
    for count in 1..=48 {
        let width = widths(count, &mut slices);
        let fits = (8..=12).contains(&width) || count == 7 && width == 7;
        assert!(fits, "{count} parts: {width} cells");
    }
}

#[test]
fn control_characters_from_the_api_are_never_printed() {
    let evil = "a\x1b]0;x\x07\n\u{202e}b";
    let mut slices = published("a", "2xH100-80GB");
    for slice in &mut slices {
        slice.spec.node_name = Some(evil.to_owned());
        for device in slice.spec.devices.iter_mut().flatten() {
            let taint = json!({"key": evil, "value": evil, "effect": "NoSchedule"});
            device.taints = Some(vec![serde_json::from_value(taint).unwrap()]);
            for (key, value) in device.attributes.iter_mut().flatten() {
                if ["productName", "profile", "resource.kubernetes.io/pciBusID"].contains(&key.as_str()) {
                    value.string = Some(evil.to_owned());
                }
            }
        }
    }
    let mut held = claim("one", "a", &["gpu-0000-1a-00-mig-1g-10gb-0"]);
    held.metadata.namespace = Some(evil.to_owned());
    held.status.as_mut().unwrap().reserved_for.as_mut().unwrap()[0].name = evil.to_owned();
    let mut pending = claim(evil, "a", &[]);
    pending.status = None;
    let requests = pending.spec.devices.as_mut().unwrap().requests.as_mut().unwrap();
    requests[0].exactly.as_mut().unwrap().device_class_name = evil.to_owned();
    let mut snapshot = snapshot(slices, vec![held, pending]);
    snapshot.nodes = vec![node(json!({"metadata": {"name": evil, "labels": {"nvidia.com/mig.config": evil,
        "nvidia.com/mig.config.state": "failed"}}}))];
    let fleet = fleet(&snapshot).unwrap();
    for is_wide in [false, true] {
        for table in [nodes_table, gpus_table, claims_table] {
            let text = table(&fleet, &Style { is_wide, ..style() });
            let bad = text.chars().find(|it| it.is_control() && *it != '\n' || *it == '\u{202e}');
            assert_eq!(bad, None, "{text:?}");
        }
    }
}

#[test]
fn colors_change_no_text() {
    let fleet = fleet(&long_names()).unwrap();
    for table in [nodes_table, gpus_table, claims_table] {
        let plain = table(&fleet, &style());
        let mut colored = table(&fleet, &Style { is_colored: true, ..style() });
        assert!(!plain.contains('\x1b') && colored.contains('\x1b'));
        while let Some(start) = colored.find('\x1b') {
            let end = start + colored[start..].find('m').unwrap();
            colored.replace_range(start..=end, "");
        }
        assert_eq!(colored, plain);
    }
}

/// The keys of a document, with `[]` for lists.
fn keys(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, it) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                found.insert(path.clone());
                keys(it, &path, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|it| keys(it, &format!("{path}[]"), found)),
        _ => {}
    }
}

#[test]
fn the_page_describes_every_field_of_the_json_and_no_other() {
    let held = claim("one", "a", &["gpu-0000-1a-00-mig-1g-10gb-0"]);
    let mut slices = published("a", "2xH100-80GB");
    retain(&mut slices, |it| !it.contains("1b-00"));
    let mut snapshot = snapshot(slices, vec![held]);
    snapshot.nodes = vec![node(json!({"metadata": {"name": "a", "labels": {"nvidia.com/mig.config": "x"}}}))];
    snapshot.unread = vec![crate::cluster::Unread { resource: "pods", why: "no".to_owned() }];
    let mut existing = BTreeSet::new();
    for what in ["nodes", "gpus", "claims"] {
        let answer = answer(&snapshot, &args(&[what, "-A", "-o", "json"]), None, &style()).unwrap();
        let document: Value = serde_json::from_str(&answer.output).unwrap();
        assert_eq!(document["schemaVersion"], SCHEMA_VERSION);
        keys(&document, "", &mut existing);
    }
    let page = include_str!("../../../docs/kubectl-mig-get.md");
    let section = page.split("\n## JSON\n").nth(1).unwrap().split("\n| `reason`").next().unwrap();
    let field = |line: &str| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned());
    let documented: BTreeSet<String> =
        section.lines().filter_map(field).map(|it| it.trim_end_matches("[]").to_owned()).collect();
    assert_eq!(documented, existing);
    let reasons = [
        Reason::Tainted,
        Reason::NothingOffered,
        Reason::SlicesNotOffered,
        Reason::CountersDropped,
        Reason::PoolIncomplete,
        Reason::PoolInvalid,
        Reason::PoolOverdrawn,
        Reason::PoolNameShared,
        Reason::AllocatedTwice,
        Reason::DeviceNotPublished,
        Reason::NoGpus,
        Reason::LayoutFailed,
    ];
    for reason in reasons {
        let name = serde_json::to_value(reason).unwrap();
        let name = name.as_str().unwrap();
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn names_and_namespaces_choose_rows_and_a_missing_one_is_reported() {
    let mut all = published("a", "2xH100-80GB");
    all.extend(published("b", "2xL4"));
    let claims = vec![claim("one", "a", &["gpu-0000-1a-00-mig-1g-10gb-0"])];
    let snapshot = snapshot(all, claims);
    let answer = |words: &[&str], namespace: Option<&str>| {
        super::answer(&snapshot, &args(words), namespace, &style()).unwrap()
    };
    let one = answer(&["gpus", "b"], None);
    assert_eq!((one.status, one.output.lines().count()), (LISTED, 3), "{}", one.output);
    let missing = answer(&["nodes", "b", "c"], None);
    assert_eq!((missing.status, missing.output.lines().count()), (NOTHING, 2), "{}", missing.output);
    assert_eq!(missing.remarks, ["there is no node with GPUs `c`; `kubectl mig get nodes` lists all"]);
    assert_eq!(answer(&["claims"], Some("team")).status, LISTED);
    let other = answer(&["claims"], Some("other"));
    assert_eq!((other.status, other.output.as_str()), (NOTHING, ""));
    assert!(other.remarks[0].contains("in namespace other"), "{:?}", other.remarks);
}

#[test]
fn where_there_is_nothing_it_says_what_there_is_instead() {
    let answer = |snapshot: &Snapshot, words: &[&str]| {
        let answer = super::answer(snapshot, &args(words), None, &style()).unwrap();
        assert_eq!((answer.status, answer.output.as_str()), (NOTHING, ""));
        answer.remarks.join("\n")
    };
    let text = answer(&Snapshot::default(), &["gpus"]);
    assert!(text.starts_with("the cluster has no ResourceSlices: no DRA driver runs"), "{text}");
    let text = answer(&Snapshot::default(), &["gpus", "--from", "x"]);
    assert!(text.starts_with("the files have no ResourceSlices"), "{text}");
    let nic = json!({"metadata": {"name": "nic"}, "spec": {"driver": "nic.example.com", "nodeName": "a",
        "pool": {"generation": 1, "name": "a", "resourceSliceCount": 1}, "devices": [{"name": "eth0"}]}});
    let text = answer(&snapshot(vec![serde_json::from_value(nic).unwrap()], vec![]), &["gpus"]);
    assert!(text.contains("ResourceSlices of nic.example.com, and none describes a GPU"), "{text}");
    let mut empty = published("a", "2xL4");
    retain(&mut empty, |_| false);
    let empty = snapshot(empty, vec![]);
    assert!(answer(&empty, &["gpus"]).starts_with("the GPU drivers publish no GPU"));
    let nodes = super::answer(&empty, &args(&["nodes"]), None, &style()).unwrap();
    assert_eq!(nodes.status, LISTED);
    assert!(nodes.output.contains("! its driver publishes no GPU"), "{}", nodes.output);
}

#[test]
fn what_could_not_be_read_is_said_beside_the_rest() {
    let mut snapshot = snapshot(published("a", "2xH100-80GB"), vec![]);
    snapshot.unread =
        vec![crate::cluster::Unread { resource: "nodes", why: "nodes is forbidden".to_owned() }];
    let answer = answer(&snapshot, &args(&["nodes"]), None, &style()).unwrap();
    assert_eq!(answer.status, LISTED);
    assert_eq!(answer.remarks, ["cannot list nodes, so what depends on them is missing: nodes is forbidden"]);
    assert!(answer.output.contains("Unknown"), "{}", answer.output);
}

#[test]
fn what_is_trimmed_of_slices_changes_nothing_that_is_shown() {
    let mut slices = nvidia("theirs");
    let mut claims = Vec::new();
    for model in mig_models::Model::all() {
        for (mode, mig_mode) in [("on", MigMode::On), ("off", MigMode::Off)] {
            let args = TemplateArgs { mig_mode, ..TemplateArgs::default() };
            let name = format!("{}-{mode}", model.name().to_lowercase());
            let own = NodeTemplate::new(&[model, model], &args, true).unwrap().slices(OURS, &name, None);
            let first = own.iter().find_map(|it| it.spec.devices.as_ref()?.first()).unwrap().name.clone();
            claims.push(claim(&name, &name, &[&first]));
            slices.extend(own);
        }
    }
    let snapshot_of = |slices: &[ResourceSlice]| snapshot(slices.to_vec(), claims.clone());
    let whole = fleet(&snapshot_of(&slices)).unwrap();
    assert!(whole.nodes.len() > 10 && whole.nodes.len() < whole.gpus.len());
    let size = |slices: &[ResourceSlice]| serde_json::to_vec(slices).unwrap().len();
    let before = size(&slices);
    slices.iter_mut().for_each(crate::gpu::trim);
    assert!(size(&slices) < before * 3 / 4, "{} of {before} bytes are kept", size(&slices));
    assert_eq!(fleet(&snapshot_of(&slices)).unwrap(), whole);
}
