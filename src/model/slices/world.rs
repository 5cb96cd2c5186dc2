//! What the publishing step sees, and what it asks for where it has to see more.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::facts::NodeFacts;
use crate::health::Report;
use crate::inventory::{Gpu, Inventory, OfferPolicy, ProfileFilter, inventory_on};
use crate::placement::Policy;
use clap::ValueEnum;
use k8s_openapi::api::resource::v1::ResourceSlice;

use super::render::Owner;
use crate::layout::{Decision, hold_back};

/// Full comparison even if no change was seen: a watch may lose a deletion.
pub const RESYNC: Duration = Duration::from_secs(300);
/// How often a gate is asked for again.
pub const GATE_RETRY: Duration = Duration::from_secs(30);
/// How long one API server after the other may restart, with another gate, without breaking off our watch again.
const ROLLING_RESTART: Duration = Duration::from_secs(600);

/// What is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// `partitionable` where the API server keeps counters, else `layout`; follows when that changes.
    Auto,
    /// Every placement of every profile, kept apart by counters.
    Partitionable,
    /// Devices that don't overlap, chosen by a layout.
    Layout,
}

/// What the taint of an unhealthy GPU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TaintEffect {
    /// Its devices are not allocated any more.
    #[value(name = "NoSchedule")]
    NoSchedule,
    /// And the pods that have some are ended, except those whose claims tolerate it.
    #[value(name = "NoExecute")]
    NoExecute,
}

/// What does not change while the driver runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What to publish.
    pub mode: Mode,
    /// Which GPU comes first.
    pub placement: Policy,
    /// Which profiles to publish where counters keep devices apart; a layout names its own.
    pub profiles: ProfileFilter,
    /// How long the order of the devices in a slice stays as it is after it has changed.
    pub reorder_interval: Duration,
    /// How long a withdrawn device keeps others away.
    pub settle_time: Duration,
    /// What the taint of an unhealthy GPU does.
    pub taint_effect: TaintEffect,
}

/// What the API server does with counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CounterSupport {
    /// It keeps them, and devices draw on those of any slice of the pool: Kubernetes 1.35 and later with the feature gate
    /// `DRAPartitionableDevices`.
    Pool,
    /// It refuses devices that draw on another slice's counters: Kubernetes 1.34 with the feature gate.
    SliceOnly,
    /// It drops them: the feature gate is off.
    Dropped,
}

/// What the API server does with a field behind a feature gate.
#[derive(Debug, Clone, Copy)]
pub struct Gate<T> {
    /// What it answered last; `None` before it was asked.
    pub answer: Option<T>,
    /// When it was asked last; `None` where it has to be asked again.
    pub asked: Option<Instant>,
}

impl<T> Default for Gate<T> {
    fn default() -> Self {
        Self { answer: None, asked: None }
    }
}

impl<T> Gate<T> {
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.asked.is_some_and(|it| now < it + GATE_RETRY)
    }
}

/// The feature gates that matter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gates {
    /// Of shared counters.
    pub counters: Gate<CounterSupport>,
    /// Of device taints: whether they are kept.
    pub taints: Gate<bool>,
    /// When a watch broke off last, as it does when an API server restarts.
    pub restarted: Option<Instant>,
}

impl Gates {
    pub(super) fn may_be_rolling(&self, now: Instant) -> bool {
        self.restarted.is_some_and(|it| now < it + ROLLING_RESTART)
    }
}

/// What the inventory was computed from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// What NVML reports.
    pub facts: &'a NodeFacts,
    /// The GPUs, with a problem for those of which no free part is offered.
    pub gpus: &'a [Gpu],
    /// On which terms they are offered.
    pub policy: &'a OfferPolicy,
}

/// What is known of the node without the API server.
#[derive(Debug, Clone, Copy)]
pub struct NodeView<'a> {
    /// What it offers.
    pub inventory: &'a Inventory,
    /// What that was computed from, or why the GPUs cannot be described.
    pub inputs: Result<Inputs<'a>, &'a str>,
    /// Names of the devices that claims hold on the node.
    pub held: &'a BTreeSet<String>,
    /// How the GPUs are.
    pub health: &'a Report,
}

impl<'a> NodeView<'a> {
    /// What is offered where these devices stay as well, as what claims hold does: the API server has them as allocated, and
    /// the kubelet has not asked for them yet.
    #[must_use]
    pub fn inventory_with(&self, allocated: &BTreeSet<String>) -> Cow<'a, Inventory> {
        let is_offered = |name: &String| self.inventory.devices().any(|it| it.name.as_str() == name);
        match self.inputs {
            Ok(Inputs { facts, gpus, policy }) if !allocated.iter().all(is_offered) => {
                let policy = OfferPolicy { held: self.held | allocated, ..policy.clone() };
                Cow::Owned(inventory_on(facts, gpus, &policy))
            }
            _ => Cow::Borrowed(self.inventory),
        }
    }
}

/// What the API server has of this node and driver.
#[derive(Debug, Clone)]
pub struct Published {
    /// Whose slices they are.
    pub owner: Owner,
    /// The slices.
    pub slices: Vec<ResourceSlice>,
}

/// What claims have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// When the read that found it began.
    pub read_at: Instant,
    /// Names of the devices of this node that the API server has as allocated.
    pub allocated: BTreeSet<String>,
}

/// What has to be read before it can be decided what to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The slices of this node and driver.
    Slices,
    /// Which devices claims have: a list of all claims of the cluster.
    Claims,
    /// Whether the claims that have the devices in [`Memory::pending`](super::Memory::pending) still have them: reads of these claims.
    Releases,
    /// What the API server does with counters.
    Counters,
    /// What it does with taints.
    Taints,
}

/// All that decides on what is published.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// How the driver was started.
    pub settings: &'a Settings,
    /// The node.
    pub node: NodeView<'a>,
    /// How GPUs are to be cut where there are no counters.
    pub layout: &'a Decision,
    /// What the API server keeps.
    pub gates: &'a Gates,
    /// What it has, where that was read in this round.
    pub published: Option<&'a Published>,
    /// What claims have, where that was read in this round.
    pub claims: Option<&'a Claims>,
    /// Which of the devices in [`Memory::pending`](super::Memory::pending) claims still have, where that was read in this round.
    pub still_allocated: Option<&'a BTreeSet<String>>,
}

impl<'a> World<'a> {
    /// The slices, where they were read.
    pub(super) fn published(&self) -> Result<&'a Published, Question> {
        self.published.ok_or(Question::Slices)
    }

    /// The claims, where they were read.
    pub(super) fn claims(&self) -> Result<&'a Claims, Question> {
        self.claims.ok_or(Question::Claims)
    }

    /// Whether counters keep devices apart.
    pub(super) fn is_counted(&self) -> bool {
        let support = self.gates.counters.answer;
        self.settings.mode != Mode::Layout && support.is_none_or(|it| it == CounterSupport::Pool)
    }

    /// The part of the inventory whose profiles are published and not held back, and what claims hold.
    pub(super) fn offered<'i>(
        &self,
        inventory: &'i Inventory,
        held: &BTreeSet<String>,
    ) -> Cow<'i, Inventory> {
        let offered = if self.settings.profiles.is_everything() {
            Cow::Borrowed(inventory)
        } else {
            Cow::Owned(inventory.with_profiles(&self.settings.profiles, held))
        };
        match self.layout.held_back.is_empty() {
            true => offered,
            false => Cow::Owned(hold_back(&offered, &self.layout.held_back, held)),
        }
    }
}
