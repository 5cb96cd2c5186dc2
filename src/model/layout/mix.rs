//! Layouts that no file has: rules that follow from the profiles a GPU has, for any GPU.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::facts::Profile;
use crate::inventory::CounterPlan;

use super::fit::{Candidate, fit};

/// A cut for requests of every size: again and again the largest plain profile that takes at most half of what is left,
/// of memory and of compute slices, and in the end the smallest as often as it fits.
///
/// So one large, one medium and two small instances: 3g+2g+1g+1g on a GPU with seven compute slices, 2g+1g+1g on one with
/// four. These are the numbers of NVIDIA's `all-balanced`, which its rule reproduces for GPUs that the file does not know.
#[must_use]
pub fn balanced(profiles: &[Profile]) -> BTreeMap<String, u32> {
    let plain: Vec<(&Profile, u32)> = profiles
        .iter()
        .filter(|it| is_plain(&it.name))
        .filter_map(|it| Some((it, it.placements.first()?.size)))
        .collect();
    let mut memory = profiles.iter().flat_map(|it| &it.placements).map(|it| it.end()).max().unwrap_or(0);
    let mut compute = profiles.iter().map(|it| it.slices).max().unwrap_or(0);
    let mut wanted = BTreeMap::new();
    loop {
        let half = plain.iter().filter(|(it, size)| it.slices <= compute / 2 && *size <= memory / 2);
        let rest = plain.iter().filter(|(it, size)| it.slices <= compute && *size <= memory);
        let Some((profile, size)) = half
            .max_by_key(|(it, size)| (*size, it.slices))
            .or_else(|| rest.min_by_key(|(it, size)| (*size, it.slices)))
        else {
            break;
        };
        // A profile that takes nothing would be taken for ever.
        if profile.slices == 0 || *size == 0 {
            break;
        }
        *wanted.entry(profile.name.clone()).or_insert(0) += 1;
        compute -= profile.slices;
        memory -= size;
    }
    possible(profiles, &wanted)
}

/// As many instances of one profile as an empty GPU has room for; nothing where it does not have the profile. The name is
/// that of the profile as a label value can hold it: `1g.10gb.me` is `1g.10gb+me`.
#[must_use]
pub fn all_of(profiles: &[Profile], name: &str) -> Option<BTreeMap<String, u32>> {
    let profile = profiles.iter().find(|it| label(&it.name) == name)?;
    let most = u32::try_from(profile.placements.len()).unwrap_or(u32::MAX);
    Some(possible(profiles, &[(profile.name.clone(), most)].into()))
}

/// A profile's name as part of a label value, which knows no `+` and no `,`.
#[must_use]
pub(super) fn label(profile: &str) -> String {
    profile.replace(['+', ','], ".")
}

/// All placements of an empty GPU, with their costs.
#[must_use]
pub fn candidates(profiles: &[Profile], plan: &CounterPlan) -> Vec<Candidate> {
    let of = |profile: &Profile| {
        let candidate = |placement| Candidate {
            profile: profile.name.clone(),
            placement,
            cost: plan.cost(profile, placement),
        };
        profile.placements.iter().copied().map(candidate).collect::<Vec<_>>()
    };
    profiles.iter().flat_map(of).collect()
}

/// The largest part of `wanted` that an empty GPU has room for.
#[must_use]
pub fn possible(profiles: &[Profile], wanted: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    let plan = CounterPlan::of(profiles);
    let candidates = candidates(profiles, &plan);
    let mut counts = BTreeMap::new();
    for index in fit(&candidates, &plan.totals(), wanted) {
        *counts.entry(candidates[index].profile.clone()).or_insert(0) += 1;
    }
    counts
}

/// What an empty GPU has room for, and as much of the others as fits beside all of it, the largest profiles first.
#[must_use]
pub(super) fn filled(
    profiles: &[Profile],
    first: BTreeMap<String, u32>,
    others: &BTreeMap<String, u32>,
) -> BTreeMap<String, u32> {
    let mut counts = first;
    let size = |it: &Profile| it.placements.first().map_or(0, |it| it.size);
    let mut sorted: Vec<&Profile> = profiles.iter().filter(|it| others.contains_key(&it.name)).collect();
    sorted.sort_by_key(|it| (Reverse((size(it), it.slices)), &it.name));
    for profile in sorted {
        let most = others[&profile.name].min(u32::try_from(profile.placements.len()).unwrap_or(u32::MAX));
        for _ in 0..most {
            let mut more = counts.clone();
            *more.entry(profile.name.clone()).or_insert(0) += 1;
            if possible(profiles, &more) != more {
                break;
            }
            counts = more;
        }
    }
    counts
}

/// True for a profile without extensions: no media engines claimed, none given up, no graphics.
fn is_plain(name: &str) -> bool {
    !name.contains(['+', '-'])
}
