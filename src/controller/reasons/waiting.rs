//! Which pods wait for devices of our classes, and which of them are alike. Pure.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use dra_allocator::is_allocated;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim, PodSpec};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimSpec};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::world::{World, extended_resources, unschedulable};

/// Begins the names of the classes of profiles: what is misspelt still counts as one of ours.
const CLASS_PREFIX: &str = "mig-";

/// Begins the names of extended resources that stand for such a class.
const RESOURCE_PREFIX: &str = "nvidia.com/";

/// Extended resources that stand for a class by its name.
const IMPLICIT_PREFIX: &str = "deviceclass.resource.kubernetes.io/";

/// A pod that waits for devices of our classes.
#[derive(Debug, Clone)]
pub struct Waiting<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Since when the scheduler finds no place for it.
    pub since: Timestamp,
    /// Claims that Kubernetes has created for the pod: entry of `spec.resourceClaims`, and name.
    pub claims: Vec<(&'a str, &'a str)>,
    /// What it asks for.
    pub(super) entries: Vec<Entry<'a>>,
}

impl Waiting<'_> {
    /// Its UID.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    /// UIDs of its claims that exist.
    pub(super) fn claim_uids(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter_map(|it| it.claim?.metadata.uid.as_deref())
    }

    /// A hash of what an explanation of the pod depends on, apart from names that Kubernetes generates: pods of one shape wait for
    /// the same reason.
    #[must_use]
    pub fn shape(&self) -> u64 {
        // Counts of nodes in the scheduler's message change from one attempt to the next.
        let message = unschedulable(self.pod).and_then(|it| it.message.as_deref()).unwrap_or_default();
        let message: String = message.chars().filter(|it| !it.is_ascii_digit()).collect();
        let spec = self.pod.spec.as_ref().map(|it| PodSpec { priority: None, ..it.clone() });
        let entries: Vec<Value> = self.entries.iter().map(Entry::shape).collect();
        let mut hasher = DefaultHasher::new();
        json!([self.namespace(), spec, message, entries]).to_string().hash(&mut hasher);
        hasher.finish()
    }
}

/// The pods that the scheduler finds no place for, and that wait for devices of the classes of this driver.
#[must_use]
pub fn waiting<'a>(world: &'a World, driver: &str) -> Vec<Waiting<'a>> {
    let snapshot = world.snapshot();
    let classes = Classes::of(&snapshot.classes, driver);
    let templates: BTreeMap<(&str, &str), &ResourceClaimSpec> = snapshot
        .templates
        .iter()
        .map(|it| {
            let metadata = &it.metadata;
            let namespace = metadata.namespace.as_deref().unwrap_or("default");
            ((namespace, metadata.name.as_deref().unwrap_or_default()), &it.spec.spec)
        })
        .collect();
    let of = |pod: &'a Pod| {
        let since = unschedulable(pod)?.last_transition_time.as_ref()?.0;
        let spec = pod.spec.as_ref()?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let entries: Vec<Entry<'a>> = spec
            .resource_claims
            .iter()
            .flatten()
            .map(|it| Entry::of(world, &templates, pod, it, namespace))
            .collect();
        let is_ours = entries.iter().filter_map(|it| it.spec).any(|it| classes.are_in(it))
            || extended_resources(spec).any(|it| classes.stand_behind(it));
        let is_going = pod.metadata.deletion_timestamp.is_some();
        if !is_ours || is_going || pod.metadata.uid.is_none() {
            return None;
        }
        let claims = entries.iter().filter_map(|it| it.generated).collect();
        Some(Waiting { pod, since, claims, entries })
    };
    snapshot.pods.iter().filter_map(of).collect()
}

/// How long a pod has waited. A clock that is behind makes that nothing.
pub(super) fn waited(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

/// An entry of `spec.resourceClaims`.
#[derive(Debug, Clone)]
pub(super) struct Entry<'a> {
    entry: &'a PodResourceClaim,
    /// The claim, where it exists.
    claim: Option<&'a ResourceClaim>,
    /// What is asked for, where that is known.
    spec: Option<&'a ResourceClaimSpec>,
    /// Entry and name of a claim that was created for the pod.
    generated: Option<(&'a str, &'a str)>,
}

impl<'a> Entry<'a> {
    fn of(
        world: &'a World,
        templates: &BTreeMap<(&str, &str), &'a ResourceClaimSpec>,
        pod: &'a Pod,
        entry: &'a PodResourceClaim,
        namespace: &str,
    ) -> Self {
        let statuses = pod.status.iter().flat_map(|it| it.resource_claim_statuses.iter().flatten());
        let generated = statuses
            .filter(|it| it.name == entry.name && entry.resource_claim_name.is_none())
            .find_map(|it| it.resource_claim_name.as_deref());
        let name = entry.resource_claim_name.as_deref().or(generated);
        let claim = name.and_then(|it| world.claim(namespace, it));
        let of_template =
            || templates.get(&(namespace, entry.resource_claim_template_name.as_deref()?)).copied();
        Self {
            entry,
            claim,
            spec: claim.map(|it| &it.spec).or_else(of_template),
            generated: generated.map(|it| (entry.name.as_str(), it)),
        }
    }

    fn shape(&self) -> Value {
        let claim = self.claim;
        // What is allocated differs from claim to claim.
        let allocated = claim.filter(|it| is_allocated(it));
        json!({
            "entry": self.entry,
            "claim": claim.map(|it| &it.spec),
            "isCreated": self.generated.is_some(),
            "isGoing": claim.is_some_and(|it| it.metadata.deletion_timestamp.is_some()),
            "allocated": allocated.map(|it| &it.metadata.name),
        })
    }
}

/// The classes of this driver.
struct Classes<'a> {
    all: BTreeSet<&'a str>,
    ours: BTreeSet<&'a str>,
    resources: BTreeSet<&'a str>,
}

impl<'a> Classes<'a> {
    /// A class is ours where one of its selectors names the driver.
    fn of(classes: &'a [DeviceClass], driver: &str) -> Self {
        let quoted = [format!("\"{driver}\""), format!("'{driver}'")];
        let names_driver = |it: &&DeviceClass| {
            let expressions =
                it.spec.selectors.iter().flatten().filter_map(|it| Some(&it.cel.as_ref()?.expression));
            expressions.into_iter().any(|it| quoted.iter().any(|name| it.contains(name)))
        };
        let name = |it: &'a DeviceClass| it.metadata.name.as_deref().unwrap_or_default();
        let ours: Vec<&DeviceClass> = classes.iter().filter(names_driver).collect();
        Self {
            all: classes.iter().map(name).collect(),
            resources: ours.iter().filter_map(|it| it.spec.extended_resource_name.as_deref()).collect(),
            ours: ours.into_iter().map(name).collect(),
        }
    }

    fn is_ours(&self, class: &str) -> bool {
        self.ours.contains(class) || (class.starts_with(CLASS_PREFIX) && !self.all.contains(class))
    }

    /// Whether a claim asks for devices of one of these.
    fn are_in(&self, claim: &ResourceClaimSpec) -> bool {
        let requests = claim.devices.iter().flat_map(|it| it.requests.iter().flatten());
        let mut classes = requests.flat_map(|it| {
            let exactly = it.exactly.iter().map(|it| &it.device_class_name);
            exactly.chain(it.first_available.iter().flatten().map(|it| &it.device_class_name))
        });
        classes.any(|it| self.is_ours(it))
    }

    /// Whether an extended resource stands for one of these, or would if the API server kept its name.
    fn stand_behind(&self, resource: &str) -> bool {
        let class = resource.strip_prefix(IMPLICIT_PREFIX).or_else(|| resource.strip_prefix(RESOURCE_PREFIX));
        self.resources.contains(resource) || class.is_some_and(|it| self.is_ours(it))
    }
}
