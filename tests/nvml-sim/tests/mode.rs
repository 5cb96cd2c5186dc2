//! MIG mode and what a GPU says it can be cut into, through the C ABI.

use crate::common::*;
use nvml_wrapper_sys::bindings::{
    nvmlComputeInstanceProfileInfo_v2_t, nvmlGpuInstancePlacement_t, nvmlGpuInstanceProfileInfo_t,
    nvmlGpuInstanceProfileInfo_v2_t, nvmlGpuInstanceProfileInfo_v3_t, nvmlMemory_v2_t,
};

#[test]
fn hopper_changes_mode_at_once_and_refuses_while_busy() {
    let bench = Bench::new("H100-80GB");
    let client = bench.client();
    assert_eq!(client.mode(0), (SUCCESS, 0, 0));
    assert_eq!(client.set_mode(0, 1), (SUCCESS, SUCCESS));
    assert_eq!(client.mode(0), (SUCCESS, 1, 1));
    let instance = client.create(0, ONE).unwrap();
    // The call succeeds; only the activation status and a second look tell that nothing changed.
    assert_eq!(client.set_mode(0, 0), (SUCCESS, IN_USE));
    assert_eq!(client.mode(0), (SUCCESS, 1, 1));
    assert_eq!(client.destroy(instance), SUCCESS);
    assert_eq!(client.set_mode(0, 0), (SUCCESS, SUCCESS));
    assert_eq!(client.set_mode(0, 2).0, INVALID_ARGUMENT);
}

#[test]
fn ampere_leaves_the_mode_pending_while_a_client_holds_the_gpu() {
    let bench = Bench::new("A100-40GB");
    let client = bench.client();
    bench.node.hold_handle(0, None, "dcgm").unwrap();
    assert_eq!(client.set_mode(0, 1), (SUCCESS, IN_USE));
    assert_eq!(client.mode(0), (SUCCESS, 0, 1));
    assert_eq!(client.create(0, ONE), Err(NOT_SUPPORTED), "not on yet");
    bench.node.release(0, "dcgm").unwrap();
    bench.node.reset_gpu(0).unwrap();
    assert_eq!(client.mode(0), (SUCCESS, 1, 1));
    client.create(0, ONE).unwrap();
}

#[test]
fn ampere_without_clients_changes_mode_by_its_own_reset() {
    let (_bench, client) = Bench::with_mig("A30");
    assert_eq!(client.mode(0), (SUCCESS, 1, 1));
}

#[test]
fn ampere_in_a_passthrough_machine_needs_a_reboot() {
    let bench = Bench::new("A100-80GB");
    bench.node.on_gpu(0, |gpu| gpu.virtualization = 1).unwrap();
    let client = bench.client();
    assert_eq!(client.set_mode(0, 1), (SUCCESS, RESET_REQUIRED));
    assert_eq!(client.mode(0), (SUCCESS, 0, 1));
    bench.node.reboot().unwrap();
    assert_eq!(client.mode(0), (SUCCESS, 1, 1));
}

#[test]
fn mode_survives_a_reboot_on_ampere_only_and_instances_never() {
    let bench = Bench::new("A100-80GB,H100-80GB");
    let client = bench.client();
    for gpu in 0..2 {
        assert_eq!(client.set_mode(gpu, 1), (SUCCESS, SUCCESS));
        client.create(gpu, TWO).unwrap();
    }
    let before = bench.node.snapshot().unwrap().boot_id;
    bench.node.reboot().unwrap();
    assert_eq!(client.mode(0), (SUCCESS, 1, 1));
    assert_eq!(client.mode(1), (SUCCESS, 0, 0));
    let after = bench.node.snapshot().unwrap();
    assert!(after.gpus.iter().all(|gpu| gpu.gpu_instances.is_empty()));
    assert_ne!(after.boot_id, before);
    let rendered = std::fs::read_to_string(bench.file("proc/sys/kernel/random/boot_id")).unwrap();
    assert_eq!(rendered.trim(), after.boot_id);
}

#[test]
fn gpus_without_mig_and_vgpu_guests_have_no_partitions() {
    let bench = Bench::new("L4,T4,H100-80GB");
    bench.node.on_gpu(2, |gpu| gpu.virtualization = 2).unwrap();
    let client = bench.client();
    for gpu in 0..2 {
        assert_eq!(client.mode(gpu).0, NOT_SUPPORTED);
    }
    for gpu in 0..3 {
        assert_eq!(client.set_mode(gpu, 1).0, NOT_SUPPORTED, "GPU {gpu}");
        assert_eq!(client.create(gpu, ONE), Err(NOT_SUPPORTED), "GPU {gpu}");
        assert_eq!(number!(client, nvmlDeviceGetMaxMigDeviceCount(client.gpu(gpu))), (SUCCESS, 0));
        assert_eq!(profile(&client, gpu, 0).0, NOT_SUPPORTED);
        assert_eq!(profile(&client, gpu, 18).0, INVALID_ARGUMENT, "enumerating must end here as well");
    }
}

fn profile(client: &Client, gpu: u32, index: u32) -> (u32, nvmlGpuInstanceProfileInfo_t) {
    let mut info = zeroed();
    let code = c!(client, nvmlDeviceGetGpuInstanceProfileInfo(client.gpu(gpu), index, &mut info));
    (code, info)
}

#[test]
fn profiles_are_enumerated_by_index_and_named_in_the_versioned_structures() {
    let bench = Bench::new("H200");
    let client = bench.client();
    let device = client.gpu(0);
    let mut seen = Vec::new();
    for index in 0.. {
        let (code, v1) = profile(&client, 0, index);
        let mut v2: nvmlGpuInstanceProfileInfo_v2_t = zeroed();
        let mut v3: nvmlGpuInstanceProfileInfo_v3_t = zeroed();
        (v2.version, v3.version) = (0x0200_0098, 0x0300_0098);
        let c2 = c!(client, nvmlDeviceGetGpuInstanceProfileInfoV(device, index, &mut v2));
        let c3 = c!(client, nvmlDeviceGetGpuInstanceProfileInfoV(device, index, (&raw mut v3).cast()));
        assert_eq!((code, code), (c2, c3));
        if code == INVALID_ARGUMENT {
            assert_eq!(index, 18);
            break;
        }
        if code == NOT_SUPPORTED {
            continue;
        }
        assert_eq!(
            (v1.id, v1.memorySizeMB, v1.multiprocessorCount),
            (v2.id, v2.memorySizeMB, v2.multiprocessorCount)
        );
        assert_eq!(
            (v1.id, v1.memorySizeMB, v1.multiprocessorCount),
            (v3.id, v3.memorySizeMB, v3.multiprocessorCount)
        );
        assert_eq!((v1.jpegCount, v1.ofaCount, v1.isP2pSupported), (v3.jpegCount, v3.ofaCount, 0));
        assert_eq!(text(0, &v2.name), text(0, &v3.name));
        seen.push((index, v1.id, text(0, &v2.name).unwrap(), v1.instanceCount));
    }
    let mut expected =
        vec![(0, 19, "1g.18gb", 7), (1, 14, "2g.35gb", 3), (2, 9, "3g.71gb", 2), (3, 5, "4g.71gb", 1)];
    expected.extend([(4, 0, "7g.141gb", 1), (7, 20, "1g.18gb+me", 1), (9, 15, "1g.35gb", 4)]);
    let expected: Vec<_> =
        expected.into_iter().map(|(i, id, name, n)| (i, id, format!("MIG {name}"), n)).collect();
    assert_eq!(seen, expected);
}

#[test]
fn unknown_version_words_are_refused() {
    let (_bench, client) = Bench::with_mig("H100-80GB");
    let instance = client.create(0, TWO).unwrap();
    for word in [0, 1, 0x0200_0097, 0x0300_0099, 0x0400_0098] {
        let mut info: nvmlGpuInstanceProfileInfo_v2_t = zeroed();
        info.version = word;
        let code = c!(client, nvmlDeviceGetGpuInstanceProfileInfoV(client.gpu(0), 0, &mut info));
        assert_eq!(code, VERSION_MISMATCH, "{word:#x}");
        let mut info: nvmlComputeInstanceProfileInfo_v2_t = zeroed();
        info.version = word;
        let code = c!(client, nvmlGpuInstanceGetComputeInstanceProfileInfoV(instance, 0, 0, &mut info));
        assert_eq!(code, VERSION_MISMATCH, "{word:#x}");
        let mut memory: nvmlMemory_v2_t = zeroed();
        memory.version = word;
        assert_eq!(
            c!(client, nvmlDeviceGetMemoryInfo_v2(client.gpu(0), &mut memory)),
            VERSION_MISMATCH,
            "{word:#x}"
        );
    }
}

#[test]
fn placements_are_reported_with_mig_on_or_off_and_null_asks_for_the_count() {
    let bench = Bench::new("H100-80GB,RTX-PRO-6000");
    let client = bench.client();
    let places = |gpu: u32, profile: u32| {
        let (device, mut count) = (client.gpu(gpu), 0);
        let null = std::ptr::null_mut();
        let code =
            c!(client, nvmlDeviceGetGpuInstancePossiblePlacements_v2(device, profile, null, &mut count));
        assert_eq!(code, SUCCESS);
        let mut room = vec![nvmlGpuInstancePlacement_t { start: 99, size: 99 }; count as usize];
        let code = c!(
            client,
            nvmlDeviceGetGpuInstancePossiblePlacements_v2(device, profile, room.as_mut_ptr(), &mut count)
        );
        assert_eq!(code, SUCCESS);
        room.iter().map(|place| (place.start, place.size)).collect::<Vec<_>>()
    };
    assert_eq!(places(0, THREE), [(0, 4), (4, 4)]);
    assert_eq!(places(0, SEVEN), [(0, 8)]);
    assert_eq!(places(0, 15), [(0, 2), (2, 2), (4, 2), (6, 2)]);
    assert_eq!(places(1, 67), [(0, 3), (3, 3), (6, 3), (9, 3)]);
    client.set_mode(0, 1);
    assert_eq!(places(0, TWO), [(0, 2), (2, 2), (4, 2)]);
    let code = number!(
        client,
        nvmlDeviceGetGpuInstancePossiblePlacements_v2(client.gpu(0), 77, std::ptr::null_mut())
    )
    .0;
    assert_eq!(code, NOT_SUPPORTED);
}

#[test]
fn an_invented_profile_is_enumerated_and_can_be_created() {
    let (bench, client) = Bench::with_mig("H100-80GB");
    let mut future = bench.node.profiles(0).unwrap().remove(0);
    (future.index, future.id, future.name) = (21, 99, "1g.10gb+new".into());
    bench.node.on_gpu(0, |gpu| gpu.extra_profiles.push(future)).unwrap();
    assert_eq!(profile(&client, 0, 21).1.id, 99);
    assert_eq!(profile(&client, 0, 20).0, NOT_SUPPORTED);
    assert_eq!(profile(&client, 0, 22).0, INVALID_ARGUMENT);
    client.create_at(0, 99, 3, 1).unwrap();
}
