//! A thousand nodes.

use mig_controller::demand::{Memory, Options, Prospect, decide};

use crate::large;
use crate::pods::at;

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
