//! Why a pod or a claim does not get its devices, in terms of GPUs, and what to do about it.
//!
//! [`explain`] takes the objects of a cluster and decides as the scheduler would, with the allocator of `dra-allocator`. It is pure:
//! the command, the sandbox and tests call it alike. [`text`](text::text) renders the answer for people.
//!
//! ```text
//! reason, explanation             what there is to say
//! size, quota, events, profile    one kind of object each
//! case, claims, extended, subject what the pod and its claims say themselves
//! fleet, tally                    every node, in parallel: does it fit, and what is in the way
//! detail, release                 a few nodes: holders, maps, whose end makes room
//! world, findings                 what the reasons are found in
//! abort, layout, request          the reasons of one request
//! nodes, pools, combined          the reasons of nodes, of pools, and of all requests together
//! assemble                        the verdict
//! args, run, text                 the command
//! ```

mod abort;
pub mod args;
mod assemble;
mod case;
mod claims;
mod combined;
mod detail;
mod events;
mod explanation;
mod extended;
mod findings;
mod fleet;
mod holds;
mod layout;
mod nodes;
mod pools;
mod profile;
mod quota;
mod reason;
mod release;
mod request;
mod run;
mod size;
mod subject;
mod tally;
pub mod text;
mod world;

pub use self::assemble::explain;
pub use self::events::reported_reasons;
pub use self::explanation::{
    DeviceCounts, Explanation, GpuMap, MapEntry, NodeCounts, PlacedDevice, Placement, RequestExplanation,
    SCHEMA_VERSION, Verdict,
};
pub(crate) use self::pools::sentence as pool_sentence;
pub use self::reason::{Holder, Reason, ReasonId};
pub use self::run::run;
pub use self::subject::{Subject, lacks_only_devices};

#[cfg(test)]
mod tests;
