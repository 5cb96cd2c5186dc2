#![allow(clippy::unwrap_used, reason = "tests")]

use k8s_openapi::api::resource::v1::ResourceSlice;
use serde_json::{Value, json};

use super::*;

/// What the node publishes for two GPUs of a model.
fn shape(model: &str) -> Vec<ResourceSlice> {
    let all: Value =
        serde_json::from_str(include_str!("../../allocator/examples/agreement/shapes.json")).unwrap();
    serde_json::from_value(all[model].clone()).unwrap()
}

fn nvidia() -> Vec<ResourceSlice> {
    let pool = json!({"generation": 1, "name": "n", "resourceSliceCount": 2});
    let spec = |rest: Value| {
        let mut spec = json!({"driver": "gpu.nvidia.com", "nodeName": "n", "pool": pool});
        spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        json!({"metadata": {"name": "s"}, "spec": spec})
    };
    let one = json!({"value": "1"});
    let counters = json!({"memory-slice-0": one, "memory-slice-1": one, "memory-slice-2": one, "memory-slice-3": one, "memory": {"value": "40Gi"}});
    let sets = spec(json!({"sharedCounters": [{"name": "gpu-0-counter-set", "counters": counters}]}));
    let consumes = |counters: Value| json!([{"counterSet": "gpu-0-counter-set", "counters": counters}]);
    let devices = spec(json!({"devices": [
        {"name": "gpu-0", "attributes": {"type": {"string": "gpu"}, "uuid": {"string": "GPU-1"}},
         "consumesCounters": consumes(counters.clone())},
        {"name": "gpu-0-mig-1g10gb-19-2", "capacity": {"memory": {"value": "10Gi"}, "multiprocessors": {"value": "14"}},
         "attributes": {"type": {"string": "mig"}, "parentUUID": {"string": "GPU-1"}, "profile": {"string": "1g.10gb"}},
         "consumesCounters": consumes(json!({"memory-slice-2": one, "memory": {"value": "10Gi"}}))},
    ]}));
    serde_json::from_value(json!([sets, devices])).unwrap()
}

#[test]
fn each_gpu_has_its_memory_slices_and_each_device_its_place() {
    let slices = shape("2xH100-80GB");
    let gpus = gpus(&slices, &Allocated::default());
    assert_eq!(gpus.len(), 2);
    for gpu in &gpus {
        assert_eq!((gpu.memory_slices, gpu.is_counted, gpu.node.as_str()), (8, true, "node"));
        assert_eq!(gpu.product, "NVIDIA H100 80GB HBM3");
        let whole: Vec<_> = gpu.devices.iter().filter(|it| it.profile.is_none()).collect();
        assert_eq!(whole.len(), 1);
        assert_eq!(whole[0].slices, 0..8);
        let quarter = gpu.devices.iter().find(|it| it.name.ends_with("-mig-2g-20gb-4")).unwrap();
        assert_eq!((quarter.profile.as_deref(), quarter.slices.clone()), (Some("2g.20gb"), 4..6));
    }
}

#[test]
fn slices_of_nvidias_driver_are_read_alike() {
    let gpus = gpus(&nvidia(), &Allocated::default());
    assert_eq!(gpus.len(), 1);
    assert_eq!((gpus[0].memory_slices, gpus[0].key.as_str(), gpus[0].devices.len()), (4, "GPU-1", 2));
    let mig = &gpus[0].devices[1];
    assert_eq!((mig.profile.as_deref(), mig.slices.clone(), mig.memory), (Some("1g.10gb"), 2..3, 10 << 30));
    assert_eq!(mig.multiprocessors, 14);
}

#[test]
fn a_claim_holds_the_memory_slices_of_its_device() {
    let mut allocated = Allocated::default();
    let holder = ClaimRef { namespace: "team".into(), name: "claim".into() };
    let device = "gpu-0-mig-1g10gb-19-2".to_owned();
    allocated.insert(DeviceId { driver: "gpu.nvidia.com".into(), pool: "n".into(), device }, holder.clone());
    let gpus = gpus(&nvidia(), &allocated);
    let held: Vec<bool> = gpus[0].held().iter().map(Option::is_some).collect();
    assert_eq!(held, [false, false, true, false]);
    assert_eq!(gpus[0].held()[2].unwrap().holder.as_ref(), Some(&holder));
}

#[test]
fn older_generations_and_other_drivers_are_no_gpus() {
    let mut slices = nvidia();
    let mut old = slices.clone();
    for slice in &mut old {
        slice.spec.pool.generation = 0;
        slice.spec.devices.iter_mut().flatten().for_each(|device| device.name.push_str("-old"));
    }
    slices.extend(old);
    let other = json!({"metadata": {"name": "nic"}, "spec": {"driver": "nic.example.com", "nodeName": "n",
        "pool": {"generation": 1, "name": "n", "resourceSliceCount": 1}, "devices": [{"name": "eth0"}]}});
    slices.push(serde_json::from_value(other).unwrap());
    let gpus = gpus(&slices, &Allocated::default());
    assert_eq!(gpus.len(), 1);
    assert!(gpus[0].devices.iter().all(|it| !it.name.ends_with("-old")), "{gpus:#?}");
}

#[test]
fn counters_that_no_device_consumes_are_a_gpu_without_devices() {
    let mut slices = shape("2xH100-80GB");
    for slice in &mut slices {
        slice.spec.devices.iter_mut().for_each(|it| it.retain(|it| it.name.starts_with("gpu-0000-1a-00")));
    }
    let gpus = gpus(&slices, &Allocated::default());
    assert_eq!(gpus.len(), 2);
    let empty = gpus.iter().find(|it| it.devices.is_empty()).unwrap();
    assert_eq!((empty.name(), empty.memory_slices, empty.node.as_str()), ("gpu-0000-1b-00", 8, "node"));
}

/// A GPU of a layout: devices without counters.
fn cut(name: &str, pci: Option<&str>, product: &str, slices: usize) -> Value {
    let mut attributes = json!({"type": {"string": "mig"}, "profile": {"string": "1g.10gb"},
        "parentUUID": {"string": format!("GPU-{name}")}, "productName": {"string": product},
        "placementStart": {"int": 0}, "memorySlices": {"int": slices}});
    if let Some(pci) = pci {
        attributes["resource.kubernetes.io/pciBusID"] = json!({"string": pci});
    }
    json!({"name": name, "attributes": attributes})
}

fn cuts(devices: Value) -> Vec<ResourceSlice> {
    serde_json::from_value(
        json!([{"metadata": {"name": "s"}, "spec": {"driver": "gpu.nvidia.com", "nodeName": "n",
        "pool": {"generation": 1, "name": "n", "resourceSliceCount": 1}, "devices": devices}}]),
    )
    .unwrap()
}

#[test]
fn gpus_are_in_the_order_of_their_pci_addresses_or_of_their_numbers() {
    let names = |slices: &[ResourceSlice]| -> Vec<String> {
        let all = gpus(slices, &Allocated::default());
        all.iter().map(|it| it.key.strip_prefix("GPU-").unwrap().to_owned()).collect()
    };
    let by_number = cuts(json!([cut("gpu-10", None, "", 1), cut("gpu-2", None, "", 1)]));
    assert_eq!(names(&by_number), ["gpu-2", "gpu-10"]);
    let addresses = [("a", "0000:9b:00.0"), ("b", "0000:1b:00.0")];
    let devices: Vec<Value> = addresses.iter().map(|(name, pci)| cut(name, Some(pci), "", 1)).collect();
    assert_eq!(names(&cuts(json!(devices))), ["b", "a"]);
}

#[test]
fn the_pci_address_is_an_attribute_or_in_the_name_of_a_device() {
    let named = "gpu-0000-9b-00-mig-1g-10gb-6";
    let devices =
        [cut(named, None, "", 1), cut("other", Some("0000:1b:00.0"), "", 1), cut("gpu-3", None, "", 1)];
    let all = gpus(&cuts(json!(devices)), &Allocated::default());
    let pci = |key: &str| all.iter().find(|it| it.key == format!("GPU-{key}")).unwrap().pci.clone();
    assert_eq!(pci(named).as_deref(), Some("0000:9b:00.0"));
    assert_eq!(pci("other").as_deref(), Some("0000:1b:00.0"));
    assert_eq!(pci("gpu-3"), None);
}

#[test]
fn without_counters_the_product_says_how_many_memory_slices_there_are() {
    let devices =
        json!([cut("known", None, "NVIDIA H100 80GB HBM3", 4), cut("other", None, "no such GPU", 4)]);
    let gpus = gpus(&cuts(devices), &Allocated::default());
    assert_eq!(gpus.iter().map(|it| it.memory_slices).collect::<Vec<_>>(), [8, 4]);
}
