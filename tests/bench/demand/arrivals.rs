//! Seeded arrivals: who asks for what, when, and for how long.

use crate::chance::Chance;
use crate::model::Model;

/// Mean run time in seconds.
pub(crate) const RUN: f64 = 600.0;

/// Profiles with their parts.
type Parts = &'static [(&'static str, f64)];

const SMALL_HEAVY: Parts = &[
    ("1g.10gb", 70.0),
    ("2g.20gb", 15.0),
    ("3g.40gb", 8.0),
    ("4g.40gb", 5.0),
    ("7g.80gb", 1.5),
    ("full", 0.5),
];
const BALANCED: Parts = &[
    ("1g.10gb", 30.0),
    ("2g.20gb", 22.0),
    ("3g.40gb", 20.0),
    ("4g.40gb", 18.0),
    ("7g.80gb", 7.0),
    ("full", 3.0),
];
const LARGE_HEAVY: Parts = &[
    ("1g.10gb", 10.0),
    ("2g.20gb", 10.0),
    ("3g.40gb", 25.0),
    ("4g.40gb", 30.0),
    ("7g.80gb", 15.0),
    ("full", 10.0),
];
/// Half of a day, in mean run times.
const HALF_DAY: f64 = 10.0;

/// A pattern of arrivals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pattern {
    SmallHeavy,
    Balanced,
    /// The balanced mix, but many of one profile come at once.
    Bursts,
    /// Small requests by day and large ones by night.
    Day,
}

impl Pattern {
    pub(crate) const ALL: [Self; 4] = [Self::SmallHeavy, Self::Balanced, Self::Bursts, Self::Day];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SmallHeavy => "small-heavy",
            Self::Balanced => "balanced",
            Self::Bursts => "bursts",
            Self::Day => "a day with two shapes",
        }
    }

    fn parts(self, at: f64) -> Parts {
        match self {
            Self::SmallHeavy => SMALL_HEAVY,
            Self::Balanced | Self::Bursts => BALANCED,
            Self::Day if (at / (HALF_DAY * RUN)) % 2.0 < 1.0 => SMALL_HEAVY,
            Self::Day => LARGE_HEAVY,
        }
    }
}

/// One pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) at: f64,
    pub(crate) profile: usize,
    pub(crate) lasts: f64,
}

/// The profiles that are asked for, with their memory slices.
pub(crate) fn profiles(model: &Model) -> Vec<(&'static str, u32)> {
    let size = |name: &str| model.devices.iter().find(|it| it.profile == name).map(|it| it.size);
    BALANCED.iter().filter_map(|it| Some((it.0, size(it.0)?))).collect()
}

/// Arrivals that would keep `load` of the memory of the GPUs in use.
pub(crate) fn arrivals(
    pattern: Pattern,
    model: &Model,
    gpus: usize,
    load: f64,
    count: usize,
    seed: u64,
) -> Vec<Arrival> {
    let profiles = profiles(model);
    let size = |name: &str| profiles.iter().find(|it| it.0 == name).map_or(0.0, |it| f64::from(it.1));
    let all = profiles.iter().map(|it| it.1).max().map_or(1.0, f64::from);
    let (mut chance, mut at, mut list) = (Chance::new(seed), 0.0, Vec::new());
    while list.len() < count {
        let parts = pattern.parts(at);
        let total: f64 = parts.iter().map(|it| it.1).sum();
        let mean: f64 = parts.iter().map(|it| size(it.0) * it.1 / total).sum();
        #[expect(clippy::cast_precision_loss, reason = "there are few GPUs")]
        let memory = gpus as f64 * all;
        let rate = load * memory / mean / RUN;
        let name = chosen(parts, chance.fraction() * total);
        let profile = profiles.iter().position(|it| it.0 == name).unwrap_or(0);
        // A burst asks for half of the GPUs.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the numbers are small")]
        let burst = if pattern == Pattern::Bursts { (memory / 2.0 / size(name)).ceil() as usize } else { 1 };
        #[expect(clippy::cast_precision_loss, reason = "the numbers are small")]
        let weight = if pattern == Pattern::Bursts { burst as f64 * size(name) / mean } else { 1.0 };
        at += chance.exponential() * weight / rate;
        for _ in 0..burst {
            list.push(Arrival { at, profile, lasts: chance.exponential() * RUN });
        }
    }
    list.truncate(count);
    list
}

fn chosen(parts: Parts, mut left: f64) -> &'static str {
    for (name, part) in parts {
        left -= part;
        if left < 0.0 {
            return name;
        }
    }
    parts[0].0
}
