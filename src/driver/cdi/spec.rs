//! The part of the Container Device Interface that this driver writes, as plain data.
//!
//! Field names and rules are those of the CDI specification 1.1.0 (`SPEC.md` and `specs-go/config.go` of
//! container-device-interface). Left out on purpose: `netDevices` and `intelRdt`, which no GPU needs. A file that
//! uses them, or any other unknown field, is refused rather than half understood.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// One CDI spec file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Spec {
    /// The CDI version that the file needs; see [`Spec::with_lowest_version`].
    pub cdi_version: String,
    /// `<vendor>/<class>`.
    pub kind: String,
    /// Free text for people and tools; runtimes ignore it. Needs version 0.6.0.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// At least one device.
    pub devices: Vec<Device>,
    /// Applied once to a container that asks for any device of this file.
    #[serde(default, skip_serializing_if = "ContainerEdits::is_empty")]
    pub container_edits: ContainerEdits,
}

/// One device that a container can ask for by `<kind>=<name>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Device {
    /// Unique within the file.
    pub name: String,
    /// As in [`Spec::annotations`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What the device adds to a container; must not be empty.
    pub container_edits: ContainerEdits,
}

/// What a container runtime changes in a container's OCI spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ContainerEdits {
    /// `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Device nodes made in the container, with the cgroup rule that lets it use them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<DeviceNode>,
    /// Bind mounts from the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Programs of the host that the OCI runtime runs, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Extra groups of the container's process. Needs version 0.7.0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// A device node in the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DeviceNode {
    /// Where the node is in the container.
    pub path: String,
    /// Where it is on the host, if elsewhere. Needs version 0.5.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// `b`, `c`, `u` or `p`. With `major` it makes the runtime create the node without looking at the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// Device major number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Device minor number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Permission bits, written in decimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// Cgroup permissions out of `r`, `w`, `m`; absent means all three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// Owner in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// A bind mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mount {
    /// Path on the host.
    pub host_path: String,
    /// Path in the container.
    pub container_path: String,
    /// Mount options, as for mount(8).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// File system type. Needs version 0.4.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
}

/// A program of the host that the OCI runtime runs for the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hook {
    /// When it runs; one of the OCI hook names, `createContainer` for all of NVIDIA's.
    pub hook_name: String,
    /// Path on the host.
    pub path: String,
    /// Arguments, the program's own name first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// Why a CDI spec, or a name in it, is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// A name that would end in a path or a CDI identifier breaks that place's rules.
    #[error("{what} {value:?} can't be used in CDI: it must be {rule}")]
    Name {
        /// What was named, for example `claim UID`.
        what: &'static str,
        /// The offending text, shortened.
        value: String,
        /// What would be accepted.
        rule: &'static str,
    },
    /// The content of a spec breaks a rule of the CDI specification.
    #[error("CDI spec is invalid: {0}")]
    Content(String),
}

impl Spec {
    /// Sets the lowest CDI version that has every field in use, so that the oldest possible runtime can read it.
    pub fn with_lowest_version(mut self) -> Self {
        self.cdi_version = self.lowest_version().to_owned();
        self
    }

    /// The table "released versions" of the CDI `SPEC.md`, newest first.
    fn lowest_version(&self) -> &'static str {
        let all_edits = || self.devices.iter().map(|d| &d.container_edits).chain([&self.container_edits]);
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let starts_with_letter = |d: &Device| d.name.starts_with(|c: char| c.is_ascii_alphabetic());

        if all_edits().any(|e| !e.additional_gids.is_empty()) {
            "0.7.0"
        } else if class.contains('.')
            || !self.annotations.is_empty()
            || self.devices.iter().any(|d| !d.annotations.is_empty())
        {
            "0.6.0"
        } else if !self.devices.iter().all(starts_with_letter)
            || all_edits().any(|e| e.device_nodes.iter().any(|n| n.host_path.is_some()))
        {
            "0.5.0"
        } else if all_edits().any(|e| e.mounts.iter().any(|m| m.r#type.is_some())) {
            "0.4.0"
        } else {
            "0.3.0"
        }
    }

    /// Checks the rules that a runtime's CDI loader checks, so that a bad spec fails here and not at container start.
    pub fn validate(&self) -> Result<(), SpecError> {
        let invalid = |text: &str| Err(SpecError::Content(text.to_owned()));
        if self.devices.is_empty() {
            return invalid("it has no device");
        }
        let mut names = BTreeSet::new();
        for device in &self.devices {
            if !names.insert(&device.name) {
                return invalid(&format!("it has two devices named {:?}", device.name));
            }
            if device.container_edits.is_empty() {
                return invalid(&format!("device {:?} changes nothing in a container", device.name));
            }
            device.container_edits.validate()?;
        }
        self.container_edits.validate()
    }
}

impl ContainerEdits {
    /// Whether they change nothing.
    pub fn is_empty(&self) -> bool {
        self.env.is_empty()
            && self.device_nodes.is_empty()
            && self.mounts.is_empty()
            && self.hooks.is_empty()
            && self.additional_gids.is_empty()
    }

    /// Checks what the CDI loaders check, and that every path is absolute.
    pub fn validate(&self) -> Result<(), SpecError> {
        validate_env(&self.env)?;
        for node in &self.device_nodes {
            validate_path("device node", &node.path)?;
            node.host_path.iter().try_for_each(|p| validate_path("device node", p))?;
            if let Some(kind) = node.r#type.as_deref().filter(|kind| !["b", "c", "u", "p", ""].contains(kind))
            {
                return Err(SpecError::Content(format!("device node {:?} has type {kind:?}", node.path)));
            }
            let permissions = node.permissions.as_deref().unwrap_or_default();
            if permissions != "none" && !permissions.chars().all(|c| "rwm".contains(c)) {
                let text = format!("device node {:?} has permissions {permissions:?}", node.path);
                return Err(SpecError::Content(text));
            }
        }
        for mount in &self.mounts {
            validate_path("mount", &mount.host_path)?;
            validate_path("mount", &mount.container_path)?;
        }
        for hook in &self.hooks {
            validate_path("hook", &hook.path)?;
            validate_env(&hook.env)?;
            if !HOOK_NAMES.contains(&hook.hook_name.as_str()) {
                return Err(SpecError::Content(format!("hook {:?} runs at {:?}", hook.path, hook.hook_name)));
            }
        }
        Ok(())
    }
}

/// The OCI runtime specification's hook names.
const HOOK_NAMES: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

fn validate_env(env: &[String]) -> Result<(), SpecError> {
    match env.iter().find(|e| e.find('=').is_none_or(|at| at == 0)) {
        Some(bad) => Err(SpecError::Content(format!("environment entry {bad:?} is not NAME=value"))),
        None => Ok(()),
    }
}

fn validate_path(what: &str, path: &str) -> Result<(), SpecError> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(())
    } else {
        Err(SpecError::Content(format!("{what} path {path:?} is not absolute")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, edits: ContainerEdits) -> Spec {
        let device = Device { name: name.into(), container_edits: edits, ..Device::default() };
        Spec { kind: "example.com/claim".into(), devices: vec![device], ..Spec::default() }
    }

    fn node(path: &str) -> ContainerEdits {
        let node = DeviceNode { path: path.into(), ..DeviceNode::default() };
        ContainerEdits { device_nodes: vec![node], ..ContainerEdits::default() }
    }

    #[test]
    fn the_version_is_the_lowest_that_has_the_fields_in_use() {
        let check = |change: fn(&mut Spec), version: &str| {
            let mut spec = spec("gpu", node("/dev/nvidia0"));
            change(&mut spec);
            assert_eq!(spec.with_lowest_version().cdi_version, version);
        };
        check(|_| (), "0.3.0");
        check(
            |s| s.container_edits.mounts.push(Mount { r#type: Some("bind".into()), ..Mount::default() }),
            "0.4.0",
        );
        check(|s| s.devices[0].name = "0gpu".into(), "0.5.0");
        check(|s| s.devices[0].container_edits.device_nodes[0].host_path = Some("/x".into()), "0.5.0");
        check(|s| s.kind = "example.com/claim.x".into(), "0.6.0");
        check(|s| s.annotations = [("a".into(), "b".into())].into(), "0.6.0");
        check(|s| s.devices[0].annotations = [("a".into(), "b".into())].into(), "0.6.0");
        check(|s| s.container_edits.additional_gids = vec![44], "0.7.0");
    }

    #[test]
    fn what_a_runtime_would_refuse_is_refused_here() {
        let check = |change: fn(&mut Spec), text: &str| {
            let mut spec = spec("gpu", node("/dev/nvidia0"));
            spec.validate().unwrap();
            change(&mut spec);
            let error = spec.validate().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        };
        check(|s| s.devices.clear(), "no device");
        check(|s| s.devices.push(s.devices[0].clone()), "two devices named \"gpu\"");
        check(|s| s.devices[0].container_edits = ContainerEdits::default(), "changes nothing");
        check(|s| s.container_edits.env.push("=x".into()), "NAME=value");
        check(|s| s.container_edits.env.push("x".into()), "NAME=value");
        check(|s| s.container_edits = node("dev/nvidia0"), "not absolute");
        check(|s| s.devices[0].container_edits.device_nodes[0].r#type = Some("x".into()), "type \"x\"");
        check(|s| s.devices[0].container_edits.device_nodes[0].permissions = Some("rx".into()), "\"rx\"");
        check(|s| s.container_edits.mounts.push(Mount::default()), "mount path \"\"");
        let hook = |name: &str| Hook { hook_name: name.into(), path: "/bin/true".into(), ..Hook::default() };
        let mut spec = spec("gpu", node("/dev/nvidia0"));
        spec.container_edits.hooks = vec![hook("createContainer")];
        spec.validate().unwrap();
        spec.container_edits.hooks = vec![hook("sometime")];
        assert!(spec.validate().unwrap_err().to_string().contains("sometime"));
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let text = r#"{"env": ["A=b"], "netDevices": []}"#;
        assert!(serde_json::from_str::<ContainerEdits>(text).unwrap_err().to_string().contains("netDevices"));
    }
}
