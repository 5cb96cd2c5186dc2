//! What a container runtime would find for a CDI device id.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A device found in a CDI directory.
#[derive(Debug, Clone, PartialEq)]
pub struct CdiDevice {
    /// The spec file that defines it.
    pub file: PathBuf,
    /// The device's own `containerEdits`.
    pub edits: Value,
    /// The `containerEdits` that the spec has for all its devices.
    pub common_edits: Value,
}

/// Finds the device with an id of the form `vendor/class=name` in a directory of CDI specs.
#[must_use]
pub fn find(directory: &Path, id: &str) -> Option<CdiDevice> {
    let (kind, name) = id.split_once('=')?;
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.into_iter().find_map(|file| {
        let spec = read(&file)?;
        if spec["kind"] != kind {
            return None;
        }
        let device = spec["devices"].as_array()?.iter().find(|d| d["name"] == name)?;
        let (edits, common_edits) = (device["containerEdits"].clone(), spec["containerEdits"].clone());
        Some(CdiDevice { file, edits, common_edits })
    })
}

fn read(file: &Path) -> Option<Value> {
    let extension = file.extension()?.to_str()?;
    let text = std::fs::read_to_string(file).ok()?;
    match extension {
        "json" => serde_json::from_str(&text).ok(),
        "yaml" => serde_saphyr::from_str(&text).ok(),
        _ => None,
    }
}
