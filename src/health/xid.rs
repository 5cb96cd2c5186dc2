//! What NVIDIA's error numbers mean for a GPU. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// XIDs that a program causes by what it does, and that leave the GPU as good as it was: the list of NVIDIA's own driver
/// (mig-nvml-cdi.md 6).
const OF_APPLICATIONS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// XIDs that concern the whole GPU, whichever instance they are attributed to: a row that could not be remapped, off the bus,
/// an uncontained ECC error, and two failures of the GPU's own processor.
const OF_THE_GPU: [u64; 5] = [64, 79, 95, 119, 120];

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
}

impl Cause {
    /// True where the whole GPU suffers, even if an instance was the first to notice.
    #[must_use]
    pub fn concerns_the_gpu(self) -> bool {
        matches!(self, Self::Xid(number) if OF_THE_GPU.contains(&number))
    }

    /// The name of the taint's key behind the driver's name, and its value.
    #[must_use]
    pub fn taint(self) -> (&'static str, String) {
        match self {
            Self::Xid(number) => ("xid", number.to_string()),
            Self::DoubleBitEcc => ("ecc", "double-bit".to_owned()),
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
        }
    }
}

/// A few words for the numbers that are met most.
#[must_use]
pub(super) fn meaning(xid: u64) -> Option<&'static str> {
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
        109 => "a program's context switch timed out",
        119 => "the GPU's own processor does not answer",
        120 => "the GPU's own processor failed",
        _ => return None,
    })
}

/// XIDs that make nothing sick: those of applications, and those that the operator adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredXids(BTreeSet<u64>);

/// A text that is not a list of XIDs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a list of XIDs; write numbers, separated by commas")]
pub struct InvalidXid(String);

impl IgnoredXids {
    /// Whether this number makes nothing sick.
    #[must_use]
    pub fn has(&self, xid: u64) -> bool {
        self.0.contains(&xid)
    }
}

impl Default for IgnoredXids {
    fn default() -> Self {
        Self(OF_APPLICATIONS.into())
    }
}

impl FromStr for IgnoredXids {
    type Err = InvalidXid;

    /// Reads the numbers that are added to those of applications.
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
        let ignored: IgnoredXids = "63, 94,".parse().unwrap();
        assert!([13, 31, 43, 45, 68, 109, 63, 94].iter().all(|it| ignored.has(*it)));
        assert!(!ignored.has(48));
        assert_eq!("".parse(), Ok(IgnoredXids::default()));
        for text in ["x", "1;2", "-1", "1.5"] {
            assert!(text.parse::<IgnoredXids>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_cause_is_told_with_its_meaning() {
        assert_eq!(Cause::Xid(48).to_string(), "XID 48 (a double-bit ECC error)");
        assert_eq!(Cause::Xid(7777).to_string(), "XID 7777");
    }
}
