//! The numbers of what is: GPUs, placements, claims, what is published.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::watch;

use super::gauges::{count, flag, gauge, write, write_one};
use super::occupancy::{Occupancy, occupancy};
use super::sampler::{ClaimState, Seen};
use crate::hardware::NodeState;
use crate::inventory::{DeviceName, Withheld};
use crate::kubelet::RegistrationState;
use crate::readiness::Effect;
use crate::slices::Publication;

/// Where it comes from.
#[derive(Debug)]
pub struct StateParts {
    /// GPUs, what they offer, what claims hold.
    pub node: watch::Receiver<NodeState>,
    /// What the API server has.
    pub publication: watch::Receiver<Publication>,
    /// Whether the kubelet took us.
    pub registration: watch::Receiver<RegistrationState>,
    /// Claims.
    pub seen: Arc<Seen>,
}

impl Collector for StateParts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Taken out, so that nobody who tells something new waits for this.
        let node = self.node.borrow().clone();
        let publication = self.publication.borrow().clone();
        let is_registered = *self.registration.borrow() == RegistrationState::Registered;
        hardware(&mut encoder, &node)?;
        placements(&mut encoder, &node)?;
        withheld(&mut encoder, &node, &publication)?;
        published(&mut encoder, &publication)?;
        let help = "1 where the kubelet has registered the driver.";
        write_one(&mut encoder, &gauge("kubelet_registered", help), flag(is_registered))?;
        let claims = self.seen.read(|claims, _| claims.clone());
        let by_state = ClaimState::ALL
            .iter()
            .map(|it| ([("state", it.as_str())], count(claims.get(it).copied().unwrap_or_default())));
        write(
            &mut encoder,
            &gauge("claims", "Claims on this node by where in their life they are."),
            by_state,
        )
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

fn withheld(encoder: &mut DescriptorEncoder<'_>, node: &NodeState, publication: &Publication) -> fmt::Result {
    let by_gpu = node.withheld.iter().map(|((gpu, why), number)| {
        let reason = match why {
            Withheld::Unreadable => "unreadable",
            Withheld::Unhealthy => "unhealthy",
            Withheld::HostNotReady => "host_not_ready",
            Withheld::Shared => "shared",
            Withheld::MigMode => "mig_mode",
            Withheld::Occupied => "occupied",
        };
        ([("gpu", gpu.as_str()), ("reason", reason)], count(*number))
    });
    let dropped = match publication {
        Publication::WithoutCounters { withheld, .. } => *withheld,
        _ => 0,
    };
    let on_node = ([("gpu", ""), ("reason", "counters_dropped")], count(dropped));
    let help =
        "Devices that exist and are not offered, by GPU and why; `counters_dropped` is of the whole node.";
    write(encoder, &gauge("placements_withheld", help), by_gpu.chain([on_node]))
}

fn published(encoder: &mut DescriptorEncoder<'_>, publication: &Publication) -> fmt::Result {
    let (state, slices, devices) = match publication {
        Publication::Pending { .. } => ("pending", None, None),
        Publication::Complete { slices, devices, .. } => ("counters", Some(*slices), Some(*devices)),
        Publication::Layout { slices, devices, .. } => ("layout", Some(*slices), Some(*devices)),
        Publication::WithoutCounters { devices, .. } => ("without_counters", None, Some(*devices)),
    };
    let states = ["pending", "counters", "layout", "without_counters"];
    let states = states.map(|it| ([("state", it)], flag(it == state)));
    let help = "1 for how devices are published: with counters, by layout, not as asked for, or not yet.";
    write(encoder, &gauge("publication", help), states)?;
    let help = "ResourceSlices that the API server has of this node.";
    write_one(encoder, &gauge("slices_published", help), slices.map(count))?;
    write_one(encoder, &gauge("devices_published", "Devices in them."), devices.map(count))
}
