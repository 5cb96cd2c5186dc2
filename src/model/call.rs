//! NVML's return codes as this driver sees them.
//!
//! nvml-wrapper 0.13 does not know the codes from 23 on, INSUFFICIENT_RESOURCES among them, so errors are kept as the
//! number NVML returned together with the name of the call.

use std::fmt;

/// How to reset a GPU, or reload the NVIDIA driver, on a node where this driver runs: every text that asks for one says it. This
/// driver's own NVML session holds the GPUs, and pods with claims cannot end without this driver.
pub const RESET_ADVICE: &str = "reboot the node, or reset the GPU: end the pods that use it, stop this driver's pod on the node, whose NVML \
                                session holds the GPUs (kubectl label node NODE mig.dra-driver.dev/deploy=false --overwrite), \
                                run `nvidia-smi --gpu-reset -i GPU`, and remove the label";

/// The oldest NVIDIA driver, by the first part of its version, whose NVML has all that this driver cannot do without on a GPU with
/// MIG: the newest of those functions is `nvmlDeviceGetGpuInstancePossiblePlacements_v2` (nvml.h of CUDA 11.4, NVML's reference for
/// driver 470).
pub const OLDEST_DRIVER: u32 = 470;

/// A number that NVML returned, `nvmlReturn_t` of nvml.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

impl Code {
    /// The call did what it was asked for.
    pub const SUCCESS: Self = Self(0);
    /// An argument is out of range; ends the enumeration of profiles.
    pub const INVALID_ARGUMENT: Self = Self(2);
    /// This GPU, or this GPU in its present mode, cannot do that.
    pub const NOT_SUPPORTED: Self = Self(3);
    /// Only root may do that.
    pub const NO_PERMISSION: Self = Self(4);
    /// No such object.
    pub const NOT_FOUND: Self = Self(6);
    /// Nothing happened in the time that was given.
    pub const TIMEOUT: Self = Self(10);
    /// The driver is too old to have the function.
    pub const FUNCTION_NOT_FOUND: Self = Self(13);
    /// The GPU fell off the bus.
    pub const GPU_IS_LOST: Self = Self(15);
    /// The GPU must be reset before it can be used.
    pub const RESET_REQUIRED: Self = Self(16);
    /// The object is in use.
    pub const IN_USE: Self = Self(19);
    /// The placement, or an engine that the profile needs, is taken.
    pub const INSUFFICIENT_RESOURCES: Self = Self(23);
    /// A struct of a version that this driver does not know.
    pub const ARGUMENT_VERSION_MISMATCH: Self = Self(25);
    /// Anything else.
    pub const UNKNOWN: Self = Self(999);

    /// A short name for the code, as in nvml.h without the `NVML_ERROR_` prefix.
    fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "SUCCESS",
            1 => "UNINITIALIZED",
            2 => "INVALID_ARGUMENT",
            3 => "NOT_SUPPORTED",
            4 => "NO_PERMISSION",
            6 => "NOT_FOUND",
            7 => "INSUFFICIENT_SIZE",
            9 => "DRIVER_NOT_LOADED",
            10 => "TIMEOUT",
            12 => "LIBRARY_NOT_FOUND",
            13 => "FUNCTION_NOT_FOUND",
            15 => "GPU_IS_LOST",
            16 => "RESET_REQUIRED",
            17 => "OPERATING_SYSTEM",
            18 => "LIB_RM_VERSION_MISMATCH",
            19 => "IN_USE",
            20 => "MEMORY",
            23 => "INSUFFICIENT_RESOURCES",
            25 => "ARGUMENT_VERSION_MISMATCH",
            27 => "NOT_READY",
            28 => "GPU_NOT_FOUND",
            29 => "INVALID_STATE",
            999 => "UNKNOWN",
            _ => return None,
        })
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error {}", self.0),
        }
    }
}

/// An NVML call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed with {code}{}", Lacking(self))]
pub struct CallError {
    /// The C function.
    pub call: &'static str,
    /// What it returned.
    pub code: Code,
}

/// Which driver has a function that the installed one does not have.
struct Lacking<'a>(&'a CallError);

impl fmt::Display for Lacking<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(error) = self;
        if error.code != Code::FUNCTION_NOT_FOUND {
            return Ok(());
        }
        let version = first_driver(error.call);
        write!(
            f,
            ": the NVIDIA driver of this node does not have this function; driver {version} and later have it"
        )
    }
}

/// The first driver whose NVML has a function; for all that are older than [`OLDEST_DRIVER`] that one. From the histories of nvml.h in
/// go-nvml: CUDA 11.6 came with driver 510, 11.8 with 520, 12.0 with 525.
fn first_driver(call: &str) -> u32 {
    match call {
        "nvmlDeviceGetGpuInstanceProfileInfoV"
        | "nvmlDeviceGetMemoryInfo_v2"
        | "nvmlDeviceGetComputeRunningProcesses_v3" => 510,
        "nvmlGpmQueryDeviceSupport" | "nvmlGpmMetricsGet" => 520,
        "nvmlGpmMigSampleGet" => 525,
        _ => OLDEST_DRIVER,
    }
}

impl CallError {
    /// What an operator can do about it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self.code {
            Code::NO_PERMISSION => "the driver has to run as root with CAP_SYS_ADMIN",
            Code::GPU_IS_LOST | Code::RESET_REQUIRED => RESET_ADVICE,
            Code::FUNCTION_NOT_FOUND => "install a newer NVIDIA driver on the node",
            Code::IN_USE => "stop what uses the GPU; `nvidia-smi` lists processes",
            _ => "see `nvidia-smi` and the kernel log of the node",
        }
    }

    /// True where the driver was unloaded or replaced since the library was opened; opening it again may help.
    #[must_use]
    pub fn means_another_driver(&self) -> bool {
        const UNINITIALIZED: Code = Code(1);
        const DRIVER_NOT_LOADED: Code = Code(9);
        const LIB_RM_VERSION_MISMATCH: Code = Code(18);
        [UNINITIALIZED, DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH].contains(&self.code)
    }

    /// True where the error says something about the GPU or the NVIDIA driver as a whole, whatever was asked for.
    #[must_use]
    pub fn concerns_whole_gpu(&self) -> bool {
        [Code::GPU_IS_LOST, Code::RESET_REQUIRED].contains(&self.code) || self.means_another_driver()
    }

    /// True where the same question has the same answer for as long as this process runs: the GPU, the NVIDIA driver or the
    /// rights of the process do not allow it.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        [
            Code::INVALID_ARGUMENT,
            Code::NOT_SUPPORTED,
            Code::NO_PERMISSION,
            Code::FUNCTION_NOT_FOUND,
            Code::ARGUMENT_VERSION_MISMATCH,
        ]
        .contains(&self.code)
    }

    /// True where waiting may help: the object is in use, or the driver was busy.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        const NOT_READY: Code = Code(27);
        [Code::IN_USE, Code::TIMEOUT, NOT_READY].contains(&self.code)
    }
}

/// Of calls that failed before, those that fail now. What a call reported before is known.
#[must_use]
pub fn still_unknown(before: &[CallError], now: &[CallError]) -> Vec<CallError> {
    now.iter().filter(|it| before.iter().any(|before| before.call == it.call)).cloned().collect()
}
