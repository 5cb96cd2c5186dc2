//! Inventory to ResourceSlices, and these to the API server.
//!
//! `next` decides what to publish, of what it sees (`world`) and remembers (`memory`); it and all that it uses are pure. `publish`
//! is the loop that reads, calls it and writes. A slice is only ever written as a whole; nothing is published that the API server
//! would strip of its counters.

mod by_sharing;
mod diff;
mod kept;
mod layout_mode;
mod memory;
mod metrics;
mod next;
mod publication;
mod quantity;
mod render;
mod shelves;
mod taint;
#[cfg(test)]
pub(crate) mod tests;
mod transition;
mod triggers;
mod undescribed;
mod waive;
mod world;

mod news;
mod pauses;
mod probe;
mod publish;

pub use diff::{Change, diff, is_same, lost_counters};
pub use memory::Memory;
pub use metrics::PublicationMetrics;
pub use next::{Plan, Question, next};
pub use probe::counter_support;
pub use publication::Publication;
pub use publish::{Publisher, PublisherParts};
pub use render::{Owner, keep_order, pool_name, render};
pub use taint::TaintEffect;
pub use transition::{Pool, names};
pub use world::{
    Claims, CounterSupport, GATE_RETRY, Gate, Gates, Inputs, Mode, NodeView, Published, RESYNC, Settings,
    World,
};

use kept::{Devices, Kept};
