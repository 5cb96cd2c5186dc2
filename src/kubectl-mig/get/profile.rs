//! Names and order of profiles. Pure.

use crate::gpu::GpuDevice;

/// How a device is called: its MIG profile, `gpu`, or `share`.
pub(super) fn name(device: &GpuDevice) -> &str {
    match &device.profile {
        Some(profile) => profile,
        None if device.is_shared => "share",
        None => "gpu",
    }
}

/// Size of a profile by its name, to compare profiles: memory, then compute slices. What is no MIG profile is a whole GPU; a
/// profile with or without media extensions comes before the plain one of its size.
pub(super) fn size(name: &str) -> (u8, u64, u64, bool) {
    let plain = name.split(['+', '-']).next().unwrap_or(name);
    let numbers = plain.split_once("g.").and_then(|(compute, memory)| {
        Some((memory.strip_suffix("gb")?.parse().ok()?, compute.parse().ok()?))
    });
    match (name, numbers) {
        ("gpu", _) => (3, 0, 0, true),
        ("share", _) => (2, 0, 0, true),
        (_, Some((memory, compute))) => (1, memory, compute, !is_variant(name)),
        (_, None) => (0, 0, 0, !is_variant(name)),
    }
}

/// True for a profile of which a GPU has few, because it has more or other engines than its size gives.
pub(super) fn is_variant(name: &str) -> bool {
    name.contains(['+', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_ordered_by_memory_then_compute() {
        let mut names =
            ["gpu", "4g.40gb", "1g.10gb+me", "7g.80gb", "mig", "3g.40gb", "1g.10gb", "1g.20gb", "share"];
        names.sort_by_key(|it| size(it));
        let expected =
            ["mig", "1g.10gb+me", "1g.10gb", "1g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", "share", "gpu"];
        assert_eq!(names, expected);
    }
}
