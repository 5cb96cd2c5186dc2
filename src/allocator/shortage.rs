//! What counters lack.

use serde::{Serialize, Serializer};

use crate::allocated::ClaimRef;
use crate::quantity::Quantity;

/// A counter that has less left than a device needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shortage {
    /// The counter set.
    pub set: String,
    /// The counter.
    pub counter: String,
    /// What the device needs of it: zero where the device does not consume the counter, and an overdrawn counter refuses it.
    #[serde(serialize_with = "as_text")]
    pub needed: Quantity,
    /// What is left of it; may be negative.
    #[serde(serialize_with = "as_text")]
    pub available: Quantity,
    /// What consumes it.
    pub consumers: Vec<Consumer>,
}

/// An allocated device that consumes a counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Consumer {
    /// The device.
    pub device: String,
    /// The claim that holds it.
    pub claim: ClaimRef,
    /// What it consumes.
    #[serde(serialize_with = "as_text")]
    pub amount: Quantity,
}

/// The consumers that have to end so that nothing is short. A counter that they free enough of adds none: whatever lies elsewhere
/// on the GPU consumes its memory, too, and is not in the way. Expects the order of an explanation, fewest consumers first.
#[must_use]
pub fn in_the_way(shortages: &[Shortage]) -> Vec<&Consumer> {
    let mut found: Vec<&Consumer> = Vec::new();
    for shortage in shortages {
        let is_found = |it: &Consumer| found.iter().any(|other| other.device == it.device);
        let freed = shortage.consumers.iter().filter(|it| is_found(it)).map(|it| it.amount);
        if shortage.needed <= freed.fold(shortage.available, Quantity::plus) {
            continue;
        }
        let more: Vec<&Consumer> = shortage.consumers.iter().filter(|it| !is_found(it)).collect();
        found.extend(more);
    }
    found
}

fn as_text<S: Serializer>(quantity: &Quantity, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(quantity)
}
