//! Device names. They say what a device is and are built from the PCI address, because index and minor number move.

use std::fmt;

use crate::facts::PciAddress;
use crate::hash::fnv1a;

/// Most shares of a GPU: as many clients as MPS would serve, and far more than time slicing makes sense for.
pub const MOST_SHARES: u32 = 48;

/// Between the GPU and the number of a share.
const SHARE: &str = "-share-";
/// Between the GPU and the UUID of an unmanaged instance.
const ADOPTED: &str = "-adopted-";

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

    /// A time-shared device of a GPU: `gpu-0000-3b-00-share-2`.
    #[must_use]
    pub fn share(gpu: &Self, index: u32) -> Self {
        Self(format!("{gpu}{SHARE}{index}"))
    }

    /// An unmanaged MIG instance: `gpu-0000-3b-00-adopted-5c8a1f0e-…`, with its UUID. The name says which
    /// instance a claim was given; another one in its place has another name, and so has a placement that the driver cuts.
    #[must_use]
    pub fn adopted(pci: PciAddress, uuid: &str) -> Self {
        Self(format!("{}{ADOPTED}{}", gpu_label(pci), uuid_label(uuid)))
    }

    /// True for a name that [`DeviceName::adopted`] makes.
    #[must_use]
    pub fn is_adopted(name: &str) -> bool {
        name.starts_with("gpu-") && name.contains(ADOPTED)
    }

    /// The GPU and the number of a share, from a name that [`DeviceName::share`] makes.
    #[must_use]
    pub fn share_in(name: &str) -> Option<(&str, u32)> {
        let (gpu, index) = name.split_once(SHARE)?;
        let number: u32 = index.parse().ok()?;
        (number < MOST_SHARES && number.to_string() == index).then_some((gpu, number))
    }

    /// The address of the GPU, from any name that is made here.
    #[must_use]
    pub fn address_in(name: &str) -> Option<PciAddress> {
        let mut parts = name.strip_prefix("gpu-")?.splitn(4, '-');
        let address: PciAddress =
            format!("{}:{}:{}", parts.next()?, parts.next()?, parts.next()?).parse().ok()?;
        let rest = name.strip_prefix(&gpu_label(address))?;
        (rest.is_empty() || rest.starts_with('-')).then_some(address)
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

/// The UUID of a MIG device as part of a DNS label: without `MIG-`. What is not a plain UUID, such as the longer ones of
/// drivers before 470, is replaced by its hash.
fn uuid_label(uuid: &str) -> String {
    const LONGEST: usize = 36;
    let label = uuid.strip_prefix("MIG-").unwrap_or(uuid).to_ascii_lowercase();
    let is_plain = label.bytes().all(|it| it.is_ascii_hexdigit() || it == b'-')
        && label.starts_with(|it: char| it != '-')
        && label.ends_with(|it: char| it != '-');
    if is_plain && label.len() <= LONGEST { label } else { format!("x{:016x}", fnv1a(uuid.as_bytes())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(profile: &str, expected: &str) {
        let pci = "0000:3b:00.0".parse().unwrap();
        assert_eq!(DeviceName::mig(pci, profile, 6).as_str(), expected);
    }

    #[test]
    fn every_name_of_a_device_has_the_address_of_its_gpu() {
        let pci: PciAddress = "0000:3b:00.0".parse().unwrap();
        let gpu = DeviceName::gpu(pci);
        let names = [
            DeviceName::mig(pci, "1g.10gb+me", 6),
            DeviceName::share(&gpu, 2),
            DeviceName::adopted(pci, "MIG-5c8a1f0e"),
            gpu,
        ];
        assert!(names.iter().all(|it| DeviceName::address_in(it.as_str()) == Some(pci)));
        for other in [
            "",
            "gpu-0",
            "gpu-0-mig-1g10gb-19-6",
            "gpu-0000-3b",
            "gpu-0000-3b-00x",
            "gpu-000-3b-00",
            "nic-0000-3b-00",
        ] {
            assert_eq!(DeviceName::address_in(other), None, "{other}");
        }
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

    #[test]
    fn an_adopted_instance_is_named_by_its_uuid_within_a_label() {
        let uuid = "MIG-5c8a1f0e-93b7-5a52-8a5f-0123456789ab";
        let name = |pci: &str, uuid: &str| DeviceName::adopted(pci.parse().unwrap(), uuid).to_string();
        assert_eq!(name("0000:3b:00.0", uuid), "gpu-0000-3b-00-adopted-5c8a1f0e-93b7-5a52-8a5f-0123456789ab");
        assert_eq!(name("ffffffff:3b:00.0", uuid).len(), 63);
        let old = "MIG-GPU-5c8a1f0e-93b7-5a52-8a5f-0123456789ab/1/0";
        assert_eq!(name("0000:3b:00.0", old), "gpu-0000-3b-00-adopted-xf7a65888dc4c23fe");
        assert!(DeviceName::is_adopted(&name("0000:3b:00.0", old)));
        assert!(!DeviceName::is_adopted("gpu-0000-3b-00-mig-1g-10gb-6"));
    }

    #[test]
    fn only_what_names_a_share_is_taken_for_one() {
        let gpu = DeviceName::gpu("0000:3b:00.0".parse().unwrap());
        assert_eq!(DeviceName::share_in(DeviceName::share(&gpu, 7).as_str()), Some(("gpu-0000-3b-00", 7)));
        for name in ["gpu-0000-3b-00", "gpu-0000-3b-00-share-", "gpu-0000-3b-00-share-07", "gpu-0-share-48"] {
            assert_eq!(DeviceName::share_in(name), None, "{name}");
        }
    }
}
