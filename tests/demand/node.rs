//! A node as the plan has it: it follows a demand with the driver's own functions, and publishes nothing in place of a device before
//! a scheduler that has read an older slice cannot allocate that any more. Its transition is a model of the driver's publisher.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use mig_controller::demand::{Demand, Hold, NodeState, Profiles, Progress, Write};
use mig_model::claim::ClaimRef;
use mig_model::layout::{self, DemandMemory, HeldBack, HoldMemory, Layouts, Wanted, follow, with_holds};
use mig_model::mig_node;

use crate::model::{Model, Offers, Set, members};

/// How the devices of a node are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// By counters: everything that fits is published.
    Counters,
    /// By a layout that stays as it is.
    Fixed,
    /// By a layout that follows demand.
    Demand,
}

/// A node.
pub(crate) struct SimNode {
    pub(crate) model: Arc<Model>,
    pub(crate) node: Arc<Node>,
    pub(crate) keeps: Keeps,
    pub(crate) layouts: Layouts,
    pub(crate) demand: Option<Demand>,
    pub(crate) floor: Profiles,
    pub(crate) holds: Vec<Hold>,
    pub(crate) version: u64,
    observed: u64,
    pub(crate) held: Vec<Set>,
    /// Free devices that are offered.
    pub(crate) published: Vec<Set>,
    /// Withdrawn devices that a late scheduler may still allocate, and until when.
    pub(crate) late: Vec<(usize, usize, Timestamp)>,
    memory: DemandMemory,
    hold_memory: HoldMemory,
    /// GPUs that its driver holds back, with the profile and until when.
    in_force: BTreeMap<String, (String, Timestamp)>,
    /// Whether a hold cannot begin yet.
    hold_waits: bool,
    missing: bool,
    offers: Offers,
    /// Whether its driver runs.
    pub(crate) answers: bool,
    pub(crate) settle: Duration,
    /// Slices written.
    pub(crate) slice_writes: usize,
    /// Layouts put into force for a demand, or because there is none any more.
    pub(crate) layout_changes: usize,
    /// When it has to act although nothing happens.
    pub(crate) wake: Option<Timestamp>,
}

impl SimNode {
    pub(crate) fn new(name: &str, model: Arc<Model>, keeps: Keeps, layouts: Layouts) -> Self {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        let count = model.gpus;
        Self {
            node: Arc::new(node),
            keeps,
            layouts,
            demand: None,
            floor: Profiles::new(),
            holds: Vec::new(),
            version: 1,
            observed: 1,
            held: vec![0; count],
            published: vec![0; count],
            late: Vec::new(),
            memory: DemandMemory::default(),
            hold_memory: HoldMemory::default(),
            in_force: BTreeMap::new(),
            hold_waits: false,
            missing: false,
            offers: Offers::new(),
            answers: true,
            settle: Duration::from_secs(10),
            slice_writes: 0,
            layout_changes: 0,
            wake: None,
            model,
        }
    }

    /// What its `MigNode` says now.
    pub(crate) fn state(&self) -> NodeState {
        let gpus = (0..self.model.gpus).map(|it| self.model.state(it, self.held[it], self.published[it]));
        // A GPU that is held back serves no demand.
        let is_free = |it: &usize| !self.holds.iter().any(|hold| hold.gpu == self.model.names[*it]);
        let offered = (0..self.model.gpus).filter(is_free).map(|it| self.published[it]);
        let is_there = self.demand.as_ref().is_none_or(|demand| {
            demand.profiles.iter().all(|(profile, count)| {
                let set = self.model.of_profile(profile);
                *count <= offered.clone().map(|it| (it & set).count_ones()).sum()
            })
        });
        let is_final = !self.hold_waits && (is_there || self.missing);
        NodeState {
            node: self.node.clone(),
            resource_version: Some(self.version.to_string()),
            takes_part: true,
            follows: self.keeps == Keeps::Demand,
            counts: self.keeps == Keeps::Counters,
            gpus: gpus.collect(),
            demand: self.demand.clone(),
            floor: self.floor.clone(),
            holds: self.holds.clone(),
            progress: if self.observed == self.version && is_final {
                Progress::Done
            } else {
                Progress::Pending
            },
            is_refused: !is_there && self.missing,
        }
    }

    /// Applies a write, if it was decided on this version.
    pub(crate) fn write(&mut self, write: &Write) -> bool {
        if write.resource_version != Some(self.version.to_string()) {
            return false;
        }
        self.demand.clone_from(&write.demand);
        self.holds.clone_from(&write.holds);
        self.version += 1;
        true
    }

    /// GPUs that its driver holds back, with the profile.
    pub(crate) fn held_back(&self, now: Timestamp) -> HeldBack {
        let in_force = self.in_force.iter().filter(|it| now < it.1.1);
        in_force.map(|(gpu, it)| (gpu.clone(), it.0.clone())).collect()
    }

    /// The driver takes over the holds. Where layouts follow demand, the begin of one is a change like others.
    fn hold(&mut self, now: Timestamp) {
        let holds = self.holds.iter().map(|it| mig_node::Hold {
            gpu: it.gpu.clone(),
            profile: it.profile.clone(),
            claim: ClaimRef::new("default".to_owned(), "waits".to_owned(), it.claim.uid.clone()).unwrap(),
            until: Time(it.until),
            since: it.since.map(Time),
        });
        let holds: Vec<mig_node::Hold> = holds.collect();
        let is_demand = self.keeps == Keeps::Demand;
        let not_before = self.memory.not_before(now).filter(|_| is_demand);
        let step = self.hold_memory.follow(&holds, &self.model.inventory, not_before, now);
        if step.has_begun && is_demand {
            self.memory.changed = Some(now);
        }
        self.hold_waits = step.begins_at.is_some();
        let until = |gpu: &String| holds.iter().find(|it| it.gpu == *gpu).map_or(now, |it| it.until.0);
        let in_force = step.in_force.into_iter();
        self.in_force = in_force.map(|(gpu, profile)| (gpu.clone(), (profile, until(&gpu)))).collect();
        self.wake = step.wake;
    }

    /// What it should offer now.
    fn target(&mut self, now: Timestamp) -> Vec<Set> {
        let held_back = self.held_back(now);
        let mut target: Vec<Set> = match self.keeps {
            Keeps::Counters => self.held.iter().map(|it| self.model.open(*it)).collect(),
            Keeps::Fixed | Keeps::Demand => {
                let model = self.model.clone();
                let layouts = with_holds(&self.layouts, &held_back, &model.facts);
                model.offer(&layouts, &held_back, &self.held, &mut self.offers)
            }
        };
        // On a GPU that is held back the driver offers nothing that is in the way.
        for (gpu, set) in target.iter_mut().enumerate() {
            if let Some(profile) = held_back.get(&self.model.names[gpu]) {
                *set &= !self.model.in_the_way(profile);
            }
        }
        target
    }

    /// The driver acts.
    pub(crate) fn step(&mut self, now: Timestamp) {
        if !self.answers {
            return;
        }
        self.observed = self.version;
        self.hold(now);
        if self.keeps == Keeps::Demand {
            self.follow(now);
        }
        let target = self.target(now);
        self.late.retain(|it| now < it.2);
        for (gpu, wanted) in target.iter().enumerate() {
            let held = self.held[gpu];
            let before = self.published[gpu];
            let goes = before & !wanted & !held;
            let until =
                now.checked_add(k8s_openapi::jiff::SignedDuration::try_from(self.settle).unwrap()).unwrap();
            if self.keeps != Keeps::Counters {
                // What the counters exclude needs no care.
                self.late.extend(
                    members(goes)
                        .filter(|it| self.model.open(held) >> it & 1 == 1)
                        .map(|it| (gpu, it, until)),
                );
            }
            let waits = self.late.iter().filter(|it| it.0 == gpu && wanted >> it.1 & 1 == 0);
            let blocked = waits.fold(0, |set, it| set | self.model.devices[it.1].conflicts);
            self.published[gpu] = wanted & !(blocked & !before) & !held;
            self.slice_writes += usize::from(self.published[gpu] != before & !held);
        }
        self.wake = self.late.iter().map(|it| it.2).chain(self.wake).min();
    }

    fn follow(&mut self, now: Timestamp) {
        let held = self.model.held_names(&self.held);
        let held_back = self.held_back(now);
        let inputs = self.model.inputs(&held, &held_back);
        let demand = (self.demand.is_some() || !self.floor.is_empty()).then(|| layout::Demand {
            renewed: self.demand.as_ref().and_then(|it| it.renewed),
            wanted: Wanted {
                free: self.demand.as_ref().map(|it| it.profiles.clone()).unwrap_or_default(),
                floor: self.floor.clone(),
            },
        });
        let followed = follow(inputs, &self.layouts, demand.as_ref(), &self.memory, now);
        self.missing = matches!(followed.outcome, layout::Outcome::Missing(_));
        self.memory = followed.memory;
        self.wake = self.wake.into_iter().chain(followed.wake).min();
        if followed.layouts != self.layouts {
            self.layouts = followed.layouts;
            self.layout_changes += 1;
        }
    }

    /// Gives away a device that is offered, or was a moment ago. False where it is not to be had.
    pub(crate) fn allocate(&mut self, gpu: usize, device: usize, now: Timestamp) -> bool {
        let is_late = self.late.iter().any(|it| it.0 == gpu && it.1 == device && now < it.2);
        let is_offered = self.published[gpu] >> device & 1 == 1;
        let fits = self.model.open(self.held[gpu]) >> device & 1 == 1;
        if !fits || !(is_offered || is_late) {
            return false;
        }
        self.held[gpu] |= 1 << device;
        self.published[gpu] &= match self.keeps {
            Keeps::Counters => self.model.open(self.held[gpu]),
            Keeps::Fixed | Keeps::Demand => !(1 << device),
        };
        true
    }

    /// Takes a device back. Where layouts are used it is published, as every allocated device that is not in the way of a hold: a
    /// scheduler can give it to the next pod before the driver knows.
    pub(crate) fn release(&mut self, gpu: usize, device: usize, now: Timestamp) {
        self.held[gpu] &= !(1 << device);
        let held_back = self.held_back(now);
        let profile = held_back.get(&self.model.names[gpu]);
        let is_hidden = profile.is_some_and(|it| self.model.in_the_way(it) >> device & 1 == 1);
        if self.keeps != Keeps::Counters && !is_hidden {
            self.published[gpu] |= 1 << device;
        }
    }

    /// Free devices of profiles that are offered.
    pub(crate) fn offered(&self) -> BTreeMap<&str, u32> {
        let mut counts = BTreeMap::new();
        for set in &self.published {
            members(*set)
                .for_each(|it| *counts.entry(self.model.devices[it].profile.as_str()).or_default() += 1);
        }
        counts
    }
}
