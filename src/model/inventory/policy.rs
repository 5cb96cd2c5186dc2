//! What decides, besides the hardware, on what a node offers.

use std::collections::BTreeSet;

use clap::ValueEnum;

use super::attributes::AttributeSet;
use super::device::{Adopted, DeviceKind};
use super::gpu::Gpu;

/// What decides, besides the hardware, on what a node offers.
#[derive(Debug, Clone, Default)]
pub struct OfferPolicy {
    /// Names of the devices that claims of this driver hold: they stay, whatever else changes (kubernetes#140802: an
    /// allocated device that vanishes from its slice looks free to the scheduler).
    pub held: BTreeSet<String>,
    /// The held devices that are unmanaged instances, with the UUID of their GPU.
    pub adopted: Vec<(String, Adopted)>,
    /// Devices in CDI files of claims without a record: what the driver created for them looks like an unmanaged instance.
    pub named: BTreeSet<String>,
    /// Unhealthy unmanaged instances: they are not published, except while a claim has them.
    pub unhealthy: BTreeSet<String>,
    /// Which attributes devices have.
    pub attributes: AttributeSet,
    /// How unmanaged instances are treated.
    pub existing: ExistingInstances,
    /// Devices that a GPU without MIG is shared by; fewer than two is none.
    pub time_slices: u32,
    /// What can be done with MIG on this host.
    pub mig_access: MigAccess,
    /// UUIDs of the GPUs on which NVML refuses to create or destroy an instance.
    pub refused: BTreeSet<String>,
}

/// What this host permits the driver to do with MIG.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MigAccess {
    /// Everything.
    #[default]
    Full,
    /// Existing instances can be allocated; the driver cannot create or destroy instances, nor switch MIG mode.
    ExistingOnly,
    /// No instance can be allocated.
    None,
}

impl OfferPolicy {
    /// What can be done with MIG on this GPU.
    #[must_use]
    pub fn mig_access_of(&self, gpu: &Gpu) -> MigAccess {
        match self.mig_access {
            MigAccess::Full if self.refused.contains(&gpu.facts.uuid) => MigAccess::ExistingOnly,
            of_host => of_host,
        }
    }

    pub(super) fn adopted_on<'a>(&'a self, gpu: &'a Gpu) -> impl Iterator<Item = &'a Adopted> {
        self.adopted.iter().filter(|(parent, _)| *parent == gpu.facts.uuid).map(|(_, it)| it)
    }
}

/// What becomes of instances that the driver did not make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ExistingInstances {
    /// They are left alone, and what they occupy is not offered.
    #[default]
    Withhold,
    /// Each is published as a device. Claims get it as it is; the driver neither creates nor destroys it.
    Adopt,
}

/// A GPU that switches MIG mode without a reset is available whole and in parts, any other one as its mode says.
pub(super) fn mode_allows(gpu: &Gpu, kind: &DeviceKind) -> bool {
    match (&gpu.facts.mig, gpu.state.mode) {
        (Some(mig), Some(mode)) => mig.resetless || mode.current == matches!(kind, DeviceKind::Mig(_)),
        _ => *kind == DeviceKind::Gpu,
    }
}

/// What the host permits; a whole GPU with MIG mode off needs no permission.
pub(super) fn access_allows(gpu: &Gpu, kind: &DeviceKind, access: MigAccess) -> bool {
    let is_on = gpu.state.mode.is_some_and(|it| it.current);
    match (access, kind) {
        (MigAccess::Full, _) | (_, DeviceKind::Share { .. }) => true,
        (MigAccess::ExistingOnly, DeviceKind::Adopted(_)) => true,
        (MigAccess::ExistingOnly, DeviceKind::Gpu) => !is_on,
        (MigAccess::None, DeviceKind::Gpu) => true,
        (_, DeviceKind::Mig(_) | DeviceKind::Adopted(_)) => false,
    }
}
