//! Timestamps and identifiers as the API server writes them.

use std::hash::{BuildHasher, RandomState};

/// Now, as `metav1.Time` is written: RFC 3339, UTC, whole seconds.
#[must_use]
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Seconds since the given RFC 3339 time; `None` where it cannot be read.
#[must_use]
pub fn age_seconds(timestamp: &str) -> Option<i64> {
    let then: jiff::Timestamp = timestamp.parse().ok()?;
    Some(jiff::Timestamp::now().as_second() - then.as_second())
}

/// 64 random bits. The standard library's hasher keys are the only source of randomness that needs no crate.
fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

/// A random (version 4) UUID in the usual form.
#[must_use]
pub fn uuid() -> String {
    let (a, b) = (random(), random());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        0x8000 | ((b >> 48) & 0x3fff),
        b & 0xffff_ffff_ffff
    )
}

/// Five random characters from the alphabet that Kubernetes uses for generated names (no vowels, no look-alikes).
#[must_use]
pub fn name_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bits = random();
    let mut suffix = String::new();
    for _ in 0..5 {
        let index = usize::try_from(bits % 27).unwrap_or(0);
        suffix.push(char::from(ALPHABET[index]));
        bits /= 27;
    }
    suffix
}
