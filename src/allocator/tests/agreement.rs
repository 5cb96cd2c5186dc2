//! Answers of the allocator of Kubernetes 1.35.6, recorded, and ours. `examples/agreement` makes the cases.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

mod case;

use case::Case;
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
