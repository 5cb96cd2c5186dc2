//! Encodes values that are computed at scrape time.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// What a gauge is called, what it says and in which unit, which becomes the end of its name.
#[derive(Debug)]
pub struct Gauge {
    /// Its name, without prefix and unit.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Its unit.
    pub unit: Option<Unit>,
}

/// A gauge without a unit.
pub const fn gauge(name: &'static str, help: &'static str) -> Gauge {
    Gauge { name, help, unit: None }
}

/// Writes a gauge with a number for each set of labels.
pub fn write<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    gauge: &Gauge,
    values: impl IntoIterator<Item = (L, f64)>,
) -> fmt::Result {
    let mut family =
        encoder.encode_descriptor(gauge.name, gauge.help, gauge.unit.as_ref(), MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Writes a gauge that is one number, or none.
pub fn write_one(
    encoder: &mut DescriptorEncoder<'_>,
    gauge: &Gauge,
    value: impl Into<Option<f64>>,
) -> fmt::Result {
    let family = encoder.encode_descriptor(gauge.name, gauge.help, gauge.unit.as_ref(), MetricType::Gauge)?;
    value.into().map_or(Ok(()), |value| ConstGauge::new(value).encode(family))
}

/// A count as a number of a gauge.
#[expect(clippy::cast_precision_loss, reason = "there are far fewer than 2^52 of anything")]
pub fn count(number: usize) -> f64 {
    number as f64
}

/// 1 for yes.
pub fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}
