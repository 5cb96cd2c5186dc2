//! What is published, as far as schedulers can act on it. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::ResourceSlice;

use super::render::names as names_in;

/// What the API server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Names of the devices.
    pub devices: BTreeSet<String>,
    /// Whether counters keep them apart.
    pub is_counted: bool,
    /// Whether schedulers give anything away from it; not where slices are missing.
    pub is_open: bool,
}

impl Pool {
    /// The pool that these slices are; `None` where there are none.
    #[must_use]
    pub fn of(slices: &[ResourceSlice]) -> Option<Self> {
        let first = slices.first()?;
        let devices = || slices.iter().flat_map(|it| it.spec.devices.iter().flatten());
        let count = i64::try_from(slices.len()).unwrap_or(i64::MAX);
        let is_whole = |it: &ResourceSlice| {
            it.spec.pool == first.spec.pool && it.spec.pool.resource_slice_count == count
        };
        Some(Self {
            devices: slices.iter().flat_map(names_in).map(str::to_owned).collect(),
            is_counted: devices().any(|it| it.consumes_counters.is_some()),
            is_open: slices.iter().all(is_whole),
        })
    }

    /// The same without some of its devices.
    pub(super) fn without(mut self, is_left_out: impl Fn(&str) -> bool) -> Self {
        self.devices.retain(|it| !is_left_out(it));
        self
    }
}
