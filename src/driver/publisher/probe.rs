//! Questions to the API server, asked with slices that are never stored.

use std::collections::BTreeSet;
use std::time::Instant;

use k8s_openapi::api::resource::v1::{Counter, Device, DeviceCounterConsumption, ResourceSlice};
use mig_model::inventory::Inventory;
use mig_model::placement::{Policy, Ranking};
use mig_model::slices::{
    CounterSupport, Mode, Owner, count, lost_counters, lost_taints, new_taint, render, slice_name,
};
use tracing::{info, warn};

use super::Publisher;
use crate::api::{NodeSlices, SliceError, SliceErrorKind};

/// Index in the name of a probe: the last one, which no published slice has.
const INDEX: usize = 0xf_ffff;

/// Asks the API server what it does with counters. Stores nothing.
///
/// The probe is a device that draws on a counter set of another slice, as published devices do. A slice with nothing but a
/// counter set would be accepted by Kubernetes 1.34, too.
pub async fn counter_support(api: &NodeSlices, owner: &Owner) -> Result<CounterSupport, SliceError> {
    let counters = [("probe".to_owned(), Counter { value: count(1) })].into();
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
    /// Asks what the API server does with counters.
    pub(super) async fn ask_for_counters(&mut self, owner: &Owner) -> Result<(), SliceError> {
        let support = counter_support(&self.parts.api, owner).await?;
        self.set_support(support);
        Ok(())
    }

    /// Asks whether the API server keeps taints.
    pub(super) async fn ask_for_taints(&mut self, owner: &Owner) -> Result<(), SliceError> {
        let effect = self.parts.settings.taint_effect;
        let taints = Some(vec![new_taint(&owner.driver, "probe", "true".to_owned(), effect)]);
        let probe = probe(owner, Device { taints, ..Device::default() });
        let are_kept = !lost_taints(&probe, &self.parts.api.try_create(&probe).await?);
        self.set_taints(are_kept);
        Ok(())
    }

    /// Notes whether the API server keeps taints, and logs when that is another thing than before.
    pub(super) fn set_taints(&mut self, are_kept: bool) {
        let gate = &mut self.gates.taints;
        gate.asked = Some(Instant::now());
        if gate.answer.replace(are_kept) == Some(are_kept) {
            return;
        }
        if are_kept {
            info!("the API server keeps device taints");
        } else {
            warn!(
                "kube-apiserver drops device taints (feature gate DRADeviceTaints): free devices of unhealthy GPUs are not \
                 published, but pods that have others of them are not ended"
            );
        }
    }

    /// Notes what the API server does with counters, and logs when that is another thing than before.
    pub(super) fn set_support(&mut self, support: CounterSupport) {
        let gate = &mut self.gates.counters;
        gate.asked = Some(Instant::now());
        if gate.answer.replace(support) == Some(support) {
            return;
        }
        let insists = self.parts.settings.mode == Mode::Partitionable;
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
