//! Health of GPUs and instances, and its consequences.
//!
//! ```text
//! NVML events -> owner (instance, claim) \
//! scans of the hardware                   > state -> report -> inventory, taints, the kubelet's health stream, events
//! the clock                              /
//! ```
//!
//! `mig_model::health` classifies NVIDIA's XIDs and has the report, `owner` finds the claim of an event, `state` is the state
//! machine: all pure. `store` holds the only state of the process and its file, `follow` receives events and reports changes.
//! This module never changes a GPU or a claim: an allocated device is never withdrawn, even if its GPU is unhealthy.
//!
//! | condition | of | when | until |
//! |---|---|---|---|
//! | `Lost` | GPU | a scan is answered with GPU_IS_LOST or RESET_REQUIRED | it answers again; it was reset, which clears its other errors, too |
//! | `Unhealthy` | GPU | NVML recommends a recovery action (`NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`, driver 565 or later) | NVML recommends none |
//! | `Unhealthy` | GPU of which NVML recommends nothing at all (an older driver) | an XID that is not an application's, or an uncorrectable ECC error, that NVML attributes to no instance, or whose number says that it is the whole GPU's | reboot, driver reload, the return of a lost GPU, or an operator who removes the file `health.json` |
//! | unhealthy instance | instance of a claim, or an adopted instance | the same, attributed to it | the instance is gone or was recreated, and all that ends it for a GPU |
//! | `Unmonitored` | GPU | for [`GRACE`] its events could not be monitored, or it could not be read | both work again |
//!
//! The worst condition counts, in this order. No condition ends by the passing of time, and none begins twice: an
//! unhealthy GPU keeps its first reason, however many errors follow, so its condition does not flap. The unhealthy state
//! of GPUs and instances survives a restart of the process, so that a new process does not publish broken devices.

mod follow;
mod metrics;
mod owner;
mod state;
mod store;
mod watchdog;

pub use follow::Follower;
pub use metrics::{GpuCondition, HealthMetrics};
pub use owner::{Holder, Instance, Owner, owner};
pub use state::{GRACE, Machine, Scan, Verdict};
pub use store::{HealthStore, Remembered};
pub use watchdog::{HungCalls, Watchdog};
