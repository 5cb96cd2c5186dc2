//! Claims with adminAccess, for monitors: they see a GPU as it is, beside the claims that hold it, and change nothing.

use std::collections::BTreeSet;
use std::fs;

use crate::common;
use common::{
    ControlPlane, DRIVER, Lab, device_names, eventually, is_complete, prepare, read_json, try_prepare,
    unprepare,
};
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube_sim::kubelet::Claim;
use serde_json::{Value, json};

const GPU: &str = "gpu-0000-1a-00";
const FIRST_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-6";
const SECOND_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-5";

async fn started() -> Lab {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "2xH100-80GB").await;
    lab.start();
    lab
}

/// A claim that is allocated this device with adminAccess.
async fn admin(lab: &Lab, name: &str, device: &str) -> Claim {
    let pool = format!("{}/{DRIVER}", lab.node_name);
    let result =
        json!({"request": "monitor", "driver": DRIVER, "pool": pool, "device": device, "adminAccess": true});
    lab.claim_with(name, json!({"results": [result]})).await
}

fn cdi(lab: &Lab, claim: &Claim) -> Value {
    read_json(&lab.path("cdi").join(format!("{DRIVER}-claim_{}.json", claim.uid)))
}

fn nodes(lab: &Lab, claim: &Claim) -> Vec<String> {
    let spec = cdi(lab, claim);
    let nodes = spec["devices"][0]["containerEdits"]["deviceNodes"].as_array().unwrap().clone();
    nodes.iter().map(|it| it["path"].as_str().unwrap().to_owned()).collect()
}

fn mode(lab: &Lab) -> bool {
    lab.sim.snapshot().unwrap().gpus[0].mig_current
}

/// Calls of the library that change a GPU.
fn changes(lab: &Lab) -> Vec<String> {
    let calls = lab.sim.calls().unwrap().into_iter().map(|it| it.call);
    calls.filter(|it| ["Create", "Destroy", "SetMigMode"].iter().any(|word| it.contains(word))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn monitors_see_a_gpu_with_instances_and_keep_no_claim_from_it() {
    let mut lab = started().await;
    let kubelet = lab.kubelet().await;
    let held = lab.claim_of("held", FIRST_1G).await;
    prepare(&kubelet, &held).await.unwrap();
    let published = lab.slices_when(is_complete).await;
    lab.sim.configure(|it| it.log_calls = true).unwrap();
    let before = changes(&lab).len();

    let monitors = [admin(&lab, "first", GPU).await, admin(&lab, "second", GPU).await];
    for monitor in &monitors {
        let answer = prepare(&kubelet, monitor).await.unwrap();
        assert_eq!(answer[0].cdi_ids, [format!("{DRIVER}/claim={}-{GPU}", monitor.uid)]);
        assert_eq!(answer[0].requests, ["monitor"]);
        assert_eq!(nodes(&lab, monitor), ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap2"]);
    }
    assert_eq!((changes(&lab).len(), mode(&lab)), (before, true), "{:?}", changes(&lab));

    // Other claims come and go beside them.
    let next = lab.claim_of("next", SECOND_1G).await;
    prepare(&kubelet, &next).await.unwrap();
    unprepare(&kubelet, &held).await.unwrap();
    for monitor in &monitors {
        unprepare(&kubelet, monitor).await.unwrap();
        assert!(!lab.in_cdi().contains(&monitor.uid));
    }
    assert_eq!(lab.instances(), [(0, "1g.10gb".to_owned(), 5)]);
    let names = |slices: &[ResourceSlice]| {
        device_names(slices).into_iter().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    // All of them again, whatever their order has become.
    lab.slices_when(|now| names(now) == names(&published)).await;
    unprepare(&kubelet, &next).await.unwrap();
    assert_eq!(lab.left(), Vec::<String>::new());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitored_gpu_is_free_for_a_claim_that_takes_all_of_it_whatever_becomes_of_the_monitors_record() {
    let mut lab = started().await;
    let monitor = admin(&lab, "monitor", GPU).await;
    let kubelet = lab.kubelet().await;
    prepare(&kubelet, &monitor).await.unwrap();
    let answer = |of: &Claim| format!("{DRIVER}/claim={}-{GPU}", of.uid);
    let take_all = async |lab: &Lab, name: &str| {
        let kubelet = lab.kubelet().await;
        let whole = lab.claim_of(name, GPU).await;
        assert_eq!(prepare(&kubelet, &whole).await.unwrap()[0].cdi_ids, [answer(&whole)]);
        // And the monitor's prepare is the same as ever.
        assert_eq!(prepare(&kubelet, &monitor).await.unwrap()[0].cdi_ids, [answer(&monitor)]);
        unprepare(&kubelet, &whole).await.unwrap();
    };
    take_all(&lab, "one").await;
    lab.stop().await;
    lab.start();
    take_all(&lab, "after-a-restart").await;

    // Its record cannot be read: its CDI file says that it holds nothing.
    let record = lab.path(&format!("plugins/{DRIVER}/claims")).join(format!("{}.jsonl", monitor.uid));
    lab.stop().await;
    fs::write(&record, "rubbish\n").unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    let whole = lab.claim_of("unread", GPU).await;
    prepare(&kubelet, &whole).await.unwrap();
    unprepare(&kubelet, &monitor).await.unwrap();
    assert!(lab.in_cdi().contains(&whole.uid) && !lab.in_cdi().contains(&monitor.uid));
    unprepare(&kubelet, &whole).await.unwrap();

    // The same devices without adminAccess are another allocation.
    prepare(&kubelet, &monitor).await.unwrap();
    lab.reallocate(&monitor, &[GPU]).await;
    let error = try_prepare(&kubelet, &monitor).await.unwrap_err();
    assert!(error.contains(GPU), "{error}");
    unprepare(&kubelet, &monitor).await.unwrap();
    prepare(&kubelet, &monitor).await.unwrap();
    unprepare(&kubelet, &monitor).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_lost_its_record_keeps_the_gpu_that_its_container_sees_though_another_claim_holds_that()
 {
    let mut lab = started().await;
    let kubelet = lab.kubelet().await;
    let monitor = admin(&lab, "monitor", GPU).await;
    let holder = lab.claim_of("holder", GPU).await;
    prepare(&kubelet, &monitor).await.unwrap();
    prepare(&kubelet, &holder).await.unwrap();
    let before = cdi(&lab, &monitor);
    fs::remove_file(lab.path(&format!("plugins/{DRIVER}/claims")).join(format!("{}.jsonl", monitor.uid)))
        .unwrap();
    // A container may use the first GPU, so the claim is not answered with another one.
    lab.reallocate(&monitor, &["gpu-0000-1b-00"]).await;
    let error = try_prepare(&kubelet, &monitor).await.unwrap_err();
    assert!(error.contains(GPU), "{error}");
    assert_eq!(cdi(&lab, &monitor), before);
    for claim in [&monitor, &holder] {
        unprepare(&kubelet, claim).await.unwrap();
    }
    assert_eq!(lab.left(), Vec::<String>::new());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_has_its_gpu_after_a_reboot_and_is_no_holder_in_any_view() {
    let mut lab = started().await;
    let monitor = admin(&lab, "monitor", GPU).await;
    prepare(&lab.kubelet().await, &monitor).await.unwrap();
    eventually("the status says what the claim has", async || {
        let claims: kube::Api<k8s_openapi::api::resource::v1::ResourceClaim> =
            kube::Api::namespaced(lab.client.clone(), "default");
        let devices = claims.get(&monitor.name).await.unwrap().status?.devices?;
        let data = serde_json::to_value(devices[0].data.as_ref()?).unwrap();
        (data["adminAccess"] == true && data["kind"] == "Gpu").then_some(())
    })
    .await;
    let seen = lab.inspect();
    assert_eq!(seen["gpus"][0]["owner"], Value::Null, "{seen}");
    assert_eq!(seen["claims"][0]["uid"], json!(monitor.uid), "{seen}");
    lab.stop().await;

    lab.sim.reboot().unwrap();
    fs::remove_dir_all(lab.path("cdi")).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    prepare(&kubelet, &monitor).await.unwrap();
    assert_eq!(nodes(&lab, &monitor)[0], "/dev/nvidia0");
    unprepare(&kubelet, &monitor).await.unwrap();
    assert_eq!(lab.left(), Vec::<String>::new());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_access_to_anything_but_a_whole_gpu_is_refused_with_the_reason() {
    let mut lab = started().await;
    let claim = admin(&lab, "mig", FIRST_1G).await;
    let error = try_prepare(&lab.kubelet().await, &claim).await.unwrap_err();
    assert!(error.contains("adminAccess") && error.contains("whole GPUs only"), "{error}");
    assert_eq!(lab.left(), Vec::<String>::new());
    lab.stop().await;
}
