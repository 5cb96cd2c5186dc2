//! Inventory to ResourceSlices.
//!
//! [`next`] decides what to publish, of what it sees ([`World`]) and remembers ([`Memory`]). [`render`] makes slices of an
//! inventory, [`diff`] the fewest writes that lead from the published slices to others. A slice is only ever written as a whole;
//! nothing is published that the API server would strip of its counters.
//!
//! Each file uses only those of lines below its own:
//!
//! ```text
//! next  triggers                            the step, without lists of claims where reads will do; what makes another one necessary
//! step                                      the step
//! layout_mode                               what layouts allow
//! memory                                    all that is remembered: the four below
//! sharing  transition  retained  undescribed
//! publication  taint                        how the slices stand; taints
//! found                                     what the last list of claims has found
//! world                                     what is seen, and what has to be read first
//! pool  render  diff  leave_out             slices
//! withdrawn  packing  quantity              what schedulers may still act on, which devices share a slice, amounts
//! ```

mod diff;
mod found;
mod layout_mode;
mod leave_out;
mod memory;
mod next;
mod packing;
mod pool;
mod publication;
mod quantity;
mod render;
mod retained;
mod sharing;
mod step;
mod taint;
mod transition;
mod triggers;
mod undescribed;
mod withdrawn;
mod world;

pub use diff::{Change, diff, is_same, lost_counters};
pub use memory::{Memory, Offered};
pub use next::next;
pub use pool::Pool;
pub use publication::Publication;
pub use quantity::count;
pub(crate) use quantity::{whole_mebibytes, whole_number};
pub use render::{MEMORY, Owner, keep_order, pool_name, render, slice_name};
pub(crate) use render::{attributes, capacities, counter_set, device};
pub use step::Plan;
pub use taint::{lost_taints, new_taint};
pub use world::{
    Claims, CounterSupport, GATE_RETRY, Gate, Gates, Inputs, Mode, NodeView, Published, Question, RESYNC,
    Settings, TaintEffect, World,
};

#[cfg(test)]
mod memory_counter_tests;
