//! How the GPUs are, as numbers.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

use crate::hardware::NodeState;
use crate::health::Condition;

label_values! {
    /// What a GPU has told of.
    GpuEventKind {
        /// An error with a number.
        Xid = "xid",
        /// An ECC error that was corrected.
        SingleBitEcc = "single_bit_ecc",
        /// An ECC error that could not be corrected.
        DoubleBitEcc = "double_bit_ecc",
    }
}

label_values! {
    /// How a GPU is.
    GpuCondition {
        /// Nothing is wrong.
        Healthy = "healthy",
        /// What happens to it would not be noticed.
        Unmonitored = "unmonitored",
        /// It has had an error that no application causes.
        Sick = "sick",
        /// It does not answer.
        Lost = "lost",
    }
}

/// Shows how each GPU is: one series for each condition, 1 for the one that it is in.
#[derive(Debug)]
pub struct GpuHealth(pub watch::Receiver<NodeState>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HealthLabels {
    uuid: String,
    condition: GpuCondition,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GpuLabels {
    uuid: String,
}

fn of(condition: &Condition) -> GpuCondition {
    match condition {
        Condition::Healthy => GpuCondition::Healthy,
        Condition::Unmonitored { .. } => GpuCondition::Unmonitored,
        Condition::Sick(_) => GpuCondition::Sick,
        Condition::Lost { .. } => GpuCondition::Lost,
    }
}

impl Collector for GpuHealth {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let health = self.0.borrow().health.clone();
        let name = "gpu_health";
        let help = "How a GPU is: 1 for its condition, 0 for the others";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (gpu, now) in &health.gpus {
            for &condition in GpuCondition::ALL {
                let labels = HealthLabels { uuid: gpu.clone(), condition };
                let gauge = ConstGauge::new(i64::from(of(now) == condition));
                gauge.encode(family.encode_family(&labels)?)?;
            }
        }
        let help =
            "MIG instances that have had an error which no application causes, and are not made anew yet";
        let mut family = encoder.encode_descriptor("sick_instances", help, None, MetricType::Gauge)?;
        for gpu in health.gpus.keys() {
            let count = health.instances.iter().filter(|it| it.parent == *gpu).count();
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&GpuLabels { uuid: gpu.clone() })?)?;
        }
        Ok(())
    }
}
