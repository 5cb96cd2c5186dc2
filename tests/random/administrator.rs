//! What an administrator and the hardware do beside the driver: instances made and destroyed by hand, GPUs that hang.

use nvml_sim::{Action, Code, Fault, mig};

use super::model::{BY_HAND, CUTS, Hung, Part, State, Tenant, Unmanaged};
use super::record::{self, Progress};
use super::{GPUS, World};

/// Calls that change a GPU, one of which hangs.
const CHANGES: [&str; 5] = [
    "nvmlDeviceSetMigMode",
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlGpuInstanceCreateComputeInstance",
    "nvmlComputeInstanceDestroy",
    "nvmlGpuInstanceDestroy",
];

/// What an instance that an administrator makes counts as.
enum Counts {
    Unmanaged,
    /// Profile, placement and id are those of one that was destroyed by hand, and the driver has not looked in between.
    Ours(usize),
    /// It is unknown, or it may not be there.
    Nothing,
}

impl World {
    /// An administrator makes an instance.
    pub(crate) fn plant(&mut self) {
        let part = |gpu, start, size| Part { gpu, start, size, is_whole: false };
        let all = (0..GPUS).flat_map(|gpu| {
            BY_HAND.iter().map(move |(profile, start, size)| (*profile, part(gpu, *start, *size)))
        });
        let mut places: Vec<(&str, Part)> = all.collect();
        // Often where an instance of ours was, or is about to be.
        let is_ours = |it: &Part| {
            let overlaps = |other: &Part| other.overlaps(it);
            self.model.tenants.iter().any(|tenant| match tenant.is_in_between() {
                true => tenant.parts.iter().any(overlaps),
                false => tenant.lost.iter().any(overlaps),
            })
        };
        let ours: Vec<(&str, Part)> = places.iter().filter(|it| is_ours(&it.1)).copied().collect();
        if !ours.is_empty() && self.random.percent(70) {
            places = ours;
        }
        let (profile, part) = *self.random.pick(&places);
        let (gpu, start) = (part.gpu, part.start);
        let is_bare = self.random.percent(25);
        let counts = self.counts_as(&part, profile, is_bare);
        if matches!(counts, Counts::Nothing) {
            return;
        }
        // It may not fit beside what is there.
        let Ok(planted) = self.lab.sim.plant_instance(gpu, profile, start) else { return };
        let (gi, ci) = (planted.gpu_instance, planted.compute_instance);
        if is_bare {
            self.lab.sim.on_gpu(gpu, |it| mig::destroy_compute_instance(it, gi, ci).unwrap()).unwrap();
        }
        let found = self.lab.sim.snapshot().unwrap().gpus[gpu].gpu_instances.clone();
        let serial = found.iter().find(|it| it.id == gi).unwrap().serial;
        self.note(format!("an administrator makes {profile} as {part:?}, bare: {is_bare}"));
        self.meet("instances of an administrator");
        let is_in_a_place_of_ours = |it: &Tenant| it.is_recorded() && it.needs(&part);
        if self.model.tenants.iter().any(is_in_a_place_of_ours) {
            self.meet("of these where ours was");
        }
        match counts {
            Counts::Ours(number) => self.model.tenants[number].lost.retain(|it| *it != part),
            _ => self.model.unmanaged.push(Unmanaged { part, serial, is_bare }),
        }
    }

    /// See "What is not promised" of the driver's guarantees.
    fn counts_as(&self, part: &Part, profile: &str, is_bare: bool) -> Counts {
        if !self.model.is_open_to_others(part) {
            return Counts::Nothing;
        }
        let boot_id = self.lab.sim.snapshot().unwrap().boot_id;
        let is_same = |it: &Part| {
            let own = CUTS.iter().find(|cut| (cut.2, cut.3) == (it.start, it.size));
            it == part && own.is_some_and(|cut| cut.1 == profile)
        };
        for (number, tenant) in self.model.tenants.iter().enumerate() {
            let Some(own) = tenant.parts.iter().find(|it| is_same(it)) else { continue };
            let Some(recorded) = record::read(&self.lab, &tenant.claim.uid, &boot_id) else { continue };
            match recorded.progress(&self.device_of(own)) {
                Some(Progress::Creating) if is_bare => return Counts::Nothing,
                Some(Progress::Made) if tenant.lost.contains(own) && is_bare => return Counts::Nothing,
                Some(Progress::Made) if tenant.lost.contains(own) => return Counts::Ours(number),
                _ => {}
            }
        }
        Counts::Unmanaged
    }

    /// The name of the device that is made as this part.
    pub(crate) fn device_of(&self, part: &Part) -> String {
        let is_it = |cut: &&(&str, &str, u32, u32)| {
            (cut.2, cut.3, cut.0.is_empty()) == (part.start, part.size, part.is_whole)
        };
        format!("{}{}", self.gpu_names[part.gpu], CUTS.iter().find(is_it).unwrap().0)
    }

    /// And destroys it.
    pub(crate) fn uproot(&mut self) {
        if self.model.unmanaged.is_empty() {
            return;
        }
        let gone = self.random.below(self.model.unmanaged.len());
        let Unmanaged { part, serial, .. } = self.model.unmanaged.swap_remove(gone);
        self.note(format!("an administrator destroys {part:?}"));
        self.lab.sim.on_gpu(part.gpu, |gpu| gpu.instances.retain(|it| it.serial != serial)).unwrap();
    }

    /// An administrator destroys an instance of ours under a prepared claim.
    pub(crate) fn destroy_ours(&mut self) {
        let ready = |it: &Tenant| {
            it.state == State::Prepared && it.work.is_none() && it.process.is_none() && it.cut().is_some()
        };
        let ready: Vec<usize> =
            (0..self.model.tenants.len()).filter(|it| ready(&self.model.tenants[*it])).collect();
        if ready.is_empty() {
            return;
        }
        let number = *self.random.pick(&ready);
        for _ in 0..=self.random.below(2) {
            self.destroy_one_of(number);
        }
        // Perhaps to cut the GPU otherwise, or the same again.
        if self.random.percent(40) {
            self.plant();
        }
    }

    fn destroy_one_of(&mut self, number: usize) {
        let Some(part) = self.model.tenants[number].cut() else { return };
        let is_it = |it: &nvml_sim::GpuInstance| it.start == part.start && it.size == part.size;
        self.lab.sim.on_gpu(part.gpu, |gpu| gpu.instances.retain(|it| !is_it(it))).unwrap();
        let tenant = &mut self.model.tenants[number];
        tenant.lost.push(part);
        let name = tenant.claim.name.clone();
        self.meet("our instances destroyed by an administrator");
        self.note(format!("an administrator destroys {part:?} of {name}"));
    }

    /// A GPU does not answer any more, or not one of the calls that change it; perhaps after a failure for the moment.
    pub(crate) fn hang(&mut self) {
        if self.model.hung.is_some() {
            return;
        }
        let gpu = self.random.below(GPUS);
        let is_whole = self.random.percent(40);
        let fault = if is_whole {
            Fault::hanging_gpu(gpu).skipping(u32::try_from(self.random.below(40)).unwrap())
        } else {
            let skip = u32::from(self.random.percent(25));
            Fault::hanging(CHANGES[self.random.below(CHANGES.len())]).on_gpu(gpu).skipping(skip)
        };
        self.note(format!("hangs: {fault:?}"));
        if self.random.percent(30) {
            let fails = Fault::returning(CHANGES[self.random.below(CHANGES.len())], Code::IN_USE)
                .on_gpu(gpu)
                .times(1);
            self.history.push(format!("first {fails:?}"));
            self.lab.sim.inject(fails).unwrap();
        }
        assert_eq!(fault.action, Action::Hang);
        self.lab.sim.inject(fault).unwrap();
        self.model.hung = Some(Hung { gpu, is_whole });
    }

    /// The GPU answers again.
    pub(crate) fn unhang(&mut self) {
        if let Some(Hung { gpu, .. }) = self.model.hung.take() {
            self.lab.sim.take_faults(gpu).unwrap();
            self.note(format!("GPU {gpu} answers again"));
        }
    }
}
