//! A large cluster: nodes with 8 GPUs that are used in many ways, and pods that ask for many things.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use mig_controller::demand::{NodeState, PendingPod, Profiles, Progress, World};
use serde_json::json;

use crate::chance::Chance;
use crate::model::{Model, Set, members};
use crate::pods::{at, claim, classes, pod, profile, selector};

const GPUS: usize = 8;

pub(crate) fn world(nodes: usize, pods: usize) -> World {
    let model = Model::new("H100-80GB", GPUS);
    let mut chance = Chance::new(7);
    let nodes = (0..nodes).map(|it| node(&model, it, &mut chance)).collect();
    let pods = (0..pods).map(|it| waiting(it, &mut chance)).collect();
    World { nodes, pods, classes: classes(), ..World::default() }
}

/// GPUs filled at random; of what is left some is published.
fn node(model: &Model, number: usize, chance: &mut Chance) -> NodeState {
    let mut object = Node::default();
    object.metadata.name = Some(format!("node-{number}"));
    object.metadata.labels = Some(
        [
            ("zone".to_owned(), format!("z{}", number % 3)),
            ("kubernetes.io/hostname".to_owned(), format!("node-{number}")),
        ]
        .into(),
    );
    let gpu = |it: usize| {
        let (mut held, mut published): (Set, Set) = (0, 0);
        for _ in 0..chance.below(12) {
            let open: Vec<usize> =
                members(model.open(held | published)).filter(|it| !model.is_whole(*it)).collect();
            if open.is_empty() {
                break;
            }
            let device = open[chance.below(open.len())];
            if chance.below(4) == 0 {
                published |= 1 << device;
            } else {
                held |= 1 << device;
            }
        }
        model.state(it, held, published)
    };
    NodeState {
        gpus: (0..GPUS).map(gpu).collect(),
        node: Arc::new(object),
        resource_version: Some("1".to_owned()),
        takes_part: true,
        follows: true,
        counts: false,
        demand: None,
        floor: Profiles::new(),
        holds: Vec::new(),
        progress: Progress::Done,
        is_refused: false,
    }
}

fn waiting(number: usize, chance: &mut Chance) -> PendingPod {
    let profiles = ["1g.10gb", "1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", "full"];
    let name = profiles[chance.below(profiles.len())];
    let requests = match chance.below(20) {
        0 => json!([profile(name, 2)]),
        1 => json!([{"name": "gpu", "firstAvailable": [
            {"name": "a", "deviceClassName": "mig", "selectors": selector("own.profile == \"4g.40gb\"")},
            {"name": "b", "deviceClassName": "mig", "selectors": selector("own.profile == \"3g.40gb\"")}]}]),
        2 => {
            let memory = 5 + 5 * chance.below(8);
            let cel = format!(
                "device.capacity[\"mig.dra-driver.dev\"].memory.compareTo(quantity(\"{memory}Gi\")) >= 0"
            );
            json!([{"name": "gpu", "exactly": {"deviceClassName": "mig", "selectors": selector(&cel)}}])
        }
        _ => json!([profile(name, 1)]),
    };
    let mut pod = pod(
        &format!("pod-{number:05}"),
        at(chance.below(90) as f64 / 10.0),
        claim(&format!("claim-{number}"), requests),
    );
    pod.priority = i32::try_from(chance.below(3)).unwrap_or(0);
    pod.namespace = format!("ns-{}", chance.below(20));
    if chance.below(5) == 0 {
        let zone = format!("z{}", chance.below(3));
        let spec = json!({"containers": [], "nodeSelector": {"zone": zone}});
        pod.spec = Arc::new(serde_json::from_value(spec).unwrap());
    }
    pod
}
