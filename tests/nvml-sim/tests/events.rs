//! Events, lost GPUs and utilisation.

use crate::common::*;
use nvml_wrapper_sys::bindings::{nvmlEventData_t, nvmlEventSet_t, nvmlFieldValue_t, nvmlUtilization_t};

const XID: u64 = 0x8;
const MIG_CONFIG: u64 = 0x100;
const SINGLE_BIT_ECC: u64 = 0x1;
const DOUBLE_BIT_ECC: u64 = 0x2;
const NONE: u32 = u32::MAX;

fn event_set(client: &Client, gpus: &[u32], types: u64) -> nvmlEventSet_t {
    let mut set = std::ptr::null_mut();
    assert_eq!(c!(client, nvmlEventSetCreate(&mut set)), SUCCESS);
    for gpu in gpus {
        assert_eq!(c!(client, nvmlDeviceRegisterEvents(client.gpu(*gpu), types, set)), SUCCESS);
    }
    set
}

fn wait(client: &Client, set: nvmlEventSet_t) -> Result<nvmlEventData_t, u32> {
    let mut data = zeroed();
    match c!(client, nvmlEventSetWait_v2(set, &mut data, 0)) {
        SUCCESS => Ok(data),
        code => Err(code),
    }
}

#[test]
fn xids_arrive_in_order_with_and_without_an_instance() {
    let bench = Bench::new("2xH100-80GB");
    let client = bench.client();
    bench.node.post_xid(1, 31, None, None).unwrap();
    let set = event_set(&client, &[0, 1], XID);
    assert_eq!(wait(&client, set).unwrap_err(), TIMEOUT, "what was before the set is not in it");
    bench.node.post_xid(0, 48, None, None).unwrap();
    bench.node.post_xid(1, 94, Some(2), Some(0)).unwrap();
    let first = wait(&client, set).unwrap();
    assert_eq!((first.device, first.eventType, first.eventData), (client.gpu(0), XID, 48));
    assert_eq!((first.gpuInstanceId, first.computeInstanceId), (NONE, NONE));
    let second = wait(&client, set).unwrap();
    assert_eq!((second.device, second.eventData), (client.gpu(1), 94));
    assert_eq!((second.gpuInstanceId, second.computeInstanceId), (2, 0));
    assert_eq!(wait(&client, set).unwrap_err(), TIMEOUT);
    assert_eq!(c!(client, nvmlEventSetFree(set)), SUCCESS);
    assert_eq!(wait(&client, set).unwrap_err(), INVALID_ARGUMENT);
    assert_eq!(c!(client, nvmlEventSetFree(set)), INVALID_ARGUMENT);
}

#[test]
fn an_event_ends_a_wait_that_has_begun() {
    let bench = Bench::new("H100-80GB");
    let client = bench.client();
    let set = event_set(&client, &[0], XID);
    std::thread::scope(|scope| {
        scope.spawn(|| bench.node.post_xid(0, 63, None, None).unwrap());
        let mut data: nvmlEventData_t = zeroed();
        assert_eq!(c!(client, nvmlEventSetWait_v2(set, &mut data, 60_000)), SUCCESS);
        assert_eq!(data.eventData, 63);
    });
}

#[test]
fn only_registered_kinds_on_whole_gpus_are_delivered() {
    let (bench, client) = Bench::with_mig("H100-80GB,L4");
    let xids = event_set(&client, &[0], XID);
    let changes = event_set(&client, &[0], MIG_CONFIG);
    let gi = client.create(0, ONE).unwrap();
    let ci = client.compute(gi, 0).unwrap();
    bench.node.post_xid(1, 31, None, None).unwrap();
    assert_eq!(wait(&client, xids).unwrap_err(), TIMEOUT);
    assert_eq!(wait(&client, changes).unwrap().eventType, MIG_CONFIG);
    let mig = client.mig_device(ci);
    assert_eq!(c!(client, nvmlDeviceRegisterEvents(mig, XID, xids)), INVALID_ARGUMENT, "only on the parent");
    assert_eq!(c!(client, nvmlDeviceRegisterEvents(client.gpu(0), 1 << 40, xids)), NOT_SUPPORTED);
    let (code, types) = number!(client, nvmlDeviceGetSupportedEventTypes(client.gpu(0)));
    assert_eq!((code, types & (XID | MIG_CONFIG)), (SUCCESS, XID | MIG_CONFIG));
}

#[test]
fn a_lost_gpu_posts_an_xid_and_then_answers_nothing() {
    let bench = Bench::new("2xH100-80GB");
    let client = bench.client();
    let set = event_set(&client, &[0], XID);
    let device = client.gpu(0);
    bench.node.lose_gpu(0).unwrap();
    assert_eq!(wait(&client, set).unwrap().eventData, 79);
    assert_eq!(wait(&client, set).unwrap_err(), GPU_IS_LOST);
    assert_eq!(client.uuid(device), Err(GPU_IS_LOST));
    let mut other = std::ptr::null_mut();
    assert_eq!(c!(client, nvmlDeviceGetHandleByIndex_v2(0, &mut other)), GPU_IS_LOST);
    assert_eq!(number!(client, nvmlDeviceGetCount_v2()), (SUCCESS, 2));
    assert!(client.uuid(client.gpu(1)).is_ok());
    bench.node.reboot().unwrap();
    assert!(client.uuid(device).is_ok());
}

#[test]
fn ecc_errors_are_events_of_their_own() {
    let bench = Bench::new("H100-80GB");
    let client = bench.client();
    let set = event_set(&client, &[0], XID | SINGLE_BIT_ECC | DOUBLE_BIT_ECC);
    bench.node.post_ecc(0, false, None, None).unwrap();
    bench.node.post_ecc(0, true, Some(3), Some(0)).unwrap();
    assert_eq!(wait(&client, set).unwrap().eventType, SINGLE_BIT_ECC);
    let double = wait(&client, set).unwrap();
    assert_eq!((double.eventType, double.gpuInstanceId, double.computeInstanceId), (DOUBLE_BIT_ECC, 3, 0));
}

#[test]
fn a_lost_gpu_that_recovers_has_nothing_left_of_its_partitions() {
    let (bench, client) = Bench::with_mig("H100-80GB");
    client.create(0, ONE).unwrap();
    let device = client.gpu(0);
    bench.node.lose_gpu(0).unwrap();
    assert_eq!(client.uuid(device), Err(GPU_IS_LOST));
    bench.node.recover_gpu(0).unwrap();
    assert!(client.uuid(client.gpu(0)).is_ok());
    assert!(bench.node.snapshot().unwrap().gpus[0].gpu_instances.is_empty());
}

#[test]
fn a_gpu_that_is_listened_to_may_count_as_in_use() {
    let (bench, client) = Bench::with_mig("H100-80GB");
    bench.node.configure(|it| it.events_hold_gpus = true).unwrap();
    let gi = client.create(0, ONE).unwrap();
    let set = event_set(&client, &[0], XID);
    assert_eq!(c!(client, nvmlGpuInstanceDestroy(gi)), IN_USE);
    assert_eq!(c!(client, nvmlEventSetFree(set)), SUCCESS);
    assert_eq!(c!(client, nvmlGpuInstanceDestroy(gi)), SUCCESS);
}

#[test]
fn the_resetless_field_tells_who_may_toggle() {
    let bench = Bench::new("A100-80GB,H100-80GB,L4");
    let client = bench.client();
    let field = |gpu: u32, id: u32| {
        let mut value: nvmlFieldValue_t = zeroed();
        value.fieldId = id;
        assert_eq!(c!(client, nvmlDeviceGetFieldValues(client.gpu(gpu), 1, &mut value)), SUCCESS);
        // SAFETY: the call has set the union, all of whose members are numbers of at most eight bytes.
        (value.nvmlReturn, unsafe { value.value.uiVal })
    };
    assert_eq!((0..3).map(|gpu| field(gpu, 184)).collect::<Vec<_>>(), [(0, 0), (0, 1), (0, 0)]);
    assert_eq!((0..3).map(|gpu| field(gpu, 199)).collect::<Vec<_>>(), [(0, 1), (0, 1), (0, 0)]);
    assert_eq!(field(1, 9999).0, NOT_SUPPORTED);
}

#[test]
fn utilisation_is_known_for_whole_gpus_and_through_gpm_for_instances() {
    let bench = Bench::new("H100-80GB,A100-80GB");
    let client = bench.client();
    bench.node.on_gpu(0, |gpu| gpu.utilization = (73, 40)).unwrap();
    let mut rates: nvmlUtilization_t = zeroed();
    assert_eq!(c!(client, nvmlDeviceGetUtilizationRates(client.gpu(0), &mut rates)), SUCCESS);
    assert_eq!((rates.gpu, rates.memory), (73, 40));
    client.set_mode(0, 1);
    assert_eq!(c!(client, nvmlDeviceGetUtilizationRates(client.gpu(0), &mut rates)), NOT_SUPPORTED);
    let gi = client.create(0, ONE).unwrap();
    let id = client.info(gi).unwrap().id;
    let mut samples = [std::ptr::null_mut(); 2];
    for sample in &mut samples {
        assert_eq!(c!(client, nvmlGpmSampleAlloc(sample)), SUCCESS);
        assert_eq!(c!(client, nvmlGpmMigSampleGet(client.gpu(0), id, *sample)), SUCCESS);
    }
    assert_eq!(c!(client, nvmlGpmMigSampleGet(client.gpu(0), 14, samples[0])), INVALID_ARGUMENT);
    assert_eq!(c!(client, nvmlGpmSampleGet(client.gpu(1), samples[0])), NOT_SUPPORTED, "Ampere has no GPM");
    let mut metrics: Box<nvml_wrapper_sys::bindings::nvmlGpmMetricsGet_t> = Box::new(zeroed());
    (metrics.version, metrics.numMetrics) = (1, 1);
    (metrics.sample1, metrics.sample2) = (samples[0], samples[1]);
    metrics.metrics[0].metricId = 2;
    assert_eq!(c!(client, nvmlGpmMetricsGet(&mut *metrics)), SUCCESS);
    assert_eq!(metrics.metrics[0].nvmlReturn, 21, "two samples within 100 ms say nothing");
    // The rule is about real time, so this test has to spend it.
    std::thread::sleep(std::time::Duration::from_millis(110));
    assert_eq!(c!(client, nvmlGpmMigSampleGet(client.gpu(0), id, samples[1])), SUCCESS);
    assert_eq!(c!(client, nvmlGpmMetricsGet(&mut *metrics)), SUCCESS);
    assert_eq!((metrics.metrics[0].nvmlReturn, metrics.metrics[0].value), (0, 73.0));
    for sample in samples {
        assert_eq!(c!(client, nvmlGpmSampleFree(sample)), SUCCESS);
    }
    assert_eq!(c!(client, nvmlGpmSampleFree(samples[0])), INVALID_ARGUMENT);
}
