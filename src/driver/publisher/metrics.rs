//! Numbers of what is published, and of what is withheld.

use std::fmt;

use mig_model::inventory::Withheld;
use mig_model::slices::Publication;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::watch;

use crate::hardware::NodeState;
use crate::telemetry::metrics::{count, flag, gauge, write, write_one};

/// Shows what the API server has of this node, and what it has not, with the reason.
#[derive(Debug)]
pub struct PublicationMetrics {
    /// What is withheld of each GPU.
    pub node: watch::Receiver<NodeState>,
    /// What the API server has.
    pub publication: watch::Receiver<Publication>,
}

impl Collector for PublicationMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Clones, so that a writer does not wait for this.
        let (node, publication) = (self.node.borrow().clone(), self.publication.borrow().clone());
        withheld(&mut encoder, &node, &publication)?;
        published(&mut encoder, &publication)
    }
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
