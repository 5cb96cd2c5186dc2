use mig_model::health::changes;
use mig_model::inventory::Inventory;

use super::super::owner;
use super::super::owner::fixture::{record, xid};
use super::*;
use crate::nvml::{CallError, Code};

const GPU: &str = "GPU-0";

fn after(machine: &mut Machine, event: &GpuEvent, records: &[Arc<Record>]) -> Verdict {
    machine.event(event, &owner(event, records, "boot", &Inventory::default()), 7)
}

fn listening() -> Listening {
    [(GPU.to_owned(), Monitoring::Active)].into()
}

fn error(code: Code) -> Listening {
    [(GPU.to_owned(), Monitoring::Failed(CallError { call: "nvmlEventSetWait_v2", code }))].into()
}

fn condition(machine: &Machine, at: Instant) -> Condition {
    machine.report(at).gpu(GPU).clone()
}

fn unhealthy(xid: u64) -> Condition {
    Condition::Unhealthy(UnhealthyReason { cause: Cause::Xid(xid), since: 7 })
}

#[test]
fn an_error_without_an_owner_is_the_gpus_and_its_first_reason_stays() {
    let (mut machine, now) = (Machine::default(), Instant::now());
    assert_eq!(after(&mut machine, &xid(GPU, 48, None), &[]), Verdict::Gpu);
    assert_eq!(after(&mut machine, &xid(GPU, 64, None), &[]), Verdict::Gpu);
    assert_eq!(condition(&machine, now), unhealthy(48));
    machine.scanned([(GPU.to_owned(), Scan::Well(None))], now, 8);
    assert_eq!(condition(&machine, now), unhealthy(48), "that it answers does not make it well");
    machine.forget();
    assert_eq!(condition(&machine, now), Condition::Healthy);
}

#[test]
fn an_error_of_an_instance_is_its_claims_until_it_is_recreated() {
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
fn errors_of_applications_and_of_others_make_nothing_unhealthy() {
    let (mut machine, now) = (Machine::default(), Instant::now());
    let records = [record("a", GPU, Some(7))];
    for number in [8, 11, 13, 31, 43, 45, 63, 68, 154] {
        assert_eq!(after(&mut machine, &xid(GPU, number, None), &records), Verdict::Harmless, "{number}");
    }
    assert_eq!(
        after(&mut machine, &xid(GPU, 94, None), &records),
        Verdict::Harmless,
        "contained, in no instance"
    );
    assert_eq!(after(&mut machine, &xid(GPU, 94, Some(3)), &records), Verdict::Unmanaged);
    let corrected = GpuEvent { kind: EventKind::SingleBitEcc, ..xid(GPU, 0, Some(7)) };
    assert_eq!(after(&mut machine, &corrected, &records), Verdict::Harmless);
    let report = machine.report(now);
    assert_eq!((report.gpu(GPU), report.instances.len()), (&Condition::Healthy, 0));
}

#[test]
fn some_errors_are_the_gpus_whichever_instance_has_them() {
    let mut machine = Machine::default();
    let records = [record("a", GPU, Some(7))];
    assert_eq!(after(&mut machine, &xid(GPU, 95, Some(7)), &records), Verdict::Gpu);
    assert_eq!(after(&mut machine, &xid(GPU, 109, Some(7)), &records), Verdict::Gpu);
    assert_eq!(after(&mut machine, &xid(GPU, 119, Some(3)), &records), Verdict::Gpu);
}

#[test]
fn what_nvml_recommends_decides_about_the_gpu_and_not_the_number_of_an_error() {
    let (mut machine, now) = (Machine::default(), Instant::now());
    let advise = |machine: &mut Machine, action: Option<RecoveryAction>, at: u64| {
        machine.scanned([(GPU.to_owned(), Scan::Well(action))], now, at);
        condition(machine, now)
    };
    assert_eq!(advise(&mut machine, Some(RecoveryAction::None), 1), Condition::Healthy);
    for number in [48, 95, 109, 154] {
        assert_eq!(after(&mut machine, &xid(GPU, number, None), &[]), Verdict::Examine, "{number}");
        assert_eq!(condition(&machine, now), Condition::Healthy, "{number}");
    }
    let cause = Cause::Recovery(RecoveryAction::DrainAndReset);
    let expected = Condition::Unhealthy(UnhealthyReason { cause, since: 9 });
    assert_eq!(advise(&mut machine, Some(RecoveryAction::DrainAndReset), 9), expected);
    machine.forget();
    assert_eq!(advise(&mut machine, Some(RecoveryAction::DrainAndReset), 9), expected, "NVML insists");
    assert_eq!(advise(&mut machine, Some(RecoveryAction::None), 12), Condition::Healthy, "without a reboot");
    // An instance suffers by itself all the same.
    let records = [record("a", GPU, Some(7))];
    assert_eq!(after(&mut machine, &xid(GPU, 94, Some(7)), &records), Verdict::Instance);
}

#[test]
fn a_gpu_that_was_unhealthy_before_the_start_is_healthy_once_nvml_recommends_nothing() {
    let (mut before, now) = (Machine::default(), Instant::now());
    after(&mut before, &xid(GPU, 48, None), &[]);
    let (gpus, instances) = before.unhealthy();
    let mut machine = Machine::new(IgnoredXids::default(), gpus, instances.to_vec());
    machine.scanned([(GPU.to_owned(), Scan::Well(None))], now, 8);
    assert_eq!(condition(&machine, now), unhealthy(48), "a driver that does not know clears nothing");
    machine.scanned([(GPU.to_owned(), Scan::Well(Some(RecoveryAction::None)))], now, 9);
    assert_eq!(condition(&machine, now), Condition::Healthy);
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
    assert_eq!(condition(&machine, now), expected, "no operator can declare it found");
    after(&mut machine, &xid(GPU, 79, None), &[]);
    machine.scanned([(GPU.to_owned(), Scan::Well(None))], now, 11);
    assert_eq!(condition(&machine, now), Condition::Healthy);
}

#[test]
fn a_gap_counts_once_it_lasts_and_ends_at_once() {
    let (mut machine, start) = (Machine::default(), Instant::now());
    machine.listening(&listening(), start);
    machine.listening(&error(Code::UNKNOWN), start);
    machine.listening(&Listening::new(), start + GRACE / 2);
    assert_eq!(condition(&machine, start + GRACE / 2), Condition::Healthy);
    assert!(matches!(condition(&machine, start + GRACE), Condition::Unmonitored { is_for_good: false, .. }));
    machine.listening(&listening(), start + GRACE);
    assert_eq!(condition(&machine, start + GRACE), Condition::Healthy);
    machine.listener_answers(false, start + GRACE);
    assert!(matches!(condition(&machine, start + GRACE * 2), Condition::Unmonitored { .. }));
    machine.listener_answers(true, start + GRACE * 2);
    assert_eq!(
        condition(&machine, start + GRACE * 4),
        Condition::Healthy,
        "it need not say again which GPUs it monitors"
    );
}

#[test]
fn a_gpu_that_is_not_monitored_on_purpose_is_as_it_was_unless_that_lasts() {
    let (mut machine, start) = (Machine::default(), Instant::now());
    let paused = Listening::from([(GPU.to_owned(), Monitoring::Paused)]);
    machine.listening(&listening(), start);
    machine.listening(&paused, start);
    assert_eq!(condition(&machine, start + GRACE / 2), Condition::Healthy);
    machine.listening(&paused, start + GRACE / 2);
    let unmonitored = |it: &Condition| matches!(it, Condition::Unmonitored { is_for_good: false, .. });
    assert!(unmonitored(&condition(&machine, start + GRACE)), "another process uses what is to be destroyed");
    machine.listening(&listening(), start + GRACE);
    assert_eq!(condition(&machine, start + GRACE * 2), Condition::Healthy);
}

#[test]
fn an_unmanaged_instance_is_unhealthy_until_it_is_gone_whichever_claim_has_it() {
    let (mut machine, now) = (Machine::default(), Instant::now());
    let (device, uuid) = ("device-of-a".to_owned(), "MIG-a".to_owned());
    let instance = Instance { device: device.clone(), gpu_instance: 7, uuid, is_adopted: true };
    let suffer =
        |machine: &mut Machine| machine.event(&xid(GPU, 94, Some(7)), &Owner::Unclaimed(instance.clone()), 7);
    assert_eq!([suffer(&mut machine), suffer(&mut machine)], [Verdict::Instance; 2]);
    assert_eq!(machine.report(now).unhealthy_adopted(), [device.clone()].into());
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
    machine.listener_answers(false, now);
    let is_for_good = |it: &Condition| matches!(it, Condition::Unmonitored { is_for_good: true, .. });
    assert!(is_for_good(&condition(&machine, now)));
}

#[test]
fn what_could_not_be_read_is_unmonitored_and_no_reason_to_be_unhealthy() {
    let (mut machine, now) = (Machine::default(), Instant::now());
    machine.scanned([(GPU.to_owned(), Scan::Unread("NVML does not answer".to_owned()))], now, 7);
    assert!(matches!(condition(&machine, now + GRACE), Condition::Unmonitored { .. }));
    machine.scanned([(GPU.to_owned(), Scan::Well(None))], now, 8);
    assert_eq!(condition(&machine, now + GRACE), Condition::Healthy);
}

#[test]
fn what_was_unhealthy_before_the_start_still_is() {
    let (mut before, now) = (Machine::default(), Instant::now());
    after(&mut before, &xid(GPU, 48, None), &[]);
    let (gpus, instances) = before.unhealthy();
    let machine = Machine::new(IgnoredXids::default(), gpus, instances.to_vec());
    assert_eq!(machine.report(now), before.report(now));
    assert_eq!(changes(&Report::default(), &machine.report(now)).len(), 1);
}
