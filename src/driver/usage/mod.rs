//! What the instances of claims use, and where in their life claims are, for `/metrics`: looked at while somebody reads.

mod instances;
mod metrics;
mod sampler;

pub use instances::{DcgmInstances, Instances};
pub use metrics::ClaimMetrics;
pub use sampler::{ClaimState, Sampler, Seen, UsagePolicy};
