//! The order of devices is the only placement policy there is: the scheduler takes the first one that fits.

use std::cmp::Reverse;

use super::attributes::has_media_extension;
use crate::nvml::facts::{MigFacts, Placement, Profile};

/// Every placement of every profile, those to be taken first at the front: plain profiles before those that claim the
/// scarce media engines, small before large, and for one profile the placement that blocks the fewest others.
pub(super) fn by_preference(mig: &MigFacts) -> Vec<(&Profile, Placement)> {
    let all: Vec<(&Profile, Placement)> = mig
        .profiles
        .iter()
        .flat_map(|profile| profile.placements.iter().map(move |placement| (profile, *placement)))
        .collect();
    let blocked = |placement: Placement| all.iter().filter(|(_, it)| it.overlaps(placement)).count();
    let mut ordered = all.clone();
    ordered.sort_by_key(|(profile, placement)| {
        (
            has_media_extension(profile),
            placement.size,
            profile.slices,
            profile.id,
            blocked(*placement),
            Reverse(placement.start),
        )
    });
    ordered
}
