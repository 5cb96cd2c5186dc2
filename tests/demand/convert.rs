//! What decisions are made from, as it is read from `MigNode` and Node.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use mig_controller::demand::{Kinds, Memory, NodeState, Options, Progress, World, decide};
use mig_model::mig_node::MigNode;
use serde_json::{Value, json};

use crate::pods::{at, classes, for_profile};

fn object(spec: Value, conditions: Value) -> Value {
    let attribute = |text: &str| json!({"string": text});
    let gpu = json!({
        "name": "gpu-0000-3b-00", "uuid": "GPU-1", "productName": "NVIDIA H100", "index": 0, "migMode": "enabled",
        "attributes": {"productName": attribute("NVIDIA H100"), "parentUUID": attribute("GPU-1")},
        "profiles": [
            {"profile": "1g.10gb", "attributes": {"profile": attribute("1g.10gb"), "type": attribute("mig")},
             "capacity": {"memory": "9856Mi"}, "placements": [{"start": 0, "size": 1}, {"start": 1, "size": 1}]},
            {"profile": "2g.20gb", "attributes": {"profile": attribute("2g.20gb"), "type": attribute("mig")},
             "capacity": {"memory": "19968Mi"}, "placements": [{"start": 0, "size": 2}]},
            {"profile": "full", "attributes": {"profile": attribute("full"), "type": attribute("gpu")},
             "capacity": {"memory": "81559Mi"}, "placements": [{"start": 0, "size": 2}]}],
        "held": [],
        "published": [{"device": "gpu-0000-3b-00", "profile": "full", "start": 0, "size": 2}]});
    json!({"metadata": {"name": "a", "generation": 3, "resourceVersion": "9"}, "spec": spec,
        "status": {"observedGeneration": 3, "mode": "layout", "gpus": [gpu], "conditions": conditions}})
}

fn read(object: Value, label: Option<&str>, default_auto: bool) -> NodeState {
    let mig: MigNode = serde_json::from_value(object).unwrap();
    let mut node = Node::default();
    node.metadata.name = Some("a".to_owned());
    node.metadata.labels = label.map(|it| [("nvidia.com/mig.config".to_owned(), it.to_owned())].into());
    NodeState::of(&mig, Arc::new(node), default_auto, &mut Kinds::default())
}

fn followed(status: &str, reason: &str) -> Value {
    json!([{"type": "DemandFollowed", "status": status, "reason": reason, "message": "",
        "lastTransitionTime": "2026-11-29T12:00:00Z"}])
}

#[test]
fn a_node_follows_where_the_label_says_auto_or_is_absent_and_that_is_the_default() {
    let follows = |label, default_auto| read(object(json!({}), json!([])), label, default_auto).follows;
    assert!(follows(Some("auto"), false));
    assert!(follows(None, true));
    assert!(!follows(None, false));
    assert!(!follows(Some("all-balanced"), true));
    let mut counts = object(json!({}), json!([]));
    counts["status"]["mode"] = json!("partitionable");
    let state = read(counts, Some("auto"), false);
    assert!(state.counts && !state.follows);
}

#[test]
fn a_demand_is_done_where_its_devices_are_published_or_the_driver_says_why_not() {
    let spec = |profile: &str| json!({"demand": {"renewTime": "2026-11-29T12:00:00Z", "profiles": [{"profile": profile, "count": 1}]}});
    let state = |profile: &str, conditions| read(object(spec(profile), conditions), Some("auto"), false);
    assert_eq!(state("full", json!([])).progress, Progress::Done);
    assert_eq!(state("2g.20gb", json!([])).progress, Progress::Pending);
    let refused = state("2g.20gb", followed("False", "HeldDevices"));
    assert!(refused.progress == Progress::Done && refused.is_refused);
    // The driver has decided, and devices are settling.
    assert_eq!(state("2g.20gb", followed("True", "Followed")).progress, Progress::Pending);
    // It is there, but a hold waits.
    let waits = state("full", followed("False", "ChangedRecently"));
    assert!(waits.progress == Progress::Pending && !waits.is_refused);
    let mut unseen = object(spec("full"), json!([]));
    unseen["metadata"]["generation"] = json!(4);
    assert_eq!(read(unseen, Some("auto"), false).progress, Progress::Pending);
}

#[test]
fn what_is_out_of_bounds_is_not_used() {
    let many: Vec<Value> = (0..1000).map(|it| json!({"profile": format!("p{it}"), "count": 1})).collect();
    let state = read(object(json!({"demand": {"profiles": many}}), json!([])), Some("auto"), false);
    assert!(!state.follows && state.demand.is_none());
}

#[test]
fn the_status_alone_is_enough_to_decide_on() {
    let state = read(object(json!({}), json!([])), Some("auto"), false);
    let pods = vec![for_profile("p", at(0.0), "2g.20gb"), for_profile("q", at(1.0), "1g.10gb")];
    let world = World { nodes: vec![state], pods, classes: classes(), ..World::default() };
    let outcome = decide(&world, &Options::default(), &Memory::default(), at(60.0));
    let write = &outcome.decisions.writes[0];
    assert_eq!(write.serves, ["p"], "both do not fit");
    assert_eq!(write.resource_version.as_deref(), Some("9"));
}

#[test]
fn equal_gpus_have_one_kind() {
    let mut kinds = Kinds::default();
    let mut state = |uuid: &str| {
        let mut object = object(json!({}), json!([]));
        object["status"]["gpus"][0]["attributes"]["parentUUID"] = json!({"string": uuid});
        // As a driver reports it: the UUID of a whole GPU is among the attributes of its profile.
        object["status"]["gpus"][0]["profiles"][2]["attributes"]["uuid"] = json!({"string": uuid});
        let mig: MigNode = serde_json::from_value(object).unwrap();
        NodeState::of(&mig, Arc::new(Node::default()), true, &mut kinds)
    };
    let (one, other) = (state("GPU-1"), state("GPU-2"));
    assert!(Arc::ptr_eq(&one.gpus[0].kind, &other.gpus[0].kind));
    for (state, uuid) in [(one, "GPU-1"), (other, "GPU-2")] {
        let identity = &state.gpus[0].identity;
        assert_eq!(["parentUUID", "uuid"].map(|it| identity[it].string.as_deref()), [Some(uuid); 2]);
    }
}
