//! The slices and classes of a cluster, and the limits of a search.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{DeviceClass, ResourceSlice};

use crate::cel_env::{Programs, Selectors};
use crate::features::Features;
use crate::pool::Index;

/// Devices that one allocation can have.
pub const MAX_DEVICES: usize = 32;

/// Candidates tried before an attempt is given up. Stands for the scheduler's 10 s per node, in which it tries about so many.
pub const MAX_STEPS: usize = 4_000_000;

/// The slices and classes of a cluster, indexed once for any number of questions.
#[derive(Debug)]
pub struct Cluster<'a> {
    pub(crate) features: Features,
    pub(crate) max_steps: usize,
    pub(crate) leaks: bool,
    pub(crate) classes: BTreeMap<&'a str, &'a DeviceClass>,
    pub(crate) pools: Index<'a>,
    pub(crate) selectors: Selectors,
}

impl<'a> Cluster<'a> {
    /// Indexes slices and classes.
    #[must_use]
    pub fn new(
        slices: impl IntoIterator<Item = &'a ResourceSlice>,
        classes: impl IntoIterator<Item = &'a DeviceClass>,
        features: Features,
    ) -> Self {
        let named = |class: &'a DeviceClass| Some((class.metadata.name.as_deref()?, class));
        Self {
            features,
            max_steps: MAX_STEPS,
            leaks: true,
            classes: classes.into_iter().filter_map(named).collect(),
            pools: Index::new(slices, features),
            selectors: Selectors::default(),
        }
    }

    /// The same with expressions that other clusters have compiled.
    #[must_use]
    pub fn with_programs(self, programs: &Programs) -> Self {
        Self { selectors: Selectors::with(programs.clone()), ..self }
    }

    /// The same with another limit than [`MAX_STEPS`].
    #[must_use]
    pub fn with_max_steps(self, max_steps: usize) -> Self {
        Self { max_steps, ..self }
    }

    /// The same as a scheduler in which a refused candidate gives its counters back: 1.37, and later releases of 1.36.
    #[must_use]
    pub fn with_leak_fixed(self) -> Self {
        Self { leaks: false, ..self }
    }
}
