//! Checkpoint on disk: a small journal for each claim, begun before the hardware changes.
//!
//! The intent is forced to the disk together with the file's name. Later lines are not: they note steps on the hardware,
//! and those do not survive a power failure either, because MIG instances vanish with the boot that made them. A file
//! that cannot be read is set aside, never lost. Several processes may share the directory: a claim is worked on by
//! the holder of its [`Journal`], and new records are made one after the other.

mod error;
mod file;
mod journal;
mod lock;
mod record;
mod state;

use std::collections::BTreeMap;
use std::fs::{self, DirEntry, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use error::StoreError;
pub use journal::{Begun, Journal, Taken};
pub use lock::{ModeLock, Reservation};
pub use record::{Progress, Record, RecordedDevice, RecordedKind, Rest, Stage, Stored, VERSION};
pub use state::ClaimState;

use mig_model::claim::ClaimUid;
use mig_model::facts::PciAddress;

use error::failed;

const EXTENSION: &str = "jsonl";
/// The directory with the files of all claims.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    directory: PathBuf,
    known: Arc<Mutex<BTreeMap<ClaimUid, Known>>>,
}

/// A file that was read, and by what one knows that it still says the same.
#[derive(Debug, Clone)]
struct Known {
    /// Nothing where it has to be read again in any case.
    version: Option<FileVersion>,
    stored: Arc<Stored>,
}

/// Inode, length, and time of the last change in seconds and nanoseconds.
type FileVersion = (u64, u64, i64, i64);

impl Checkpoint {
    /// Opens the directory for writing and creates it where it is missing.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
        Ok(Self::reading(directory))
    }

    /// The same directory for reading only; nothing is changed.
    #[must_use]
    pub fn reading(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), known: Arc::default() }
    }

    /// Takes the journal of a claim, and makes one where there is none and `or_new` says so. Does not wait.
    pub fn take(&self, uid: &ClaimUid, or_new: bool) -> Result<Taken, StoreError> {
        Journal::take(&self.path(uid), uid, or_new)
    }

    /// Takes the right to begin journals, unless another call has it, in this process or another one: a record is made in view
    /// of all others, so that two claims never find the same part of a GPU free. Does not wait.
    pub fn try_reserve(&self) -> Result<Option<Reservation>, StoreError> {
        let (path, file) = self.lock_file("reserve.lock")?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Reservation { _lock: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        }
    }

    /// Takes the right to rely on the MIG mode of the GPU at this PCI address; nothing while another process switches it off.
    pub fn rely_on_mode(&self, gpu: PciAddress) -> Result<Option<ModeLock>, StoreError> {
        self.mode_lock(gpu, File::try_lock_shared)
    }

    /// Takes the right to switch off the MIG mode of that GPU; nothing while another process relies on it.
    pub fn change_mode(&self, gpu: PciAddress) -> Result<Option<ModeLock>, StoreError> {
        self.mode_lock(gpu, File::try_lock)
    }

    fn mode_lock(
        &self,
        gpu: PciAddress,
        lock: impl FnOnce(&File) -> Result<(), TryLockError>,
    ) -> Result<Option<ModeLock>, StoreError> {
        let gpu = gpu.to_string().replace(|it: char| !it.is_ascii_alphanumeric(), "-");
        let (path, file) = self.lock_file(&format!("mig-mode-{gpu}.lock"))?;
        match lock(&file) {
            Ok(()) => Ok(Some(ModeLock { _lock: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        }
    }

    /// Opens a file that is only there to be locked. A symbolic link is not followed.
    fn lock_file(&self, name: &str) -> Result<(PathBuf, File), StoreError> {
        let path = self.directory.join(name);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).custom_flags(file::never_followed());
        let file = options.open(&path).map_err(failed("open", &path))?;
        Ok((path, file))
    }

    /// All claims that have a file, with what it says, in the order of their UIDs. Reads only what is new.
    pub fn list(&self) -> Result<Vec<(ClaimUid, Arc<Stored>)>, StoreError> {
        let entries = fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        // Not held while files are read: the holder of the reservation needs it, too.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut found = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.directory))?;
            let name = entry.file_name();
            let stem = name.to_str().and_then(|it| it.strip_suffix(EXTENSION)?.strip_suffix('.'));
            let Some(Ok(uid)) = stem.map(str::parse::<ClaimUid>) else { continue };
            if let Some(now) = look(&entry, &uid, known.remove(&uid)) {
                found.insert(uid, now);
            }
        }
        let listed = found.iter().map(|(uid, it)| (uid.clone(), Arc::clone(&it.stored))).collect();
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(listed)
    }

    /// Time since the last step of a claim; `None` if it is unknown.
    #[must_use]
    pub fn age(&self, uid: &ClaimUid) -> Option<Duration> {
        fs::symlink_metadata(self.path(uid)).and_then(|it| it.modified()).ok()?.elapsed().ok()
    }

    /// All records that can be read.
    pub fn records(&self) -> Result<Vec<Arc<Record>>, StoreError> {
        Ok(self.list()?.iter().filter_map(|(_, stored)| stored.record()).collect())
    }

    /// Whether the devices that the CDI file names of a listed claim stand in for its record, which cannot be read.
    ///
    /// # Errors
    /// Where the claim's file cannot be opened now and no CDI file says what the claim holds.
    pub fn named_instead(
        &self,
        uid: &ClaimUid,
        stored: &Stored,
        in_cdi: &[String],
    ) -> Result<(), StoreError> {
        match stored {
            Stored::Inaccessible(reason) if in_cdi.is_empty() => {
                Err(failed("read", &self.path(uid))(io::Error::other(reason.clone())))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, uid: &ClaimUid) -> PathBuf {
        self.directory.join(format!("{uid}.{EXTENSION}"))
    }
}

/// What a file says, read only if it is not the one that is known; nothing if it has just gone.
fn look(entry: &DirEntry, uid: &ClaimUid, known: Option<Known>) -> Option<Known> {
    let read = || {
        // By its name in the open directory: this is done for every claim at every prepare.
        let it = entry.metadata()?;
        let version = (it.ino(), it.len(), it.ctime(), it.ctime_nsec());
        match known {
            Some(known) if known.version == Some(version) => Ok(known),
            _ if !it.is_file() => {
                let reason = format!("it is {}", file::name_of(it.file_type()));
                Ok(Known { version: Some(version), stored: Arc::new(Stored::Unreadable(reason)) })
            }
            _ => {
                let (stored, _) = journal::read(&file::open(&entry.path())?, uid)?;
                Ok(Known { version: Some(version), stored: Arc::new(stored) })
            }
        }
    };
    found(read())
}

/// A failure to read may pass, and says nothing about the content.
fn found(read: io::Result<Known>) -> Option<Known> {
    match read {
        Ok(now) => Some(now),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            Some(Known { version: None, stored: Arc::new(Stored::Inaccessible(error.to_string())) })
        }
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;
    use mig_model::claim::ClaimRef;

    /// The journal of this claim, which must not be held.
    pub(crate) fn taken(checkpoint: &Checkpoint, uid: &str) -> Journal {
        match checkpoint.take(&uid.parse().unwrap(), true).unwrap() {
            Taken::Journal(journal) => journal,
            other => panic!("{other:?}"),
        }
    }

    /// Begins the journal with this record, which is on the disk then.
    pub(crate) fn begun(checkpoint: &Checkpoint, journal: &mut Journal, record: &Record) {
        let begun = journal.begin(record, &checkpoint.try_reserve().unwrap().unwrap()).unwrap();
        journal.force(begun).unwrap();
    }

    /// The intent of a claim without devices.
    pub(crate) fn record(uid: &str) -> Record {
        let claim = ClaimRef { namespace: "ns".to_owned(), name: "c".to_owned(), uid: uid.parse().unwrap() };
        Record {
            version: VERSION,
            boot_id: "boot".to_owned(),
            claim,
            devices: Vec::new(),
            stage: Stage::Preparing,
            pod_claim_name: None,
            unknown: serde_json::Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{begun, record, taken};
    use super::*;

    fn reserved(checkpoint: &Checkpoint, record: &Record) -> Journal {
        let mut journal = taken(checkpoint, record.claim.uid.as_str());
        begun(checkpoint, &mut journal, record);
        journal
    }

    #[test]
    fn a_record_is_read_back_with_fields_of_a_newer_driver() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let mut record = record("uid-1");
        record.unknown.insert("later".to_owned(), serde_json::json!({"a": 1}));
        drop(reserved(&checkpoint, &record));
        let mut journal = taken(&checkpoint, "uid-1");
        assert_eq!(*journal.stored(), Stored::Record(Arc::new(record)));
        journal.forget().unwrap();
        drop(journal);
        assert!(matches!(checkpoint.take(&"uid-1".parse().unwrap(), false).unwrap(), Taken::Nothing));
    }

    #[test]
    fn one_file_that_cannot_even_be_opened_does_not_hide_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        fs::create_dir(directory.path().join("uid-5.jsonl")).unwrap();
        drop(reserved(&checkpoint, &record("uid-6")));
        let listed = checkpoint.list().unwrap();
        assert!(matches!(&*listed[0].1, Stored::Unreadable(_)));
        assert_eq!(checkpoint.records().unwrap(), [Arc::new(record("uid-6"))]);
    }

    #[test]
    fn a_file_that_cannot_be_opened_now_is_not_taken_for_one_without_devices() {
        use rustix::io::Errno;
        let checkpoint = Checkpoint::reading(Path::new("/claims"));
        let uid = "uid-1".parse().unwrap();
        assert!(found(Err(io::ErrorKind::NotFound.into())).is_none());
        for errno in [Errno::MFILE, Errno::NFILE, Errno::IO, Errno::ACCESS] {
            let known = found(Err(io::Error::from_raw_os_error(errno.raw_os_error()))).unwrap();
            assert!(known.version.is_none(), "it is read again");
            let named = |in_cdi: &[String]| checkpoint.named_instead(&uid, &known.stored, in_cdi);
            let error = named(&[]).unwrap_err().to_string();
            assert!(error.contains("cannot read `/claims/uid-1.jsonl`"), "{error}");
            let in_cdi = ["gpu-0".to_owned()];
            named(&in_cdi).unwrap();
        }
        let unreadable = Stored::Unreadable("no JSON".to_owned());
        checkpoint.named_instead(&uid, &unreadable, &[]).unwrap();
    }

    #[test]
    fn what_another_process_adds_or_removes_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let (ours, others) =
            (Checkpoint::open(directory.path()).unwrap(), Checkpoint::open(directory.path()).unwrap());
        let mut journal = reserved(&others, &record("uid-1"));
        assert_eq!(ours.records().unwrap(), [Arc::new(record("uid-1"))]);
        let prepared = Record { stage: Stage::Prepared, ..record("uid-1") };
        journal.append(&prepared).unwrap();
        assert_eq!(ours.records().unwrap(), [Arc::new(prepared)]);
        journal.forget().unwrap();
        assert_eq!(ours.records().unwrap(), []);
    }

    #[test]
    fn only_one_at_a_time_begins_journals() {
        let directory = tempfile::tempdir().unwrap();
        let (ours, others) =
            (Checkpoint::open(directory.path()).unwrap(), Checkpoint::open(directory.path()).unwrap());
        let turn = ours.try_reserve().unwrap();
        assert!(turn.is_some() && others.try_reserve().unwrap().is_none());
        drop(turn);
        assert!(others.try_reserve().unwrap().is_some());
    }

    #[test]
    fn the_mig_mode_of_a_gpu_is_switched_off_by_one_process_while_no_other_relies_on_it() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = [0, 1].map(|_| Checkpoint::open(directory.path()).unwrap());
        let [gpu, other] =
            ["00000000:1A:00.0", "00000000:1B:00.0"].map(|it| it.parse::<PciAddress>().unwrap());
        let relied = [&one, &two].map(|it| it.rely_on_mode(gpu).unwrap().unwrap());
        assert!(one.change_mode(gpu).unwrap().is_none());
        let change = two.change_mode(other).unwrap();
        assert!(change.is_some() && one.rely_on_mode(other).unwrap().is_none());
        drop(relied);
        assert!(one.change_mode(gpu).unwrap().is_some());
    }

    #[test]
    fn a_file_about_another_claim_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        drop(reserved(&checkpoint, &record("uid-3")));
        fs::rename(directory.path().join("uid-3.jsonl"), directory.path().join("uid-4.jsonl")).unwrap();
        assert!(matches!(taken(&checkpoint, "uid-4").stored(), Stored::Unreadable(_)));
    }
}
