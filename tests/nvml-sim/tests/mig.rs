//! The life cycle of instances through the C ABI.

use crate::common::*;
use nvml_sim::Process;
use nvml_wrapper_sys::bindings::{
    nvmlComputeInstanceProfileInfo_v2_t, nvmlDeviceAttributes_t, nvmlMemory_v2_t,
};

#[test]
fn create_on_an_occupied_placement_is_refused() {
    let (_bench, client) = Bench::with_mig("H100-80GB");
    client.create_at(0, THREE, 0, 4).unwrap();
    for (profile, start, size) in [(THREE, 0, 4), (ONE, 3, 1), (TWO, 2, 2), (SEVEN, 0, 8)] {
        assert_eq!(
            client.create_at(0, profile, start, size),
            Err(INSUFFICIENT_RESOURCES),
            "{profile} at {start}"
        );
    }
    for (profile, start, size) in [(THREE, 2, 4), (ONE, 7, 1), (TWO, 4, 4), (77, 0, 1)] {
        assert_eq!(client.create_at(0, profile, start, size), Err(INVALID_ARGUMENT), "{profile} at {start}");
    }
    client.create_at(0, TWO, 4, 2).unwrap();
    let capacity =
        |profile| number!(client, nvmlDeviceGetGpuInstanceRemainingCapacity(client.gpu(0), profile));
    assert_eq!(capacity(ONE), (SUCCESS, 1));
    assert_eq!(capacity(TWO), (SUCCESS, 0));
    assert_eq!(capacity(15), (SUCCESS, 1));
}

#[test]
fn media_engines_exclude_a_second_media_instance() {
    let (_bench, client) = Bench::with_mig("A100-80GB");
    let media = client.create_at(0, ONE_MEDIA, 0, 1).unwrap();
    assert_eq!(client.create_at(0, ONE_MEDIA, 1, 1), Err(INSUFFICIENT_RESOURCES));
    assert_eq!(client.create(0, SEVEN), Err(INSUFFICIENT_RESOURCES));
    client.create_at(0, ONE, 1, 1).unwrap();
    assert_eq!(client.destroy(media), SUCCESS);
    client.create_at(0, ONE_MEDIA, 2, 1).unwrap();
}

#[test]
fn an_instance_of_all_media_leaves_room_for_those_without_media_only() {
    let (_bench, client) = Bench::with_mig("RTX-PRO-6000");
    client.create_at(0, 65, 0, 3).unwrap();
    assert_eq!(client.create_at(0, 14, 3, 3), Err(INSUFFICIENT_RESOURCES));
    assert_eq!(client.create_at(0, 47, 3, 3), Err(INSUFFICIENT_RESOURCES));
    client.create_at(0, 67, 3, 3).unwrap();
    client.create_at(0, 66, 6, 6).unwrap();
}

#[test]
fn instances_are_listed_found_by_id_and_described() {
    let (_bench, client) = Bench::with_mig("H100-80GB");
    let device = client.gpu(0);
    let three = client.create_at(0, THREE, 4, 4).unwrap();
    client.create_at(0, ONE, 0, 1).unwrap();
    client.create_at(0, ONE, 2, 1).unwrap();
    let info = client.info(three).unwrap();
    assert_eq!((info.id, info.profileId, info.placement.start, info.placement.size), (2, THREE, 4, 4));
    assert_eq!(info.device, device);
    let list = |profile| {
        let (mut room, mut count) = ([std::ptr::null_mut(); 7], 0);
        let code = c!(client, nvmlDeviceGetGpuInstances(device, profile, room.as_mut_ptr(), &mut count));
        assert_eq!(code, SUCCESS);
        room[..count as usize].iter().map(|gi| client.info(*gi).unwrap().id).collect::<Vec<_>>()
    };
    assert_eq!((list(ONE), list(TWO), list(THREE)), (vec![7, 9], vec![], vec![2]));
    let mut found = std::ptr::null_mut();
    assert_eq!(c!(client, nvmlDeviceGetGpuInstanceById(device, 2, &mut found)), SUCCESS);
    assert_eq!(found, three);
    assert_eq!(c!(client, nvmlDeviceGetGpuInstanceById(device, 5, &mut found)), NOT_FOUND);
}

#[test]
fn a_gpu_instance_is_in_use_while_anything_is_in_it() {
    let (bench, client) = Bench::with_mig("H100-80GB");
    let gi = client.create(0, THREE).unwrap();
    let id = client.info(gi).unwrap().id;
    let ci = client.compute(gi, 2).unwrap();
    assert_eq!(client.destroy(gi), IN_USE, "a compute instance lives");
    let process = Process { pid: 4711, gpu_instance: Some(id), compute_instance: Some(0), memory_mib: 100 };
    bench.node.plant_process(0, process).unwrap();
    assert_eq!(client.destroy_compute(ci), IN_USE, "a process runs");
    bench.node.remove_process(0, 4711).unwrap();
    bench.node.hold_handle(0, Some(id), "dcgm").unwrap();
    assert_eq!(client.destroy_compute(ci), IN_USE, "a handle of another program is open");
    bench.node.release(0, "dcgm").unwrap();
    assert_eq!(client.destroy_compute(ci), SUCCESS);
    bench.node.hold_handle(0, Some(id), "dcgm").unwrap();
    assert_eq!(
        client.destroy(gi),
        IN_USE,
        "the state that occurs in practice: compute instance gone, rest in use"
    );
    bench.node.release(0, "dcgm").unwrap();
    assert_eq!(client.destroy(gi), SUCCESS);
    assert!(bench.node.snapshot().unwrap().gpus[0].gpu_instances.is_empty());
}

#[test]
fn another_client_on_the_gpu_stops_creation() {
    let (bench, client) = Bench::with_mig("H100-80GB");
    bench.node.hold_handle(0, None, "nsys").unwrap();
    assert_eq!(client.create(0, ONE), Err(IN_USE));
    bench.node.release(0, "nsys").unwrap();
    client.create(0, ONE).unwrap();
}

#[test]
fn compute_instances_divide_a_gpu_instance() {
    let (_bench, client) = Bench::with_mig("A100-40GB");
    let gi = client.create(0, THREE).unwrap();
    let names: Vec<(u32, String, u32, u32)> = (0..9)
        .filter_map(|index| {
            let mut info: nvmlComputeInstanceProfileInfo_v2_t = zeroed();
            info.version = 0x0200_0088;
            match c!(client, nvmlGpuInstanceGetComputeInstanceProfileInfoV(gi, index, 0, &mut info)) {
                SUCCESS => Some((
                    info.id,
                    text(0, &info.name).unwrap(),
                    info.instanceCount,
                    info.multiprocessorCount,
                )),
                code => {
                    assert_eq!(code, NOT_SUPPORTED);
                    None
                }
            }
        })
        .collect();
    let expected = [(0, "MIG 1c.3g.20gb", 3, 14), (1, "MIG 2c.3g.20gb", 1, 28), (2, "MIG 3g.20gb", 1, 42)];
    assert_eq!(names, expected.map(|(id, name, max, sm)| (id, name.to_string(), max, sm)));
    let two = client.compute(gi, 1).unwrap();
    assert_eq!(client.compute(gi, 2), Err(INSUFFICIENT_RESOURCES));
    assert_eq!(number!(client, nvmlGpuInstanceGetComputeInstanceRemainingCapacity(gi, 0)), (SUCCESS, 1));
    let one = client.compute(gi, 0).unwrap();
    let (first, second) = (client.compute_info(two).unwrap(), client.compute_info(one).unwrap());
    assert_eq!((first.id, first.placement.start, first.placement.size), (0, 0, 2));
    assert_eq!((second.id, second.placement.start, second.placement.size), (1, 2, 1));
    assert_ne!(client.uuid(first.device), client.uuid(second.device));
    let (mut room, mut count) = ([std::ptr::null_mut(); 8], 0);
    assert_eq!(c!(client, nvmlGpuInstanceGetComputeInstances(gi, 1, room.as_mut_ptr(), &mut count)), SUCCESS);
    assert_eq!((count, room[0]), (1, two));
    let mut found = std::ptr::null_mut();
    assert_eq!(c!(client, nvmlGpuInstanceGetComputeInstanceById(gi, 1, &mut found)), SUCCESS);
    assert_eq!(found, one);
    assert_eq!(c!(client, nvmlGpuInstanceGetComputeInstanceById(gi, 7, &mut found)), NOT_FOUND);
}

#[test]
fn mig_devices_are_found_by_index_with_holes_larger_ones_first() {
    let (_bench, client) = Bench::with_mig("H100-80GB");
    let mut made = Vec::new();
    for (profile, compute) in [(ONE, 0), (THREE, 2), (TWO, 1)] {
        let gi = client.create(0, profile).unwrap();
        made.push((gi, client.compute(gi, compute).unwrap()));
    }
    assert_eq!(number!(client, nvmlDeviceGetMaxMigDeviceCount(client.gpu(0))), (SUCCESS, 7));
    let name = |index| client.mig_at(0, index).and_then(|device| client.name(device));
    let names: Vec<String> = (0..3).map(|index| name(index).unwrap()).collect();
    assert_eq!(
        names,
        ["3g.40gb", "2g.20gb", "1g.10gb"].map(|name| format!("NVIDIA H100 80GB HBM3 MIG {name}"))
    );
    assert_eq!(name(3), Err(NOT_FOUND));
    assert_eq!(name(7), Err(INVALID_ARGUMENT));
    let stale = client.mig_at(0, 1).unwrap();
    let (two, compute) = made[2];
    assert_eq!((client.destroy_compute(compute), client.destroy(two)), (SUCCESS, SUCCESS));
    assert_eq!(name(1), Err(NOT_FOUND), "a hole");
    assert_eq!(name(2).unwrap(), names[2]);
    assert_eq!(client.uuid(stale), Err(INVALID_ARGUMENT));
    let gpu = client.gpu(0);
    assert!(client.uuid(gpu).unwrap().starts_with("GPU-"), "the GPU's handle outlives its partitions");
}

#[test]
fn the_same_partition_has_the_same_uuid_again_and_stale_handles_stay_invalid() {
    let (_bench, client) = Bench::with_mig("H100-80GB");
    let first = client.create_at(0, TWO, 2, 2).unwrap();
    let compute = client.compute(first, 1).unwrap();
    let uuid = client.uuid(client.mig_device(compute)).unwrap();
    assert_eq!((client.destroy_compute(compute), client.destroy(first)), (SUCCESS, SUCCESS));
    let again = client.create_at(0, TWO, 2, 2).unwrap();
    let second = client.compute(again, 1).unwrap();
    assert_eq!(client.uuid(client.mig_device(second)).unwrap(), uuid);
    assert_ne!(again, first);
    assert_eq!(client.destroy(first), INVALID_ARGUMENT);
    assert_eq!(client.destroy_compute(compute), INVALID_ARGUMENT);
    assert_eq!(client.info(again).unwrap().id, 4);
}

#[test]
fn a_mig_device_tells_what_it_is_and_where_it_belongs() {
    let (bench, client) = Bench::with_mig("A100-40GB");
    let gi = client.create(0, THREE).unwrap();
    let ci = client.compute(gi, 2).unwrap();
    let device = client.mig_device(ci);
    let id = client.info(gi).unwrap().id;
    assert_eq!(number!(client, nvmlDeviceIsMigDeviceHandle(device)), (SUCCESS, 1));
    assert_eq!(number!(client, nvmlDeviceIsMigDeviceHandle(client.gpu(0))), (SUCCESS, 0));
    assert_eq!(number!(client, nvmlDeviceGetGpuInstanceId(device)), (SUCCESS, id));
    assert_eq!(number!(client, nvmlDeviceGetComputeInstanceId(device)), (SUCCESS, 0));
    assert_eq!(number!(client, nvmlDeviceGetGpuInstanceId(client.gpu(0))).0, INVALID_ARGUMENT);
    let mut parent = std::ptr::null_mut();
    assert_eq!(c!(client, nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device, &mut parent)), SUCCESS);
    assert_eq!(parent, client.gpu(0));
    let uuid = std::ffi::CString::new(client.uuid(device).unwrap()).unwrap();
    let mut found = std::ptr::null_mut();
    assert_eq!(c!(client, nvmlDeviceGetHandleByUUID(uuid.as_ptr(), &mut found)), SUCCESS);
    assert_eq!(found, device);
    let mut attributes: nvmlDeviceAttributes_t = zeroed();
    assert_eq!(c!(client, nvmlDeviceGetAttributes_v2(device, &mut attributes)), SUCCESS);
    assert_eq!((attributes.multiprocessorCount, attributes.memorySizeMB), (42, 19968));
    assert_eq!((attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount), (3, 3));
    let process = Process { pid: 7, gpu_instance: Some(id), compute_instance: None, memory_mib: 1000 };
    bench.node.plant_process(0, process).unwrap();
    let mut memory: nvmlMemory_v2_t = zeroed();
    memory.version = 0x0200_0028;
    assert_eq!(c!(client, nvmlDeviceGetMemoryInfo_v2(device, &mut memory)), SUCCESS);
    assert_eq!(
        (memory.total >> 20, memory.used >> 20),
        (20096, 1000),
        "not the profile's 19968 (reference 1.4)"
    );
    assert_eq!(memory.total, memory.used + memory.free + memory.reserved);
}

#[test]
fn only_root_partitions() {
    let (bench, client) = Bench::with_mig("H100-80GB");
    let gi = client.create(0, ONE).unwrap();
    bench.node.configure(|config| config.unprivileged = true).unwrap();
    assert_eq!(client.set_mode(0, 0).0, NO_PERMISSION);
    assert_eq!(client.create(0, ONE), Err(NO_PERMISSION));
    assert_eq!(client.compute(gi, 0), Err(NO_PERMISSION));
    assert_eq!(client.destroy(gi), NO_PERMISSION);
    let null = std::ptr::null_mut();
    assert_eq!(
        number!(client, nvmlDeviceGetGpuInstancePossiblePlacements_v2(client.gpu(0), ONE, null)).0,
        NO_PERMISSION
    );
    assert_eq!(client.mode(0), (SUCCESS, 1, 1), "reading is free");
}

#[test]
fn a_planted_instance_is_there_for_every_program() {
    let bench = Bench::new("H100-80GB");
    let planted = bench.node.plant_instance(0, "2g.20gb", 4).unwrap();
    let client = bench.client();
    assert_eq!(client.create_at(0, ONE, 5, 1), Err(INSUFFICIENT_RESOURCES));
    assert_eq!(client.uuid(client.mig_at(0, 0).unwrap()).unwrap(), planted.uuid);
    let snapshot = bench.node.snapshot().unwrap();
    let instance = &snapshot.gpus[0].gpu_instances[0];
    assert_eq!(
        (instance.id, instance.profile.as_str(), instance.start),
        (planted.gpu_instance, "2g.20gb", 4)
    );
    assert!(bench.node.plant_instance(0, "9g", 0).unwrap_err().to_string().contains("Not Found"));
}

#[test]
fn permuted_ids_run_from_the_right() {
    let (bench, client) = Bench::with_mig("H100-80GB");
    bench.node.configure(|config| config.permuted_gi_ids = true).unwrap();
    let at = |start| client.info(client.create_at(0, THREE, start, 4).unwrap()).unwrap().id;
    assert_eq!((at(0), at(4)), (2, 1));
}
