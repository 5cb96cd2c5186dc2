//! `kubectl mig plan` says what a scheduler then does with the same manifests: the simulated one and, where there is one, a real
//! kube-scheduler on a real API server.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::common;
use clap::Parser;
use common::{ControlPlane, Lab, device_names, each_control_plane, eventually, is_complete, repository};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kubectl_mig::args::{Cli, Command};
use kubectl_mig::manifest::{self, Catalog, Demand, Object};
use serde_json::{Value, json};

/// What `kubectl mig plan -o json` prints.
fn plan(arguments: &[&str]) -> Value {
    let line = ["kubectl-mig", "plan", "-o", "json"].iter().chain(arguments);
    let Command::Plan(args) = Cli::parse_from(line).command else {
        unreachable!("the command line says plan")
    };
    serde_json::from_str(&kubectl_mig::plan::plan(&args).unwrap().0).unwrap()
}

/// Devices by the workload whose pods have them.
type ByWorkload = BTreeMap<String, BTreeSet<String>>;

fn planned(plan: &Value) -> ByWorkload {
    let mut devices = ByWorkload::new();
    for placement in plan["placements"].as_array().unwrap() {
        let of = devices.entry(placement["workload"].as_str().unwrap().to_owned()).or_default();
        let claims = placement["claims"].as_array().unwrap().iter();
        of.extend(
            claims.flat_map(|it| it["devices"].as_array().unwrap()).map(|it| it.as_str().unwrap().to_owned()),
        );
    }
    devices
}

/// A scheduler for the plane, which ends when it is dropped, a node that it may use, and the driver's classes.
async fn scheduler(lab: &Lab, gates: &str) -> Box<dyn Any> {
    let nodes: Api<Node> = Api::all(lab.client.clone());
    // No other controller removes the taints that the API server gives a new node, or reports its capacity.
    let spec = Patch::Merge(json!({"spec": {"taints": null}}));
    nodes.patch(&lab.node_name, &PatchParams::default(), &spec).await.unwrap();
    let amount = json!({"cpu": "64", "memory": "64Gi", "pods": "110"});
    let ready = json!([{"type": "Ready", "status": "True"}]);
    let status = json!({"status": {"allocatable": amount, "capacity": amount, "conditions": ready}});
    nodes.patch_status(&lab.node_name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let file = repository().join("deploy/manifests/deviceclasses.yaml").display().to_string();
    let classes: Api<DeviceClass> = Api::all(lab.client.clone());
    for object in manifest::read(&[file], false).unwrap() {
        let Object::DeviceClass(class) = object else { continue };
        classes.create(&PostParams::default(), &class).await.unwrap();
    }
    match &lab.plane {
        ControlPlane::Simulated(server) => Box::new(kube_sim::ControlPlane::start(server)),
        ControlPlane::Real(real) => Box::new(real.0.start_scheduler(gates).unwrap()),
    }
}

/// Creates the pods of manifests one after the other, each with claims that are made of its templates, as controllers do. Answers
/// with the workload of each claim.
async fn create(lab: &Lab, files: &[String]) -> BTreeMap<String, String> {
    let objects = manifest::read(files, false).unwrap();
    let templates: Vec<&ResourceClaimTemplate> = objects
        .iter()
        .filter_map(|it| match it {
            Object::ResourceClaimTemplate(template) => Some(&**template),
            _ => None,
        })
        .collect();
    let catalog = Catalog::new([], templates, [], "default");
    let claims: Api<ResourceClaim> = Api::namespaced(lab.client.clone(), "default");
    let pods: Api<Pod> = Api::namespaced(lab.client.clone(), "default");
    let mut owners = BTreeMap::new();
    for demand in objects.iter().filter_map(|it| Demand::of(it, "default").unwrap()) {
        for index in 0..demand.replicas {
            let mut pod = demand.pod(index);
            let made = catalog.planned_claims(&pod).unwrap();
            let entries = pod.spec.as_mut().unwrap().resource_claims.iter_mut().flatten();
            for (entry, claim) in entries.zip(made) {
                entry.resource_claim_template_name = None;
                entry.resource_claim_name.clone_from(&claim.metadata.name);
                owners.insert(claim.metadata.name.clone().unwrap(), demand.owner.clone());
                claims.create(&PostParams::default(), &claim).await.unwrap();
            }
            pods.create(&PostParams::default(), &pod).await.unwrap();
        }
    }
    owners
}

/// What is allocated once each pod is bound or was refused by the scheduler.
async fn allocated_when_decided(lab: &Lab, owners: &BTreeMap<String, String>) -> ByWorkload {
    let pods: Api<Pod> = Api::namespaced(lab.client.clone(), "default");
    eventually("each pod is bound or refused", async || {
        let list = pods.list(&ListParams::default()).await.unwrap();
        let is_decided = |pod: &Pod| {
            let conditions = pod.status.iter().flat_map(|it| it.conditions.iter().flatten());
            conditions.filter(|it| it.type_ == "PodScheduled").count() == 1
        };
        list.iter().all(is_decided).then_some(())
    })
    .await;
    let claims: Api<ResourceClaim> = Api::namespaced(lab.client.clone(), "default");
    let mut devices = ByWorkload::new();
    for claim in claims.list(&ListParams::default()).await.unwrap() {
        let of = devices.entry(owners[claim.metadata.name.as_ref().unwrap()].clone()).or_default();
        let status = serde_json::to_value(&claim.status).unwrap();
        let results = status["allocation"]["devices"]["results"].as_array().cloned().unwrap_or_default();
        of.extend(results.iter().map(|it| it["device"].as_str().unwrap().to_owned()));
    }
    devices
}

fn example(name: &str) -> String {
    let path: PathBuf = repository().join("examples/plan").join(name);
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheduler_gives_the_pods_the_devices_of_the_plan() {
    for (keeps_counters, layout, served) in [(true, None, [2, 7]), (false, Some("all-balanced"), [2, 4])] {
        each_control_plane(keeps_counters, async |plane| {
            let mut lab = Lab::new(plane, "2xH100-80GB").await;
            let gates = format!("DRAPartitionableDevices={keeps_counters}");
            let _scheduler = scheduler(&lab, &gates).await;
            if let Some(layout) = layout {
                let nodes: Api<Node> = Api::all(lab.client.clone());
                let label = Patch::Merge(json!({"metadata": {"labels": {"nvidia.com/mig.config": layout}}}));
                nodes.patch(&lab.node_name, &PatchParams::default(), &label).await.unwrap();
            }
            lab.start();
            let devices = if layout.is_some() { 2 * 4 } else { 2 * 26 };
            lab.slices_when(|it| is_complete(it) && device_names(it).len() == devices).await;

            let files = [example("1-training.yaml"), example("2-inference.yaml")];
            let owners = create(&lab, &files).await;
            let allocated = allocated_when_decided(&lab, &owners).await;

            let mut arguments = vec!["-f", &files[0], "-f", &files[1], "--gpus", "2xH100-80GB"];
            arguments.extend(layout.iter().flat_map(|layout| ["--layout", layout]));
            let plan = plan(&arguments);
            assert_eq!(plan["workloads"][0]["placed"], served[0]);
            assert_eq!(plan["workloads"][1]["placed"], served[1]);
            assert_eq!(planned(&plan), allocated);
            lab.stop().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_on_a_cluster_starts_from_what_is_allocated_there() {
    each_control_plane(true, async |plane| {
        let mut lab = Lab::new(plane, "2xH100-80GB").await;
        let _scheduler = scheduler(&lab, "DRAPartitionableDevices=true").await;
        lab.start();
        lab.slices_when(|it| is_complete(it) && device_names(it).len() == 2 * 26).await;
        let training = example("1-training.yaml");
        let owners = create(&lab, std::slice::from_ref(&training)).await;
        allocated_when_decided(&lab, &owners).await;

        let kubeconfig = lab.path("kubeconfig").display().to_string();
        let inference = example("2-inference.yaml");
        let arguments = ["-f", inference.as_str(), "--kubeconfig", kubeconfig.as_str()].map(str::to_owned);
        // It has a runtime of its own.
        let plan = tokio::task::spawn_blocking(move || plan(&arguments.each_ref().map(String::as_str)))
            .await
            .unwrap();
        assert_eq!(plan["placed"], 7, "{plan:#}");
        assert_eq!(plan["needed"], json!({"gpus": 2, "nodes": 1, "like": lab.node_name, "inAddition": true}));
        let maps: Vec<&str> =
            plan["gpus"].as_array().unwrap().iter().map(|it| it["map"].as_str().unwrap()).collect();
        assert_eq!(maps, ["####|####", "A|A|A|A|A|A|A|-"]);

        let before = planned(&plan);
        let owners = create(&lab, &[inference]).await;
        let all: BTreeMap<String, String> = owners
            .into_iter()
            .chain(
                [("training-0-gpu", "training"), ("training-1-gpu", "training")]
                    .map(|(name, owner)| (name.to_owned(), owner.to_owned())),
            )
            .collect();
        let allocated = allocated_when_decided(&lab, &all).await;
        assert_eq!(allocated["deployment/inference"], before["deployment/inference"]);
        lab.stop().await;
    })
    .await;
}
