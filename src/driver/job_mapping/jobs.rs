//! Which file names which jobs: from the records of claims to the content of the directory. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use mig_model::claim::{ClaimRef, ClaimUid};

use crate::checkpoint::{Record, RecordedDevice, RecordedKind, Stage};
use crate::pods::PodRef;

/// Longest name of a Kubernetes object.
const MAX_NAME: usize = 253;

/// Jobs by the file that names them.
pub(super) type Files = BTreeMap<FileName, BTreeSet<Job>>;

/// The name of a file that the exporter reads: `<gpu>` or `<gpu>.<gpu instance>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileName {
    /// NVML index of the GPU, which DCGM numbers its GPUs by.
    pub(super) gpu: u32,
    /// GPU instance id; nothing for a GPU as a whole.
    pub(super) instance: Option<u32>,
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.instance {
            None => write!(f, "{}", self.gpu),
            Some(instance) => write!(f, "{}.{instance}", self.gpu),
        }
    }
}

impl FromStr for FileName {
    type Err = ();

    /// Only what this driver writes: `007` names a GPU for the exporter, but is no name of ours.
    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |it: &str| it.parse::<u32>().map_err(drop);
        let name = match text.split_once('.') {
            None => Self { gpu: number(text)?, instance: None },
            Some((gpu, instance)) => Self { gpu: number(gpu)?, instance: Some(number(instance)?) },
        };
        if name.to_string() == text { Ok(name) } else { Err(()) }
    }
}

/// A pod that has a GPU or an instance by a claim: one line of a file, and the value of the exporter's label `hpc_job`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Job {
    namespace: String,
    /// Empty while the pods of the claim are unknown.
    pod: String,
    claim: String,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, pod, claim } = self;
        write!(f, "{namespace}/{pod}/{claim}")
    }
}

impl FromStr for Job {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let mut parts = line.split('/');
        let mut part = || parts.next().map(str::to_owned).ok_or(());
        let job = Self { namespace: part()?, pod: part()?, claim: part()? };
        let is_whole = parts.next().is_none() && is_name(&job.namespace) && is_name(&job.claim);
        if is_whole && (job.pod.is_empty() || is_name(&job.pod)) { Ok(job) } else { Err(()) }
    }
}

impl Job {
    fn of(claim: &ClaimRef, pod: &str) -> Self {
        Self { namespace: claim.namespace.clone(), pod: pod.to_owned(), claim: claim.name.clone() }
    }

    fn is_of(&self, claim: &ClaimRef) -> bool {
        self.namespace == claim.namespace && self.claim == claim.name
    }
}

/// A name that cannot end its line or its part: the API server does not check the names in `status.reservedFor`.
fn is_name(text: &str) -> bool {
    let chars = text.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || "-.".contains(it));
    chars && !text.is_empty() && text.len() <= MAX_NAME
}

/// What is known of the claims of the node.
pub(super) struct Known<'a> {
    /// The records that can be read.
    pub(super) records: &'a [Arc<Record>],
    /// Whether there is a record that cannot be read now.
    pub(super) lacks_records: bool,
    /// The present boot.
    pub(super) boot_id: &'a str,
    /// NVML index of the GPU with this UUID; nothing while it is unknown.
    pub(super) index: &'a dyn Fn(&str) -> Option<u32>,
    /// The pods of a claim; none while they are unknown.
    pub(super) pods: &'a dyn Fn(&ClaimUid) -> Vec<PodRef>,
}

/// What the directory has to say, given what it says at present. A claim whose pods are unknown keeps the jobs that it has there:
/// this process, or another one, knew them. So does one whose GPU or record cannot be read now.
pub(super) fn wanted(known: &Known<'_>, present: &Files) -> Files {
    let mut files = Files::new();
    for record in known.records.iter().filter(|it| is_in_use(it, known.boot_id)) {
        for device in &record.devices {
            match file_of(device, known.index) {
                Place::File(name) => {
                    files.entry(name).or_default().extend(jobs_of(&record.claim, known, present));
                }
                Place::Unknown => keep(present, &mut files, |it| it.is_of(&record.claim)),
                Place::Nowhere => {}
            }
        }
    }
    if known.lacks_records {
        let is_recorded = |job: &Job| known.records.iter().any(|it| job.is_of(&it.claim));
        keep(present, &mut files, |it| !is_recorded(it));
    }
    files
}

fn keep(present: &Files, files: &mut Files, is_kept: impl Fn(&Job) -> bool) {
    for (name, jobs) in present {
        let kept: Vec<Job> = jobs.iter().filter(|it| is_kept(it)).cloned().collect();
        if !kept.is_empty() {
            files.entry(*name).or_default().extend(kept);
        }
    }
}

fn is_in_use(record: &Record, boot_id: &str) -> bool {
    record.stage == Stage::Prepared && record.boot_id == boot_id
}

fn jobs_of(claim: &ClaimRef, known: &Known<'_>, present: &Files) -> BTreeSet<Job> {
    let pods = (known.pods)(&claim.uid);
    let mut jobs: BTreeSet<Job> =
        pods.iter().filter(|it| is_name(&it.name)).map(|it| Job::of(claim, &it.name)).collect();
    if jobs.is_empty() {
        jobs = present.values().flatten().filter(|it| it.is_of(claim)).cloned().collect();
    }
    if jobs.is_empty() {
        jobs.insert(Job::of(claim, ""));
    }
    jobs
}

/// Where a device is named.
enum Place {
    File(FileName),
    /// The GPU cannot be read now.
    Unknown,
    /// There is nothing that DCGM could measure.
    Nowhere,
}

fn file_of(device: &RecordedDevice, index: &dyn Fn(&str) -> Option<u32>) -> Place {
    let instance = match &device.kind {
        RecordedKind::Gpu | RecordedKind::Share { .. } => None,
        RecordedKind::AdminAccess => return Place::Nowhere,
        RecordedKind::Adopted(_) | RecordedKind::Mig { .. } => match device.kind.instance() {
            Some(((gpu_instance, _), _)) => Some(gpu_instance),
            None => return Place::Nowhere,
        },
    };
    index(&device.parent_uuid).map_or(Place::Unknown, |gpu| Place::File(FileName { gpu, instance }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GPU: &str = "GPU-1";

    fn record(name: &str, kinds: &[serde_json::Value]) -> Arc<Record> {
        let device = |(index, kind): (usize, &serde_json::Value)| json!({"name": format!("d-{index}"), "pool": "p", "requests": ["r"], "parentUuid": GPU, "kind": kind});
        let record = json!({
            "version": 1, "bootId": "boot", "stage": "prepared",
            "claim": {"namespace": "ns", "name": name, "uid": format!("uid-{name}")},
            "devices": kinds.iter().enumerate().map(device).collect::<Vec<_>>(),
        });
        Arc::new(serde_json::from_value(record).unwrap())
    }

    fn mig(instance: u32) -> serde_json::Value {
        let spec =
            json!({"profile": "1g.10gb", "profileId": 19, "slices": 1, "placement": {"start": 0, "size": 1}});
        let progress = json!({"complete": {"gpuInstance": instance, "computeInstance": 0, "uuid": "MIG-1"}});
        json!({"mig": {"spec": spec, "progress": progress}})
    }

    fn files(text: &[(&str, &[&str])]) -> Files {
        let jobs = |it: &[&str]| it.iter().map(|it| it.parse().unwrap()).collect();
        text.iter().map(|(name, lines)| (name.parse().unwrap(), jobs(lines))).collect()
    }

    fn pods(names: &[&str]) -> Vec<PodRef> {
        names.iter().map(|it| PodRef { name: (*it).to_owned(), uid: "u".to_owned() }).collect()
    }

    /// With GPU 3, and these pods for every claim.
    fn wanted_with(records: &[Arc<Record>], names: &[&str], present: &Files) -> Files {
        let known = Known {
            records,
            lacks_records: false,
            boot_id: "boot",
            index: &|uuid| (uuid == GPU).then_some(3),
            pods: &|_| pods(names),
        };
        wanted(&known, present)
    }

    #[test]
    fn an_instance_has_its_own_file_and_a_whole_gpu_that_of_the_gpu() {
        let records = [
            record("a", &[mig(9)]),
            record("b", &[json!("gpu")]),
            record("c", &[json!({"share": {"index": 1}})]),
        ];
        let expected = files(&[("3.9", &["ns/p/a"]), ("3", &["ns/p/b", "ns/p/c"])]);
        assert_eq!(wanted_with(&records, &["p"], &Files::new()), expected);
    }

    #[test]
    fn each_pod_of_a_shared_claim_is_a_line() {
        let found = wanted_with(&[record("a", &[mig(9)])], &["one", "two"], &Files::new());
        assert_eq!(found, files(&[("3.9", &["ns/one/a", "ns/two/a"])]));
    }

    #[test]
    fn a_claim_whose_pods_are_unknown_keeps_those_that_the_directory_names() {
        let records = [record("a", &[mig(9)]), record("b", &[mig(10)])];
        let present = files(&[("3.7", &["ns/p/a", "ns/q/gone"])]);
        assert_eq!(
            wanted_with(&records, &[], &present),
            files(&[("3.9", &["ns/p/a"]), ("3.10", &["ns//b"])])
        );
    }

    #[test]
    fn a_pod_name_that_is_none_cannot_add_a_line_or_a_part() {
        for name in ["a\nns/other/claim", "a/b", "", "A", &"a".repeat(254)] {
            let found = wanted_with(&[record("a", &[mig(9)])], &[name], &Files::new());
            assert_eq!(found, files(&[("3.9", &["ns//a"])]), "{name}");
        }
    }

    #[test]
    fn what_is_not_prepared_in_this_boot_is_not_named() {
        let mut earlier = Record::clone(&record("a", &[mig(9)]));
        earlier.boot_id = "earlier".to_owned();
        let mut leaving = Record::clone(&record("b", &[mig(9)]));
        leaving.stage = Stage::Unpreparing;
        let records = [Arc::new(earlier), Arc::new(leaving)];
        assert_eq!(wanted_with(&records, &["p"], &files(&[("3.9", &["ns/p/a"])])), Files::new());
    }

    #[test]
    fn what_cannot_be_read_now_keeps_its_lines() {
        let present = files(&[("3.9", &["ns/p/a"]), ("4.1", &["ns/p/unread"])]);
        let records = [record("a", &[mig(9)])];
        let known = |lacks_records| Known {
            records: &records,
            lacks_records,
            boot_id: "boot",
            index: &|_| None,
            pods: &|_| pods(&["p"]),
        };
        assert_eq!(wanted(&known(true), &present), present);
        assert_eq!(wanted(&known(false), &present), files(&[("3.9", &["ns/p/a"])]));
    }

    #[test]
    fn only_names_and_lines_that_this_driver_writes_are_its_own() {
        for name in ["", "x", "1.", ".1", "1.2.3", "01", "1.02", "+1", "-1", "4294967296", "1 "] {
            assert!(name.parse::<FileName>().is_err(), "{name}");
        }
        for line in ["", "4711", "a/b", "a/b/c/d", "/b/c", "a/b/", "a/b c/d", "a/B/c"] {
            assert!(line.parse::<Job>().is_err(), "{line}");
        }
        for line in ["ns/pod/claim", "ns//claim"] {
            assert_eq!(line.parse::<Job>().unwrap().to_string(), line);
        }
    }
}
