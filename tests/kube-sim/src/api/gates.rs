//! Feature gates.

use super::version::Version;

/// Feature gates of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gates {
    /// The version of the server, which is no gate but changes what they let through.
    pub version: Version,
    /// `DRAPartitionableDevices`: off in 1.35, on from 1.36. Off, shared counters are silently dropped.
    pub partitionable_devices: bool,
    /// `DRADeviceTaints`: off in 1.35. Off, device taints are silently dropped.
    pub device_taints: bool,
    /// `DRAExtendedResource`: off in 1.35. Off, `extendedResourceName` of device classes is silently dropped, and the scheduler
    /// makes no claims for extended resources.
    pub extended_resource: bool,
    /// `DRAResourceClaimDeviceStatus` is off, which it is not by default: `status.devices` of claims is silently dropped.
    pub without_device_status: bool,
}
