//! Loading, initialising, discovering, and what independent clients expect of the library.

use std::ffi::CString;
use std::process::Command;

use crate::common::*;
use nvml_sim::{Code, Process, SimNode};
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper_sys::bindings::{nvmlMemory_t, nvmlPciInfo_t, nvmlProcessInfo_t};

#[test]
fn nothing_works_before_init_or_after_the_last_shutdown() {
    let bench = Bench::new("L4");
    let client = Client::open(bench.node.library());
    let count = || number!(client, nvmlDeviceGetCount_v2());
    assert_eq!(count().0, UNINITIALIZED);
    assert_eq!(c!(client, nvmlShutdown()), UNINITIALIZED);
    assert_eq!((c!(client, nvmlInit_v2()), c!(client, nvmlInitWithFlags(0))), (SUCCESS, SUCCESS));
    assert_eq!(count(), (SUCCESS, 1));
    assert_eq!(c!(client, nvmlShutdown()), SUCCESS);
    assert_eq!(count(), (SUCCESS, 1), "initialised twice, shut down once");
    assert_eq!(c!(client, nvmlShutdown()), SUCCESS);
    assert_eq!(count().0, UNINITIALIZED);
    assert_eq!(c!(client, nvmlInit_v2()), SUCCESS);
    assert_eq!(count(), (SUCCESS, 1));
}

#[test]
fn without_the_kernel_driver_init_fails_until_it_is_loaded() {
    let bench = Bench::new("L4");
    bench.node.configure(|config| config.driver_loaded = false).unwrap();
    let client = Client::open(bench.node.library());
    assert_eq!(c!(client, nvmlInit_v2()), DRIVER_NOT_LOADED);
    bench.node.configure(|config| config.driver_loaded = true).unwrap();
    assert_eq!(c!(client, nvmlInit_v2()), SUCCESS);
}

#[test]
fn nodes_of_one_process_do_not_disturb_each_other() {
    let (one, other) = (Bench::new("2xL4"), Bench::new("H100-80GB,L4,T4"));
    let (a, b) = (one.client(), other.client());
    assert_eq!((number!(a, nvmlDeviceGetCount_v2()), number!(b, nvmlDeviceGetCount_v2())), ((0, 2), (0, 3)));
    assert_eq!(c!(a, nvmlShutdown()), SUCCESS);
    assert_eq!(number!(b, nvmlDeviceGetCount_v2()), (0, 3));
}

#[test]
fn the_environment_can_name_the_node() {
    const CHILD: &str = "NVML_SIM_TEST_LIBRARY";
    if let Some(library) = std::env::var_os(CHILD) {
        let client = Client::open(library.into());
        assert_eq!(c!(client, nvmlInit_v2()), SUCCESS);
        assert_eq!(number!(client, nvmlDeviceGetCount_v2()), (SUCCESS, 3));
        return;
    }
    let (one, other) = (Bench::new("2xL4"), Bench::new("3xT4"));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "library::the_environment_can_name_the_node"]).env(CHILD, one.node.library());
    let with = command.env("NVML_SIM_STATE", other.node.driver_root()).output().unwrap();
    assert!(with.status.success(), "{}", String::from_utf8_lossy(&with.stdout));
    assert!(
        !command.env_remove("NVML_SIM_STATE").output().unwrap().status.success(),
        "else it is the library's own"
    );
}

#[test]
fn a_node_is_not_made_twice_and_config_may_be_edited_by_hand() {
    let bench = Bench::new("L4");
    let again = SimNode::create(bench.node.driver_root(), &nvml_sim::parse_gpus("L4").unwrap());
    assert!(again.unwrap_err().to_string().contains("nvml-sim"));
    let client = bench.client();
    std::fs::write(bench.file("nvml-sim/config.json"), r#"{"driver_loaded": false}"#).unwrap();
    assert_eq!(c!(client, nvmlInit_v2()), DRIVER_NOT_LOADED);
    std::fs::write(bench.file("nvml-sim/config.json"), r#"{"misspelt": 1}"#).unwrap();
    assert_eq!(c!(client, nvmlInit_v2()), 999, "a file that cannot be read is not passed over");
}

#[test]
fn a_second_copy_sees_the_same_machine_as_a_restarted_driver_does() {
    let (bench, client) = Bench::with_mig("H100-80GB");
    let gi = client.create(0, THREE).unwrap();
    drop(client);
    let again = bench.client();
    let mut found = std::ptr::null_mut();
    let id = bench.node.snapshot().unwrap().gpus[0].gpu_instances[0].id;
    assert_eq!(c!(again, nvmlDeviceGetGpuInstanceById(again.gpu(0), id, &mut found)), SUCCESS);
    assert_eq!(found, gi, "handles are values, the same in every program");
    let reopened = SimNode::open(bench.node.driver_root()).unwrap();
    assert_eq!(reopened.snapshot().unwrap(), bench.node.snapshot().unwrap());
}

#[test]
fn gpus_are_found_by_index_uuid_serial_and_bus_id() {
    let bench = Bench::new("H100-80GB,L40S");
    let client = bench.client();
    let device = client.gpu(1);
    let mut found = std::ptr::null_mut();
    let uuid = CString::new(client.uuid(device).unwrap()).unwrap();
    assert_eq!(c!(client, nvmlDeviceGetHandleByUUID(uuid.as_ptr(), &mut found)), SUCCESS);
    assert_eq!(found, device);
    let mut pci: nvmlPciInfo_t = zeroed();
    assert_eq!(c!(client, nvmlDeviceGetPciInfo_v3(device, &mut pci)), SUCCESS);
    assert_eq!((pci.domain, pci.bus, pci.device, pci.pciDeviceId), (0, 0x1b, 0, 0x26b9_10de));
    assert_eq!(text(0, &pci.busId).unwrap(), "00000000:1B:00.0");
    assert_eq!(text(0, &pci.busIdLegacy).unwrap(), "0000:1B:00.0");
    for id in [c"00000000:1B:00.0", c"0000:1b:00.0", c"1b:00.0"] {
        found = std::ptr::null_mut();
        assert_eq!(c!(client, nvmlDeviceGetHandleByPciBusId_v2(id.as_ptr(), &mut found)), SUCCESS, "{id:?}");
        assert_eq!(found, device);
    }
    let serial = CString::new("1324024000001").unwrap();
    assert_eq!(c!(client, nvmlDeviceGetHandleBySerial(serial.as_ptr(), &mut found)), SUCCESS);
    assert_eq!(found, device);
    assert_eq!(c!(client, nvmlDeviceGetHandleByUUID(c"GPU-none".as_ptr(), &mut found)), NOT_FOUND);
    assert_eq!(
        c!(client, nvmlDeviceGetHandleByPciBusId_v2(c"rubbish".as_ptr(), &mut found)),
        INVALID_ARGUMENT
    );
    assert_eq!(c!(client, nvmlDeviceGetHandleByIndex_v2(2, &mut found)), INVALID_ARGUMENT);
    assert_eq!(client.name(device).unwrap(), "NVIDIA L40S");
    assert_eq!(number!(client, nvmlDeviceGetMinorNumber(device)), (SUCCESS, 1));
    assert_eq!(number!(client, nvmlDeviceGetArchitecture(device)), (SUCCESS, 8));
}

#[test]
fn invented_handles_and_null_pointers_are_refused_and_never_followed() {
    let (_bench, client) = Bench::with_mig("H100-80GB");
    let device = client.gpu(0);
    for address in
        [1_usize, 0x7fff_dead_beef, usize::MAX, (device as usize) + 1, (device as usize) + (9 << 24)]
    {
        let invented = std::ptr::without_provenance_mut::<u8>(address);
        assert_eq!(client.uuid(invented.cast()), Err(INVALID_ARGUMENT), "{address:#x}");
        assert_eq!(client.destroy(invented.cast()), INVALID_ARGUMENT, "{address:#x}");
        assert_eq!(client.destroy_compute(invented.cast()), INVALID_ARGUMENT, "{address:#x}");
    }
    assert_eq!(client.uuid(std::ptr::null_mut()), Err(INVALID_ARGUMENT));
    assert_eq!(c!(client, nvmlDeviceGetMigMode(device, std::ptr::null_mut(), &mut 0)), INVALID_ARGUMENT);
    assert_eq!(c!(client, nvmlDeviceCreateGpuInstance(device, ONE, std::ptr::null_mut())), INVALID_ARGUMENT);
    assert_eq!(
        number!(client, nvmlDeviceGetGpuInstanceRemainingCapacity(device, ONE)),
        (SUCCESS, 7),
        "no effect"
    );
    let gi = client.create(0, ONE).unwrap();
    assert_eq!(client.uuid(gi.cast()), Err(INVALID_ARGUMENT), "a handle of another kind");
}

#[test]
fn buffers_that_are_too_small_are_refused() {
    let bench = Bench::new("L4");
    let client = bench.client();
    let mut buffer = [0; 40];
    assert_eq!(c!(client, nvmlDeviceGetUUID(client.gpu(0), buffer.as_mut_ptr(), 40)), INSUFFICIENT_SIZE);
    for pid in [10, 11] {
        let process = Process { pid, gpu_instance: None, compute_instance: None, memory_mib: 5 };
        bench.node.plant_process(0, process).unwrap();
    }
    let mut infos: [nvmlProcessInfo_t; 2] = [zeroed(); 2];
    let mut count = 1;
    let device = client.gpu(0);
    let code = c!(client, nvmlDeviceGetComputeRunningProcesses_v3(device, &mut count, infos.as_mut_ptr()));
    assert_eq!((code, count), (INSUFFICIENT_SIZE, 2));
    let code = c!(client, nvmlDeviceGetComputeRunningProcesses_v3(device, &mut count, infos.as_mut_ptr()));
    assert_eq!((code, infos[1].pid, infos[1].gpuInstanceId), (SUCCESS, 11, u32::MAX));
    let mut memory: nvmlMemory_t = zeroed();
    assert_eq!(c!(client, nvmlDeviceGetMemoryInfo(device, &mut memory)), SUCCESS);
    assert_eq!((memory.total >> 20, memory.used >> 20), (23034, 610));
}

#[test]
fn a_broken_gpu_has_no_handle_and_the_others_have() {
    let bench = Bench::new("2xL4");
    bench.node.break_handle(0, Some(Code::UNKNOWN)).unwrap();
    let client = bench.client();
    let mut device = std::ptr::null_mut();
    assert_eq!(c!(client, nvmlDeviceGetHandleByIndex_v2(0, &mut device)), 999);
    assert_eq!(c!(client, nvmlDeviceGetHandleByIndex_v2(1, &mut device)), SUCCESS);
}

#[test]
fn error_strings_need_no_init() {
    let bench = Bench::new("L4");
    let client = Client::open(bench.node.library());
    let string = |code| {
        let text = c!(client, nvmlErrorString(code));
        // SAFETY: NVML's strings are static and end with a NUL byte.
        unsafe { std::ffi::CStr::from_ptr(text) }.to_str().unwrap().to_owned()
    };
    assert_eq!(string(23), "Insufficient Resources");
    assert_eq!(string(19), "In use by another client");
    assert_eq!(string(12345), "Unknown Error");
}

#[test]
fn every_symbol_that_clients_resolve_is_exported() {
    let bench = Bench::new("L4");
    let path = CString::new(bench.node.library().to_str().unwrap()).unwrap();
    // SAFETY: loading the simulator runs no initialisers but the standard library's.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
    assert!(!library.is_null());
    let exported = nvml_sim::exported_functions();
    let distinct: std::collections::BTreeSet<&str> = exported.iter().copied().collect();
    assert_eq!(distinct.len(), exported.len());
    for name in &exported {
        let symbol = CString::new(*name).unwrap();
        // SAFETY: the library is open and the name a NUL-terminated string.
        assert!(!unsafe { libc::dlsym(library, symbol.as_ptr()) }.is_null(), "{name}");
    }
    // What nvml-wrapper 0.13, nvidia-ml-py 13 and go-nvml resolve for discovery, MIG, events, memory,
    // utilisation and PCI, and what nvml-wrapper needs in Drop.
    let clients = include_str!("symbols.txt");
    let missing: Vec<&str> = clients.split_whitespace().filter(|name| !distinct.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn nvml_wrapper_discovers_partitions_and_waits_for_events() {
    let bench = Bench::new("H100-80GB");
    let library = bench.node.library();
    let nvml = Nvml::builder().lib_path(library.as_os_str()).init().unwrap();
    assert_eq!(nvml.sys_driver_version().unwrap(), "580.82.07");
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13000);
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(device.name().unwrap(), "NVIDIA H100 80GB HBM3");
    assert_eq!(device.memory_info().unwrap().total >> 20, 81559);
    assert_eq!(device.pci_info().unwrap().bus_id, "00000000:1A:00.0");
    assert_eq!(device.set_mig_mode(true).unwrap(), 0);
    assert_eq!(device.profile_info(0).unwrap().id, 19);
    let planted = bench.node.plant_instance(0, "1g.10gb", 2).unwrap();
    let mig = device.mig_device_by_index(0).unwrap();
    assert_eq!(mig.uuid().unwrap(), planted.uuid);
    assert_eq!(mig.mig_parent_device().unwrap().uuid().unwrap(), device.uuid().unwrap());
    assert_eq!(mig.attributes().unwrap().memory_size_mb, 9984);
    let set =
        device.register_events(EventTypes::CRITICAL_XID_ERROR, nvml.create_event_set().unwrap()).unwrap();
    bench.node.post_xid(0, 31, None, None).unwrap();
    set.wait(0).unwrap();
    drop(set);
    nvml.shutdown().unwrap();
}

#[test]
fn the_command_line_does_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node");
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvml-sim"));
        let words = words.iter().map(|word| if *word == "DIR" { node.to_str().unwrap() } else { word });
        let output = command.args(words).output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    };
    assert!(run(&["create", "DIR", "--gpus", "2xH100-80GB,L4", "--hardware-latency"]).0);
    let (done, planted) = run(&["plant", "DIR", "1", "2g.20gb", "4"]);
    assert!(done && planted.starts_with("gi 5 ci 0 MIG-"), "{planted}");
    let (_, shown) = run(&["show", "DIR"]);
    assert!(
        shown.contains("GPU 1 0000:1b:00.0 H100-80GB") && shown.contains("2g.20gb      units 4..6"),
        "{shown}"
    );
    let fault = r#"{"call":"nvmlInit_v2","action":{"return":18}}"#;
    for words in [
        vec!["process", "DIR", "1", "7", "5"],
        vec!["kill", "DIR", "1", "7"],
        vec!["hold", "DIR", "1", "dcgm", "5"],
        vec!["release", "DIR", "1", "dcgm"],
        vec!["xid", "DIR", "1", "31", "5", "0"],
        vec!["fault", "DIR", fault],
    ] {
        assert!(run(&words).0, "{words:?}");
    }
    let client = Client::open(SimNode::open(&node).unwrap().library());
    assert_eq!(c!(client, nvmlInit_v2()), 18);
    assert!(run(&["heal", "DIR"]).0 && run(&["lose", "DIR", "0"]).0 && run(&["reboot", "DIR"]).0);
    assert_eq!(c!(client, nvmlInit_v2()), SUCCESS);
    assert!(run(&["reset", "DIR", "1"]).0);
    assert!(!run(&["show", "DIR"]).1.contains("units"));
    let refused = run(&["create", "DIR", "--gpus", "H99"]);
    assert!(!refused.0 && refused.1.contains("no GPU model is called"), "{}", refused.1);
    assert!(!run(&["nonsense"]).0);
}
