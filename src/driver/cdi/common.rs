//! The common part of every spec: discovered, or taken from a file that the operator gives.

use std::io;
use std::path::{Path, PathBuf};

use crate::cdi::driver_root::{self, DriverRoot};
use crate::cdi::group::group_of_module;
use crate::cdi::hooks::HookSettings;
use crate::cdi::missing::{Missing, Severity};
use crate::cdi::root::{Directories, Root, Stamp};
use crate::cdi::spec::{ContainerEdits, Spec, SpecError};
use crate::files::read_bounded;

/// `nvidia-ctk cdi generate` writes some 20 KiB for a machine with 8 GPUs.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// Makes the older, hook-based NVIDIA runtime leave the container alone.
const VOID: &str = "NVIDIA_VISIBLE_DEVICES";

/// The edits that every container with a claim gets, and what is known to be wrong with them.
///
/// Making them reads many directories, so keep them, and discover them again when [`CommonEdits::is_current`] says no:
/// a driver upgrade exchanges the libraries under a running node.
#[derive(Debug, Clone)]
pub struct CommonEdits {
    edits: ContainerEdits,
    missing: Vec<Missing>,
    watched: Vec<(Root, String, Option<Stamp>)>,
    /// `/proc`, and what was read there; it changes when the module is loaded again.
    kernel: Option<(PathBuf, FromKernel)>,
}

/// The number of unified memory's nodes, and the group that the module's own nodes need.
type FromKernel = (Option<u32>, Option<u32>);

fn from_kernel(proc_root: &Path) -> FromKernel {
    (driver_root::uvm_major(proc_root), group_of_module(proc_root))
}

/// Why an operator's common edits file can't be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "can't use the common CDI edits in {path:?}: {reason}; give a CDI spec made by `nvidia-ctk cdi generate`"
)]
pub struct CommonFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: CommonFileReason,
}

/// What is wrong with a common edits file.
#[derive(Debug, thiserror::Error)]
pub enum CommonFileReason {
    /// It can't be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// Its name does not show its format.
    #[error("its name ends neither in .json nor in .yaml or .yml")]
    Extension,
    /// It is not JSON.
    #[error("not JSON: {0}")]
    Json(serde_json::Error),
    /// It is not YAML.
    #[error("not YAML: {0}")]
    Yaml(String),
    /// It is neither a CDI spec nor container edits, or has fields that this driver does not know.
    #[error("not a CDI spec: {0}")]
    Shape(String),
    /// It breaks a rule of CDI.
    #[error("{0}")]
    Invalid(#[from] SpecError),
    /// It would change nothing.
    #[error("it has no containerEdits outside of its devices")]
    Empty,
}

impl CommonEdits {
    /// Looks for the driver's files. Never fails: what is not there is in [`CommonEdits::missing`].
    pub fn discover(root: &DriverRoot) -> Self {
        let kernel = Some((root.proc.clone(), from_kernel(&root.proc)));
        let found = driver_root::discover(root);
        let stamped = found.watched.into_iter().map(|(root, path)| {
            let stamp = root.stamp(&path);
            (root, path, stamp)
        });
        Self { edits: found.edits, missing: found.missing, watched: stamped.collect(), kernel }
    }

    /// Takes the edits from an operator's file, JSON or YAML: the top-level `containerEdits` of a complete CDI spec,
    /// or a bare `containerEdits` object. Its devices are ignored: this driver knows its own.
    ///
    /// Hooks whose subcommands the host's program lacks are left out. They, and hook programs that the host lacks, are in
    /// [`CommonEdits::missing`].
    pub fn from_file(path: &Path, hooks: &HookSettings) -> Result<Self, CommonFileError> {
        let mut edits =
            read_edits(path).map_err(|reason| CommonFileError { path: path.to_owned(), reason })?;
        if !edits.env.iter().any(|entry| entry.starts_with(VOID) && entry[VOID.len()..].starts_with('=')) {
            edits.env.push(format!("{VOID}=void"));
        }
        let usable = hooks.usable(std::mem::take(&mut edits.hooks));
        edits.hooks = usable.hooks;
        let mut missing = usable.missing;
        missing.sort_by_key(|it| it.severity);
        let host = hooks.host();
        let stamped = usable.watched.into_iter().map(|path| {
            let stamp = host.stamp(&path);
            (host.clone(), path, stamp)
        });
        let mut watched: Vec<_> = stamped.collect();
        if let Some(text) = path.to_str() {
            let here = Root::same("/");
            watched.push((here.clone(), text.to_owned(), here.stamp(text)));
        }
        Ok(Self { edits, missing, watched, kernel: None })
    }

    /// The edits.
    pub fn edits(&self) -> &ContainerEdits {
        &self.edits
    }

    /// What was not found, the fatal things first.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// The first thing without which containers would not work, if any.
    pub fn fatal(&self) -> Option<&Missing> {
        self.missing.iter().find(|missing| missing.severity == Severity::Fatal)
    }

    /// Whether the files that were read are unchanged. Costs one or two `lstat` for each of some 60 paths, and one for
    /// each directory above them.
    pub fn is_current(&self) -> bool {
        let mut directories: Vec<(&Root, Directories)> = Vec::new();
        let mut is_as_before = |root, path: &str, stamp: &Option<Stamp>| {
            let at = directories.iter().position(|(it, _)| *it == root).unwrap_or_else(|| {
                directories.push((root, Directories::default()));
                directories.len() - 1
            });
            root.stamp_beside(path, &mut directories[at].1) == *stamp
        };
        self.kernel.iter().all(|(proc_root, before)| from_kernel(proc_root) == *before)
            && self.watched.iter().all(|(root, path, stamp)| is_as_before(root, path, stamp))
    }
}

fn read_edits(path: &Path) -> Result<ContainerEdits, CommonFileReason> {
    let bytes = read_bounded(path, MAX_FILE)?;
    let value: serde_json::Value = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => serde_json::from_slice(&bytes).map_err(CommonFileReason::Json)?,
        Some("yaml" | "yml") => {
            serde_saphyr::from_slice(&bytes).map_err(|error| CommonFileReason::Yaml(error.to_string()))?
        }
        _ => return Err(CommonFileReason::Extension),
    };
    // Without this, an array would do as a struct whose fields are all absent.
    if !value.is_object() {
        return Err(CommonFileReason::Shape("it is not an object".to_owned()));
    }
    let edits = if value.get("cdiVersion").is_some() {
        serde_json::from_value::<Spec>(value).map(|spec| spec.container_edits)
    } else {
        serde_json::from_value(value)
    };
    let edits = edits.map_err(|error| CommonFileReason::Shape(error.to_string()))?;
    if edits.is_empty() {
        return Err(CommonFileReason::Empty);
    }
    edits.validate()?;
    Ok(edits)
}
