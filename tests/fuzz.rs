//! Input that no user would write: what reads state files, claims, names, NVML's answers, capability files and
//! `ld.so.cache` gives a value within its bounds or an error, and neither panics nor hangs.
#![allow(clippy::unwrap_used, reason = "what fails in a test is the test")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use mig_model::claim::{ClaimRef, ClaimUid};
use mig_model::facts::{GpuFacts, MediaEngines, MigFacts, MigMode, NodeFacts, Placement, Profile};
use mig_model::inventory::{Attachment, Gpu, GpuState, Inventory, MigSpec, inventory};
use mig_model::placement::{Policy, Ranking};

use common::is_soak;
use dra_driver_mig::cdi::{
    CommonEdits, DEFAULT_LDCONFIG, DisabledHooks, DriverRoot, HookSettings, Kind, MigCaps, Root,
};
use dra_driver_mig::checkpoint::{
    Checkpoint, Progress, Record, RecordedDevice, RecordedKind, Stage, Stored, Taken, VERSION,
};
use dra_driver_mig::claim::{AllocationError, PlanContext, allocated_devices, plan};
use k8s_openapi::api::resource::v1::ResourceClaim;
use mig_model::slices::{Owner, render};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::{Map, Value, json};

const DRIVER: &str = "mig.dra-driver.dev";
const UID: &str = "0f3c2d1e-1111-2222-3333-444455556666";

/// Placements that no GPU has: beyond what a counter set may list, and beyond what a number can count.
const FAR_STARTS: [u32; 6] = [0, 1, 31, 100, 5_000, u32::MAX];
const FAR_SIZES: [u32; 5] = [0, 1, 8, 33, 1_000];

/// Address space of this process, bytes.
const MOST_MEMORY: u64 = 2 << 30;

fn config() -> ProptestConfig {
    // What takes all memory ends this process, and not others.
    let limit = Rlimit { current: Some(MOST_MEMORY), maximum: Some(MOST_MEMORY) };
    setrlimit(Resource::As, limit).unwrap();
    let cases = if is_soak() { 20_000 } else { 256 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Text that breaks something somewhere: empty, long, paths, other scripts, control characters, near misses.
fn odd_text() -> impl Strategy<Value = String> {
    let known = select(vec![
        "",
        "..",
        "../../etc/passwd",
        "a/b",
        "/",
        "\0",
        "-",
        "gpu-0000-1a-00",
        "gpu-0000-1a-00-mig-1g-10gb-6",
        "1g.10gb",
        "1g.10gb+me",
        "+",
        ".",
        "MIG 1g.10gb",
        "É",
        "n/d",
        "node/mig.dra-driver.dev",
        DRIVER,
        UID,
    ]);
    prop_oneof![
        known.prop_map(str::to_owned),
        ".{0,80}",
        "[a-z0-9.+-]{0,20}",
        "[a-zA-Z0-9-]{60,70}",
        Just("x".repeat(10_000)),
    ]
}

/// Valid bytes with some replaced, some inserted, and the end cut off.
fn damaged(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let byte = || prop_oneof![any::<u8>(), select(b"\n{}[]\",:0-/\0".to_vec())];
    (vec((any::<Index>(), byte()), 0..6), vec((any::<Index>(), byte()), 0..3), any::<Index>(), any::<bool>())
        .prop_map(move |(replaced, inserted, end, is_cut)| {
            let mut bytes = valid.clone();
            for (at, byte) in replaced {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            for (at, byte) in inserted {
                bytes.insert(at.index(bytes.len() + 1), byte);
            }
            if is_cut {
                bytes.truncate(end.index(bytes.len() + 1));
            }
            bytes
        })
}

fn bytes_or_damaged(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![1 => vec(any::<u8>(), 0..600), 4 => damaged(valid)]
}

fn claim() -> ClaimRef {
    ClaimRef::new("default".into(), "c".into(), UID.into()).unwrap()
}

fn record(stage: Stage) -> Record {
    let placement = Placement { start: 6, size: 1 };
    let spec = MigSpec { profile: "1g.10gb".into(), profile_id: 19, slices: 1, placement };
    let device = RecordedDevice {
        name: "gpu-0000-1a-00-mig-1g-10gb-6".into(),
        pool: format!("node/{DRIVER}"),
        requests: vec!["gpu".into()],
        parent_uuid: "GPU-1".into(),
        kind: RecordedKind::Mig { spec, progress: Progress::GpuInstance { gpu_instance: 13 } },
        unknown: Map::new(),
    };
    let (boot_id, claim) = ("boot".to_owned(), claim());
    let (devices, unknown) = (vec![device], Map::new());
    Record { version: VERSION, boot_id, claim, devices, stage, pod_claim_name: None, unknown }
}

/// A journal as the driver writes it.
fn journal() -> Vec<u8> {
    let mut bytes = Vec::new();
    for stage in [Stage::Preparing, Stage::Prepared] {
        bytes.extend(serde_json::to_vec(&record(stage)).unwrap());
        bytes.push(b'\n');
    }
    bytes
}

/// Puts a text in the place of one of the texts in a JSON value, or something else in the place of one of its values.
fn spoil(value: &mut Value, at: usize, with: &Value) {
    fn walk<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
        if *left == 0 {
            return Some(value);
        }
        *left -= 1;
        match value {
            Value::Array(items) => items.iter_mut().find_map(|it| walk(it, left)),
            Value::Object(fields) => fields.values_mut().find_map(|it| walk(it, left)),
            _ => None,
        }
    }
    let mut left = at;
    if let Some(found) = walk(value, &mut left) {
        *found = with.clone();
    }
}

fn odd_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => odd_text().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<u32>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => Just(json!([])),
        1 => Just(json!({"a": [1, {}]})),
        1 => any::<bool>().prop_map(Value::from),
    ]
}

/// Whatever is in a claim's file: it is a record of that claim or it is not, and the next record replaces it.
fn read_state(bytes: &[u8]) -> Result<(), TestCaseError> {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let uid: ClaimUid = UID.parse().unwrap();
    fs::write(directory.path().join(format!("{UID}.jsonl")), bytes).unwrap();
    for (listed, stored) in checkpoint.list().unwrap() {
        prop_assert_eq!(&listed, &uid);
        if let Stored::Record(record) = &*stored {
            prop_assert_eq!(&record.claim.uid, &uid);
            prop_assert_eq!(record.version, VERSION);
            let ClaimRef { namespace, name, uid } = record.claim.clone();
            let named = ClaimRef::new(namespace, name, uid.to_string());
            prop_assert!(named.is_ok(), "the name of a claim in a state file goes into a URL: {:?}", named);
        }
    }
    let next = record(Stage::Unpreparing);
    let Taken::Journal(mut journal) = checkpoint.take(&uid, true).unwrap() else {
        return Err(TestCaseError::fail("no other claim has it"));
    };
    if matches!(journal.stored(), Stored::Record(_)) {
        journal.append(&next).unwrap();
    } else {
        let begun = journal.begin(&next, &checkpoint.try_reserve().unwrap().unwrap()).unwrap();
        journal.force(begun).unwrap();
    }
    drop(journal);
    let listed = checkpoint.list().unwrap();
    prop_assert_eq!(&*listed[0].1, &Stored::Record(Arc::new(next.clone())));
    // And so it is for a process that starts now.
    let listed = Checkpoint::reading(directory.path()).list().unwrap();
    prop_assert_eq!(&*listed[0].1, &Stored::Record(Arc::new(next)));
    Ok(())
}

fn allocation() -> Value {
    let result = |request: &str, device: &str| json!({"request": request, "driver": DRIVER, "pool": "node/pool", "device": device, "adminAccess": false});
    let config = json!({"source": "FromClaim", "requests": ["gpu"],
        "opaque": {"driver": "other.example.com", "parameters": {"apiVersion": "v1", "kind": "Config"}}});
    json!({
        "metadata": {"name": "c", "namespace": "default", "uid": UID}, "spec": {"devices": {"requests": []}},
        "status": {"allocation": {"devices": {
            "results": [result("gpu/first", "gpu-0000-1a-00"), result("b", "gpu-0000-1b-00")], "config": [config],
        }}},
    })
}

fn facts(name: &str, placements: Vec<Placement>, numbers: [u32; 8], texts: &[String; 4]) -> (NodeFacts, Gpu) {
    let [id, slices, max_instances, multiprocessors, copy_engines, decoders, encoders, jpegs] = numbers;
    let profile = Profile {
        index: 0,
        id,
        name: name.to_owned(),
        slices,
        max_instances,
        multiprocessors,
        copy_engines,
        media: MediaEngines { decoders, encoders, jpegs, ofas: slices },
        memory_mib: u64::from(id) << 20,
        placements,
    };
    let mode = MigMode { current: false, pending: false };
    let [product_name, brand, architecture, driver_version] = texts.clone();
    let facts = Arc::new(GpuFacts {
        index: 0,
        uuid: "GPU-1".into(),
        pci: "0000:1a:00.0".parse().unwrap(),
        pci_device_id: id,
        product_name: Some(product_name),
        brand: Some(brand),
        architecture: Some(architecture),
        compute_capability: Some((slices, id)),
        memory_bytes: Some(u64::from(id) << 40),
        unknown: Vec::new(),
        mig: Some(MigFacts { resetless: true, profiles: vec![profile], mode }),
    });
    let state = GpuState { mode: Some(mode), instances: Vec::new(), problem: None };
    let gpu = Gpu { facts: Arc::clone(&facts), attachment: Attachment::default(), state };
    let node = NodeFacts {
        driver_version: Some(driver_version),
        gpus: vec![(*facts).clone()],
        ..NodeFacts::default()
    };
    (node, gpu)
}

/// What is offered for these facts is what the API server takes, or is not offered.
fn offers(node: &NodeFacts, gpu: Gpu) -> Result<Inventory, TestCaseError> {
    let offered = inventory(node, &[gpu], &BTreeSet::new());
    let owner = Owner { driver: DRIVER.into(), node: "node".into(), node_uid: UID.into() };
    let ranking = Ranking::of(&offered, &BTreeSet::new(), Policy::Pack);
    for slice in render(&offered, &ranking, &owner) {
        let errors =
            kube_sim::validate::slice(&serde_json::to_value(&slice).unwrap(), None, kube_sim::Version::V1_35);
        prop_assert!(errors.is_empty(), "{:?}", errors);
    }
    Ok(offered)
}

/// A usual node with one GPU.
fn usual() -> Inventory {
    let placements = (0..7).map(|start| Placement { start, size: 1 }).collect();
    let texts = ["NVIDIA H100", "Nvidia", "Hopper", "580.82.07"].map(str::to_owned);
    let (node, gpu) = facts("1g.10gb", placements, [19, 1, 7, 16, 1, 1, 0, 1], &texts);
    offers(&node, gpu).unwrap()
}

/// A `/proc` with these files, for GPU instance 3 of GPU 0.
fn proc_root(at: &Path, devices: &[u8], gpu_instance: &[u8], compute_instance: &[u8]) {
    let instance = at.join("driver/nvidia/capabilities/gpu0/mig/gi3");
    fs::create_dir_all(instance.join("ci0")).unwrap();
    fs::write(at.join("devices"), devices).unwrap();
    fs::write(instance.join("access"), gpu_instance).unwrap();
    fs::write(instance.join("ci0/access"), compute_instance).unwrap();
}

/// `ld.so.cache` in glibc's format (sysdeps/generic/dl-cache.h) with one text for many entries.
fn ld_cache(entries: usize, text: &[u8]) -> Vec<u8> {
    const HEADER: usize = 48;
    const ENTRY: usize = 24;
    let text_at = u32::try_from(HEADER + entries * ENTRY).unwrap();
    let mut cache = b"glibc-ld.so.cache1.1".to_vec();
    cache.extend(u32::try_from(entries).unwrap().to_le_bytes());
    cache.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    cache.push(2);
    cache.resize(HEADER, 0);
    for _ in 0..entries {
        cache.extend(0x0303_u32.to_le_bytes());
        cache.extend(text_at.to_le_bytes());
        cache.extend(text_at.to_le_bytes());
        cache.extend([0; 12]);
    }
    cache.extend(text);
    cache
}

fn discover(cache: &[u8]) -> CommonEdits {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("etc")).unwrap();
    fs::write(directory.path().join("etc/ld.so.cache"), cache).unwrap();
    let here = directory.path().display().to_string();
    let hooks = HookSettings {
        host_root: directory.path().to_owned(),
        program: "/usr/bin/nvidia-cdi-hook".into(),
        ldconfig: DEFAULT_LDCONFIG.into(),
        disabled: DisabledHooks::default(),
    };
    let root = Root::new(here, "/");
    CommonEdits::discover(&DriverRoot {
        files: root.clone(),
        devices: root,
        nvml_directory: None,
        version: Some("580.82.07".into()),
        hooks,
        proc: directory.path().join("proc"),
        sys: directory.path().join("sys"),
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_state_file_of_any_bytes_is_a_record_of_its_claim_or_none(bytes in bytes_or_damaged(journal())) {
        read_state(&bytes)?;
    }

    #[test]
    fn a_state_file_with_any_values_is_a_record_of_its_claim_or_none(at in 0_usize..40, with in odd_value()) {
        let mut value = serde_json::to_value(record(Stage::Prepared)).unwrap();
        spoil(&mut value, at, &with);
        let mut bytes = serde_json::to_vec(&value).unwrap();
        bytes.push(b'\n');
        read_state(&bytes)?;
    }

    #[test]
    fn names_of_claims_stay_within_their_directory_and_url(
        namespace in odd_text(), name in odd_text(), uid in odd_text(),
    ) {
        let Ok(claim) = ClaimRef::new(namespace, name, uid) else { return Ok(()) };
        for part in [&claim.namespace, &claim.name, claim.uid.as_str()] {
            prop_assert!(!part.contains(['/', '\\', '\0', '%', '?', '#']) && !part.starts_with('.'), "{}", part);
        }
        prop_assert!(claim.uid.as_str().len() <= 63);
        let file = Kind::of_driver(DRIVER).unwrap().device_id(claim.uid.as_str(), "gpu-0000-1a-00");
        prop_assert!(file.is_ok());
    }

    #[test]
    fn any_resource_claim_gives_devices_of_this_driver_or_an_error(
        spoiled in vec((0_usize..60, odd_value()), 0..4),
    ) {
        let mut object = allocation();
        for (at, with) in &spoiled {
            spoil(&mut object, *at, with);
        }
        let Ok(object) = serde_json::from_value::<ResourceClaim>(object) else { return Ok(()) };
        let Ok(devices) = allocated_devices(&claim(), &object, DRIVER) else { return Ok(()) };
        let named: BTreeSet<_> = devices.iter().map(|it| (&it.pool, &it.device)).collect();
        prop_assert_eq!(named.len(), devices.len(), "one device is prepared once");
        for device in &devices {
            let requests: BTreeSet<_> = device.requests.iter().collect();
            prop_assert_eq!(requests.len(), device.requests.len());
            prop_assert!(!device.requests.is_empty());
        }
        // Only what this node has is planned.
        let inventory = usual();
        let context = PlanContext { pool: "node/pool", inventory: &inventory, unread: "", boot_id: "boot" };
        if let Ok(record) = plan(&claim(), &devices, context, &[]) {
            prop_assert_eq!(record.devices.len(), devices.len());
            prop_assert!(record.devices.iter().all(|it| inventory.device(&it.name).is_some()));
        }
    }

    #[test]
    fn an_opaque_configuration_for_this_driver_is_refused_whatever_it_says(parameters in odd_value()) {
        let mut object = allocation();
        let opaque = json!({"driver": DRIVER, "parameters": parameters});
        object["status"]["allocation"]["devices"]["config"][0]["opaque"] = opaque;
        let object = serde_json::from_value::<ResourceClaim>(object).unwrap();
        let refused = allocated_devices(&claim(), &object, DRIVER);
        let is_refused = matches!(refused, Err(AllocationError::Config { .. }));
        prop_assert!(is_refused);
    }

    #[test]
    fn a_name_means_the_device_of_that_name_or_none(name in odd_text()) {
        let inventory = usual();
        if let Some(found) = inventory.device(&name) {
            prop_assert_eq!(found.name.as_str(), name);
        }
    }

    #[test]
    fn whatever_nvml_calls_things_the_api_server_takes_the_slices(
        name in odd_text(),
        starts in btree_set(0_u32..16, 0..8),
        size in 1_u32..9,
        numbers in prop::array::uniform8(any::<u32>()),
        texts in prop::array::uniform4(odd_text()),
    ) {
        let placements = starts.into_iter().map(|start| Placement { start, size }).collect();
        let (node, gpu) = facts(&name, placements, numbers, &texts);
        offers(&node, gpu)?;
    }

    #[test]
    fn placements_beyond_any_gpu_neither_panic_nor_hang(
        at in vec((select(FAR_STARTS.to_vec()), select(FAR_SIZES.to_vec())), 1..4),
        numbers in prop::array::uniform8(any::<u32>()),
    ) {
        let placements = at.into_iter().map(|(start, size)| Placement { start, size }).collect();
        let texts = ["NVIDIA H100", "Nvidia", "Hopper", "580.82.07"].map(str::to_owned);
        let (node, gpu) = facts("1g.10gb", placements, numbers, &texts);
        offers(&node, gpu)?;
    }

    #[test]
    fn capability_files_of_any_bytes_give_numbers_of_the_kernels_size_or_an_error(
        devices in bytes_or_damaged(b"Character devices:\n195 nvidia\n235 nvidia-caps\n\nBlock devices:\n259 blkext\n".to_vec()),
        gpu_instance in bytes_or_damaged(b"DeviceFileMinor: 30\nDeviceFileMode: 292\nDeviceFileModify: 1\n".to_vec()),
        compute_instance in bytes_or_damaged(b"DeviceFileMinor: 31\nDeviceFileMode: 292\n".to_vec()),
    ) {
        let directory = tempfile::tempdir().unwrap();
        proc_root(directory.path(), &devices, &gpu_instance, &compute_instance);
        if let Ok(caps) = MigCaps::read(directory.path(), 0, 3, 0) {
            for node in [caps.gpu_instance, caps.compute_instance] {
                // 12 and 20 bits, include/linux/kdev_t.h.
                prop_assert!(node.major < 1 << 12 && node.minor < 1 << 20 && node.mode <= 0o777, "{:?}", node);
            }
        }
    }

    #[test]
    fn an_ld_so_cache_of_any_bytes_is_used_or_left_alone(
        cache in bytes_or_damaged(ld_cache(3, b"/usr/lib64/libcuda.so.1\0")),
    ) {
        let edits = discover(&cache);
        for mount in &edits.edits().mounts {
            prop_assert!(mount.host_path.starts_with('/'), "{:?}", mount);
        }
    }
}

#[test]
fn an_ld_so_cache_whose_entries_are_all_one_long_text_is_read_in_time() {
    // A mebibyte of text without an end for each of four thousand entries.
    discover(&ld_cache(4_000, &vec![b'/'; 1 << 20]));
}
