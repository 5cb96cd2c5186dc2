//! Reasons why GPUs are not published.

use std::fmt;

/// Why a GPU is not offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// UUID of the GPU; its NVML index if the UUID is unknown; its PCI address if NVML does not list the GPU.
    pub gpu: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {}: {}", self.gpu, self.reason)
    }
}
