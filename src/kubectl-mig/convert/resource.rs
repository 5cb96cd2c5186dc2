//! Names of the device plugin's resources, and what this driver has in their place.

/// What the device plugin of NVIDIA calls its devices.
pub(super) const DOMAIN: &str = "nvidia.com/";

/// The class of whole GPUs, which `nvidia.com/gpu` means unless the device plugin runs with the MIG strategy `single`.
pub(super) const WHOLE_GPU: &str = "gpu.dra-driver.dev";

/// The device class in place of a resource.
///
/// # Errors
/// Why there is none, and what to do. `Ok(None)` for a name that is not the device plugin's.
pub(super) fn device_class(resource: &str) -> Result<Option<String>, String> {
    let Some(name) = resource.strip_prefix(DOMAIN) else { return Ok(None) };
    if name == "gpu" {
        return Ok(Some(WHOLE_GPU.to_owned()));
    }
    if name.ends_with(".shared") {
        return Err(format!(
            "{resource} is a device that the device plugin gives to several containers at once; name one ResourceClaim in \
             all the pods that share it, as examples/shared-claim does"
        ));
    }
    match name.strip_prefix("mig-") {
        None => Ok(None),
        Some(profile) if is_profile(profile) => Ok(Some(name.to_owned())),
        Some(profile) => Err(format!(
            "there is no device class for {profile}: this driver makes GPU instances with one compute instance that has \
             all of them; ask for the GPU instance, such as mig-3g.20gb"
        )),
    }
}

/// `1g.10gb`, `1g.10gb.me`: slices, memory, and what is special.
fn is_profile(text: &str) -> bool {
    let number = |text: &str, unit: &str| {
        text.strip_suffix(unit).is_some_and(|it| !it.is_empty() && it.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut parts = text.split('.');
    parts.next().is_some_and(|it| number(it, "g"))
        && parts.next().is_some_and(|it| number(it, "gb"))
        && parts.all(|it| matches!(it, "me" | "nome" | "gfx" | "all"))
}

/// True for names that stand for devices of the device plugin.
pub(super) fn is_device(name: &str) -> bool {
    device_class(name) != Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_have_a_class_of_their_own() {
        assert_eq!(device_class("nvidia.com/mig-1g.5gb"), Ok(Some("mig-1g.5gb".to_owned())));
        assert_eq!(device_class("nvidia.com/mig-1g.24gb.me.all"), Ok(Some("mig-1g.24gb.me.all".to_owned())));
        assert_eq!(device_class("nvidia.com/gpu"), Ok(Some("gpu.dra-driver.dev".to_owned())));
    }

    #[test]
    fn every_shipped_class_is_found_by_its_extended_resource() {
        let classes = include_str!("../../../deploy/manifests/deviceclasses.yaml");
        let mut count = 0;
        for line in classes.lines() {
            let Some(resource) = line.trim().strip_prefix("extendedResourceName: ") else { continue };
            count += 1;
            let class = device_class(resource).unwrap().unwrap();
            assert!(classes.contains(&format!("\n  name: {class}\n")), "{resource}");
        }
        assert!(count > 20);
    }

    #[test]
    fn what_has_no_class_says_why() {
        assert!(device_class("nvidia.com/gpu.shared").unwrap_err().contains("shared-claim"));
        assert!(device_class("nvidia.com/mig-1c.3g.20gb").unwrap_err().contains("1c.3g.20gb"));
        assert!(device_class("nvidia.com/mig-").is_err());
    }

    #[test]
    fn labels_and_other_vendors_are_no_devices() {
        for name in
            ["nvidia.com/gpu.product", "nvidia.com/mig.config", "amd.com/gpu", "cpu", "gpu", "nvidia.com/nic"]
        {
            assert_eq!(device_class(name), Ok(None), "{name}");
        }
    }
}
