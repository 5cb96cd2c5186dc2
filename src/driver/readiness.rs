//! Host conditions that prevent claims from being prepared, or containers from working.
//!
//! They are known before the first claim, so `/readyz`, events and a metric report them, and what cannot be prepared is not
//! published. `check` lists the same. Each scan reads the host again, so that a condition ends once the
//! host is repaired.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};

use rustix::fs::Access;

use crate::cdi::{CapsError, CommonSource, Missing, MissingPart, Severity, config_minor};
use crate::mig::MigError;
use crate::nvml::{CallError, Code};

/// How long a refusal of NVML keeps MIG devices from being offered, if no claim is prepared meanwhile: whether it would
/// refuse again can be learned only by trying.
const REFUSAL_COUNTS: Duration = Duration::from_secs(600);

/// Something on the host that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCondition {
    /// What it is about.
    pub subject: HostSubject,
    /// What follows from it.
    pub effect: Effect,
    /// What was found, and what it means.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

/// What a [`HostCondition`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostSubject {
    /// Files and device nodes of the NVIDIA driver for containers.
    DriverFiles,
    /// The file of `--common-edits`.
    CommonEdits,
    /// `nvidia-cdi-hook`, and what it runs.
    Hooks,
    /// The right to make and destroy MIG instances, and the device numbers that give access to them.
    MigAccess,
    /// The directory of CDI specs.
    CdiDirectory,
    /// The directory of the claims' state files.
    StateDirectory,
}

/// What follows from a [`HostCondition`], the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// No claim can be prepared.
    NoClaims,
    /// No MIG device can be prepared.
    NoMig,
    /// No MIG instance can be made or destroyed, nor MIG mode be switched.
    NoPartitioning,
    /// NVML may refuse to create MIG instances; only an attempt shows it.
    MayRefuse,
    /// Containers start, and CUDA fails in those from some images.
    Impaired,
    /// Containers work, with less.
    Degraded,
}

impl Effect {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::NoClaims, Self::NoMig, Self::NoPartitioning, Self::MayRefuse, Self::Impaired, Self::Degraded];

    /// Whether devices are withheld because of it.
    #[must_use]
    pub fn is_blocking(self) -> bool {
        self <= Self::NoPartitioning
    }

    /// Its name as a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoClaims => "no_claims",
            Self::NoMig => "no_mig",
            Self::NoPartitioning => "no_partitioning",
            Self::MayRefuse => "may_refuse",
            Self::Impaired => "impaired",
            Self::Degraded => "degraded",
        }
    }

    /// What it means for the node, in words.
    fn summary(self) -> &'static str {
        match self {
            Self::NoClaims => "no claim can be prepared",
            Self::NoMig => "no MIG device can be prepared",
            Self::NoPartitioning => "no MIG instance can be created",
            Self::MayRefuse => "NVML may refuse to create MIG instances",
            Self::Impaired => "CUDA fails in some containers",
            Self::Degraded => "containers work with less",
        }
    }
}

impl fmt::Display for HostCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.effect.summary(), self.text, self.remedy)
    }
}

impl From<&Missing> for HostCondition {
    fn from(missing: &Missing) -> Self {
        Self {
            subject: match missing.part {
                MissingPart::Driver => HostSubject::DriverFiles,
                MissingPart::Hooks => HostSubject::Hooks,
            },
            effect: match missing.severity {
                Severity::Fatal => Effect::NoClaims,
                Severity::Impaired => Effect::Impaired,
                Severity::Degraded => Effect::Degraded,
            },
            text: format!("{}: {}", missing.what, missing.consequence),
            remedy: missing.remedy.clone(),
        }
    }
}

/// Reads the host.
#[derive(Debug)]
pub struct HostReadiness {
    common: CommonSource,
    proc_root: PathBuf,
    cdi_directory: PathBuf,
    state_directory: PathBuf,
    /// By the UUID of the GPU.
    refused: Mutex<BTreeMap<String, (CallError, Instant)>>,
}

impl HostReadiness {
    /// Reads the files that preparing claims needs.
    #[must_use]
    pub fn new(
        common: CommonSource,
        proc_root: PathBuf,
        cdi_directory: PathBuf,
        state_directory: PathBuf,
    ) -> Self {
        Self { common, proc_root, cdi_directory, state_directory, refused: Mutex::default() }
    }

    /// The part of a CDI spec that all claims share.
    #[must_use]
    pub fn common(&self) -> &CommonSource {
        &self.common
    }

    /// Records that NVML has refused work on MIG of this GPU, if it was for lack of permission. True where that is news.
    pub fn refused(&self, gpu: &str, error: &MigError) -> bool {
        match error {
            MigError::Nvml(error) if error.code == Code::NO_PERMISSION => {
                self.refusals_by_gpu().insert(gpu.to_owned(), (error.clone(), Instant::now())).is_none()
            }
            _ => false,
        }
    }

    /// Records that NVML has created an instance on this GPU. True where that is news.
    pub fn permitted(&self, gpu: &str) -> bool {
        self.refusals_by_gpu().remove(gpu).is_some()
    }

    /// True where NVML has refused work on MIG of this GPU lately.
    #[must_use]
    pub fn is_refused(&self, gpu: &str) -> bool {
        self.refusals_by_gpu().contains_key(gpu)
    }

    /// What follows from NVML having refused work on MIG of some of these GPUs, all that have MIG, or of all of them. What was
    /// refused long ago is forgotten.
    pub fn refusals<'a>(&self, with_mig: impl Iterator<Item = &'a str>) -> Vec<HostCondition> {
        let mut refused = self.refusals_by_gpu();
        refused.retain(|_, (_, at)| at.elapsed() < REFUSAL_COUNTS);
        let (denied, others): (Vec<&str>, Vec<&str>) = with_mig.partition(|it| refused.contains_key(*it));
        let condition = |effect, text, error: &CallError| HostCondition {
            subject: HostSubject::MigAccess,
            effect,
            text,
            remedy: error.advice().to_owned(),
        };
        let mut denied = denied.into_iter().filter_map(|gpu| Some((gpu, &refused.get(gpu)?.0)));
        if others.is_empty() {
            let first = denied.next();
            let of_node =
                |(_, error): (&str, &CallError)| condition(Effect::NoPartitioning, error.to_string(), error);
            return first.map(of_node).into_iter().collect();
        }
        let text = |gpu, error| {
            format!("GPU {gpu}: {error}; what needs an instance to be created on it is not offered")
        };
        denied.map(|(gpu, error)| condition(Effect::MayRefuse, text(gpu, error), error)).collect()
    }

    fn refusals_by_gpu(&self) -> MutexGuard<'_, BTreeMap<String, (CallError, Instant)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Failed conditions, the worst first. Reads files. Without a driver version the driver's files determine
    /// it; without `has_mig` nothing is said of MIG.
    #[must_use]
    pub fn look(&self, driver_version: Option<&str>, has_mig: bool) -> Vec<HostCondition> {
        let mut found: Vec<HostCondition> = match self.common.look(driver_version) {
            Ok(edits) => edits.missing().iter().map(Into::into).collect(),
            Err(error) => vec![HostCondition {
                subject: HostSubject::CommonEdits,
                effect: Effect::NoClaims,
                text: format!("can't use the common CDI edits in {:?}: {}", error.path, error.reason),
                remedy:
                    "give --common-edits a CDI spec made by `nvidia-ctk cdi generate`, or leave the flag out"
                        .to_owned(),
            }],
        };
        let directories = [
            (
                HostSubject::CdiDirectory,
                &self.cdi_directory,
                "run as root and mount the directory writable (--cdi-root)",
            ),
            (
                HostSubject::StateDirectory,
                &self.state_directory,
                "run as root and mount the kubelet's plugin directory writable (--plugins-dir)",
            ),
        ];
        for (subject, path, remedy) in directories {
            let problem = not_makeable(path);
            found.extend(problem.map(|problem| HostCondition {
                subject,
                effect: Effect::NoClaims,
                text: format!("{}: {problem}", path.display()),
                remedy: remedy.to_owned(),
            }));
        }
        if has_mig {
            found.extend(self.mig_access());
        }
        found.sort_by_key(|it| it.effect);
        found
    }

    /// Conditions that prevent MIG instances from being prepared.
    fn mig_access(&self) -> Option<HostCondition> {
        let condition = |effect, text, remedy: &str| {
            Some(HostCondition { subject: HostSubject::MigAccess, effect, text, remedy: remedy.to_owned() })
        };
        match config_minor(&self.proc_root) {
            Ok(_) => {}
            // Drivers are thought of that have no such file; the files of instances are what claims need.
            Err(CapsError::Read { .. }) if self.proc_root.join("driver/nvidia/capabilities").is_dir() => {
                return None;
            }
            Err(error) => {
                let text = error.to_string();
                let (text, remedy) =
                    text.rsplit_once("; ").unwrap_or((&text, "see the kernel log of the node"));
                return condition(Effect::NoMig, text.to_owned(), remedy);
            }
        }
        None
    }
}

/// Why a directory cannot be written, if so.
#[must_use]
pub fn unwritable(directory: &Path) -> Option<String> {
    if !directory.is_dir() {
        return Some(
            if directory.exists() { "it is not a directory" } else { "no such directory" }.to_owned(),
        );
    }
    let access = rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK);
    access.err().map(|error| io::Error::from(error).to_string())
}

/// The same for one that the driver makes itself, which needs the nearest thing above it that exists to be a directory.
#[must_use]
pub fn not_makeable(directory: &Path) -> Option<String> {
    let nearest = directory.ancestors().find(|it| it.exists())?;
    unwritable(nearest).map(|problem| match nearest == directory {
        true => problem,
        false => format!("cannot be made in {}: {problem}", nearest.display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdi::DriverRoot;
    use std::fs;

    /// A host without the driver's libraries, on which everything else is as it should be.
    fn host() -> (tempfile::TempDir, HostReadiness) {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        for path in ["cdi", "state", "proc/driver/nvidia/capabilities/mig", "dev/nvidia-caps"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        fs::write(at("proc/devices"), "Character devices:\n235 nvidia-caps\n").unwrap();
        let config = "DeviceFileMinor: 1\nDeviceFileMode: 256\n";
        fs::write(at("proc/driver/nvidia/capabilities/mig/config"), config).unwrap();
        fs::write(at("dev/nvidia-caps/nvidia-cap1"), "").unwrap();
        let root = crate::cdi::Root::new(directory.path(), "/");
        let root = DriverRoot { files: root.clone(), devices: root, ..DriverRoot::on_host() };
        let common = CommonSource::new(root, None);
        let host = HostReadiness::new(common, at("proc"), at("cdi"), at("state"));
        (directory, host)
    }

    fn about(host: &HostReadiness, subject: HostSubject) -> Vec<HostCondition> {
        let mut found = host.look(Some("550.54.15"), true);
        assert!(found.is_sorted_by_key(|it| it.effect), "{found:?}");
        assert!(found.iter().all(|it| !it.remedy.is_empty()), "{found:?}");
        found.retain(|it| it.subject == subject);
        found
    }

    #[test]
    fn missing_driver_files_keep_every_claim_from_being_prepared() {
        let (_directory, host) = host();
        let found = about(&host, HostSubject::DriverFiles);
        assert_eq!(found[0].effect, Effect::NoClaims);
        assert!(found.iter().any(|it| it.text.contains("lib*.so.550.54.15")), "{found:?}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let (directory, host) = host();
        assert_eq!(about(&host, HostSubject::CdiDirectory), []);
        fs::remove_dir(directory.path().join("cdi")).unwrap();
        assert_eq!(about(&host, HostSubject::CdiDirectory), [], "the driver makes it");
        fs::remove_dir(directory.path().join("state")).unwrap();
        fs::write(directory.path().join("state"), "").unwrap();
        let found = about(&host, HostSubject::StateDirectory);
        assert!(
            found[0].effect == Effect::NoClaims && found[0].text.contains("not a directory"),
            "{found:?}"
        );
    }

    #[test]
    fn without_device_numbers_no_mig_device_can_be_prepared() {
        let (directory, host) = host();
        fs::write(directory.path().join("proc/devices"), "Character devices:\n195 nvidia\n").unwrap();
        let found = about(&host, HostSubject::MigAccess);
        assert!(found[0].effect == Effect::NoMig && found[0].remedy.contains("kernel modules"), "{found:?}");
    }

    #[test]
    fn a_refusal_counts_for_its_gpu_until_something_is_permitted_there() {
        let (_directory, host) = host();
        let error = CallError { call: "nvmlDeviceCreateGpuInstanceWithPlacement", code: Code::NO_PERMISSION };
        let refusal = MigError::Nvml(error);
        let refusals = |gpus: &[&str]| host.refusals(gpus.iter().copied());
        assert!(host.refused("GPU-1", &refusal) && !host.refused("GPU-1", &refusal), "once is news");
        let found = refusals(&["GPU-1", "GPU-2"]);
        assert_eq!((found.len(), found[0].effect), (1, Effect::MayRefuse), "the other one may be cut");
        assert!(
            found[0].text.contains("GPU GPU-1: ") && found[0].text.contains("NO_PERMISSION"),
            "{found:?}"
        );
        assert!(host.refused("GPU-2", &refusal));
        let found = refusals(&["GPU-1", "GPU-2"]);
        assert_eq!((found.len(), found[0].effect), (1, Effect::NoPartitioning), "{found:?}");
        assert!(host.permitted("GPU-1") && !host.permitted("GPU-1"));
        assert!(host.is_refused("GPU-2") && !host.is_refused("GPU-1"));
        assert!(host.permitted("GPU-2"));
        assert_eq!(refusals(&["GPU-1", "GPU-2"]), []);
        let other = CallError { call: "nvmlDeviceSetMigMode", code: Code::UNKNOWN };
        assert!(!host.refused("GPU-1", &MigError::Nvml(other)));
        assert_eq!(refusals(&["GPU-1"]), []);
    }

    #[test]
    fn a_refusal_that_is_never_tried_again_is_forgotten() {
        let (_directory, host) = host();
        let error = CallError { call: "nvmlDeviceSetMigMode", code: Code::NO_PERMISSION };
        let long_ago = Instant::now().checked_sub(REFUSAL_COUNTS).unwrap();
        host.refused.lock().unwrap().insert("GPU-1".to_owned(), (error, long_ago));
        assert_eq!(host.refusals(["GPU-1"].into_iter()), []);
        assert!(!host.is_refused("GPU-1"));
    }
}
