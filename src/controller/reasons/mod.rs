//! Why pods wait for devices, as events of these pods: what `kubectl mig explain` says.
//!
//! ```text
//! waiting   which pods wait for devices of our classes, and which of them are alike
//! note      an explanation as the note of an event
//! memory    which pod was given which event when, and what may be written and explained now
//! events    reads and writes events
//! reporter  one round of it
//! ```

mod events;
mod memory;
mod note;
mod reporter;
mod waiting;

pub use events::{EVICTION, Events, REASON, Regarding, Seen, Written};
pub use memory::{Limits, Memory, Remembered};
pub use note::Finding;
pub use reporter::{Reporter, Round};
pub use waiting::{Waiting, waiting};
