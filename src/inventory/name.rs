//! Device names. They say what a device is and are built from the PCI address, because index and minor number move.

use std::fmt;

use crate::nvml::facts::PciAddress;

/// Name of a device in a ResourceSlice: a DNS label, at most 63 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

impl DeviceName {
    /// A whole GPU: `gpu-0000-3b-00`.
    #[must_use]
    pub fn gpu(pci: PciAddress) -> Self {
        Self(gpu_label(pci))
    }

    /// A MIG device: `gpu-0000-3b-00-mig-1g-10gb-6`.
    #[must_use]
    pub fn mig(pci: PciAddress, profile: &str, start: u32) -> Self {
        Self(format!("{}-mig-{}-{start}", gpu_label(pci), profile_label(profile)))
    }

    /// The name as it stands in the slice.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The part of a name that stands for the GPU, and the name of its counter set.
pub(super) fn gpu_label(pci: PciAddress) -> String {
    format!("gpu-{:04x}-{:02x}-{:02x}", pci.domain, pci.bus, pci.device)
}

/// A profile name as part of a DNS label: `+me` becomes `-me`, `-me` becomes `-nome`, `+me.all` becomes `-meall`. They are
/// different profiles, and stay different. A name as no driver gives it today is replaced by its hash.
fn profile_label(profile: &str) -> String {
    /// With the GPU and a start, the whole stays below the 63 characters of a DNS label.
    const LONGEST: usize = 24;
    let is_usual = |it: char| it.is_ascii_alphanumeric() || ['.', '+', '-', ','].contains(&it);
    let is_framed = |it: &str| {
        it.starts_with(|it: char| it.is_ascii_alphanumeric())
            && it.ends_with(|it: char| it.is_ascii_alphanumeric())
    };
    if !profile.chars().all(is_usual) || !is_framed(profile) || LONGEST < profile.len() {
        return format!("x{:016x}", fnv1a(profile.as_bytes()));
    }
    let (size, extensions) = profile.split_at(profile.find(['+', '-']).unwrap_or(profile.len()));
    let mut label = size.replace('.', "-").to_ascii_lowercase();
    for character in extensions.chars() {
        match character {
            '+' | ',' => label.push('-'),
            '-' => label.push_str("-no"),
            other if other.is_ascii_alphanumeric() => label.push(other.to_ascii_lowercase()),
            _ => {}
        }
    }
    label
}

/// FNV-1a, 64 bits: the same on every machine and in every version of this driver.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(profile: &str, expected: &str) {
        let pci = "0000:3b:00.0".parse().unwrap();
        assert_eq!(DeviceName::mig(pci, profile, 6).as_str(), expected);
    }

    #[test]
    fn every_kind_of_profile_has_its_own_name() {
        check("1g.10gb", "gpu-0000-3b-00-mig-1g-10gb-6");
        check("1g.10gb+me", "gpu-0000-3b-00-mig-1g-10gb-me-6");
        check("1g.24gb-me", "gpu-0000-3b-00-mig-1g-24gb-nome-6");
        check("1g.24gb+gfx", "gpu-0000-3b-00-mig-1g-24gb-gfx-6");
        check("1g.24gb+me.all", "gpu-0000-3b-00-mig-1g-24gb-meall-6");
        check("1c.2g.20gb", "gpu-0000-3b-00-mig-1c-2g-20gb-6");
        check("1g.24gb+me,gfx", "gpu-0000-3b-00-mig-1g-24gb-me-gfx-6");
        check("a b", "gpu-0000-3b-00-mig-xe63f991904833892-6");
    }
}
