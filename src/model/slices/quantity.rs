//! Kubernetes quantities, as far as this driver writes and compares them.
//!
//! The API server rewrites quantities into a canonical form, so equal slices may differ in text; they are compared by
//! value. Decimal exponents (`1e3`) and values above 2^63 are refused: the driver writes neither.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A plain number.
pub fn count(number: u32) -> Quantity {
    Quantity(number.to_string())
}

/// A number of mebibytes in canonical form: the largest suffix that loses nothing.
pub(super) fn mebibytes(number: u64) -> Quantity {
    const SUFFIXES: [&str; 4] = ["Mi", "Gi", "Ti", "Pi"];
    if number == 0 {
        return Quantity("0".to_owned());
    }
    let mut number = number;
    let mut suffix = 0;
    while number.is_multiple_of(1024) && suffix + 1 < SUFFIXES.len() {
        number /= 1024;
        suffix += 1;
    }
    Quantity(format!("{number}{}", SUFFIXES[suffix]))
}

/// A whole number of things; 0 where the text is something else.
pub(crate) fn whole_number(quantity: &Quantity) -> u32 {
    let thousandths = thousandths(quantity).filter(|it| it % 1000 == 0);
    thousandths.and_then(|it| u32::try_from(it / 1000).ok()).unwrap_or(0)
}

/// A whole number of mebibytes; 0 where the text is something else.
pub(crate) fn whole_mebibytes(quantity: &Quantity) -> u64 {
    const MEBIBYTE: i128 = 1000 << 20;
    let thousandths = thousandths(quantity).filter(|it| it % MEBIBYTE == 0);
    thousandths.and_then(|it| u64::try_from(it / MEBIBYTE).ok()).unwrap_or(0)
}

/// The value in thousandths, or `None` where the text is not a quantity that this driver could have written.
pub(super) fn thousandths(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.as_str();
    let digits_end =
        text.find(|it: char| !it.is_ascii_digit() && !matches!(it, '.' | '-' | '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let scale: i128 = match suffix {
        "m" => 1,
        "" => 1000,
        "k" => 1000_i128.pow(2),
        "M" => 1000_i128.pow(3),
        "G" => 1000_i128.pow(4),
        "T" => 1000_i128.pow(5),
        "P" => 1000_i128.pow(6),
        "E" => 1000_i128.pow(7),
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000 << 50,
        "Ei" => 1000 << 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if 18 < fraction.len() || !fraction.chars().all(|it| it.is_ascii_digit()) {
        return None;
    }
    let unit = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let magnitude: i64 = whole.parse().ok()?;
    let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let sign = if whole.starts_with('-') { -1 } else { 1 };
    Some((i128::from(magnitude) * unit + sign * part).checked_mul(scale)? / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<i128> {
        thousandths(&Quantity(text.to_owned()))
    }

    #[test]
    fn mebibytes_are_written_as_the_server_would() {
        assert_eq!(mebibytes(9984).0, "9984Mi");
        assert_eq!(mebibytes(20_480).0, "20Gi");
        assert_eq!(mebibytes(0).0, "0");
    }

    #[test]
    fn quantities_are_compared_by_value() {
        assert_eq!(value("1024Mi"), value("1Gi"));
        assert_eq!(value("1.5Gi"), value("1536Mi"));
        assert_eq!(value("1000"), value("1k"));
        assert_eq!(value("1000m"), value("1"));
        assert_ne!(value("1"), value("2"));
        assert_eq!(value("1e3"), None);
        assert_eq!(value("ten"), None);
        assert_eq!(value(""), None);
    }
}
