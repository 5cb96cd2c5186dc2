//! Selects the profiles to publish. Leaving out profiles that no workload requests lets more GPUs share a ResourceSlice.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::{AllocatableDevice, Inventory};

/// Patterns for profile names, such as `1g.*,3g.40gb,full` or `!*+me*`. The default lets everything through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProfileFilter {
    allowed: Vec<String>,
    denied: Vec<String>,
}

/// A text that is not a list of patterns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a pattern for profiles; write names as NVML has them, with `*` for any text and `!` in front of what \
     is to be left out, separated by commas"
)]
pub struct InvalidPattern(String);

impl ProfileFilter {
    /// True where nothing is left out.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.allowed.is_empty() && self.denied.is_empty()
    }

    /// True for a profile that is wanted; the whole GPU is `full`.
    #[must_use]
    pub fn allows(&self, profile: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|it| matches(it, profile));
        (self.allowed.is_empty() || any(&self.allowed)) && !any(&self.denied)
    }

    /// The patterns that name none of these profiles: most likely a mistake.
    pub fn without_effect<'a>(&'a self, profiles: &'a BTreeSet<&str>) -> impl Iterator<Item = &'a str> {
        let patterns = self.allowed.iter().chain(&self.denied).map(String::as_str);
        patterns.filter(|pattern| !profiles.iter().any(|it| matches(pattern, it)))
    }
}

impl Inventory {
    /// The devices whose profiles are selected, and all allocated devices. GPUs without MIG have no profiles, and stay.
    #[must_use]
    pub fn with_profiles(&self, filter: &ProfileFilter, held: &BTreeSet<String>) -> Self {
        let mut reduced = self.clone();
        for gpu in &mut reduced.gpus {
            let can_be_cut = gpu.can_be_cut();
            let is_wanted = |device: &AllocatableDevice| {
                let profile = device.mig().map_or("full", |it| &it.profile);
                !can_be_cut || filter.allows(profile) || held.contains(device.name.as_str())
            };
            let (wanted, left_out) = std::mem::take(&mut gpu.devices).into_iter().partition(is_wanted);
            gpu.devices = wanted;
            gpu.withheld.extend::<Vec<_>>(left_out);
        }
        reduced
    }
}

impl FromStr for ProfileFilter {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut filter = Self::default();
        for part in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            let (list, pattern) = match part.strip_prefix('!') {
                Some(denied) => (&mut filter.denied, denied),
                None => (&mut filter.allowed, part),
            };
            let is_known = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '+' | '-' | '*');
            if pattern.is_empty() || !pattern.chars().all(is_known) {
                return Err(InvalidPattern(part.to_owned()));
            }
            list.push(pattern.to_owned());
        }
        Ok(filter)
    }
}

/// `*` stands for any text, an empty one, too.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            (0..=name.len()).any(|it| name.get(it..).is_some_and(|name| matches(rest, name)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(filter: &str) -> Vec<&'static str> {
        let filter: ProfileFilter = filter.parse().unwrap();
        let all = ["1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "1g.24gb-me", "1g.24gb+me.all", "full"];
        all.into_iter().filter(|it| filter.allows(it)).collect()
    }

    #[test]
    fn patterns_allow_and_deny() {
        assert_eq!(allowed("").len(), 7);
        assert_eq!(allowed("*").len(), 7);
        assert_eq!(allowed("1g.10gb, full"), ["1g.10gb", "full"]);
        assert_eq!(allowed("!*+me*,!1g.20gb"), ["1g.10gb", "2g.20gb", "1g.24gb-me", "full"]);
        assert_eq!(allowed("1g.*,!*20gb,!*me"), ["1g.10gb", "1g.24gb+me.all"]);
        assert_eq!(allowed("*.20*b"), ["1g.20gb", "2g.20gb"]);
    }

    #[test]
    fn what_is_not_a_pattern_is_refused() {
        for text in ["!", "1g.10gb;2g.20gb", "1g 10gb", "!!1g.10gb", "1g.10gb,[a-z]"] {
            assert!(text.parse::<ProfileFilter>().is_err(), "{text}");
        }
    }

    #[test]
    fn patterns_without_effect_are_found() {
        let filter: ProfileFilter = "1g.10gb,1g.10g,!4g.*".parse().unwrap();
        let profiles = BTreeSet::from(["1g.10gb", "2g.20gb"]);
        assert_eq!(filter.without_effect(&profiles).collect::<Vec<_>>(), ["1g.10g", "4g.*"]);
    }
}
