//! Names of the device plugin's resources, and what this driver has in their place.

/// The domain of the device plugin's resources, and of the labels of its companions.
pub(super) const DOMAIN: &str = "nvidia.com/";

/// The class of whole GPUs, which `nvidia.com/gpu` means unless the device plugin runs with the MIG strategy `single`.
pub(super) const WHOLE_GPU: &str = "gpu.dra-driver.dev";

/// The class of any MIG device.
pub(super) const ANY_MIG: &str = "mig.dra-driver.dev";

/// Resources that are a part or a share of a GPU, and the program that serves them.
const PARTS: [(&str, &str); 14] = [
    // Project-HAMi/HAMi, as its documentation and Kueue's page on HAMi name them.
    ("nvidia.com/gpumem", "HAMi"),
    ("nvidia.com/gpumem-percentage", "HAMi"),
    ("nvidia.com/gpucores", "HAMi"),
    ("nvidia.com/vgpu", "a vGPU device plugin"),
    // volcano-sh/volcano v1.16.0-alpha.1, pkg/scheduler/api/devices.
    ("volcano.sh/vgpu-number", "Volcano"),
    ("volcano.sh/vgpu-memory", "Volcano"),
    ("volcano.sh/vgpu-memory-percentage", "Volcano"),
    ("volcano.sh/vgpu-cores", "Volcano"),
    ("volcano.sh/gpu-memory", "Volcano"),
    ("volcano.sh/gpu-number", "Volcano"),
    ("aliyun.com/gpu-mem", "the gpushare scheduler extender"),
    ("tencent.com/vcuda-core", "GPU Manager"),
    ("tencent.com/vcuda-memory", "GPU Manager"),
    ("k8s.amazonaws.com/vgpu", "the virtual GPU device plugin of EKS"),
];

/// The device class in place of a resource; whether it exists is not checked.
///
/// # Errors
/// Why there is none, and what to do. `Ok(None)` for a name that is not a GPU or a part of one.
pub(super) fn device_class(resource: &str) -> Result<Option<String>, String> {
    if let Some((_, program)) = PARTS.iter().find(|(name, _)| *name == resource) {
        return Err(share(resource, program));
    }
    let Some(name) = resource.strip_prefix(DOMAIN) else { return Ok(None) };
    if name == "gpu" {
        return Ok(Some(WHOLE_GPU.to_owned()));
    }
    if name.ends_with(".shared") {
        return Err(format!(
            "{resource} is a device that the device plugin shares between containers; create one ResourceClaim and name it in \
             all pods that share it, as examples/shared-claim does"
        ));
    }
    match name.strip_prefix("mig-") {
        None => Ok(None),
        Some(profile) if is_profile(profile) => Ok(Some(name.to_owned())),
        Some(profile) => Err(format!(
            "there is no device class for {profile}: this driver creates GPU instances with one compute instance of the same \
             size; request the GPU instance, such as nvidia.com/mig-3g.20gb"
        )),
    }
}

/// Why a resource of a container cannot be converted although it is none of [`device_class`]: its name qualifies
/// `nvidia.com/gpu`. Labels have such names, too, so this holds for requests and limits only.
pub(super) fn qualified_gpu(resource: &str) -> Option<String> {
    let name = resource.strip_prefix(DOMAIN)?;
    let qualified = name.strip_prefix("gpu").is_some_and(|it| !it.is_empty()) || name.starts_with("vgpu");
    qualified.then(|| share(resource, "another device plugin, or a renamed resource"))
}

fn share(resource: &str, program: &str) -> String {
    format!(
        "{resource} is a part or a share of a GPU ({program}), and nvidia.com/gpu beside it is not a whole GPU; replace both \
         by a MIG profile, such as nvidia.com/mig-1g.10gb, or share one ResourceClaim as examples/shared-claim does"
    )
}

/// `1g.10gb`, `1g.10gb.me`: slices, memory, and the variants.
fn is_profile(text: &str) -> bool {
    let number = |text: &str, unit: &str| {
        text.strip_suffix(unit).is_some_and(|it| !it.is_empty() && it.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut parts = text.split('.');
    parts.next().is_some_and(|it| number(it, "g"))
        && parts.next().is_some_and(|it| number(it, "gb"))
        && parts.all(|it| matches!(it, "me" | "nome" | "gfx" | "all"))
}

/// True for names that stand for GPUs, or parts of them, of a device plugin.
pub(super) fn is_device(name: &str) -> bool {
    device_class(name) != Ok(None)
}

/// The name of a resource without the prefix that it has in a quota.
pub(super) fn unprefixed(name: &str) -> &str {
    ["requests.", "limits."].iter().find_map(|it| name.strip_prefix(it)).unwrap_or(name)
}

/// The names of [`is_device`] in a text, with the line of each, from 0. JSON pointers (`nvidia.com~1gpu`) count.
pub(super) fn devices_in(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let words = line.split(|it: char| !it.is_ascii_alphanumeric() && !"-_./~".contains(it));
        for word in words.filter(|it| it.contains('.')) {
            let names = word.split('/').map(|it| it.replace("~1", "/").replace("~0", "~"));
            let mut names = names.chain([word.trim_matches('.').to_owned()]);
            found.extend(names.find_map(|it| {
                let name = unprefixed(&it);
                is_device(name).then(|| (number, name.to_owned()))
            }));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_have_separate_classes() {
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
        assert!(device_class("nvidia.com/mig-1g.5gb.shared").unwrap_err().contains("shared-claim"));
        assert!(device_class("nvidia.com/mig-1c.3g.20gb").unwrap_err().contains("1c.3g.20gb"));
        assert!(device_class("nvidia.com/mig-").is_err());
        for (name, _) in PARTS {
            assert!(device_class(name).unwrap_err().contains("share of a GPU"), "{name}");
        }
    }

    #[test]
    fn labels_and_other_vendors_are_no_devices() {
        for name in
            ["nvidia.com/gpu.product", "nvidia.com/mig.config", "amd.com/gpu", "cpu", "gpu", "nvidia.com/nic"]
        {
            assert_eq!(device_class(name), Ok(None), "{name}");
        }
    }

    #[test]
    fn a_resource_that_qualifies_a_gpu_is_no_gpu() {
        for name in ["nvidia.com/gpu-10gb", "nvidia.com/gpu.time-sliced", "nvidia.com/vgpu-memory"] {
            assert!(qualified_gpu(name).is_some(), "{name}");
        }
        for name in ["nvidia.com/gpu", "nvidia.com/nic", "nvidia.com/mig-1g.5gb", "amd.com/gpu-10gb"] {
            assert_eq!(qualified_gpu(name), None, "{name}");
        }
    }

    #[test]
    fn devices_are_found_in_any_text() {
        let names = |text: &str| {
            devices_in(text).into_iter().map(|(line, name)| format!("{line} {name}")).collect::<Vec<_>>()
        };
        assert_eq!(names("{{ x }}\n  nvidia.com/gpu: 1\n"), ["1 nvidia.com/gpu"]);
        assert_eq!(names("/spec/limits/nvidia.com~1mig-1g.5gb"), ["0 nvidia.com/mig-1g.5gb"]);
        assert_eq!(names("spec.resources.limits.[nvidia.com/gpumem]"), ["0 nvidia.com/gpumem"]);
        assert_eq!(names("nvidia.com/gpu.product=A100, docs.nvidia.com/gpus"), [""; 0]);
    }
}
