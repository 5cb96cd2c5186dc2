//! Functions that a driver of today exports and whose answer, on these GPUs, is NOT_SUPPORTED or a constant.

use super::nvml;
use super::types::{Handle, Out};
use crate::code::Code;

nvml! {
    fn nvmlGpmQueryDeviceSupport(device: Handle, _support: Out<u32>) on device, |s| {
        device.physical(s.machine())?;
        Err(Code::NOT_SUPPORTED)
    }
}
