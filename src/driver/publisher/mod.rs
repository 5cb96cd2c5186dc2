//! The loop that keeps the API server's ResourceSlices as `mig_model::slices::next` decides.
//!
//! `publish` reads what that asks for, writes what it answers and reports; `probe` asks what the API server does with counters and
//! taints, `pauses` says how long to wait for bursts, failures and other writers, `triggers` what the node's state wakes the loop
//! for, `resumption` keeps on disk what the process after this one may rely on.

mod metrics;
mod pauses;
mod probe;
mod publish;
mod resumption;
#[cfg(test)]
pub(crate) mod tests;
mod triggers;

pub use metrics::PublicationMetrics;
pub use probe::counter_support;
pub use publish::{Publisher, PublisherParts};
pub use resumption::Resumption;
