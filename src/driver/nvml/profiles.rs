//! The MIG profiles of a GPU. A profile that cannot be read is left out; the others stay.

use mig_model::facts::{Placement, Profile};
use tracing::{debug, warn};

use super::device::{DeviceHandle, MAX_PROFILES};
use super::unknown::Unknown;
use super::{CallError, Code};

/// Enumerates profiles until INVALID_ARGUMENT. What this GPU does not have, and what cannot be described, is left out.
/// NOT_FOUND where there is none.
/// Fails where the error concerns the GPU, the NVIDIA driver or the rights of this process rather than one profile.
pub(super) fn profiles(
    device: &DeviceHandle<'_>,
    uuid: &str,
    memory_bytes: Option<u64>,
    unknown: &mut Unknown,
) -> Result<Vec<Profile>, CallError> {
    let mut found: Vec<Profile> = Vec::new();
    for index in 0..MAX_PROFILES {
        let mut profile = match device.profile(index) {
            Ok(profile) => profile,
            Err(error) if error.code == Code::INVALID_ARGUMENT => break,
            Err(error) if error.code == Code::NOT_SUPPORTED => continue,
            Err(error) if concerns_the_profile(&error) => {
                unknown.add(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        if profile.name.is_empty() {
            let Some(name) = formula_name(&profile, memory_bytes) else {
                warn!(
                    uuid,
                    index,
                    id = profile.id,
                    "MIG profile skipped: this driver does not report its name"
                );
                continue;
            };
            profile.name = name;
        }
        let Some(placements) = placements(device, uuid, &profile, unknown)? else { continue };
        profile.placements = placements;
        if found.iter().any(|it| it.name == profile.name || it.id == profile.id) {
            warn!(
                uuid,
                profile = profile.name,
                id = profile.id,
                "MIG profile skipped: its name or id is taken"
            );
            continue;
        }
        debug!(
            uuid,
            profile = profile.name,
            id = profile.id,
            placements = profile.placements.len(),
            "MIG profile"
        );
        found.push(profile);
    }
    if found.is_empty() {
        return Err(CallError { call: "nvmlDeviceGetGpuInstanceProfileInfo", code: Code::NOT_FOUND });
    }
    Ok(found)
}

/// Where a profile can be placed; nothing where that cannot be read, or is no place that a GPU could have.
fn placements(
    device: &DeviceHandle<'_>,
    uuid: &str,
    profile: &Profile,
    unknown: &mut Unknown,
) -> Result<Option<Vec<Placement>>, CallError> {
    match device.placements(profile.id) {
        Ok(placements) if placements.iter().all(|it| it.is_plausible()) => Ok(Some(placements)),
        Ok(placements) => {
            let profile = &profile.name;
            warn!(uuid, profile, ?placements, "MIG profile skipped: no GPU has such placements");
            Ok(None)
        }
        Err(error) if concerns_the_profile(&error) => {
            unknown.add(error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// True for errors that say something of one profile, which can be left out, rather than of the GPU or of our rights.
fn concerns_the_profile(error: &CallError) -> bool {
    [
        Code::NOT_SUPPORTED,
        Code::INVALID_ARGUMENT,
        Code::NOT_FOUND,
        Code::UNKNOWN,
        Code::ARGUMENT_VERSION_MISMATCH,
    ]
    .contains(&error.code)
}

/// Name of a profile if the driver does not report it, as go-nvlib computes it (mig_profile.go, getMigMemorySizeGB).
/// The revised profiles of those drivers are known by index: 7 and 8 are `+me`. Others have no certain name.
fn formula_name(profile: &Profile, total_bytes: Option<u64>) -> Option<String> {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let total_bytes = total_bytes?;
    let suffix = match profile.index {
        0..=6 | 9 => "",
        7 | 8 => "+me",
        _ => return None,
    };
    let eighths = (profile.memory_mib * MIB * 8).div_ceil(total_bytes.max(1));
    // Rounded to the nearest integer, halves up.
    let gigabytes = (eighths * total_bytes.div_ceil(GIB) + 4) / 8;
    Some(format!("{}g.{gigabytes}gb{suffix}", profile.slices))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mig_model::facts::MediaEngines;

    fn profile(index: u32, slices: u32, memory_mib: u64) -> Profile {
        Profile {
            index,
            id: 0,
            name: String::new(),
            slices,
            max_instances: 1,
            multiprocessors: 0,
            copy_engines: 0,
            media: MediaEngines::default(),
            memory_mib,
            placements: Vec::new(),
        }
    }

    #[test]
    fn names_follow_the_formula_where_the_driver_reports_none() {
        let a100_40 = Some(40_960 << 20);
        assert_eq!(formula_name(&profile(0, 1, 4864), a100_40).unwrap(), "1g.5gb");
        assert_eq!(formula_name(&profile(9, 1, 9856), a100_40).unwrap(), "1g.10gb");
        assert_eq!(formula_name(&profile(7, 1, 4864), a100_40).unwrap(), "1g.5gb+me");
        assert_eq!(formula_name(&profile(4, 7, 40_192), a100_40).unwrap(), "7g.40gb");
        let h100_80 = Some(81_559 << 20);
        assert_eq!(formula_name(&profile(2, 3, 40_448), h100_80).unwrap(), "3g.40gb");
        assert_eq!(formula_name(&profile(15, 1, 40_448), h100_80), None);
        assert_eq!(formula_name(&profile(0, 1, 4864), None), None, "the formula needs the memory of the GPU");
    }
}
