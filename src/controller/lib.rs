//! The controller of a cluster: it watches pods that wait for devices, reports why they wait, and decides what nodes should publish
//! for them.
//!
//! ```text
//! API server -> watches -> snapshot -> decide (pure) -> writes -> API server
//!                             ^                                      |
//!                             +---- wakes on every change -----------+
//! ```
//!
//! It keeps no state outside the API server. Of several replicas one acts: the holder of the Lease.

pub mod args;
pub mod demand;
