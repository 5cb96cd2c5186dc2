//! Layouts: how the GPUs of a node are offered where the API server keeps no counters, as devices that do not overlap.
//!
//! ```text
//! label nvidia.com/mig.config, layout file -> choice \
//! label `auto`, demand          -> demand, arrange   -> apply -> what is published
//! ```
//!
//! A layout only decides which devices can be allocated; each instance is created when a claim is prepared.

mod apply;
mod arrange;
mod beside;
mod choice;
mod decision;
mod demand;
mod file;
mod fit;
mod gpu_plan;
mod holds;
mod mix;
mod wanted;

pub use apply::{Offer, apply};
pub use arrange::{Arrangement, Cause, Missing, arrange, describe_missing};
pub use beside::beside;
pub use choice::{GpuLayout, Layouts, Refusal, choose, default_layouts};
pub use decision::Decision;
pub use demand::{Demand, DemandMemory, Followed, Outcome, PATIENCE, PAUSE, follow, usable};
pub use file::{Devices, Entry, FileError, LayoutFile, MAX_FILE};
pub use fit::{Candidate, dropped, fit, fit_keeping};
pub use holds::{HeldBack, HoldMemory, HoldStep, LONGEST_HOLD, apply_held_back, with_holds};
pub(crate) use holds::{hidden, hold_back};
pub use mix::{all_of, balanced, candidates, possible};
pub use wanted::{LayoutInputs, Wanted};
