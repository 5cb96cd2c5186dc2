//! The feature gates of a scheduler.

/// The feature gates of the scheduler that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// `DRAAdminAccess`.
    pub admin_access: bool,
    /// `DRADeviceTaints`.
    pub device_taints: bool,
    /// `DRAPartitionableDevices`.
    pub partitionable_devices: bool,
    /// `DRAPrioritizedList`.
    pub prioritized_list: bool,
}

impl Features {
    /// The defaults of 1.34 and 1.35.
    pub const DEFAULTS: Self = Self {
        admin_access: true,
        device_taints: false,
        partitionable_devices: false,
        prioritized_list: true,
    };
    /// All that this crate knows; the defaults of 1.36 have them all.
    pub const ALL: Self =
        Self { admin_access: true, device_taints: true, partitionable_devices: true, prioritized_list: true };
}
