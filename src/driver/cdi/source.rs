//! The part of a CDI spec that all claims share, kept until the driver's files change.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cdi::common::{CommonEdits, CommonFileError};
use crate::cdi::driver_root::DriverRoot;

/// Where the common edits come from.
#[derive(Debug)]
pub struct CommonSource {
    root: DriverRoot,
    file: Option<PathBuf>,
    /// The edits, and the driver version that they were read for, where NVML reports it.
    kept: Mutex<Option<(Option<String>, Arc<CommonEdits>)>>,
}

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
    /// it is taken from the names of the driver's libraries. Reads files.
    pub fn get(&self, driver_version: Option<&str>) -> Result<Arc<CommonEdits>, CommonError> {
        let edits = self.look(driver_version)?;
        match edits.fatal() {
            Some(fatal) => Err(CommonError::Incomplete(fatal.to_string())),
            None => Ok(edits),
        }
    }

    /// The same with all that they lack; without a version, it is taken from the names of the driver's files.
    pub fn look(&self, driver_version: Option<&str>) -> Result<Arc<CommonEdits>, CommonFileError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (version, edits) = match kept.take() {
            Some((version, edits)) if version.as_deref() == driver_version && edits.is_current() => {
                (version, edits)
            }
            _ => (driver_version.map(str::to_owned), Arc::new(self.read(driver_version)?)),
        };
        let result = Arc::clone(&edits);
        *kept = Some((version, edits));
        Ok(result)
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
