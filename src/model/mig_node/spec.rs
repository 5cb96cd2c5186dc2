//! What is demanded of the GPUs of a node.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::bounds::{
    Bounded, MAX_COUNT, MAX_DEMANDED, MAX_HOLDS, MAX_NAME, MAX_PROFILE_NAME, OutOfBounds, ensure, list, name,
};
use crate::claim::ClaimRef;

/// Age at which a demand that is renewed is stale: the driver keeps what it publishes and changes nothing.
pub const STALE_AFTER: Duration = Duration::from_secs(120);

/// What is demanded of the GPUs of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigNodeSpec {
    /// What should be published; `None` where nothing is demanded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<Demand>,
    /// The fewest devices of each profile that are published, allocated ones included, when the demand is followed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub floor: Vec<ProfileCount>,
    /// GPUs on which a claim has its turn; at most one entry for each GPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<Hold>,
}

/// What should be published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Demand {
    /// When it was last renewed; `None` for a demand by a person, which does not age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_time: Option<Time>,
    /// How many devices of each profile should be published and free, beside those that are allocated.
    #[serde(default)]
    pub profiles: Vec<ProfileCount>,
}

/// A number of devices of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileCount {
    /// Name of the profile as NVML has it, for example `1g.10gb+me`; `full` for the whole GPU.
    pub profile: String,
    /// How many.
    pub count: u32,
}

/// A GPU of which free devices are not offered, so that a claim gets its turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// Name of the whole GPU, for example `gpu-0000-3b-00`.
    pub gpu: String,
    /// Profile that the claim waits for.
    pub profile: String,
    /// The claim.
    pub claim: ClaimRef,
    /// When the hold ends, whether or not the claim has its device. Its writer may renew it.
    pub until: Time,
    /// Since when the claim has it, so that the controller renews it for a limited time; `None` for a hold by a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

impl Demand {
    /// True where the demand is renewed and was not in the last two minutes.
    #[must_use]
    pub fn is_stale(&self, now: Timestamp) -> bool {
        let limit = SignedDuration::try_from(STALE_AFTER).unwrap_or(SignedDuration::MAX);
        self.renew_time.as_ref().is_some_and(|it| limit < now.duration_since(it.0))
    }
}

impl Hold {
    /// True where the hold is over.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.0 <= now
    }
}

impl Bounded for MigNodeSpec {
    fn check(&self) -> Result<(), OutOfBounds> {
        if let Some(demand) = &self.demand {
            counts("spec.demand.profiles", &demand.profiles)?;
        }
        counts("spec.floor", &self.floor)?;
        list("spec.holds", &self.holds, MAX_HOLDS)?;
        let mut gpus = BTreeSet::new();
        for (index, hold) in self.holds.iter().enumerate() {
            let at = |field: &str| format!("spec.holds[{index}].{field}");
            name(&at("gpu"), &hold.gpu, MAX_NAME)?;
            name(&at("profile"), &hold.profile, MAX_PROFILE_NAME)?;
            name(&at("claim.namespace"), &hold.claim.namespace, MAX_NAME)?;
            name(&at("claim.name"), &hold.claim.name, MAX_NAME)?;
            ensure(gpus.insert(&hold.gpu), &at("gpu"), || "another hold has the same GPU".to_owned())?;
        }
        Ok(())
    }
}

fn counts(field: &str, profiles: &[ProfileCount]) -> Result<(), OutOfBounds> {
    list(field, profiles, MAX_DEMANDED)?;
    let mut names = BTreeSet::new();
    for (index, ProfileCount { profile, count }) in profiles.iter().enumerate() {
        let at = |part: &str| format!("{field}[{index}].{part}");
        name(&at("profile"), profile, MAX_PROFILE_NAME)?;
        ensure((1..=MAX_COUNT).contains(count), &at("count"), || {
            format!("is {count}; it must be 1 to {MAX_COUNT}")
        })?;
        ensure(names.insert(profile), &at("profile"), || "another entry has the same profile".to_owned())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_demand_that_was_not_renewed_for_two_minutes_is_stale_and_one_without_a_time_never_is() {
        let demand = Demand { renew_time: Some(Time(at(1000))), profiles: Vec::new() };
        assert!(!demand.is_stale(at(1120)));
        assert!(demand.is_stale(at(1121)));
        assert!(!demand.is_stale(at(0)), "the clock of the writer is ahead");
        assert!(!Demand::default().is_stale(at(100_000)));
    }
}
