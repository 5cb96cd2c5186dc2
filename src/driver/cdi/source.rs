//! The part of a CDI spec that all claims share, kept until the driver's files change.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cdi::common::{CommonEdits, CommonFileError};
use crate::cdi::driver_root::DriverRoot;

/// Where the common edits come from.
#[derive(Debug)]
pub struct CommonSource {
    root: DriverRoot,
    file: Option<PathBuf>,
    kept: Mutex<Option<Kept>>,
}

/// The driver version that edits were read for, where NVML reports it, and the edits.
type Kept = (Option<String>, Arc<CommonEdits>);

/// Why there are no common edits.
#[derive(Debug, thiserror::Error)]
pub enum CommonError {
    /// The operator's file does not do.
    #[error(transparent)]
    File(#[from] CommonFileError),
    /// Containers would not work.
    #[error("the NVIDIA driver's files are not complete: {0}")]
    Incomplete(String),
}

impl CommonSource {
    /// Edits from an operator's file, or discovered below the driver root where there is none.
    #[must_use]
    pub fn new(root: DriverRoot, file: Option<PathBuf>) -> Self {
        Self { root, file, kept: Mutex::new(None) }
    }

    /// Where the driver's files and the device nodes are.
    #[must_use]
    pub fn root(&self) -> &DriverRoot {
        &self.root
    }

    /// The edits for this version of the driver, read again if what they were read from has changed. Without a version,
    /// it is taken from the names of the driver's libraries. Reads files, those of the kernel module among them, which may take
    /// as long as a GPU hangs.
    pub fn get(&self, driver_version: Option<&str>) -> Result<Arc<CommonEdits>, CommonError> {
        let edits = self.look(driver_version)?;
        match edits.fatal() {
            Some(fatal) => Err(CommonError::Incomplete(fatal.to_string())),
            None => Ok(edits),
        }
    }

    /// The same with all that they lack; without a version, it is taken from the names of the driver's files.
    pub fn look(&self, driver_version: Option<&str>) -> Result<Arc<CommonEdits>, CommonFileError> {
        // Not held while files are read: those of the kernel module may not come back.
        let kept = self.kept().clone();
        if let Some((version, edits)) = kept
            && version.as_deref() == driver_version
            && edits.is_current()
        {
            return Ok(edits);
        }
        let edits = Arc::new(self.read(driver_version)?);
        *self.kept() = Some((driver_version.map(str::to_owned), Arc::clone(&edits)));
        Ok(edits)
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, driver_version: Option<&str>) -> Result<CommonEdits, CommonFileError> {
        match &self.file {
            Some(path) => CommonEdits::from_file(path, &self.root.hooks),
            None => {
                let version = driver_version.map(str::to_owned);
                Ok(CommonEdits::discover(&DriverRoot { version, ..self.root.clone() }))
            }
        }
    }
}
