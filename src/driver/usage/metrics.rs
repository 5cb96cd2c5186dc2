//! Metrics of claims.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::Seen;
use crate::checkpoint::ClaimState;
use crate::telemetry::metrics::{count, gauge, write};

/// Shows how many claims are in which state.
#[derive(Debug)]
pub struct ClaimMetrics(pub Arc<Seen>);

impl Collector for ClaimMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let claims = self.0.read(|claims, _| claims.clone());
        let by_state = ClaimState::ALL
            .iter()
            .map(|it| ([("state", it.as_str())], count(claims.get(it).copied().unwrap_or_default())));
        let help = "Claims on this node by where in their life they are.";
        write(&mut encoder, &gauge("claims", help), by_state)
    }
}
