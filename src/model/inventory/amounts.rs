//! Compares what devices consume with what counters have: whether it fits, what is left, and what is lacking.
//!
//! One function for each question. `slices::leave_out` and the crate `dra_allocator` compare something else: what is published, in
//! Quantities and by counter set, as kube-scheduler reads it. Pure. By name for a single question, and as plain numbers ([`Amounts`]) for searches, which compare
//! very often.

use std::collections::BTreeMap;

/// True where there is enough of everything that is consumed.
#[must_use]
pub fn fits_into(consumes: &BTreeMap<String, u32>, counters: &BTreeMap<String, u32>) -> bool {
    consumes.iter().all(|(counter, amount)| Some(amount) <= counters.get(counter))
}

/// Takes what is consumed from the counters. What an unmanaged instance also consumes is not counted twice, so nothing goes
/// below zero.
pub fn take(counters: &mut BTreeMap<String, u32>, consumes: &BTreeMap<String, u32>) {
    for (counter, amount) in consumes {
        if let Some(left) = counters.get_mut(counter) {
            *left = left.saturating_sub(*amount);
        }
    }
}

/// Names of the counters that have less than these devices consume together.
#[must_use]
pub fn lacking<'a>(counters: &'a BTreeMap<String, u32>, consumed: &[&BTreeMap<String, u32>]) -> Vec<&'a str> {
    let needed = |counter: &String| {
        let amounts = consumed.iter().filter_map(|it| it.get(counter));
        amounts.fold(0_u32, |sum, it| sum.saturating_add(*it))
    };
    counters.iter().filter(|(name, total)| **total < needed(name)).map(|(name, _)| name.as_str()).collect()
}

/// The counters that a search compares; each has a position.
#[derive(Debug)]
pub(crate) struct CounterNames<'a>(Vec<&'a str>);

/// An amount of each counter, by its position in [`CounterNames`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Amounts(Vec<u32>);

impl<'a> CounterNames<'a> {
    /// The counters with these names, each once.
    pub(crate) fn of(names: impl IntoIterator<Item = &'a String>) -> Self {
        let mut names: Vec<&str> = names.into_iter().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        Self(names)
    }

    /// The amounts of these counters; 0 where a counter has none.
    pub(crate) fn amounts(&self, of: &BTreeMap<String, u32>) -> Amounts {
        Amounts(self.0.iter().map(|it| of.get(*it).copied().unwrap_or(0)).collect())
    }

    /// 0 of each.
    pub(crate) fn nothing(&self) -> Amounts {
        Amounts(vec![0; self.0.len()])
    }
}

impl Amounts {
    /// True where this is enough for the cost.
    pub(crate) fn covers(&self, cost: &Self) -> bool {
        self.0.iter().zip(&cost.0).all(|(left, cost)| cost <= left)
    }

    /// What the cost leaves; like [`take`], nothing goes below zero.
    pub(crate) fn without(&self, cost: &Self) -> Self {
        Self(self.0.iter().zip(&cost.0).map(|(left, cost)| left.saturating_sub(*cost)).collect())
    }

    /// Of each counter the larger amount.
    pub(crate) fn max(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| *one.max(other)).collect())
    }

    /// The amount at a position.
    pub(crate) fn at(&self, position: usize) -> u32 {
        self.0[position]
    }

    /// The positions with more than nothing.
    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().filter(|(_, amount)| 0 < **amount).map(|(position, _)| position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(amounts: &[(&str, u32)]) -> BTreeMap<String, u32> {
        amounts.iter().map(|(name, amount)| ((*name).to_owned(), *amount)).collect()
    }

    #[test]
    fn a_device_fits_where_every_counter_that_it_needs_is_there_and_has_enough() {
        let counters = map(&[("memory-slice-0", 1), ("decoders", 2)]);
        assert!(fits_into(&map(&[]), &counters));
        assert!(fits_into(&map(&[("memory-slice-0", 1), ("decoders", 2)]), &counters));
        assert!(!fits_into(&map(&[("decoders", 3)]), &counters));
        assert!(!fits_into(&map(&[("memory-slice-1", 1)]), &counters), "there is no such counter");
    }

    #[test]
    fn what_is_taken_is_gone_and_never_more_than_there_is() {
        let mut counters = map(&[("decoders", 2), ("encoders", 1)]);
        take(&mut counters, &map(&[("decoders", 1), ("encoders", 3), ("jpegs", 1)]));
        assert_eq!(counters, map(&[("decoders", 1), ("encoders", 0)]));
    }

    #[test]
    fn devices_that_fit_alone_lack_what_they_need_together() {
        let counters = map(&[("decoders", 3), ("encoders", 2)]);
        let device = map(&[("decoders", 2), ("encoders", 1)]);
        assert_eq!(lacking(&counters, &[&device]), [""; 0]);
        assert_eq!(lacking(&counters, &[&device, &device]), ["decoders"]);
    }

    #[test]
    fn plain_numbers_answer_as_names_do() {
        let (counters, cost) = (map(&[("a", 2), ("b", 1), ("c", 0)]), map(&[("a", 1), ("b", 2)]));
        let names = CounterNames::of(counters.keys().chain(cost.keys()));
        let (left, taken) = (names.amounts(&counters), names.amounts(&cost));
        assert_eq!(left.covers(&taken), fits_into(&cost, &counters));
        assert!(left.covers(&names.nothing()) && left.covers(&left));
        let mut rest = counters.clone();
        take(&mut rest, &cost);
        assert_eq!(left.without(&taken), names.amounts(&rest));
        assert_eq!(left.max(&taken), names.amounts(&map(&[("a", 2), ("b", 2)])));
        assert_eq!(taken.positions().map(|it| (it, taken.at(it))).collect::<Vec<_>>(), [(0, 1), (1, 2)]);
    }
}
