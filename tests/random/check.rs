//! What must hold between two steps: hardware and files against the model.

use std::collections::{BTreeMap, BTreeSet};

use nvml_sim::{GiSnapshot, GpuSnapshot};

use super::World;
use super::model::{CUTS, Part, State, Tenant};
use super::record::{self, Recorded};

impl World {
    /// No call comes: hardware and files are what the model says.
    pub(crate) fn check(&self) {
        let recorded = self.recorded();
        let found = BTreeSet::from_iter(self.lab.recorded());
        if found != recorded {
            self.fail(&format!("state files of {found:?} and not of {recorded:?}"));
        }
        let in_cdi = BTreeSet::from_iter(self.lab.in_cdi());
        if !in_cdi.is_subset(&recorded) {
            self.fail(&format!("CDI files of {in_cdi:?} and state files of {recorded:?}"));
        }
        let snapshot = self.lab.sim.snapshot().unwrap();
        self.check_records(&snapshot.boot_id);
        for gpu in &snapshot.gpus {
            self.check_gpu(gpu);
        }
        for tenant in self.model.tenants.iter().filter(|it| it.is_in_use()) {
            if !in_cdi.contains(&tenant.claim.uid) {
                self.fail(&format!("no CDI file of {}", tenant.claim.name));
            }
        }
    }

    /// Records say what the model says, and no two of this boot have the same part of a GPU.
    fn check_records(&self, boot_id: &str) {
        let mut had: Vec<(Part, &str)> = Vec::new();
        for tenant in &self.model.tenants {
            let name = tenant.claim.name.as_str();
            let Some(recorded) = record::read(&self.lab, &tenant.claim.uid, boot_id) else { continue };
            if tenant.work.is_none() && recorded.state != tenant.state {
                self.fail(&format!("{name} is {:?} by its state file", recorded.state));
            }
            if recorded.state == State::Stale {
                continue;
            }
            let parts: Vec<Part> = self.parts_of(&recorded);
            if let Some((_, other)) = had.iter().find(|(part, _)| parts.iter().any(|it| it.overlaps(part))) {
                self.fail(&format!("{name} and {other} have the same part of a GPU on record"));
            }
            had.extend(parts.into_iter().map(|it| (it, name)));
        }
    }

    fn parts_of(&self, recorded: &Recorded) -> Vec<Part> {
        let part = |(name, _): &(String, _)| {
            let gpu = self.gpu_names.iter().position(|it| name.starts_with(it)).unwrap();
            let rest = name.strip_prefix(&self.gpu_names[gpu]).unwrap();
            let (_, _, start, size) = *CUTS.iter().find(|it| it.0 == rest).unwrap();
            Part { gpu, start, size, is_whole: rest.is_empty() }
        };
        recorded.devices.iter().map(part).collect()
    }

    fn check_gpu(&self, found: &GpuSnapshot) {
        let gpu = found.index;
        let part = |it: &GiSnapshot| Part { gpu, start: it.start, size: it.size, is_whole: false };
        let unmanaged: BTreeMap<u32, Part> =
            self.model.unmanaged.iter().map(|it| (it.serial, it.part)).collect();
        let (others, ours): (Vec<&GiSnapshot>, Vec<&GiSnapshot>) =
            found.gpu_instances.iter().partition(|it| unmanaged.get(&it.serial) == Some(&part(it)));
        let in_use = self.model.tenants.iter().filter(|it| it.is_in_use());
        let wanted: Vec<Part> = in_use
            .flat_map(|tenant| tenant.parts.iter().filter(|it| !tenant.lost.contains(it)))
            .filter(|it| it.gpu == gpu)
            .copied()
            .collect();
        let may_be = |it: &Tenant, part: &Part| it.is_in_between() && it.parts.contains(part);
        for instance in &ours {
            let part = part(instance);
            let is_in_between = self.model.tenants.iter().any(|it| may_be(it, &part));
            if !wanted.contains(&part) && !is_in_between {
                self.fail(&format!("no claim owns {instance:?} on GPU {gpu}"));
            }
            // Only what is half made or half destroyed may be without its compute instance.
            if instance.compute_instances.len() != 1 && !is_in_between {
                self.fail(&format!("not one compute instance in {instance:?} on GPU {gpu}"));
            }
        }
        for it in &wanted {
            let is_there = ours.iter().any(|instance| part(instance) == *it);
            let is_right = if it.is_whole { !found.mig_current } else { is_there };
            if !is_right {
                self.fail(&format!("{it:?} is missing"));
            }
        }
        for unmanaged in self.model.unmanaged.iter().filter(|it| it.part.gpu == gpu) {
            if !others.iter().any(|it| it.serial == unmanaged.serial) {
                self.fail(&format!("the driver has destroyed {unmanaged:?}"));
            }
            let instance = others.iter().find(|it| it.serial == unmanaged.serial).unwrap();
            if instance.compute_instances.is_empty() != unmanaged.is_bare {
                self.fail(&format!("the driver has changed {unmanaged:?}"));
            }
        }
    }
}
