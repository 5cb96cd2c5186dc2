//! A plan, ready to be printed.

use std::collections::BTreeMap;

use super::cost::Cost;
use super::engine::Outcome;
use super::map::MappedGpu;
use super::needed::{Needed, NotNeeded};
use super::workload::Workload;

/// A plan.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) workloads: &'a [Workload],
    pub(super) outcome: Outcome,
    pub(super) gpus: Vec<MappedGpu>,
    pub(super) needed: Option<Result<Needed, NotNeeded>>,
    pub(super) cost: Option<Cost>,
    pub(super) notes: Vec<String>,
}

impl Plan<'_> {
    /// Pods of a workload that have no place.
    pub(super) fn missing(&self, workload: usize) -> usize {
        self.outcome.pods.iter().filter(|it| it.workload == workload && it.place.is_none()).count()
    }

    /// Profiles of the devices of a workload's pods, with their numbers.
    pub(super) fn profiles_of(&self, workload: usize) -> BTreeMap<&str, usize> {
        let mut profiles = BTreeMap::new();
        let instances = self.gpus.iter().flat_map(|it| &it.instances);
        for instance in instances.filter(|it| it.workload == Some(workload)) {
            *profiles.entry(instance.profile.as_str()).or_default() += 1;
        }
        profiles
    }

    pub(super) fn devices_of(&self, workload: usize) -> String {
        let profiles = self.profiles_of(workload);
        let parts: Vec<String> =
            profiles.iter().map(|(profile, count)| format!("{count} x {profile}")).collect();
        if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
    }
}
