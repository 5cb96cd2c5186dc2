//! What stands in the way: a closed set of reasons, each with a sentence and what to do.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;

/// Declares the identifiers once: variant, documentation, and the list of all of them.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Identifies a reason. The names in JSON are stable; docs/kubectl-mig.md has a row for each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "camelCase")]
        pub enum ReasonId {
            $($(#[$doc])* $name,)*
        }

        impl ReasonId {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

reasons! {
    /// The pod or claim does not exist.
    NotFound,
    /// The pod has ended.
    PodEnded,
    /// The pod is being deleted.
    PodBeingDeleted,
    /// The pod is on a node, and its claims are allocated.
    PodHasNode,
    /// The pod names its node itself, so that no scheduler allocates its claims.
    NodeNameSet,
    /// The pod has scheduling gates.
    SchedulingGates,
    /// Another scheduler than the default one is responsible for the pod.
    OtherScheduler,
    /// The scheduler reports something that has nothing to do with devices.
    NotDevices,
    /// The pod asks for no device.
    NoDeviceRequested,
    /// No container uses a claim of the pod.
    ClaimNotUsed,
    /// A claim that the pod names does not exist.
    ClaimMissing,
    /// A template that the pod names does not exist.
    TemplateMissing,
    /// Kubernetes has not created a claim of a template.
    ClaimNotCreated,
    /// A ResourceQuota leaves too little.
    QuotaExceeded,
    /// The claim is being deleted.
    ClaimBeingDeleted,
    /// As many pods use the claim as can.
    ReservedForFull,
    /// The claim is allocated on a node that the pod cannot use.
    ClaimOnOtherNode,
    /// The claim has its devices.
    ClaimAllocated,
    /// No pod uses the claim yet.
    ClaimWithoutPod,
    /// `DRAExtendedResource` is off.
    ExtendedResourceGateOff,
    /// No class stands behind an extended resource.
    ExtendedResourceWithoutClass,
    /// A device plugin serves the resource.
    DevicePlugin,
    /// The cluster has no ResourceSlice.
    NoSlices,
    /// Nodes could serve the claims, but the pod cannot use them.
    NodeRules,
    /// A driver reports that it does not offer something.
    Withheld,
    /// The API server dropped the counters of a driver's slices.
    CountersDropped,
    /// kube-scheduler ignores devices with counters.
    SchedulerGateOff,
    /// A pool is being published.
    PoolIncomplete,
    /// The slices of a pool contradict each other.
    PoolInvalid,
    /// More is allocated from a pool's counters than there is.
    PoolOverdrawn,
    /// Two pools with counters have one name.
    PoolNameShared,
    /// Only a defect of the scheduler is in the way.
    CounterLeak,
    /// The scheduler would give up the search.
    TimedOut,
    /// A class does not exist.
    ClassMissing,
    /// A selector of a class fails.
    ClassSelectorError,
    /// A selector of a request fails.
    RequestSelectorError,
    /// A request or constraint has a form that the scheduler does not know.
    UnsupportedRequest,
    /// A claim asks for more devices than an allocation can have.
    TooManyDevices,
    /// A request for all devices meets a broken pool.
    AllFromBrokenPool,
    /// No GPU has this profile.
    NoSuchProfile,
    /// The class selects no device.
    NoDeviceOfClass,
    /// The request's selectors choose none of the class's devices.
    NoDeviceOfRequest,
    /// The layout of nodes leaves the profile out.
    NotInLayout,
    /// The layout of nodes follows demand, and leaves the profile out now.
    LayoutFollowsDemand,
    /// A GPU is held back for the claim.
    GpuHeldForClaim,
    /// A GPU is held back for another claim.
    GpuHeldBack,
    /// GPUs are offered whole, not as MIG devices.
    WholeGpuOnly,
    /// Devices have a taint.
    DeviceTaint,
    /// Every device that would do is allocated, or overlaps what is allocated.
    AllAllocated,
    /// Enough of a GPU is free, but not in one place.
    Fragmented,
    /// Memory is free, but an engine that the profile needs is allocated.
    EngineAllocated,
    /// The request wants all devices, and some are allocated.
    NotAllFree,
    /// No node has so many devices for one request.
    TooFewOnOneNode,
    /// Each request fits, but not all of them on one node.
    RequestsNotTogether,
    /// Devices do not share the attribute of a constraint.
    MatchAttribute,
    /// Devices need `DRADeviceBindingConditions`.
    BindingConditions,
}

/// A reason with what it is about.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reason {
    /// Which one.
    pub reason: ReasonId,
    /// What is in the way: a clause without a capital letter and full stop.
    pub sentence: String,
    /// What to do, each a sentence or a command with a remark.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<String>,
    /// Who has the devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<Holder>,
    /// More about it, a line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl Reason {
    /// A reason without advice.
    #[must_use]
    pub fn new(reason: ReasonId, sentence: impl Into<String>) -> Self {
        Self {
            reason,
            sentence: sentence.into(),
            advice: Vec::new(),
            holders: Vec::new(),
            details: Vec::new(),
        }
    }

    /// With something to do.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice.push(advice.into());
        self
    }

    /// With lines about it.
    #[must_use]
    pub fn detail(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(details);
        self
    }

    /// With those who have the devices.
    #[must_use]
    pub fn held_by(mut self, holders: Vec<Holder>) -> Self {
        self.holders = holders;
        self
    }
}

/// A claim that has a device, and the pods that use it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// `namespace/name` of the claim.
    pub claim: String,
    /// `namespace/name` of the pods that use it.
    pub pods: Vec<String>,
    /// Whether the claim is of manifests that are not applied.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub planned: bool,
    /// Where.
    pub node: String,
    /// The device's profile, or its name.
    pub device: String,
    /// When the claim was allocated, or else when its pod or it was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

impl Holder {
    /// The pods, or the claim where no pod uses it.
    #[must_use]
    pub fn who(&self) -> String {
        if self.planned {
            format!("claim {} of these manifests", self.claim)
        } else if self.pods.is_empty() {
            format!("claim {}, used by no pod", self.claim)
        } else {
            self.pods.join(" and ")
        }
    }
}

/// `a, b, and 3 more`.
#[must_use]
pub(crate) fn some_of(names: &[String], most: usize) -> String {
    if names.len() <= most {
        return match names {
            [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
            _ => names.concat(),
        };
    }
    format!("{} and {} more", names[..most].join(", "), names.len() - most)
}
