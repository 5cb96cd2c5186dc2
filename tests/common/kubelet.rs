//! One claim at a time, and what it must get: for the tests that ask thousands of times.

use std::collections::BTreeMap;

use kube_sim::kubelet::{Claim, Plugin, PreparedDevice};

use super::DRIVER;

/// Prepares one claim; the driver answers.
pub(crate) async fn prepare(kubelet: &Plugin, claim: &Claim) -> Result<Vec<PreparedDevice>, String> {
    only(claim, kubelet.prepare(std::slice::from_ref(claim)).await.unwrap())
}

/// Unprepares one claim; the driver answers.
pub(crate) async fn unprepare(kubelet: &Plugin, claim: &Claim) -> Result<(), String> {
    only(claim, kubelet.unprepare(std::slice::from_ref(claim)).await.unwrap())
}

/// Prepares one claim; that the driver does not answer is one more error.
pub(crate) async fn try_prepare(kubelet: &Plugin, claim: &Claim) -> Result<Vec<PreparedDevice>, String> {
    only(claim, kubelet.prepare(std::slice::from_ref(claim)).await.map_err(|error| error.to_string())?)
}

/// Unprepares one claim; that the driver does not answer is one more error.
pub(crate) async fn try_unprepare(kubelet: &Plugin, claim: &Claim) -> Result<(), String> {
    only(claim, kubelet.unprepare(std::slice::from_ref(claim)).await.map_err(|error| error.to_string())?)
}

fn only<T>(claim: &Claim, mut answers: BTreeMap<String, Result<T, String>>) -> Result<T, String> {
    assert_eq!(answers.len(), 1, "one answer for one claim");
    answers.remove(&claim.uid).expect("the answer is about the claim")
}

/// The only right answer for a claim of these devices, in the order of its allocation, under the request `gpu`.
pub(crate) fn promised(node: &str, claim: &Claim, devices: &[String]) -> Vec<PreparedDevice> {
    let device = |name: &String| PreparedDevice {
        requests: vec!["gpu".to_owned()],
        pool: format!("{node}/{DRIVER}"),
        device: name.clone(),
        cdi_ids: vec![format!("{DRIVER}/claim={}-{name}", claim.uid)],
    };
    devices.iter().map(device).collect()
}

/// `DRA_SOAK=1`: everything that there is to try, however long it takes.
pub(crate) fn is_soak() -> bool {
    std::env::var_os("DRA_SOAK").is_some_and(|it| it == "1")
}
