//! Quantities (`80Gi`, `500m`, `1e3`): reading, comparing, and the one canonical form that the API server stores.
//!
//! Values are held exactly, in units of 10^-9, up to 10^29: more than any device has. Finer parts are rounded up, as
//! Kubernetes does.

use std::fmt;

const NANO: i128 = 1_000_000_000;

/// How a quantity was written, which decides how it is written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Binary,
    Decimal,
    Exponent,
}

/// An exact amount.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    form: Form,
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct NotAQuantity;

impl Quantity {
    /// Reads a quantity.
    ///
    /// # Errors
    /// [`NotAQuantity`] when the text is not one, or is beyond 10^29.
    pub fn parse(text: &str) -> Result<Self, NotAQuantity> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let split = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(split);
        let (scale, form) = scale(suffix).ok_or(NotAQuantity)?;
        let nanos = scaled(number, scale).ok_or(NotAQuantity)?;
        Ok(Self { nanos: if negative { -nanos } else { nanos }, form })
    }

    /// An amount of things that are counted; 0 for what is not a whole number, which the API server refuses there.
    #[must_use]
    pub fn whole(text: &str) -> i64 {
        Self::parse(text).ok().and_then(Self::as_integer).unwrap_or(0)
    }

    /// A whole number, written in decimal form.
    #[must_use]
    pub fn from_integer(value: i64) -> Self {
        Self { nanos: i128::from(value) * NANO, form: Form::Decimal }
    }

    /// Zero.
    #[must_use]
    pub fn zero() -> Self {
        Self::from_integer(0)
    }

    /// The sum, in this quantity's form; saturates.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_add(other.nanos), form: self.form }
    }

    /// The difference, in this quantity's form; saturates.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_sub(other.nanos), form: self.form }
    }

    /// Whether the amount is below zero.
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// -1, 0 or 1.
    #[must_use]
    pub fn sign(self) -> i64 {
        i64::try_from(self.nanos.signum()).unwrap_or(0)
    }

    /// The whole number, where it is one and fits.
    #[must_use]
    pub fn as_integer(self) -> Option<i64> {
        if self.nanos % NANO == 0 { i64::try_from(self.nanos / NANO).ok() } else { None }
    }

    /// The amount as a floating point number, possibly rounded.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "CEL's asApproximateFloat is approximate by definition")]
    pub fn as_float(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }
}

/// What a suffix multiplies by: a power of 2 or a power of 10.
#[derive(Clone, Copy)]
enum Scale {
    Two(u32),
    Ten(i32),
}

fn scale(suffix: &str) -> Option<(Scale, Form)> {
    let decimal = |exponent| Some((Scale::Ten(exponent), Form::Decimal));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        _ => {
            let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().position(|s| *s == suffix);
            if let Some(index) = binary {
                return Some((Scale::Two(10 * (u32::try_from(index).ok()? + 1)), Form::Binary));
            }
            let exponent = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            Some((Scale::Ten(exponent), Form::Exponent))
        }
    }
}

/// `number * scale` in units of 10^-9, rounded up; `None` when not a number or too large.
fn scaled(number: &str, scale: Scale) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let digits: String = [whole, fraction].concat();
    let mantissa: i128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let places = i32::try_from(fraction.len()).ok()?;
    let (mantissa, ten) = match scale {
        Scale::Two(bits) => (mantissa.checked_mul(1_i128.checked_shl(bits)?)?, 9 - places),
        Scale::Ten(exponent) => (mantissa, exponent.checked_add(9)?.checked_sub(places)?),
    };
    if mantissa == 0 {
        return Some(0);
    }
    let power = 10_i128.checked_pow(ten.unsigned_abs());
    if ten >= 0 {
        mantissa.checked_mul(power?)
    } else {
        // What is smaller than one unit rounds up to one unit.
        Some(power.map_or(1, |p| mantissa / p + i128::from(mantissa % p != 0)))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.nanos.abs() < 1024 * NANO;
        if self.form == Form::Binary && !small && self.nanos % NANO == 0 {
            let mut value = self.nanos / NANO;
            let mut index = 0;
            while index < 6 && value % 1024 == 0 {
                value /= 1024;
                index += 1;
            }
            return write!(f, "{value}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][index]);
        }
        let mut value = self.nanos;
        let mut step = 0;
        while value != 0 && step < 9 && value % 1000 == 0 {
            value /= 1000;
            step += 1;
        }
        if value == 0 {
            return write!(f, "0");
        }
        if self.form == Form::Exponent {
            let exponent = step * 3 - 9;
            return if exponent == 0 { write!(f, "{value}") } else { write!(f, "{value}e{exponent}") };
        }
        let suffix =
            usize::try_from(step).ok().and_then(|s| ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"].get(s));
        write!(f, "{value}{}", suffix.unwrap_or(&""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str, expected: &str) {
        assert_eq!(Quantity::parse(text).unwrap().to_string(), expected, "{text}");
    }

    #[test]
    fn a_quantity_is_written_in_its_canonical_form() {
        canonical("1024Mi", "1Gi");
        canonical("1Gi", "1Gi");
        canonical("1000Mi", "1000Mi");
        canonical("1073741824", "1073741824");
        canonical("1000", "1k");
        canonical("0.5", "500m");
        canonical("1500m", "1500m");
        canonical("0.5Gi", "512Mi");
        canonical("1e3", "1e3");
        canonical("1000e3", "1e6");
        canonical("0", "0");
        canonical("0Gi", "0");
        canonical("-1", "-1");
        canonical("512", "512");
        canonical("0.1n", "1n");
    }

    #[test]
    fn quantities_compare_by_amount_not_by_text() {
        assert_eq!(Quantity::parse("1Gi").unwrap(), Quantity::parse("1073741824").unwrap());
        assert!(Quantity::parse("1G").unwrap() < Quantity::parse("1Gi").unwrap());
        assert!(Quantity::parse("-1").unwrap().is_negative());
    }

    #[test]
    fn text_that_is_not_a_quantity_is_refused() {
        for text in ["", "Gi", "1gb", "1.2.3", "1 Gi", "++1", "1e", "--1", "1e99999"] {
            assert_eq!(Quantity::parse(text), Err(NotAQuantity), "{text}");
        }
    }
}
