//! Metrics of each instance, under the driver's names and under those of NVIDIA's DCGM exporter.

use std::fmt;
use std::sync::Arc;

use mig_model::facts::Engine;
use mig_model::inventory::DeviceName;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::registry::Unit;

use super::sampler::{InstanceUse, Seen};
use crate::telemetry::metrics::{Gauge, gauge, write};

/// A byte count in the units of DCGM.
const MIB: u64 = 1 << 20;

/// Numbers under our names.
#[derive(Debug)]
pub struct Instances {
    /// What was seen.
    pub seen: Arc<Seen>,
    /// Whether series have the labels namespace, pod and claim.
    pub with_pods: bool,
}

/// The same under the names that dashboards for NVIDIA's DCGM exporter ask for.
#[derive(Debug)]
pub struct DcgmInstances {
    /// What was seen.
    pub seen: Arc<Seen>,
    /// Name of the node.
    pub node: String,
    /// Whether series have the labels namespace and pod.
    pub with_pods: bool,
}

/// Labels, written as they are.
struct Labels<'a>(Vec<(&'static str, &'a str)>);

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|it| it.encode(encoder.encode_label()))
    }
}

/// An instance and its labels that are not text yet.
struct Named<'a> {
    instance: &'a InstanceUse,
    gpu: String,
    gpu_instance: String,
    index: String,
    device: String,
}

impl<'a> Named<'a> {
    fn of(instance: &'a InstanceUse) -> Self {
        let facts = &instance.gpu;
        Self {
            instance,
            gpu: DeviceName::gpu(facts.pci).to_string(),
            gpu_instance: instance.gpu_instance.to_string(),
            index: facts.index.to_string(),
            device: format!("nvidia{}", facts.index),
        }
    }

    fn labels(&self, with_pods: bool, engine: Option<&'static str>) -> Labels<'_> {
        let Self { instance, gpu, gpu_instance, .. } = self;
        let mut labels: Vec<(&'static str, &str)> =
            vec![("gpu", gpu), ("gi", gpu_instance), ("profile", &instance.profile)];
        if with_pods {
            let claim = &instance.claim;
            labels.extend([
                ("namespace", claim.namespace.as_str()),
                ("pod", &instance.pods),
                ("claim", &claim.name),
            ]);
        }
        labels.extend(engine.map(|it| ("engine", it)));
        Labels(labels)
    }

    /// As the DCGM exporter labels MIG instances.
    fn dcgm_labels<'l>(&'l self, node: &'l str, with_pods: bool) -> Labels<'l> {
        let facts = &self.instance.gpu;
        let mut labels: Vec<(&'static str, &str)> = vec![
            ("gpu", &self.index),
            ("UUID", &facts.uuid),
            ("device", &self.device),
            ("modelName", facts.product()),
            ("GPU_I_PROFILE", &self.instance.profile),
            ("GPU_I_ID", &self.gpu_instance),
            ("Hostname", node),
        ];
        if with_pods {
            labels.extend([
                ("namespace", self.instance.claim.namespace.as_str()),
                ("pod", &self.instance.pods),
            ]);
        }
        Labels(labels)
    }
}

impl Collector for Instances {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.seen.read(|_, instances| {
            let named: Vec<Named<'_>> = instances.iter().map(Named::of).collect();
            let bytes = |name, help| Gauge { name, help, unit: Some(Unit::Bytes) };
            let memory = |value: fn(&InstanceUse) -> u64| {
                named.iter().map(move |it| (it.labels(self.with_pods, None), number(value(it.instance))))
            };
            let used = bytes("instance_memory_used", "Memory that processes have taken of a MIG instance.");
            write(&mut encoder, &used, memory(|it| it.memory.used))?;
            let total = bytes("instance_memory_total", "Memory of a MIG instance.");
            write(&mut encoder, &total, memory(|it| it.memory.total))?;
            let help = "How busy a part of a MIG instance was between the last two looks at it, from 0 to 1.";
            let busy = named.iter().flat_map(|it| {
                let labels = |engine: Engine| it.labels(self.with_pods, Some(engine.name()));
                it.instance.engines.iter().map(move |(engine, share)| (labels(*engine), *share))
            });
            write(&mut encoder, &gauge("instance_utilization_ratio", help), busy)
        })
    }
}

impl Collector for DcgmInstances {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.seen.read(|_, instances| {
            let named: Vec<Named<'_>> = instances.iter().map(Named::of).collect();
            let memory = |value: fn(&InstanceUse) -> u64| {
                named.iter().map(move |it| {
                    (it.dcgm_labels(&self.node, self.with_pods), number(value(it.instance) / MIB))
                })
            };
            let used = gauge("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).");
            write(&mut encoder, &used, memory(|it| it.memory.used))?;
            let free = gauge("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).");
            write(&mut encoder, &free, memory(|it| it.memory.free))?;
            for (engine, name) in [
                (Engine::Graphics, "DCGM_FI_PROF_GR_ENGINE_ACTIVE"),
                (Engine::Multiprocessors, "DCGM_FI_PROF_SM_ACTIVE"),
                (Engine::Warps, "DCGM_FI_PROF_SM_OCCUPANCY"),
                (Engine::Tensor, "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"),
                (Engine::MemoryBandwidth, "DCGM_FI_PROF_DRAM_ACTIVE"),
            ] {
                let busy = named.iter().filter_map(|it| {
                    let (_, share) = it.instance.engines.iter().find(|(of, _)| *of == engine)?;
                    Some((it.dcgm_labels(&self.node, self.with_pods), *share))
                });
                write(&mut encoder, &gauge(name, "Ratio of time or capacity in use."), busy)?;
            }
            Ok(())
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "no GPU has 2^52 bytes")]
fn number(bytes: u64) -> f64 {
    bytes as f64
}
