//! Shared counters: what a device takes, and whether it is there.

use k8s_openapi::api::resource::v1::Device;

use crate::pool::Counters;
use crate::quantity::Quantity;

/// What a device takes from the counters of its pool.
pub(super) fn consumption(device: &Device) -> Vec<((String, String), Quantity)> {
    let sets = device.consumes_counters.iter().flatten();
    sets.flat_map(|set| {
        set.counters.iter().map(|(name, counter)| {
            let amount = Quantity::parse(&counter.value.0).unwrap_or_else(|_| Quantity::zero());
            ((set.counter_set.clone(), name.clone()), amount)
        })
    })
    .collect()
}

/// Takes what the device needs, if all of it is there; else takes nothing and answers false.
pub(super) fn take(available: &mut Counters, device: &Device) -> bool {
    let needed = consumption(device);
    for (key, amount) in &needed {
        if let Some(left) = available.get_mut(key) {
            *left = left.minus(*amount);
        }
    }
    // As upstream: every counter of the pool is looked at, so one that is overdrawn refuses all.
    let enough = available.values().all(|left| !left.is_negative());
    if !enough {
        give_back(available, device);
    }
    enough
}

/// Undoes [`take`].
pub(super) fn give_back(available: &mut Counters, device: &Device) {
    for (key, amount) in consumption(device) {
        if let Some(left) = available.get_mut(&key) {
            *left = left.plus(amount);
        }
    }
}
