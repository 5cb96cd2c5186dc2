//! The question whether the API server keeps counters, asked with a slice that is never stored.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::{Counter, CounterSet, ResourceSlice};

use super::{Owner, lost_counters, quantity, render};
use crate::api::{NodeSlices, SliceError};
use crate::inventory::Inventory;
use crate::placement::{Policy, Ranking};

/// Asks the API server whether it keeps the counters of slices (feature gate `DRAPartitionableDevices`). Stores nothing.
pub async fn keeps_counters(api: &NodeSlices, owner: &Owner) -> Result<bool, SliceError> {
    let probe = probe(owner);
    Ok(!lost_counters(&probe, &api.try_create(&probe).await?))
}

/// A slice that is never stored: it asks whether counters survive.
fn probe(owner: &Owner) -> ResourceSlice {
    let nothing = Inventory::default();
    let ranking = Ranking::of(&nothing, &BTreeSet::new(), Policy::Static);
    let mut slices = render(&nothing, &ranking, owner);
    let mut probe = slices.swap_remove(0);
    probe.metadata.name = Some(format!("probe-{}", probe.metadata.name.unwrap_or_default()));
    probe.spec.pool.name.push_str("/probe");
    probe.spec.pool.generation = 1;
    probe.spec.devices = None;
    let counters = [("probe".to_owned(), Counter { value: quantity::count(1) })].into();
    probe.spec.shared_counters = Some(vec![CounterSet { name: "probe".to_owned(), counters }]);
    probe
}
