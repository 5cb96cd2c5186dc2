use super::*;
use mig_model::facts::Placement;
use mig_model::inventory::MigSpec;

fn claim(name: &str) -> ClaimRef {
    ClaimRef::new("ns".into(), name.into(), format!("uid-{name}")).unwrap()
}

fn record(name: &str, parent: &str, kind: RecordedKind) -> Record {
    let device = RecordedDevice {
        name: format!("device-of-{name}"),
        pool: "n/d".into(),
        requests: Vec::new(),
        parent_uuid: parent.into(),
        kind,
        unknown: Map::new(),
    };
    let (claim, boot_id) = (claim(name), "boot".to_owned());
    Record {
        version: VERSION,
        boot_id,
        claim,
        devices: vec![device],
        stage: Stage::Prepared,
        pod_claim_name: None,
        unknown: Map::new(),
    }
}

fn mig(start: u32, size: u32) -> RecordedKind {
    let placement = Placement { start, size };
    let spec = MigSpec { profile: "p".into(), profile_id: 1, slices: 1, placement };
    RecordedKind::Mig { spec, progress: Progress::Reserved }
}

#[test]
fn only_what_shares_memory_slices_of_one_gpu_in_this_boot_is_in_the_way() {
    let check = |other: Record, expected: bool| {
        let device = &record("late", "GPU-1", mig(4, 2)).devices[0];
        assert_eq!(is_held_by_another(&claim("late"), device, &[Arc::new(other)], "boot"), expected);
    };
    check(record("a", "GPU-1", mig(5, 1)), true);
    check(record("a", "GPU-1", RecordedKind::Gpu), true);
    check(record("a", "GPU-1", adopted(5, 1)), true);
    check(record("a", "GPU-1", adopted(6, 1)), false);
    check(record("a", "GPU-1", mig(6, 1)), false);
    check(record("a", "GPU-1", RecordedKind::AdminAccess), false);
    check(record("a", "GPU-2", mig(5, 1)), false);
    check(record("late", "GPU-1", mig(5, 1)), false);
    check(Record { boot_id: "older".into(), ..record("a", "GPU-1", mig(5, 1)) }, false);
}

#[test]
fn mig_mode_is_needed_by_other_claims_of_this_boot_that_have_or_get_a_part_of_the_gpu() {
    let check = |other: Record, expected: bool| {
        let records = [Arc::new(record("this", "GPU-1", mig(4, 2))), Arc::new(other)];
        assert_eq!(needs_mig_mode("GPU-1", &claim("this"), &records, "boot"), expected, "{records:?}");
    };
    check(record("a", "GPU-1", mig(0, 1)), true);
    check(Record { stage: Stage::Preparing, ..record("a", "GPU-1", mig(0, 1)) }, true);
    check(Record { stage: Stage::Unpreparing, ..record("a", "GPU-1", mig(0, 1)) }, false);
    check(Record { boot_id: "older".into(), ..record("a", "GPU-1", mig(0, 1)) }, false);
    check(record("a", "GPU-2", mig(0, 1)), false);
    check(record("a", "GPU-1", RecordedKind::Gpu), false);
}

fn adopted(start: u32, size: u32) -> RecordedKind {
    let RecordedKind::Mig { spec, .. } = mig(start, size) else { unreachable!("it is one") };
    RecordedKind::Adopted(Adopted { spec, gpu_instance: 1, compute_instance: 0, uuid: "MIG-1".into() })
}

#[test]
fn shares_of_a_gpu_are_in_the_way_of_the_whole_and_of_themselves_only() {
    let share = |index| RecordedKind::Share { index };
    for (kind, is_in_the_way) in [(share(0), true), (share(1), false), (RecordedKind::Gpu, true)] {
        let device = &record("late", "GPU-1", kind).devices[0];
        let held = [Arc::new(record("holder", "GPU-1", share(0)))];
        assert_eq!(is_held_by_another(&claim("late"), device, &held, "boot"), is_in_the_way);
    }
}

#[test]
fn devices_of_one_claim_are_impossible_where_they_overlap_on_one_gpu() {
    let share = |index| RecordedKind::Share { index };
    let check = |left: RecordedKind, gpu: &str, right: RecordedKind, expected: bool| {
        let devices = [record("a", "GPU-1", left).devices, record("b", gpu, right).devices].concat();
        let found = impossible(&claim("c"), &devices, &Inventory::default());
        assert_eq!(found.is_some(), expected, "{devices:?}");
    };
    check(mig(4, 2), "GPU-1", mig(5, 1), true);
    check(mig(4, 2), "GPU-1", mig(6, 1), false);
    check(mig(4, 2), "GPU-2", mig(5, 1), false);
    check(mig(4, 2), "GPU-1", adopted(5, 1), true);
    check(RecordedKind::Gpu, "GPU-1", mig(5, 1), true);
    check(RecordedKind::Gpu, "GPU-1", share(0), true);
    check(share(0), "GPU-1", share(1), false);
}

#[test]
fn a_conflict_names_what_to_wait_for_and_no_object_of_another_namespace() {
    let late = record("late", "GPU-1", mig(4, 2));
    let text_of = |namespace: &str| {
        let mut holder = record("holder", "GPU-1", mig(5, 1));
        holder.claim = ClaimRef::new(namespace.into(), "holder".into(), "uid-holder".into()).unwrap();
        conflict(&late.claim, &late.devices[0], &[Arc::new(holder)], "boot").unwrap().to_string()
    };
    let text = text_of("ns");
    assert!(text.contains("ns/late") && text.contains("ns/holder") && text.contains("free once"), "{text}");
    // The owner of a claim reads this in events, and the kubelet writes it into those of the pod.
    let text = text_of("another-tenant");
    assert!(!text.contains("another-tenant") && !text.contains("/holder"), "{text}");
    assert!(text.contains("a ResourceClaim of another namespace") && text.contains("free once"), "{text}");
}

#[test]
fn an_unknown_device_and_another_pool_have_different_errors() {
    let inventory = Inventory::default();
    let context = PlanContext { pool: "n/d", inventory: &inventory, unread: "", boot_id: "boot" };
    let allocated = |pool: &str| AllocatedDevice {
        device: "x".into(),
        pool: pool.into(),
        requests: Vec::new(),
        admin_access: false,
    };
    let planned = |pool| plan(&claim("c"), &[allocated(pool)], context, &[]);
    let gone = AllocatedDevice { device: "gpu-0-adopted-1".into(), ..allocated("n/d") };
    let gone = plan(&claim("c"), &[gone], context, &[]);
    assert!(matches!(gone, Err(PlanError::UnknownInstance { .. })));
    assert!(matches!(planned("n/d"), Err(PlanError::UnknownDevice { .. })));
    assert!(matches!(planned("m/d"), Err(PlanError::OtherPool { .. })));
    let context = PlanContext { unread: "GPU 1: it does not answer", ..context };
    let unread = plan(&claim("c"), &[allocated("n/d")], context, &[]).unwrap_err();
    assert!(matches!(unread, PlanError::Unread { .. }));
    let text = unread.to_string();
    assert!(text.contains("GPU 1: it does not answer") && !text.contains("delete"), "{text}");
}
