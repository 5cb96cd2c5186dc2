//! Why a pod is pending: the warnings about it, and what `kubectl mig explain` says of it.

use std::collections::BTreeMap;
use std::fmt::Write;

use dra_allocator::Features;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube_sim::ApiServer;
use kube_sim::kinds::{
    DEVICE_CLASS, EVENT, KindRef, NODE, POD, RESOURCE_CLAIM, RESOURCE_CLAIM_TEMPLATE, RESOURCE_QUOTA,
    RESOURCE_SLICE,
};
use kubectl_mig::cluster::{Gates, Snapshot};
use kubectl_mig::explain::{ReasonId, Subject, explain, text};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The reasons, as text.
pub(crate) fn why_pending(server: &ApiServer, pod: &Value) -> String {
    let field = |name: &str| pod["metadata"][name].as_str().unwrap_or("").to_owned();
    let mut out = String::new();
    for (reason, message) in warnings(server, &pod["metadata"]["uid"]) {
        let _ = writeln!(out, "{reason}: {message}");
    }
    let subject = Subject::Pod { namespace: field("namespace"), name: field("name") };
    let explanation = explain(&snapshot(server), &subject);
    // Without the time: ages would make the text another one at each look.
    out.push_str(&text::text(&explanation, None));
    if explanation.reasons.iter().any(|it| it.reason == ReasonId::ExtendedResourceGateOff) {
        out.push_str("\nThe sandbox turns the gate on with --gate DRAExtendedResource=true.\n");
    }
    out
}

/// The last warning of each reason about an object.
pub(crate) fn warnings(server: &ApiServer, uid: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let mut events = server.list(&EVENT);
    events.retain(|event| event["involvedObject"]["uid"] == *uid && event["type"] == "Warning");
    events.sort_by_key(|event| {
        event["metadata"]["resourceVersion"].as_str().and_then(|it| it.parse::<u64>().ok())
    });
    events.iter().map(|event| (text(&event["reason"]), text(&event["message"]))).collect()
}

/// What the simulated scheduler decides by: devices, and neither labels, taints nor sizes of nodes.
fn snapshot(server: &ApiServer) -> Snapshot {
    let gates = server.store().gates();
    let mut nodes: Vec<Node> = typed(server, &NODE);
    for node in &mut nodes {
        (node.spec, node.status) = (None, None);
    }
    let mut pods: Vec<Pod> = typed(server, &POD);
    for spec in pods.iter_mut().filter_map(|it| it.spec.as_mut()) {
        (spec.node_selector, spec.affinity) = (None, None);
    }
    Snapshot {
        nodes,
        pods,
        classes: typed(server, &DEVICE_CLASS),
        slices: typed::<ResourceSlice>(server, &RESOURCE_SLICE).into_iter().collect(),
        claims: typed(server, &RESOURCE_CLAIM),
        templates: typed(server, &RESOURCE_CLAIM_TEMPLATE),
        quotas: typed(server, &RESOURCE_QUOTA),
        events: typed(server, &EVENT),
        version: gates.version.minor().parse().ok().map(|minor| (1, minor)),
        gates: Some(Gates {
            features: Features {
                device_taints: gates.device_taints,
                partitionable_devices: gates.partitionable_devices,
                ..Features::ALL
            },
            extended_resource: gates.extended_resource,
        }),
        ..Snapshot::default()
    }
}

fn typed<T: DeserializeOwned>(server: &ApiServer, kind: KindRef) -> Vec<T> {
    // Everything in the store went through these types, so nothing is lost here.
    server.list(kind).iter().filter_map(|object| T::deserialize(&**object).ok()).collect()
}
