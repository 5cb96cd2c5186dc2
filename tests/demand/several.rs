//! Holds for pods with several devices.

use std::time::Duration;

use mig_controller::demand::{Memory, NodeState, Options, PendingPod, Prospect, World, decide};
use serde_json::{Value, json};

use crate::facts::{Gpu, NONE, SEVEN, node, world};
use crate::model::Model;
use crate::pods::{at, claim, pod, profile};

/// Where most of the GPUs may be held back.
fn turns() -> Options {
    Options {
        hold_after: Some(Duration::from_secs(60)),
        hold_pool: 1.0,
        hold_namespace: 0.5,
        ..Options::default()
    }
}

/// A pod that has waited since 0.
fn waits(uid: &str, requests: Value) -> PendingPod {
    pod(uid, at(0.0), claim(&format!("claim-{uid}"), requests))
}

/// What is held back at a time: node, GPU and profile.
fn held_back(world: &World, options: &Options, seconds: f64) -> Vec<(String, usize, String)> {
    let writes = decide(world, options, &Memory::default(), at(seconds)).decisions.writes;
    let holds = writes.iter().flat_map(|write| {
        let state = world.nodes.iter().find(|it| it.name() == write.node).unwrap();
        write.holds.iter().map(|hold| {
            let gpu = state.gpus.iter().position(|it| it.name == hold.gpu).unwrap();
            (write.node.clone(), gpu, hold.profile.clone())
        })
    });
    let mut holds: Vec<_> = holds.collect();
    holds.sort();
    holds
}

const FULL: Gpu<'_> = (SEVEN, NONE);
const THREE: Gpu<'_> = (&[("1g.10gb", 0), ("1g.10gb", 1), ("1g.10gb", 2)], NONE);
const ONE: Gpu<'_> = (&[("1g.10gb", 3)], NONE);

fn counting(name: &str, gpus: &[Gpu<'_>]) -> NodeState {
    NodeState { counts: true, ..node(name, gpus) }
}

#[test]
fn a_pod_gets_all_its_gpus_of_the_node_where_the_fewest_claims_stand_in_the_way_and_at_once() {
    for make in [node, counting] {
        let nodes = vec![make("a", &[ONE, FULL, FULL]), make("b", &[FULL, ONE, FULL, THREE])];
        let whole = world(nodes.clone(), vec![waits("p", json!([profile("full", 2)]))]);
        assert!(held_back(&whole, &turns(), 59.0).is_empty());
        let of = |gpu: usize, profile: &str| ("b".to_owned(), gpu, profile.to_owned());
        assert_eq!(held_back(&whole, &turns(), 60.0), [of(1, "full"), of(3, "full")]);
        // In two requests, and of two profiles.
        let mixed = json!([profile("7g.80gb", 1), profile("4g.40gb", 1)]);
        let (mut first, second) = (mixed[0].clone(), mixed[1].clone());
        first["name"] = json!("first");
        let mixed = world(nodes, vec![waits("p", json!([first, second]))]);
        let found = held_back(&mixed, &turns(), 60.0);
        assert!(found.iter().all(|it| it.0 == "b") && found.len() == 2, "{found:?}");
        assert_ne!(found[0].2, found[1].2);
    }
}

#[test]
fn a_pod_whose_gpus_may_not_all_be_held_back_gets_none() {
    let nodes = || vec![node("a", &[ONE, FULL]), node("b", &[FULL, ONE])];
    let count = |options: &Options, count: u32| {
        held_back(&world(nodes(), vec![waits("p", json!([profile("full", count)]))]), options, 60.0).len()
    };
    assert_eq!(count(&turns(), 2), 2);
    assert_eq!(count(&turns(), 3), 0, "no node has three");
    assert_eq!(count(&Options { hold_namespace: 0.25, ..turns() }, 2), 0);
    assert_eq!(count(&Options { hold_pool: 0.25, ..turns() }, 2), 0);
    // Two that need two each: the second one would need more than the namespace may have. Another namespace may have them.
    let options = Options { hold_namespace: 0.75, ..turns() };
    let mut pods: Vec<_> = ["p", "q", "r"].map(|it| waits(it, json!([profile("full", 2)]))).into();
    assert_eq!(held_back(&world(nodes(), pods.clone()), &options, 60.0).len(), 2);
    pods[2].namespace = "other".to_owned();
    assert_eq!(held_back(&world(nodes(), pods), &options, 60.0).len(), 4);
}

#[test]
fn a_pod_gets_its_gpus_no_sooner_where_pods_may_be_evicted() {
    let world =
        world(vec![counting("a", &[ONE, ONE, FULL, FULL])], vec![waits("p", json!([profile("full", 2)]))]);
    let consolidate_after = Duration::from_secs(10);
    let options = Options { evictions_per_hour: Some(20), consolidate_after, ..turns() };
    assert!(held_back(&world, &options, 59.0).is_empty());
    assert_eq!(held_back(&world, &options, 60.0).len(), 2);
}

#[test]
fn a_pod_that_needs_something_small_too_or_any_size_gets_no_hold() {
    let nodes = || vec![counting("a", &[ONE, FULL, FULL, FULL])];
    let small = {
        let mut small = profile("1g.10gb", 1);
        small["name"] = json!("small");
        json!([profile("full", 1), small])
    };
    let any = json!([{"name": "gpu", "exactly": {"deviceClassName": "mig", "count": 2}}]);
    for requests in [small, any, json!([profile("3g.40gb", 2)])] {
        assert!(held_back(&world(nodes(), vec![waits("p", requests)]), &turns(), 60.0).is_empty());
    }
}

#[test]
fn holds_for_one_pod_are_renewed_together_and_serve_it_once_all_are_free() {
    let pods = vec![waits("p", json!([profile("full", 2)]))];
    let mut nodes = vec![counting("a", &[ONE, FULL, THREE, FULL])];
    let first = decide(&world(nodes.clone(), pods.clone()), &turns(), &Memory::default(), at(60.0));
    nodes[0].holds.clone_from(&first.decisions.writes[0].holds);
    let renewed = decide(&world(nodes.clone(), pods.clone()), &turns(), &Memory::default(), at(220.0));
    let ends: Vec<_> = renewed.decisions.writes[0].holds.iter().map(|it| (it.since, it.until)).collect();
    assert_eq!(ends, [(Some(at(60.0)), at(520.0)); 2]);

    // One is free, and the small ones cannot have it; with both it is served.
    let model = Model::new("H100-80GB", 4);
    let free = model.state(0, 0, model.of_profile("full") | model.of_profile("7g.80gb"));
    let small = waits("q", json!([profile("1g.10gb", 1)]));
    let mut prospects = |gpu: usize| {
        let (name, kind) = (nodes[0].gpus[gpu].name.clone(), nodes[0].gpus[gpu].kind.clone());
        nodes[0].gpus[gpu] = mig_controller::demand::GpuState { name, kind, ..free.clone() };
        let both = vec![pods[0].clone(), small.clone()];
        decide(&world(nodes.clone(), both), &turns(), &Memory::default(), at(100.0)).decisions.pods
    };
    let published = Prospect::Published { node: "a".to_owned() };
    let half = prospects(0);
    assert!(half["p"] != published && half["q"] != published, "{half:?}");
    let whole = prospects(2);
    assert!(whole["p"] == published && whole["q"] != published, "{whole:?}");
}
