//! One fact each. Longer than other files: it is a list.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PodSpec};
use mig_controller::demand::{
    ClaimKey, Decisions, Demand, Hold, Memory, NodeState, Options, Outcome, PendingPod, Profiles, Progress,
    Prospect, Reason, World, Write, decide,
};
use serde_json::json;

use crate::model::{Model, Set, members};
use crate::pods::{at, claim, classes, for_profile, pod, profile, selector};

/// Nodes in layout mode, by GPU what is held and what is published (profile and start).
pub(crate) type Gpu<'a> = (&'a [(&'a str, u32)], &'a [(&'a str, u32)]);

fn device(model: &Model, profile: &str, start: u32) -> usize {
    let found = model.devices.iter().position(|it| it.profile == profile && it.start == start);
    found.unwrap_or_else(|| panic!("{profile} at {start}"))
}

pub(crate) fn node(name: &str, gpus: &[Gpu<'_>]) -> NodeState {
    let model = Model::new("H100-80GB", gpus.len());
    let set =
        |list: &[(&str, u32)]| list.iter().fold(0 as Set, |set, (p, s)| set | 1 << device(&model, p, *s));
    let mut node = Node::default();
    node.metadata.name = Some(name.to_owned());
    NodeState {
        node: Arc::new(node),
        resource_version: Some("1".to_owned()),
        takes_part: true,
        follows: true,
        counts: false,
        gpus: gpus.iter().enumerate().map(|(it, gpu)| model.state(it, set(gpu.0), set(gpu.1))).collect(),
        demand: None,
        floor: Profiles::new(),
        holds: Vec::new(),
        progress: Progress::Done,
        is_refused: false,
    }
}

/// The GPU in seven parts, or whole, free or held.
pub(crate) const SEVEN: &[(&str, u32)] = &[
    ("1g.10gb", 0),
    ("1g.10gb", 1),
    ("1g.10gb", 2),
    ("1g.10gb", 3),
    ("1g.10gb", 4),
    ("1g.10gb", 5),
    ("1g.10gb", 6),
];
pub(crate) const WHOLE: &[(&str, u32)] = &[("full", 0)];
pub(crate) const NONE: &[(&str, u32)] = &[];

pub(crate) fn world(nodes: Vec<NodeState>, pods: Vec<PendingPod>) -> World {
    World { nodes, pods, classes: classes(), ..World::default() }
}

fn now(world: &World, seconds: f64) -> Outcome {
    decide(world, &Options::default(), &Memory::default(), at(seconds))
}

fn one(decisions: &Decisions) -> &Write {
    assert_eq!(decisions.writes.len(), 1, "{decisions:#?}");
    &decisions.writes[0]
}

fn profiles(list: &[(&str, u32)]) -> Profiles {
    list.iter().map(|(profile, count)| ((*profile).to_owned(), *count)).collect()
}

fn demanded(write: &Write) -> Profiles {
    write.demand.clone().unwrap().profiles
}

#[test]
fn a_pod_that_a_published_device_serves_changes_nothing() {
    let outcome =
        now(&world(vec![node("a", &[(NONE, SEVEN)])], vec![for_profile("p", at(0.0), "1g.10gb")]), 60.0);
    assert!(outcome.decisions.writes.is_empty(), "{outcome:#?}");
    assert_eq!(outcome.decisions.pods["p"], Prospect::Published { node: "a".to_owned() });
}

#[test]
fn a_pod_that_nothing_published_serves_changes_a_node_once_it_has_waited() {
    let world = world(vec![node("a", &[(NONE, WHOLE)])], vec![for_profile("p", at(0.0), "2g.20gb")]);
    let early = now(&world, 4.0);
    assert!(early.decisions.writes.is_empty());
    assert_eq!(early.wake, Some(at(5.0)));
    let outcome = now(&world, 5.0);
    let write = one(&outcome.decisions);
    assert_eq!((write.reason, demanded(write)), (Reason::Change, profiles(&[("2g.20gb", 1)])));
    assert_eq!(write.serves, ["p"]);
    assert_eq!(write.resource_version.as_deref(), Some("1"));
    assert_eq!(write.demand.as_ref().unwrap().renewed, Some(at(5.0)));
}

#[test]
fn two_pods_do_not_count_on_one_free_device() {
    let seven_held = &SEVEN[..6];
    let nodes = || vec![node("a", &[(seven_held, &SEVEN[6..])]), node("b", &[(NONE, WHOLE)])];
    let pods: Vec<_> = ["p", "q"].iter().map(|it| for_profile(it, at(0.0), "1g.10gb")).collect();
    let outcome = now(&world(nodes(), pods), 60.0);
    let write = one(&outcome.decisions);
    assert_eq!((write.node.as_str(), demanded(write)), ("b", profiles(&[("1g.10gb", 1)])));
    assert_eq!(write.serves, ["q"]);
}

#[test]
fn pods_share_the_change_of_one_node() {
    let nodes = (0..4).map(|it| node(&format!("n{it}"), &[(NONE, WHOLE), (NONE, WHOLE)])).collect();
    let pods = (0..7).map(|it| for_profile(&format!("p{it}"), at(0.0), "1g.10gb")).collect();
    let outcome = now(&world(nodes, pods), 60.0);
    assert_eq!(demanded(one(&outcome.decisions)), profiles(&[("1g.10gb", 7)]));
}

#[test]
fn a_whole_gpu_stays_whole_where_another_can_be_cut() {
    let used: Gpu<'_> = (&[("1g.10gb", 6)], &[("1g.10gb", 4), ("1g.10gb", 5), ("3g.40gb", 0)]);
    let nodes = vec![node("a", &[(NONE, WHOLE)]), node("b", &[used])];
    let outcome = now(&world(nodes, vec![for_profile("p", at(0.0), "2g.20gb")]), 60.0);
    assert_eq!(one(&outcome.decisions).node, "b");
}

#[test]
fn the_node_changes_where_the_fewest_free_devices_are_withdrawn() {
    let many: Gpu<'_> = (&[("1g.10gb", 6)], &SEVEN[..6]);
    let few: Gpu<'_> = (&[("1g.10gb", 6)], &[("3g.40gb", 0), ("1g.10gb", 4)]);
    for nodes in
        [vec![node("many", &[many]), node("few", &[few])], vec![node("few", &[few]), node("many", &[many])]]
    {
        let outcome = now(&world(nodes, vec![for_profile("p", at(0.0), "4g.40gb")]), 60.0);
        assert_eq!(one(&outcome.decisions).node, "few");
    }
}

#[test]
fn what_other_pods_count_on_is_not_withdrawn() {
    let pods = vec![for_profile("p", at(0.0), "1g.10gb"), for_profile("q", at(1.0), "full")];
    let outcome = now(&world(vec![node("a", &[(NONE, SEVEN)])], pods), 60.0);
    assert!(outcome.decisions.writes.is_empty());
    assert_eq!(outcome.decisions.pods["q"], Prospect::Waits);
}

#[test]
fn held_devices_are_gone_around() {
    let outcome =
        now(&world(vec![node("a", &[(&SEVEN[..1], NONE)])], vec![for_profile("p", at(0.0), "full")]), 60.0);
    assert!(outcome.decisions.writes.is_empty());
    let outcome = now(
        &world(vec![node("a", &[(&SEVEN[..1], NONE)])], vec![for_profile("p", at(0.0), "3g.40gb")]),
        60.0,
    );
    assert_eq!(demanded(one(&outcome.decisions)), profiles(&[("3g.40gb", 1)]));
}

#[test]
fn a_node_that_does_not_follow_is_not_changed() {
    let unready: Node = serde_json::from_value(
        json!({"metadata": {"name": "a"}, "status": {"conditions": [{"type": "Ready", "status": "False",
            "lastTransitionTime": null}]}}),
    )
    .unwrap();
    let kinds: [fn(&mut NodeState); 6] = [
        |it| it.follows = false,
        |it| it.counts = true,
        |it| it.progress = Progress::Pending,
        |it| it.gpus[0].has_problem = true,
        |it| it.demand = Some(Demand { renewed: None, profiles: Profiles::new() }),
        |it| it.gpus[0].published.clear(),
    ];
    for (number, spoil) in kinds.iter().enumerate() {
        let mut state = node("a", &[(NONE, WHOLE)]);
        spoil(&mut state);
        let outcome = now(&world(vec![state], vec![for_profile("p", at(0.0), "1g.10gb")]), 60.0);
        // Nothing published is no reason: what is possible counts.
        assert_eq!(outcome.decisions.writes.len(), usize::from(number == 5), "{number}");
    }
    let mut state = node("a", &[(NONE, WHOLE)]);
    state.node = Arc::new(unready);
    let outcome = now(&world(vec![state], vec![for_profile("p", at(0.0), "1g.10gb")]), 60.0);
    assert!(outcome.decisions.writes.is_empty());
}

#[test]
fn no_pod_counts_on_a_change_of_a_node_of_which_a_person_demands_something() {
    let mut of_a_person = node("a", &[(NONE, WHOLE)]);
    of_a_person.demand = Some(Demand { renewed: None, profiles: Profiles::new() });
    let nodes = vec![of_a_person, node("b", &[(NONE, WHOLE)])];
    let outcome = now(&world(nodes, vec![for_profile("p", at(0.0), "1g.10gb")]), 60.0);
    assert_eq!(one(&outcome.decisions).node, "b");
}

#[test]
fn node_selectors_decide_which_node_changes() {
    let mut labelled = node("b", &[(NONE, WHOLE)]);
    let labels = BTreeMap::from([("zone".to_owned(), "b".to_owned())]);
    let mut object = (*labelled.node).clone();
    object.metadata.labels = Some(labels.clone());
    labelled.node = Arc::new(object);
    let mut waiting = for_profile("p", at(0.0), "1g.10gb");
    waiting.spec = Arc::new(PodSpec { node_selector: Some(labels), ..PodSpec::default() });
    let outcome = now(&world(vec![node("a", &[(NONE, WHOLE)]), labelled], vec![waiting]), 60.0);
    assert_eq!(one(&outcome.decisions).node, "b");
}

#[test]
fn a_node_is_changed_again_after_the_interval_only() {
    let options = Options::default();
    let mut state = node("a", &[(NONE, WHOLE), (NONE, WHOLE)]);
    let first = world(vec![state.clone()], vec![for_profile("p", at(0.0), "1g.10gb")]);
    let outcome = decide(&first, &options, &Memory::default(), at(10.0));
    state.demand = one(&outcome.decisions).demand.clone();
    state.gpus[0].published = node("x", &[(NONE, SEVEN)]).gpus[0].published.clone();
    let pods = vec![for_profile("p", at(0.0), "1g.10gb"), for_profile("q", at(1.0), "2g.20gb")];
    let second = world(vec![state], pods);
    let early = decide(&second, &options, &outcome.memory, at(39.9));
    assert!(early.decisions.writes.is_empty(), "{:#?}", early.decisions);
    assert_eq!(early.wake, Some(at(40.0)));
    // After a restart, the renewal is the latest time at which it can have been changed.
    let restarted = decide(&second, &options, &Memory::default(), at(39.9));
    assert!(restarted.decisions.writes.is_empty());
    let late = decide(&second, &options, &outcome.memory, at(40.0));
    let expected = profiles(&[("1g.10gb", 1), ("2g.20gb", 1)]);
    assert_eq!((one(&late.decisions).reason, demanded(one(&late.decisions))), (Reason::Change, expected));
}

#[test]
fn pods_count_on_a_node_that_is_about_to_publish_for_them() {
    let options = Options::default();
    let mut state = node("a", &[(NONE, WHOLE)]);
    let nodes = |state: &NodeState| vec![state.clone(), node("b", &[(NONE, WHOLE)])];
    let pods = vec![for_profile("p", at(0.0), "2g.20gb")];
    let first = decide(&world(nodes(&state), pods.clone()), &options, &Memory::default(), at(10.0));
    state.demand = one(&first.decisions).demand.clone();
    state.progress = Progress::Pending;
    let next = decide(&world(nodes(&state), pods.clone()), &options, &first.memory, at(12.0));
    assert!(next.decisions.writes.is_empty(), "{:#?}", next.decisions);
    assert_eq!(next.decisions.pods["p"], Prospect::Coming { node: "a".to_owned() });
    // It never answers: the other node serves, and nothing is expected of this one.
    let late = decide(&world(nodes(&state), pods), &options, &first.memory, at(70.0));
    let changed: Vec<_> = late.decisions.writes.iter().map(|it| (it.node.as_str(), it.reason)).collect();
    assert_eq!(changed, [("b", Reason::Change), ("a", Reason::Remove)]);
}

#[test]
fn a_demand_is_reduced_as_pods_get_their_devices_and_removed_no_sooner_than_the_interval_after_a_change() {
    let options = Options::default();
    let mut state = node("a", &[(NONE, WHOLE)]);
    let pods = vec![for_profile("p", at(0.0), "2g.20gb"), for_profile("q", at(0.0), "1g.10gb")];
    let first = decide(&world(vec![state.clone()], pods.clone()), &options, &Memory::default(), at(10.0));
    state.demand = one(&first.decisions).demand.clone();
    let published: Gpu<'_> = (&[("2g.20gb", 0)], &[("1g.10gb", 6)]);
    state.gpus = node("a", &[published]).gpus;
    let next = decide(&world(vec![state.clone()], pods[1..].to_vec()), &options, &first.memory, at(15.0));
    let write = one(&next.decisions);
    assert_eq!((write.reason, demanded(write)), (Reason::Reduce, profiles(&[("1g.10gb", 1)])));
    state.demand = write.demand.clone();
    let empty = decide(&world(vec![state.clone()], Vec::new()), &options, &next.memory, at(20.0));
    let write = one(&empty.decisions);
    assert_eq!((write.reason, demanded(write)), (Reason::Reduce, Profiles::new()));
    state.demand = write.demand.clone();
    let quiet = decide(&world(vec![state.clone()], Vec::new()), &options, &empty.memory, at(30.0));
    assert!(quiet.decisions.writes.is_empty());
    assert_eq!(quiet.wake, Some(at(40.0)));
    let last = decide(&world(vec![state], Vec::new()), &options, &quiet.memory, at(40.0));
    assert_eq!((one(&last.decisions).reason, &one(&last.decisions).demand), (Reason::Remove, &None));
}

#[test]
fn what_another_controller_has_demanded_since_is_a_change_though_it_is_the_same() {
    let options = Options::default();
    let mut state = node("a", &[(NONE, WHOLE)]);
    let pods = vec![for_profile("p", at(0.0), "2g.20gb")];
    let first = decide(&world(vec![state.clone()], pods), &options, &Memory::default(), at(10.0));
    state.demand = one(&first.decisions).demand.clone();
    state.progress = Progress::Pending;
    let removes = |renewed: f64| {
        let mut state = state.clone();
        state.demand.as_mut().unwrap().renewed = Some(at(renewed));
        let outcome = decide(&world(vec![state], Vec::new()), &options, &first.memory, at(60.0));
        outcome.decisions.writes.iter().any(|it| it.reason == Reason::Remove)
    };
    // The second is what the first demand says once it was written, in whole seconds or not.
    assert_eq!([9.5, 10.0, 29.0, 31.0].map(removes), [true, true, true, false]);
}

#[test]
fn a_demand_that_is_needed_is_renewed() {
    let mut state = node("a", &[(NONE, SEVEN)]);
    state.demand = Some(Demand { renewed: Some(at(10.0)), profiles: profiles(&[("1g.10gb", 1)]) });
    let mut waiting = for_profile("p", at(0.0), "1g.10gb");
    waiting.unschedulable = None;
    let world = world(vec![state], vec![waiting]);
    assert!(now(&world, 39.0).decisions.writes.is_empty());
    let outcome = now(&world, 40.0);
    let write = one(&outcome.decisions);
    assert_eq!((write.reason, demanded(write)), (Reason::Renew, profiles(&[("1g.10gb", 1)])));
    assert_eq!(write.demand.as_ref().unwrap().renewed, Some(at(40.0)));
}

#[test]
fn the_floor_is_kept() {
    let mut state = node("a", &[(NONE, SEVEN)]);
    state.floor = profiles(&[("1g.10gb", 4)]);
    let ask = |profile: &str, state: &NodeState| {
        now(&world(vec![state.clone()], vec![for_profile("p", at(0.0), profile)]), 60.0).decisions.writes
    };
    assert!(ask("full", &state).is_empty());
    assert!(ask("4g.40gb", &state).is_empty());
    assert_eq!(ask("3g.40gb", &state).len(), 1);
    // What is held counts.
    let held: Gpu<'_> = (&SEVEN[3..], &SEVEN[..3]);
    state.gpus = node("a", &[held]).gpus;
    assert_eq!(ask("2g.20gb", &state).len(), 1);
}

#[test]
fn of_two_pods_that_exclude_each_other_the_one_with_priority_and_then_the_older_is_served() {
    let pods = |first: (i32, f64), second: (i32, f64)| {
        let mut pods = vec![for_profile("p", at(first.1), "full"), for_profile("q", at(second.1), "7g.80gb")];
        (pods[0].priority, pods[1].priority) = (first.0, second.0);
        pods
    };
    let served = |pods| {
        let outcome = now(&world(vec![node("a", &[(NONE, SEVEN)])], pods), 60.0);
        one(&outcome.decisions).serves.clone()
    };
    assert_eq!(served(pods((0, 1.0), (0, 2.0))), ["p"]);
    assert_eq!(served(pods((0, 2.0), (0, 1.0))), ["q"]);
    assert_eq!(served(pods((0, 1.0), (5, 2.0))), ["q"]);
}

#[test]
fn a_list_of_alternatives_gets_the_first_that_a_node_can_be_partitioned_into() {
    let alternatives = json!([{"name": "gpu", "firstAvailable": [
        {"name": "large", "deviceClassName": "mig", "selectors": selector("own.profile == \"4g.40gb\"")},
        {"name": "small", "deviceClassName": "mig", "selectors": selector("own.profile == \"2g.20gb\"")}]}]);
    let ask = |gpu: Gpu<'_>| {
        let pods = vec![pod("p", at(0.0), claim("c", alternatives.clone()))];
        demanded(one(&now(&world(vec![node("a", &[gpu])], pods), 60.0).decisions))
    };
    assert_eq!(ask((NONE, WHOLE)), profiles(&[("4g.40gb", 1)]));
    assert_eq!(ask((&[("3g.40gb", 0)], NONE)), profiles(&[("2g.20gb", 1)]));
}

#[test]
fn a_request_by_amount_gets_the_smallest_device_that_is_enough() {
    let selectors = json!([{"cel": {"expression": "device.capacity[\"mig.dra-driver.dev\"].memory.compareTo(quantity(\"15Gi\")) >= 0"}}]);
    let request = json!([{"name": "gpu", "exactly": {"deviceClassName": "mig", "selectors": selectors}}]);
    let pods = vec![pod("p", at(0.0), claim("c", request))];
    let outcome = now(&world(vec![node("a", &[(NONE, SEVEN)])], pods), 60.0);
    let demand = demanded(one(&outcome.decisions));
    assert!(demand == profiles(&[("1g.20gb", 1)]) || demand == profiles(&[("2g.20gb", 1)]), "{demand:?}");
}

#[test]
fn a_pod_with_several_devices_is_served_by_one_node() {
    let two = claim("c", json!([profile("full", 2)]));
    let cut: Gpu<'_> = (NONE, SEVEN);
    let nodes = vec![node("a", &[cut]), node("b", &[cut, cut]), node("c", &[cut])];
    let outcome = now(&world(nodes, vec![pod("p", at(0.0), two)]), 60.0);
    let write = one(&outcome.decisions);
    assert_eq!((write.node.as_str(), demanded(write)), ("b", profiles(&[("full", 2)])));
}

#[test]
fn kinds_of_pods_of_one_namespace_do_not_shut_out_another() {
    // Each with another shape, or with another group of nodes, or with questions to the allocator.
    let shape = |it: usize| {
        let mut request = profile("full", 1);
        request["name"] = json!(format!("r{it}"));
        pod(&format!("p{it}"), at(0.0), claim(&format!("c{it}"), json!([request])))
    };
    let group = |it: usize| {
        let spec = json!({"containers": [], "nodeSelector": {"no": it.to_string()}});
        PendingPod { spec: Arc::new(serde_json::from_value(spec).unwrap()), ..shape(0) }
    };
    let many = |it: usize| {
        let mut request = profile("full", 3);
        request["name"] = json!(format!("r{it}"));
        pod(&format!("p{it}"), at(0.0), claim(&format!("c{it}"), json!([request])))
    };
    let kinds: [&dyn Fn(usize) -> PendingPod; 3] = [&shape, &group, &many];
    for kind in kinds {
        let mut pods: Vec<PendingPod> = (0..600).map(kind).collect();
        let two = claim("two", json!([profile("1g.10gb", 2)]));
        let other = pod("other", at(1.0), two);
        let spec = json!({"containers": [], "tolerations": [{"key": "other"}]});
        let spec = Arc::new(serde_json::from_value(spec).unwrap());
        pods.push(PendingPod { namespace: "other".to_owned(), spec, ..other });
        let outcome = now(&world(vec![node("a", &[(NONE, SEVEN)])], pods), 60.0);
        assert_eq!(outcome.decisions.pods["other"], Prospect::Published { node: "a".to_owned() });
    }
}

#[test]
fn requests_for_devices_of_other_drivers_are_left_to_them() {
    let both = json!([profile("2g.20gb", 1), {"name": "nic", "exactly": {"deviceClassName": "nic"}}]);
    let other = json!([{"name": "nic", "exactly": {"deviceClassName": "nic"}}]);
    let pods = vec![pod("p", at(0.0), claim("c", both)), pod("q", at(0.0), claim("d", other))];
    let outcome = now(&world(vec![node("a", &[(NONE, WHOLE)])], pods), 60.0);
    assert_eq!(demanded(one(&outcome.decisions)), profiles(&[("2g.20gb", 1)]));
    assert!(!outcome.decisions.pods.contains_key("q"));
}

#[test]
fn what_no_gpu_can_be_partitioned_into_changes_nothing() {
    let outcome =
        now(&world(vec![node("a", &[(NONE, WHOLE)])], vec![for_profile("p", at(0.0), "9g.90gb")]), 60.0);
    assert!(outcome.decisions.writes.is_empty());
    assert_eq!(outcome.decisions.pods["p"], Prospect::Impossible);
}

#[test]
fn a_pod_that_does_not_use_what_it_is_offered_does_not_keep_it_from_others() {
    let options = Options::default();
    let pods = vec![for_profile("p", at(0.0), "1g.10gb"), for_profile("q", at(1.0), "full")];
    let world = world(vec![node("a", &[(NONE, SEVEN)])], pods);
    let first = decide(&world, &options, &Memory::default(), at(60.0));
    assert!(first.decisions.writes.is_empty());
    let later = decide(&world, &options, &first.memory, at(120.0));
    assert_eq!(later.decisions.pods["p"], Prospect::WaitsForSomethingElse);
    assert_eq!(demanded(one(&later.decisions)), profiles(&[("full", 1)]));
}

#[test]
fn a_write_that_the_world_does_not_show_yet_counts_until_it_failed_or_must_be_lost() {
    let options = Options::default();
    let nodes = vec![node("a", &[(NONE, WHOLE)]), node("b", &[(NONE, WHOLE)])];
    let world = world(nodes, vec![for_profile("p", at(0.0), "2g.20gb")]);
    let first = decide(&world, &options, &Memory::default(), at(10.0));
    assert_eq!(one(&first.decisions).node, "a");
    let next = decide(&world, &options, &first.memory, at(11.0));
    assert!(next.decisions.writes.is_empty(), "{:#?}", next.decisions);
    assert_eq!(next.wake, Some(at(20.0)));
    // Lost: the node may have been changed all the same, so another one is.
    let lost = decide(&world, &options, &next.memory, at(20.0));
    assert_eq!(one(&lost.decisions).node, "b");
    let mut memory = next.memory;
    memory.failed("a");
    let failed = decide(&world, &options, &memory, at(12.0));
    assert_eq!(one(&failed.decisions).node, "a");
}

fn turns() -> Options {
    Options {
        hold_after: Some(Duration::from_secs(60)),
        hold_for: Duration::from_secs(600),
        ..Options::default()
    }
}

#[test]
fn a_claim_that_has_waited_for_long_gets_the_gpu_where_the_fewest_claims_stand_in_its_way() {
    let gpus: [Gpu<'_>; 2] = [(&SEVEN[..5], NONE), (&SEVEN[..2], NONE)];
    for counts in [false, true] {
        let mut state = node("a", &gpus);
        state.counts = counts;
        let world = world(vec![state], vec![for_profile("p", at(0.0), "7g.80gb")]);
        assert!(decide(&world, &turns(), &Memory::default(), at(59.0)).decisions.writes.is_empty());
        let outcome = decide(&world, &turns(), &Memory::default(), at(60.0));
        let write = one(&outcome.decisions);
        let claim = ClaimKey {
            namespace: "default".to_owned(),
            name: "claim-p".to_owned(),
            uid: "claim-p".to_owned(),
        };
        let hold = Hold {
            gpu: world.nodes[0].gpus[1].name.clone(),
            profile: "7g.80gb".to_owned(),
            claim,
            until: at(360.0),
            since: Some(at(60.0)),
            is_ours: true,
        };
        assert_eq!((write.reason, &write.holds), (Reason::Holds, &vec![hold]));
    }
}

#[test]
fn a_hold_ends_and_its_claim_waits_for_the_next_one() {
    let mut state = node("a", &[(&SEVEN[..5], NONE)]);
    let pods = vec![for_profile("p", at(0.0), "7g.80gb")];
    let first = decide(&world(vec![state.clone()], pods.clone()), &turns(), &Memory::default(), at(60.0));
    state.holds = one(&first.decisions).holds.clone();
    let asked = |seconds: f64, state: &NodeState| {
        decide(&world(vec![state.clone()], pods.clone()), &turns(), &Memory::default(), at(seconds))
            .decisions
            .writes
    };
    // It is renewed, with as few writes as that needs.
    let mut ends = vec![state.holds[0].until];
    for seconds in (70..720).step_by(10) {
        for write in asked(f64::from(seconds), &state) {
            state.holds.clone_from(&write.holds);
            ends.push(state.holds[0].until);
        }
    }
    assert_eq!(ends, [360.0, 510.0, 660.0].map(at));
    let again = asked(720.0, &state);
    assert_eq!((again[0].holds[0].until, again[0].holds[0].since), (at(1020.0), Some(at(720.0))));
    // A claim that does not wait any more keeps nothing.
    let gone = decide(&world(vec![state], Vec::new()), &turns(), &Memory::default(), at(300.0));
    assert!(one(&gone.decisions).holds.is_empty());
}

#[test]
fn a_hold_that_no_controller_renews_is_over_and_its_claim_waits_for_the_next_one() {
    let mut state = node("a", &[(&SEVEN[..5], NONE)]);
    let pods = vec![for_profile("p", at(0.0), "7g.80gb")];
    let decide = |seconds: f64, state: &NodeState| {
        decide(&world(vec![state.clone()], pods.clone()), &turns(), &Memory::default(), at(seconds))
    };
    let first = decide(60.0, &state);
    state.holds = one(&first.decisions).holds.clone();
    // It looks again when the hold is to be renewed.
    assert_eq!(decide(100.0, &state).wake, Some(at(210.0)));
    assert_eq!(one(&decide(359.0, &state).decisions).holds[0].until, at(659.0));
    for seconds in [360.0, 419.0] {
        assert!(decide(seconds, &state).decisions.writes.is_empty(), "{seconds}");
    }
    assert_eq!(one(&decide(420.0, &state).decisions).holds[0].since, Some(at(420.0)));
    // One by a person has no time since when it lasts, and is not renewed.
    state.holds[0].since = None;
    assert!(decide(359.0, &state).decisions.writes.is_empty());
}

#[test]
fn a_hold_of_another_writer_stays_and_one_on_a_node_that_does_not_take_part_goes() {
    let claim = ClaimKey { namespace: "d".to_owned(), name: "c".to_owned(), uid: "c".to_owned() };
    for (is_ours, takes_part, options) in
        [(false, true, turns()), (true, true, Options::default()), (true, false, turns())]
    {
        let mut state = node("a", &[(NONE, SEVEN)]);
        let gpu = state.gpus[0].name.clone();
        let (profile, claim) = ("full".to_owned(), claim.clone());
        state.holds = vec![Hold { gpu, profile, claim, until: at(500.0), since: None, is_ours }];
        state.takes_part = takes_part;
        let outcome = decide(&world(vec![state], Vec::new()), &options, &Memory::default(), at(50.0));
        assert_eq!(outcome.decisions.writes.len(), usize::from(!takes_part), "{is_ours} {takes_part}");
    }
}

/// A hold of the first GPU for the claim of pod `p`.
fn hold_for_p(state: &NodeState, profile: &str) -> Hold {
    Hold {
        gpu: state.gpus[0].name.clone(),
        profile: profile.to_owned(),
        claim: ClaimKey {
            namespace: "default".to_owned(),
            name: "claim-p".to_owned(),
            uid: "claim-p".to_owned(),
        },
        until: at(500.0),
        since: None,
        is_ours: true,
    }
}

#[test]
fn what_is_held_back_is_given_to_its_claim_only() {
    let mut state = node("a", &[(NONE, SEVEN)]);
    state.holds = vec![hold_for_p(&state, "full")];
    // In the scheduler's order, the small pod comes first.
    let pods = vec![for_profile("a", at(0.0), "1g.10gb"), for_profile("p", at(1.0), "full")];
    let outcome = decide(&world(vec![state], pods), &turns(), &Memory::default(), at(50.0));
    // The hold lets the driver publish it: no demand is written for it, which the driver would not follow there.
    assert!(outcome.decisions.writes.is_empty(), "{:#?}", outcome.decisions);
    assert_eq!(outcome.decisions.pods["p"], Prospect::Coming { node: "a".to_owned() });
    assert_eq!(outcome.decisions.pods["a"], Prospect::Waits);
}

#[test]
fn others_count_on_what_is_not_in_the_way_of_a_gpu_that_is_held_back() {
    let published = [("4g.40gb", 0), ("3g.40gb", 4), ("1g.10gb", 4), ("1g.10gb", 0)];
    let mut state = node("a", &[(NONE, &published)]);
    (state.follows, state.counts) = (false, true);
    state.holds = vec![hold_for_p(&state, "4g.40gb")];
    let pods = vec![
        for_profile("a", at(0.0), "1g.10gb"),
        for_profile("b", at(1.0), "1g.10gb"),
        for_profile("p", at(2.0), "4g.40gb"),
    ];
    let outcome = decide(&world(vec![state], pods), &turns(), &Memory::default(), at(50.0));
    let node = || "a".to_owned();
    assert_eq!(outcome.decisions.pods["a"], Prospect::Published { node: node() });
    assert_eq!(outcome.decisions.pods["b"], Prospect::Waits, "the other one is about to go");
    assert_eq!(outcome.decisions.pods["p"], Prospect::Published { node: node() });
}

#[test]
fn a_claim_gets_a_turn_for_a_profile_of_which_a_gpu_has_one_at_most() {
    let mut state = node("a", &[(SEVEN, NONE)]);
    (state.follows, state.counts) = (false, true);
    for (profile, count) in
        [("1g.10gb", 0), ("2g.20gb", 0), ("3g.40gb", 0), ("4g.40gb", 1), ("7g.80gb", 1), ("full", 1)]
    {
        let world = world(vec![state.clone()], vec![for_profile("p", at(0.0), profile)]);
        let outcome = decide(&world, &turns(), &Memory::default(), at(500.0));
        let holds: usize = outcome.decisions.writes.iter().map(|it| it.holds.len()).sum();
        assert_eq!(holds, count, "{profile}");
    }
}

#[test]
fn a_claim_that_a_3g_serves_gets_no_turn_for_something_larger() {
    let mut state = node("a", &[(SEVEN, NONE)]);
    (state.follows, state.counts) = (false, true);
    let request = |cel: &str| {
        json!([{"name": "gpu", "exactly": {"deviceClassName": "mig", "allocationMode": "ExactCount", "count": 1,
            "selectors": selector(cel)}}])
    };
    for (cel, count) in [
        ("own.profile == \"7g.80gb\" || own.profile == \"full\"", 1),
        ("own.profile == \"7g.80gb\" || own.profile == \"3g.40gb\"", 0),
    ] {
        let world = world(vec![state.clone()], vec![pod("p", at(0.0), claim("claim-p", request(cel)))]);
        let outcome = decide(&world, &turns(), &Memory::default(), at(500.0));
        let holds: usize = outcome.decisions.writes.iter().map(|it| it.holds.len()).sum();
        assert_eq!(holds, count, "{cel}");
    }
}

#[test]
fn what_is_published_beside_a_hold_serves_no_demand() {
    let mut state = node("a", &[(&SEVEN[..1], &[("1g.10gb", 4)]), (NONE, WHOLE)]);
    state.holds = vec![Hold { is_ours: false, ..hold_for_p(&state, "4g.40gb") }];
    let pods: Vec<_> = ["q", "r"].iter().map(|it| for_profile(it, at(1.0), "1g.10gb")).collect();
    let first = decide(&world(vec![state.clone()], pods.clone()), &turns(), &Memory::default(), at(60.0));
    let write = one(&first.decisions);
    assert_eq!(demanded(write), profiles(&[("1g.10gb", 1)]), "the other one is published");
    // The driver has not followed it yet, and another node comes.
    (state.demand, state.progress) = (write.demand.clone(), Progress::Pending);
    state.resource_version = Some("2".to_owned());
    let nodes = vec![state, node("b", &[(NONE, WHOLE)])];
    let second = decide(&world(nodes, pods), &turns(), &first.memory, at(62.0));
    assert!(second.decisions.writes.is_empty(), "{:#?}", second.decisions.writes);
}

#[test]
fn a_gpu_that_is_held_back_is_not_changed_for_other_claims() {
    // A 4g is held back at the start of the GPU; the driver changes nothing of it for a 3g at its end.
    let mut state = node("a", &[(&SEVEN[..1], NONE)]);
    state.holds = vec![hold_for_p(&state, "4g.40gb")];
    let pods = vec![for_profile("p", at(0.0), "4g.40gb"), for_profile("q", at(1.0), "3g.40gb")];
    let outcome = decide(&world(vec![state], pods), &turns(), &Memory::default(), at(50.0));
    assert!(outcome.decisions.writes.is_empty(), "{:#?}", outcome.decisions);
}

#[test]
fn holds_are_limited_by_namespace_and_by_pool() {
    let busy: Gpu<'_> = (&SEVEN[..1], NONE);
    let state = node("a", &[busy; 8]);
    let pods: Vec<_> = (0..8).map(|it| for_profile(&format!("p{it}"), at(f64::from(it)), "full")).collect();
    let holds = |options: &Options, pods: &[PendingPod]| {
        let world = world(vec![state.clone()], pods.to_vec());
        let outcome = decide(&world, options, &Memory::default(), at(100.0));
        one(&outcome.decisions).holds.iter().map(|it| it.claim.uid.clone()).collect::<Vec<_>>()
    };
    assert_eq!(holds(&turns(), &pods), ["claim-p0", "claim-p1"]);
    let wide = Options { hold_pool: 0.5, ..turns() };
    assert_eq!(holds(&wide, &pods).len(), 2);
    let mut others = pods;
    others.iter_mut().skip(4).for_each(|it| it.namespace = "other".to_owned());
    assert_eq!(holds(&wide, &others), ["claim-p0", "claim-p1", "claim-p4", "claim-p5"]);
    others[7].priority = 1;
    assert_eq!(holds(&turns(), &others)[0], "claim-p7");
}

#[test]
fn members_of_a_set_are_its_bits() {
    assert_eq!(members(0b1011).collect::<Vec<_>>(), [0, 1, 3]);
    assert_eq!(members(1 << 127).collect::<Vec<_>>(), [127]);
}
