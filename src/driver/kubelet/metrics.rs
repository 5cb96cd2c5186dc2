//! Metrics of the registration with the kubelet.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::watch;

use super::RegistrationState;
use crate::telemetry::metrics::{flag, gauge, write_one};

/// Shows whether the kubelet has registered the driver.
#[derive(Debug)]
pub struct RegistrationMetrics(pub watch::Receiver<RegistrationState>);

impl Collector for RegistrationMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let is_registered = *self.0.borrow() == RegistrationState::Registered;
        let help = "1 where the kubelet has registered the driver.";
        write_one(&mut encoder, &gauge("kubelet_registered", help), flag(is_registered))
    }
}
