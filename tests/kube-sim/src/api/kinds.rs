//! The kinds that the server knows, in one table.

use std::hash::{Hash, Hasher};

/// One served kind.
#[derive(Debug)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Name of the type.
    pub kind: &'static str,
    /// Name in paths.
    pub plural: &'static str,
    /// Name for one object.
    pub singular: &'static str,
    /// Abbreviations that `kubectl` accepts.
    pub short: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Subresources served besides the object itself.
    pub subresources: &'static [&'static str],
}

/// A kind of the table; compared and hashed by its place in it.
pub type KindRef = &'static Kind;

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.kind) == (other.group, other.kind)
    }
}

impl Eq for Kind {}

impl Hash for Kind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.group, self.kind).hash(state);
    }
}

impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kind {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.group, self.kind).cmp(&(other.group, other.kind))
    }
}

impl Kind {
    /// `group/version`, or only the version for the core group: the object's `apiVersion`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `plural.group`, as it stands in error messages.
    #[must_use]
    pub fn qualified_plural(&self) -> String {
        if self.group.is_empty() { self.plural.into() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Name of the CustomResourceDefinition without which the kind is not served; `None` for kinds of Kubernetes itself.
    #[must_use]
    pub fn definition(&self) -> Option<String> {
        (self.group == MIG_NODE.group).then(|| self.qualified_plural())
    }

    /// Path of the group version: `/api/v1` or `/apis/<group>/<version>`.
    #[must_use]
    pub fn root(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }
}

macro_rules! kinds {
    ($($constant:ident: $group:literal $version:literal $kind:literal $plural:literal $singular:literal
       $short:tt $namespaced:literal $subresources:tt;)*) => {
        $(
            #[doc = concat!("`", $kind, "`, ", $group, " ", $version)]
            pub static $constant: Kind = Kind {
                group: $group, version: $version, kind: $kind, plural: $plural, singular: $singular,
                short: &$short, namespaced: $namespaced, subresources: &$subresources,
            };
        )*
        /// Every kind that is served.
        pub static ALL: &[KindRef] = &[$(&$constant),*];
    };
}

kinds! {
    NAMESPACE: "" "v1" "Namespace" "namespaces" "namespace" ["ns"] false ["status"];
    NODE: "" "v1" "Node" "nodes" "node" ["no"] false ["status"];
    POD: "" "v1" "Pod" "pods" "pod" ["po"] true ["status", "binding", "eviction"];
    CONFIG_MAP: "" "v1" "ConfigMap" "configmaps" "configmap" ["cm"] true [];
    EVENT: "" "v1" "Event" "events" "event" ["ev"] true [];
    SERVICE_ACCOUNT: "" "v1" "ServiceAccount" "serviceaccounts" "serviceaccount" ["sa"] true [];
    NEW_EVENT: "events.k8s.io" "v1" "Event" "events" "event" ["ev"] true [];
    SERVICE: "" "v1" "Service" "services" "service" ["svc"] true ["status"];
    SECRET: "" "v1" "Secret" "secrets" "secret" [] true [];
    VOLUME_CLAIM: "" "v1" "PersistentVolumeClaim" "persistentvolumeclaims" "persistentvolumeclaim" ["pvc"] true
        ["status"];
    RESOURCE_QUOTA: "" "v1" "ResourceQuota" "resourcequotas" "resourcequota" ["quota"] true ["status"];
    PRIORITY_CLASS: "scheduling.k8s.io" "v1" "PriorityClass" "priorityclasses" "priorityclass" ["pc"] false [];
    DEPLOYMENT: "apps" "v1" "Deployment" "deployments" "deployment" ["deploy"] true ["status", "scale"];
    REPLICA_SET: "apps" "v1" "ReplicaSet" "replicasets" "replicaset" ["rs"] true ["status"];
    STATEFUL_SET: "apps" "v1" "StatefulSet" "statefulsets" "statefulset" ["sts"] true ["status", "scale"];
    DAEMON_SET: "apps" "v1" "DaemonSet" "daemonsets" "daemonset" ["ds"] true ["status"];
    JOB: "batch" "v1" "Job" "jobs" "job" [] true ["status"];
    CRON_JOB: "batch" "v1" "CronJob" "cronjobs" "cronjob" ["cj"] true ["status"];
    POD_DISRUPTION_BUDGET: "policy" "v1" "PodDisruptionBudget" "poddisruptionbudgets" "poddisruptionbudget" ["pdb"] true
        ["status"];
    LEASE: "coordination.k8s.io" "v1" "Lease" "leases" "lease" [] true [];
    RESOURCE_SLICE: "resource.k8s.io" "v1" "ResourceSlice" "resourceslices" "resourceslice" [] false [];
    RESOURCE_CLAIM: "resource.k8s.io" "v1" "ResourceClaim" "resourceclaims" "resourceclaim" [] true ["status"];
    RESOURCE_CLAIM_TEMPLATE: "resource.k8s.io" "v1" "ResourceClaimTemplate" "resourceclaimtemplates"
        "resourceclaimtemplate" [] true [];
    DEVICE_CLASS: "resource.k8s.io" "v1" "DeviceClass" "deviceclasses" "deviceclass" [] false [];
    CUSTOM_RESOURCE_DEFINITION: "apiextensions.k8s.io" "v1" "CustomResourceDefinition" "customresourcedefinitions"
        "customresourcedefinition" ["crd", "crds"] false ["status"];
    MIG_NODE: "mig.dra-driver.dev" "v1alpha1" "MigNode" "mignodes" "mignode" [] false ["status"];
}

/// The kind served under a group, version and plural name.
#[must_use]
pub fn by_path(group: &str, version: &str, plural: &str) -> Option<KindRef> {
    ALL.iter().copied().find(|k| k.group == group && k.version == version && k.plural == plural)
}

/// The kind with this `apiVersion` and `kind`.
#[must_use]
pub fn by_type(api_version: &str, kind: &str) -> Option<KindRef> {
    ALL.iter().copied().find(|k| k.kind == kind && k.api_version() == api_version)
}
