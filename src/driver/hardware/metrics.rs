//! Metrics of GPUs and placements.

use std::fmt;

use mig_model::inventory::DeviceName;
use mig_model::occupancy::{Occupancy, occupancy};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::watch;

use super::NodeState;
use crate::readiness::Effect;
use crate::telemetry::metrics::{count, flag, gauge, write, write_one};

/// Shows the GPUs, what they offer and what claims hold of them.
#[derive(Debug)]
pub struct HardwareMetrics(pub watch::Receiver<NodeState>);

impl Collector for HardwareMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // A clone, so that a writer does not wait for this.
        let node = self.0.borrow().clone();
        hardware(&mut encoder, &node)?;
        placements(&mut encoder, &node)
    }
}

fn hardware(encoder: &mut DescriptorEncoder<'_>, node: &NodeState) -> fmt::Result {
    let facts = node.hardware.as_ref().ok().map(|it| &it.facts);
    let help = "1 where NVML works.";
    write_one(encoder, &gauge("nvml_up", help), flag(facts.is_some()))?;
    let gpus = facts.map_or(0, |it| it.gpus.len());
    let skipped = facts.map_or(0, |it| it.skipped.len());
    let missing = node.access.missing.len();
    let states = [("known", gpus), ("skipped", skipped), ("missing", missing)];
    let states = states.map(|(state, number)| ([("state", state)], count(number)));
    let help = "GPUs of the node: those that NVML describes, those that it cannot describe, and those that the kernel lists and \
                NVML does not.";
    write(encoder, &gauge("gpus", help), states)?;
    let help = "GPUs of which nothing more is offered, or which are left out, as /readyz lists them.";
    write_one(encoder, &gauge("gpu_problems", help), count(node.problems.len()))?;
    let conditions = Effect::ALL.map(|effect| {
        let number = node.host.iter().filter(|it| it.effect == effect).count();
        ([("effect", effect.as_str())], count(number))
    });
    let help = "What on the host is not as it should be, by what follows from it, as /readyz lists it.";
    write(encoder, &gauge("host_conditions", help), conditions)?;
    let driver = facts.map(|it| {
        let unknown = || "unknown".to_owned();
        let version = it.driver_version.clone().unwrap_or_else(unknown);
        let cuda = it.cuda_version.map_or_else(unknown, |(major, minor)| format!("{major}.{minor}"));
        ([("driver_version", version), ("cuda_version", cuda)], 1.0)
    });
    write(encoder, &gauge("nvidia_driver_info", "The NVIDIA driver."), driver)?;
    let gpus = facts.iter().flat_map(|it| &it.gpus).map(|it| {
        let labels = [
            ("gpu", DeviceName::gpu(it.pci).to_string()),
            ("uuid", it.uuid.clone()),
            ("index", it.index.to_string()),
            ("product", it.product().to_owned()),
        ];
        (labels, 1.0)
    });
    write(encoder, &gauge("gpu_info", "A GPU, by the name that its devices begin with."), gpus)?;
    let live = node.hardware.iter().flat_map(|it| it.facts.gpus.iter().filter_map(|gpu| it.gpu(&gpu.uuid)));
    let pending =
        live.map(|it| ([("gpu", DeviceName::gpu(it.facts.pci).to_string())], count(it.queue.pending())));
    let help = "Pieces of work that wait for a GPU's thread or run on it.";
    write(encoder, &gauge("gpu_queue_length", help), pending)
}

fn placements(encoder: &mut DescriptorEncoder<'_>, node: &NodeState) -> fmt::Result {
    let hardware = node.hardware.as_ref().ok();
    let gpus: Vec<(&str, Occupancy)> = node
        .inventory
        .gpus
        .iter()
        .map(|gpu| {
            let uuid = gpu.devices.iter().chain(&gpu.withheld).next().map(|it| it.parent_uuid.as_str());
            let live = hardware.zip(uuid).and_then(|(hardware, uuid)| hardware.gpu(uuid));
            (gpu.counter_set.as_str(), occupancy(gpu, live.map(|it| &*it.facts), &node.held))
        })
        .collect();
    let by_profile = |counts: fn(&Occupancy) -> &std::collections::BTreeMap<String, usize>| {
        gpus.iter().flat_map(move |(gpu, it)| {
            counts(it).iter().map(move |(profile, number)| {
                ([("gpu", *gpu), ("profile", profile.as_str())], count(*number))
            })
        })
    };
    let help = "Devices that claims hold, by GPU and profile; a whole GPU has the profile `full`.";
    write(encoder, &gauge("instances_live", help), by_profile(|it| &it.live))?;
    let help = "Placements that could be made at this moment, by GPU and profile; one may exclude others.";
    write(encoder, &gauge("placements_free", help), by_profile(|it| &it.free))?;
    let each = |value: fn(&Occupancy) -> u32| {
        gpus.iter().map(move |(gpu, it)| ([("gpu", *gpu)], f64::from(value(it))))
    };
    write(encoder, &gauge("memory_slices", "Memory slices of a GPU with MIG."), each(|it| it.slices))?;
    let help = "Memory slices that a new claim could still get; none of an unhealthy GPU, nor those that no placement reaches.";
    write(encoder, &gauge("memory_slices_free", help), each(|it| it.free_slices))?;
    let largest = gpus.iter().map(|(gpu, it)| {
        let (profile, size) =
            it.largest.as_ref().map_or(("none", 0), |(profile, size)| (profile.as_str(), *size));
        ([("gpu", *gpu), ("profile", profile)], f64::from(size))
    });
    let help = "Memory slices of the largest MIG profile that could be made; far below those that are free means broken up.";
    write(encoder, &gauge("largest_free_profile_slices", help), largest)
}
