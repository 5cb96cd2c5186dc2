//! The pods of the manifests, in the order in which the scheduler takes them.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::api::scheduling::v1::PriorityClass;

use super::PlanError;
use super::invalid::invalid;
use crate::manifest::{Catalog, Demand, Object};

/// Pods of one manifest object.
#[derive(Debug, Clone)]
pub(super) struct Workload {
    /// Tells it from the others of the plan.
    pub(super) id: usize,
    pub(super) demand: Demand,
    pub(super) priority: i32,
    /// The claims of one of its pods; without those for extended resources, which depend on the node.
    pub(super) claims: Vec<ResourceClaim>,
    /// Extended resources that its pods request.
    pub(super) resources: BTreeMap<String, i64>,
}

/// What the manifests ask for.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    /// Those that need devices, highest priority first, then in the order of the manifests.
    pub(super) all: Vec<Workload>,
    /// Pods that need none.
    pub(super) without_devices: usize,
    /// What has to be said about the manifests.
    pub(super) notes: Vec<String>,
}

impl Workloads {
    /// Whether a pod of the manifests needs a device. How many pods a DaemonSet has depends on the nodes.
    pub(super) fn need_devices(&self) -> bool {
        self.all.iter().any(|it| it.demand.per_node || 0 < it.demand.replicas)
    }

    /// Reads the objects.
    pub(super) fn of(objects: &[Object], catalog: &Catalog<'_>, namespace: &str) -> Result<Self, PlanError> {
        let mut found = Self::default();
        let classes: Vec<&PriorityClass> = objects
            .iter()
            .filter_map(|object| match object {
                Object::PriorityClass(class) => Some(&**class),
                _ => None,
            })
            .collect();
        let mut skipped: BTreeMap<String, usize> = BTreeMap::new();
        for object in objects {
            if let Object::Other { api_version, kind, .. } = object
                && may_have_pods(api_version)
            {
                *skipped.entry(format!("{kind} ({api_version})")).or_default() += 1;
            }
            let Some(demand) = Demand::of(object, namespace)? else { continue };
            if let Some(error) = invalid(object, &demand) {
                return Err(error);
            }
            let pod = demand.pod(0);
            let claims = catalog.planned_claims(&pod)?;
            let resources = super::stock::plugin_resources(&pod);
            let is_served = |name: &String| {
                name.starts_with("nvidia.com/") || catalog.extended().class_of(name).is_some()
            };
            let resources: BTreeMap<String, i64> =
                resources.into_iter().filter(|(name, _)| is_served(name)).collect();
            if claims.is_empty() && resources.is_empty() {
                found.without_devices += demand.replicas;
                continue;
            }
            let priority = found.priority(&demand, &classes);
            let id = found.all.len();
            found.all.push(Workload { id, demand, priority, claims, resources });
        }
        for (kind, count) in skipped {
            let (objects, they) = if count == 1 { ("1 object", "it asks") } else { ("objects", "they ask") };
            let number = if count == 1 { String::new() } else { format!("{count} ") };
            let are = if count == 1 { "is" } else { "are" };
            let text = format!(
                "{number}{objects} of kind {kind} {are} left out: plan does not know which pods {they} for"
            );
            found.notes.push(text);
        }
        // Stable, so that the order of the manifests decides between equals.
        found.all.sort_by_key(|it| std::cmp::Reverse(it.priority));
        Ok(found)
    }

    fn priority(&mut self, demand: &Demand, classes: &[&PriorityClass]) -> i32 {
        let spec = demand.pod.spec.as_ref();
        if let Some(priority) = spec.and_then(|it| it.priority) {
            return priority;
        }
        let named = spec.and_then(|it| it.priority_class_name.as_deref()).filter(|it| !it.is_empty());
        let default = || classes.iter().find(|it| it.global_default == Some(true)).map_or(0, |it| it.value);
        let Some(name) = named else { return default() };
        match (classes.iter().find(|it| it.metadata.name.as_deref() == Some(name)), name) {
            (Some(class), _) => class.value,
            (None, "system-cluster-critical") => 2_000_000_000,
            (None, "system-node-critical") => 2_000_001_000,
            (None, _) => {
                let owner = &demand.owner;
                self.notes.push(format!(
                    "{owner}: the value of PriorityClass {name} is not known, 0 is assumed; add the class to the manifests"
                ));
                0
            }
        }
    }
}

/// Whether objects of this group may create pods: those of workload operators. The kinds of Kubernetes that create pods are known.
fn may_have_pods(api_version: &str) -> bool {
    let Some((group, _)) = api_version.split_once('/') else { return false };
    let is_kubernetes = !group.contains('.') || group.ends_with(".k8s.io") && !group.ends_with(".x-k8s.io");
    !is_kubernetes
}
