//! Answers of the allocator of Kubernetes 1.35.6, recorded, and ours. `examples/agreement` makes the cases.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

mod case;

use std::collections::BTreeSet;

use case::Case;
use dra_allocator::{Cluster, DeviceId};
use k8s_openapi::api::resource::v1::{Device, DeviceClass, ResourceClaim};
use serde_json::{Value, json};

/// 200 cases. `slices` and `classes` of a case are indices of the file's lists.
const RECORDED: &str = include_str!("data/agreement.json");

fn cases() -> Vec<Value> {
    let mut file: Value = serde_json::from_str(RECORDED).unwrap();
    let Value::Array(mut cases) = file["cases"].take() else { panic!("no cases") };
    for case in &mut cases {
        for field in ["slices", "classes"] {
            for index in case[field].as_array_mut().unwrap() {
                let position = usize::try_from(index.as_u64().unwrap()).unwrap();
                *index = file[field][position].clone();
            }
        }
    }
    cases
}

#[test]
fn the_allocator_answers_as_kubernetes_does() {
    let cases = cases();
    assert_eq!(cases.len(), 200);
    let mut different = Vec::new();
    for case in &cases {
        let outcome = Case::read(case).explain().outcome;
        let ours = case::essence(&case::answer(&outcome));
        if ours != case["answer"] {
            different.push(format!("case {}\n  ours:   {ours}\n  theirs: {}", case["id"], case["answer"]));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn the_recorded_cases_have_every_outcome_and_every_kind_of_claim() {
    let cases = cases();
    let count = |holds: &dyn Fn(&Value) -> bool| cases.iter().filter(|case| holds(case)).count();
    for outcome in ["yes", "no", "invalidPools", "error"] {
        assert!(count(&|case| case["answer"]["outcome"] == json!(outcome)) >= 5, "{outcome}");
    }
    for word in ["firstAvailable", "matchAttribute", "\"All\"", "taints", "adminAccess", "consumesCounters"] {
        assert!(count(&|case| case.to_string().contains(word)) >= 5, "{word}");
    }
    for driver in ["gpu.nvidia.com", "mig.dra-driver.dev"] {
        assert!(count(&|case| case["slices"].to_string().contains(driver)) >= 20, "{driver}");
    }
}

#[test]
fn an_explanation_agrees_with_the_answer() {
    for case in cases() {
        let question = Case::read(&case);
        let found = case::contradictions(&question, &question.explain());
        assert!(found.is_empty(), "case {}: {found:?}", case["id"]);
    }
}

/// Driver and profile of a device, if it has one.
fn profile(driver: &str, device: &Device) -> Option<(String, String)> {
    let attributes = device.attributes.as_ref()?;
    Some((driver.to_owned(), attributes.get("profile")?.string.clone()?))
}

/// How many claims for one device of a profile are allocated one after the other.
fn allocated_one_by_one(case: &Case, (driver, profile): &(String, String)) -> usize {
    let expression = format!(
        "device.driver == \"{driver}\" && \"profile\" in device.attributes[\"{driver}\"] && \
         device.attributes[\"{driver}\"].profile == \"{profile}\""
    );
    let class =
        json!({"metadata": {"name": "c"}, "spec": {"selectors": [{"cel": {"expression": expression}}]}});
    let classes: Vec<DeviceClass> = vec![serde_json::from_value(class).unwrap()];
    // The defect of a refused candidate concerns the attempt, not what there is room for.
    let cluster = Cluster::new(&case.slices, &classes, case.features).with_leak_fixed();
    let mut allocated = case.allocated.clone();
    for count in 0.. {
        let claim = json!({"metadata": {"name": format!("claim-{count}")},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}});
        let mut claim: ResourceClaim = serde_json::from_value(claim).unwrap();
        match cluster.allocate(&case.node, std::slice::from_ref(&claim), &allocated) {
            Ok(mut results) => {
                claim.status.get_or_insert_default().allocation = results.pop();
                allocated.add(&claim);
            }
            Err(refusal) => {
                assert!(!refusal.to_string().contains("CEL"), "{refusal}");
                return count;
            }
        }
    }
    unreachable!("there are finitely many devices")
}

#[test]
fn room_is_what_the_allocator_gives_to_one_claim_after_the_other() {
    let (mut compared, mut with_room) = (0, 0);
    for recorded in cases() {
        let case = Case::read(&recorded);
        let slices = case.slices.iter();
        let profiles: BTreeSet<(String, String)> = slices
            .flat_map(|it| {
                it.spec.devices.iter().flatten().filter_map(|device| profile(&it.spec.driver, device))
            })
            .collect();
        let cluster = Cluster::new(&case.slices, &case.classes, case.features);
        for wanted in profiles {
            let room = cluster.room(&case.node, &case.allocated, |room| {
                let of_profile = |(id, device): &(&DeviceId, &Device)| {
                    profile(&id.driver, device).as_ref() == Some(&wanted)
                };
                let devices: Vec<_> = room.devices().collect();
                let positions: Vec<usize> =
                    (0..devices.len()).filter(|it| of_profile(&devices[*it])).collect();
                let count = room.count(&positions);
                assert_eq!(room.count(&positions), count, "counting takes nothing");
                count
            });
            assert_eq!(room, allocated_one_by_one(&case, &wanted), "case {}: {wanted:?}", recorded["id"]);
            compared += 1;
            with_room += usize::from(0 < room);
        }
    }
    assert!(300 <= compared && 200 <= with_room, "{compared}, {with_room}");
}
