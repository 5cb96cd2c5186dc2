//! What drivers and controllers report as events.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::jiff::Timestamp;
use mig_model::drivers::KNOWN;

use crate::cluster::Snapshot;

/// Reports of this driver about a Node that something is not offered, and the reports that end them. Those without an end are
/// not repeated while nothing changes.
const REPORTS: &[(&str, &[&str], &str)] = &[
    ("GpuNotOffered", &["GpuOffered"], "the message says what is wrong with the GPU"),
    ("GpuUnhealthy", &["GpuRecovered"], "see \"A GPU is unhealthy\" in docs/troubleshooting.md"),
    ("GpuLost", &["GpuRecovered"], "see \"A GPU is unhealthy\" in docs/troubleshooting.md"),
    (
        "HostNotReady",
        &["HostRecovered"],
        "dra-driver-mig check in the driver's pod of the node says what the host lacks",
    ),
    ("UnmanagedInstance", &[], "remove the unmanaged MIG instance as docs/troubleshooting.md, step 3, says"),
    (
        "LayoutRefused",
        &["LayoutApplied"],
        "correct the label nvidia.com/mig.config of the node, or the layout file",
    ),
    ("LayoutPending", &["LayoutApplied"], "wait, or end the pods that the message names"),
    ("LayoutHasNoEffect", &["LayoutApplied"], "remove the label nvidia.com/mig.config from the node"),
    (
        "CountersDropped",
        &["CountersKept"],
        "turn DRAPartitionableDevices on in kube-apiserver and kube-scheduler",
    ),
    ("NvmlHung", &["NvmlRecovered"], "see \"A GPU hangs\" in docs/troubleshooting.md"),
    ("PublishRefused", &[], "the message says which ResourceSlice was refused, and why"),
    ("SlicesOverwritten", &[], "remove the other program that writes this driver's ResourceSlices"),
];

/// The reasons of events about Nodes that are looked for.
pub fn reported_reasons() -> impl Iterator<Item = &'static str> {
    REPORTS.iter().flat_map(|(reason, ends, _)| std::iter::once(*reason).chain(ends.iter().copied()))
}

/// Something that the driver of a node reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) node: String,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) advice: &'static str,
}

/// What drivers report about nodes, and what no later event has ended; the latest of each reason and GPU.
pub(super) fn reports(snapshot: &Snapshot) -> Vec<Report> {
    let mut by_node: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    let drivers = snapshot.slices.drivers();
    let is_driver = |event: &&Event| {
        let source = event.source.as_ref().and_then(|it| it.component.as_deref());
        let who = event.reporting_component.as_deref().filter(|it| !it.is_empty()).or(source);
        who.is_some_and(|it| KNOWN.contains(&it) || drivers.contains(&it))
    };
    for event in snapshot.events.iter().filter(is_driver) {
        let about = &event.involved_object;
        if let (Some("Node"), Some(name)) = (about.kind.as_deref(), about.name.as_deref()) {
            by_node.entry(name).or_default().push(event);
        }
    }
    let mut found: Vec<Report> = Vec::new();
    for (node, events) in by_node {
        for (reason, ends, advice) in REPORTS {
            let of = |reasons: &[&str]| -> BTreeMap<Option<&str>, &Event> {
                let mut latest: BTreeMap<Option<&str>, &Event> = BTreeMap::new();
                for &event in &events {
                    if event.reason.as_deref().is_some_and(|it| reasons.contains(&it)) {
                        let known = latest.entry(gpu(event)).or_insert(event);
                        if time(known) < time(event) {
                            *known = event;
                        }
                    }
                }
                latest
            };
            let ended = of(ends);
            for (gpu, event) in of(&[reason]) {
                // An end that names no GPU ends it for all.
                let end =
                    [ended.get(&gpu), ended.get(&None)].into_iter().flatten().filter_map(|it| time(it)).max();
                if end.is_none() || end < time(event) {
                    let message = event.message.clone().unwrap_or_default();
                    found.push(Report { node: node.to_owned(), reason, message, advice });
                }
            }
        }
    }
    found
}

/// The GPU that an event's message names first, by UUID or PCI address.
fn gpu(event: &Event) -> Option<&str> {
    let is_part = |it: char| it.is_ascii_alphanumeric() || "-:.".contains(it);
    let words =
        event.message.as_deref()?.split(|it: char| !is_part(it)).map(|it| it.trim_end_matches(['.', ':']));
    let is_pci = |it: &str| it.len() > 8 && it.split(':').count() == 3;
    words.into_iter().find(|it| it.starts_with("GPU-") || is_pci(it))
}

/// Why Kubernetes could not create a claim of a pod, as an event says.
pub(super) fn failed_claim_creation(snapshot: &Snapshot, pod: &Pod) -> Option<String> {
    let (name, namespace) = (pod.metadata.name.as_ref()?, pod.metadata.namespace.as_ref());
    let of_pod = |event: &&Event| {
        let about = &event.involved_object;
        about.kind.as_deref() == Some("Pod")
            && about.name.as_ref() == Some(name)
            && about.namespace.as_ref() == namespace
            && event.reason.as_deref() == Some("FailedResourceClaimCreation")
    };
    snapshot.events.iter().filter(of_pod).max_by_key(|it| time(it))?.message.clone()
}

/// When it happened last.
fn time(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|it| it.last_observed_time.as_ref()).map(|it| it.0);
    let last = event.last_timestamp.as_ref().map(|it| it.0);
    series.max(last).max(event.event_time.as_ref().map(|it| it.0))
}
