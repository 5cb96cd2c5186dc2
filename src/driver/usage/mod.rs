//! Usage of the instances of claims, and the stages of claims, for `/metrics`: sampled while `/metrics` is scraped.

mod instances;
mod metrics;
mod sampler;

pub use instances::{DcgmInstances, Instances};
pub use metrics::ClaimMetrics;
pub use sampler::{Sampler, Seen, UsagePolicy};
