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

fn as_text<S: Serializer>(quantity: &Quantity, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(quantity)
}
