//! Inventory to ResourceSlices, and these to the API server.
//!
//! `render`, `diff`, `kept` and `transition` are pure, `publish` is the loop around them. A slice is only ever written as a whole;
//! nothing is published that the API server would strip of its counters.

mod by_allocation;
mod by_layout;
mod by_sharing;
mod diff;
mod kept;
mod metrics;
mod mode;
mod news;
mod pauses;
mod probe;
mod publication;
mod publish;
mod quantity;
mod render;
mod shelves;
mod taint;
mod transition;
mod waive;

pub use diff::{Change, diff, is_same, lost_counters};
pub use kept::{Devices, Kept};
pub use metrics::PublicationMetrics;
pub use mode::Mode;
pub use probe::{CounterSupport, counter_support};
pub use publication::Publication;
pub use publish::{Offer, Publisher, PublisherParts};
pub use render::{Owner, keep_order, pool_name, render};
pub use taint::TaintEffect;
pub use transition::{Held, Pool, Transition, names};
