//! The state of a claim, as `/metrics` and `inspect` show it.

use serde::{Serialize, Serializer};

use super::{Record, Stage, Stored};
use crate::telemetry::metrics::label_values;

label_values! {
    /// State of a claim on this node. The label value is the value in JSON, too.
    ClaimState {
        /// The driver is creating its devices.
        Preparing = "preparing",
        /// A pod may be running with its devices.
        Prepared = "prepared",
        /// The driver is destroying its devices.
        Unpreparing = "unpreparing",
        /// The node was rebooted since; the driver recreates its devices when the kubelet asks.
        EarlierBoot = "earlierBoot",
        /// Its state file cannot be read.
        Unreadable = "unreadable",
    }
}

impl ClaimState {
    /// The state by what is on disk; `None` where there is no record.
    #[must_use]
    pub fn of(stored: &Stored, boot_id: &str) -> Option<Self> {
        match stored {
            Stored::Nothing => None,
            Stored::Unreadable(_) | Stored::Inaccessible(_) => Some(Self::Unreadable),
            Stored::Record(record) => Some(Self::of_record(record, boot_id)),
        }
    }

    /// The state by a record.
    #[must_use]
    pub fn of_record(record: &Record, boot_id: &str) -> Self {
        match record.stage {
            // What an earlier boot began to destroy is not prepared again.
            Stage::Unpreparing => Self::Unpreparing,
            _ if record.boot_id != boot_id => Self::EarlierBoot,
            Stage::Preparing => Self::Preparing,
            Stage::Prepared => Self::Prepared,
        }
    }
}

impl Serialize for ClaimState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::fixture::record;
    use super::*;

    #[test]
    fn a_record_of_another_boot_is_of_an_earlier_boot_unless_it_is_being_unprepared() {
        let state = |stage: Stage, boot_id: &str| {
            let stored = Stored::Record(Arc::new(Record { stage, ..record("uid-1") }));
            serde_json::to_value(ClaimState::of(&stored, boot_id)).unwrap()
        };
        let stages = [Stage::Preparing, Stage::Prepared, Stage::Unpreparing];
        assert_eq!(stages.map(|it| state(it, "boot")), ["preparing", "prepared", "unpreparing"]);
        assert_eq!(stages.map(|it| state(it, "later")), ["earlierBoot", "earlierBoot", "unpreparing"]);
        assert_eq!(ClaimState::of(&Stored::Nothing, "boot"), None);
        let unreadable = Stored::Unreadable("no JSON".to_owned());
        assert_eq!(ClaimState::of(&unreadable, "boot"), Some(ClaimState::Unreadable));
    }
}
