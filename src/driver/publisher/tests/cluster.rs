//! What a cluster costs its API server in reads of claims: 1,000 nodes with 10 claims each that boot together, and then wait for a minute,
//! or with the variable `DRA_SOAK` for ten.
//! Every node does the same, so one is played and counted for all. `cargo test --lib cluster -- --nocapture` prints the numbers.

use serde_json::{Value, json};

use super::scene::{Scene, mig};
use super::*;

const NODES: usize = 1000;
const CLAIMS: usize = 10 * NODES;
/// Claims in a page, before and now.
const PAGES: [usize; 2] = [500, 50];

/// A claim of a pod as kube-apiserver 1.35 shows it, with the fields of three managers.
fn claim() -> Value {
    let managed = |manager: &str, fields: Value| {
        json!({"manager": manager, "operation": "Update", "apiVersion": "resource.k8s.io/v1", "time": "2026-11-29T12:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": fields})
    };
    let uid = "6f1f7a4e-5f0b-4b53-9d59-0d6f1c5f7a10";
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": "inference-5d9c7b6f4-x2x7k-gpu-8k2vq", "generateName": "inference-5d9c7b6f4-x2x7k-gpu-",
            "namespace": "inference", "uid": uid, "resourceVersion": "1234567", "creationTimestamp": "2026-11-29T12:00:00Z",
            "annotations": {"resource.kubernetes.io/pod-claim-name": "gpu"},
            "finalizers": ["resource.kubernetes.io/delete-protection"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "inference-5d9c7b6f4-x2x7k", "uid": uid,
                "controller": true, "blockOwnerDeletion": true}],
            "managedFields": [
                managed("kube-controller-manager", json!({"f:metadata": {"f:annotations": {".": {},
                    "f:resource.kubernetes.io/pod-claim-name": {}}, "f:generateName": {}, "f:ownerReferences": {".": {},
                    (format!("k:{{\"uid\":\"{uid}\"}}")): {}}}, "f:spec": {"f:devices": {"f:requests": {".": {},
                    "k:{\"name\":\"gpu\"}": {".": {}, "f:exactly": {".": {}, "f:allocationMode": {}, "f:count": {},
                    "f:deviceClassName": {}}, "f:name": {}}}}}})),
                managed("kube-scheduler", json!({"f:metadata": {"f:finalizers": {".": {},
                    "v:\"resource.kubernetes.io/delete-protection\"": {}}}, "f:status": {"f:allocation": {".": {}, "f:devices":
                    {".": {}, "f:results": {}}, "f:nodeSelector": {}}, "f:reservedFor": {".": {},
                    (format!("k:{{\"uid\":\"{uid}\"}}")): {}}}})),
                managed("dra-driver-mig", json!({"f:status": {"f:devices": {}}})),
            ]},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "mig-1g.10gb",
            "allocationMode": "ExactCount", "count": 1}}]}},
        "status": {
            "allocation": {"devices": {"results": [{"request": "gpu", "driver": "mig.dra-driver.dev",
                "pool": "gpu-node-0001/mig.dra-driver.dev", "device": "gpu-0000-1a-00-mig-1g-10gb-0"}]},
                "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In",
                    "values": ["gpu-node-0001"]}]}]}},
            "reservedFor": [{"resource": "pods", "name": "inference-5d9c7b6f4-x2x7k", "uid": uid}],
        },
    })
}

/// Lists of claims and reads of one on each node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reads {
    lists: usize,
    looks: usize,
}

/// The node starts again, without slices; `before` is how the driver was before it had a file and reads of single claims.
fn boot(mut scene: Scene, is_before: bool, minutes: usize, before_boot: impl FnOnce(&mut Scene)) -> Reads {
    scene.look();
    for start in 0..7 {
        scene.prepare(&mig(&format!("1g-10gb-{start}")));
        let other = format!("gpu-0000-1b-00-mig-1g-10gb-{start}");
        match start {
            0 | 1 => scene.prepare(&other),
            // Its pod waits for something else.
            2 => scene.allocate(&other),
            _ => {}
        }
    }
    scene.notice();
    scene.elapse(3 * SETTLE);
    before_boot(&mut scene);
    scene.rounds.wipe();
    scene.rounds.lists_only = is_before;
    if is_before {
        scene.rounds.restart()
    } else {
        scene.rounds.resume()
    }
    (scene.rounds.lists, scene.rounds.looks) = (0, 0);
    scene.look();
    scene.elapse(u64::try_from(minutes).unwrap() * 60);
    Reads { lists: scene.rounds.lists, looks: scene.rounds.looks }
}

#[test]
fn a_cluster_that_boots_lists_no_claims_and_one_that_waits_for_a_claim_reads_that_claim() {
    let minutes = std::env::var_os("DRA_SOAK").map_or(1, |_| 10);
    let size = claim().to_string().len();
    let scene = |keeps_counters| match keeps_counters {
        true => Scene::new("2xH100-80GB"),
        false => Scene::with_layout("2xH100-80GB", "all-1g.10gb"),
    };
    let unhealthy = |scene: &mut Scene| {
        scene.make_unhealthy(1);
        scene.notice();
        scene.elapse(3 * SETTLE);
    };
    type Case = (&'static str, bool, fn(&mut Scene));
    let cases: [Case; 4] = [
        ("counters, nothing withheld", true, |_| {}),
        ("layout, nothing withheld", false, |_| {}),
        ("counters, GPU unhealthy, claim allocated and not prepared", true, unhealthy),
        ("layout is to change, claim allocated and not prepared", false, |it| it.choose("all-disabled")),
    ];
    println!(
        "{NODES} nodes, {CLAIMS} claims of {size} bytes; boot and {minutes} minutes: lists, requests, MB"
    );
    for (name, keeps_counters, before_boot) in cases {
        let [before, now] = [true, false].map(|it| boot(scene(keeps_counters), it, minutes, before_boot));
        let text = |reads: Reads, page: usize| {
            let requests = NODES * (reads.lists * CLAIMS.div_ceil(page) + reads.looks);
            let megabytes = NODES * (reads.lists * CLAIMS + reads.looks) * size / 1_000_000;
            format!("{} lists, {requests} requests, {megabytes} MB", NODES * reads.lists)
        };
        println!("{name}:\n  before {}\n  now    {}", text(before, PAGES[0]), text(now, PAGES[1]));
        assert_eq!(before.looks, 0, "{name}");
        if name.ends_with("nothing withheld") {
            assert_eq!(now, Reads { lists: 0, looks: 0 }, "{name}");
            assert!(1 <= before.lists, "{name}: {before:?}");
        } else {
            assert!(now.lists <= 2 && (1..=2 * minutes + 5).contains(&now.looks), "{name}: {now:?}");
            assert!(6 * minutes <= before.lists, "{name}: {before:?}");
        }
    }
}
