//! Health of GPUs and instances, as data.

mod report;
mod xid;

pub use report::{Change, Condition, Report, UnhealthyInstance, UnhealthyReason, changes};
pub use xid::{Cause, IgnoredXids, InvalidXid, meaning};
