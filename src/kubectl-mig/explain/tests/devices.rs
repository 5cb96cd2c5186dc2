//! Reasons that lie with devices.

use serde_json::{Value, json};

use super::fixture::{DRIVER, Lab, exactly, reasons};
use crate::explain::{ReasonId, Verdict, text};

/// Seven small ones on each GPU.
fn full(lab: &mut Lab) {
    for gpu in 0..2 {
        for start in 0..7 {
            lab.runs(&format!("small-{gpu}-{start}"), "gpu-1", &Lab::device(gpu, "1g.10gb", start));
        }
    }
}

#[test]
fn a_pod_whose_device_is_free_will_get_it() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.wants("new", "3g.40gb");
    let it = lab.explain("new");
    assert_eq!(it.verdict, Verdict::Fits, "{it:#?}");
    assert_eq!(it.verdict.exit_status(), 0);
    let placement = it.placement.unwrap();
    assert_eq!(placement.node, "gpu-1");
    assert!(placement.devices[0].device.contains("mig-3g-40gb"), "{placement:?}");
}

#[test]
fn where_all_are_taken_the_holders_and_whose_end_makes_room_are_named() {
    let mut lab = Lab::with("2xH100-80GB");
    full(&mut lab);
    lab.wants("new", "1g.10gb");
    let it = lab.explain("new");
    println!("{}", text::text(&it, "2026-11-29T09:00:00Z".parse().ok()));
    assert_eq!(it.verdict, Verdict::NotNow);
    assert_eq!(it.reasons[0].reason, ReasonId::AllTaken);
    assert_eq!(it.reasons[0].holders.len(), 14);
    assert!(it.advice[0].starts_with("kubectl -n default delete pod small-"), "{:?}", it.advice);
    let request = &it.requests[0];
    assert_eq!((request.devices.selected, request.devices.taken, request.devices.free), (14, 14, 0));
    assert_eq!(request.gpus[0].cells, "ABCDEFG.");
}

#[test]
fn free_slices_that_do_not_fit_together_are_shown_on_a_map() {
    let mut lab = Lab::with("2xH100-80GB");
    for gpu in 0..2 {
        for start in [1, 5] {
            lab.runs(&format!("small-{gpu}-{start}"), "gpu-1", &Lab::device(gpu, "1g.10gb", start));
        }
    }
    lab.wants("new", "3g.40gb");
    let it = lab.explain("new");
    println!("{}", text::text(&it, "2026-11-29T09:00:00Z".parse().ok()));
    assert_eq!(it.verdict, Verdict::NotNow);
    assert_eq!(it.reasons[0].reason, ReasonId::Fragmented);
    assert_eq!(it.requests[0].gpus[0].cells, ".A...B..");
    assert!(it.sentence.contains("6 memory slices free"), "{}", it.sentence);
}

#[test]
fn a_profile_that_no_gpu_has_comes_with_the_nearest_ones() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.wants("new", "1g.5gb");
    let it = lab.explain("new");
    println!("{}", text::text(&it, None));
    assert_eq!((it.verdict, it.verdict.exit_status()), (Verdict::Never, 2));
    assert_eq!(it.reasons[0].reason, ReasonId::NoSuchProfile);
    assert!(it.advice[0].contains("mig-1g.10gb"), "{:?}", it.advice);
}

#[test]
fn a_class_that_does_not_exist_is_named_with_one_that_does() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.claim("new", json!([exactly("mig", "mig-1g.11gb")]), Value::Null);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!(it.verdict, Verdict::Never);
    assert_eq!(it.reasons[0].reason, ReasonId::ClassMissing);
    assert!(it.advice[0].contains("mig-1g.10gb"), "{:?}", it.advice);
    assert_eq!(reasons(&it).len(), 1);
    let _ = DRIVER;
}
