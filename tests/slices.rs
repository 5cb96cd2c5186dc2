//! `kubectl mig slices` prints what the node publishes on GPUs of the same models, which are simulated here.

use crate::common;
use clap::Parser;
use common::{ControlPlane, DRIVER, Lab, eventually, is_complete};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kubectl_mig::args::{Cli, Command};
use nvml_sim::Model;
use serde_json::{Value, json};

/// What `kubectl mig slices` prints, parsed.
fn printed(arguments: &[&str]) -> Vec<ResourceSlice> {
    let line = ["kubectl-mig", "slices", "-o", "json"].iter().chain(arguments);
    let Command::Slices(args) = Cli::parse_from(line).command else {
        unreachable!("the command line says slices")
    };
    let list: Value = serde_json::from_str(&kubectl_mig::slices::text(&args).unwrap()).unwrap();
    serde_json::from_value(list["items"].clone()).unwrap()
}

/// Names and contents of slices, with each GPU's UUID replaced by its PCI address.
fn comparable(slices: &[ResourceSlice]) -> Value {
    let one = |slice: &ResourceSlice| {
        let mut spec = serde_json::to_value(&slice.spec).unwrap();
        for device in spec["devices"].as_array_mut().into_iter().flatten() {
            let pci = json!(device["name"].as_str().unwrap()["gpu-".len()..][..10]);
            for key in ["parentUUID", "uuid"] {
                let value = &mut device["attributes"][key]["string"];
                if value.as_str().unwrap().starts_with("GPU-") {
                    *value = pci.clone();
                }
            }
        }
        json!({"name": slice.metadata.name, "spec": spec})
    };
    slices.iter().map(one).collect()
}

/// Switches MIG mode of the node's GPUs on, which GPUs of before Hopper need a reset for.
fn mig_on(lab: &Lab, gpus: usize) {
    for gpu in 0..gpus {
        lab.sim.on_gpu(gpu, |gpu| (gpu.mig_current, gpu.mig_pending) = (true, true)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn printed_slices_of_every_model_are_those_that_the_node_publishes() {
    let plane = ControlPlane::simulated(true).await;
    let mut compared = 0;
    for model in Model::all() {
        let gpus = format!("2x{},1xL4", model.name());
        for mode in ["on", "off"] {
            if mode == "off" && (!model.has_mig() || model.resetless_mig()) {
                continue;
            }
            let mut lab = Lab::new(plane.clone(), &gpus).await;
            if mode == "on" && model.has_mig() {
                mig_on(&lab, 2);
            }
            lab.start();
            let published = lab.slices_when(is_complete).await;
            lab.stop().await;
            let mine = printed(&["--gpus", &gpus, "--node", &lab.node_name, "--mig-mode", mode]);
            assert_eq!(comparable(&mine), comparable(&published), "{gpus}, MIG mode {mode}");
            compared += 1;
        }
    }
    assert!(compared > Model::all().count(), "A100 and A30 have two modes");
}

#[tokio::test(flavor = "multi_thread")]
async fn printed_slices_of_a_layout_are_those_that_the_node_publishes() {
    let plane = ControlPlane::simulated(false).await;
    for model in Model::all() {
        let gpus = format!("2x{}", model.name());
        let layouts: &[&str] =
            if model.has_mig() { &["all-balanced", "all-disabled"] } else { &["all-disabled"] };
        for layout in layouts {
            let mut lab = Lab::new(plane.clone(), &gpus).await;
            if *layout == "all-balanced" {
                mig_on(&lab, 2);
            }
            let nodes: Api<Node> = Api::all(lab.client.clone());
            let label = Patch::Merge(json!({"metadata": {"labels": {"nvidia.com/mig.config": layout}}}));
            nodes.patch(&lab.node_name, &PatchParams::default(), &label).await.unwrap();
            lab.start();
            eventually("the layout is in force", async || {
                let labels = nodes.get(&lab.node_name).await.unwrap().metadata.labels.unwrap_or_default();
                (labels.get("nvidia.com/mig.config.state")? == "success").then_some(())
            })
            .await;
            let published = lab.slices_when(is_complete).await;
            lab.stop().await;
            let mine = printed(&["--gpus", &gpus, "--node", &lab.node_name, "--layout", layout]);
            assert_eq!(comparable(&mine), comparable(&published), "{gpus}, {layout}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_takes_printed_slices_of_every_model() {
    common::each_control_plane(true, async |plane| {
        let client = plane.client().await;
        let node = plane.create_node(&client).await;
        let slices: Api<ResourceSlice> = Api::all(client);
        for (number, model) in Model::all().enumerate() {
            let driver = format!("test-{number}.{DRIVER}");
            let gpus = format!("8x{}", model.name());
            for slice in printed(&["--gpus", &gpus, "--node", &node, "--driver-name", &driver]) {
                let created = slices.create(&kube::api::PostParams::default(), &slice).await.unwrap();
                assert_eq!(created.spec, slice.spec, "nothing is dropped");
            }
        }
    })
    .await;
}
