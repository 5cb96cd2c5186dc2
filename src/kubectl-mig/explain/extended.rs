//! Extended resources of a pod: those that a class stands behind become a claim.

use dra_allocator::extended::{CLAIM_ANNOTATION, IMPLICIT_PREFIX};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};

use super::case::{Case, is};
use super::explanation::Verdict;
use super::reason::{Reason, ReasonId, some_of};
use super::size::requested;
use super::subject::scheduler_message;
use crate::cluster::Snapshot;
use crate::manifest::Catalog;

impl<'a> Case<'a> {
    /// Extended resources: those that a class stands behind become a claim of the pod.
    pub(super) fn extended_resources(&mut self, snapshot: &'a Snapshot, catalog: &Catalog<'a>, pod: &Pod) {
        let status = pod.status.as_ref().and_then(|it| it.extended_resource_claim_status.as_ref());
        if let Some(status) = status {
            let found = snapshot
                .claims
                .iter()
                .find(|it| is(&it.metadata, &self.namespace, &status.resource_claim_name));
            self.held.extend(found.cloned());
            return;
        }
        let gate = snapshot.gates.map(|it| it.extended_resource);
        let mut has_other = false;
        for resource in requested(pod).into_keys() {
            let is_gpu = resource.starts_with("nvidia.com/") || resource.starts_with(IMPLICIT_PREFIX);
            let has_class = catalog.extended().class_of(&resource).is_some();
            if !is_gpu && !has_class {
                continue;
            }
            has_other = true;
            let plugin = plugin_nodes(snapshot, &resource);
            if has_class && gate != Some(false) {
                self.with_class(snapshot, pod, &resource, &plugin);
            } else if plugin.is_empty() {
                self.without_class(snapshot, &resource);
            } else {
                let sentence = format!(
                    "a device plugin serves {resource} on {}, and not a ResourceClaim",
                    some_of(&plugin, 3)
                );
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let reason = Reason::new(ReasonId::DevicePlugin, sentence).advise(format!(
                    "kubectl -n {} describe pod {name} says what the scheduler finds",
                    self.namespace
                ));
                self.hold_back(Verdict::Unknown, reason);
            }
        }
        let asks =
            pod.spec.as_ref().is_some_and(|it| it.resource_claims.as_ref().is_some_and(|it| !it.is_empty()));
        if !asks && !has_other {
            let reason = Reason::new(ReasonId::NoDeviceRequested, "the pod asks for no device")
                .advise("name a ResourceClaimTemplate in spec.resourceClaims and in resources.claims of the container: docs/selectors.md, examples/single-instance");
            self.decide(Verdict::Never, reason);
        }
    }

    fn with_class(&mut self, snapshot: &Snapshot, pod: &Pod, resource: &str, plugin: &[String]) {
        let gate = snapshot.gates.map(|it| it.extended_resource);
        let refused =
            scheduler_message(pod).is_some_and(|it| it.contains(&format!("Insufficient {resource}")));
        if refused && gate.is_none() && plugin.is_empty() {
            let sentence = format!(
                "kube-scheduler looks for {resource} at a device plugin: DRAExtendedResource is off in it"
            );
            return self.decide(Verdict::Never, gate_off(sentence, resource));
        }
        self.extended.push(resource.to_owned());
        let made = |claim: &ResourceClaim| {
            claim.metadata.annotations.as_ref().is_some_and(|it| it.contains_key(CLAIM_ANNOTATION))
        };
        let known = gate.is_some()
            || snapshot.version.is_some_and(|it| it >= (1, 36))
            || snapshot.claims.iter().any(made);
        if !known {
            self.assumptions.push(
                "DRAExtendedResource is on in kube-scheduler, kube-controller-manager and the kubelets, as it is in kube-apiserver"
                    .to_owned(),
            );
        }
    }

    fn without_class(&mut self, snapshot: &Snapshot, resource: &str) {
        if snapshot.gates.is_some_and(|it| !it.extended_resource) {
            let sentence = format!("no device plugin offers {resource}, and DRAExtendedResource is off");
            return self.decide(Verdict::Never, gate_off(sentence, resource));
        }
        let implied = resource.strip_prefix("nvidia.com/").unwrap_or(resource);
        let same = |it: &&DeviceClass| it.metadata.name.as_deref() == Some(implied);
        if snapshot.classes.iter().find(same).is_some_and(|it| it.spec.extended_resource_name.is_none()) {
            let sentence = format!(
                "class {implied} stands for {resource}, but kube-apiserver does not keep its extendedResourceName: DRAExtendedResource is off"
            );
            return self.decide(Verdict::Never, gate_off(sentence, resource));
        }
        let known: Vec<String> =
            snapshot.classes.iter().filter_map(|it| it.spec.extended_resource_name.clone()).collect();
        let mut reason = Reason::new(
            ReasonId::ExtendedResourceWithoutClass,
            format!(
                "no DeviceClass has the extendedResourceName {resource}, and no node's device plugin offers it"
            ),
        );
        if !known.is_empty() {
            reason = reason.advise(format!("request one of these: {}", some_of(&known, 8)));
        }
        if resource == "nvidia.com/gpu" {
            reason = reason.advise("set the chart value deviceClasses.gpuExtendedResource=true, which gives this name to class gpu.dra-driver.dev");
        }
        self.decide(Verdict::Never, reason.advise("or ask with a claim: kubectl mig convert -f FILE"));
    }
}

fn gate_off(sentence: String, resource: &str) -> Reason {
    Reason::new(ReasonId::ExtendedResourceGateOff, sentence)
        .advise(format!("ask for {resource} with a claim: kubectl mig convert -f FILE"))
        .advise("or turn the feature gate DRAExtendedResource on in kube-apiserver, kube-controller-manager, kube-scheduler and the kubelets, and apply the device classes again")
}

fn plugin_nodes(snapshot: &Snapshot, resource: &str) -> Vec<String> {
    let offers = |node: &&Node| {
        let allocatable = node.status.as_ref().and_then(|it| it.allocatable.as_ref());
        allocatable.and_then(|it| it.get(resource)).is_some_and(|it| it.0 != "0")
    };
    snapshot
        .nodes
        .iter()
        .filter(offers)
        .filter_map(|it| Some(format!("node {}", it.metadata.name.as_deref()?)))
        .collect()
}
