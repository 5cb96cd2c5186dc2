//! What the hardware watch reports to the rest of the driver: the state of the node, and events where it changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use mig_model::facts::GpuInstance;
use mig_model::health::Report;
use mig_model::inventory::{
    AttributeSet, ExistingInstances, Gpu, HostAccess, Inventory, MigAccess, OfferPolicy, Problem,
    inventory_on, not_adopted, withheld,
};
use tracing::warn;

use super::hardware_watch::HardwareWatch;
use super::problems::{left_alone, otherwise, problems};
use crate::api::EventReason;
use crate::checkpoint::{RecordedKind, Stored};
use crate::hardware::{Hardware, InventoryInputs, NodeState};
use crate::readiness::Effect;

impl HardwareWatch {
    /// Reports unmanaged instances that are not published; an adopted instance is no event.
    pub(super) fn emit_unmanaged(&self, gpu: &Gpu, instances: &[GpuInstance]) {
        let (uuid, policy) = (&gpu.facts.uuid, self.policy());
        let is_offered =
            |it: &GpuInstance| policy.as_ref().is_ok_and(|policy| not_adopted(gpu, it, policy).is_none());
        for instance in instances.iter().filter(|it| !is_offered(it)) {
            let (gi, placement) = (instance.id, instance.placement);
            let note = format!(
                "Unmanaged MIG instance {gi} at {placement} of GPU {uuid}: what it occupies is not offered. \
                 `dra-driver-mig inspect` shows it; once it is destroyed, its place is offered."
            );
            self.context.events.emit(EventReason::UnmanagedInstance, note);
        }
    }

    /// Logs what is new about a GPU.
    pub(super) fn report(&self, gpu: &Gpu) {
        let before = self.gpus.iter().find(|it| it.facts.uuid == gpu.facts.uuid).map(|it| &it.state);
        let uuid = &gpu.facts.uuid;
        let mut new = gpu.state.instances.clone();
        new.retain(|it| !before.is_some_and(|before| before.instances.contains(it)));
        for GpuInstance { id: gi, placement, .. } in &new {
            warn!(uuid, gi, %placement, "unmanaged MIG instance: no device is published for its placement");
        }
        if !new.is_empty() {
            self.emit_unmanaged(gpu, &new);
        }
        if let Some(problem) = &gpu.state.problem
            && before.is_none_or(|it| it.problem.as_ref() != Some(problem))
        {
            warn!(uuid, problem, "GPU cannot be read: only allocated devices of it stay published");
        }
        if let Some(mode) = gpu.state.mode
            && mode.current != mode.pending
            && before.is_none_or(|it| it.mode != gpu.state.mode)
        {
            warn!(
                uuid,
                current = mode.current,
                pending = mode.pending,
                "MIG mode changes when the node is rebooted or the GPU is reset"
            );
        }
    }

    /// Follows what claims hold. The inventory depends on it only where something is withheld, and is not rebuilt
    /// elsewhere; the order in which devices are offered always does.
    pub(super) fn note_held(&self) -> anyhow::Result<()> {
        if !self.health.report().instances.is_empty() {
            let records = self.context.checkpoint.records()?;
            self.health.change(|it, _, _| it.live(&records, &self.gpus));
        }
        let OfferPolicy { held, unhealthy, .. } = self.policy()?;
        let (hardware, is_independent) = {
            let state = self.state.borrow();
            let offers_all =
                held.iter().all(|name| state.inventory.devices().any(|it| it.name.as_str() == name));
            let withholds_nothing = state.inventory.gpus.iter().all(|it| it.withheld.is_empty());
            let is_independent = offers_all && withholds_nothing && unhealthy.is_empty();
            (state.hardware.clone(), is_independent)
        };
        if !is_independent {
            return self.publish(hardware);
        }
        self.state.send_if_modified(|state| {
            let is_same = state.held == held;
            state.held = held;
            !is_same
        });
        Ok(())
    }

    /// What is wanted, and what claims hold. The CDI file stands in for a record that cannot be read. Fails where neither can be read
    /// now: the devices of that claim must not be withdrawn.
    pub(super) fn policy(&self) -> anyhow::Result<OfferPolicy> {
        let (existing, time_slices) = (self.existing, self.time_slices);
        let unhealthy = self.health.report().unhealthy_adopted();
        let mig_access = mig_access(self.host_effect());
        let with_refusal =
            self.gpus.iter().map(|it| &it.facts.uuid).filter(|it| self.readiness.is_refused(it));
        let refused = with_refusal.cloned().collect();
        let mut policy = OfferPolicy {
            attributes: AttributeSet::of_driver(&self.context.driver),
            existing,
            time_slices,
            unhealthy,
            mig_access,
            refused,
            ..OfferPolicy::default()
        };
        let mut unrecorded = BTreeSet::new();
        // Only an unmanaged instance may belong to a claim whose record is lost.
        if existing == ExistingInstances::Adopt && self.gpus.iter().any(|it| !it.state.instances.is_empty()) {
            unrecorded.extend(self.cdi.list()?);
        }
        for (uid, stored) in self.context.checkpoint.list()? {
            match &*stored {
                Stored::Nothing => continue,
                Stored::Record(record) => {
                    for device in record.held() {
                        policy.held.insert(device.name.clone());
                        if let RecordedKind::Adopted(adopted) = &device.kind {
                            policy.adopted.push((device.parent_uuid.clone(), adopted.clone()));
                        }
                    }
                }
                Stored::Unreadable(_) | Stored::Inaccessible(_) => {
                    let in_cdi = self.cdi.named(uid.as_str())?;
                    self.context.checkpoint.named_instead(&uid, &stored, &in_cdi.all)?;
                    policy.held.extend(in_cdi.held);
                }
            }
            unrecorded.remove(uid.as_str());
        }
        for uid in unrecorded {
            policy.named.extend(self.cdi.devices(&uid)?);
        }
        Ok(policy)
    }

    /// Reports which GPUs are no longer published, and which are again. A GPU whose problem is now its health is reported elsewhere,
    /// and does not count as published again.
    pub(super) fn emit_problems(&self, before: &[Problem], now: &[Problem], health: &Report) {
        for problem in otherwise(now, health).filter(|it| !before.contains(it)) {
            let note = format!("Unavailable; allocated devices stay published: {problem}");
            self.context.events.emit(EventReason::GpuNotOffered, note);
        }
        for Problem { gpu, .. } in before.iter().filter(|it| !now.iter().any(|now| now.gpu == it.gpu)) {
            self.context.events.emit(EventReason::GpuOffered, format!("GPU {gpu}: is offered again."));
        }
    }

    pub(super) fn publish(&self, hardware: Result<Arc<Hardware>, String>) -> anyhow::Result<()> {
        let (policy, health) = (self.policy()?, self.health.report());
        let gpus = self.withhold(&health);
        let inventory = match &hardware {
            Ok(hardware) => inventory_on(&hardware.facts, &gpus, &policy),
            Err(_) => Inventory::default(),
        };
        let skipped = hardware.as_ref().map_or(&[][..], |it| &it.facts.skipped);
        let access = self.kernel.access.report(hardware.as_ref().ok().map(|it| &it.facts));
        let problems = problems(&self.gpus, skipped, &access.missing, &health);
        let left_alone = left_alone(&self.gpus, &policy);
        if hardware.is_ok() {
            let before = self.state.borrow();
            let reported: Vec<Problem> = otherwise(&before.problems, &before.health).cloned().collect();
            self.emit_problems(&reported, &problems, &health);
            self.report_host(&before.host);
        }
        let can_prepare = self.host_effect() != Some(Effect::NoClaims);
        let offered = HostAccess { can_prepare, policy: &policy };
        let withheld = withheld(&inventory, &self.gpus, &health, &offered);
        let host = self.host.clone();
        let held = policy.held.clone();
        let inputs = InventoryInputs { gpus, policy };
        // Dropped after the lock: closing NVML takes its time.
        let mut before = None;
        self.state.send_if_modified(|state| {
            let is_same = *state.inventory == inventory
                && state.held == held
                && state.problems == problems
                && state.left_alone == left_alone
                && state.withheld == withheld
                && state.access == access
                && state.host == host
                && state.health == health
                && state.hardware.is_ok() == hardware.is_ok()
                && state.hardware.as_ref().err() == hardware.as_ref().err();
            let (inventory, inputs) = (Arc::new(inventory), Arc::new(inputs));
            let now = NodeState {
                hardware,
                inventory,
                inputs,
                held,
                problems,
                left_alone,
                withheld,
                access,
                health,
                host,
            };
            before = Some(std::mem::replace(state, now));
            !is_same
        });
        Ok(())
    }
}

/// What the worst condition of the host leaves of MIG.
fn mig_access(worst: Option<Effect>) -> MigAccess {
    match worst {
        Some(Effect::NoClaims | Effect::NoMig) => MigAccess::None,
        Some(Effect::NoPartitioning) => MigAccess::ExistingOnly,
        Some(Effect::MayRefuse | Effect::Impaired | Effect::Degraded) | None => MigAccess::Full,
    }
}
