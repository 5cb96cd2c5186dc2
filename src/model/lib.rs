//! MIG devices of a GPU, and how they are published to Kubernetes: functions from data to data, without a
//! runtime, a client or NVML.
//!
//! ```text
//! facts (what NVML reports) -> inventory (devices, counters, names) -> placement (which device first) \
//!                                                                  layout (which devices, without counters) -> slices
//! ```
//!
//! [`mig_node`] is the object that shows a node to a controller. [`claim`] names claims, [`drivers`] drivers, [`health`] is the health of GPUs, [`call`] an NVML call that failed.

pub mod call;
pub mod claim;
pub mod drivers;
pub mod facts;
pub mod hash;
pub mod health;
pub mod inventory;
pub mod layout;
pub mod mig_node;
pub mod occupancy;
pub mod placement;
#[cfg(test)]
mod simulated;
pub mod slices;
