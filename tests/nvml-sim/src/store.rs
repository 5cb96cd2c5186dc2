//! The node's files: `nvml-sim/{machine,config,faults}.json` under one lock, re-read when another process
//! changed them.
//!
//! A session is the lock: while it lives, no other process or thread sees or changes the machine.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fault::{self, Config, Fault};
use crate::host;
use crate::machine::Machine;

/// Name of the state directory within a node's root.
pub(crate) const STATE_DIR: &str = "nvml-sim";

/// One node's files, opened.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    lock: File,
    cache: Mutex<Option<Content>>,
}

/// What the files hold, and how they looked when they were read.
#[derive(Clone, Debug)]
struct Content {
    stamp: Stamp,
    machine: Machine,
    config: Config,
    faults: Vec<Fault>,
}

/// Generation number from the lock file (each writer here increments it), and inode, size and time of each
/// file (for those who edit by hand).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stamp(u64, [Option<(u64, u64, i64, i64)>; 3]);

const MACHINE: &str = "machine.json";
const CONFIG: &str = "config.json";
const FAULTS: &str = "faults.json";

impl Store {
    /// Writes a new node's files. The directory must not hold a node already.
    pub(crate) fn create(root: &Path, machine: &Machine) -> io::Result<()> {
        let dir = root.join(STATE_DIR);
        fs::create_dir_all(root)?;
        fs::create_dir(&dir)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", dir.display())))?;
        write(&dir.join(CONFIG), &Config::default())?;
        write(&dir.join(FAULTS), &Vec::<Fault>::new())?;
        write(&dir.join(MACHINE), machine)?;
        File::create(dir.join("lock"))?.write_all_at(&1u64.to_le_bytes(), 0)
    }

    /// Opens the node whose root is given.
    pub(crate) fn open(root: &Path) -> io::Result<Store> {
        let lock = OpenOptions::new().read(true).write(true).open(root.join(STATE_DIR).join("lock"))?;
        Ok(Store { root: root.to_path_buf(), lock, cache: Mutex::new(None) })
    }

    /// The node's root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The state directory.
    pub(crate) fn dir(&self) -> PathBuf {
        self.root.join(STATE_DIR)
    }

    /// Locks the node and reads what has changed.
    pub(crate) fn session(&self) -> io::Result<Session<'_>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        flock(&self.lock, FlockOperation::LockExclusive)?;
        let unlock = Unlock(&self.lock);
        let content = self.refresh(cache.take())?;
        Ok(Session { unlock, content, cache, store: self, before: None, faults: false, config: false })
    }

    /// Whether a call that hangs has not been let go yet.
    pub(crate) fn still_hangs(&self, call: &str, gpu: Option<usize>) -> io::Result<bool> {
        let session = self.session()?;
        let hangs = fault::still_hangs(&session.content.faults, call, gpu);
        session.finish()?;
        Ok(hangs)
    }

    /// Waits for a GPU's turn, for calls that take time. The hold ends with the returned file.
    pub(crate) fn serialise(&self, gpu: usize) -> io::Result<File> {
        // A new open file each time: a lock belongs to an open file, and threads must exclude each other too.
        let path = self.dir().join(format!("gpu{gpu}.lock"));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// True where a call has the GPU's turn. Takes nothing from those that wait for it.
    pub(crate) fn is_serialised(&self, gpu: usize) -> io::Result<bool> {
        let path = self.dir().join(format!("gpu{gpu}.lock"));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn refresh(&self, cached: Option<Content>) -> io::Result<Content> {
        let stamp = self.stamp()?;
        if let Some(content) = cached
            && content.stamp == stamp
        {
            return Ok(content);
        }
        let dir = self.dir();
        let (machine, config, faults) =
            (read(&dir.join(MACHINE))?, read(&dir.join(CONFIG))?, read(&dir.join(FAULTS))?);
        Ok(Content { stamp, machine, config, faults })
    }

    /// How the files look now; another stamp says that another process has changed something.
    pub(crate) fn stamp(&self) -> io::Result<Stamp> {
        let dir = self.dir();
        let look = |name| {
            let found = fs::metadata(dir.join(name)).ok();
            found.map(|meta| (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
        };
        Ok(Stamp(self.generation()?, [look(MACHINE), look(CONFIG), look(FAULTS)]))
    }

    fn generation(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.lock.read_exact_at(&mut bytes, 0)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Releases the file lock. A session drops it before its hold on the cache: the file lock belongs to the open
/// file, which all threads share.
#[derive(Debug)]
struct Unlock<'a>(&'a File);

impl Drop for Unlock<'_> {
    fn drop(&mut self) {
        // Unlocking an open file that is locked cannot fail, and closing it would unlock it as well.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

/// The locked node. Changes take effect with [`Session::finish`]; a session that is dropped has changed
/// nothing.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    unlock: Unlock<'a>,
    content: Content,
    cache: MutexGuard<'a, Option<Content>>,
    store: &'a Store,
    /// The machine as it was, once a call has asked to change it.
    before: Option<Machine>,
    faults: bool,
    config: bool,
}

impl Session<'_> {
    pub(crate) fn machine(&self) -> &Machine {
        &self.content.machine
    }

    pub(crate) fn config(&self) -> &Config {
        &self.content.config
    }

    pub(crate) fn machine_mut(&mut self) -> &mut Machine {
        if self.before.is_none() {
            self.before = Some(self.content.machine.clone());
        }
        &mut self.content.machine
    }

    pub(crate) fn config_mut(&mut self) -> &mut Config {
        self.config = true;
        &mut self.content.config
    }

    pub(crate) fn faults_mut(&mut self) -> &mut Vec<Fault> {
        self.faults = true;
        &mut self.content.faults
    }

    /// What a call has to suffer; moves the faults' counters.
    pub(crate) fn plan(&mut self, call: &str, gpu: Option<usize>) -> fault::Plan {
        let (plan, moved) = fault::plan(&self.content.config, &mut self.content.faults, call, gpu);
        self.faults |= moved;
        plan
    }

    /// Undoes changes of the machine, for a call that failed half way.
    pub(crate) fn undo(&mut self) {
        if let Some(before) = self.before.take() {
            self.content.machine = before;
        }
    }

    /// Writes what has changed, renders it into the fake root, and unlocks.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let dir = self.store.dir();
        let changed = self.before.is_some() || self.faults || self.config;
        if let Some(before) = &self.before {
            write(&dir.join(MACHINE), &self.content.machine)?;
            host::follow(&self.store.root, before, &self.content.machine)?;
        }
        if self.faults {
            write(&dir.join(FAULTS), &self.content.faults)?;
        }
        if self.config {
            write(&dir.join(CONFIG), &self.content.config)?;
        }
        if changed {
            self.store.lock.write_all_at(&(self.store.generation()? + 1).to_le_bytes(), 0)?;
            self.content.stamp = self.store.stamp()?;
        }
        *self.cache = Some(self.content);
        drop(self.unlock);
        Ok(())
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let bytes = fs::read(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    serde_json::from_slice(&bytes).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}

/// Replaces the file in one step, so that a crash leaves the old or the new one. No fsync: a simulated
/// machine need not outlive a real power cut.
fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, serde_json::to_vec(value).map_err(io::Error::other)?)?;
    fs::rename(&next, path)
}
