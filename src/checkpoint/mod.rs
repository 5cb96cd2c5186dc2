//! What was promised, on disk: one small file per claim, written before the hardware changes.
//!
//! A file is replaced as a whole, by rename. The first write of a claim, its intent, is forced to the disk together with
//! its directory. Later ones are not: they record steps on the hardware, and those do not survive a power failure either,
//! because MIG instances vanish with the boot that made them and the record of another boot is planned anew. A file that
//! cannot be read is set aside, never lost.

mod record;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use record::{Progress, Record, RecordedDevice, RecordedKind, VERSION};

use crate::claim::ClaimUid;

/// Largest file that is read. A claim has at most 32 devices of some hundred bytes each.
const MOST_BYTES: u64 = 256 * 1024;
/// Most files are smaller than this.
const USUAL_BYTES: usize = 4096;

/// Extension of files that are being written; `list` ignores them.
const UNFINISHED: &str = "tmp";

/// Number of writes so far, which tells their files apart.
static SAVES: AtomicU64 = AtomicU64::new(0);

/// The directory with the files of all claims.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    directory: PathBuf,
}

/// How hard a write has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Survives a power failure: for the intent.
    PowerFailure,
    /// Survives the end of this process: for the steps on the way.
    ProcessEnd,
}

/// What is on disk about a claim.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// Nothing.
    Nothing,
    /// A record.
    Record(Box<Record>),
    /// A file that cannot be understood, and why.
    Unreadable(String),
}

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {operation} `{path}`: {source}; check that the disk of the kubelet's plugin directory is writable and not full"
)]
pub struct StoreError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Checkpoint {
    /// Opens the directory for writing: creates it where it is missing, and clears it of what an interrupted write left.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
        for entry in fs::read_dir(directory).map_err(failed("list", directory))?.flatten() {
            if entry.path().extension().is_some_and(|it| it == UNFINISHED) {
                fs::remove_file(entry.path()).map_err(failed("remove", &entry.path()))?;
            }
        }
        Ok(Self::reading(directory))
    }

    /// The same directory for reading only; nothing is changed.
    #[must_use]
    pub fn reading(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// What is stored about a claim.
    #[must_use]
    pub fn load(&self, uid: &ClaimUid) -> Stored {
        let path = self.path(uid);
        match read(&path) {
            Ok(bytes) => parse(&bytes, uid),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Stored::Nothing,
            Err(error) => Stored::Unreadable(error.to_string()),
        }
    }

    /// Makes a record in view of all others and stores it. Nobody else, in this process or another one, stores a new
    /// record meanwhile, so that two claims never find the same part of a GPU free.
    pub fn reserve<E: From<StoreError>>(
        &self,
        make: impl FnOnce(&[Record]) -> Result<Record, E>,
    ) -> Result<Record, E> {
        let path = self.directory.join("reserve.lock");
        let lock = || {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        // Released when the file is closed, by whatever end of this function or of the process.
        let _lock = lock().map_err(failed("lock", &path))?;
        let record = make(&self.records()?)?;
        self.save(&record, Durability::PowerFailure)?;
        Ok(record)
    }

    /// Stores a record in place of what was there.
    pub fn save(&self, record: &Record, durability: Durability) -> Result<(), StoreError> {
        let path = self.path(&record.claim.uid);
        // A name of its own: behind a GPU that hung, an old call may still write when a new one does.
        let number = SAVES.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("{number}.{UNFINISHED}"));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(record)?)?;
            if durability == Durability::PowerFailure {
                file.sync_data()?;
            }
            let is_new = !path.exists();
            fs::rename(&temporary, &path)?;
            if durability == Durability::PowerFailure && is_new {
                File::open(&self.directory)?.sync_all()?;
            }
            Ok(())
        };
        write().map_err(failed("write", &path))
    }

    /// Forgets a claim; one that is not there is forgotten already.
    pub fn remove(&self, uid: &ClaimUid) -> Result<(), StoreError> {
        let path = self.path(uid);
        let remove = || match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            // A record that comes back after a power failure would hold its devices for ever.
            Ok(()) => File::open(&self.directory)?.sync_all(),
        };
        remove().map_err(failed("remove", &path))
    }

    /// Keeps a second name for a file that cannot be read, and returns it. The file itself stays until it is replaced or
    /// removed, so that at no time there is none. The last unreadable file of a claim is kept.
    pub fn set_aside(&self, uid: &ClaimUid) -> Result<PathBuf, StoreError> {
        let path = self.path(uid);
        let aside = path.with_extension("unreadable");
        let link = || match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::hard_link(&path, &aside),
        };
        link().map_err(failed("set aside", &path))?;
        Ok(aside)
    }

    /// All claims that have a file, with what it says.
    pub fn list(&self) -> Result<Vec<(ClaimUid, Stored)>, StoreError> {
        let entries = fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed("list", &self.directory))?.path();
            let Some(stem) = path.file_stem().and_then(|it| it.to_str()) else { continue };
            let Ok(uid) = stem.parse::<ClaimUid>() else { continue };
            if path.extension().is_some_and(|it| it == "json") {
                let stored = self.load(&uid);
                found.push((uid, stored));
            }
        }
        found.sort_by(|left, right| left.0.cmp(&right.0));
        Ok(found)
    }

    /// All records that can be read.
    pub fn records(&self) -> Result<Vec<Record>, StoreError> {
        let readable = |(_, stored)| match stored {
            Stored::Record(record) => Some(*record),
            Stored::Nothing | Stored::Unreadable(_) => None,
        };
        Ok(self.list()?.into_iter().filter_map(readable).collect())
    }

    fn path(&self, uid: &ClaimUid) -> PathBuf {
        self.directory.join(format!("{uid}.json"))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Room for a whole file: growing from nothing takes seven reads, and every prepare reads all files.
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(bytes: &[u8], uid: &ClaimUid) -> Stored {
    if MOST_BYTES < bytes.len() as u64 {
        return Stored::Unreadable(format!("it is larger than {MOST_BYTES} bytes"));
    }
    match serde_json::from_slice::<Record>(bytes) {
        Err(error) => Stored::Unreadable(error.to_string()),
        Ok(record) if record.version != VERSION => Stored::Unreadable(format!(
            "it has format version {}, this driver reads {VERSION}",
            record.version
        )),
        Ok(record) if record.claim.uid != *uid => {
            Stored::Unreadable(format!("it is about another claim, {}", record.claim.uid))
        }
        Ok(record) => Stored::Record(Box::new(record)),
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::ClaimRef;

    fn record(uid: &str) -> Record {
        let claim = ClaimRef { namespace: "ns".to_owned(), name: "c".to_owned(), uid: uid.parse().unwrap() };
        Record {
            version: VERSION,
            boot_id: "boot".to_owned(),
            claim,
            devices: Vec::new(),
            prepared: false,
            unknown: serde_json::Map::new(),
        }
    }

    #[test]
    fn a_record_is_read_back_with_fields_of_a_newer_driver() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let mut record = record("uid-1");
        record.unknown.insert("later".to_owned(), serde_json::json!({"a": 1}));
        checkpoint.save(&record, Durability::PowerFailure).unwrap();
        let Stored::Record(read) = checkpoint.load(&record.claim.uid) else { panic!("readable") };
        assert_eq!(*read, record);
        checkpoint.remove(&record.claim.uid).unwrap();
        checkpoint.remove(&record.claim.uid).unwrap();
        assert_eq!(checkpoint.load(&record.claim.uid), Stored::Nothing);
    }

    #[test]
    fn rubbish_is_unreadable_and_can_be_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let uid: ClaimUid = "uid-2".parse().unwrap();
        fs::write(directory.path().join("uid-2.json"), "{\"version\": 1").unwrap();
        assert!(matches!(checkpoint.load(&uid), Stored::Unreadable(_)));
        assert_eq!(checkpoint.records().unwrap(), Vec::new());
        let aside = checkpoint.set_aside(&uid).unwrap();
        checkpoint.remove(&uid).unwrap();
        assert_eq!(fs::read_to_string(aside).unwrap(), "{\"version\": 1");
        assert_eq!(checkpoint.load(&uid), Stored::Nothing);
        assert!(checkpoint.list().unwrap().is_empty());
    }

    #[test]
    fn one_file_that_cannot_even_be_opened_does_not_hide_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        fs::create_dir(directory.path().join("uid-5.json")).unwrap();
        checkpoint.save(&record("uid-6"), Durability::ProcessEnd).unwrap();
        assert!(matches!(checkpoint.load(&"uid-5".parse().unwrap()), Stored::Unreadable(_)));
        assert_eq!(checkpoint.records().unwrap(), [record("uid-6")]);
    }

    #[test]
    fn of_two_that_reserve_at_once_the_second_sees_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let reserve = |uid: &'static str| {
            let checkpoint = checkpoint.clone();
            std::thread::spawn(move || {
                let only_if_first = |others: &[Record]| match others.len() {
                    0 => Ok(record(uid)),
                    _ => Err(failed("share", Path::new(uid))(io::ErrorKind::AlreadyExists.into())),
                };
                checkpoint.reserve(only_if_first).is_ok()
            })
        };
        let won = ["a", "b", "c", "d"].map(reserve).map(|it| it.join().unwrap());
        assert_eq!(won.iter().filter(|it| **it).count(), 1);
    }

    #[test]
    fn what_an_interrupted_write_left_is_cleared_by_the_next_start_only() {
        let directory = tempfile::tempdir().unwrap();
        let left = directory.path().join("uid-9.3.tmp");
        fs::write(&left, "{").unwrap();
        assert!(Checkpoint::reading(directory.path()).list().unwrap().is_empty() && left.exists());
        assert!(Checkpoint::open(directory.path()).unwrap().list().unwrap().is_empty() && !left.exists());
    }

    #[test]
    fn a_file_about_another_claim_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        checkpoint.save(&record("uid-3"), Durability::ProcessEnd).unwrap();
        fs::rename(directory.path().join("uid-3.json"), directory.path().join("uid-4.json")).unwrap();
        assert!(matches!(checkpoint.load(&"uid-4".parse().unwrap()), Stored::Unreadable(_)));
    }
}
