//! The last samples of the use of a GPU's instances.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use nvml_wrapper::gpm::GpmSample;

/// The last samples of a GPU's instances.
#[derive(Debug, Default)]
pub(super) struct Samples<'nvml> {
    /// By GPU instance id: whose the instance was, and the sample.
    pub(super) last: RefCell<BTreeMap<u32, (String, GpmSample<'nvml>)>>,
    /// Whether the GPU measures at all, once that was asked.
    pub(super) is_supported: Cell<Option<bool>>,
}

impl Samples<'_> {
    /// Gives back what is kept of an instance.
    pub(super) fn forget(&self, gpu_instance: u32) {
        self.last.borrow_mut().remove(&gpu_instance);
    }
}
