//! Inventory to ResourceSlices.
//!
//! [`next`] decides what to publish, of what it sees ([`World`]) and remembers ([`Memory`]). [`render`] makes slices of an
//! inventory, [`diff`] the fewest writes that lead from the published slices to others. A slice is only ever written as a whole;
//! nothing is published that the API server would strip of its counters.

mod diff;
mod layout_mode;
mod leave_out;
mod memory;
mod next;
mod packing;
mod publication;
mod quantity;
mod render;
mod retained;
mod sharing;
mod taint;
mod transition;
mod triggers;
mod undescribed;
mod withdrawn;
mod world;

pub use diff::{Change, diff, is_same, lost_counters};
pub use memory::{Memory, Offered};
pub use next::{Plan, Question, next};
pub use publication::Publication;
pub use quantity::count;
pub(crate) use quantity::whole_number;
pub use render::{Owner, keep_order, pool_name, render, slice_name};
pub(crate) use render::{counter_set, device};
pub use taint::{TaintEffect, lost_taints, new_taint};
pub use transition::{Pool, names};
pub use world::{
    Claims, CounterSupport, GATE_RETRY, Gate, Gates, Inputs, Mode, NodeView, Published, RESYNC, Settings,
    World,
};

use retained::{Devices, RetainedDevices};
