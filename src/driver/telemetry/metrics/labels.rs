//! Values of labels that are known beforehand. Each set is closed, which bounds the number of series.

use mig_telemetry::label_values;

label_values! {
    /// What the kubelet asks for.
    Method {
        /// NodePrepareResources, for one claim.
        Prepare = "prepare",
        /// NodeUnprepareResources, for one claim.
        Unprepare = "unprepare",
    }
}

label_values! {
    /// How something ended.
    Outcome {
        /// As it should.
        Success = "success",
        /// With an error.
        Failure = "failure",
        /// The caller stopped waiting.
        Abandoned = "abandoned",
    }
}

label_values! {
    /// Where the time of a call goes.
    Step {
        /// Reading the claim from the API server, tries again included.
        ApiGet = "api_get",
        /// Waiting for other calls for the claim, and for the right to make a record.
        LockWait = "lock_wait",
        /// Waiting for another claim that still holds the same part of a GPU.
        DeviceBusyWait = "device_busy_wait",
        /// Waiting for the GPU's thread.
        QueueWait = "queue_wait",
        /// Making a GPU instance.
        CreateGpuInstance = "gi_create",
        /// Making a compute instance.
        CreateComputeInstance = "ci_create",
        /// Destroying compute instance and GPU instance.
        Destroy = "destroy",
        /// Writing the CDI file.
        CdiWrite = "cdi_write",
        /// Writing the intent to the claim's journal and forcing it to the disk.
        RecordSync = "record_sync",
    }
}

label_values! {
    /// What was done for a claim, or for the node, without being asked for it.
    Recovery {
        /// What a failed prepare had made was taken back.
        Undo = "undo",
        /// A claim that was left half prepared or half unprepared was undone or finished.
        TakeDown = "take_down",
        /// A claim whose ResourceClaim is gone, or has other devices, was unprepared.
        Orphan = "orphan",
        /// A CDI file that had vanished was written again.
        RewriteCdi = "rewrite_cdi",
        /// A CDI file of no claim was removed.
        RemoveCdi = "remove_cdi",
        /// A state file that cannot be read was found.
        UnreadableState = "unreadable_state",
        /// NVML was opened again, because its driver was unloaded or replaced.
        ReopenNvml = "reopen_nvml",
    }
}

label_values! {
    /// Why events of GPUs were not received for a time.
    EventGap {
        /// NVML could not be waited for.
        Failed = "failed",
        /// The driver stopped listening to a GPU for some seconds, so that an instance could be destroyed.
        Paused = "paused",
    }
}

label_values! {
    /// What was done to a ResourceSlice.
    SliceWrite {
        /// A new one.
        Create = "create",
        /// An existing file was rewritten.
        Update = "update",
        /// Removed.
        Delete = "delete",
    }
}

label_values! {
    /// An event that a GPU reported.
    GpuEventKind {
        /// An error with a number.
        Xid = "xid",
        /// An ECC error that was corrected.
        SingleBitEcc = "single_bit_ecc",
        /// An ECC error that could not be corrected.
        DoubleBitEcc = "double_bit_ecc",
    }
}
