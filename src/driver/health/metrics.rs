//! Metrics of the health of GPUs.

use mig_model::health::Condition;
use mig_model::inventory::DeviceName;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::sync::watch;

use crate::hardware::NodeState;
use crate::nvml::CallTimer;
use crate::telemetry::metrics::{Gauge, label_values, write};

label_values! {
    /// How a GPU is.
    GpuCondition {
        /// Nothing is wrong.
        Healthy = "healthy",
        /// What happens to it would not be noticed.
        Unmonitored = "unmonitored",
        /// It has had an error that no application causes.
        Unhealthy = "unhealthy",
        /// It does not answer.
        Lost = "lost",
    }
}

/// Shows how each GPU is, one series for each condition, 1 for the one that it is in; and whether calls into NVML hang.
#[derive(Debug)]
pub struct HealthMetrics {
    /// The GPUs.
    pub node: watch::Receiver<NodeState>,
    /// Opening NVML and looking for GPUs.
    pub opening: CallTimer,
}

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
        Condition::Unhealthy(_) => GpuCondition::Unhealthy,
        Condition::Lost { .. } => GpuCondition::Lost,
    }
}

impl HealthMetrics {
    /// Seconds that each thread's present call into NVML has been running; the watchdog reports the long ones.
    fn running(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let hardware = self.node.borrow().hardware.clone().ok();
        let gpus = hardware.iter().flat_map(|it| it.facts.gpus.iter().filter_map(|gpu| it.gpu(&gpu.uuid)));
        let gpus = gpus.map(|it| (DeviceName::gpu(it.facts.pci).to_string(), it.queue.busy_for()));
        let others = [
            ("open".to_owned(), self.opening.busy_for()),
            ("events".to_owned(), hardware.as_ref().and_then(|it| it.listening_for())),
        ];
        let help = "How long a thread's present call into NVML has been running, 0 where it is in none: `open` looks for GPUs, \
                    `events` listens to them, the others work on one each";
        let gauge = Gauge { name: "nvml_call_running", help, unit: Some(Unit::Seconds) };
        let threads = gpus.chain(others);
        write(
            encoder,
            &gauge,
            threads.map(|(it, time)| ([("thread", it)], time.unwrap_or_default().as_secs_f64())),
        )
    }
}

impl Collector for HealthMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.running(&mut encoder)?;
        let health = self.node.borrow().health.clone();
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
        let help = "MIG instances that have had an error which no application causes, and have not been recreated yet";
        let mut family = encoder.encode_descriptor("unhealthy_instances", help, None, MetricType::Gauge)?;
        for gpu in health.gpus.keys() {
            let count = health.instances.iter().filter(|it| it.parent == *gpu).count();
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&GpuLabels { uuid: gpu.clone() })?)?;
        }
        Ok(())
    }
}
