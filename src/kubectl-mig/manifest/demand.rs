//! The pods that objects ask for, with the claims that Kubernetes would make for them.

use std::collections::BTreeMap;

use dra_allocator::extended::ExtendedResources;
use k8s_openapi::api::core::v1::{Node, Pod, PodTemplateSpec};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Object;

/// Most pods of one file; a plan for more is a plan for a typing error.
const MAX_PODS: usize = 100_000;

/// Pods that an object asks for.
#[derive(Debug, Clone)]
pub struct Demand {
    /// Kind and name as kubectl prints them: `deployment/web`.
    pub owner: String,
    /// How many.
    pub replicas: usize,
    /// A DaemonSet has one pod on each node that fits; `replicas` is 1 then.
    pub per_node: bool,
    /// Each of them. Name and namespace are set.
    pub pod: Pod,
}

/// A pod with its claims.
#[derive(Debug, Clone)]
pub struct PodDemand {
    /// Of [`Demand::owner`].
    pub owner: String,
    /// The pod.
    pub pod: Pod,
    /// Its claims, in the order of `spec.resourceClaims`; those of templates have names that end in `-<n>`.
    pub claims: Vec<ResourceClaim>,
}

/// Why the claims of a pod are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DemandError {
    /// A claim or template that a pod names is missing.
    #[error(
        "pod {pod}: {kind} `{name}` does not exist in namespace `{namespace}`; create it, or correct spec.resourceClaims of the pod"
    )]
    Missing {
        /// The pod.
        pod: String,
        /// `ResourceClaim` or `ResourceClaimTemplate`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The pod's namespace.
        namespace: String,
    },
    /// Kubernetes has not yet made a claim of a template.
    #[error(
        "pod {pod}: claim `{claim}` of spec.resourceClaims has not been created; `kubectl describe pod` shows why"
    )]
    NotCreated {
        /// The pod.
        pod: String,
        /// Its name in `spec.resourceClaims`.
        claim: String,
    },
    /// More pods than this program plans for.
    #[error("{owner} asks for {replicas} pods, more than {MAX_PODS}")]
    TooMany {
        /// Kind and name.
        owner: String,
        /// Replicas.
        replicas: usize,
    },
}

impl Demand {
    /// The pods that an object asks for; `None` for an object that asks for none.
    ///
    /// # Errors
    /// [`DemandError::TooMany`].
    pub fn of(object: &Object, namespace: &str) -> Result<Option<Self>, DemandError> {
        let count = |it: Option<i32>| usize::try_from(it.unwrap_or(1)).unwrap_or(0);
        let made = match object {
            Object::Pod(it) => {
                let pod = PodTemplateSpec { metadata: Some(it.metadata.clone()), spec: it.spec.clone() };
                Some(("pod", &it.metadata, 1, pod))
            }
            Object::Deployment(it) => it
                .spec
                .as_ref()
                .map(|spec| ("deployment", &it.metadata, count(spec.replicas), spec.template.clone())),
            Object::StatefulSet(it) => it
                .spec
                .as_ref()
                .map(|spec| ("statefulset", &it.metadata, count(spec.replicas), spec.template.clone())),
            Object::ReplicaSet(it) => it.spec.as_ref().and_then(|spec| {
                Some(("replicaset", &it.metadata, count(spec.replicas), spec.template.clone()?))
            }),
            Object::ReplicationController(it) => it.spec.as_ref().and_then(|spec| {
                Some(("replicationcontroller", &it.metadata, count(spec.replicas), spec.template.clone()?))
            }),
            Object::DaemonSet(it) => {
                it.spec.as_ref().map(|spec| ("daemonset", &it.metadata, 1, spec.template.clone()))
            }
            Object::Job(it) => it.spec.as_ref().map(|spec| {
                let at_once = spec.parallelism.unwrap_or(1).min(spec.completions.unwrap_or(i32::MAX));
                ("job", &it.metadata, count(Some(at_once)), spec.template.clone())
            }),
            Object::CronJob(it) => it.spec.as_ref().and_then(|spec| {
                let job = spec.job_template.spec.as_ref()?;
                let at_once = job.parallelism.unwrap_or(1).min(job.completions.unwrap_or(i32::MAX));
                Some(("cronjob", &it.metadata, count(Some(at_once)), job.template.clone()))
            }),
            _ => None,
        };
        let Some((kind, metadata, replicas, template)) = made else { return Ok(None) };
        let name = metadata.name.clone().or_else(|| metadata.generate_name.clone()).unwrap_or_default();
        let owner = format!("{kind}/{name}");
        if replicas > MAX_PODS {
            return Err(DemandError::TooMany { owner, replicas });
        }
        let namespace = metadata.namespace.clone().unwrap_or_else(|| namespace.to_owned());
        let metadata = ObjectMeta {
            name: Some(name),
            namespace: Some(namespace),
            ..template.metadata.unwrap_or_default()
        };
        let pod = Pod { metadata, spec: template.spec, status: None };
        Ok(Some(Self { owner, replicas, per_node: kind == "daemonset", pod }))
    }

    /// One of the pods, from 0, named as a controller names it where there is more than one.
    #[must_use]
    pub fn pod(&self, index: usize) -> Pod {
        let mut pod = self.pod.clone();
        if self.replicas > 1
            && let Some(name) = &mut pod.metadata.name
        {
            *name = format!("{name}-{index}");
        }
        pod
    }
}

/// Claims, templates and classes by name.
#[derive(Debug, Default)]
pub struct Catalog<'a> {
    claims: BTreeMap<(&'a str, &'a str), &'a ResourceClaim>,
    templates: BTreeMap<(&'a str, &'a str), &'a ResourceClaimTemplate>,
    extended: ExtendedResources<'a>,
}

impl<'a> Catalog<'a> {
    /// Indexes objects. A later object replaces an earlier one of the same name. What has no namespace is in `namespace`.
    #[must_use]
    pub fn new(
        claims: impl IntoIterator<Item = &'a ResourceClaim>,
        templates: impl IntoIterator<Item = &'a ResourceClaimTemplate>,
        classes: impl IntoIterator<Item = &'a DeviceClass>,
        namespace: &'a str,
    ) -> Self {
        let key = |metadata: &'a ObjectMeta| {
            let name = metadata.name.as_deref().unwrap_or_default();
            (metadata.namespace.as_deref().unwrap_or(namespace), name)
        };
        Self {
            claims: claims.into_iter().map(|it| (key(&it.metadata), it)).collect(),
            templates: templates.into_iter().map(|it| (key(&it.metadata), it)).collect(),
            extended: ExtendedResources::of(classes),
        }
    }

    /// Which classes stand behind extended resources.
    #[must_use]
    pub fn extended(&self) -> &ExtendedResources<'a> {
        &self.extended
    }

    /// The claims of a pod that does not exist yet: those that it names, and new ones of its templates.
    ///
    /// # Errors
    /// [`DemandError::Missing`].
    pub fn planned_claims(&self, pod: &Pod) -> Result<Vec<ResourceClaim>, DemandError> {
        let (pod_name, namespace) = identity(pod);
        let mut claims = Vec::new();
        for entry in pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten()) {
            if let Some(name) = entry.resource_claim_name.as_deref() {
                let claim =
                    self.claims.get(&(namespace, name)).ok_or_else(|| missing(pod, "ResourceClaim", name))?;
                claims.push((*claim).clone());
            } else if let Some(name) = entry.resource_claim_template_name.as_deref() {
                let template = self
                    .templates
                    .get(&(namespace, name))
                    .ok_or_else(|| missing(pod, "ResourceClaimTemplate", name))?;
                let metadata = ObjectMeta {
                    name: Some(format!("{pod_name}-{}", entry.name)),
                    namespace: Some(namespace.to_owned()),
                    ..template.spec.metadata.clone().unwrap_or_default()
                };
                claims.push(ResourceClaim { metadata, spec: template.spec.spec.clone(), status: None });
            }
        }
        Ok(claims)
    }

    /// The claims of a pod that exists, as far as Kubernetes has made them, and what is wrong with the others.
    #[must_use]
    pub fn existing_claims(&self, pod: &Pod) -> (Vec<ResourceClaim>, Vec<DemandError>) {
        let (pod_name, namespace) = identity(pod);
        let statuses = pod.status.iter().flat_map(|it| it.resource_claim_statuses.iter().flatten());
        let names: BTreeMap<&str, Option<&str>> =
            statuses.map(|it| (it.name.as_str(), it.resource_claim_name.as_deref())).collect();
        let (mut claims, mut problems) = (Vec::new(), Vec::new());
        for entry in pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten()) {
            let name = match (entry.resource_claim_name.as_deref(), names.get(entry.name.as_str())) {
                (Some(name), _) => name,
                (None, Some(Some(name))) => name,
                // A status without a name: the pod needs no claim for this entry.
                (None, Some(None)) => continue,
                (None, None) => {
                    let template = entry.resource_claim_template_name.as_deref().unwrap_or_default();
                    problems.push(if self.templates.contains_key(&(namespace, template)) {
                        DemandError::NotCreated { pod: pod_name.to_owned(), claim: entry.name.clone() }
                    } else {
                        missing(pod, "ResourceClaimTemplate", template)
                    });
                    continue;
                }
            };
            match self.claims.get(&(namespace, name)) {
                Some(claim) => claims.push((*claim).clone()),
                None => problems.push(missing(pod, "ResourceClaim", name)),
            }
        }
        (claims, problems)
    }

    /// The claim for the extended resources of a pod on a node; see [`ExtendedResources::claim`].
    #[must_use]
    pub fn extended_claim(&self, pod: &Pod, node: &Node) -> Option<ResourceClaim> {
        self.extended.claim(pod, node).map(|(claim, _)| claim)
    }
}

fn missing(pod: &Pod, kind: &'static str, name: &str) -> DemandError {
    let (pod, namespace) = identity(pod);
    DemandError::Missing { pod: pod.to_owned(), kind, name: name.to_owned(), namespace: namespace.to_owned() }
}

/// Name and namespace.
fn identity(pod: &Pod) -> (&str, &str) {
    let metadata = &pod.metadata;
    (metadata.name.as_deref().unwrap_or_default(), metadata.namespace.as_deref().unwrap_or("default"))
}
