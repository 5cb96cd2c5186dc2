//! The state machine: events, scans and the clock in, conditions out. Pure; the table is in the module above.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Cause, Condition, IgnoredXids, Instance, Owner, Report, SickInstance, Sickness};
use crate::checkpoint::{Progress, Record, RecordedDevice, RecordedKind};
use crate::claim::ClaimRef;
use crate::inventory;
use crate::nvml::facts::GpuInstance;
use crate::nvml::{EventKind, GpuEvent, Hearing, Listening, is_unsupported};

/// How long a GPU may be unheard or unread before that is a condition of its own: longer than it takes to listen anew.
pub const GRACE: Duration = Duration::from_secs(15);

/// Most sick instances that are remembered: more than a node has.
const MOST_INSTANCES: usize = 512;

/// What is known of all GPUs.
#[derive(Debug, Default)]
pub struct Machine {
    ignored: IgnoredXids,
    gpus: BTreeMap<String, Gpu>,
    instances: Vec<SickInstance>,
    /// Why no GPU is heard at the moment.
    deaf: Option<Gap>,
}

#[derive(Debug, Default)]
struct Gpu {
    sick: Option<Sickness>,
    /// What NVML said, and since when.
    lost: Option<(String, u64)>,
    /// Why its events are not heard.
    unheard: Option<Gap>,
    /// Why it cannot be read.
    unread: Option<Gap>,
}

#[derive(Debug)]
struct Gap {
    reason: String,
    since: Instant,
    is_for_good: bool,
}

/// What a scan found of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scan {
    /// It answers.
    Well,
    /// It is lost, in NVML's words.
    Lost(String),
    /// It could not be read for another reason.
    Unread(String),
}

/// What an event turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A program's own doing, or an error that was corrected.
    Harmless,
    /// The instance of a claim suffers, or one that could be a claim's.
    Instance,
    /// The whole GPU suffers.
    Gpu,
    /// Somebody else's instance suffers, which is none of ours to judge.
    Foreign,
}

impl Machine {
    /// Begins with what was known when the process ended before: GPUs and instances that were sick.
    #[must_use]
    pub fn new(ignored: IgnoredXids, gpus: BTreeMap<String, Sickness>, instances: Vec<SickInstance>) -> Self {
        let sick = |(uuid, it)| (uuid, Gpu { sick: Some(it), ..Gpu::default() });
        Self { ignored, gpus: gpus.into_iter().map(sick).collect(), instances, deaf: None }
    }

    /// Something happened. `now` is in seconds since the epoch.
    pub fn event(&mut self, event: &GpuEvent, owner: &Owner, now: u64) -> Verdict {
        let cause = match event.kind {
            EventKind::SingleBitEcc => return Verdict::Harmless,
            EventKind::Xid(number) if self.ignored.has(number) => return Verdict::Harmless,
            EventKind::Xid(number) => Cause::Xid(number),
            EventKind::DoubleBitEcc => Cause::DoubleBitEcc,
        };
        let sickness = Sickness { cause, since: now };
        let (instance, claim) = match owner {
            Owner::Claim(holder) => (holder.instance.as_ref(), Some(&holder.claim)),
            Owner::Unclaimed(instance) => (Some(instance), None),
            Owner::Foreign if !cause.concerns_the_gpu() => return Verdict::Foreign,
            Owner::Foreign | Owner::Gpu => (None, None),
        };
        if let Some(instance) = instance
            && !cause.concerns_the_gpu()
        {
            self.suffers(&event.gpu, instance, claim, sickness);
            return Verdict::Instance;
        }
        self.gpus.entry(event.gpu.clone()).or_default().sick.get_or_insert(sickness);
        Verdict::Gpu
    }

    fn suffers(&mut self, gpu: &str, instance: &Instance, claim: Option<&ClaimRef>, sickness: Sickness) {
        let Instance { device, gpu_instance, uuid, is_adopted } = instance.clone();
        let is_it = |it: &SickInstance| {
            it.parent == gpu && it.uuid == uuid && (is_adopted || it.claim.as_ref() == claim)
        };
        if self.instances.iter().any(is_it) || MOST_INSTANCES <= self.instances.len() {
            return;
        }
        let (parent, claim) = (gpu.to_owned(), claim.cloned());
        self.instances.push(SickInstance { parent, gpu_instance, uuid, claim, device, is_adopted, sickness });
    }

    /// These GPUs are listened to, or not; one that is not mentioned is not. One that is let alone for a moment, so that
    /// something of it can be destroyed, counts as it did before.
    pub fn listening(&mut self, listening: &Listening, at: Instant) {
        for uuid in listening.keys() {
            self.gpus.entry(uuid.clone()).or_default();
        }
        for (uuid, gpu) in &mut self.gpus {
            match listening.get(uuid) {
                Some(Hearing::Heard) => gpu.unheard = None,
                Some(Hearing::Aside) => {}
                Some(Hearing::Failed(error)) => {
                    let reason = format!("its events cannot be heard: {error}");
                    gap(&mut gpu.unheard, reason, is_unsupported(error), at);
                }
                None => gap(&mut gpu.unheard, "nobody listens to its events".to_owned(), false, at),
            }
        }
    }

    /// Whether the thread that listens gives a sign of life. While it does not, no GPU is heard.
    pub fn hears(&mut self, does: bool, at: Instant) {
        if does {
            self.deaf = None;
        } else {
            gap(&mut self.deaf, "the thread that listens to GPUs does not answer".to_owned(), false, at);
        }
    }

    /// GPUs were looked at. `now` is in seconds since the epoch.
    pub fn scanned(&mut self, scans: impl IntoIterator<Item = (String, Scan)>, at: Instant, now: u64) {
        for (uuid, scan) in scans {
            let gpu = self.gpus.entry(uuid.clone()).or_default();
            match scan {
                Scan::Well => {
                    gpu.unread = None;
                    // What has been lost answers only after it was reset.
                    if gpu.lost.take().is_some() {
                        gpu.sick = None;
                        self.instances.retain(|it| it.parent != uuid);
                    }
                }
                Scan::Lost(reason) => {
                    gpu.lost.get_or_insert((reason, now));
                }
                Scan::Unread(reason) => gap(&mut gpu.unread, reason, false, at),
            }
        }
    }

    /// Forgets the sick instances that are none of these claims' any more: they are gone, or made anew. Those that somebody
    /// else made are only gone if they are not on these GPUs any more; of a GPU that cannot be read that is not known.
    pub fn live(&mut self, records: &[Arc<Record>], gpus: &[inventory::Gpu]) {
        let exists = |sick: &SickInstance| {
            let gpu = gpus.iter().find(|it| it.facts.uuid == sick.parent);
            let is_it = |it: &GpuInstance| {
                it.id == sick.gpu_instance && it.compute_instances.iter().any(|it| it.uuid == sick.uuid)
            };
            gpu.is_none_or(|it| it.state.problem.is_some() || it.state.instances.iter().any(is_it))
        };
        let is_it = |sick: &SickInstance, device: &RecordedDevice| match &device.kind {
            RecordedKind::Mig { progress: Progress::Complete { gpu_instance, uuid, .. }, .. } => {
                device.name == sick.device && *gpu_instance == sick.gpu_instance && *uuid == sick.uuid
            }
            RecordedKind::Adopted(it) => {
                device.name == sick.device && it.gpu_instance == sick.gpu_instance && it.uuid == sick.uuid
            }
            _ => false,
        };
        self.instances.retain_mut(|sick| {
            let has_it = |it: &&Arc<Record>| it.devices.iter().any(|device| is_it(sick, device));
            let holder = if sick.is_adopted {
                records.iter().find(has_it)
            } else {
                records.iter().filter(|it| Some(&it.claim) == sick.claim.as_ref()).find(has_it)
            };
            let claim = holder.map(|it| it.claim.clone());
            let stays = claim.is_some() || sick.is_adopted && exists(sick);
            sick.claim = claim;
            stays
        });
    }

    /// The NVIDIA driver was loaded anew, which resets GPUs, or an operator says that all is well. What is lost stays so until
    /// it answers.
    pub fn forget(&mut self) {
        self.gpus.values_mut().for_each(|it| it.sick = None);
        self.instances.clear();
    }

    /// What is sick, by itself or by its instance.
    #[must_use]
    pub fn sick(&self) -> (BTreeMap<String, Sickness>, &[SickInstance]) {
        let gpus = self.gpus.iter().filter_map(|(uuid, it)| Some((uuid.clone(), it.sick?)));
        (gpus.collect(), &self.instances)
    }

    /// How everything is at this time.
    #[must_use]
    pub fn report(&self, at: Instant) -> Report {
        let condition = |(uuid, gpu): (&String, &Gpu)| (uuid.clone(), gpu.condition(self.deaf.as_ref(), at));
        Report { gpus: self.gpus.iter().map(condition).collect(), instances: self.instances.clone() }
    }
}

impl Gpu {
    /// `deaf` tells why it is not heard, as no GPU is; one that has no events was never heard.
    fn condition(&self, deaf: Option<&Gap>, at: Instant) -> Condition {
        if let Some((reason, since)) = &self.lost {
            return Condition::Lost { reason: reason.clone(), since: *since };
        }
        if let Some(sickness) = self.sick {
            return Condition::Sick(sickness);
        }
        let lasts = |it: &&Gap| it.is_for_good || GRACE <= at.saturating_duration_since(it.since);
        match self.unread.iter().chain(&self.unheard).chain(deaf).find(lasts) {
            Some(gap) => Condition::Unmonitored { reason: gap.reason.clone(), is_for_good: gap.is_for_good },
            None => Condition::Healthy,
        }
    }
}

/// Notes a gap, or another reason for one that has begun.
fn gap(gap: &mut Option<Gap>, reason: String, is_for_good: bool, at: Instant) {
    let since = gap.as_ref().map_or(at, |it| it.since);
    *gap = Some(Gap { reason, since, is_for_good });
}

#[cfg(test)]
mod tests {
    use super::super::owner::fixture::{record, xid};
    use super::super::{changes, owner};
    use super::*;
    use crate::inventory::Inventory;
    use crate::nvml::{CallError, Code};

    const GPU: &str = "GPU-0";

    fn after(machine: &mut Machine, event: &GpuEvent, records: &[Arc<Record>]) -> Verdict {
        machine.event(event, &owner(event, records, "boot", &Inventory::default()), 7)
    }

    fn heard() -> Listening {
        [(GPU.to_owned(), Hearing::Heard)].into()
    }

    fn error(code: Code) -> Listening {
        [(GPU.to_owned(), Hearing::Failed(CallError { call: "nvmlEventSetWait_v2", code }))].into()
    }

    fn condition(machine: &Machine, at: Instant) -> Condition {
        machine.report(at).gpu(GPU).clone()
    }

    fn sick(xid: u64) -> Condition {
        Condition::Sick(Sickness { cause: Cause::Xid(xid), since: 7 })
    }

    #[test]
    fn an_error_of_nobody_is_the_gpus_and_its_first_reason_stays() {
        let (mut machine, now) = (Machine::default(), Instant::now());
        assert_eq!(after(&mut machine, &xid(GPU, 48, None), &[]), Verdict::Gpu);
        assert_eq!(after(&mut machine, &xid(GPU, 63, None), &[]), Verdict::Gpu);
        assert_eq!(condition(&machine, now), sick(48));
        machine.scanned([(GPU.to_owned(), Scan::Well)], now, 8);
        assert_eq!(condition(&machine, now), sick(48), "that it answers does not make it well");
        machine.forget();
        assert_eq!(condition(&machine, now), Condition::Healthy);
    }

    #[test]
    fn an_error_of_an_instance_is_its_claims_until_it_is_made_anew() {
        let (mut machine, now) = (Machine::default(), Instant::now());
        let records = [record("a", GPU, Some(7)), record("b", GPU, Some(8))];
        assert_eq!(after(&mut machine, &xid(GPU, 94, Some(7)), &records), Verdict::Instance);
        assert_eq!(after(&mut machine, &xid(GPU, 94, Some(7)), &records), Verdict::Instance);
        let report = machine.report(now);
        assert_eq!((report.instances.len(), report.gpu(GPU)), (1, &Condition::Healthy));
        assert!(report.device(GPU, "device-of-a").is_bad() && !report.device(GPU, "device-of-b").is_bad());
        machine.live(&records, &[]);
        assert_eq!(machine.report(now).instances.len(), 1);
        machine.live(&records[1..], &[]);
        assert!(machine.report(now).instances.is_empty());
    }

    #[test]
    fn errors_of_applications_and_of_others_make_nothing_sick() {
        let (mut machine, now) = (Machine::default(), Instant::now());
        let records = [record("a", GPU, Some(7))];
        for number in [13, 31, 43, 45, 68, 109] {
            assert_eq!(after(&mut machine, &xid(GPU, number, None), &records), Verdict::Harmless);
        }
        assert_eq!(after(&mut machine, &xid(GPU, 94, Some(3)), &records), Verdict::Foreign);
        let corrected = GpuEvent { kind: EventKind::SingleBitEcc, ..xid(GPU, 0, Some(7)) };
        assert_eq!(after(&mut machine, &corrected, &records), Verdict::Harmless);
        let report = machine.report(now);
        assert_eq!((report.gpu(GPU), report.instances.len()), (&Condition::Healthy, 0));
    }

    #[test]
    fn some_errors_are_the_gpus_whoever_notices_them() {
        let mut machine = Machine::default();
        let records = [record("a", GPU, Some(7))];
        assert_eq!(after(&mut machine, &xid(GPU, 95, Some(7)), &records), Verdict::Gpu);
        assert_eq!(after(&mut machine, &xid(GPU, 119, Some(3)), &records), Verdict::Gpu);
    }

    #[test]
    fn a_lost_gpu_that_answers_again_is_well() {
        let (mut machine, now) = (Machine::default(), Instant::now());
        after(&mut machine, &xid(GPU, 79, None), &[]);
        let lost = || [(GPU.to_owned(), Scan::Lost("GPU_IS_LOST".to_owned()))];
        machine.scanned(lost(), now, 9);
        machine.scanned(lost(), now, 10);
        let expected = Condition::Lost { reason: "GPU_IS_LOST".to_owned(), since: 9 };
        assert_eq!(condition(&machine, now), expected);
        machine.forget();
        assert_eq!(condition(&machine, now), expected, "nobody can declare it found");
        after(&mut machine, &xid(GPU, 79, None), &[]);
        machine.scanned([(GPU.to_owned(), Scan::Well)], now, 11);
        assert_eq!(condition(&machine, now), Condition::Healthy);
    }

    #[test]
    fn a_gap_counts_once_it_lasts_and_ends_at_once() {
        let (mut machine, start) = (Machine::default(), Instant::now());
        machine.listening(&heard(), start);
        machine.listening(&error(Code::UNKNOWN), start);
        machine.listening(&Listening::new(), start + GRACE / 2);
        assert_eq!(condition(&machine, start + GRACE / 2), Condition::Healthy);
        assert!(matches!(
            condition(&machine, start + GRACE),
            Condition::Unmonitored { is_for_good: false, .. }
        ));
        machine.listening(&heard(), start + GRACE);
        assert_eq!(condition(&machine, start + GRACE), Condition::Healthy);
        machine.hears(false, start + GRACE);
        assert!(matches!(condition(&machine, start + GRACE * 2), Condition::Unmonitored { .. }));
        machine.hears(true, start + GRACE * 2);
        assert_eq!(
            condition(&machine, start + GRACE * 4),
            Condition::Healthy,
            "it need not say again whom it hears"
        );
    }

    #[test]
    fn a_gpu_that_is_let_alone_on_purpose_is_as_it_was() {
        let (mut machine, start) = (Machine::default(), Instant::now());
        let aside = Listening::from([(GPU.to_owned(), Hearing::Aside)]);
        machine.listening(&heard(), start);
        machine.listening(&aside, start);
        machine.listening(&aside, start + GRACE);
        assert_eq!(condition(&machine, start + GRACE * 2), Condition::Healthy);
        machine.listening(&error(Code::UNKNOWN), start);
        machine.listening(&aside, start + GRACE);
        assert!(
            matches!(condition(&machine, start + GRACE), Condition::Unmonitored { .. }),
            "deaf it was before"
        );
    }

    #[test]
    fn an_instance_of_somebody_else_is_sick_until_it_is_gone_whoever_has_it() {
        let (mut machine, now) = (Machine::default(), Instant::now());
        let (device, uuid) = ("device-of-a".to_owned(), "MIG-a".to_owned());
        let instance = Instance { device: device.clone(), gpu_instance: 7, uuid, is_adopted: true };
        let suffer = |machine: &mut Machine| {
            machine.event(&xid(GPU, 94, Some(7)), &Owner::Unclaimed(instance.clone()), 7)
        };
        assert_eq!([suffer(&mut machine), suffer(&mut machine)], [Verdict::Instance; 2]);
        assert_eq!(machine.report(now).sick_adopted(), [device.clone()].into());
        // A claim comes and goes.
        let records = [record("a", GPU, Some(7))];
        machine.live(&records, &[]);
        assert_eq!(machine.report(now).instances[0].claim.as_ref(), Some(&records[0].claim));
        machine.live(&[], &[]);
        assert_eq!(machine.report(now).instances[0].claim, None);
        assert!(machine.report(now).device(GPU, &device).is_bad());
        machine.forget();
        assert_eq!(machine.report(now).instances, []);
    }

    #[test]
    fn a_gpu_without_events_is_unmonitored_for_good_and_that_is_no_silence() {
        let (mut machine, now) = (Machine::default(), Instant::now());
        machine.listening(&error(Code::FUNCTION_NOT_FOUND), now);
        machine.hears(false, now);
        let is_for_good = |it: &Condition| matches!(it, Condition::Unmonitored { is_for_good: true, .. });
        assert!(is_for_good(&condition(&machine, now)));
    }

    #[test]
    fn what_could_not_be_read_is_unmonitored_and_no_reason_to_be_sick() {
        let (mut machine, now) = (Machine::default(), Instant::now());
        machine.scanned([(GPU.to_owned(), Scan::Unread("NVML is silent".to_owned()))], now, 7);
        assert!(matches!(condition(&machine, now + GRACE), Condition::Unmonitored { .. }));
        machine.scanned([(GPU.to_owned(), Scan::Well)], now, 8);
        assert_eq!(condition(&machine, now + GRACE), Condition::Healthy);
    }

    #[test]
    fn what_was_sick_before_the_start_still_is() {
        let (mut before, now) = (Machine::default(), Instant::now());
        after(&mut before, &xid(GPU, 48, None), &[]);
        let (gpus, instances) = before.sick();
        let machine = Machine::new(IgnoredXids::default(), gpus, instances.to_vec());
        assert_eq!(machine.report(now), before.report(now));
        assert_eq!(changes(&Report::default(), &machine.report(now)).len(), 1);
    }
}
