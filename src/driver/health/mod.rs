//! What GPUs and instances suffer from, and what follows from it.
//!
//! ```text
//! NVML events -> owner (instance, claim) \
//! scans of the hardware                   > state -> report -> inventory, taints, the kubelet's health stream, events
//! the clock                              /
//! ```
//!
//! `xid` is what NVIDIA's numbers mean, `owner` says whose instance an event is about, `state` is the state machine, `report`
//! what comes out of it: all pure. `keep` holds the one state of the process and its file, `follow` listens and tells.
//! Nothing here touches a GPU or a claim: an allocated device is never withdrawn, however sick its GPU is.
//!
//! | condition | of | when | until |
//! |---|---|---|---|
//! | `Lost` | GPU | a scan is answered with GPU_IS_LOST or RESET_REQUIRED | it answers again; it was reset then, so what it suffered from is over, too |
//! | `Sick` | GPU | NVML recommends a recovery action (`NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`, driver 565 or later) | NVML recommends none |
//! | `Sick` | GPU of which NVML recommends nothing at all (an older driver) | an XID that is not an application's, or an uncorrectable ECC error, that NVML attributes to no instance, or whose number says that it is the whole GPU's | reboot, driver reload, the return of a lost GPU, or an operator who removes the file `health.json` |
//! | sick instance | instance of a claim, or one that somebody else made and that is a device | the same, attributed to it | the instance is gone or made anew, and all that ends it for a GPU |
//! | `Unmonitored` | GPU | for [`GRACE`] its events could not be heard, or it could not be read | both are as they should be |
//!
//! The worst counts, in this order. Nothing ends by the mere passing of time, and nothing begins twice: a sick GPU stays
//! what it is, for its first reason, however many errors follow, so nothing flaps. What makes a GPU or an instance sick
//! outlives the process: a driver that starts anew would otherwise offer what is broken.

mod follow;
mod keep;
mod metrics;
mod owner;
mod state;
mod watchdog;

pub use follow::Follower;
pub use keep::{Keeper, Remembered};
pub use metrics::{GpuCondition, HealthMetrics};
pub use owner::{Holder, Instance, Owner, owner};
pub use state::{GRACE, Machine, Scan, Verdict};
pub use watchdog::{Silent, Watchdog};
