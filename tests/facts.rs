//! Facts that NVML or the kernel does not report: what is offered without each. Plays the tables of
//! `src/driver/nvml/discover.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use dra_allocator::cel_env::{Evaluator, compile};
use dra_allocator::{Allocated, Cluster, Features, Refusal};
use mig_model::facts::NodeFacts;
use mig_model::inventory::{AttributeSet, Gpu, Inventory, OfferPolicy, inventory_on};
use mig_model::placement::{Policy, Ranking};

use crate::common;
use crate::common::repository;
use common::{ControlPlane, DRIVER, Lab, device_names, eventually, is_complete, prepare, unprepare};
use dra_driver_mig::hardware::{Hardware, HardwareArgs, HardwareError, Opener};
use dra_driver_mig::telemetry::metrics::Metrics;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{Device, DeviceClass, ResourceClaim, ResourceSlice};
use mig_model::slices::{Owner, render};
use nvml_sim::{Code, Fault, SimNode};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The node of every test here; its last GPU is one that nothing happens to.
const GPUS: &str = "1xH100-80GB,1xL4,1xH100-80GB";
const H100: usize = 0;
const L4: usize = 1;
const WITNESS: usize = 2;
/// Names of their devices begin like this.
const NAMES: [&str; 3] = ["gpu-0000-1a-00", "gpu-0000-1b-00", "gpu-0000-3b-00"];
/// Devices of an H100: 25 placements and the whole GPU.
const ALL: usize = 26;

/// A simulated node without a cluster.
struct Bench {
    _directory: TempDir,
    sim: SimNode,
    has_sysfs: bool,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let models = nvml_sim::parse_gpus(GPUS).unwrap();
        let sim = SimNode::create(&directory.path().join("host"), &models).unwrap();
        Self { _directory: directory, sim, has_sysfs: true }
    }

    fn open(&self) -> Hardware {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Hardware, HardwareError> {
        let host = self.sim.driver_root();
        let sys_root = if self.has_sysfs { host.join("sys") } else { PathBuf::from("/nonexistent") };
        let args = HardwareArgs {
            driver_root: host.to_owned(),
            driver_library: None,
            proc_root: host.join("proc"),
            sys_root,
            nvml_step_time: Duration::from_secs(60),
        };
        Opener::new(args, Metrics::default(), Duration::from_secs(60)).open()
    }

    async fn offered(&self) -> Offered {
        Offered::of(&self.open()).await
    }

    fn fail(&self, call: &str, code: Code, gpu: Option<usize>) {
        let fault = Fault::returning(call, code);
        self.sim.inject(Fault { gpu, ..fault }).unwrap();
    }
}

/// What a node offers.
struct Offered {
    inventory: Inventory,
    slices: Vec<ResourceSlice>,
}

impl Offered {
    /// What the API server takes, or the test fails.
    async fn of(hardware: &Hardware) -> Self {
        let gpus: Vec<Gpu> = hardware.scan().await.unwrap();
        // Under NVIDIA's name there are most attributes.
        let policy = OfferPolicy { attributes: AttributeSet::AsNvidia, ..OfferPolicy::default() };
        let inventory = inventory_on(&hardware.facts, &gpus, &policy);
        let owner = Owner { driver: DRIVER.to_owned(), node: "node".to_owned(), node_uid: "u".to_owned() };
        let ranking = Ranking::of(&inventory, &BTreeSet::new(), Policy::Pack);
        let slices = render(&inventory, &ranking, &owner);
        for slice in &slices {
            let errors = kube_sim::validate::slice(
                &serde_json::to_value(slice).unwrap(),
                None,
                kube_sim::Version::V1_35,
            );
            assert!(errors.is_empty(), "{errors:?}");
        }
        Self { inventory, slices }
    }

    fn devices(&self) -> impl Iterator<Item = &Device> {
        self.slices.iter().flat_map(|it| it.spec.devices.iter().flatten())
    }

    fn count(&self, gpu: usize) -> usize {
        self.inventory.devices().filter(|it| it.name.as_str().starts_with(NAMES[gpu])).count()
    }

    /// `all`, `whole` (nothing else), `parts` (all but that) or `none` of a GPU.
    fn word(&self, gpu: usize) -> &'static str {
        let has_whole = self.inventory.devices().any(|it| it.name.as_str() == NAMES[gpu]);
        match (self.count(gpu), has_whole) {
            (0, _) => "none",
            (ALL, true) => "all",
            (1, true) => "whole",
            (25, false) => "parts",
            other => panic!("{other:?} of GPU {gpu}"),
        }
    }

    /// The devices that a claim for two devices with the same value of an attribute is given.
    fn pair(&self, attribute: &str, constraint: &str, selector: &str) -> Result<Vec<String>, Refusal> {
        let request = |name: &str| {
            let exactly = json!({"deviceClassName": "any", "allocationMode": "ExactCount", "count": 1,
                "selectors": [{"cel": {"expression": selector}}]});
            json!({"name": name, "exactly": exactly})
        };
        let constraints = json!([{constraint: attribute}]);
        let devices = json!({"requests": [request("a"), request("b")], "constraints": constraints});
        let claim: ResourceClaim =
            serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {"devices": devices}})).unwrap();
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "node"}})).unwrap();
        let class: DeviceClass =
            serde_json::from_value(json!({"metadata": {"name": "any"}, "spec": {"selectors": [
            {"cel": {"expression": format!("device.driver == \"{DRIVER}\"")}}]}}))
            .unwrap();
        // The scheduler of 1.35 would lose counters at the devices that the constraint refuses.
        let cluster = Cluster::new(&self.slices, [&class], Features::ALL).with_leak_fixed();
        let results = cluster
            .allocate(&node, &[claim], &Allocated::default())?
            .into_iter()
            .flat_map(|it| it.devices.unwrap().results.unwrap());
        Ok(results.map(|it| it.device).collect())
    }
}

/// The codes of the sweep, in the order of its columns.
const CODES: [Code; 4] = [Code::NOT_SUPPORTED, Code::UNKNOWN, Code::NO_PERMISSION, Code::FUNCTION_NOT_FOUND];

/// A call that discovery makes, and what is offered of a GPU for which it fails with each of [`CODES`].
type Row = (&'static str, [&'static str; 4]);

/// Fails each call for one GPU with each code. The witness is always offered as it is.
async fn sweep(bench: &Bench, gpu: usize, rows: &[Row]) {
    let witness = bench.offered().await.word(WITNESS);
    for (call, expected) in rows {
        for (code, expected) in CODES.into_iter().zip(expected) {
            bench.fail(call, code, Some(gpu));
            let offered = bench.offered().await;
            assert_eq!(offered.word(gpu), *expected, "{call} answers {code:?} for GPU {gpu}");
            assert_eq!(offered.word(WITNESS), witness, "{call} answers {code:?} for another GPU");
            bench.sim.clear_faults().unwrap();
        }
    }
}

#[tokio::test]
async fn a_gpu_with_mig_is_offered_as_far_as_its_facts_allow() {
    let rows: [Row; 12] = [
        ("nvmlDeviceGetUUID", ["none"; 4]),
        ("nvmlDeviceGetPciInfo_v3", ["none"; 4]),
        ("nvmlDeviceGetName", ["all"; 4]),
        ("nvmlDeviceGetBrand", ["all"; 4]),
        ("nvmlDeviceGetArchitecture", ["all"; 4]),
        ("nvmlDeviceGetCudaComputeCapability", ["all"; 4]),
        ("nvmlDeviceGetMemoryInfo_v2", ["all"; 4]),
        ("nvmlDeviceGetVirtualizationMode", ["all"; 4]),
        ("nvmlDeviceGetMigMode", ["whole", "none", "none", "whole"]),
        ("nvmlDeviceGetFieldValues", ["whole"; 4]),
        // Without the function the one of older drivers is asked.
        ("nvmlDeviceGetGpuInstanceProfileInfoV", ["whole", "whole", "whole", "all"]),
        ("nvmlDeviceGetGpuInstancePossiblePlacements_v2", ["whole"; 4]),
    ];
    sweep(&Bench::new(), H100, &rows).await;
}

#[tokio::test]
async fn a_gpu_in_mig_mode_is_never_offered_whole_for_want_of_a_fact() {
    let bench = Bench::new();
    bench.sim.on_gpu(H100, |gpu| (gpu.mig_current, gpu.mig_pending) = (true, true)).unwrap();
    let rows: [Row; 4] = [
        ("nvmlDeviceGetFieldValues", ["parts"; 4]),
        ("nvmlDeviceGetGpuInstanceProfileInfoV", ["none", "none", "none", "all"]),
        ("nvmlDeviceGetGpuInstancePossiblePlacements_v2", ["none"; 4]),
        ("nvmlDeviceGetGpuInstances", ["none"; 4]),
    ];
    sweep(&bench, H100, &rows).await;
}

#[tokio::test]
async fn a_gpu_without_mig_needs_no_fact_but_its_identity() {
    let rows: [Row; 11] = [
        ("nvmlDeviceGetUUID", ["none"; 4]),
        ("nvmlDeviceGetPciInfo_v3", ["none"; 4]),
        ("nvmlDeviceGetName", ["whole"; 4]),
        ("nvmlDeviceGetBrand", ["whole"; 4]),
        ("nvmlDeviceGetArchitecture", ["whole"; 4]),
        ("nvmlDeviceGetCudaComputeCapability", ["whole"; 4]),
        // What a GPU with the memory of the system answers, and what one answers that hangs on the bus.
        ("nvmlDeviceGetMemoryInfo_v2", ["whole", "none", "whole", "whole"]),
        ("nvmlDeviceGetVirtualizationMode", ["whole"; 4]),
        ("nvmlDeviceGetMigMode", ["whole", "none", "none", "whole"]),
        ("nvmlDeviceGetGpuInstanceProfileInfoV", ["whole"; 4]),
        ("nvmlDeviceGetFieldValues", ["whole"; 4]),
    ];
    sweep(&Bench::new(), L4, &rows).await;
}

#[tokio::test]
async fn facts_of_the_node_condemn_no_gpu() {
    let bench = Bench::new();
    for call in
        ["nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion_v2", "nvmlDeviceGetHandleByUUID"]
    {
        for code in CODES {
            bench.fail(call, code, None);
            let offered = bench.offered().await;
            assert_eq!(
                [H100, L4, WITNESS].map(|it| offered.word(it)),
                ["all", "whole", "all"],
                "{call} {code:?}"
            );
            bench.sim.clear_faults().unwrap();
        }
    }
    for code in CODES {
        bench.sim.break_handle(L4, Some(code)).unwrap();
        let offered = bench.offered().await;
        assert_eq!([H100, L4, WITNESS].map(|it| offered.word(it)), ["all", "none", "all"], "{code:?}");
    }
}

#[tokio::test]
async fn one_profile_that_cannot_be_read_leaves_the_others() {
    let bench = Bench::new();
    // The third profile of the first GPU, which is 3g.40gb with two placements.
    let fault = Fault::returning("nvmlDeviceGetGpuInstanceProfileInfoV", Code::UNKNOWN);
    bench.sim.inject(fault.on_gpu(H100).skipping(2).times(1)).unwrap();
    let hardware = bench.open();
    assert_eq!(Offered::of(&hardware).await.count(H100), ALL - 2);
    assert!(!hardware.is_complete(), "what was made of that profile may still be there");
    let again = hardware.again().unwrap().expect("the profile is read at the next look");
    assert_eq!(Offered::of(&again).await.count(H100), ALL);
    assert!(again.is_complete() && !again.is_worth_another_look());
}

/// What is said of a node whose NVML lacks a function.
async fn said_without(function: &str) -> String {
    let bench = Bench::new();
    bench.sim.hide_symbols(&[function]).unwrap();
    bench.sim.plant_instance(H100, "1g.10gb", 0).unwrap();
    let hardware = match bench.try_open() {
        Ok(hardware) => hardware,
        Err(error) => return error.to_string(),
    };
    let NodeFacts { unknown, gpus, skipped, .. } = &hardware.facts;
    let facts = unknown.iter().chain(gpus.iter().flat_map(|it| &it.unknown)).map(ToString::to_string);
    let skipped = skipped.iter().map(|it| it.reason.clone());
    let problems = hardware.scan().await.unwrap().into_iter().filter_map(|it| it.state.problem);
    facts.chain(skipped).chain(problems).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_function_that_the_installed_driver_lacks_is_named_with_the_driver_that_has_it() {
    let bench = Bench::new();
    bench.sim.configure(|it| it.log_calls = true).unwrap();
    bench.sim.plant_instance(H100, "1g.10gb", 0).unwrap();
    bench.offered().await;
    let calls: BTreeSet<String> = bench.sim.calls().unwrap().into_iter().map(|it| it.call).collect();
    assert!(calls.contains("nvmlDeviceGetGpuInstancePossiblePlacements_v2"), "{calls:?}");
    // Where an older driver lacks one of these, there is another way.
    let replaced =
        ["nvmlDeviceGetGpuInstanceProfileInfoV", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetHandleByUUID"];
    // Every NVML has nvmlShutdown, and nvml-wrapper relies on it.
    for call in calls.iter().filter(|it| *it != "nvmlShutdown") {
        let said = said_without(call).await;
        if replaced.contains(&call.as_str()) {
            assert_eq!(said, "", "{call}");
        } else if call.starts_with("nvmlInit") {
            assert!(said.contains(call.as_str()), "{call}: {said}");
        } else {
            let expected = format!("{call} failed with FUNCTION_NOT_FOUND");
            assert!(said.contains(&expected) && said.contains("driver 470 and later"), "{call}: {said}");
        }
    }
}

#[tokio::test]
async fn a_gpu_is_not_cut_where_the_installed_driver_lacks_a_function_that_destroys_or_creates_an_instance() {
    let functions = [
        "nvmlDeviceSetMigMode",
        "nvmlDeviceGetGpuInstances",
        "nvmlDeviceGetGpuInstanceById",
        "nvmlDeviceCreateGpuInstanceWithPlacement",
        "nvmlGpuInstanceGetInfo",
        "nvmlGpuInstanceDestroy",
        "nvmlGpuInstanceGetComputeInstanceProfileInfo",
        "nvmlGpuInstanceGetComputeInstances",
        "nvmlGpuInstanceCreateComputeInstance",
        "nvmlComputeInstanceGetInfo_v2",
        "nvmlComputeInstanceDestroy",
        "nvmlDeviceGetGpuInstancePossiblePlacements_v2",
    ];
    for function in functions {
        let bench = Bench::new();
        bench.sim.hide_symbols(&[function]).unwrap();
        let hardware = bench.open();
        assert_eq!(Offered::of(&hardware).await.word(H100), "whole", "{function}");
        let unknown = &hardware.facts.gpus[H100].unknown;
        let text = unknown.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let expected = format!("{function} failed with FUNCTION_NOT_FOUND");
        assert!(text.contains(&expected) && text.contains("driver 470 and later"), "{function}: {text}");
    }
}

#[tokio::test]
async fn a_lost_gpu_is_left_out_whichever_call_tells() {
    let bench = Bench::new();
    for call in ["nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetGpuInstanceProfileInfoV"] {
        bench.fail(call, Code::GPU_IS_LOST, Some(H100));
        let hardware = bench.open();
        assert!(hardware.facts.skipped[0].is_gone, "{call}: {:?}", hardware.facts.skipped);
        bench.sim.clear_faults().unwrap();
    }
}

#[tokio::test]
async fn what_was_unknown_is_asked_for_again_and_what_is_known_stays() {
    let bench = Bench::new();
    bench.fail("nvmlDeviceGetName", Code::UNKNOWN, Some(H100));
    bench.fail("nvmlDeviceGetGpuInstancePossiblePlacements_v2", Code::UNKNOWN, Some(H100));
    bench.fail("nvmlSystemGetDriverVersion", Code::UNKNOWN, None);
    let hardware = bench.open();
    let facts = |it: &Hardware| it.gpu(&hardware.facts.gpus[H100].uuid).unwrap().facts.clone();
    assert_eq!((facts(&hardware).product_name.clone(), hardware.facts.driver_version.clone()), (None, None));
    assert!(hardware.is_worth_another_look() && !hardware.is_complete());
    assert!(hardware.again().unwrap().is_none(), "nothing has changed");

    bench.sim.clear_faults().unwrap();
    // What was known before may fail now.
    bench.fail("nvmlDeviceGetBrand", Code::UNKNOWN, Some(H100));
    let again = hardware.again().unwrap().unwrap();
    let known = facts(&again);
    assert_eq!(known.product(), "NVIDIA H100 80GB HBM3");
    assert_eq!((&known.brand, &known.unknown), (&facts(&hardware).brand, &Vec::new()));
    assert_eq!(again.facts.driver_version.as_deref(), Some("580.82.07"));
    assert_eq!(Offered::of(&again).await.word(H100), "all");
    assert!(!again.is_worth_another_look());
}

#[tokio::test]
async fn an_answer_that_cannot_change_is_not_asked_for_again() {
    let bench = Bench::new();
    bench.fail("nvmlDeviceGetMemoryInfo_v2", Code::NOT_SUPPORTED, Some(L4));
    let hardware = bench.open();
    assert!(!hardware.is_worth_another_look() && hardware.is_complete());
    assert_eq!(hardware.facts.gpus[L4].unknown.len(), 1);
}

#[tokio::test]
async fn a_vgpu_is_offered_whole_unless_it_is_an_instance_of_its_host() {
    let bench = Bench::new();
    let offered = async |virtualization: u32, is_on: bool| {
        for gpu in [H100, L4] {
            bench.sim.on_gpu(gpu, |it| it.virtualization = virtualization).unwrap();
        }
        bench.sim.on_gpu(H100, |it| (it.mig_current, it.mig_pending) = (is_on, is_on)).unwrap();
        let offered = bench.offered().await;
        [H100, L4, WITNESS].map(|it| offered.word(it))
    };
    assert_eq!(offered(1, false).await, ["all", "whole", "all"], "passthrough");
    assert_eq!(offered(2, false).await, ["whole", "whole", "all"], "vGPU");
    assert_eq!(offered(2, true).await, ["none", "whole", "all"], "vGPU in MIG mode");
    let reason = |hardware: Hardware| hardware.facts.skipped[0].reason.clone();
    assert!(reason(bench.open()).contains("it is a vGPU in MIG mode"));
    assert_eq!(offered(3, false).await, ["none", "none", "all"], "host of vGPUs");
    assert_eq!(offered(4, false).await, ["none", "none", "all"], "host of vSGA");
    assert!(reason(bench.open()).contains("it serves virtual machines"));
    // A mode that nvml-wrapper does not know.
    assert_eq!(offered(9, false).await, ["all", "whole", "all"]);
}

fn text(device: &Device, attribute: &str) -> String {
    let value = &device.attributes.as_ref().unwrap()[attribute];
    value.string.clone().or(value.version.clone()).unwrap()
}

/// A node of whose GPUs nothing is known that need not be.
fn blind() -> Bench {
    let mut bench = Bench::new();
    bench.has_sysfs = false;
    for call in ["Name", "Brand", "Architecture", "CudaComputeCapability", "MemoryInfo_v2"] {
        bench.fail(&format!("nvmlDeviceGet{call}"), Code::NOT_SUPPORTED, None);
    }
    bench
}

#[tokio::test]
async fn an_unknown_is_not_published_as_a_value_that_another_gpu_has() {
    let offered = blind().offered().await;
    let mut values: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for device in offered.devices() {
        let attributes = device.attributes.as_ref().unwrap();
        for standard in ["pcieRoot", "numaNode"] {
            assert!(!attributes.contains_key(&format!("resource.kubernetes.io/{standard}")));
        }
        assert!(text(device, "resource.kubernetes.io/pciBusID").starts_with("0000:"));
        for attribute in ["productName", "brand", "architecture", "cudaComputeCapability"] {
            values.entry(attribute).or_default().insert(text(device, attribute));
        }
    }
    let unknown = NAMES.map(|it| format!("unknown-{it}")).into();
    for attribute in ["productName", "brand", "architecture"] {
        assert_eq!(values[attribute], unknown);
    }
    let versions = NAMES.map(|it| format!("0.0.0-unknown.{it}")).into();
    assert_eq!(values["cudaComputeCapability"], versions);
    let l4 = offered.devices().find(|it| it.name == NAMES[L4]).unwrap();
    assert_eq!(l4.capacity.as_ref().unwrap()["memory"].value.0, "0");
}

#[tokio::test]
async fn a_constraint_takes_no_two_unknowns_for_one_thing() {
    let wholes = format!("device.attributes['{DRIVER}'].type == 'gpu'");
    let parts = format!("device.attributes['{DRIVER}'].type == 'mig'");
    let own = |it: &str| format!("{DRIVER}/{it}");
    let standard = |it: &str| format!("resource.kubernetes.io/{it}");
    let offered = blind().offered().await;
    let attributes = ["productName", "brand", "architecture", "cudaComputeCapability", "uuid"].map(own);
    for attribute in attributes.iter().chain(&["pcieRoot", "numaNode", "pciBusID"].map(standard)) {
        let pair = offered.pair(attribute, "matchAttribute", &wholes);
        assert_eq!(pair, Err(Refusal::DoesNotFit), "{attribute}");
    }
    let on_one_gpu = offered.pair(&own("parentUUID"), "matchAttribute", &parts).unwrap();
    assert_eq!(on_one_gpu.len(), 2);
    assert_eq!(offered.pair(&own("uuid"), "matchAttribute", &parts), Err(Refusal::DoesNotFit));

    let offered = Bench::new().offered().await;
    let known = offered.pair(&standard("pcieRoot"), "matchAttribute", &wholes).unwrap();
    assert_eq!(known, [NAMES[L4], NAMES[H100]].map(str::to_owned), "below one root");
    let kind = offered.pair(&own("productName"), "matchAttribute", &wholes).unwrap();
    assert_eq!(BTreeSet::from_iter(kind), [NAMES[H100], NAMES[WITNESS]].map(str::to_owned).into());
}

#[tokio::test]
async fn documented_selectors_are_safe_where_standard_attributes_are_absent() {
    let page = std::fs::read_to_string(repository().join("docs/selectors.md")).unwrap();
    let domain = r#"device.attributes["resource.kubernetes.io"]"#;
    let selectors = [
        format!("has({domain}.pcieRoot) && {domain}.pcieRoot == \"pci0000:19\""),
        format!("{domain}.?numaNode.orValue(-1) == 0"),
    ];
    let evaluator = Evaluator::new();
    for (offered, expected) in [(blind().offered().await, false), (Bench::new().offered().await, true)] {
        for selector in &selectors {
            assert!(page.contains(selector.as_str()), "docs/selectors.md does not have {selector}");
            let program = compile(selector).unwrap();
            let taken = offered.devices().filter(|it| evaluator.selects(&program, DRIVER, it).unwrap());
            assert_eq!(0 < taken.count(), expected, "{selector}");
        }
    }
}

#[tokio::test]
async fn names_that_nvml_makes_up_are_published_as_the_api_server_takes_them() {
    let bench = Bench::new();
    bench.sim.on_gpu(L4, |gpu| gpu.product_name = Some("é".repeat(45))).unwrap();
    bench.sim.on_gpu(H100, |gpu| (gpu.brand, gpu.architecture) = (Some(77), Some(25))).unwrap();
    bench.sim.on_gpu(WITNESS, |gpu| (gpu.brand, gpu.architecture) = (Some(0), Some(u32::MAX))).unwrap();
    let offered = bench.offered().await;
    let of = |gpu: usize| offered.devices().find(|it| it.name == NAMES[gpu]).unwrap();
    assert_eq!(text(of(L4), "productName"), "é".repeat(32));
    // A number that nvml-wrapper has no name for is the same for every GPU of that kind.
    assert_eq!([text(of(H100), "brand"), text(of(H100), "architecture")], ["brand-77", "architecture-25"]);
    let unknown = format!("unknown-{}", NAMES[WITNESS]);
    assert_eq!([text(of(WITNESS), "brand"), text(of(WITNESS), "architecture")], [unknown.as_str(); 2]);
}

/// What the node's `/readyz` and events would say is in its state; what `inspect` says is here.
fn inspected(lab: &Lab) -> Value {
    lab.inspect()["gpus"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_with_the_memory_of_the_system_and_a_vgpu_serve_pods() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xL4,1xL40S").await;
    let fault = Fault::returning("nvmlDeviceGetMemoryInfo_v2", Code::NOT_SUPPORTED);
    lab.sim.inject(fault.on_gpu(0)).unwrap();
    lab.sim.on_gpu(1, |gpu| gpu.virtualization = 2).unwrap();
    lab.start();
    let slices = lab.slices_when(is_complete).await;
    assert_eq!(device_names(&slices), ["gpu-0000-1a-00", "gpu-0000-1b-00"]);
    let kubelet = lab.kubelet().await;
    for device in ["gpu-0000-1a-00", "gpu-0000-1b-00"] {
        let claim = lab.claim_of(device, device).await;
        prepare(&kubelet, &claim).await.unwrap();
        unprepare(&kubelet, &claim).await.unwrap();
    }
    lab.stop().await;
    let gpu = inspected(&lab);
    assert_eq!((&gpu["memoryMib"], &gpu["problem"]), (&Value::Null, &Value::Null));
    assert_eq!(gpu["unknownFacts"], json!(["nvmlDeviceGetMemoryInfo_v2 failed with NOT_SUPPORTED"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_without_known_profiles_serves_pods_whole_until_it_is_in_mig_mode() {
    let lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    let mut lab = lab.with_args(&["--rescan-interval", "1"]);
    let fault = Fault::returning("nvmlDeviceGetGpuInstancePossiblePlacements_v2", Code::NO_PERMISSION);
    lab.sim.inject(fault).unwrap();
    lab.start();
    let slices = lab.slices_when(is_complete).await;
    assert_eq!(device_names(&slices), ["gpu-0000-1a-00"]);
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("whole", "gpu-0000-1a-00").await;
    prepare(&kubelet, &claim).await.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    lab.delete_claim(&claim).await;

    lab.sim.on_gpu(0, |gpu| (gpu.mig_current, gpu.mig_pending) = (true, true)).unwrap();
    lab.slices_when(|it| is_complete(it) && device_names(it).is_empty()).await;
    eventually("an event says why", async || {
        let events = common::node_events(&lab, "GpuNotOffered").await;
        let is_it = |it: &String| it.contains("MIG mode is on") && it.contains("NO_PERMISSION");
        events.iter().any(is_it).then_some(())
    })
    .await;
    lab.sim.on_gpu(0, |gpu| (gpu.mig_current, gpu.mig_pending) = (false, false)).unwrap();
    lab.slices_when(|it| is_complete(it) && device_names(it) == ["gpu-0000-1a-00"]).await;
    lab.stop().await;
    assert_eq!(inspected(&lab)["mig"]["profiles"], json!([]));
}
