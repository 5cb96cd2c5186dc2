//! Why a pod or a claim does not get its devices, in terms of GPUs, and what to do about it.
//!
//! [`explain`] takes the objects of a cluster and decides as the scheduler would, with the allocator of `dra-allocator`. It is pure:
//! the command, the sandbox and tests call it alike. [`text`](text::text) renders the answer for people.
//!
//! ```text
//! reason, explanation          what there is to say
//! size, quota, events, profile    one kind of object each
//! subject                      what the pod and its claims say themselves
//! fleet                        every node, in parallel: does it fit, and what is in the way
//! detail                       a few nodes: holders, maps, whose end makes room
//! request, assemble            the reasons, and the verdict
//! args, run, text              the command
//! ```

pub mod args;
mod assemble;
mod detail;
mod events;
mod explanation;
mod fleet;
mod profile;
mod quota;
mod reason;
mod request;
mod run;
mod size;
mod subject;
pub mod text;

pub use self::assemble::explain;
pub use self::explanation::{
    DeviceCounts, Explanation, GpuMap, MapEntry, NodeCounts, PlacedDevice, Placement, RequestExplanation,
    SCHEMA_VERSION, Verdict,
};
pub use self::reason::{Holder, Reason, ReasonId};
pub use self::run::run;
pub use self::subject::Subject;

#[cfg(test)]
mod tests;
