//! A thousand nodes.

use std::time::{Duration, Instant};

use mig_controller::demand::{Memory, Options, Prospect, decide};
use serde_json::json;

use crate::facts::{NONE, SEVEN, WHOLE, node, world};
use crate::large;
use crate::pods::{at, claim, pod, profile};

#[test]
fn a_round_of_a_large_cluster_asks_about_equal_pods_and_gpus_once() {
    // So large that anything that is done for each pod and each node takes minutes, in a debug build, too.
    let world = large::world(200, 2_000);
    let outcome = decide(&world, &Options::default(), &Memory::default(), at(100.0));
    assert_eq!(outcome.decisions.pods.len(), 2_000);
    assert!(outcome.decisions.pods.values().any(|it| matches!(it, Prospect::Coming { .. })));
    assert!(!outcome.decisions.writes.is_empty());
    // A write that is not seen yet is not repeated, and what it serves needs no other.
    let next = decide(&world, &Options::default(), &outcome.memory, at(101.0));
    let first: Vec<&str> = outcome.decisions.writes.iter().map(|it| it.node.as_str()).collect();
    let again: Vec<&str> = next.decisions.writes.iter().map(|it| it.node.as_str()).collect();
    assert!(again.iter().all(|it| !first.contains(it)), "{again:?}");
    let served = |uid: &String| matches!(outcome.decisions.pods[uid], Prospect::Coming { .. });
    let twice: Vec<_> =
        next.decisions.writes.iter().flat_map(|it| &it.serves).filter(|it| served(it)).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn a_round_looks_at_a_node_without_room_for_several_devices_once() {
    let full = node("full", &[(SEVEN, NONE), (SEVEN, NONE)]);
    let mut nodes = vec![full; 1_000];
    let waiting = |it: usize| {
        let two = claim(&format!("c{it}"), json!([profile("1g.10gb", 2)]));
        pod(&format!("p{it}"), at(0.0), two)
    };
    // One node has room, and comes after 1,000 that have none.
    nodes.push(node("free", &[(NONE, WHOLE), (NONE, WHOLE)]));
    let world = world(nodes, (0..10_000).map(waiting).collect());
    let started = Instant::now();
    let outcome = decide(&world, &Options::default(), &Memory::default(), at(60.0));
    let took = started.elapsed();
    let coming = outcome.decisions.pods.values().filter(|it| matches!(it, Prospect::Coming { .. }));
    assert_eq!(coming.count(), 7);
    // With a question for each pod and each node it is a minute in a debug build.
    assert!(took < Duration::from_secs(25), "{took:?}");
}
