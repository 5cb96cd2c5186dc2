//! Follows what the node's MigNode demands, and reports what came of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use mig_model::facts::GpuFacts;
use mig_model::layout;
use mig_model::layout::{
    Cause, Demand, DemandMemory, HeldBack, HoldMemory, HoldStep, LayoutInputs, Outcome, Wanted,
    default_layouts, describe_missing, follow, usable,
};
use mig_model::mig_node::{Followed, MigNodeSpec, ProfileCount, reason};
use tracing::{info, warn};

use super::memory::InForce;
use crate::api::{Allocations, OwnMigNode};
use crate::hardware::NodeState;

/// Value of the node's label with which layouts follow demand.
pub(super) const AUTO: &str = "auto";
/// The shortest time between two reads of the claims, also after one that failed.
const READ_PAUSE: Duration = Duration::from_secs(5);
/// The longest such time, for a demand that claims stand in the way of: it doubles while nothing changes on the node.
const READ_PERIOD: Duration = Duration::from_secs(60);

/// What a MigNode demands.
#[derive(Debug, Default, PartialEq)]
struct Spec {
    /// Empty where it breaks a bound, and without a MigNode.
    spec: MigNodeSpec,
    /// `None` without a MigNode.
    generation: Option<i64>,
    /// Which bound it breaks.
    invalid: Option<String>,
}

/// What claims had when they were read.
#[derive(Debug)]
struct Allocated {
    at: Instant,
    /// What was prepared on the node when that was looked at last.
    held: BTreeSet<String>,
    /// What was allocated.
    names: BTreeSet<String>,
}

/// What a spec asks for, whenever it was renewed.
fn wishes(spec: &MigNodeSpec) -> MigNodeSpec {
    let mut wishes = spec.clone();
    wishes.demand.iter_mut().for_each(|it| it.renew_time = None);
    for hold in &mut wishes.holds {
        (hold.until, hold.since) = (Time(Timestamp::UNIX_EPOCH), None);
    }
    wishes
}

/// The demand on this node.
#[derive(Debug)]
pub(super) struct DemandFollower {
    allocations: Allocations,
    /// What the MigNode says; `None` before it was read.
    spec: Option<Spec>,
    /// What came of it, once it was followed.
    result: Option<(Outcome, String)>,
    /// The holds of the spec.
    holds: HoldMemory,
    /// When those begin that cannot begin yet.
    begins_at: Option<Timestamp>,
    /// What a person should know of them.
    notes: Vec<String>,
    /// When to look again.
    wake: Option<Timestamp>,
    /// What claims had when they were read last, if the spec is the same since.
    allocated: Option<Allocated>,
    /// How soon they are read again.
    pause: Duration,
    /// Whether a failed read of the claims was logged.
    has_failed: bool,
}

impl DemandFollower {
    pub(super) fn new(allocations: Allocations) -> Self {
        Self {
            allocations,
            spec: None,
            result: None,
            holds: HoldMemory::default(),
            begins_at: None,
            notes: Vec::new(),
            wake: None,
            allocated: None,
            pause: READ_PAUSE,
            has_failed: false,
        }
    }

    /// Takes over what the MigNode says, and answers whether that is new. What it said before holds while it cannot be read.
    pub(super) fn take(&mut self, mig_node: &OwnMigNode) -> bool {
        let spec = match mig_node {
            OwnMigNode::Unknown => return false,
            OwnMigNode::NoKind | OwnMigNode::Absent => Spec::default(),
            OwnMigNode::Present(node) => Spec {
                spec: node.spec.clone(),
                generation: node.metadata.generation,
                invalid: node.invalid.spec.clone(),
            },
        };
        let is_new = self.spec.as_ref() != Some(&spec);
        // A renewal asks for nothing else.
        let is_the_same = self.spec.as_ref().is_some_and(|it| wishes(&it.spec) == wishes(&spec.spec));
        self.spec = Some(spec);
        if !is_the_same {
            (self.allocated, self.pause) = (None, READ_PAUSE);
        }
        is_new
    }

    /// True where it is time to look again.
    pub(super) fn is_due(&self) -> bool {
        self.wake.is_some_and(|it| it <= Timestamp::now())
    }

    /// Leaves the spec aside: the label chooses the layout.
    pub(super) fn rest(&mut self) {
        (self.holds, self.notes) = (HoldMemory::default(), Vec::new());
        (self.begins_at, self.result, self.wake) = (None, None, None);
    }

    /// The layouts to put into force, what to remember of demands, and which GPUs are held back. `before` is what was in force, by
    /// demand or not. Layouts stay while the MigNode is not read yet, and where counters keep devices apart.
    pub(super) async fn layouts(
        &mut self,
        before: Option<&InForce>,
        state: &NodeState,
        gpus: &[GpuFacts],
        is_counted: bool,
    ) -> (InForce, HeldBack) {
        let base = default_layouts(gpus);
        let (layouts, mut memory) = match before {
            Some(InForce { layouts, demand: Some(memory) }) => (usable(layouts, &base, gpus), memory.clone()),
            _ => (base.clone(), DemandMemory::default()),
        };
        (self.result, self.wake) = (None, None);
        let held_back = self.held_back(state, &mut memory, is_counted);
        let Some(spec) = self.spec.as_ref().filter(|_| !is_counted) else {
            return (InForce { layouts, demand: Some(memory) }, held_back);
        };
        if let Some(known) = self.allocated.as_mut().filter(|it| it.held != state.held) {
            // A claim that is released on the node is deallocated a moment later.
            known.held.clone_from(&state.held);
            self.pause = READ_PAUSE;
        }
        let demand = demand_of(&spec.spec);
        let step = |held: &BTreeSet<String>| {
            let inputs =
                LayoutInputs { inventory: &state.inventory, held, base: &base, held_back: &held_back };
            let followed = follow(inputs, &layouts, demand.as_ref(), &memory, Timestamp::now());
            let message = describe(inputs, &followed.outcome);
            (followed, message)
        };
        let mut result = step(&state.held);
        // What is allocated and not prepared yet decides on what has room. Before the first demand no claim is in the way: the
        // layouts only follow the GPUs.
        if result.0.layouts != layouts && (demand.is_some() || memory.changed.is_some()) {
            // No event says when such a claim is released.
            if let Some(known) = self.allocated.as_ref().filter(|it| it.at.elapsed() < self.pause) {
                result = step(&(&state.held | &known.names));
            }
            if result.0.layouts != layouts {
                match self.read_claims(&state.held).await {
                    Some(allocated) => result = step(&(&state.held | allocated)),
                    None => {
                        self.wake = self.wake.into_iter().chain(later(READ_PAUSE)).min();
                        return (InForce { layouts, demand: Some(memory) }, held_back);
                    }
                }
            }
            self.wake = self.wake.into_iter().chain(later(self.pause)).min();
        }
        let (followed, message) = result;
        let layout::Followed { layouts: next, outcome, memory, wake } = followed;
        if next != layouts {
            info!(?outcome, "layouts change for the demand on this node");
        }
        self.result = Some((outcome, message));
        self.wake = self.wake.into_iter().chain(wake).min();
        (InForce { layouts: next, demand: Some(memory) }, held_back)
    }

    /// The GPUs that are held back now. Where layouts are used, the begin of a hold is a change like others.
    fn held_back(&mut self, state: &NodeState, memory: &mut DemandMemory, is_counted: bool) -> HeldBack {
        let Some(spec) = &self.spec else { return HeldBack::new() };
        let now = Timestamp::now();
        let not_before = memory.not_before(now).filter(|_| !is_counted);
        let HoldStep { in_force, has_begun, begins_at, notes, wake } =
            self.holds.follow(&spec.spec.holds, &state.inventory, not_before, now);
        for note in notes.iter().filter(|it| !self.notes.contains(it)) {
            info!("{note}");
        }
        (self.begins_at, self.notes, self.wake) = (begins_at, notes, wake);
        if has_begun && !is_counted {
            memory.changed = Some(now);
        }
        in_force
    }

    /// The devices that claims have now, prepared or not; nothing where they cannot be read.
    async fn read_claims(&mut self, held: &BTreeSet<String>) -> Option<&BTreeSet<String>> {
        let at = Instant::now();
        match self.allocations.read().await {
            Ok(names) => {
                self.has_failed = false;
                self.pause = (self.pause * 2).min(READ_PERIOD);
                Some(&self.allocated.insert(Allocated { at, held: held.clone(), names }).names)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    warn!(%error, "the claims could not be read, so layouts do not follow the demand yet; trying again");
                }
                None
            }
        }
    }

    /// What came of the demand; nothing before that is known, and without a MigNode.
    pub(super) fn report(
        &self,
        label: Option<&str>,
        is_counted: bool,
        is_settling: bool,
    ) -> Option<Followed> {
        let spec = self.spec.as_ref()?;
        let generation = spec.generation?;
        let report = |status, reason, message: String| {
            let message = [message].iter().chain(&self.notes).cloned().collect::<Vec<_>>().join("; ");
            Some(Followed { generation, status, reason, message })
        };
        let is_other = |it: &&str| *it != AUTO;
        let demands = demand_of(&spec.spec).is_some() || spec.invalid.is_some();
        let nothing = || report(true, reason::NO_DEMAND, "nothing is demanded".to_owned());
        if let Some(label) = label.filter(is_other) {
            if !demands && spec.spec.holds.is_empty() {
                return nothing();
            }
            let message = format!(
                "the label nvidia.com/mig.config=`{label}` chooses the layout; set it to `{AUTO}` to follow the spec"
            );
            return report(false, reason::LABEL_SET, message);
        }
        if is_counted {
            if !demands {
                return nothing();
            }
            let message = "no layout is used: shared counters keep devices apart, or --mode=partitionable insists on them";
            return report(false, reason::PARTITIONABLE, message.to_owned());
        }
        if let Some(invalid) = &spec.invalid {
            return report(false, reason::INVALID_SPEC, format!("{invalid}; correct the spec"));
        }
        let (outcome, message) = self.result.as_ref()?;
        if let Some(at) = self.begins_at {
            let begins = format!("layouts changed less than 30 s ago, so a hold begins at {}", seconds(at));
            return report(false, reason::CHANGED_RECENTLY, format!("{begins}; {message}"));
        }
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

/// So much later than now.
fn later(wait: Duration) -> Option<Timestamp> {
    Timestamp::now().checked_add(SignedDuration::try_from(wait).ok()?).ok()
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
