//! The device classes against the devices of every simulated model, and against those of others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dra_driver_mig::inventory::{Attachment, Gpu, GpuState, inventory};
use dra_driver_mig::nvml::{self, DeviceHandle};
use dra_driver_mig::placement::{Policy, Ranking};
use dra_driver_mig::slices::{Owner, render};
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};
use kube_sim::cel_env::{Evaluator, compile};
use nvml_sim::{Model, SimNode};
use serde_json::json;

use crate::chart::{objects, objects_of};
use crate::common::DRIVER;

/// What the driver publishes for one GPU of a model, in MIG mode where it has one.
fn devices(model: Model) -> Vec<Device> {
    let directory = tempfile::tempdir().unwrap();
    let node = SimNode::create(directory.path(), &[model]).unwrap();
    let library = nvml::open(&node.library()).unwrap();
    let uuid = nvml::discover(&library).unwrap().gpus[0].uuid.clone();
    if model.has_mig() {
        DeviceHandle::by_uuid(&library, &uuid).unwrap().set_mig_mode(true).unwrap();
        node.reset_gpu(0).unwrap();
    }
    let facts = nvml::discover(&library).unwrap();
    let mode = facts.gpus[0].mig.as_ref().map(|it| it.mode);
    let attachment = Attachment::default();
    let state = GpuState { mode, instances: Vec::new(), problem: None };
    let gpu = Gpu { facts: Arc::new(facts.gpus[0].clone()), attachment, state };
    let owner = Owner { driver: DRIVER.to_owned(), node: "n".to_owned(), node_uid: "u".to_owned() };
    let offered = inventory(&facts, &[gpu], &BTreeSet::new());
    let ranking = Ranking::of(&offered, &BTreeSet::new(), Policy::Pack);
    let slices = render(&offered, &ranking, &owner);
    slices.into_iter().flat_map(|it| it.spec.devices.unwrap_or_default()).collect()
}

/// Names of the classes that take a device; a selector that fails fails the test.
fn taken_by(driver: &str, device: &Device) -> BTreeSet<String> {
    let evaluator = Evaluator::new();
    let takes = |class: &serde_json::Value| {
        class["spec"]["selectors"].as_array().unwrap().iter().all(|selector| {
            let expression = selector["cel"]["expression"].as_str().unwrap();
            evaluator
                .selects(&compile(expression).unwrap(), driver, device)
                .unwrap_or_else(|error| panic!("{expression} on {}: {error}", device.name))
        })
    };
    let classes = objects_of("DeviceClass");
    classes
        .iter()
        .filter(|it| takes(it))
        .map(|it| it["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

fn text(device: &Device, attribute: &str) -> String {
    device.attributes.as_ref().unwrap()[attribute].string.clone().unwrap()
}

#[test]
fn every_device_of_every_model_has_its_class() {
    let mut seen = BTreeSet::new();
    for model in Model::all() {
        // One of each kind: the other placements differ in nothing that a class asks for.
        let by_profile: BTreeMap<String, Device> =
            devices(model).into_iter().map(|it| (text(&it, "profile"), it)).collect();
        assert_eq!(model.has_mig(), 1 < by_profile.len(), "{}", model.name());
        for (profile, device) in by_profile {
            if !seen.insert(profile.clone()) {
                continue;
            }
            let expected = if profile == "full" {
                BTreeSet::from(["gpu.dra-driver.dev".to_owned()])
            } else {
                let class = format!("mig-{}", profile.replace('+', ".").replace("-me", ".nome"));
                BTreeSet::from(["mig.dra-driver.dev".to_owned(), class])
            };
            assert_eq!(taken_by(DRIVER, &device), expected, "{} {profile}", model.name());
        }
    }
    assert_eq!(seen.len(), objects_of("DeviceClass").len() - 1, "a class for each profile and none besides");
}

#[test]
fn a_device_of_another_driver_is_taken_by_no_class_and_breaks_none() {
    let bare = Device { name: "nic-0".to_owned(), ..Device::default() };
    assert_eq!(taken_by("nic.example.com", &bare), BTreeSet::new());
    // Even one that says of itself what ours say.
    let attribute =
        |text: &str| DeviceAttribute { string: Some(text.to_owned()), ..DeviceAttribute::default() };
    let names = [("mig.dra-driver.dev/type", "mig"), ("mig.dra-driver.dev/profile", "1g.10gb")];
    let attributes = names.into_iter().map(|(name, value)| (name.to_owned(), attribute(value))).collect();
    let disguised = Device { attributes: Some(attributes), ..bare };
    assert_eq!(taken_by("nic.example.com", &disguised), BTreeSet::new());
}

#[test]
fn extended_resources_have_the_device_plugins_names_and_can_be_left_out() {
    let classes = objects_of("DeviceClass");
    let resource = |name: &str| {
        let class = classes.iter().find(|it| it["metadata"]["name"] == name).unwrap();
        class["spec"]["extendedResourceName"].clone()
    };
    assert_eq!(resource("mig-1g.10gb"), "nvidia.com/mig-1g.10gb");
    assert_eq!(resource("mig-1g.10gb.me"), "nvidia.com/mig-1g.10gb.me");
    assert_eq!(resource("gpu.dra-driver.dev"), "nvidia.com/gpu");
    assert_eq!(resource("mig.dra-driver.dev"), json!(null), "no device plugin has a name for any MIG device");
    let without = objects(&json!({"deviceClasses": {"extendedResources": false}}));
    assert!(without.iter().all(|it| it["spec"].get("extendedResourceName").is_none()));
}
