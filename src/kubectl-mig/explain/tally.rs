//! What became of a request, as numbers.

use std::collections::BTreeMap;

use dra_allocator::{Abort, Amount, Finding, RequestReport, SelectorError};

use super::explanation::DeviceCounts;

/// What became of a request on a node, or on several.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) class: String,
    pub(super) amount: Option<Amount>,
    pub(super) counts: DeviceCounts,
    /// Devices that the class selects.
    pub(super) of_class: usize,
    pub(super) fits_alone: bool,
    pub(super) abort: Option<Abort>,
    pub(super) error: Option<SelectorError>,
    /// Keys of taints, with value and effect.
    pub(super) taints: BTreeMap<String, usize>,
    pub(super) counters_disabled: usize,
    pub(super) binding: usize,
    pub(super) overdrawn: usize,
}

impl Tally {
    pub(super) fn of(report: &RequestReport) -> Self {
        let mut tally = Self {
            class: report.class.clone(),
            amount: report.amount,
            fits_alone: report.fits_alone,
            abort: report.abort.clone(),
            ..Self::default()
        };
        for device in &report.devices {
            let counts = &mut tally.counts;
            counts.total += 1;
            match &device.finding {
                Finding::ClassSelectorFalse { .. } => continue,
                Finding::RequestSelectorFalse { .. } => {
                    tally.of_class += 1;
                    continue;
                }
                Finding::OtherNode => continue,
                Finding::SelectorError { error } => {
                    tally.error.get_or_insert_with(|| (**error).clone());
                    continue;
                }
                Finding::Usable => counts.free += 1,
                Finding::Allocated { .. } => counts.allocated += 1,
                Finding::Counters { shortages } => {
                    counts.blocked += 1;
                    tally.overdrawn += usize::from(shortages.iter().any(|it| it.available.is_negative()));
                }
                Finding::Taint { key, value, effect } => {
                    counts.other += 1;
                    let value = value.as_ref().map_or(String::new(), |it| format!("={it}"));
                    *tally.taints.entry(format!("{key}{value}:{effect}")).or_default() += 1;
                }
                Finding::CountersDisabled => {
                    counts.other += 1;
                    tally.counters_disabled += 1;
                }
                Finding::BindingConditions => {
                    counts.other += 1;
                    tally.binding += 1;
                }
                Finding::AttributeMissing { .. } | Finding::Constraint { .. } => counts.other += 1,
            }
            tally.counts.selected += 1;
            tally.of_class += 1;
        }
        tally
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.class.clone_from(&other.class);
        self.amount = other.amount;
        let (sum, more) = (&mut self.counts, &other.counts);
        sum.total += more.total;
        sum.selected += more.selected;
        sum.free += more.free;
        sum.allocated += more.allocated;
        sum.blocked += more.blocked;
        sum.other += more.other;
        self.of_class += other.of_class;
        self.fits_alone |= other.fits_alone;
        self.abort = self.abort.take().or_else(|| other.abort.clone());
        self.error = self.error.take().or_else(|| other.error.clone());
        for (taint, count) in &other.taints {
            *self.taints.entry(taint.clone()).or_default() += count;
        }
        self.counters_disabled += other.counters_disabled;
        self.binding += other.binding;
        self.overdrawn += other.overdrawn;
    }
}
