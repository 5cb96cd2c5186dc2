//! Follows what the node's MigNode demands, and reports what came of it.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use mig_model::facts::GpuFacts;
use mig_model::layout::{
    Cause, Demand, DemandMemory, Followed, LayoutInputs, Outcome, Wanted, default_layouts, describe_missing,
    follow, usable,
};
use mig_model::mig_node::{MigNodeSpec, ProfileCount, reason};
use tracing::{info, warn};

use super::memory::InForce;
use crate::api::{Allocations, NodeSpec};
use crate::hardware::NodeState;

/// How soon a change is tried again for which the claims could not be read.
const READ_PAUSE: Duration = Duration::from_secs(5);

/// What came of the demand, for the status of the MigNode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemandReport {
    /// The generation of the spec that this is about; `None` where there is no MigNode.
    pub generation: Option<i64>,
    /// True where what is published is what the spec demands.
    pub is_followed: bool,
    /// A reason of the condition `DemandFollowed`, see [`mig_model::mig_node::reason`].
    pub reason: &'static str,
    /// The same for people.
    pub message: String,
}

/// The demand on this node.
#[derive(Debug)]
pub(super) struct DemandFollower {
    allocations: Allocations,
    /// What the MigNode says; `None` before it was read.
    spec: Option<NodeSpec>,
    /// What came of it, once it was followed.
    result: Option<(Outcome, String)>,
    /// When to look again.
    wake: Option<Timestamp>,
    /// Whether a failed read of the claims was logged.
    has_failed: bool,
}

impl DemandFollower {
    pub(super) fn new(allocations: Allocations) -> Self {
        Self { allocations, spec: None, result: None, wake: None, has_failed: false }
    }

    /// Takes over what the MigNode says, and answers whether that is new.
    pub(super) fn take(&mut self, spec: NodeSpec) -> bool {
        let is_new = self.spec.as_ref() != Some(&spec);
        self.spec = Some(spec);
        is_new
    }

    /// True where it is time to look again.
    pub(super) fn is_due(&self) -> bool {
        self.wake.is_some_and(|it| it <= Timestamp::now())
    }

    /// The layouts to put into force, and what to remember of demands. `before` is what was in force, by demand or not.
    /// Nothing changes while the MigNode is not read yet, nor where counters keep devices apart.
    pub(super) async fn layouts(
        &mut self,
        before: Option<&InForce>,
        state: &NodeState,
        gpus: &[GpuFacts],
        is_counted: bool,
    ) -> InForce {
        let base = default_layouts(gpus);
        let (layouts, memory) = match before {
            Some(InForce { layouts, demand: Some(memory) }) => (usable(layouts, &base, gpus), memory.clone()),
            _ => (base.clone(), DemandMemory::default()),
        };
        (self.result, self.wake) = (None, None);
        let Some(spec) = self.spec.as_ref().filter(|_| !is_counted) else {
            return InForce { layouts, demand: Some(memory) };
        };
        let demand = demand_of(&spec.spec);
        let step = |held: &BTreeSet<String>| {
            let inputs = LayoutInputs { inventory: &state.inventory, held, base: &base };
            let followed = follow(inputs, &layouts, demand.as_ref(), &memory, Timestamp::now());
            let message = describe(inputs, &followed.outcome);
            (followed, message)
        };
        let (mut followed, mut message) = step(&state.held);
        // What is allocated and not prepared yet decides on what has room. Before the first demand no claim is in the way: the
        // layouts only follow the GPUs.
        if followed.layouts != layouts && (demand.is_some() || memory.changed.is_some()) {
            match self.allocations.read().await {
                Ok(allocated) => {
                    self.has_failed = false;
                    (followed, message) = step(&(&state.held | &allocated));
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.has_failed, true) {
                        warn!(%error, "the claims could not be read, so layouts do not follow the demand yet; trying again");
                    }
                    self.wake = SignedDuration::try_from(READ_PAUSE)
                        .ok()
                        .and_then(|it| Timestamp::now().checked_add(it).ok());
                    return InForce { layouts, demand: Some(memory) };
                }
            }
        }
        let Followed { layouts: next, outcome, memory, wake } = followed;
        if next != layouts {
            info!(?outcome, "layouts change for the demand on this node");
        }
        self.result = Some((outcome, message));
        self.wake = wake;
        InForce { layouts: next, demand: Some(memory) }
    }

    /// What came of the demand; nothing before that is known.
    pub(super) fn report(
        &self,
        label: Option<&str>,
        is_counted: bool,
        is_settling: bool,
    ) -> Option<DemandReport> {
        let spec = self.spec.as_ref()?;
        let report = |is_followed, reason, message: String| {
            Some(DemandReport { generation: spec.generation, is_followed, reason, message })
        };
        let is_empty =
            demand_of(&spec.spec).is_none() && spec.spec.holds.is_empty() && spec.invalid.is_none();
        if is_empty && (is_counted || label.is_some_and(|it| it != AUTO)) {
            return report(true, reason::NO_DEMAND, "nothing is demanded".to_owned());
        }
        if is_counted {
            let message = "shared counters keep devices apart, so every placement of every profile is published at all times";
            return report(false, reason::PARTITIONABLE, message.to_owned());
        }
        if let Some(label) = label.filter(|it| *it != AUTO) {
            let message = format!(
                "the label nvidia.com/mig.config=`{label}` chooses the layout; set it to `{AUTO}` to follow the demand"
            );
            return report(false, reason::LABEL_SET, message);
        }
        if let Some(invalid) = &spec.invalid {
            return report(false, reason::INVALID_SPEC, format!("{invalid}; correct the spec"));
        }
        let (outcome, message) = self.result.as_ref()?;
        let (is_followed, reason) = match outcome {
            Outcome::NoDemand { .. } => (true, reason::NO_DEMAND),
            Outcome::Followed if is_settling => (false, reason::SETTLING),
            Outcome::Followed => (true, reason::FOLLOWED),
            Outcome::Missing(missing) if missing.iter().all(|it| it.cause == Cause::HeldDevices) => {
                (false, reason::HELD_DEVICES)
            }
            Outcome::Missing(_) => (false, reason::DOES_NOT_FIT),
            Outcome::Waiting(_) => (false, reason::CHANGED_RECENTLY),
            Outcome::Stale => (false, reason::STALE),
        };
        let message = if reason == reason::SETTLING {
            "the layouts are in force; devices that were withdrawn settle before others take their place, see --settle-time"
        } else {
            message
        };
        report(is_followed, reason, message.to_owned())
    }
}

/// Value of the node's label with which layouts follow demand.
pub(super) const AUTO: &str = "auto";

/// What a spec demands, if anything.
fn demand_of(spec: &MigNodeSpec) -> Option<Demand> {
    let counts = |list: &[ProfileCount]| list.iter().map(|it| (it.profile.clone(), it.count)).collect();
    let wanted = Wanted {
        free: counts(spec.demand.as_ref().map_or(&[], |it| &it.profiles)),
        floor: counts(&spec.floor),
    };
    let renewed = spec.demand.as_ref().and_then(|it| it.renew_time.as_ref()).map(|it| it.0);
    (spec.demand.is_some() || !spec.floor.is_empty()).then_some(Demand { renewed, wanted })
}

fn describe(inputs: LayoutInputs<'_>, outcome: &Outcome) -> String {
    match outcome {
        Outcome::NoDemand { until: None } => "nothing is demanded; the default layout is in force".to_owned(),
        Outcome::NoDemand { until: Some(until) } => {
            format!("nothing is demanded; the default layout is back in force at {}", seconds(*until))
        }
        Outcome::Followed => "what is demanded is published, or allocated since".to_owned(),
        Outcome::Missing(missing) => describe_missing(inputs, missing),
        Outcome::Waiting(until) => {
            format!("layouts changed less than 30 s ago and change again at {}", seconds(*until))
        }
        Outcome::Stale => "spec.demand.renewTime is more than 2 minutes old, so nothing changes; check that mig-controller runs, \
                           or remove renewTime from a demand of your own"
            .to_owned(),
    }
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
