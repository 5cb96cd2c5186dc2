//! Why a call ended as it did, as one of a few words: the closed set behind the label `reason`. Pure.

use mig_telemetry::label_values;

use super::labels::Outcome;

label_values! {
    /// Why a call of the kubelet ended as it did.
    Reason {
        /// It succeeded.
        Ok = "ok",
        /// The kubelet has stopped waiting.
        Abandoned = "abandoned",
        /// What the kubelet sent does not name a claim.
        InvalidClaim = "invalid_claim",
        /// NVML, or the GPU of the claim, is not there.
        NoHardware = "no_hardware",
        /// The claim no longer exists.
        ClaimGone = "claim_gone",
        /// The API server refuses to show the claim.
        ApiRefused = "api_refused",
        /// The API server did not show the claim in time.
        ApiUnavailable = "api_unavailable",
        /// The allocation asks for what this driver does not serve.
        Allocation = "allocation",
        /// The device is not one of this node.
        UnknownDevice = "unknown_device",
        /// Another claim still holds the same part of the GPU.
        Held = "held",
        /// Another call for the claim did not end in time.
        Busy = "busy",
        /// State could not be written or read.
        State = "state",
        /// MIG mode could not be switched.
        MigMode = "mig_mode",
        /// The placement, or the whole GPU, has unmanaged instances.
        Occupied = "occupied",
        /// The instance is in use.
        InUse = "in_use",
        /// NVML failed otherwise.
        Nvml = "nvml",
        /// The GPU did not answer in time.
        GpuTimeout = "gpu_timeout",
        /// Files or device nodes of the NVIDIA driver are missing.
        DriverFiles = "driver_files",
        /// The CDI file could not be made, written or removed.
        Cdi = "cdi",
        /// The driver ends.
        Closing = "closing",
    }
}

impl Reason {
    /// How a call with this reason ended.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Ok => Outcome::Success,
            Self::Abandoned => Outcome::Abandoned,
            _ => Outcome::Failure,
        }
    }
}
