//! Which pods are evicted so that a claim with a GPU held back is served, and which are not: one fact each.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PodSpec};
use k8s_openapi::jiff::Timestamp;
use mig_controller::demand::{
    ClaimKey, Eviction, Hold, Memory, MovablePod, NodeState, Options, Outcome, PendingPod, Placed, Progress,
    Prospect, World, decide,
};
use serde_json::json;

use crate::facts::{Gpu, NONE, node, world};
use crate::model::Model;
use crate::pods::{at, claim, for_profile};

/// Seconds after which a controller that has begun at 0 decides: the pod waits long enough, and every eviction is gained.
const NOW: f64 = 4000.0;

fn options() -> Options {
    Options {
        hold_after: Some(Duration::from_secs(60)),
        hold_for: Duration::from_secs(900),
        evictions_per_hour: Some(20),
        ..Options::default()
    }
}

/// A node with counters: everything that fits beside what is held is published.
fn counting(name: &str, held: &[&[(&str, u32)]]) -> NodeState {
    let model = Model::new("H100-80GB", held.len());
    let gpus: Vec<Gpu<'_>> = held.iter().map(|it| (*it, NONE)).collect();
    let mut node = node(name, &gpus);
    (node.follows, node.counts) = (false, true);
    node.gpus.iter_mut().for_each(|it| offer(it, &model, None));
    node
}

/// What a driver with counters offers of a GPU, which may be held back for a profile.
fn offer(gpu: &mut mig_controller::demand::GpuState, model: &Model, held_back: Option<&str>) {
    let position = |it: &Placed| {
        model.devices.iter().position(|d| d.profile == it.profile && d.start == it.start).unwrap()
    };
    let held = gpu.held.iter().fold(0, |set, it| set | 1 << position(it));
    let open = model.open(held);
    let in_the_way = held_back.map_or(0, |it| model.in_the_way(it));
    gpu.published = model.state(0, held, open & !in_the_way).published;
}

/// A pod that may be moved, with one device of a GPU.
fn mover(uid: &str, node: &NodeState, gpu: usize, profile: &str, start: u32) -> MovablePod {
    let placed = node.gpus[gpu].held.iter().find(|it| it.profile == profile && it.start == start);
    MovablePod {
        pod: PendingPod { unschedulable: None, ..for_profile(uid, at(0.0), profile) },
        node: node.name().to_owned(),
        devices: vec![(node.gpus[gpu].name.clone(), placed.unwrap().clone())],
        users: BTreeSet::from([uid.to_owned()]),
        started: Some(at(0.0)),
        grace: Duration::from_secs(30),
        is_leaving: false,
        stays_on_node: false,
    }
}

/// Two pods with a 1g each on the first GPU, and three places for one on the second: a whole first GPU is two evictions away.
fn two_in_the_way() -> World {
    let node = counting("a", &[&[("1g.10gb", 0), ("1g.10gb", 3)], &[("4g.40gb", 0)]]);
    let movable = vec![mover("m", &node, 0, "1g.10gb", 0), mover("n", &node, 0, "1g.10gb", 3)];
    let pods = vec![for_profile("p", at(NOW - 600.0), "7g.80gb")];
    World { movable, ..world(vec![node], pods) }
}

/// A controller that has led for longer than an hour.
#[derive(Clone)]
struct Leader {
    options: Options,
    memory: Memory,
}

impl Leader {
    fn new(options: Options) -> Self {
        let memory = decide(&World::default(), &options, &Memory::default(), at(0.0)).memory;
        Self { options, memory }
    }

    fn decide(&mut self, world: &World, now: f64) -> Outcome {
        let outcome = decide(world, &self.options, &self.memory, at(now));
        self.memory = outcome.memory.clone();
        outcome
    }

    /// Decides, lets drivers follow the holds that are written, and decides again.
    fn hold(&mut self, world: &mut World, now: f64) -> Option<Eviction> {
        let outcome = self.decide(world, now);
        assert_eq!(outcome.decisions.eviction, None, "nothing is evicted before the hold is in force");
        for write in &outcome.decisions.writes {
            let node = world.nodes.iter_mut().find(|it| it.name() == write.node).unwrap();
            node.holds.clone_from(&write.holds);
            follow(node);
        }
        self.decide(world, now + 1.0).decisions.eviction
    }
}

/// The driver offers nothing that is in the way of a hold.
fn follow(node: &mut NodeState) {
    let model = Model::new("H100-80GB", node.gpus.len());
    for gpu in &mut node.gpus {
        let hold = node.holds.iter().find(|it| it.gpu == gpu.name);
        offer(gpu, &model, hold.map(|it| it.profile.as_str()));
    }
}

fn evicted(eviction: Option<&Eviction>) -> Vec<&str> {
    let mut names: Vec<&str> =
        eviction.iter().flat_map(|it| &it.pods).map(|it| it.pod.name.as_str()).collect();
    names.sort_unstable();
    names
}

/// What a leader of old evicts in a world, once the hold is in force.
fn evicts(mut world: World) -> Vec<String> {
    let eviction = Leader::new(options()).hold(&mut world, NOW);
    evicted(eviction.as_ref()).into_iter().map(str::to_owned).collect()
}

#[test]
fn pods_that_may_be_moved_make_room_for_a_claim_once_its_gpu_is_held_back() {
    let mut world = two_in_the_way();
    let eviction = Leader::new(options()).hold(&mut world, NOW).unwrap();
    assert_eq!(evicted(Some(&eviction)), ["m", "n"]);
    assert_eq!((eviction.node.as_str(), &eviction.gpu), ("a", &world.nodes[0].gpus[0].name));
    assert_eq!((eviction.profile.as_str(), eviction.waiting.name.as_str()), ("7g.80gb", "p"));
    assert_eq!((eviction.since, eviction.until), (at(NOW - 600.0), world.nodes[0].holds[0].until));
    assert!(eviction.pods.iter().all(|it| it.place == "a"));
}

#[test]
fn nothing_is_evicted_where_consolidation_is_off() {
    let mut world = two_in_the_way();
    let options = Options { evictions_per_hour: None, ..options() };
    assert_eq!(Leader::new(options).hold(&mut world, NOW), None);
    assert_eq!(world.nodes[0].holds.len(), 1, "the hold is there without it");
}

#[test]
fn nothing_is_evicted_before_the_driver_has_seen_the_hold_or_while_it_offers_something_else() {
    let mut world = two_in_the_way();
    let mut leader = Leader::new(options());
    assert_eq!(evicted(leader.hold(&mut world, NOW).as_ref()), ["m", "n"]);
    let again = |change: fn(&mut NodeState)| {
        let mut world = world.clone();
        change(&mut world.nodes[0]);
        Leader::new(options()).decide(&world, NOW + 1.0).decisions.eviction
    };
    assert!(again(|_| ()).is_some());
    assert_eq!(again(|it| it.progress = Progress::Pending), None);
    assert_eq!(again(|it| it.holds[0].until = at(NOW)), None);
    assert_eq!(again(|it| it.holds[0].is_ours = false), None);
    assert_eq!(again(|it| it.takes_part = false), None);
    let offers_more = |it: &mut NodeState| {
        let model = Model::new("H100-80GB", it.gpus.len());
        offer(&mut it.gpus[0], &model, None);
    };
    assert_eq!(again(offers_more), None);
}

#[test]
fn a_pod_of_higher_priority_than_the_one_that_waits_stays() {
    let mut world = two_in_the_way();
    world.movable[0].pod.priority = 1;
    assert_eq!(evicts(world.clone()), Vec::<String>::new());
    world.pods[0].priority = 1;
    assert_eq!(evicts(world), ["m", "n"]);
}

#[test]
fn one_pod_without_the_label_in_the_way_keeps_the_others() {
    let mut world = two_in_the_way();
    world.movable.pop();
    assert_eq!(evicts(world), Vec::<String>::new());
}

#[test]
fn a_pod_that_has_run_only_for_a_moment_stays() {
    for started in [None, Some(at(NOW - 500.0))] {
        let mut world = two_in_the_way();
        world.movable[1].started = started;
        assert_eq!(evicts(world), Vec::<String>::new());
    }
}

#[test]
fn pods_stay_where_not_each_of_them_finds_a_place() {
    let node = counting("a", &[&[("1g.10gb", 0), ("1g.10gb", 3)], &[("4g.40gb", 0), ("2g.20gb", 4)]]);
    let movable = vec![mover("m", &node, 0, "1g.10gb", 0), mover("n", &node, 0, "1g.10gb", 3)];
    let waiting = || vec![for_profile("p", at(NOW - 600.0), "7g.80gb")];
    let mut one_place = World { movable, ..world(vec![node], waiting()) };
    assert_eq!(evicts(one_place.clone()), Vec::<String>::new(), "one place for two pods");
    // What another pod counts on is no place.
    one_place.nodes.push(counting("b", &[&[("4g.40gb", 0), ("2g.20gb", 4)]]));
    assert_eq!(evicts(one_place.clone()), ["m", "n"]);
    one_place.pods.push(for_profile("q", at(NOW - 1.0), "1g.10gb"));
    assert_eq!(evicts(one_place), Vec::<String>::new());
}

#[test]
fn a_pod_finds_its_place_only_on_a_node_that_takes_it() {
    let full: &[(&str, u32)] = &[("7g.80gb", 0)];
    let node = counting("a", &[&[("1g.10gb", 0)], full]);
    let other = counting("b", &[&[("4g.40gb", 0)]]);
    let movable = vec![mover("m", &node, 0, "1g.10gb", 0)];
    let base =
        World { movable, ..world(vec![node, other], vec![for_profile("p", at(NOW - 600.0), "7g.80gb")]) };
    assert_eq!(evicts(base.clone()), ["m"]);
    let mut elsewhere = base.clone();
    elsewhere.movable[0].stays_on_node = true;
    assert_eq!(evicts(elsewhere), Vec::<String>::new());
    let mut selected = base;
    let spec = json!({"containers": [], "nodeSelector": {"zone": "z"}});
    selected.movable[0].pod.spec = Arc::new(serde_json::from_value::<PodSpec>(spec).unwrap());
    assert_eq!(evicts(selected), Vec::<String>::new());
}

#[test]
fn pods_that_share_a_claim_leave_together_or_not_at_all() {
    let shared = |users: &[&str]| {
        let node = counting("a", &[&[("1g.10gb", 0)], &[("4g.40gb", 0)]]);
        let users: BTreeSet<String> = users.iter().map(|it| (*it).to_owned()).collect();
        let of = |uid: &str| {
            let mut pod = mover(uid, &node, 0, "1g.10gb", 0);
            pod.users.clone_from(&users);
            pod.pod.claims = for_profile("shared", at(0.0), "1g.10gb").claims;
            pod
        };
        let movable = vec![of("m"), of("n")];
        World { movable, ..world(vec![node], vec![for_profile("p", at(NOW - 600.0), "7g.80gb")]) }
    };
    assert_eq!(evicts(shared(&["m", "n"])), ["m", "n"]);
    assert_eq!(evicts(shared(&["m", "n", "other"])), Vec::<String>::new());
    let mut one_has_more = shared(&["m", "n"]);
    one_has_more.movable[1].pod.claims.extend(for_profile("own", at(0.0), "1g.10gb").claims);
    assert_eq!(evicts(one_has_more), Vec::<String>::new());
    let mut one_is_important = shared(&["m", "n"]);
    one_is_important.movable[1].pod.priority = 5;
    assert_eq!(evicts(one_is_important), Vec::<String>::new());
}

#[test]
fn pods_that_are_leaving_already_are_waited_for_and_not_evicted_again() {
    let mut world = two_in_the_way();
    let mut leader = Leader::new(options());
    assert_eq!(evicted(leader.hold(&mut world, NOW).as_ref()), ["m", "n"]);
    assert_eq!(leader.decide(&world, NOW + 2.0).decisions.eviction, None, "the watch may be late");
    world.movable.iter_mut().for_each(|it| it.is_leaving = true);
    assert_eq!(leader.decide(&world, NOW + 10.0).decisions.eviction, None);
    // Another leader sees that a set is on its way.
    let mut other = Leader::new(options());
    assert_eq!(other.decide(&world, NOW + 10.0).decisions.eviction, None);
    world.movable[1].is_leaving = false;
    assert_eq!(other.decide(&world, NOW + 20.0).decisions.eviction, None);
    // The one that has begun evicts what a budget has kept of its set.
    leader.memory.not_evicted("n", at(NOW + 15.0), true);
    assert_eq!(leader.decide(&world, NOW + 12.0).decisions.eviction, None);
    assert_eq!(evicted(leader.decide(&world, NOW + 20.0).decisions.eviction.as_ref()), ["n"]);
}

#[test]
fn a_gpu_is_held_back_where_the_fewest_pods_have_to_move() {
    // One claim stands in the way on the second GPU, but its pod may not be moved.
    let gpus: [&[(&str, u32)]; 4] = [
        &[("1g.10gb", 0), ("1g.10gb", 3), ("1g.10gb", 5)],
        &[("3g.40gb", 0)],
        &[("1g.10gb", 0), ("1g.10gb", 3)],
        &[("4g.40gb", 0)],
    ];
    let node = counting("a", &gpus);
    let mut movable: Vec<MovablePod> =
        [0, 3, 5].iter().map(|it| mover(&format!("m{it}"), &node, 0, "1g.10gb", *it)).collect();
    movable.extend([0, 3].iter().map(|it| mover(&format!("n{it}"), &node, 2, "1g.10gb", *it)));
    let world = World { movable, ..world(vec![node], vec![for_profile("p", at(NOW - 600.0), "7g.80gb")]) };
    assert_eq!(evicts(world), ["n0", "n3"]);
}

/// Holds last for an hour, as by default.
fn long() -> Options {
    Options { hold_for: Duration::from_secs(3600), ..options() }
}

/// A GPU with two pods, one of which nobody may evict, is held back; the second GPU has two that may be evicted, and the third has room.
fn held_where_nobody_may_be_evicted() -> World {
    let gpus: [&[(&str, u32)]; 3] =
        [&[("1g.10gb", 0), ("1g.10gb", 3)], &[("1g.10gb", 0), ("1g.10gb", 3)], &[("4g.40gb", 0)]];
    let mut node = counting("a", &gpus);
    let movable = [(0, 0), (1, 0), (1, 3)];
    let movable = movable.iter().map(|(gpu, it)| mover(&format!("m{gpu}{it}"), &node, *gpu, "1g.10gb", *it));
    let movable = movable.collect();
    let pods = vec![for_profile("p", at(NOW - 600.0), "7g.80gb")];
    node.holds = vec![Hold {
        gpu: node.gpus[0].name.clone(),
        profile: "7g.80gb".to_owned(),
        claim: ClaimKey::of(&pods[0].claims[0]),
        until: at(NOW + 200.0),
        since: Some(at(NOW - 500.0)),
        is_ours: true,
    }];
    follow(&mut node);
    World { movable, ..world(vec![node], pods) }
}

/// The positions of GPUs that are held back once a leader of old has decided.
fn shifts(world: &World) -> Vec<usize> {
    let writes = Leader::new(long()).decide(world, NOW).decisions.writes;
    let gpus = &world.nodes[0].gpus;
    let holds = writes.first().map_or(&world.nodes[0].holds, |it| &it.holds);
    holds.iter().filter_map(|hold| gpus.iter().position(|it| it.name == hold.gpu)).collect()
}

#[test]
fn a_hold_moves_to_a_gpu_where_pods_may_be_evicted_and_ends_as_it_would_have() {
    let mut world = held_where_nobody_may_be_evicted();
    let mut leader = Leader::new(long());
    assert_eq!(evicted(leader.hold(&mut world, NOW).as_ref()), ["m10", "m13"]);
    let [hold] = &world.nodes[0].holds[..] else { panic!("{:?}", world.nodes[0].holds) };
    assert_eq!(hold.gpu, world.nodes[0].gpus[1].name);
    assert_eq!((hold.since, hold.until), (Some(at(NOW - 500.0)), at(NOW + 300.0)));
    // Where the set is on its way nothing moves any more.
    world.movable.iter_mut().for_each(|it| it.is_leaving = it.pod.name.starts_with("m1"));
    assert_eq!(shifts(&world), [1]);
    assert!(leader.decide(&world, NOW + 3.0).decisions.writes.is_empty());
}

#[test]
fn a_hold_moves_to_a_gpu_where_fewer_pods_have_to_be_evicted() {
    let gpus: [&[(&str, u32)]; 3] =
        [&[("1g.10gb", 0), ("1g.10gb", 3), ("1g.10gb", 5)], &[("1g.10gb", 0)], &[("4g.40gb", 0)]];
    let node = counting("a", &gpus);
    let mut world = held_where_nobody_may_be_evicted();
    world.nodes[0].gpus = node.gpus.clone();
    world.movable = [0, 3, 5].iter().map(|it| mover(&format!("m{it}"), &node, 0, "1g.10gb", *it)).collect();
    world.movable.push(mover("n", &node, 1, "1g.10gb", 0));
    assert_eq!(shifts(&world), [1]);
    let is_kept = |change: fn(&mut World)| {
        let mut world = world.clone();
        change(&mut world);
        assert_eq!(shifts(&world), [0]);
    };
    is_kept(|it| it.nodes[0].holds[0].is_ours = false);
    is_kept(|it| it.movable[3].started = Some(at(NOW - 1.0)));
    is_kept(|it| it.movable[3].pod.priority = 1);
    is_kept(|it| it.movable[0].is_leaving = true);
    is_kept(|it| it.pods[0].lacks_only_devices = false);
    // It would end too soon there.
    is_kept(|it| {
        let hold = &mut it.nodes[0].holds[0];
        (hold.since, hold.until) = (Some(at(NOW - 3400.0)), at(NOW + 190.0));
    });
    // As many here as there.
    is_kept(|it| {
        it.nodes[0].gpus[0].held.truncate(1);
        it.movable.drain(1..3);
    });
}

#[test]
fn the_gpu_that_a_hold_has_left_is_there_for_the_next_claim_and_the_other_one_is_not() {
    let mut world = held_where_nobody_may_be_evicted();
    world.nodes[0].gpus[2] =
        counting("a", &[NONE, NONE, &[("1g.10gb", 0), ("1g.10gb", 1), ("1g.10gb", 2)]]).gpus[2].clone();
    world.pods.push(for_profile("q", at(NOW - 500.0), "7g.80gb"));
    let options = Options { hold_namespace: 1.0, hold_pool: 1.0, ..long() };
    let decided = Leader::new(options).decide(&world, NOW);
    let holds = decided.decisions.writes[0].holds.iter().map(|it| (it.claim.name.as_str(), it.gpu.as_str()));
    let gpu = |it: usize| world.nodes[0].gpus[it].name.as_str();
    assert_eq!(holds.collect::<BTreeSet<_>>(), BTreeSet::from([("claim-p", gpu(1)), ("claim-q", gpu(0))]));
}

#[test]
fn a_hold_moves_to_a_gpu_with_more_claims_where_they_can_be_evicted_and_those_of_the_first_not() {
    let world = held_where_nobody_may_be_evicted();
    let mut full = world.clone();
    full.nodes[0].gpus[1].held.push(Placed { profile: "1g.10gb".to_owned(), start: 5, size: 1 });
    full.movable.push(mover("m15", &full.nodes[0], 1, "1g.10gb", 5));
    assert_eq!(shifts(&full), [1]);
    full.movable.push(mover("m03", &full.nodes[0], 0, "1g.10gb", 3));
    assert_eq!(shifts(&full), [0]);
}

#[test]
fn a_hold_does_not_move_where_no_eviction_is_left() {
    let world = held_where_nobody_may_be_evicted();
    assert_eq!(shifts(&world), [1]);
    // A new leader has none yet.
    let outcome = decide(&world, &options(), &Memory::default(), at(NOW));
    assert!(outcome.decisions.writes.iter().all(|it| it.holds[0].gpu == world.nodes[0].gpus[0].name));
    let without = Options { evictions_per_hour: None, ..options() };
    let outcome = Leader::new(without).decide(&world, NOW);
    assert!(outcome.decisions.writes.iter().all(|it| it.holds[0].gpu == world.nodes[0].gpus[0].name));
}

#[test]
fn of_two_holds_for_a_claim_the_one_that_was_written_last_stays() {
    // The hold has moved, and the write that takes it from the first GPU was lost.
    let mut world = held_where_nobody_may_be_evicted();
    let old = world.nodes[0].holds[0].clone();
    let (gpu, until) = (world.nodes[0].gpus[1].name.clone(), at(NOW + 300.0));
    world.nodes[0].holds.push(Hold { gpu, until, ..old });
    follow(&mut world.nodes[0]);
    assert_eq!(shifts(&world), [1]);
    world.nodes[0].holds[0].is_ours = false;
    assert_eq!(shifts(&world), [0, 1], "a person's hold stays");
}

#[test]
fn a_hold_moves_to_another_node_of_its_pool_only() {
    let mut held = held_where_nobody_may_be_evicted();
    let mut other = counting("b", &[&[("1g.10gb", 0), ("1g.10gb", 3)], &[("4g.40gb", 0)]]);
    held.nodes[0].gpus.truncate(1);
    held.movable = [0, 3].iter().map(|it| mover(&format!("m{it}"), &other, 0, "1g.10gb", *it)).collect();
    let label = |node: &mut NodeState, value: &str| {
        let labels = [("node.kubernetes.io/instance-type".to_owned(), value.to_owned())];
        Arc::make_mut(&mut node.node).metadata.labels = Some(labels.into());
    };
    label(&mut held.nodes[0], "large");
    for (value, expected) in [("small", [1, 0]), ("large", [0, 1])] {
        label(&mut other, value);
        let mut world = World { nodes: vec![held.nodes[0].clone(), other.clone()], ..held.clone() };
        Leader::new(long()).hold(&mut world, NOW);
        assert_eq!([0, 1].map(|it| world.nodes[it].holds.len()), expected, "{value}");
    }
}

#[test]
fn a_pod_moves_to_the_half_of_the_gpu_that_is_not_in_the_way_of_the_claim() {
    let node = counting("a", &[&[("1g.10gb", 1), ("2g.20gb", 4)]]);
    let movable = vec![mover("m", &node, 0, "1g.10gb", 1)];
    let waits = |profile: &str| vec![for_profile("p", at(NOW - 600.0), profile)];
    let world = |node: &NodeState, profile: &str| World {
        movable: movable.clone(),
        ..world(vec![node.clone()], waits(profile))
    };
    assert_eq!(evicts(world(&node, "4g.40gb")), ["m"]);
    // Where the other half is used up, and where all of the GPU is in the way.
    let full = counting("a", &[&[("1g.10gb", 1), ("3g.40gb", 4)]]);
    assert_eq!(evicts(world(&full, "4g.40gb")), [""; 0]);
    // Nor is it held back early: what is free there is in the way itself.
    let late = Options { hold_after: Some(Duration::from_secs(3600)), ..options() };
    let holds = |node| Leader::new(late.clone()).decide(&world(node, "4g.40gb"), NOW).decisions.writes.len();
    assert_eq!((holds(&node), holds(&full)), (1, 0));
    assert_eq!(evicts(world(&node, "7g.80gb")), [""; 0]);
}

#[test]
fn one_set_moves_at_a_time_and_the_most_important_claim_comes_first() {
    let gpus: [&[(&str, u32)]; 4] =
        [&[("1g.10gb", 0)], &[("1g.10gb", 0)], &[("4g.40gb", 0)], &[("4g.40gb", 0)]];
    let node = counting("a", &gpus);
    let movable = vec![mover("m", &node, 0, "1g.10gb", 0), mover("n", &node, 1, "1g.10gb", 0)];
    let mut pods: Vec<_> = ["p", "q"].iter().map(|it| for_profile(it, at(NOW - 600.0), "7g.80gb")).collect();
    pods[1].priority = 1;
    let mut world = World { movable, ..world(vec![node], pods) };
    let mut leader = Leader::new(Options { hold_namespace: 1.0, hold_pool: 1.0, ..options() });
    let first = leader.hold(&mut world, NOW).unwrap();
    assert_eq!((first.waiting.name.as_str(), first.pods.len()), ("q", 1));
    assert_eq!(leader.decide(&world, NOW + 20.0).decisions.eviction, None);
    // The claim is served: after a while it is the turn of the other one.
    world.pods.retain(|it| it.name != "q");
    world.movable.retain(|it| it.pod.name != first.pods[0].pod.name);
    let gpu = world.nodes[0].gpus.iter_mut().find(|it| it.name == first.gpu).unwrap();
    gpu.held = vec![Placed { profile: "7g.80gb".to_owned(), start: 0, size: 8 }];
    gpu.published.clear();
    assert_eq!(leader.decide(&world, NOW + 30.0).decisions.eviction, None);
    let second = leader.decide(&world, NOW + 61.0).decisions.eviction.unwrap();
    assert_eq!((second.waiting.name.as_str(), second.pods.len()), ("p", 1));
}

#[test]
fn evictions_that_did_not_serve_the_claim_are_followed_by_a_pause() {
    let mut world = two_in_the_way();
    let mut leader = Leader::new(options());
    leader.hold(&mut world, NOW).unwrap();
    // The hold ends, the pod waits on, and its next hold begins with pods in the way again.
    let until = world.nodes[0].holds[0].until;
    let ended = NOW + 901.0;
    assert!(until < at(ended));
    assert_eq!(leader.decide(&world, ended).decisions.eviction, None);
    world.nodes[0].holds[0].until = at(ended + 900.0);
    assert_eq!(leader.decide(&world, ended + 599.0).decisions.eviction, None);
    world.nodes[0].holds[0].until = at(ended + 1500.0);
    assert!(leader.decide(&world, ended + 601.0).decisions.eviction.is_some());
}

#[test]
fn a_pod_that_a_budget_keeps_is_left_alone_for_a_while() {
    let mut world = two_in_the_way();
    let mut leader = Leader::new(options());
    leader.hold(&mut world, NOW).unwrap();
    for pod in ["m", "n"] {
        leader.memory.not_evicted(pod, at(NOW + 61.0), true);
    }
    assert_eq!(leader.decide(&world, NOW + 60.0).decisions.eviction, None);
    assert_eq!(evicted(leader.decide(&world, NOW + 62.0).decisions.eviction.as_ref()), ["m", "n"]);
}

#[test]
fn a_new_leader_gains_its_evictions_within_an_hour_and_then_has_no_more_than_that() {
    let mut world = two_in_the_way();
    world.pods[0].unschedulable = Some(at(0.0));
    let mut leader = Leader::new(Options { evictions_per_hour: Some(4), ..options() });
    assert_eq!(leader.hold(&mut world, 1000.0), None, "one is gained, and two are needed");
    world.movable.iter_mut().for_each(|it| it.started = Some(at(0.0)));
    world.nodes[0].holds[0].until = at(2800.0);
    assert!(leader.decide(&world, 1801.0).decisions.eviction.is_some());
    // Half of the evictions of an hour are for one namespace.
    leader.memory = {
        let mut without = world.clone();
        without.pods.clear();
        leader.decide(&without, 1802.0).memory
    };
    world.nodes[0].holds[0].until = at(6000.0);
    assert_eq!(leader.decide(&world, 5300.0).decisions.eviction, None);
    assert!(leader.decide(&world, 5402.0).decisions.eviction.is_some());
}

#[test]
fn nothing_is_evicted_where_the_hold_could_end_before_the_pods_have() {
    let mut world = two_in_the_way();
    world.movable[1].grace = Duration::from_secs(840);
    assert_eq!(evicts(world), Vec::<String>::new());
}

#[test]
fn a_hold_is_always_long_enough_for_pods_that_may_be_evicted_to_end() {
    for (grace, until, renewed) in [(30.0, 300.0, 450.0), (180.0, 480.0, 720.0), (800.0, 900.0, 1350.0)] {
        let mut world = two_in_the_way();
        world.movable[0].grace = Duration::from_secs_f64(grace);
        let mut leader = Leader::new(Options { hold_for: Duration::from_secs(3600), ..options() });
        let first = leader.decide(&world, NOW).decisions;
        world.nodes[0].holds.clone_from(&first.writes[0].holds);
        assert_eq!(world.nodes[0].holds[0].until, at(NOW + until), "{grace}");
        let half = NOW + until / 2.0;
        let writes = |seconds: f64| leader.clone().decide(&world, seconds).decisions.writes;
        assert!(writes(half - 1.0).is_empty());
        assert_eq!(writes(half)[0].holds[0].until, at(NOW + renewed), "{grace}");
    }
}

#[test]
fn pods_that_do_not_end_keep_no_other_set_waiting_for_longer_than_a_quarter_of_an_hour() {
    let mut world = two_in_the_way();
    let mut leader = Leader::new(Options { hold_for: Duration::from_secs(7200), ..options() });
    leader.hold(&mut world, NOW).unwrap();
    world.nodes[0].holds[0].until = at(NOW + 3600.0);
    assert_eq!(leader.decide(&world, NOW + 899.0).decisions.eviction, None);
    // A pause follows.
    assert_eq!(leader.decide(&world, NOW + 902.0).decisions.eviction, None);
    assert!(leader.decide(&world, NOW + 1503.0).decisions.eviction.is_some());
}

#[test]
fn a_pod_that_is_served_already_and_one_that_waits_for_something_else_move_nobody() {
    let mut world = two_in_the_way();
    assert_eq!(evicts(world.clone()), ["m", "n"]);
    let mut leader = Leader::new(options());
    leader.hold(&mut world, NOW).unwrap();
    world.nodes.push(counting("b", &[NONE]));
    let mut other = Leader::new(options());
    let outcome = other.decide(&world, NOW + 2.0);
    assert_eq!(outcome.decisions.eviction, None);
    assert_eq!(outcome.decisions.pods["p"], Prospect::Published { node: "b".to_owned() });
}

#[test]
fn a_gpu_is_held_back_early_only_where_pods_can_be_moved() {
    let options = || Options {
        hold_after: Some(Duration::from_secs(900)),
        consolidate_after: Duration::from_secs(60),
        ..options()
    };
    let mut world = two_in_the_way();
    let held = |world: &World, waited: f64| {
        let writes = Leader::new(options()).decide(world, NOW - 600.0 + waited).decisions.writes;
        writes.iter().map(|it| it.holds.len()).sum::<usize>()
    };
    world.movable.iter_mut().for_each(|it| it.started = Some(at(0.0)));
    // Two pods stand in the way.
    assert_eq!([60.0, 119.0, 120.0].map(|it| held(&world, it)), [0, 0, 1]);
    world.movable.pop();
    assert_eq!([60.0, 899.0, 900.0].map(|it| held(&world, it)), [0, 0, 1]);
}

#[test]
fn a_pod_that_may_take_longer_to_end_than_a_hold_lasts_is_not_counted_as_one_that_can_be_moved() {
    let options = || Options {
        hold_after: Some(Duration::from_secs(900)),
        consolidate_after: Duration::from_secs(60),
        ..options()
    };
    let holds = |grace: u64| {
        let mut world = two_in_the_way();
        world.movable[1].grace = Duration::from_secs(grace);
        let writes = Leader::new(options()).decide(&world, NOW - 600.0 + 120.0).decisions.writes;
        writes.iter().map(|it| it.holds.len()).sum::<usize>()
    };
    // A claim waits 60 s for each of the two pods. A hold lasts 900 s, of which the last minute is a margin.
    assert_eq!([840, 841].map(holds), [1, 0]);
}

#[test]
fn nobody_moves_for_a_pod_that_lacks_more_than_the_device() {
    let mut cordoned = two_in_the_way();
    Leader::new(options()).hold(&mut cordoned, NOW).unwrap();
    let mut with_nic = cordoned.clone();
    let decides = |world: &World| Leader::new(options()).decide(world, NOW + 2.0).decisions.eviction;
    assert!(decides(&cordoned).is_some());
    let mut node = Node::clone(&cordoned.nodes[0].node);
    node.spec.get_or_insert_default().unschedulable = Some(true);
    cordoned.nodes[0].node = Arc::new(node);
    assert_eq!(decides(&cordoned), None);
    let nic = claim("nic", json!([{"name": "nic", "exactly": {"deviceClassName": "nic"}}]));
    with_nic.pods[0].claims.push(Arc::new(nic));
    assert_eq!(decides(&with_nic), None);
}

#[test]
fn the_controller_looks_again_while_something_is_held_back() {
    let mut world = two_in_the_way();
    world.movable.clear();
    let mut leader = Leader::new(options());
    assert_eq!(leader.hold(&mut world, NOW), None);
    let wake: Option<Timestamp> = leader.decide(&world, NOW + 2.0).wake;
    assert!(wake.is_some_and(|it| it <= at(NOW + 12.0)), "{wake:?}");
}

/// The same world with another time at which the hold on the first GPU ends.
fn held_until(world: &World, until: f64) -> World {
    let mut world = world.clone();
    world.nodes[0].holds[0].until = at(until);
    world
}

#[test]
fn after_each_set_that_was_evicted_in_vain_its_namespace_waits_twice_as_long_for_the_next() {
    let mut world = two_in_the_way();
    let mut leader = Leader::new(options());
    leader.hold(&mut world, NOW).unwrap();
    let mut now = NOW + 901.0;
    for pause in [600.0, 1200.0, 2400.0] {
        assert_eq!(leader.decide(&held_until(&world, now - 1.0), now).decisions.eviction, None);
        let held = held_until(&world, now + 9000.0);
        assert_eq!(leader.decide(&held, now + pause - 1.0).decisions.eviction, None, "{pause}");
        assert!(leader.decide(&held, now + pause + 1.0).decisions.eviction.is_some(), "{pause}");
        now += pause + 901.0;
    }
}

#[test]
fn a_pod_that_is_deleted_after_evictions_keeps_its_namespace_from_more_of_them_and_no_other_one() {
    let mut world = two_in_the_way();
    let mut leader = Leader::new(options());
    leader.hold(&mut world, NOW).unwrap();
    assert_eq!(leader.memory.awaited().map(|it| it.uid.as_str()), Some("claim-p"));
    // The pod is gone, and its claim with it.
    let mut gone = world.clone();
    gone.pods.clear();
    gone.unserved = BTreeSet::from(["claim-p".to_owned()]);
    for now in [NOW + 10.0, NOW + 21.0] {
        assert_eq!(leader.decide(&gone, now).decisions.eviction, None);
    }
    assert_eq!(leader.memory.awaited(), None);
    // Another one of the namespace, with the same GPU held back.
    let again = |namespace: &str| {
        let mut next = held_until(&world, NOW + 3000.0);
        next.pods = vec![for_profile("q", at(NOW - 600.0), "7g.80gb")];
        next.pods[0].namespace = namespace.to_owned();
        next.nodes[0].holds[0].claim = ClaimKey::of(&next.pods[0].claims[0]);
        next
    };
    assert_eq!(leader.decide(&again("default"), NOW + 100.0).decisions.eviction, None);
    let mut of_another = Leader { options: options(), memory: leader.memory.clone() };
    assert!(of_another.decide(&again("team"), NOW + 100.0).decisions.eviction.is_some());
    assert!(leader.decide(&again("default"), NOW + 622.0).decisions.eviction.is_some());
}

#[test]
fn a_claim_whose_devices_are_seen_a_moment_after_its_pod_is_gone_was_served() {
    let mut world = two_in_the_way();
    let mut leader = Leader::new(options());
    leader.hold(&mut world, NOW).unwrap();
    let mut bound = world.clone();
    bound.pods.clear();
    bound.unserved = BTreeSet::from(["claim-p".to_owned()]);
    leader.decide(&bound, NOW + 10.0);
    bound.unserved.clear();
    leader.decide(&bound, NOW + 15.0);
    let mut next = held_until(&world, NOW + 3000.0);
    next.pods[0].uid = "q".to_owned();
    assert!(leader.decide(&next, NOW + 46.0).decisions.eviction.is_some());
}

#[test]
fn nobody_moves_for_a_pod_of_which_the_scheduler_says_that_it_lacks_something_else_too() {
    let mut world = two_in_the_way();
    world.pods[0].lacks_only_devices = false;
    assert_eq!(evicts(world), Vec::<String>::new());
}
