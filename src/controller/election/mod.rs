//! Which replica acts: leader election by a Lease, as client-go does it.
//!
//! ```text
//! candidate   what to do with the Lease that was read last: data to data
//! campaign    reads and writes the Lease
//! ```
//!
//! Clocks of machines are not compared. A candidate takes a Lease only after it has seen it unchanged for the whole duration of
//! the Lease by its own clock; the leader counts from before its last successful write, and stops acting after the shorter renew
//! deadline. So the leader has stopped before another one can begin, except for a write that is on its way for the 5 seconds
//! between the two.

mod campaign;
mod candidate;
#[cfg(test)]
mod tests;

pub use campaign::{Campaign, Leadership, Term};
pub use candidate::{Candidate, Step, Timings};
