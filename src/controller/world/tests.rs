//! What watches report, and what of it is kept.

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::runtime::watcher::Event;
use mig_model::mig_node::MigNode;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Change, Kind, World};

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn node(name: &str) -> Node {
    of(json!({"metadata": {"name": name}}))
}

fn nodes(world: &World) -> Vec<&str> {
    world.snapshot().nodes.iter().filter_map(|it| it.metadata.name.as_deref()).collect()
}

fn claiming(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "team", "managedFields": [{"manager": "kubectl"}], "annotations": {"a": "b"}},
        "spec": {
            "containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "B"}]}],
            "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        },
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}, {"type": "Ready", "status": "False"}]},
    })
}

#[test]
fn a_kind_is_read_once_its_list_is_complete() {
    let mut world = World::default();
    assert_eq!(world.unread(), Kind::ALL);
    assert!(!world.apply(Change::Nodes(Event::Init)));
    assert!(world.apply(Change::Nodes(Event::InitApply(node("b")))));
    assert!(world.unread().contains(&Kind::Nodes));
    assert!(world.apply(Change::Nodes(Event::InitDone)));
    assert!(!world.unread().contains(&Kind::Nodes));
}

#[test]
fn a_list_that_is_read_again_removes_what_it_does_not_have_and_keeps_the_rest_meanwhile() {
    let mut world = World::default();
    for name in ["c", "a", "b"] {
        world.apply(Change::Nodes(Event::Apply(node(name))));
    }
    assert_eq!(nodes(&world), ["a", "b", "c"], "as the API server lists them");
    world.apply(Change::Nodes(Event::Init));
    world.apply(Change::Nodes(Event::InitApply(node("b"))));
    assert_eq!(nodes(&world), ["a", "b", "c"]);
    world.apply(Change::Nodes(Event::InitDone));
    assert_eq!(nodes(&world), ["b"]);
    world.apply(Change::Nodes(Event::Delete(node("b"))));
    assert_eq!(world.count(Kind::Nodes), 0);
}

#[test]
fn a_list_that_breaks_off_removes_nothing() {
    let mut world = World::default();
    world.apply(Change::Nodes(Event::Apply(node("a"))));
    for event in [Event::Init, Event::InitApply(node("b")), Event::Init, Event::InitApply(node("a"))] {
        world.apply(Change::Nodes(event));
    }
    assert_eq!(nodes(&world), ["a", "b"]);
    world.apply(Change::Nodes(Event::InitDone));
    assert_eq!(nodes(&world), ["a"]);
}

#[test]
fn a_heartbeat_of_a_node_is_no_change() {
    let mut world = World::default();
    let with_heartbeat = |time: &str| -> Node {
        of(json!({"metadata": {"name": "a", "resourceVersion": time}, "status": {
            "allocatable": {"cpu": "4"},
            "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": time}]}}))
    };
    assert!(world.apply(Change::Nodes(Event::Apply(with_heartbeat("2026-01-01T00:00:00Z")))));
    assert!(!world.apply(Change::Nodes(Event::Apply(with_heartbeat("2026-01-01T00:00:10Z")))));
    let mut cordoned = with_heartbeat("2026-01-01T00:00:20Z");
    cordoned.spec.get_or_insert_default().unschedulable = Some(true);
    assert!(world.apply(Change::Nodes(Event::Apply(cordoned))));
}

#[test]
fn of_a_pod_only_what_decides_is_kept_and_pods_without_devices_are_not() {
    let mut world = World::default();
    assert!(world.apply(Change::Pods(Event::Apply(of(claiming("p"))))));
    let pod = serde_json::to_value(world.pod("team", "p").unwrap()).unwrap();
    assert_eq!(
        pod,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "team"},
            "spec": {"containers": [{"name": "c"}], "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}]},
            "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]},
        })
    );
    let plain: Pod = of(json!({"metadata": {"name": "q"}, "spec": {"containers": [
        {"name": "c", "resources": {"requests": {"cpu": "1", "ephemeral-storage": "1Gi"}}}]}}));
    assert!(!world.apply(Change::Pods(Event::Apply(plain))));
    let extended: Pod = of(json!({"metadata": {"name": "r"}, "spec": {"containers": [
        {"name": "c", "resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}]}}));
    assert!(world.apply(Change::Pods(Event::Apply(extended))));
    assert_eq!(world.count(Kind::Pods), 2);
}

#[test]
fn a_slice_that_is_applied_again_replaces_the_one_before() {
    let slice = |node: &str| -> ResourceSlice {
        of(json!({"metadata": {"name": "s"}, "spec": {"driver": "d", "nodeName": node,
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}}))
    };
    let mut world = World::default();
    world.apply(Change::Slices(Event::Apply(slice("a"))));
    world.apply(Change::Slices(Event::Apply(slice("b"))));
    assert_eq!(world.snapshot().slices.nodes(), ["b"]);
    world.apply(Change::Slices(Event::Init));
    world.apply(Change::Slices(Event::InitDone));
    assert_eq!(world.count(Kind::Slices), 0);
}

fn mig_node(version: &str, generation: i64) -> MigNode {
    of(json!({
        "metadata": {"name": "a", "resourceVersion": version, "generation": generation},
        "spec": {}, "status": {"observedGeneration": 1, "mode": "layout", "gpus": []},
    }))
}

fn labelled(value: &str) -> Node {
    of(json!({"metadata": {"name": "a", "labels": {"nvidia.com/mig.config": value}}}))
}

#[test]
fn a_mig_node_is_decided_on_with_its_node_whichever_is_reported_first() {
    for mig_node_first in [true, false] {
        let mut world = World::default();
        let (node, mig_node) =
            (Change::Nodes(Event::Apply(labelled("auto"))), Change::MigNodes(Event::Apply(mig_node("1", 1))));
        let changes = if mig_node_first { [mig_node, node] } else { [node, mig_node] };
        for change in changes {
            assert!(world.apply(change));
        }
        let follows =
            |world: &World| world.node_states(false).iter().map(|it| it.follows).collect::<Vec<_>>();
        assert_eq!(follows(&world), [true]);
        world.apply(Change::Nodes(Event::Apply(labelled("all-balanced"))));
        assert_eq!(follows(&world), [false]);
        world.apply(Change::Nodes(Event::Delete(labelled("all-balanced"))));
        assert_eq!(follows(&world), [false; 0]);
        world.apply(Change::Nodes(Event::Apply(labelled("auto"))));
        assert_eq!(follows(&world), [true]);
        world.apply(Change::MigNodes(Event::Init));
        world.apply(Change::MigNodes(Event::InitDone));
        assert_eq!((follows(&world), world.count(Kind::MigNodes)), (vec![], 0));
    }
}

#[test]
fn a_mig_node_is_read_again_only_in_another_version() {
    let mut world = World::default();
    let mut apply =
        |version, generation| world.apply(Change::MigNodes(Event::Apply(mig_node(version, generation))));
    assert!(apply("1", 1));
    assert!(!apply("1", 1), "as a list that is read again reports it");
    assert!(apply("2", 2));
    world.apply(Change::Nodes(Event::Apply(labelled("auto"))));
    assert_eq!(world.node_states(true)[0].resource_version.as_deref(), Some("2"));
}
