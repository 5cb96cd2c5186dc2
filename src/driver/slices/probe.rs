//! Questions to the API server, asked with slices that are never stored.

use std::collections::BTreeSet;
use std::time::Instant;

use k8s_openapi::api::resource::v1::{Counter, Device, DeviceCounterConsumption, ResourceSlice};
use mig_model::inventory::Inventory;
use mig_model::placement::{Policy, Ranking};
use tracing::{info, warn};

use super::publish::GATE_RETRY;
use super::render::slice_name;
use super::{Owner, Publisher, lost_counters, quantity, render};
use crate::api::{NodeSlices, SliceError, SliceErrorKind};
use crate::slices::Mode;

/// Index in the name of a probe: the last one, which no published slice has.
const INDEX: usize = 0xf_ffff;

/// What the API server does with the counters of slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CounterSupport {
    /// It keeps them, and devices draw on those of any slice of the pool: Kubernetes 1.35 and later with the feature gate
    /// `DRAPartitionableDevices`.
    Pool,
    /// It refuses devices that draw on another slice's counters: Kubernetes 1.34 with the feature gate.
    SliceOnly,
    /// It drops them: the feature gate is off.
    Dropped,
}

/// Asks the API server what it does with counters. Stores nothing.
///
/// The probe is a device that draws on a counter set of another slice, as published devices do. A slice with nothing but a
/// counter set would be accepted by Kubernetes 1.34, too.
pub async fn counter_support(api: &NodeSlices, owner: &Owner) -> Result<CounterSupport, SliceError> {
    let counters = [("probe".to_owned(), Counter { value: quantity::count(1) })].into();
    let consumes = DeviceCounterConsumption { counter_set: "probe".to_owned(), counters };
    let probe = probe(owner, Device { consumes_counters: Some(vec![consumes]), ..Device::default() });
    match api.try_create(&probe).await {
        Ok(stored) if lost_counters(&probe, &stored) => Ok(CounterSupport::Dropped),
        Ok(_) => Ok(CounterSupport::Pool),
        Err(error) if error.kind == SliceErrorKind::CountersRefused => Ok(CounterSupport::SliceOnly),
        Err(error) => Err(error),
    }
}

impl Publisher {
    /// An update keeps the counters that a slice already has, whatever the gate says now; a new slice would lose them.
    pub(super) async fn ask_for_the_gate(&mut self, creates: bool, owner: &Owner) -> Result<(), SliceError> {
        let is_known = self.asked.is_some_and(|it| it.elapsed() < GATE_RETRY);
        if !is_known || self.counters == Some(CounterSupport::Pool) && creates {
            let support = counter_support(&self.parts.api, owner).await?;
            self.set_support(support);
        }
        Ok(())
    }

    /// Notes what the API server does with counters, and logs when that is another thing than before.
    pub(super) fn set_support(&mut self, support: CounterSupport) {
        self.asked = Some(Instant::now());
        if self.counters.replace(support) == Some(support) {
            return;
        }
        let insists = self.parts.mode == Mode::Partitionable;
        match support {
            CounterSupport::Pool => {
                info!("kube-apiserver keeps shared counters: every placement is published")
            }
            CounterSupport::SliceOnly if insists => warn!(
                "kube-apiserver refuses counters of another slice: only whole GPUs are published; upgrade kube-apiserver and \
                 kube-scheduler to 1.35.6 or later, or remove --mode=partitionable"
            ),
            CounterSupport::Dropped if insists => warn!(
                "kube-apiserver drops shared counters: only whole GPUs are published; start kube-apiserver and \
                 kube-scheduler with --feature-gates=DRAPartitionableDevices=true, or remove --mode=partitionable"
            ),
            CounterSupport::SliceOnly | CounterSupport::Dropped => info!(
                ?support,
                "kube-apiserver does not keep the pool's counters: devices that don't overlap are published, by layout"
            ),
        }
    }
}

/// A slice with this device that is never stored. Its name and its pool have the form of the published ones, which is all that the
/// admission policy lets the driver write.
pub(super) fn probe(owner: &Owner, device: Device) -> ResourceSlice {
    let nothing = Inventory::default();
    let ranking = Ranking::of(&nothing, &BTreeSet::new(), Policy::Static);
    let mut slices = render(&nothing, &ranking, owner);
    let mut probe = slices.swap_remove(0);
    probe.metadata.name = Some(slice_name(INDEX, owner));
    probe.spec.pool.generation = 1;
    probe.spec.devices = Some(vec![Device { name: "probe".to_owned(), ..device }]);
    probe
}
