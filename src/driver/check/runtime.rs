//! Whether the container runtime has CDI on, and in which mode NVIDIA's runtime is, as far as their configuration files show it.
//! Pure.
//!
//! Of TOML, only sections and `key = value` lines are read. Anything else is reported as unknown, never as an
//! error.

use std::path::PathBuf;

/// Where the configuration of containerd and of CRI-O may be on a host; a directory stands for the files in it.
pub(super) const CONTAINERD: [&str; 3] = [
    "/etc/containerd/config.toml",
    "/etc/containerd/conf.d",
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
];
/// The same of CRI-O.
pub(super) const CRIO: [&str; 2] = ["/etc/crio/crio.conf", "/etc/crio/crio.conf.d"];

/// Where the configuration of NVIDIA's container runtime may be on a host: of the package, and of the GPU Operator.
pub(super) const NVIDIA_RUNTIME: [&str; 2] = [
    "/etc/nvidia-container-runtime/config.toml",
    "/usr/local/nvidia/toolkit/.config/nvidia-container-runtime/config.toml",
];

/// What the configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CdiSetting {
    /// CDI is on.
    On {
        /// Why that is known.
        reason: String,
    },
    /// It was switched off.
    Off {
        /// Where.
        file: PathBuf,
    },
    /// There is a configuration that does not say.
    Unset {
        /// The file.
        file: PathBuf,
    },
    /// No configuration was found.
    Unseen,
}

/// What these files say: those of containerd, in the order in which it reads them, and whether there are any of CRI-O.
#[must_use]
pub fn cdi_setting(containerd: &[(PathBuf, String)], has_crio: bool) -> CdiSetting {
    // A later file wins over an earlier one.
    let said = containerd.iter().rev().find_map(|(file, text)| Some((file, value(text, "enable_cdi")?)));
    let version = containerd.iter().find_map(|(file, text)| Some((file, value(text, "version")?)));
    match (said, version, containerd.first()) {
        (Some((file, "true")), ..) => {
            CdiSetting::On { reason: format!("{} says enable_cdi = true", file.display()) }
        }
        (Some((file, "false")), ..) => CdiSetting::Off { file: file.clone() },
        // Only containerd 2 reads version 3, and it has CDI on by default.
        (_, Some((file, "3")), _) => CdiSetting::On {
            reason: format!("{} is a configuration of containerd 2, which has it on", file.display()),
        },
        (_, _, Some((file, _))) => CdiSetting::Unset { file: file.clone() },
        (_, _, None) if has_crio => CdiSetting::On { reason: "CRI-O has it on".to_owned() },
        (_, _, None) => CdiSetting::Unseen,
    }
}

/// The first of these configurations of NVIDIA's runtime that names a mode, and the mode.
#[must_use]
pub fn nvidia_mode(files: &[(PathBuf, String)]) -> Option<(PathBuf, String)> {
    files.iter().find_map(|(file, text)| {
        let sections = text
            .split("\n[")
            .find(|it| it.trim_start_matches('[').starts_with("nvidia-container-runtime]"))?;
        let mode = value(sections, "mode")?.trim_matches('"');
        Some((file.clone(), mode.to_owned()))
    })
}

/// The value of the first line that sets a key.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split('#').next()?.split_once('=')?;
        (name.trim() == key).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(texts: &[&str]) -> CdiSetting {
        let files = texts.iter().enumerate().map(|(i, it)| (PathBuf::from(i.to_string()), (*it).to_owned()));
        cdi_setting(&files.collect::<Vec<_>>(), false)
    }

    #[test]
    fn what_containerds_files_say_of_cdi_is_found() {
        let on = |it: &CdiSetting| matches!(it, CdiSetting::On { .. });
        assert!(on(&setting(&["version = 2\n[plugins.\"x\"]\n  enable_cdi = true # on\n"])));
        assert!(on(&setting(&["version = 3\n"])));
        assert_eq!(setting(&["version = 3\n", "enable_cdi = false"]), CdiSetting::Off { file: "1".into() });
        assert!(on(&setting(&["enable_cdi = false", "enable_cdi = true"])), "the later file wins");
        let commented = setting(&["version = 2\n# enable_cdi = true\n"]);
        assert_eq!(commented, CdiSetting::Unset { file: "0".into() });
    }

    #[test]
    fn the_mode_of_nvidias_runtime_is_that_of_its_own_section() {
        let mode = |text: &str| nvidia_mode(&[("x".into(), text.to_owned())]).map(|it| it.1);
        let real = "disable-require = false\n\n[nvidia-container-cli]\nmode = \"other\"\n\n[nvidia-container-runtime]\n\
                    debug = \"x\"\nmode = \"legacy\" # by hand\n\n[nvidia-container-runtime.modes.cdi]\nmode = \"no\"\n";
        assert_eq!(mode(real).as_deref(), Some("legacy"));
        assert_eq!(mode("[nvidia-container-runtime]\nmode = \"auto\"\n").as_deref(), Some("auto"));
        assert_eq!(mode("[nvidia-container-runtime]\n# mode = \"legacy\"\n"), None);
        assert_eq!(mode("[nvidia-container-runtime.modes.cdi]\nmode = \"legacy\"\n"), None);
        assert_eq!((mode(""), nvidia_mode(&[])), (None, None));
    }

    #[test]
    fn a_runtime_that_is_not_seen_is_not_judged() {
        assert_eq!(cdi_setting(&[], false), CdiSetting::Unseen);
        assert!(matches!(cdi_setting(&[], true), CdiSetting::On { .. }));
        assert_eq!(setting(&["\u{0}garbage = = ="]), CdiSetting::Unset { file: "0".into() });
    }
}
