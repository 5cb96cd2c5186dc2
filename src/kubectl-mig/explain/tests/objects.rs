//! Reasons that pods, claims, quotas and nodes have in themselves.

use serde_json::{Value, json};

use super::fixture::{DRIVER, Lab, exactly, reasons};
use crate::cluster::Gates;
use crate::explain::{ReasonId, Subject, Verdict, explain};

#[track_caller]
fn first(lab: &Lab, pod: &str) -> (Verdict, ReasonId) {
    let it = lab.explain(pod);
    (it.verdict, it.reasons[0].reason)
}

#[test]
fn a_pod_that_does_not_exist_cannot_be_explained() {
    let lab = Lab::with("2xH100-80GB");
    let it = lab.explain("nothing");
    assert_eq!((it.verdict.exit_status(), it.reasons[0].reason), (3, ReasonId::NotFound));
}

#[test]
fn a_pod_that_has_ended_or_is_being_deleted_gets_nothing() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.pod("ended", json!({"status": {"phase": "Succeeded"}}));
    assert_eq!(first(&lab, "ended"), (Verdict::Never, ReasonId::PodEnded));
    lab.pod("going", json!({"metadata": {"deletionTimestamp": "2026-11-29T07:00:00Z"}}));
    assert_eq!(first(&lab, "going"), (Verdict::Never, ReasonId::PodBeingDeleted));
}

#[test]
fn a_pod_on_its_node_has_its_devices() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.runs("there", "gpu-1", &Lab::device(0, "1g.10gb", 6));
    let it = lab.explain("there");
    assert_eq!((it.verdict.exit_status(), it.reasons[0].reason), (0, ReasonId::PodHasNode));
    assert!(it.sentence.contains("gpu-0000-1a-00-mig-1g-10gb-6"), "{}", it.sentence);
}

#[test]
fn a_pod_that_names_its_node_waits_for_ever() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.claim("new", json!([exactly("mig", "mig-1g.10gb")]), Value::Null);
    lab.pod("new", json!({"spec": {"nodeName": "gpu-1"}}));
    assert_eq!(first(&lab, "new"), (Verdict::Never, ReasonId::NodeNameSet));
}

#[test]
fn gates_and_other_schedulers_come_before_devices() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.claim("gated", json!([exactly("mig", "mig-1g.10gb")]), Value::Null);
    lab.pod("gated", json!({"spec": {"schedulingGates": [{"name": "example.com/queue"}]}}));
    let it = lab.explain("gated");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::SchedulingGates));
    assert!(it.sentence.contains("example.com/queue"), "{}", it.sentence);
    lab.claim("other", json!([exactly("mig", "mig-1g.10gb")]), Value::Null);
    lab.pod("other", json!({"spec": {"schedulerName": "volcano"}}));
    let it = lab.explain("other");
    assert_eq!((it.verdict.exit_status(), it.reasons[0].reason), (3, ReasonId::OtherScheduler));
}

#[test]
fn a_pod_without_claims_asks_for_nothing_and_a_claim_that_no_container_names_is_odd() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.pod("plain", json!({"spec": {"resourceClaims": [], "containers": [{"name": "c"}]}}));
    assert_eq!(first(&lab, "plain"), (Verdict::Never, ReasonId::NoDeviceRequested));
    lab.wants("unused", "1g.10gb");
    let containers = &mut lab.snapshot.pods.last_mut().unwrap().spec.as_mut().unwrap().containers;
    containers[0].resources = None;
    let it = lab.explain("unused");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Fits, ReasonId::ClaimNotUsed));
}

#[test]
fn a_claim_or_template_that_is_missing_is_named() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.pod("no-claim", json!({}));
    assert_eq!(first(&lab, "no-claim"), (Verdict::Never, ReasonId::ClaimMissing));
    let entry = json!({"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "small"}]}});
    lab.pod("no-template", entry.clone());
    let it = lab.explain("no-template");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::TemplateMissing));
    assert!(it.sentence.contains("ResourceClaimTemplate small"), "{}", it.sentence);
    template(&mut lab);
    lab.pod("not-yet", entry);
    assert_eq!(first(&lab, "not-yet"), (Verdict::NotNow, ReasonId::ClaimNotCreated));
}

fn template(lab: &mut Lab) {
    let spec = json!({"devices": {"requests": [exactly("mig", "mig-1g.10gb")]}});
    let template = json!({"metadata": {"name": "small", "namespace": "default"}, "spec": {"spec": spec}});
    lab.snapshot.templates.push(serde_json::from_value(template).unwrap());
}

fn quota(lab: &mut Lab, hard: &str, used: &str) {
    let resource = "mig-1g.10gb.deviceclass.resource.k8s.io/devices";
    let quota = json!({"metadata": {"name": "team", "namespace": "default"},
        "spec": {"hard": {resource: hard}}, "status": {"hard": {resource: hard}, "used": {resource: used}}});
    lab.snapshot.quotas = vec![serde_json::from_value(quota).unwrap()];
}

#[test]
fn a_quota_that_is_used_up_keeps_the_claim_from_being_created() {
    let mut lab = Lab::with("2xH100-80GB");
    template(&mut lab);
    lab.pod(
        "new",
        json!({"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "small"}]}}),
    );
    quota(&mut lab, "4", "4");
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::QuotaExceeded));
    assert!(it.sentence.contains("quota team of namespace default allows 4"), "{}", it.sentence);
    quota(&mut lab, "0", "0");
    assert_eq!(first(&lab, "new"), (Verdict::Never, ReasonId::QuotaExceeded));
    quota(&mut lab, "4", "3");
    assert_eq!(first(&lab, "new"), (Verdict::NotNow, ReasonId::ClaimNotCreated));
}

#[test]
fn a_planned_pod_is_explained_with_its_template_and_the_quota() {
    let mut lab = Lab::with("2xH100-80GB");
    template(&mut lab);
    let pod = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {
        "containers": [{"name": "c", "resources": {"claims": [{"name": "gpu"}]}}],
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "small"}]}});
    let subject =
        Subject::Planned { owner: "deployment/web".into(), pod: serde_json::from_value(pod).unwrap() };
    let it = explain(&lab.snapshot, &subject);
    assert_eq!((it.verdict, it.subject.as_str()), (Verdict::Fits, "deployment/web"));
    assert_eq!(it.allocated.len(), 1, "what it would get is known to who places the next one");
    quota(&mut lab, "4", "4");
    assert_eq!(explain(&lab.snapshot, &subject).reasons[0].reason, ReasonId::QuotaExceeded);
}

#[test]
fn a_claim_that_is_being_deleted_is_not_allocated() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.wants("new", "1g.10gb");
    let claim = lab.snapshot.claims.last_mut().unwrap();
    claim.metadata.deletion_timestamp = claim.metadata.creation_timestamp.clone();
    assert_eq!(first(&lab, "new"), (Verdict::NotNow, ReasonId::ClaimBeingDeleted));
}

#[test]
fn a_claim_has_at_most_256_users() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.runs("shared", "gpu-1", &Lab::device(0, "1g.10gb", 6));
    let status = lab.snapshot.claims.last_mut().unwrap().status.as_mut().unwrap();
    let one = status.reserved_for.as_ref().unwrap()[0].clone();
    status.reserved_for = Some(vec![one; 256]);
    let entry = json!({"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimName": "shared"}]}});
    lab.pod("late", entry);
    assert_eq!(first(&lab, "late"), (Verdict::NotNow, ReasonId::ReservedForFull));
}

#[test]
fn a_shared_claim_ties_its_pods_to_one_node() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.node("gpu-2", json!({}));
    lab.runs("shared", "gpu-1", &Lab::device(0, "1g.10gb", 6));
    let entry = json!({"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimName": "shared"}],
        "nodeSelector": {"kubernetes.io/hostname": "gpu-2"}}});
    lab.pod("apart", entry);
    let it = lab.explain("apart");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::ClaimOnOtherNode), "{it:#?}");
    assert!(it.sentence.contains("claim shared is allocated on node gpu-1"), "{}", it.sentence);
    lab.pod("beside", json!({"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimName": "shared"}]}}));
    assert_eq!(lab.explain("beside").verdict, Verdict::Fits);
}

#[test]
fn a_claim_by_itself_is_explained_with_the_pod_that_uses_it_or_without() {
    let mut lab = Lab::with("2xH100-80GB");
    let of = |lab: &Lab, name: &str| {
        explain(&lab.snapshot, &Subject::Claim { namespace: "default".into(), name: name.into() })
    };
    lab.claim("alone", json!([exactly("mig", "mig-1g.10gb")]), Value::Null);
    let it = of(&lab, "alone");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Fits, ReasonId::ClaimWithoutPod));
    lab.claim("used", json!([exactly("mig", "mig-1g.10gb")]), Value::Null);
    lab.pod("used", json!({"spec": {"schedulingGates": [{"name": "example.com/queue"}]}}));
    assert_eq!(of(&lab, "used").reasons[0].reason, ReasonId::SchedulingGates);
    lab.runs("there", "gpu-1", &Lab::device(0, "1g.10gb", 6));
    let it = of(&lab, "there");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Served, ReasonId::ClaimAllocated));
    assert_eq!(of(&lab, "nothing").reasons[0].reason, ReasonId::NotFound);
}

fn extended(lab: &mut Lab, name: &str, resource: &str, message: &str) {
    lab.pod(name, json!({
        "spec": {"resourceClaims": [], "containers": [{"name": "c", "resources": {"limits": {resource: "1"}}}]},
        "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]},
    }));
}

#[test]
fn an_extended_resource_is_served_by_its_class() {
    let mut lab = Lab::with("2xH100-80GB");
    extended(&mut lab, "new", "nvidia.com/mig-1g.10gb", "");
    assert_eq!(lab.explain("new").verdict, Verdict::Fits);
}

#[test]
fn an_extended_resource_needs_its_gate_in_scheduler_and_api_server() {
    let mut lab = Lab::with("2xH100-80GB");
    let message = "0/1 nodes are available: 1 Insufficient nvidia.com/mig-1g.10gb.";
    extended(&mut lab, "scheduler", "nvidia.com/mig-1g.10gb", message);
    let it = lab.explain("scheduler");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::ExtendedResourceGateOff));
    assert!(it.sentence.contains("kube-scheduler"), "{}", it.sentence);
    for class in &mut lab.snapshot.classes {
        class.spec.extended_resource_name = None;
    }
    extended(&mut lab, "server", "nvidia.com/mig-1g.10gb", message);
    let it = lab.explain("server");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::ExtendedResourceGateOff));
    assert!(it.sentence.contains("kube-apiserver"), "{}", it.sentence);
}

#[test]
fn a_gate_that_is_known_is_not_assumed() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.snapshot.version = Some((1, 35));
    let message = "0/1 nodes are available: 1 Insufficient nvidia.com/mig-1g.10gb.";
    extended(&mut lab, "pod", "nvidia.com/mig-1g.10gb", "");
    assert_eq!(lab.explain("pod").assumptions.len(), 2, "both gates");
    lab.snapshot.gates = Some(Gates::ALL);
    let it = lab.explain("pod");
    assert_eq!((it.verdict, it.assumptions.as_slice()), (Verdict::Fits, [].as_slice()));
    extended(&mut lab, "old", "nvidia.com/mig-1g.10gb", message);
    assert_eq!(lab.explain("old").verdict, Verdict::NotNow, "the message is of another time");
    lab.snapshot.gates = Some(Gates { extended_resource: false, ..Gates::ALL });
    assert_eq!(first(&lab, "pod"), (Verdict::Never, ReasonId::ExtendedResourceGateOff));
    lab.node("plugin", json!({"status": {"allocatable": {"nvidia.com/mig-1g.10gb": "8"}}}));
    assert_eq!(first(&lab, "pod"), (Verdict::Unknown, ReasonId::DevicePlugin));
    lab.wants("claim", "1g.10gb");
    lab.snapshot.gates = Some(Gates::STOCK);
    assert_eq!(first(&lab, "claim"), (Verdict::Never, ReasonId::SchedulerGateOff));
}

#[test]
fn an_extended_resource_without_a_class_is_told_from_one_of_a_device_plugin() {
    let mut lab = Lab::with("2xH100-80GB");
    extended(&mut lab, "new", "nvidia.com/gpu", "");
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::ExtendedResourceWithoutClass));
    assert!(it.advice.iter().any(|it| it.contains("gpuExtendedResource=true")), "{:?}", it.advice);
    lab.node("old", json!({"status": {"allocatable": {"nvidia.com/gpu": "8"}}}));
    assert_eq!(first(&lab, "new"), (Verdict::Unknown, ReasonId::DevicePlugin));
}

#[test]
fn nodes_that_would_fit_are_named_with_the_rule_that_hides_them() {
    let rules = [
        (json!({"spec": {"unschedulable": true}}), json!({}), "it is cordoned", "kubectl uncordon gpu-1"),
        (
            json!({"spec": {"taints": [{"key": "pool", "value": "a", "effect": "NoSchedule"}]}}),
            json!({}),
            "does not tolerate its taint pool=a:NoSchedule",
            "{key: pool, value: \"a\", effect: NoSchedule}",
        ),
        (
            json!({}),
            json!({"spec": {"nodeSelector": {"pool": "b"}}}),
            "wants pool=b",
            "remove pool from spec.nodeSelector of the pod",
        ),
        (
            json!({}),
            json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["b", "c"]}]}]}}}}}),
            "pool In [b, c]",
            "spec.affinity.nodeAffinity",
        ),
        (
            json!({}),
            json!({"spec": {"containers": [{"name": "c", "resources": {"claims": [{"name": "gpu"}], "requests": {"cpu": "9"}}}]}}),
            "requests cpu: 9, and it has 8 in all",
            "lower the request for cpu",
        ),
    ];
    for (node, pod, why, advice) in rules {
        let mut lab = Lab::with("2xH100-80GB");
        lab.node("gpu-1", node);
        lab.node("plain", json!({}));
        lab.claim("new", json!([exactly("mig", "mig-1g.10gb")]), Value::Null);
        lab.pod("new", pod);
        let it = lab.explain("new");
        assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::NodeRules), "{it:#?}");
        assert!(it.sentence.contains("node gpu-1 has the devices"), "{}", it.sentence);
        assert!(it.reasons[0].details[0].contains(why), "{:?}", it.reasons[0].details);
        assert!(it.advice[0].contains(advice), "{:?}", it.advice);
    }
}

#[test]
fn a_tolerated_taint_and_a_matching_selector_hide_no_node() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.node("gpu-1", json!({"spec": {"taints": [{"key": "pool", "value": "a", "effect": "NoSchedule"}]}}));
    lab.claim("new", json!([exactly("mig", "mig-1g.10gb")]), Value::Null);
    lab.pod(
        "new",
        json!({"spec": {"tolerations": [{"key": "pool", "operator": "Exists"}],
        "nodeSelector": {"kubernetes.io/hostname": "gpu-1"}}}),
    );
    assert_eq!(lab.explain("new").verdict, Verdict::Fits);
}

#[test]
fn an_incomplete_pool_and_an_invalid_one_are_named() {
    let mut lab = Lab::with("2xH100-80GB");
    let mut slices = Lab::shape("gpu-1", "2xH100-80GB");
    lab.snapshot.slices = Default::default();
    slices.truncate(1);
    lab.publish(slices);
    lab.wants("new", "1g.10gb");
    assert_eq!(first(&lab, "new"), (Verdict::NotNow, ReasonId::PoolIncomplete));

    let mut slices = Lab::shape("gpu-1", "2xH100-80GB");
    slices[1]["spec"]["devices"][1]["name"] = slices[1]["spec"]["devices"][0]["name"].clone();
    lab.snapshot.slices = Default::default();
    lab.publish(slices);
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::PoolInvalid), "{it:#?}");
    assert!(it.sentence.contains("duplicate device name"), "{}", it.sentence);
}

#[test]
fn a_pool_with_an_overdrawn_counter_is_broken_and_the_claims_are_named() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.runs("one", "gpu-1", &Lab::device(0, "1g.10gb", 0));
    lab.runs("two", "gpu-1", &Lab::device(0, "3g.40gb", 0));
    lab.wants("new", "1g.10gb");
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::PoolOverdrawn), "{it:#?}");
    assert!(it.sentence.contains("claim default/one and claim default/two"), "{}", it.sentence);
}

#[test]
fn a_layout_without_the_profile_is_the_reason_and_a_layout_with_it_the_remedy() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.snapshot.slices = Default::default();
    lab.layout("gpu-1", &[("1g.10gb", 0), ("3g.40gb", 4)]);
    lab.wants("new", "2g.20gb");
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::Never, ReasonId::NotInLayout), "{it:#?}");
    assert!(
        it.advice[0].contains("kubectl label node gpu-1 nvidia.com/mig.config=all-2g.20gb --overwrite"),
        "{:?}",
        it.advice
    );
    lab.wants("impossible", "1g.5gb");
    assert_eq!(first(&lab, "impossible"), (Verdict::Never, ReasonId::NoSuchProfile));

    lab.snapshot.slices = Default::default();
    lab.layout("gpu-1", &[("full", 0)]);
    assert_eq!(first(&lab, "new"), (Verdict::Never, ReasonId::WholeGpuOnly));
}

#[test]
fn where_the_layout_follows_demand_a_label_is_no_remedy() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.snapshot.slices = Default::default();
    lab.layout("gpu-1", &[("1g.10gb", 0), ("3g.40gb", 4)]);
    lab.wants("new", "2g.20gb");
    lab.demands("gpu-1", json!({}));
    let it = lab.explain("new");
    assert_eq!(
        (it.verdict, it.reasons[0].reason),
        (Verdict::NotNow, ReasonId::LayoutFollowsDemand),
        "{it:#?}"
    );
    assert!(it.advice[0].starts_with("wait: mig-controller"), "{:?}", it.advice);
    assert!(!it.advice.iter().any(|it| it.contains("kubectl label")), "{:?}", it.advice);

    lab.snapshot.slices = Default::default();
    lab.layout("gpu-1", &[("full", 0)]);
    assert_eq!(first(&lab, "new"), (Verdict::NotNow, ReasonId::LayoutFollowsDemand));
}

#[test]
fn a_gpu_that_is_held_back_is_named_to_its_claim_and_to_the_others() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.snapshot.slices = Default::default();
    lab.layout("gpu-1", &[("1g.10gb", 0)]);
    lab.runs("small", "gpu-1", &Lab::device(0, "1g.10gb", 0));
    lab.wants("large", "7g.80gb");
    lab.wants("other", "2g.20gb");
    let uid = "00000000-0000-4000-8000-000000000001";
    for claim in &mut lab.snapshot.claims {
        if claim.metadata.name.as_deref() == Some("large") {
            claim.metadata.uid = Some(uid.to_owned());
        }
    }
    let hold = json!({"gpu": "gpu-0000-1a-00", "profile": "7g.80gb", "until": "2026-11-29T15:45:10Z",
        "claim": {"namespace": "default", "name": "large", "uid": uid}});
    // The controller renews its own, so that their end is not known.
    let mut renewed = hold.clone();
    renewed["since"] = json!("2026-11-29T15:40:10Z");
    lab.demands("gpu-1", json!({"holds": [renewed]}));
    assert!(
        lab.explain("large").sentence.contains("is held back for it since 15:40:10 UTC, and offers it a 7g")
    );
    lab.demands("gpu-1", json!({"holds": [hold]}));
    let it = lab.explain("large");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::GpuHeldForClaim), "{it:#?}");
    assert!(
        it.sentence.contains("GPU gpu-0000-1a-00 of node gpu-1 is held back for it until 15:45:10 UTC"),
        "{}",
        it.sentence
    );
    let it = lab.explain("other");
    assert_eq!(
        (it.verdict, it.reasons[0].reason),
        (Verdict::NotNow, ReasonId::LayoutFollowsDemand),
        "{it:#?}"
    );
    assert!(!it.advice.iter().any(|it| it.contains("kubectl label")), "{:?}", it.advice);
    let held = it.reasons.iter().find(|it| it.reason == ReasonId::GpuHeldBack).unwrap();
    assert!(held.sentence.contains("for claim default/large, whose turn it is"), "{}", held.sentence);
}

#[test]
fn a_pod_with_a_gpu_held_back_for_it_is_not_advised_to_choose_a_layout_there_or_elsewhere() {
    for other in ["1g.10gb", "full"] {
        let mut lab = Lab::with("2xH100-80GB");
        lab.snapshot.slices = Default::default();
        lab.layout("gpu-1", &[("1g.10gb", 0)]);
        // A node that takes no part.
        lab.node("gpu-2", json!({}));
        lab.layout("gpu-2", &[(other, 0)]);
        lab.wants("large", "7g.80gb");
        let advises_layout =
            |lab: &Lab| lab.explain("large").advice.iter().any(|it| it.contains("kubectl label"));
        assert!(advises_layout(&lab));
        let uid = "00000000-0000-4000-8000-000000000001";
        lab.snapshot.claims.iter_mut().for_each(|it| it.metadata.uid = Some(uid.to_owned()));
        let hold = json!({"gpu": "gpu-0000-1a-00", "profile": "7g.80gb", "until": "2026-11-29T15:45:10Z",
            "claim": {"namespace": "default", "name": "large", "uid": uid}});
        lab.demands("gpu-1", json!({"holds": [hold]}));
        assert!(!advises_layout(&lab), "{:?}", lab.explain("large").advice);
    }
}

#[test]
fn a_node_without_the_label_on_which_a_gpu_is_held_back_follows_demand() {
    let hold = json!({"gpu": "gpu-0000-1a-00", "profile": "7g.80gb", "until": "2026-11-29T15:45:10Z",
        "claim": {"namespace": "d", "name": "c", "uid": "00000000-0000-4000-8000-000000000001"}});
    let follows = |label: &str, holds: Value| {
        let mig_node = json!({"apiVersion": "mig.dra-driver.dev/v1alpha1", "kind": "MigNode",
            "metadata": {"name": "n"}, "spec": {"holds": holds}, "status": {"mode": "layout"}});
        let node = match label {
            "" => json!({"metadata": {}}),
            label => json!({"metadata": {"labels": {"nvidia.com/mig.config": label}}}),
        };
        let node = serde_json::from_value(node).unwrap();
        crate::cluster::Demanded::of(&serde_json::from_value(mig_node).unwrap(), Some(&node), false).follows
    };
    assert!(follows("", json!([hold])));
    assert!(!follows("", json!([])));
    assert!(!follows("all-1g.10gb", json!([hold])), "which is the operator's");
}

#[test]
fn what_the_driver_reports_about_a_node_explains_what_is_missing() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.snapshot.slices = Default::default();
    lab.event("gpu-1", "GpuUnhealthy", "GPU 0000:1a:00.0 has had XID 79", "2026-11-29T07:00:00Z");
    lab.wants("new", "1g.10gb");
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::Withheld), "{it:#?}");
    assert!(it.sentence.contains("XID 79"), "{}", it.sentence);
    lab.event("gpu-1", "GpuRecovered", "GPU 0000:1b:00.0", "2026-11-29T07:20:00Z");
    assert!(reasons(&lab.explain("new")).contains(&ReasonId::Withheld), "another GPU has recovered");
    lab.event("gpu-1", "GpuRecovered", "GPU 0000:1a:00.0", "2026-11-29T07:30:00Z");
    assert!(!reasons(&lab.explain("new")).contains(&ReasonId::Withheld));
}

#[test]
fn what_another_program_reports_about_a_node_is_no_report_of_the_driver() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.snapshot.slices = Default::default();
    lab.event("gpu-1", "GpuUnhealthy", "GPU 0000:1a:00.0 has had XID 79", "2026-11-29T07:00:00Z");
    for event in &mut lab.snapshot.events {
        event.reporting_component = Some("example.com/tenant".to_owned());
    }
    lab.wants("new", "1g.10gb");
    assert!(!reasons(&lab.explain("new")).contains(&ReasonId::Withheld));
}

#[test]
fn a_cluster_without_slices_has_no_driver() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.snapshot.slices = Default::default();
    let class = json!({"metadata": {"name": "any"}, "spec": {}});
    lab.snapshot.classes.push(serde_json::from_value(class).unwrap());
    lab.claim("new", json!([exactly("mig", "any")]), Value::Null);
    lab.pod("new", json!({}));
    assert_eq!(first(&lab, "new"), (Verdict::Never, ReasonId::NoSlices));
}

fn says(lab: &mut Lab, message: &str) {
    lab.claim("new", json!([exactly("mig", "mig-1g.10gb")]), Value::Null);
    lab.pod(
        "new",
        json!({"status": {"conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}}),
    );
}

#[test]
fn a_pod_lacks_only_devices_where_the_scheduler_names_nothing_else() {
    let lacks_only_devices = |message: &str| {
        let mut lab = Lab::with("2xH100-80GB");
        says(&mut lab, message);
        crate::explain::lacks_only_devices(lab.snapshot.pods.last().unwrap())
    };
    for devices in [
        "0/1 nodes are available: 1 cannot allocate all claims.",
        "0/9 nodes are available: 2 cannot allocate all claims, 3 node(s) didn't match Pod's node affinity/selector, 4 node(s) had \
         untolerated taint(s). preemption: 0/9 nodes are available: 9 Preemption is not helpful for scheduling.",
    ] {
        assert!(lacks_only_devices(devices), "{devices}");
    }
    for more in [
        "",
        "0/2 nodes are available: 2 Insufficient cpu.",
        "0/2 nodes are available: 1 Insufficient memory, 1 cannot allocate all claims.",
        "0/2 nodes are available: 1 cannot allocate all claims, 1 node(s) had volume node affinity conflict.",
        "0/2 nodes are available: 1 cannot allocate all claims, 1 node(s) didn't match pod anti-affinity rules.",
        "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
    ] {
        assert!(!lacks_only_devices(more), "{more}");
    }
}

#[test]
fn a_scheduler_that_ignores_counters_is_recognised_before_1_36() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.snapshot.version = Some((1, 35));
    says(&mut lab, "0/1 nodes are available: 1 cannot allocate all claims.");
    assert_eq!(first(&lab, "new"), (Verdict::Never, ReasonId::SchedulerGateOff));
    // Something with counters is allocated: the gate is on, and the message is old.
    lab.runs("other", "gpu-1", &Lab::device(0, "1g.10gb", 6));
    assert_eq!(lab.explain("new").verdict, Verdict::Fits);
}

#[test]
fn an_assumption_that_decides_is_said() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.snapshot.version = Some((1, 35));
    lab.wants("new", "1g.10gb");
    let it = lab.explain("new");
    assert_eq!(it.verdict, Verdict::Fits);
    assert!(it.assumptions[0].contains("DRAPartitionableDevices"), "{:?}", it.assumptions);
    lab.snapshot.version = Some((1, 36));
    assert!(lab.explain("new").assumptions.is_empty());
}

#[test]
fn a_scheduler_that_lacks_something_else_is_quoted() {
    let mut lab = Lab::with("2xH100-80GB");
    says(&mut lab, "0/1 nodes are available: 1 Insufficient cpu.");
    let it = lab.explain("new");
    assert_eq!((it.verdict, it.reasons[0].reason), (Verdict::NotNow, ReasonId::NotDevices));
    assert!(it.sentence.contains("Insufficient cpu"), "{}", it.sentence);
}

#[test]
fn nodes_that_cannot_be_read_are_those_that_slices_name() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.snapshot.nodes.clear();
    lab.snapshot.unread.push(crate::cluster::Unread { resource: "nodes", why: "forbidden".into() });
    lab.wants("new", "1g.10gb");
    let it = lab.explain("new");
    assert_eq!(it.verdict, Verdict::Fits);
    assert!(it.assumptions[0].contains("forbidden"), "{:?}", it.assumptions);
}

#[test]
fn json_has_stable_names() {
    let mut lab = Lab::with("2xH100-80GB");
    lab.runs("other", "gpu-1", &Lab::device(0, "7g.80gb", 0));
    lab.runs("third", "gpu-1", &Lab::device(1, "7g.80gb", 0));
    lab.wants("new", "7g.80gb");
    let json = serde_json::to_value(lab.explain("new")).unwrap();
    assert_eq!(json["schemaVersion"], 1);
    assert_eq!(json["verdict"], "notNow");
    assert_eq!(json["reasons"][0]["reason"], "allAllocated");
    assert_eq!(json["reasons"][0]["holders"][0]["since"], "2026-11-29T07:00:00Z");
    assert_eq!(
        json["requests"][0]["devices"],
        json!({"total": 52, "selected": 2, "free": 0, "allocated": 2, "blocked": 0, "other": 0})
    );
    assert!(json.to_string().contains(DRIVER) || json["requests"][0]["gpus"][0]["cells"] == "AAAAAAAA");
}
