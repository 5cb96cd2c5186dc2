//! Reasons that lie with devices.

use serde_json::{Value, json};

use super::fixture::{DRIVER, Lab, exactly, reasons};
use crate::explain::assemble::explain_within;
use crate::explain::{ReasonId, Subject, Verdict, text};

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
fn where_all_are_allocated_the_holders_and_whose_end_makes_room_are_named() {
    let mut lab = Lab::with("2xH100-80GB");
    full(&mut lab);
    lab.wants("new", "1g.10gb");
    let it = lab.explain("new");
    assert_eq!(it.verdict, Verdict::NotNow);
    assert_eq!(it.reasons[0].reason, ReasonId::AllAllocated);
    assert_eq!(it.reasons[0].holders.len(), 14);
    assert!(it.advice[1].starts_with("kubectl -n default delete pod small-"), "{:?}", it.advice);
    let request = &it.requests[0];
    assert_eq!((request.devices.selected, request.devices.allocated, request.devices.free), (14, 14, 0));
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
}

/// A request for devices of a class with a selector.
fn selecting(class: &str, expression: &str, more: Value) -> Value {
    let mut request = exactly("mig", class);
    request["exactly"]["selectors"] = json!([{"cel": {"expression": expression}}]);
    for (key, value) in more.as_object().into_iter().flatten() {
        request["exactly"][key] = value.clone();
    }
    request
}

#[test]
fn a_selector_of_the_request_that_fails_is_named_with_device_and_key() {
    let mut lab = Lab::with("2xH100-80GB");
    let expression = format!("device.attributes[\"{DRIVER}\"].colour == \"red\"");
    lab.claim("new", json!([selecting("mig-1g.10gb", &expression, json!({}))]), Value::Null);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::RequestSelectorError));
    assert!(it.sentence.contains("device gpu-0000-1a-00-mig-1g-10gb-6"), "{}", it.sentence);
    assert!(it.sentence.contains("colour"), "{}", it.sentence);
}

#[test]
fn a_selector_of_a_class_that_fails_stops_the_pod_even_where_another_node_fits() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.node("gpu-2", json!({}));
    lab.nvidia("gpu-2", true);
    let class = json!({"metadata": {"name": "wrong"}, "spec": {"selectors": [{"cel": {
        "expression": format!("device.attributes[\"{DRIVER}\"].profile == \"1g.10gb\"")}}]}});
    lab.snapshot.classes.push(serde_json::from_value(class).unwrap());
    lab.claim("new", json!([exactly("mig", "wrong")]), Value::Null);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::ClassSelectorError), "{it:#?}");
    assert!(it.sentence.contains("device gpu-0 of pool gpu-2"), "{}", it.sentence);
    assert!(it.advice.iter().any(|it| it.contains("kubectl edit deviceclass wrong")), "{:?}", it.advice);
}

#[test]
fn a_selector_that_chooses_nothing_names_the_largest_device() {
    let mut lab = Lab::with("2xH100-80GB");
    let expression = format!("device.capacity[\"{DRIVER}\"].memory.compareTo(quantity(\"200Gi\")) >= 0");
    lab.claim("new", json!([selecting("mig-7g.80gb", &expression, json!({}))]), Value::Null);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::NoDeviceOfRequest));
    assert!(it.reasons[0].details[0].contains("200Gi"), "{:?}", it.reasons[0].details);
}

#[test]
fn a_class_that_selects_nothing_is_told_from_a_profile_that_no_gpu_has() {
    let mut lab = Lab::with("2xH100-80GB");
    let class = json!({"metadata": {"name": "odd"}, "spec": {"selectors": [{"cel": {"expression": "device.driver == \"other\""}}]}});
    lab.snapshot.classes.push(serde_json::from_value(class).unwrap());
    lab.claim("new", json!([exactly("mig", "odd")]), Value::Null);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::NoDeviceOfClass));
}

#[test]
fn more_devices_than_fit_on_one_node_are_too_many_and_the_number_that_fits_is_said() {
    let mut lab = Lab::with("2xH100-80GB");
    let mut request = exactly("mig", "mig-3g.40gb");
    request["exactly"]["count"] = json!(5);
    lab.claim("new", json!([request]), Value::Null);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::TooFewOnOneNode), "{it:#?}");
    assert!(it.sentence.contains("more than 4 free"), "{}", it.sentence);

    lab.runs("other", "gpu-1", &Lab::device(0, "3g.40gb", 0));
    let request = json!([{"name": "mig", "exactly": {"deviceClassName": "mig-3g.40gb", "count": 4}}]);
    lab.claim("four", request, Value::Null);
    lab.pod("four", json!({}));
    let it = lab.explain("four");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::TooFewOnOneNode), "{it:#?}");
    assert!(it.advice[1].starts_with("kubectl -n default delete pod other"), "{:?}", it.advice);
}

#[test]
fn thirty_three_devices_are_more_than_a_claim_can_have() {
    let mut lab = Lab::with("2xH100-80GB");
    let mut request = exactly("mig", "mig-1g.10gb");
    request["exactly"]["count"] = json!(33);
    lab.claim("new", json!([request]), Value::Null);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::TooManyDevices));
}

#[test]
fn a_request_for_all_devices_waits_for_those_that_are_allocated() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.layout("gpu-1", &[]);
    let mut lab = Lab { snapshot: crate::cluster::Snapshot { slices: Default::default(), ..lab.snapshot } };
    lab.layout("gpu-1", &[("1g.10gb", 0), ("1g.10gb", 1)]);
    lab.runs("other", "gpu-1", "gpu-0-1g-10gb-0");
    lab.claim(
        "new",
        json!([{"name": "mig", "exactly": {"deviceClassName": "mig-1g.10gb", "allocationMode": "All"}}]),
        Value::Null,
    );
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::NotAllFree), "{it:#?}");
    assert_eq!(it.reasons[0].holders[0].pods, ["default/other"]);
}

#[test]
fn devices_that_must_share_a_gpu_are_free_only_apart() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.runs("a", "gpu-1", &Lab::device(0, "3g.40gb", 0));
    lab.runs("b", "gpu-1", &Lab::device(1, "3g.40gb", 0));
    let constraint = json!([{"requests": ["one", "two"], "matchAttribute": format!("{DRIVER}/parentUUID")}]);
    lab.claim("new", json!([exactly("one", "mig-3g.40gb"), exactly("two", "mig-3g.40gb")]), constraint);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::MatchAttribute), "{it:#?}");
    assert!(it.advice[1].starts_with("kubectl -n default delete pod "), "{:?}", it.advice);
}

#[test]
fn requests_that_fit_one_by_one_may_not_fit_together() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.runs("a", "gpu-1", &Lab::device(0, "7g.80gb", 0));
    lab.claim("new", json!([exactly("one", "mig-7g.80gb"), exactly("two", "mig-3g.40gb")]), Value::Null);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!(
        (it.verdict, it.reasons[0].reason),
        (Verdict::NotNow, ReasonId::RequestsNotTogether),
        "{it:#?}"
    );
    assert!(it.requests.iter().all(|it| it.fits_alone));
    assert!(it.advice[1].starts_with("kubectl -n default delete pod a"), "{:?}", it.advice);
}

#[test]
fn each_alternative_has_its_own_reason() {
    let mut lab = Lab::with("2xH100-80GB");
    full(&mut lab);
    let list = json!([{"name": "first", "deviceClassName": "mig-1g.5gb"}, {"name": "second", "deviceClassName": "mig-3g.40gb"}]);
    lab.claim("new", json!([{"name": "mig", "firstAvailable": list}]), Value::Null);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!(it.verdict, Verdict::NotNow);
    let by_name: Vec<(&str, ReasonId)> =
        it.requests.iter().map(|it| (it.request.as_str(), it.reasons[0].reason)).collect();
    assert_eq!(by_name, [("mig/first", ReasonId::NoSuchProfile), ("mig/second", ReasonId::AllAllocated)]);
    assert_eq!(
        it.reasons[0].reason,
        ReasonId::AllAllocated,
        "what can come decides the sentence: {}",
        it.sentence
    );
}

#[test]
fn a_media_engine_that_is_allocated_is_told_from_memory_that_is_allocated() {
    let mut lab = Lab::with("2xA100-40GB");
    lab.class("1g.5gb+me");
    for gpu in 0..2 {
        lab.runs(&format!("media-{gpu}"), "gpu-1", &Lab::device(gpu, "1g.5gb+me", 0));
    }
    lab.claim("new", json!([exactly("mig", "mig-1g.5gb.me")]), Value::Null);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::EngineAllocated), "{it:#?}");
    assert!(it.sentence.contains("jpegs"), "{}", it.sentence);
    assert!(it.advice.iter().any(|it| it.starts_with("ask for 1g.5gb")), "{:?}", it.advice);
}

#[test]
fn a_device_with_a_taint_waits_for_a_toleration() {
    let mut lab = Lab::with("2xH100-80GB");
    let mut slices = Lab::shape("gpu-1", "2xH100-80GB");
    for device in slices[1]["spec"]["devices"].as_array_mut().unwrap() {
        device["taints"] = json!([{"key": "example.com/broken", "effect": "NoSchedule"}]);
    }
    lab.snapshot.slices = Default::default();
    lab.publish(slices);
    lab.wants("new", "7g.80gb");
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::DeviceTaint), "{it:#?}");
    assert!(it.sentence.contains("example.com/broken:NoSchedule"), "{}", it.sentence);
}

#[test]
fn slices_of_nvidias_driver_are_explained_in_the_same_terms() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.snapshot.slices = Default::default();
    lab.nvidia("gpu-1", true);
    for (name, device) in [("a", "gpu-0-mig-1g10gb-19-1"), ("b", "gpu-0-mig-1g10gb-19-5")] {
        lab.runs_with(name, "gpu.nvidia.com", "gpu-1", "gpu-1", device);
    }
    let of = |profile: &str| {
        let expression = format!("device.attributes[\"gpu.nvidia.com\"].profile == \"{profile}\"");
        json!([selecting("mig.nvidia.com", &expression, json!({}))])
    };
    lab.claim("new", of("3g.40gb"), Value::Null);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::Fragmented), "{it:#?}");
    assert_eq!(it.requests[0].gpus[0].cells, ".A...B..");
    assert_eq!(it.requests[0].gpus[0].gpu, "0000:3b:00.0");
    assert!(it.advice[1].starts_with("kubectl -n default delete pod a"), "{:?}", it.advice);

    lab.claim("other", of("1g.12gb"), Value::Null);
    lab.pod("other", json!({}));
    assert_eq!(lab.explain("other").reasons[0].reason, ReasonId::NoSuchProfile);
    lab.claim("fits", of("1g.20gb"), Value::Null);
    lab.pod("fits", json!({}));
    assert_eq!(lab.explain("fits").verdict, Verdict::Fits);
}

#[test]
fn counters_that_the_api_server_dropped_are_reported_with_any_other_reason() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.snapshot.slices = Default::default();
    lab.nvidia("gpu-1", false);
    lab.claim(
        "new",
        json!([selecting(
            "mig.nvidia.com",
            "device.attributes[\"gpu.nvidia.com\"].profile == \"4g.40gb\"",
            json!({})
        )]),
        Value::Null,
    );
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert!(reasons(&it).contains(&ReasonId::CountersDropped), "{it:#?}");
}

#[test]
fn the_text_says_the_verdict_first_then_why_then_what_to_do() {
    let mut lab = Lab::with("2xH100-80GB");
    full(&mut lab);
    lab.wants("new", "2g.20gb");
    let text = text::text(&lab.explain("new"), "2026-11-29T09:00:00Z".parse().ok());
    let place = |it: &str| text.find(it).unwrap_or_else(|| panic!("{it} is not in {text}"));
    assert!(text.starts_with("pod/new gets no devices now: every 2g.20gb "), "{text}");
    assert!(
        place("Request mig of claim default/new: 1 device of class mig-2g.20gb") < place("What to do"),
        "{text}"
    );
    assert!(
        text.contains("[ABCDEFG.]") && text.contains("A  1g.10gb of default/small-1-0, for 120m"),
        "{text}"
    );
}

#[test]
fn a_search_that_does_not_end_is_given_up_as_the_scheduler_does() {
    let mut lab = Lab::with("2xH100-80GB");
    let mut request = exactly("mig", "mig-1g.10gb");
    request["exactly"]["count"] = json!(15);
    lab.claim("new", json!([request]), Value::Null);
    lab.pod("new", json!({}));
    let subject = Subject::Pod { namespace: "default".into(), name: "new".into() };
    let it = explain_within(&lab.snapshot, &subject, 2_000);
    assert!(reasons(&it).contains(&ReasonId::TimedOut), "{it:#?}");
    assert_eq!(it.verdict, Verdict::Never);
}

#[test]
fn only_a_defect_of_the_scheduler_may_be_in_the_way() {
    let mut lab = Lab::with("2xH100-80GB");
    // The first GPU has room for one of the two only; candidates of the second are refused while the first one leads, and are lost.
    lab.runs("a", "gpu-1", &Lab::device(0, "3g.40gb", 4));
    let constraint = json!([{"matchAttribute": format!("{DRIVER}/parentUUID")}]);
    lab.claim("new", json!([exactly("one", "mig-3g.40gb"), exactly("two", "mig-3g.40gb")]), constraint);
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::CounterLeak), "{it:#?}");
}

#[test]
fn two_pools_of_one_name_are_mixed_up_by_the_scheduler() {
    let mut lab = Lab::with("2xH100-80GB");
    let mut slices = Lab::shape("gpu-1", "2xH100-80GB");
    for slice in &mut slices {
        slice["spec"]["driver"] = json!("other.example.com");
        slice["metadata"]["name"] = json!(format!("other-{}", slice["metadata"]["name"].as_str().unwrap()));
    }
    lab.publish(slices);
    full(&mut lab);
    lab.wants("new", "1g.10gb");
    assert!(reasons(&lab.explain("new")).contains(&ReasonId::PoolNameShared));
}

#[test]
fn a_request_for_all_devices_fails_while_any_pool_is_incomplete() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.node("gpu-2", json!({}));
    let mut slices = Lab::shape("gpu-2", "2xH100-80GB");
    slices.truncate(1);
    lab.publish(slices);
    lab.claim(
        "new",
        json!([{"name": "mig", "exactly": {"deviceClassName": "mig-7g.80gb", "allocationMode": "All"}}]),
        Value::Null,
    );
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::AllFromBrokenPool), "{it:#?}");
    assert!(it.sentence.contains("pool gpu-2/mig.dra-driver.dev"), "{}", it.sentence);
}

#[test]
fn forms_that_the_scheduler_does_not_know_are_named() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.claim(
        "new",
        json!([exactly("mig", "mig-1g.10gb")]),
        json!([{"distinctAttribute": "mig.dra-driver.dev/uuid"}]),
    );
    lab.pod("new", json!({}));
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::UnsupportedRequest), "{it:#?}");

    let mut slices = Lab::shape("gpu-1", "2xL4");
    for device in slices[0]["spec"]["devices"].as_array_mut().unwrap() {
        device["bindingConditions"] = json!(["example.com/ready"]);
        device["bindingFailureConditions"] = json!(["example.com/failed"]);
    }
    lab.snapshot.slices = Default::default();
    lab.publish(slices);
    lab.class("full");
    lab.claim("bound", json!([exactly("gpu", "mig-full")]), Value::Null);
    lab.pod("bound", json!({}));
    let it = lab.explain("bound");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::BindingConditions), "{it:#?}");
}

#[test]
fn every_reason_is_on_the_page_of_the_documentation() {
    let page = include_str!("../../../../docs/kubectl-mig.md");
    for reason in ReasonId::ALL {
        let name = serde_json::to_value(reason).unwrap();
        let name = name.as_str().unwrap();
        assert!(
            page.lines().any(|it| it.starts_with('|') && it.contains(&format!("`{name}`"))),
            "no row has {name}"
        );
    }
}
