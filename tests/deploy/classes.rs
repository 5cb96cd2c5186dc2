//! The device classes against the devices of every simulated model, and against those of others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dra_allocator::cel_env::{Evaluator, compile};
use dra_driver_mig::nvml::{self, DeviceHandle};
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};
use mig_model::facts::NodeFacts;
use mig_model::inventory::{Attachment, Gpu, GpuState, inventory};
use mig_model::placement::{Policy, Ranking};
use mig_model::slices::{Owner, render};
use nvml_sim::{Model, SimNode};
use serde_json::json;

use super::chart::{objects, objects_of};
use crate::common::DRIVER;

/// What NVML says of one GPU of a model, in MIG mode where it has one.
fn facts(model: Model) -> NodeFacts {
    let directory = tempfile::tempdir().unwrap();
    let node = SimNode::create(directory.path(), &[model]).unwrap();
    let library = nvml::open(&node.library()).unwrap();
    let uuid = nvml::discover(&library).unwrap().gpus[0].uuid.clone();
    if model.has_mig() {
        DeviceHandle::by_uuid(&library, &uuid, 0).unwrap().set_mig_mode(true).unwrap();
        node.reset_gpu(0).unwrap();
    }
    nvml::discover(&library).unwrap()
}

/// What the driver publishes for the GPU.
fn devices(facts: &NodeFacts) -> Vec<Device> {
    devices_of(DRIVER, facts)
}

/// The same under this name.
fn devices_of(driver: &str, facts: &NodeFacts) -> Vec<Device> {
    let mode = facts.gpus[0].mig.as_ref().map(|it| it.mode);
    let attachment = Attachment::default();
    let state = GpuState { mode, instances: Vec::new(), problem: None };
    let gpu = Gpu { facts: Arc::new(facts.gpus[0].clone()), attachment, state };
    let owner = Owner { driver: driver.to_owned(), node: "n".to_owned(), node_uid: "u".to_owned() };
    let offered = inventory(facts, &[gpu], &BTreeSet::new());
    let ranking = Ranking::of(&offered, &BTreeSet::new(), Policy::Pack);
    let slices = render(&offered, &ranking, &owner);
    slices.into_iter().flat_map(|it| it.spec.devices.unwrap_or_default()).collect()
}

/// Names the shipped classes that take a device of a driver; a selector that fails fails the test.
fn taker() -> impl Fn(&str, &Device) -> BTreeSet<String> {
    taker_of(&objects_of("DeviceClass"))
}

/// The same of these classes.
fn taker_of(classes: &[serde_json::Value]) -> impl Fn(&str, &Device) -> BTreeSet<String> + use<> {
    let compiled = |class: &serde_json::Value| {
        let selectors = class["spec"]["selectors"].as_array().unwrap().iter();
        let expressions = selectors.map(|it| compile(it["cel"]["expression"].as_str().unwrap()).unwrap());
        (class["metadata"]["name"].as_str().unwrap().to_owned(), expressions.collect::<Vec<_>>())
    };
    let classes: Vec<_> = classes.iter().map(compiled).collect();
    let evaluator = Evaluator::new();
    move |driver, device| {
        let is_taken = |(name, expressions): &(String, Vec<_>)| {
            expressions.iter().all(|it| {
                let answer = evaluator.selects(it, driver, device);
                answer.unwrap_or_else(|error| panic!("{name} on {}: {error}", device.name))
            })
        };
        classes.iter().filter(|it| is_taken(it)).map(|(name, _)| name.clone()).collect()
    }
}

fn text(device: &Device, attribute: &str) -> String {
    device.attributes.as_ref().unwrap()[attribute].string.clone().unwrap()
}

/// The class of a profile.
fn class(profile: &str) -> String {
    format!("mig-{}", profile.replace('+', ".").replace("-me", ".nome"))
}

/// The profiles that mig-parted's own configuration names: a list that comes neither from this chart nor from the simulator.
fn known_profiles() -> Vec<&'static str> {
    let list = include_str!("../data/mig-parted-profiles.txt");
    list.lines().filter(|it| !it.starts_with('#')).collect()
}

#[test]
fn every_profile_that_mig_parted_names_has_a_class() {
    let profiles = known_profiles();
    assert!(70 < profiles.len(), "{}", profiles.len());
    let mut expected: BTreeSet<String> = profiles.into_iter().map(class).collect();
    expected.extend(["gpu.dra-driver.dev", "mig.dra-driver.dev"].map(str::to_owned));
    let name = |it: serde_json::Value| it["metadata"]["name"].as_str().unwrap().to_owned();
    let shipped: BTreeSet<String> = objects_of("DeviceClass").into_iter().map(name).collect();
    assert_eq!(shipped, expected);
}

#[test]
fn every_class_of_the_list_takes_the_devices_of_its_profile_alone() {
    let taken_by = taker();
    let mut facts = facts(Model::all().find(|it| it.name() == "H100-80GB").unwrap());
    for profile in known_profiles() {
        // A GPU that has this profile and no other, whatever model that will be.
        let mig = facts.gpus[0].mig.as_mut().unwrap();
        mig.profiles.truncate(1);
        mig.profiles[0].name = profile.to_owned();
        let devices = devices(&facts);
        let device = devices.iter().find(|it| text(it, "type") == "mig").unwrap();
        let expected = BTreeSet::from(["mig.dra-driver.dev".to_owned(), class(profile)]);
        assert_eq!(taken_by(DRIVER, device), expected, "{profile}");
    }
}

#[test]
fn every_device_of_every_model_has_its_class() {
    let taken_by = taker();
    let mut seen = BTreeSet::new();
    for model in Model::all() {
        // One of each kind: the other placements differ in nothing that a class asks for.
        let by_profile: BTreeMap<String, Device> =
            devices(&facts(model)).into_iter().map(|it| (text(&it, "profile"), it)).collect();
        assert_eq!(model.has_mig(), 1 < by_profile.len(), "{}", model.name());
        for (profile, device) in by_profile {
            if !seen.insert(profile.clone()) {
                continue;
            }
            let expected = if profile == "full" {
                BTreeSet::from(["gpu.dra-driver.dev".to_owned()])
            } else {
                BTreeSet::from(["mig.dra-driver.dev".to_owned(), class(&profile)])
            };
            assert_eq!(taken_by(DRIVER, &device), expected, "{} {profile}", model.name());
        }
    }
}

#[test]
fn a_device_of_another_driver_is_taken_by_no_class_and_breaks_none() {
    let taken_by = taker();
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

/// The extended resource of each class that has one.
fn resources(objects: &[serde_json::Value]) -> BTreeMap<String, String> {
    let classes = objects.iter().filter(|it| it["kind"] == "DeviceClass");
    let named = classes.filter_map(|it| {
        let text = |it: &serde_json::Value| it.as_str().map(str::to_owned);
        Some((text(&it["metadata"]["name"])?, text(&it["spec"]["extendedResourceName"])?))
    });
    named.collect()
}

#[test]
fn extended_resources_have_the_device_plugins_names_and_can_be_left_out() {
    let shipped = resources(&objects_of("DeviceClass"));
    assert_eq!(shipped["mig-1g.10gb"], "nvidia.com/mig-1g.10gb");
    assert_eq!(shipped["mig-1g.10gb.me"], "nvidia.com/mig-1g.10gb.me");
    assert_eq!(shipped.get("mig.dra-driver.dev"), None, "no device plugin has a name for any MIG device");
    // A second driver's class may have it, and the newer class would take all pods.
    assert_eq!(shipped.get("gpu.dra-driver.dev"), None);
    let Some(without) = objects(&json!({"deviceClasses": {"extendedResources": false}})) else { return };
    assert_eq!(resources(&without), BTreeMap::new());
    let with = objects(&json!({"deviceClasses": {"gpuExtendedResource": true}})).unwrap();
    assert_eq!(resources(&with)["gpu.dra-driver.dev"], "nvidia.com/gpu");
    assert_eq!(resources(&with).len(), shipped.len() + 1);
}

#[test]
fn a_value_adds_classes_to_the_list() {
    let change = json!({"deviceClasses": {"extraProfiles": ["1g.40gb", "1g.10gb"]}});
    let Some(objects) = objects(&change) else { return };
    let with = resources(&objects);
    let shipped = resources(&objects_of("DeviceClass"));
    let more: Vec<&String> = with.keys().filter(|it| !shipped.contains_key(*it)).collect();
    assert_eq!(more, ["mig-1g.40gb"]);
    let classes = objects.iter().filter(|it| it["kind"] == "DeviceClass").count();
    assert_eq!(classes, objects_of("DeviceClass").len() + 1, "a profile in both lists has one class");
}

/// The classes of the chart under NVIDIA's name, with these values for them.
fn under_nvidias_name(classes: &serde_json::Value) -> Option<Vec<serde_json::Value>> {
    let mut found = objects(&json!({"driverName": "gpu.nvidia.com", "deviceClasses": classes}))?;
    found.retain(|it| it["kind"] == "DeviceClass");
    Some(found)
}

#[test]
fn under_nvidias_name_the_classes_have_its_names_and_take_the_devices_of_either_driver() {
    const NVIDIA: &str = "gpu.nvidia.com";
    let Some(classes) = under_nvidias_name(&json!({})) else { return };
    let taken_by = taker_of(&classes);
    let names = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<BTreeSet<String>>();
    let facts = facts(Model::all().find(|it| it.name() == "H100-80GB").unwrap());
    for device in devices_of(NVIDIA, &facts) {
        let expected = match text(&device, "profile").as_str() {
            "full" => names(&["gpu.nvidia.com", "gpu.dra-driver.dev"]),
            profile => names(&["mig.nvidia.com", "mig.dra-driver.dev", &class(profile)]),
        };
        assert_eq!(taken_by(NVIDIA, &device), expected, "{}", device.name);
    }
    // A whole GPU of NVIDIA's driver on another node has neither a profile nor a parent.
    let attribute = |it: &str| DeviceAttribute { string: Some(it.to_owned()), ..DeviceAttribute::default() };
    let attributes = [("type", "gpu"), ("uuid", "GPU-1")].map(|(key, it)| (key.to_owned(), attribute(it)));
    let theirs =
        Device { name: "gpu-0".to_owned(), attributes: Some(attributes.into()), ..Device::default() };
    assert_eq!(taken_by(NVIDIA, &theirs), names(&["gpu.nvidia.com", "gpu.dra-driver.dev"]));
}

#[test]
fn under_nvidias_name_one_class_has_the_extended_resource_of_gpus() {
    let of_gpus = |classes: &serde_json::Value| -> Option<Vec<String>> {
        let all = resources(&under_nvidias_name(classes)?);
        Some(all.into_iter().filter(|(_, it)| it == "nvidia.com/gpu").map(|(class, _)| class).collect())
    };
    let Some(shipped) = of_gpus(&json!({"gpuExtendedResource": true})) else { return };
    assert_eq!(shipped, ["gpu.nvidia.com"]);
    assert_eq!(of_gpus(&json!({})).unwrap(), ["gpu.nvidia.com"]);
    // Where NVIDIA's chart has created its classes, on other nodes.
    let without = json!({"nvidiaClasses": false, "gpuExtendedResource": true});
    assert_eq!(of_gpus(&without).unwrap(), ["gpu.dra-driver.dev"]);
    let classes = under_nvidias_name(&without).unwrap();
    assert!(classes.iter().all(|it| !it["metadata"]["name"].as_str().unwrap().ends_with("nvidia.com")));
}
