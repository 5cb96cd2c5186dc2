//! What NVIDIA's error numbers mean for a GPU. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::facts::RecoveryAction;

/// XIDs after which the device goes on as it was: NVIDIA's catalogue answers them with "restart the application" or "ignore",
/// or refers to another XID that comes with them (45), or they announce what NVML is asked for anyway (154).
///
/// Source: <https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html>, as of October 2025, entries that the catalogue
/// marks as unused left out. XID 94 is not among them: see [`CONTAINED`].
const HARMLESS: [u64; 67] = [
    8, 11, 13, 25, 31, 32, 37, 38, 39, 40, 41, 43, 44, 45, 60, 63, 66, 67, 68, 69, 70, 71, 72, 75, 76, 77,
    80, 82, 83, 84, 85, 86, 88, 89, 92, 93, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 106, 107, 121, 126,
    127, 128, 129, 130, 131, 132, 133, 134, 135, 137, 139, 141, 152, 153, 154, 160, 161,
];

/// A memory error that was contained: it costs the application, and the instance that had it, but not the GPU.
const CONTAINED: u64 = 94;

/// XIDs that concern the whole GPU, whichever instance they are attributed to: the same catalogue answers them with a reset of
/// the GPU, and 79 (off the bus) with a restart of the machine.
const OF_THE_GPU: [u64; 15] = [46, 62, 64, 79, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158];

/// Most numbers that may be given.
const MOST: usize = 256;

/// What a GPU or an instance suffers from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// The error with this number.
    Xid(u64),
    /// An error in memory that could not be corrected.
    DoubleBitEcc,
    /// NVML recommends this.
    Recovery(RecoveryAction),
}

impl Cause {
    /// True where the whole GPU suffers, even if an instance was the first to notice.
    #[must_use]
    pub fn concerns_the_gpu(self) -> bool {
        match self {
            Self::Xid(number) => OF_THE_GPU.contains(&number),
            Self::DoubleBitEcc => false,
            Self::Recovery(_) => true,
        }
    }

    /// True where only the application and the instance that had the error suffer, and never the whole GPU.
    #[must_use]
    pub fn is_contained(self) -> bool {
        self == Self::Xid(CONTAINED)
    }

    /// The name of the taint's key behind the driver's name, and its value.
    #[must_use]
    pub fn taint(self) -> (&'static str, String) {
        match self {
            Self::Xid(number) => ("xid", number.to_string()),
            Self::DoubleBitEcc => ("ecc", "double-bit".to_owned()),
            Self::Recovery(action) => ("recovery", recovery_name(action)),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xid(number) => {
                write!(f, "XID {number}")?;
                meaning(*number).map_or(Ok(()), |it| write!(f, " ({it})"))
            }
            Self::DoubleBitEcc => f.write_str("an ECC error that could not be corrected"),
            Self::Recovery(action) => write!(f, "NVML recommends {action}"),
        }
    }
}

/// The value of a taint: letters, digits and dashes.
fn recovery_name(action: RecoveryAction) -> String {
    match action {
        RecoveryAction::None => "none".to_owned(),
        RecoveryAction::Reset => "reset".to_owned(),
        RecoveryAction::Reboot => "reboot".to_owned(),
        RecoveryAction::DrainPeerToPeer => "drain-p2p".to_owned(),
        RecoveryAction::DrainAndReset => "drain-and-reset".to_owned(),
        RecoveryAction::Other(value) => format!("action-{value}"),
    }
}

/// A few words for the numbers that are met most.
#[must_use]
pub fn meaning(xid: u64) -> Option<&'static str> {
    Some(match xid {
        13 => "a program's exception on the GPU",
        31 => "a program's memory page fault",
        43 => "a program was stopped",
        45 => "a program's channel was removed",
        48 => "a double-bit ECC error",
        63 => "a memory row was remapped",
        64 => "a memory row could not be remapped",
        68 => "an exception of a video decoder",
        74 => "an NVLink error",
        79 => "the GPU has fallen off the bus",
        92 => "many single-bit ECC errors",
        94 => "a contained ECC error",
        95 => "an uncontained ECC error",
        109 => "a context switch timed out",
        119 => "the GPU's own processor does not answer",
        120 => "the GPU's own processor failed",
        _ => return None,
    })
}

/// XIDs that make nothing unhealthy: those that NVIDIA's catalogue says so of, and those that the operator adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredXids(BTreeSet<u64>);

/// A text that is not a list of XIDs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a list of XIDs; write numbers, separated by commas")]
pub struct InvalidXid(String);

impl IgnoredXids {
    /// Whether this XID leaves the device healthy.
    #[must_use]
    pub fn has(&self, xid: u64) -> bool {
        self.0.contains(&xid)
    }
}

impl Default for IgnoredXids {
    fn default() -> Self {
        Self(HARMLESS.into())
    }
}

impl FromStr for IgnoredXids {
    type Err = InvalidXid;

    /// Reads the numbers that are added to those of the catalogue.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut ignored = Self::default();
        for part in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            let number = part.parse().map_err(|_| InvalidXid(part.to_owned()))?;
            ignored.0.insert(number);
        }
        if MOST < ignored.0.len() { Err(InvalidXid(text.to_owned())) } else { Ok(ignored) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_adds_to_the_errors_of_applications() {
        let ignored: IgnoredXids = "74, 94,".parse().unwrap();
        assert!([8, 11, 13, 31, 43, 45, 63, 68, 74, 94].iter().all(|it| ignored.has(*it)));
        assert!([48, 109].iter().all(|it| !ignored.has(*it)));
        assert_eq!("".parse(), Ok(IgnoredXids::default()));
        for text in ["x", "1;2", "-1", "1.5"] {
            assert!(text.parse::<IgnoredXids>().is_err(), "{text}");
        }
    }

    #[test]
    fn no_error_is_in_two_lists() {
        assert!(HARMLESS.is_sorted() && OF_THE_GPU.is_sorted());
        assert!(OF_THE_GPU.iter().chain([&CONTAINED]).all(|it| !HARMLESS.contains(it)));
    }

    #[test]
    fn a_cause_is_reported_with_its_meaning() {
        assert_eq!(Cause::Xid(48).to_string(), "XID 48 (a double-bit ECC error)");
        assert_eq!(Cause::Xid(7777).to_string(), "XID 7777");
    }
}
