//! Why GPUs are not offered.

use std::fmt;

/// Why a GPU is not offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// UUID of the GPU; the NVML index of one that has not told its UUID, the PCI address of one that NVML does not show.
    pub gpu: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {}: {}", self.gpu, self.reason)
    }
}
