//! The hooks that make mounted libraries usable in a container, and what they need on the host.
//!
//! The container runtime runs a hook on the host, so its program must be there: this driver brings none. A hook is named
//! only if the host's program has its subcommand, because one that fails keeps the container from starting. What then does
//! not work is reported instead.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::cdi::device::name_error;
use crate::cdi::hook_program::{HookProgram, HookProgramError};
use crate::cdi::libraries::Link;
use crate::cdi::missing::{Missing, MissingPart, Severity};
use crate::cdi::root::Root;
use crate::cdi::spec::{Hook, SpecError};

/// Where the container toolkit's packages install the hook program.
pub const DEFAULT_HOOK: &str = "/usr/bin/nvidia-cdi-hook";
/// What `nvidia-cdi-hook update-ldcache` runs by default; it prefers `<this>.real`, as Ubuntu has it.
pub const DEFAULT_LDCONFIG: &str = "/sbin/ldconfig";
/// The first version of NVIDIA Container Toolkit that has every hook without which some containers do not work: the
/// greatest [`HookKind::since`] of those. From it on all hooks take the arguments that this driver gives them.
pub const MINIMUM_TOOLKIT: &str = "1.17.5";

/// The programs that hooks need, and which hooks are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookSettings {
    /// The host's root directory as this process sees it, or as much of it as is mounted.
    pub host_root: PathBuf,
    /// Host path of `nvidia-cdi-hook`.
    pub program: String,
    /// Host path of `ldconfig`.
    pub ldconfig: String,
    /// Hooks that are never named in a CDI spec.
    pub disabled: DisabledHooks,
}

/// The hooks of `nvidia-cdi-hook` that compute needs, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookKind {
    /// Makes links such as `libcuda.so`.
    CreateSymlinks,
    /// Puts the image's CUDA compatibility libraries first where they are newer.
    EnableCudaCompat,
    /// Runs `ldconfig` for the container.
    UpdateLdcache,
    /// Keeps the driver's tools from making device nodes in the container.
    DisableDeviceNodeModification,
}

/// Hooks that the operator does not want.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DisabledHooks(pub BTreeSet<HookKind>);

/// What the hooks are about: found by the library search.
#[derive(Debug)]
pub(super) struct HookInput<'a> {
    pub(super) version: &'a str,
    /// Links to make.
    pub(super) links: &'a [Link],
    /// Directories of mounted libraries.
    pub(super) folders: &'a [String],
}

/// The hooks of a spec, what they lack, and the host's files on which both depend.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    pub(super) hooks: Vec<Hook>,
    pub(super) missing: Vec<Missing>,
    pub(super) watched: Vec<String>,
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

    /// The first version of NVIDIA Container Toolkit whose `nvidia-cdi-hook` has it in a form that works:
    /// `create-symlinks` of 1.17.0 fails where the image has another link of that name.
    pub fn since(self) -> &'static str {
        match self {
            Self::CreateSymlinks => "1.17.1",
            Self::EnableCudaCompat => MINIMUM_TOOLKIT,
            Self::UpdateLdcache => "1.16.0",
            Self::DisableDeviceNodeModification => "1.18.0",
        }
    }

    /// How bad it is for containers to go without it.
    fn severity(self) -> Severity {
        match self {
            Self::EnableCudaCompat | Self::UpdateLdcache => Severity::Impaired,
            Self::CreateSymlinks | Self::DisableDeviceNodeModification => Severity::Degraded,
        }
    }

    /// What its absence means for containers.
    fn consequence(self) -> &'static str {
        match self {
            Self::CreateSymlinks => "links such as libcuda.so are mounted as files",
            Self::EnableCudaCompat => {
                "images that bring CUDA compatibility libraries for a newer CUDA than the NVIDIA driver's do not use them"
            }
            Self::UpdateLdcache => {
                "CUDA works only in images whose loader searches the directories that this host uses"
            }
            Self::DisableDeviceNodeModification => {
                "tools such as nvidia-smi may make nodes of other GPUs in a container's /dev, which the container cannot open"
            }
        }
    }
}

impl FromStr for HookKind {
    type Err = SpecError;

    /// Reads what [`HookKind::name`] writes.
    fn from_str(name: &str) -> Result<Self, SpecError> {
        let rule = "create-symlinks, enable-cuda-compat, update-ldcache or disable-device-node-modification";
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| name_error("hook", name, rule))
    }
}

impl FromStr for DisabledHooks {
    type Err = SpecError;

    /// Reads names separated by commas; nothing is none.
    fn from_str(list: &str) -> Result<Self, SpecError> {
        let names = list.split(',').map(str::trim).filter(|it| !it.is_empty());
        names.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for DisabledHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(|it| it.name()).collect::<Vec<_>>().join(","))
    }
}

impl Default for HookSettings {
    /// The usual places, seen from a process that has the host's root as its own.
    fn default() -> Self {
        Self {
            host_root: "/".into(),
            program: DEFAULT_HOOK.to_owned(),
            ldconfig: DEFAULT_LDCONFIG.to_owned(),
            disabled: DisabledHooks::default(),
        }
    }
}

impl HookSettings {
    pub(super) fn host(&self) -> Root {
        Root::new(&self.host_root, "/")
    }

    /// The hooks that the host can run, and what is missing for the others.
    pub(super) fn hooks(&self, input: &HookInput<'_>) -> Hooks {
        let wanted: Vec<HookKind> =
            HookKind::ALL.into_iter().filter(|it| !self.disabled.0.contains(it)).collect();
        let names: Vec<&str> = wanted.iter().map(|it| it.name()).collect();
        let program = HookProgram::read(&self.host(), &self.program, &names);
        let mut all = Hooks { watched: program.watched, ..Hooks::default() };
        let known = match program.names {
            Ok(names) => Some(names),
            Err(HookProgramError::NotFound) => {
                all.missing.push(self.missing_program(&self.program));
                return all;
            }
            Err(error) => {
                all.missing.push(self.unknown_program(&self.program, &error));
                None
            }
        };
        for kind in wanted {
            let has = |names: &BTreeSet<String>| names.contains(kind.name());
            match &known {
                Some(names) if !has(names) => {
                    all.missing.push(self.missing_subcommand(&self.program, kind));
                    continue;
                }
                None if kind == HookKind::DisableDeviceNodeModification => continue,
                _ => {}
            }
            match self.args(kind, input) {
                Ok(None) => {}
                Ok(Some(args)) => all.hooks.push(self.hook(kind, args)),
                Err(missing) => all.missing.push(missing),
            }
        }
        if !self.disabled.0.contains(&HookKind::UpdateLdcache) {
            all.watched.extend([self.ldconfig.clone(), format!("{}.real", self.ldconfig)]);
        }
        all
    }

    /// The arguments of a hook behind its name; `None` where there is nothing for it to do.
    fn args(&self, kind: HookKind, input: &HookInput<'_>) -> Result<Option<Vec<String>>, Missing> {
        Ok(Some(match kind {
            HookKind::CreateSymlinks if input.links.is_empty() => return Ok(None),
            HookKind::CreateSymlinks => {
                let links = input.links.iter().map(|link| format!("{}::{}", link.target, link.in_container));
                links.flat_map(|link| ["--link".to_owned(), link]).collect()
            }
            HookKind::EnableCudaCompat => vec![format!("--host-driver-version={}", input.version)],
            HookKind::UpdateLdcache => match self.missing_ldconfig() {
                None => self.ldcache_args(input.folders),
                Some(missing) => return Err(missing),
            },
            HookKind::DisableDeviceNodeModification => Vec::new(),
        }))
    }

    /// Leaves out the hooks of an operator's file that the operator has disabled, and those whose subcommands the host's
    /// program does not have.
    pub(super) fn usable(&self, hooks: Vec<Hook>) -> Hooks {
        let mut all = Hooks::default();
        for hook in hooks {
            let kind = subcommand(&hook).and_then(|it| it.parse::<HookKind>().ok());
            if kind.is_some_and(|it| self.disabled.0.contains(&it)) {
                continue;
            }
            match self.lacks(&hook, &mut all.watched) {
                None => all.hooks.push(hook),
                Some(missing) => {
                    // The file says that the hook is to run, so that a container without its program would not start.
                    if missing.severity == Severity::Fatal {
                        all.hooks.push(hook);
                    }
                    if !all.missing.contains(&missing) {
                        all.missing.push(missing);
                    }
                }
            }
        }
        all
    }

    /// What a hook of an operator's file lacks on the host.
    fn lacks(&self, hook: &Hook, watched: &mut Vec<String>) -> Option<Missing> {
        let name = subcommand(hook);
        let program = HookProgram::read(&self.host(), &hook.path, name.as_slice());
        watched.extend(program.watched);
        match program.names {
            Err(HookProgramError::NotFound) => Some(Missing {
                severity: Severity::Fatal,
                consequence: "the common edits file names it, so that no container would start",
                ..self.missing_program(&hook.path)
            }),
            // What is not known is left to the operator.
            Err(_) => None,
            Ok(names) => {
                let name = name.filter(|it| !names.contains(*it))?;
                Some(match name.parse::<HookKind>() {
                    Ok(kind) => self.missing_subcommand(&hook.path, kind),
                    Err(_) => lacks_subcommand(&hook.path, name),
                })
            }
        }
    }

    fn missing_program(&self, program: &str) -> Missing {
        Missing {
            part: MissingPart::Hooks,
            severity: Severity::Impaired,
            what: format!(
                "hook program {program:?} not found on the host (looked at {:?})",
                self.host().here(program)
            ),
            consequence: "containers get the driver's libraries without a loader cache that lists them, so that \
                          CUDA works only in images whose loader searches the directories that this host uses",
            remedy: install_toolkit(),
        }
    }

    fn unknown_program(&self, program: &str, error: &HookProgramError) -> Missing {
        Missing {
            part: MissingPart::Hooks,
            severity: Severity::Impaired,
            what: format!("hook program {program:?} (looked at {:?}) {error}", self.host().here(program)),
            consequence: "its subcommands are not known, so that only the hooks of the minimum version are used, and no \
                          container starts if the program is older",
            remedy: format!(
                "set --cdi-hook (value cdiHook) to the program itself, of NVIDIA Container Toolkit {MINIMUM_TOOLKIT} or \
                 later, in a directory that the driver sees (value hostDirectories)"
            ),
        }
    }

    fn missing_subcommand(&self, program: &str, kind: HookKind) -> Missing {
        Missing {
            severity: kind.severity(),
            consequence: kind.consequence(),
            remedy: format!(
                "install NVIDIA Container Toolkit {} or later on the host, or accept it with --disable-hooks={} (value \
                 disabledHooks)",
                kind.since(),
                kind.name()
            ),
            ..lacks_subcommand(program, kind.name())
        }
    }

    fn missing_ldconfig(&self) -> Option<Missing> {
        let real = format!("{}.real", self.ldconfig);
        if [&real, &self.ldconfig].iter().any(|path| self.host().find_program(path).is_some()) {
            return None;
        }
        Some(Missing {
            part: MissingPart::Hooks,
            severity: Severity::Impaired,
            what: format!(
                "{:?} not found on the host (looked at {:?}), which the hook update-ldcache runs",
                self.ldconfig,
                self.host().here(&self.ldconfig)
            ),
            consequence: HookKind::UpdateLdcache.consequence(),
            remedy: "make /sbin of the host visible there (value hostDirectories of the chart), or link its ldconfig to \
                     /sbin/ldconfig"
                .to_owned(),
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

/// The subcommand that a hook calls, if its program is `nvidia-cdi-hook`.
fn subcommand(hook: &Hook) -> Option<&str> {
    let program = hook.path.rsplit('/').next().unwrap_or_default();
    hook.args.get(1).filter(|_| program.starts_with("nvidia-cdi-hook")).map(String::as_str)
}

fn lacks_subcommand(program: &str, name: &str) -> Missing {
    Missing {
        part: MissingPart::Hooks,
        severity: Severity::Impaired,
        what: format!("{program:?} has no subcommand {name}, so that CDI specs leave this hook out"),
        consequence: "containers start without what the hook does",
        remedy: "make the common edits file with the nvidia-ctk that belongs to this program".to_owned(),
    }
}

/// What to do where the hook program is not there.
#[must_use]
pub fn install_toolkit() -> String {
    format!(
        "install NVIDIA Container Toolkit {MINIMUM_TOOLKIT} or later on the host, of which the package \
         nvidia-container-toolkit-base is enough \
         (https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/); where the GPU Operator has put it, name it: \
         --cdi-hook /usr/local/nvidia/toolkit/nvidia-cdi-hook (value cdiHook)"
    )
}

#[cfg(test)]
mod tests;
