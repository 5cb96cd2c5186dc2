//! The hooks that make mounted libraries usable in a container, and what they need on the host.
//!
//! The container runtime runs a hook on the host, so its program must be there: this driver brings none. Without the
//! hooks nothing is emitted that would fail at container start; what then does not work is reported instead.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use crate::cdi::device::name_error;
use crate::cdi::libraries::Link;
use crate::cdi::missing::{Missing, Severity};
use crate::cdi::root::Root;
use crate::cdi::spec::{Hook, SpecError};

/// Where the container toolkit's packages install the hook program.
pub const DEFAULT_HOOK: &str = "/usr/bin/nvidia-cdi-hook";
/// What `nvidia-cdi-hook update-ldcache` runs unless told otherwise; it prefers `<this>.real`, as Ubuntu has it.
pub const DEFAULT_LDCONFIG: &str = "/sbin/ldconfig";

/// The programs that hooks need, and which hooks are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookSettings {
    /// The host's root directory as this process sees it, or as much of it as is mounted.
    pub host_root: PathBuf,
    /// Host path of `nvidia-cdi-hook`.
    pub program: String,
    /// Host path of `ldconfig`.
    pub ldconfig: String,
    /// Hooks that are never emitted, for a toolkit too old to know them.
    pub disabled: BTreeSet<HookKind>,
}

/// The hooks of `nvidia-cdi-hook` that compute needs, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookKind {
    /// Makes links such as `libcuda.so`.
    CreateSymlinks,
    /// Puts the image's CUDA compatibility libraries first where they are newer. Since toolkit 1.17.5.
    EnableCudaCompat,
    /// Runs `ldconfig` for the container.
    UpdateLdcache,
    /// Keeps the driver's tools from making device nodes in the container. Since toolkit 1.17.8.
    DisableDeviceNodeModification,
}

/// What the hooks are about: found by the library search.
#[derive(Debug)]
pub(super) struct HookInput<'a> {
    pub(super) version: &'a str,
    /// Links to make.
    pub(super) links: &'a [Link],
    /// Directories of mounted libraries.
    pub(super) folders: &'a [String],
}

impl HookKind {
    const ALL: [Self; 4] = [
        Self::CreateSymlinks,
        Self::EnableCudaCompat,
        Self::UpdateLdcache,
        Self::DisableDeviceNodeModification,
    ];

    /// The hook's name on the command line of `nvidia-cdi-hook`.
    pub fn name(self) -> &'static str {
        match self {
            Self::CreateSymlinks => "create-symlinks",
            Self::EnableCudaCompat => "enable-cuda-compat",
            Self::UpdateLdcache => "update-ldcache",
            Self::DisableDeviceNodeModification => "disable-device-node-modification",
        }
    }
}

impl FromStr for HookKind {
    type Err = SpecError;

    /// Reads what [`HookKind::name`] writes, for a flag that disables hooks.
    fn from_str(name: &str) -> Result<Self, SpecError> {
        let rule = "create-symlinks, enable-cuda-compat, update-ldcache or disable-device-node-modification";
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| name_error("hook", name, rule))
    }
}

impl Default for HookSettings {
    /// The usual places, seen from a process that has the host's root as its own.
    fn default() -> Self {
        Self {
            host_root: "/".into(),
            program: DEFAULT_HOOK.to_owned(),
            ldconfig: DEFAULT_LDCONFIG.to_owned(),
            disabled: BTreeSet::new(),
        }
    }
}

impl HookSettings {
    pub(super) fn host(&self) -> Root {
        Root::new(&self.host_root, "/")
    }

    /// The hooks whose programs the host has, and what is missing for the others.
    pub(super) fn hooks(&self, input: &HookInput<'_>) -> (Vec<Hook>, Vec<Missing>) {
        if let Some(missing) = self.missing_program(&self.program) {
            return (Vec::new(), vec![missing]);
        }
        let mut hooks = Vec::new();
        let mut missing = Vec::new();
        let mut add = |kind: HookKind, args: Vec<String>| {
            if !self.disabled.contains(&kind) {
                hooks.push(self.hook(kind, args));
            }
        };
        if !input.links.is_empty() {
            let links = input.links.iter().map(|link| format!("{}::{}", link.target, link.in_container));
            add(HookKind::CreateSymlinks, links.flat_map(|link| ["--link".to_owned(), link]).collect());
        }
        add(HookKind::EnableCudaCompat, vec![format!("--host-driver-version={}", input.version)]);
        match self.missing_ldconfig() {
            None => add(HookKind::UpdateLdcache, self.ldcache_args(input.folders)),
            Some(ldconfig) if !self.disabled.contains(&HookKind::UpdateLdcache) => missing.push(ldconfig),
            Some(_) => {}
        }
        add(HookKind::DisableDeviceNodeModification, Vec::new());
        (hooks, missing)
    }

    /// Reports a hook program that the host lacks.
    pub(super) fn missing_program(&self, program: &str) -> Option<Missing> {
        if self.host().find_program(program).is_some() {
            return None;
        }
        Some(Missing {
            severity: Severity::Degraded,
            what: format!(
                "hook program {program:?} not found on the host (looked at {:?})",
                self.host().here(program)
            ),
            consequence: "containers get the driver's libraries without a loader cache that lists them, so that \
                          CUDA works only in images whose loader searches the directories that this host uses",
            remedy: "install nvidia-container-toolkit-base on the host, or set the path of nvidia-cdi-hook",
        })
    }

    fn missing_ldconfig(&self) -> Option<Missing> {
        let real = format!("{}.real", self.ldconfig);
        if [&real, &self.ldconfig].iter().any(|path| self.host().find_program(path).is_some()) {
            return None;
        }
        Some(Missing {
            severity: Severity::Degraded,
            what: format!(
                "{:?} not found on the host (looked at {:?})",
                self.ldconfig,
                self.host().here(&self.ldconfig)
            ),
            consequence: "the hook update-ldcache is left out, so that CUDA works only in images whose loader searches \
                          the directories that this host uses",
            remedy: "make /sbin of the host visible there (value hostDirectories of the chart), or link its ldconfig to /sbin/ldconfig",
        })
    }

    fn ldcache_args(&self, folders: &[String]) -> Vec<String> {
        let own = Some(self.ldconfig.clone()).filter(|path| path != DEFAULT_LDCONFIG);
        let own = own.into_iter().flat_map(|path| ["--ldconfig-path".to_owned(), path]);
        own.chain(folders.iter().flat_map(|dir| ["--folder".to_owned(), dir.clone()])).collect()
    }

    fn hook(&self, kind: HookKind, args: Vec<String>) -> Hook {
        Hook {
            hook_name: "createContainer".to_owned(),
            path: self.program.clone(),
            args: ["nvidia-cdi-hook", kind.name()].map(str::to_owned).into_iter().chain(args).collect(),
            env: vec!["NVIDIA_CTK_DEBUG=false".to_owned()],
            timeout: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn host_with(programs: &[&str]) -> (tempfile::TempDir, HookSettings) {
        let dir = tempfile::tempdir().unwrap();
        for program in programs {
            let path = dir.path().join(&program[1..]);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let settings = HookSettings { host_root: dir.path().into(), ..HookSettings::default() };
        (dir, settings)
    }

    fn names(hooks: &[Hook]) -> Vec<&str> {
        hooks.iter().map(|hook| hook.args[1].as_str()).collect()
    }

    fn input<'a>(links: &'a [Link], folders: &'a [String]) -> HookInput<'a> {
        HookInput { version: "550.54.15", links, folders }
    }

    #[test]
    fn all_hooks_run_in_order_with_their_arguments() {
        let (_dir, settings) = host_with(&[DEFAULT_HOOK, DEFAULT_LDCONFIG]);
        let [target, in_container] = ["libcuda.so.1", "/usr/lib64/libcuda.so"].map(str::to_owned);
        let links = [Link { target, in_container, resolved: String::new() }];
        let folders = ["/usr/lib64".to_owned(), "/opt/lib".to_owned()];
        let (hooks, missing) = settings.hooks(&input(&links, &folders));
        assert_eq!(missing, []);
        let lines: Vec<String> = hooks.iter().map(|hook| hook.args.join(" ")).collect();
        assert_eq!(
            lines,
            [
                "nvidia-cdi-hook create-symlinks --link libcuda.so.1::/usr/lib64/libcuda.so",
                "nvidia-cdi-hook enable-cuda-compat --host-driver-version=550.54.15",
                "nvidia-cdi-hook update-ldcache --folder /usr/lib64 --folder /opt/lib",
                "nvidia-cdi-hook disable-device-node-modification",
            ]
        );
        assert!(hooks.iter().all(|hook| hook.path == DEFAULT_HOOK && hook.hook_name == "createContainer"));
    }

    #[test]
    fn without_the_hook_program_there_is_no_hook_and_one_report() {
        let (_dir, settings) = host_with(&[DEFAULT_LDCONFIG]);
        let (hooks, missing) = settings.hooks(&input(&[], &[]));
        assert_eq!(hooks, []);
        assert_eq!(missing.len(), 1);
        let text = missing[0].to_string();
        assert!(text.contains(DEFAULT_HOOK) && text.contains("nvidia-container-toolkit-base"), "{text}");
    }

    #[test]
    fn a_hook_program_that_nobody_may_execute_is_missing() {
        let (dir, settings) = host_with(&[DEFAULT_HOOK, DEFAULT_LDCONFIG]);
        fs::set_permissions(dir.path().join(&DEFAULT_HOOK[1..]), fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(settings.hooks(&input(&[], &[])).0, []);
    }

    #[test]
    fn without_ldconfig_only_its_hook_is_left_out() {
        let (_dir, mut settings) = host_with(&[DEFAULT_HOOK]);
        let (hooks, missing) = settings.hooks(&input(&[], &[]));
        assert_eq!(names(&hooks), ["enable-cuda-compat", "disable-device-node-modification"]);
        assert!(missing[0].what.contains(DEFAULT_LDCONFIG), "{missing:?}");
        settings.disabled.insert(HookKind::UpdateLdcache);
        assert_eq!(settings.hooks(&input(&[], &[])).1, []);
    }

    #[test]
    fn ldconfig_may_be_the_one_behind_a_wrapper_or_elsewhere() {
        let (_dir, settings) = host_with(&[DEFAULT_HOOK, "/sbin/ldconfig.real"]);
        let (hooks, missing) = settings.hooks(&input(&[], &["/lib".to_owned()]));
        assert_eq!(missing, []);
        assert_eq!(hooks[1].args[2..], ["--folder", "/lib"]);

        let (_dir, mut settings) = host_with(&[DEFAULT_HOOK, "/opt/ldconfig"]);
        settings.ldconfig = "/opt/ldconfig".into();
        let (hooks, _) = settings.hooks(&input(&[], &["/lib".to_owned()]));
        assert_eq!(hooks[1].args[2..], ["--ldconfig-path", "/opt/ldconfig", "--folder", "/lib"]);
    }

    #[test]
    fn every_hook_is_known_by_its_name_and_no_other() {
        for kind in HookKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        let error = "chmod".parse::<HookKind>().unwrap_err().to_string();
        assert!(error.contains("chmod") && error.contains("update-ldcache"), "{error}");
    }

    #[test]
    fn disabled_hooks_are_not_emitted() {
        let (_dir, mut settings) = host_with(&[DEFAULT_HOOK, DEFAULT_LDCONFIG]);
        settings.disabled = [HookKind::EnableCudaCompat, HookKind::DisableDeviceNodeModification].into();
        let (hooks, _) = settings.hooks(&input(&[], &[]));
        assert_eq!(names(&hooks), ["update-ldcache"]);
    }
}
