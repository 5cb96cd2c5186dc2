//! State files as their format says, read without the driver.

use serde_json::Value;

use super::model::State;
use crate::common::{DRIVER, Lab};

/// The last line of a claim's state file.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) state: State,
    /// As it is written, in whatever boot.
    pub(crate) stage: String,
    /// Device, and how far it got where it is made.
    pub(crate) devices: Vec<(String, Option<Progress>)>,
}

/// How far a device got, as far as the model must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Reserved,
    Creating,
    /// There is an id.
    Made,
}

impl Recorded {
    pub(crate) fn progress(&self, device: &str) -> Option<Progress> {
        self.devices.iter().find(|it| it.0 == device)?.1
    }
}

/// What is on record about a claim. A file that cannot be understood is a fault of the driver.
pub(crate) fn read(lab: &Lab, uid: &str, boot_id: &str) -> Option<Recorded> {
    let path = lab.path("plugins").join(DRIVER).join("claims").join(format!("{uid}.jsonl"));
    let text = std::fs::read_to_string(path).ok()?;
    let last = text[..text.rfind('\n')?].rsplit('\n').next()?;
    let line: Value = serde_json::from_str(last).unwrap();
    let stage = line["stage"].as_str().unwrap().to_owned();
    let state = match stage.as_str() {
        _ if line["bootId"] != boot_id => State::Stale,
        "prepared" => State::Prepared,
        _ => State::Leaving,
    };
    let device = |it: &Value| (it["name"].as_str().unwrap().to_owned(), progress(&it["kind"]));
    let devices = line["devices"].as_array().unwrap().iter().map(device).collect();
    Some(Recorded { state, stage, devices })
}

fn progress(kind: &Value) -> Option<Progress> {
    let progress = kind.get("mig")?.get("progress")?;
    Some(match progress.as_str() {
        Some("reserved") => Progress::Reserved,
        Some("creating") => Progress::Creating,
        _ => Progress::Made,
    })
}
