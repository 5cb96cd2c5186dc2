//! Names of DRA drivers.

/// Name of this project's driver, unless an administrator chooses another one.
pub const DEFAULT: &str = "mig.dra-driver.dev";

/// Name of NVIDIA's driver, under which this project's can run as well.
pub const NVIDIA: &str = "gpu.nvidia.com";

/// Names that are of drivers for GPUs, also where such a driver publishes no device.
pub const KNOWN: [&str; 2] = [DEFAULT, NVIDIA];
