//! Publishing: from the simulated hardware to an API server, simulated and, where there is one, real.

use std::collections::BTreeSet;

use std::time::{Duration, Instant};

use crate::common;
use common::{
    ControlPlane, DRIVER, Lab, device_names, each_control_plane, eventually, free_address, get, is_complete,
};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_gpus_becomes_one_complete_valid_pool() {
    each_control_plane(true, async |plane| {
        for (gpus, devices, counter_slices) in [
            ("1xH100-80GB", 26, 1),
            ("2xH100-80GB,1xL4", 53, 1),
            ("8xH100-80GB", 208, 1),
            ("16xH100-80GB", 416, 2),
        ] {
            let mut lab = Lab::new(plane.clone(), gpus).await;
            lab.start();
            let slices = lab.slices_when(is_complete).await;
            let names = device_names(&slices);
            assert_eq!(names.len(), devices, "{gpus}");
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), devices, "names are unique");
            assert_eq!(slices.iter().filter(|it| it.spec.shared_counters.is_some()).count(), counter_slices);
            assert!(slices.iter().all(|it| it.spec.devices.iter().flatten().count() <= 64));
            lab.stop().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_device_has_the_same_attribute_and_capacity_keys() {
    let mut lab =
        Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB,1xA100-40GB,1xRTX-PRO-6000-96GB,1xL4")
            .await;
    lab.start();
    let slices = lab.slices_when(is_complete).await;
    let devices: Vec<_> = slices.iter().flat_map(|it| it.spec.devices.iter().flatten()).collect();
    let keys = |index: usize| {
        let device = devices[index];
        let attributes: Vec<_> = device.attributes.iter().flatten().map(|it| it.0.clone()).collect();
        let capacities: Vec<_> = device.capacity.iter().flatten().map(|it| it.0.clone()).collect();
        (attributes, capacities)
    };
    assert!(devices.len() > 50);
    assert!((0..devices.len()).all(|it| keys(it) == keys(0)));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_change_writes_nothing() {
    let plane = ControlPlane::simulated(true).await;
    let ControlPlane::Simulated(server) = &plane else { unreachable!("it is the simulated one") };
    let mut lab = Lab::new(plane.clone(), "2xH100-80GB").await;
    lab.start();
    let before = lab.slices_when(is_complete).await;
    lab.stop().await;
    let seen = server.requests().len();
    lab.start();
    let is_slice_request = |it: &&kube_sim::RequestInfo| it.path.contains("resourceslices");
    common::eventually("the second run has compared and watches", async || {
        let requests = server.requests().split_off(seen);
        let is_watch = |it: &kube_sim::RequestInfo| it.query.contains("watch=true");
        let lists = requests.iter().filter(is_slice_request).filter(|it| it.method == "GET" && !is_watch(it));
        (requests.iter().any(is_watch) && 2 <= lists.count()).then_some(())
    })
    .await;
    lab.stop().await;
    let requests = server.requests().split_off(seen);
    let writes: Vec<_> = requests
        .iter()
        .filter(is_slice_request)
        .filter(|it| it.method != "GET" && !it.query.contains("dryRun"))
        .collect();
    assert!(writes.is_empty(), "{writes:?}");
    assert_eq!(lab.slices().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_whose_slices_the_kubelet_has_deleted_lists_no_claims_unless_its_file_is_not_understood() {
    for keeps_counters in [true, false] {
        let plane = ControlPlane::simulated(keeps_counters).await;
        let ControlPlane::Simulated(server) = plane.clone() else { unreachable!("it is the simulated one") };
        let mut lab = Lab::new(plane, "2xH100-80GB").await.with_args(&["--settle-time", "1"]);
        let file = lab.path(&format!("plugins/{DRIVER}/published.json"));
        let is_noted = || std::fs::read(&file).is_ok_and(|it| it.len() > 200).then_some(());
        lab.start();
        let published = lab.slices_when(is_complete).await;
        eventually("it is noted", async || is_noted()).await;
        let all = lab.slices().await;
        assert_eq!(device_names(&all), device_names(&published));
        for (content, lists) in [(None, false), (Some("{"), true), (None, false)] {
            lab.stop().await;
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            for slice in lab.slices().await {
                lab.slices_api()
                    .delete(&slice.metadata.name.unwrap(), &DeleteParams::default())
                    .await
                    .unwrap();
            }
            let seen = server.requests().len();
            lab.start();
            lab.slices_when(|it| is_complete(it) && device_names(it) == device_names(&all)).await;
            eventually("it is noted", async || is_noted()).await;
            let is_list = |it: &kube_sim::RequestInfo| {
                it.method == "GET" && it.path.ends_with("/resourceclaims") && !it.is_watch()
            };
            let found = server.requests().split_off(seen).into_iter().any(|it| is_list(&it));
            assert_eq!(found, lists, "counters: {keeps_counters}, the file: {content:?}");
        }
        lab.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_that_others_delete_or_change_come_back() {
    each_control_plane(true, async |plane| {
        let mut lab = Lab::new(plane, "2xH100-80GB").await;
        lab.start();
        let before = lab.slices_when(is_complete).await;
        for slice in &before {
            let name = slice.metadata.name.as_deref().unwrap();
            lab.slices_api().delete(name, &DeleteParams::default()).await.unwrap();
        }
        let wiped = lab.slices_when(|it| is_complete(it) && device_names(it).len() == 52).await;
        assert!(wiped.iter().zip(&before).all(|(new, old)| new.metadata.uid != old.metadata.uid));

        let name = wiped[1].metadata.name.clone().unwrap();
        let no_devices = Patch::Merge(json!({"spec": {"devices": []}}));
        lab.slices_api().patch(&name, &PatchParams::default(), &no_devices).await.unwrap();
        let repaired = lab.slices_when(|it| is_complete(it) && device_names(it).len() == 52).await;
        // One slice changed in place: the generation stays, and the pool was never incomplete.
        assert_eq!(repaired[0].spec.pool.generation, wiped[0].spec.pool.generation);
        assert_eq!(repaired[0].metadata.resource_version, wiped[0].metadata.resource_version);
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitionable_mode_offers_whole_gpus_where_counters_are_dropped() {
    each_control_plane(false, async |plane| {
        let mut lab = Lab::new(plane, "2xH100-80GB,1xL4").await.with_args(&["--mode", "partitionable"]);
        lab.start();
        let slices = lab.slices_when(is_complete).await;
        assert_eq!(device_names(&slices), ["gpu-0000-3b-00", "gpu-0000-1a-00", "gpu-0000-1b-00"]);
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitionable_mode_offers_whole_gpus_where_counters_belong_to_one_slice() {
    let plane = ControlPlane::simulated_1_34().await;
    let mut lab = Lab::new(plane, "2xH100-80GB").await.with_args(&["--mode", "partitionable"]);
    lab.start();
    let slices = lab.slices_when(is_complete).await;
    assert_eq!(device_names(&slices), ["gpu-0000-1a-00", "gpu-0000-1b-00"]);
    lab.stop().await;
}

/// A slice of another driver under the name that one of this lab's slices has.
async fn squat(lab: &Lab, index: usize) -> String {
    let name = format!("{index:05x}-{DRIVER}-{}", lab.node_name);
    let slice = json!({
        "metadata": {"name": name},
        "spec": {"driver": "gpu.example.com", "nodeName": "elsewhere", "devices": [],
                 "pool": {"name": "x", "generation": 1, "resourceSliceCount": 1}},
    });
    lab.slices_api().create(&PostParams::default(), &serde_json::from_value(slice).unwrap()).await.unwrap();
    name
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_another_driver_has_is_reported_and_asked_for_less_and_less_often() {
    let plane = ControlPlane::simulated(true).await;
    let ControlPlane::Simulated(server) = plane.clone() else { unreachable!("it is the simulated one") };
    let address = free_address();
    let mut lab = Lab::new(plane, "1xH100-80GB").await.with_args(&["--http-address", &address.to_string()]);
    let name = squat(&lab, 1).await;
    let begun = Instant::now();
    lab.start();
    let creates = || {
        let requests = server.requests().into_iter();
        requests
            .filter(|it| it.method == "POST" && it.path.ends_with("resourceslices") && it.query.is_empty())
            .count()
    };
    // The squatter's, the counters, and five attempts for the devices: four pauses, each at least half of what it can be.
    let least: Duration = (0..4).map(|it| Duration::from_millis(250) * 2_u32.pow(it)).sum();
    eventually("it is tried five times", async || (2 + 5 <= creates()).then_some(())).await;
    assert!(least <= begun.elapsed(), "{:?}", begun.elapsed());

    let expected = format!(
        "create resourceslice {name} failed: the name is taken by a slice of driver gpu.example.com, node elsewhere"
    );
    let answer = get(address, "/readyz").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains(&expected), "{answer}");
    assert!(answer.contains(&format!("kubectl delete resourceslice {name}")), "{answer}");
    let events: Api<Event> = Api::namespaced(lab.client.clone(), "default");
    let found = eventually("an event says so", async || {
        let mut events = events.list(&ListParams::default()).await.unwrap().items;
        events.retain(|it| it.reason.as_deref() == Some("PublishRefused"));
        (!events.is_empty()).then_some(events)
    })
    .await;
    assert_eq!(found.len(), 1, "one event, however often it is tried");
    assert!(found[0].series.is_none() && found[0].note.as_ref().unwrap().contains(&expected), "{found:?}");

    lab.slices_api().delete(&name, &DeleteParams::default()).await.unwrap();
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;
    eventually("it is ready for the scheduler", async || {
        get(address, "/readyz").await?.contains("[+] resourceslices").then_some(())
    })
    .await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_never_gives_up_is_reported_and_corrected_less_and_less_often() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xL4").await;
    lab.start();
    let mut uid = lab.slices_when(is_complete).await.swap_remove(0).metadata.uid;
    let begun = Instant::now();
    let pause = Duration::from_secs(4);
    let mut corrections = 0;
    while corrections < 7 || begun.elapsed() < pause && corrections < 9 {
        corrections += 1;
        let slice = lab.slices_when(is_complete).await.swap_remove(0);
        lab.slices_api().delete(&slice.metadata.name.unwrap(), &DeleteParams::default()).await.unwrap();
        let after = lab.slices_when(|it| is_complete(it) && it[0].metadata.uid != uid).await;
        uid.clone_from(&after[0].metadata.uid);
    }
    // The first ones may be part of the start of the watch, five are corrected at once, and the next after half of eight seconds at least.
    assert!(pause <= begun.elapsed(), "{corrections} in {:?}", begun.elapsed());
    let events: Api<Event> = Api::namespaced(lab.client.clone(), "default");
    eventually("an event says so", async || {
        let events = events.list(&ListParams::default()).await.unwrap().items;
        events.iter().any(|it| it.reason.as_deref() == Some("SlicesOverwritten")).then_some(())
    })
    .await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_stays_valid_while_a_further_slice_has_no_name() {
    let plane = ControlPlane::simulated(true).await;
    let mut lab = Lab::new(plane, "3xH100-80GB").await;
    lab.sim.break_handle(2, Some(nvml_sim::Code::GPU_IS_LOST)).unwrap();
    lab.start();
    let before = lab.slices_when(is_complete).await;
    let name = squat(&lab, before.len()).await;
    lab.stop().await;
    lab.sim.break_handle(2, None).unwrap();
    lab.start();
    let events: Api<Event> = Api::namespaced(lab.client.clone(), "default");
    eventually("the further slice is refused", async || {
        let events = events.list(&ListParams::default()).await.unwrap().items;
        let is_about = |it: &Event| it.note.as_ref().is_some_and(|it| it.contains(&name));
        events.iter().any(is_about).then_some(())
    })
    .await;
    // The counter set of the third GPU may be there already, which changes nothing of the others.
    let now = lab.slices().await;
    let devices =
        |it: &[ResourceSlice]| it.iter().filter_map(|it| it.spec.devices.clone()).collect::<Vec<_>>();
    assert!(is_complete(&now));
    assert_eq!(devices(&now), devices(&before));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_gpus_publishes_an_empty_pool() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xL4").await;
    lab.sim.configure(|it| it.driver_loaded = false).unwrap();
    lab = lab.with_args(&["--rescan-interval", "1"]);
    lab.start();
    let slices = lab.slices_when(is_complete).await;
    assert_eq!((slices.len(), device_names(&slices).len()), (1, 0));
    lab.sim.configure(|it| it.driver_loaded = true).unwrap();
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 1).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_unmanaged_instance_occupies_is_not_offered_until_it_goes() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    let planted = lab.sim.plant_instance(0, "1g.10gb+me", 0).unwrap();
    lab = lab.with_args(&["--rescan-interval", "1"]);
    lab.start();
    let slices = lab.slices_when(is_complete).await;
    let names = device_names(&slices);
    // Gone with slice 0: 7g, 4g, 3g@0, 2g@0, 1g@0, 1g double memory @0, the whole GPU; with the OFA: all +me.
    assert_eq!(names.len(), 26 - 7 - 7);
    assert!(names.iter().all(|it| !it.contains("-me-") && !it.ends_with("-0")), "{names:?}");
    lab.sim.on_gpu(0, |gpu| gpu.instances.retain(|it| it.id != planted.gpu_instance)).unwrap();
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_gpu_does_not_hide_the_healthy_ones() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "3xH100-80GB").await;
    lab.sim.break_handle(1, Some(nvml_sim::Code::GPU_IS_LOST)).unwrap();
    lab.start();
    let slices = lab.slices_when(is_complete).await;
    assert_eq!(device_names(&slices).len(), 52);
    assert!(device_names(&slices).iter().all(|it| !it.contains("1b")));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ampere_gpu_offers_what_its_mode_allows() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "2xA100-40GB").await;
    lab.sim.on_gpu(0, |gpu| (gpu.mig_current, gpu.mig_pending) = (true, true)).unwrap();
    lab.start();
    let slices = lab.slices_when(is_complete).await;
    let (first, second): (Vec<&str>, Vec<&str>) =
        device_names(&slices).into_iter().partition(|it| it.contains("-mig-"));
    assert_eq!(first.len(), 25, "MIG mode is on: every placement, and not the whole GPU");
    assert_eq!(second.len(), 1, "MIG mode is off and cannot be switched: the whole GPU only");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_device_that_fits_is_the_one_that_blocks_least() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    lab.start();
    let slices = lab.slices_when(is_complete).await;
    let names: Vec<&str> =
        device_names(&slices).into_iter().map(|it| it.trim_start_matches("gpu-0000-1a-00")).collect();
    // Slice 6 is needed by the fewest others; 4 and 5 by the same ones; then the left half, which 4g needs.
    let first: Vec<String> = [6, 5, 4, 3, 2, 1, 0].iter().map(|it| format!("-mig-1g-10gb-{it}")).collect();
    assert_eq!(names[..7], first);
    let position = |name: &str| names.iter().position(|it| *it == name).unwrap();
    assert!(position("-mig-3g-40gb-4") < position("-mig-3g-40gb-0"), "4g at 0 stays possible");
    assert!(position("-mig-7g-80gb-0") < position("-mig-1g-10gb-me-6"), "the one OFA is given away last");
    assert_eq!(names.last(), Some(&""), "the whole GPU comes after all its parts");
    lab.stop().await;
}
