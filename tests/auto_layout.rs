//! Layouts that follow what the node's MigNode demands, where the label is `auto` or absent.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{Patch, PatchParams};
use mig_model::mig_node::{MigNode, condition, reason};
use serde_json::{Value, json};

use crate::common::{
    ControlPlane, Lab, device_names, eventually, is_complete, node_events, prepare, unprepare,
};
use crate::layout::{delete_claim, label, published_when, state_when};
use crate::mig_node::install;

/// What the default layout publishes of one H100, and what it publishes once four small devices are demanded.
const DEFAULT: [&str; 4] = ["1a:1g-10gb-2", "1a:1g-10gb-3", "1a:2g-20gb-0", "1a:3g-40gb-4"];
const FOUR_SMALL: [&str; 5] =
    ["1a:1g-10gb-0", "1a:1g-10gb-1", "1a:1g-10gb-2", "1a:1g-10gb-3", "1a:3g-40gb-4"];

/// A node of a cluster with the kind MigNode. The driver does not run yet.
async fn lab(has_counters: bool, gpus: &str) -> Lab {
    let lab = Lab::new(ControlPlane::simulated(has_counters).await, gpus).await;
    let lab = lab.with_args(&["--settle-time", "1", "--rescan-interval", "1"]);
    install(&lab).await;
    lab
}

fn seconds_ago(seconds: i64) -> String {
    let time = Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).unwrap();
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Writes the spec as a controller does.
async fn demand(lab: &Lab, spec: Value) {
    let api: Api<MigNode> = Api::all(lab.client.clone());
    eventually("the driver has created its MigNode", async || api.get_opt(&lab.node_name).await.unwrap())
        .await;
    let object = json!({
        "apiVersion": "mig.dra-driver.dev/v1alpha1", "kind": "MigNode", "metadata": {"name": lab.node_name}, "spec": spec,
    });
    let params = PatchParams::apply("mig-controller").force();
    api.patch(&lab.node_name, &params, &Patch::Apply(&object)).await.unwrap();
}

fn renewed(profiles: &[(&str, u32)], seconds: i64) -> Value {
    let profiles: Vec<Value> =
        profiles.iter().map(|(profile, count)| json!({"profile": profile, "count": count})).collect();
    json!({"demand": {"renewTime": seconds_ago(seconds), "profiles": profiles}})
}

/// Waits until the condition DemandFollowed of the newest spec has this reason, and answers with its message.
async fn followed_when(lab: &Lab, status: &str, reason: &str) -> String {
    let api: Api<MigNode> = Api::all(lab.client.clone());
    eventually(&format!("DemandFollowed is {status}, {reason}"), async || {
        let object = api.get_opt(&lab.node_name).await.unwrap()?;
        let conditions = object.status.map(|it| it.conditions).unwrap_or_default();
        let found = conditions.into_iter().find(|it| it.type_ == condition::DEMAND_FOLLOWED)?;
        let is_new = found.observed_generation == object.metadata.generation;
        (is_new && found.status == status && found.reason == reason).then_some(found.message)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_publishes_what_is_demanded_of_it_and_says_what_came_of_it() {
    for auto in [Some("auto"), None] {
        let mut lab = lab(false, "1xH100-80GB").await;
        label(&lab, auto).await;
        lab.start();
        published_when(&lab, &DEFAULT).await;
        followed_when(&lab, "True", reason::NO_DEMAND).await;
        demand(&lab, renewed(&[("1g.10gb", 4)], 0)).await;
        published_when(&lab, &FOUR_SMALL).await;
        followed_when(&lab, "True", reason::FOLLOWED).await;
        if auto.is_some() {
            state_when(&lab, "success").await;
        }

        demand(&lab, renewed(&[("7g.80gb", 1)], 0)).await;
        let message = followed_when(&lab, "False", reason::CHANGED_RECENTLY).await;
        assert!(message.contains("changed less than 30 s ago"), "{message}");
        demand(&lab, renewed(&[("7g.80gb", 1)], 600)).await;
        followed_when(&lab, "False", reason::STALE).await;
        published_when(&lab, &FOUR_SMALL).await;

        // Nor does a restart go back to the default while the controller is gone.
        lab.stop().await;
        lab.start();
        followed_when(&lab, "False", reason::STALE).await;
        published_when(&lab, &FOUR_SMALL).await;
        lab.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_value_of_the_label_is_the_operators_and_the_demand_waits() {
    let mut lab = lab(false, "1xH100-80GB").await;
    label(&lab, Some("all-7g.80gb")).await;
    lab.start();
    published_when(&lab, &["1a:7g-80gb-0"]).await;
    demand(&lab, renewed(&[("1g.10gb", 4)], 0)).await;
    let message = followed_when(&lab, "False", reason::LABEL_SET).await;
    assert!(message.contains("nvidia.com/mig.config=`all-7g.80gb`"), "{message}");
    published_when(&lab, &["1a:7g-80gb-0"]).await;
    label(&lab, Some("auto")).await;
    published_when(&lab, &FOUR_SMALL).await;
    followed_when(&lab, "True", reason::FOLLOWED).await;
    label(&lab, Some("all-7g.80gb")).await;
    published_when(&lab, &["1a:7g-80gb-0"]).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_claims_hold_stays_and_is_named_where_it_is_in_the_way() {
    let mut lab = lab(false, "1xH100-80GB").await;
    lab.start();
    published_when(&lab, &DEFAULT).await;
    // Given away, but the kubelet has not asked for it yet: no second large device fits beside it.
    let claim = lab.claim_of("one", "gpu-0000-1a-00-mig-2g-20gb-0").await;
    demand(&lab, renewed(&[("3g.40gb", 2)], 0)).await;
    let message = followed_when(&lab, "False", reason::HELD_DEVICES).await;
    assert!(message.starts_with("1 x 3g.40gb waits until claims release devices"), "{message}");
    let kubelet = lab.kubelet().await;
    prepare(&kubelet, &claim).await.unwrap();
    followed_when(&lab, "False", reason::HELD_DEVICES).await;
    published_when(&lab, &DEFAULT).await;
    unprepare(&kubelet, &claim).await.unwrap();
    delete_claim(&lab, &claim).await;
    // The claims are read again although the spec says the same.
    published_when(&lab, &["1a:3g-40gb-0", "1a:3g-40gb-4"]).await;
    followed_when(&lab, "True", reason::FOLLOWED).await;
    demand(&lab, renewed(&[("1g.5gb", 1)], 0)).await;
    let message = followed_when(&lab, "False", reason::DOES_NOT_FIT).await;
    assert!(message.contains("no room for 1 x 1g.5gb; their profiles are 1g.10gb"), "{message}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_counters_are_kept_no_layout_is_needed_and_auto_is_a_success() {
    let mut lab = lab(true, "1xH100-80GB").await;
    label(&lab, Some("auto")).await;
    lab.start();
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;
    state_when(&lab, "success").await;
    demand(&lab, renewed(&[("1g.10gb", 4)], 0)).await;
    followed_when(&lab, "False", reason::PARTITIONABLE).await;
    assert_eq!(device_names(&lab.slices().await).len(), 26);
    assert!(node_events(&lab, "LayoutHasNoEffect").await.is_empty());
    lab.stop().await;
}

/// A hold of the only GPU for so many seconds.
fn hold(profile: &str, seconds: i64) -> Value {
    let claim =
        json!({"namespace": "default", "name": "large", "uid": "11111111-2222-3333-4444-555555555555"});
    let hold =
        json!({"gpu": "gpu-0000-1a-00", "profile": profile, "until": seconds_ago(-seconds), "claim": claim});
    json!({"holds": [hold]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_is_held_back_offers_one_profile_until_its_time_also_where_counters_are_kept() {
    let mut lab = lab(true, "1xH100-80GB").await;
    lab.start();
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("small", "gpu-0000-1a-00-mig-1g-10gb-6").await;
    prepare(&kubelet, &claim).await.unwrap();
    demand(&lab, hold("3g.40gb", 15)).await;
    // What the claim has is not published, and what it takes is not in the counters.
    let expected = ["gpu-0000-1a-00-mig-3g-40gb-0", "gpu-0000-1a-00-mig-3g-40gb-4"];
    lab.slices_when(|it| {
        let mut names = device_names(it);
        names.sort_unstable();
        is_complete(it) && names == expected
    })
    .await;
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_lays_a_gpu_out_for_its_profile_and_what_is_wrong_with_it_is_said() {
    let mut lab = lab(false, "1xH100-80GB").await;
    lab.start();
    published_when(&lab, &DEFAULT).await;
    demand(&lab, hold("3g.40gb", 3600)).await;
    published_when(&lab, &["1a:3g-40gb-0", "1a:3g-40gb-4"]).await;
    let message = followed_when(&lab, "True", reason::NO_DEMAND).await;
    assert!(message.contains("gpu-0000-1a-00 is held back for 15 minutes at most"), "{message}");
    // Another one has to wait, and nothing else counts until then.
    demand(&lab, hold("4g.40gb", 3600)).await;
    let message = followed_when(&lab, "False", reason::CHANGED_RECENTLY).await;
    assert!(message.contains("so a hold begins at "), "{message}");
    published_when(&lab, &["1a:3g-40gb-4", "1a:4g-40gb-0"]).await;
    demand(&lab, json!({})).await;
    published_when(&lab, &DEFAULT).await;
    demand(&lab, hold("3g.20gb", 3600)).await;
    let message = followed_when(&lab, "True", reason::NO_DEMAND).await;
    assert!(message.contains("gpu-0000-1a-00 offers no 3g.20gb"), "{message}");
    lab.stop().await;
}
