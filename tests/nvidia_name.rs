//! The driver under the name of NVIDIA's DRA driver, `gpu.nvidia.com`.

use std::os::unix::net::UnixListener;

use crate::common;
use common::{
    ControlPlane, Lab, device_names, each_control_plane, eventually, free_address, get, is_complete,
    node_events, prepare, unprepare,
};
use dra_driver_mig::node;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::api::{DeleteParams, PostParams};
use kube_sim::kubelet::Claim;
use kubectl_mig::cluster::{Connection, Kinds, read};
use kubectl_mig::get::fleet;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const NVIDIA: &str = "gpu.nvidia.com";
const NAMED: [&str; 2] = ["--driver-name", NVIDIA];

/// A claim for this device with an opaque configuration of NVIDIA's driver.
async fn claim(lab: &Lab, name: &str, device: &str, kind: &str, sharing: Value) -> Claim {
    let pool = format!("{}/{NVIDIA}", lab.node_name);
    let parameters = json!({"apiVersion": "resource.nvidia.com/v1beta1", "kind": kind, "sharing": sharing});
    let devices = json!({
        "results": [{"request": "gpu", "driver": NVIDIA, "pool": pool, "device": device}],
        "config": [{"source": "FromClaim", "opaque": {"driver": NVIDIA, "parameters": parameters}}],
    });
    lab.claim_with(name, devices).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_serves_claims_under_nvidias_name_with_its_attributes_and_default_configurations() {
    each_control_plane(true, async |plane| {
        let mut lab = Lab::new(plane, "1xH100-80GB").await.with_args(&NAMED);
        lab.start();
        let slices = lab.slices_when(is_complete).await;
        assert!(slices.iter().all(|it| it.spec.driver == NVIDIA), "{slices:?}");
        // What NVIDIA's driver gives each of its devices, in the domain of its name.
        let devices: Vec<_> = slices.iter().flat_map(|it| it.spec.devices.iter().flatten()).collect();
        assert_eq!(devices.len(), 26);
        for device in &devices {
            let attributes = device.attributes.as_ref().unwrap();
            for key in [
                "type",
                "uuid",
                "parentUUID",
                "profile",
                "productName",
                "brand",
                "architecture",
                "cudaComputeCapability",
                "driverVersion",
                "cudaDriverVersion",
                "resource.kubernetes.io/pciBusID",
            ] {
                assert!(attributes.contains_key(key), "{} has no {key}", device.name);
            }
            if attributes["type"].string.as_deref() == Some("gpu") {
                assert!(attributes["uuid"].string.as_ref().unwrap().starts_with("GPU-"), "{attributes:?}");
            }
        }

        let kubelet = lab.kubelet().await;
        let device = format!("{}-mig-3g-40gb-4", lab.gpu_name(0));
        let slicing = json!({"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Default"}});
        let one = claim(&lab, "one", &device, "MigDeviceConfig", slicing).await;
        let prepared = prepare(&kubelet, &one).await.unwrap();
        assert_eq!(prepared[0].cdi_ids, [format!("{NVIDIA}/claim={}-{device}", one.uid)]);
        assert_eq!(lab.instances(), [(0, "3g.40gb".to_owned(), 4)]);

        let connection = Connection::new(lab.client.clone(), "default");
        let kinds = Kinds { nodes: true, ..Kinds::default() };
        let mut seen = fleet(&read(&connection, kinds).await.unwrap()).unwrap();
        seen.gpus.retain(|it| it.node == lab.node_name);
        let gpu = &seen.gpus[0];
        assert_eq!((gpu.driver.as_str(), gpu.product.as_deref()), (NVIDIA, Some("NVIDIA H100 80GB HBM3")));
        assert!(gpu.holders[0].claim.name.starts_with("one-") && gpu.problems.is_empty(), "{gpu:#?}");
        assert_eq!(gpu.largest.as_deref(), Some("4g.40gb"));

        unprepare(&kubelet, &one).await.unwrap();
        assert_eq!((lab.instances().len(), lab.files("cdi").len()), (0, 0));
        lab.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_of_nvidia_that_means_something_else_here_is_refused_before_anything_is_created() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await.with_args(&NAMED);
    lab.start();
    let kubelet = lab.kubelet().await;
    let device = format!("{}-mig-1g-10gb-6", lab.gpu_name(0));
    let slicing = json!({"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Long"}});
    for (name, kind, sharing, reason) in [
        ("mps", "MigDeviceConfig", json!({"strategy": "MPS"}), "MigDeviceConfig asks for MPS"),
        ("long", "GpuConfig", slicing, "GpuConfig sets the time slice `Long`"),
    ] {
        let claim = claim(&lab, name, &device, kind, sharing).await;
        let error = prepare(&kubelet, &claim).await.unwrap_err();
        assert!(error.contains(reason) && error.contains("remove it"), "{error}");
        assert!(lab.instances().is_empty() && lab.files("cdi").is_empty());
        unprepare(&kubelet, &claim).await.unwrap();
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_not_start_where_nvidias_driver_serves_the_kubelet() {
    let lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await.with_args(&NAMED);
    std::fs::create_dir_all(lab.path("registry")).unwrap();
    let _nvidia = UnixListener::bind(lab.path("registry/gpu.nvidia.com-reg.sock")).unwrap();
    let error = node::run(lab.args(), CancellationToken::new()).await.unwrap_err().to_string();
    assert!(
        error.contains("gpu.nvidia.com-reg.sock") && error.contains("gpu.deploy.dra-driver=false"),
        "{error}"
    );
    assert_eq!(lab.slices().await, Vec::<ResourceSlice>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_publishes_nothing_more_once_nvidias_driver_serves_the_kubelet_as_well() {
    let address = free_address();
    let lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    let mut lab = lab.with_args(&["--driver-name", NVIDIA, "--http-address", &address.to_string()]);
    lab.start();
    let published = lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;
    let nvidia = UnixListener::bind(lab.path("registry/gpu.nvidia.com-reg.sock")).unwrap();
    let name = published[0].metadata.name.as_deref().unwrap();
    lab.slices_api().delete(name, &DeleteParams::default()).await.unwrap();
    let notes = eventually("an event says why", async || {
        let notes = node_events(&lab, "PublishRefused").await;
        (!notes.is_empty()).then_some(notes)
    })
    .await;
    assert!(
        notes[0].contains("gpu.nvidia.com-reg.sock") && notes[0].contains("gpu.deploy.dra-driver=false"),
        "{notes:?}"
    );
    let answer = get(address, "/readyz").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("another DRA driver"), "{answer}");
    assert!(lab.slices().await.iter().all(|it| it.metadata.name.as_deref() != Some(name)));

    // It ends, and leaves its socket as a killed process does.
    drop(nvidia);
    lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;
    lab.stop().await;
}

/// A slice as NVIDIA's driver names it, in its pool.
async fn slice_of_nvidia(lab: &Lab) -> String {
    let name = format!("00000-{NVIDIA}-{}-x4k2p", lab.node_name);
    let slice = json!({
        "metadata": {"name": name},
        "spec": {"driver": NVIDIA, "nodeName": lab.node_name, "devices": [{"name": "gpu-0"}],
                 "pool": {"name": lab.node_name, "generation": 1, "resourceSliceCount": 1}},
    });
    lab.slices_api().create(&PostParams::default(), &serde_json::from_value(slice).unwrap()).await.unwrap();
    name
}

#[tokio::test(flavor = "multi_thread")]
async fn it_publishes_nothing_beside_slices_of_nvidias_driver_and_publishes_once_they_are_gone() {
    let address = free_address();
    let lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    let mut lab = lab.with_args(&["--driver-name", NVIDIA, "--http-address", &address.to_string()]);
    let name = slice_of_nvidia(&lab).await;
    lab.start();
    let reported = eventually("an event says why", async || {
        let notes = node_events(&lab, "PublishRefused").await;
        notes.into_iter().next()
    })
    .await;
    assert!(reported.contains("another DRA driver named gpu.nvidia.com"), "{reported}");
    assert!(reported.contains(&format!("kubectl delete resourceslice {name}")), "{reported}");
    let answer = get(address, "/readyz").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("another DRA driver"), "{answer}");
    assert_eq!(device_names(&lab.slices().await), ["gpu-0"], "neither more nor fewer");

    lab.slices_api().delete(&name, &DeleteParams::default()).await.unwrap();
    let before = lab.slices_when(|it| is_complete(it) && device_names(it).len() == 26).await;

    // It comes back, as after a mistake with labels: what is published stays as it is, and nothing of the other is touched.
    slice_of_nvidia(&lab).await;
    eventually("it is not ready", async || {
        get(address, "/readyz").await?.contains("another DRA driver").then_some(())
    })
    .await;
    let mut after = lab.slices().await;
    after.retain(|it| it.metadata.name.as_ref() != Some(&name));
    assert_eq!(after, before);
    lab.stop().await;
}
