//! State of the node at one moment, for every part of the driver.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mig_model::health::Report;
use mig_model::inventory::{Gpu, Inventory, OfferPolicy, Problem, Withheld};

use super::Hardware;
use crate::access::AccessReport;
use crate::readiness::HostCondition;

/// What is known of the node at this moment.
#[derive(Debug, Clone)]
pub struct NodeState {
    /// The GPUs, or why there are none.
    pub hardware: Result<Arc<Hardware>, String>,
    /// What they offer.
    pub inventory: Arc<Inventory>,
    /// What that was made from.
    pub inputs: Arc<InventoryInputs>,
    /// Names of the devices that claims hold.
    pub held: BTreeSet<String>,
    /// GPUs that are not offered, and why.
    pub problems: Vec<Problem>,
    /// Unmanaged instances that are not published, and why.
    pub left_alone: Vec<String>,
    /// GPUs that this process does not see, and whether it may create instances on the others.
    pub access: AccessReport,
    /// What GPUs and instances suffer from.
    pub health: Arc<Report>,
    /// How many devices of a GPU are unavailable, and why, by the name of its counter set.
    pub withheld: BTreeMap<(String, Withheld), usize>,
    /// What on the host keeps claims from being prepared or containers from working, the worst first.
    pub host: Vec<HostCondition>,
}

/// What an inventory is made from, besides what NVML says once and for all.
#[derive(Debug, Default)]
pub struct InventoryInputs {
    /// The GPUs, with a problem for those of which no further claim should get a part.
    pub gpus: Vec<Gpu>,
    /// On which terms they are offered.
    pub policy: OfferPolicy,
}

impl NodeState {
    /// Which GPUs cannot be read or used now, and why; empty where all of them can.
    #[must_use]
    pub fn unread(&self) -> String {
        let may_come_back = match &self.hardware {
            Ok(hardware) => !hardware.is_complete(),
            Err(reason) => return reason.clone(),
        };
        match self.problems.as_slice() {
            [] if may_come_back => "some were skipped".to_owned(),
            problems => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        }
    }

    /// True where NVML shows every GPU that the kernel lists. One that it does not show, because the container has no device
    /// node of it, may have instances all the same.
    #[must_use]
    pub fn sees_all_gpus(&self) -> bool {
        self.access.missing.is_empty()
    }

    /// A node of which no more is known than why there is nothing.
    #[must_use]
    pub fn without(reason: &str) -> Self {
        Self {
            hardware: Err(reason.to_owned()),
            inventory: Arc::default(),
            inputs: Arc::default(),
            held: BTreeSet::new(),
            problems: Vec::new(),
            left_alone: Vec::new(),
            withheld: BTreeMap::new(),
            access: AccessReport::default(),
            health: Arc::default(),
            host: Vec::new(),
        }
    }
}
