//! What may go wrong on purpose: codes, crashes, latency, older drivers, and the log of calls.

use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::*;
use nvml_sim::{Action, CRASH_STATUS, Code, Fault};

const CREATE: &str = "nvmlDeviceCreateGpuInstance";

#[test]
fn a_fault_strikes_the_nth_call_on_its_gpu_only() {
    let bench = Bench::new("2xH100-80GB");
    let client = bench.client();
    for gpu in 0..2 {
        client.set_mode(gpu, 1);
    }
    let fault = Fault::returning(CREATE, Code::INSUFFICIENT_RESOURCES).on_gpu(0).skipping(1).times(2);
    bench.node.inject(fault).unwrap();
    let answers: Vec<Result<(), u32>> = (0..4).map(|_| client.create(0, ONE).map(|_| ())).collect();
    assert_eq!(answers, [Ok(()), Err(INSUFFICIENT_RESOURCES), Err(INSUFFICIENT_RESOURCES), Ok(())]);
    bench.node.inject(Fault::returning(CREATE, Code::UNKNOWN).on_gpu(0)).unwrap();
    assert_eq!(client.create(0, ONE), Err(999));
    assert_eq!(client.create(0, ONE), Err(999), "for ever");
    client.create(1, ONE).unwrap();
    bench.node.clear_faults().unwrap();
    client.create(0, ONE).unwrap();
    assert_eq!(bench.node.snapshot().unwrap().gpus[0].gpu_instances.len(), 3, "a refused call has no effect");
}

#[test]
fn a_call_hangs_on_one_gpu_until_its_fault_is_removed() {
    let bench = Bench::new("2xH100-80GB");
    let client = bench.client();
    client.set_mode(0, 1);
    for fault in [Fault::hanging("nvmlDeviceGetHandleByIndex_v2").on_gpu(1).times(1), Fault::hanging_gpu(1)] {
        bench.node.inject(fault).unwrap();
        let (began, is_released) = (Barrier::new(2), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let client = bench.client();
                began.wait();
                client.gpu(1);
                assert!(is_released.load(Ordering::SeqCst), "it came back by itself");
            });
            began.wait();
            // The other GPU answers meanwhile.
            client.create(0, ONE).unwrap();
            is_released.store(true, Ordering::SeqCst);
            bench.node.clear_faults().unwrap();
        });
    }
}

#[test]
fn a_gpu_instance_is_left_behind_when_its_compute_instance_fails() {
    let (bench, client) = Bench::with_mig("H100-80GB");
    let fault = Fault::returning("nvmlGpuInstanceCreateComputeInstance", Code::UNKNOWN).times(1);
    bench.node.inject(fault).unwrap();
    let gi = client.create(0, TWO).unwrap();
    assert_eq!(client.compute(gi, 1), Err(999));
    let snapshot = bench.node.snapshot().unwrap();
    assert!(snapshot.gpus[0].gpu_instances[0].compute_instances.is_empty());
    assert_eq!(client.mig_at(0, 0), Err(NOT_FOUND), "invisible to a walk over MIG devices");
}

#[test]
fn a_call_may_take_effect_and_still_report_an_error() {
    let (bench, client) = Bench::with_mig("H100-80GB");
    bench.node.inject(Fault::new(CREATE, Action::ReturnAfter(10)).times(1)).unwrap();
    assert_eq!(client.create(0, TWO), Err(TIMEOUT));
    assert_eq!(bench.node.snapshot().unwrap().gpus[0].gpu_instances.len(), 1);
}

/// Runs the named test of this program again as a child that does `create`; gives its exit status.
fn crash_in_a_child(bench: &Bench, test: &str) -> Option<i32> {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", &format!("faults::{test}")]).env("NVML_SIM_CHILD", bench.node.library());
    command.output().unwrap().status.code()
}

/// In the child: creates an instance, and must not come back.
fn child() -> bool {
    let Some(library) = std::env::var_os("NVML_SIM_CHILD") else { return false };
    let client = Client::open(library.into());
    assert_eq!(c!(client, nvmlInit_v2()), SUCCESS);
    let _ = client.create(0, ONE);
    true
}

#[test]
fn a_crash_before_the_effect_leaves_nothing() {
    if child() {
        return;
    }
    let (bench, _client) = Bench::with_mig("H100-80GB");
    bench.node.inject(Fault::new(CREATE, Action::CrashBefore).times(1)).unwrap();
    let name = "a_crash_before_the_effect_leaves_nothing";
    assert_eq!(crash_in_a_child(&bench, name), Some(CRASH_STATUS));
    assert!(bench.node.snapshot().unwrap().gpus[0].gpu_instances.is_empty());
    assert_eq!(crash_in_a_child(&bench, name), Some(0), "once");
    assert_eq!(bench.node.snapshot().unwrap().gpus[0].gpu_instances.len(), 1);
}

#[test]
fn a_crash_after_the_effect_leaves_the_instance_to_the_next_process() {
    if child() {
        return;
    }
    let (bench, client) = Bench::with_mig("H100-80GB");
    bench.node.inject(Fault::new(CREATE, Action::CrashAfter).times(1)).unwrap();
    let name = "a_crash_after_the_effect_leaves_the_instance_to_the_next_process";
    assert_eq!(crash_in_a_child(&bench, name), Some(CRASH_STATUS));
    assert_eq!(client.create_at(0, ONE, 6, 1), Err(INSUFFICIENT_RESOURCES), "another process has made it");
    let mut found = std::ptr::null_mut();
    assert_eq!(c!(client, nvmlDeviceGetGpuInstanceById(client.gpu(0), 13, &mut found)), SUCCESS);
    assert_eq!(client.destroy(found), SUCCESS);
}

#[test]
fn latency_is_serial_on_one_gpu_and_parallel_across_gpus() {
    const LATENCY_US: u64 = 150_000;
    let bench = Bench::new("2xH100-80GB");
    let client = bench.client();
    for gpu in 0..2 {
        client.set_mode(gpu, 1);
    }
    bench.node.set_latency(CREATE, LATENCY_US as f64 / 1000.0).unwrap();
    bench.node.configure(|config| config.log_calls = true).unwrap();
    let start = Barrier::new(3);
    std::thread::scope(|scope| {
        for gpu in [0, 0, 1] {
            let (bench, start) = (&bench, &start);
            scope.spawn(move || {
                let client = bench.client();
                start.wait();
                client.create(gpu, ONE).unwrap();
            });
        }
    });
    let calls: Vec<_> = bench.node.calls().unwrap().into_iter().filter(|call| call.call == CREATE).collect();
    let of = |gpu| calls.iter().filter(|call| call.gpu == Some(gpu)).collect::<Vec<_>>();
    let (first, second) = (of(0), of(1));
    assert_eq!((first.len(), second.len()), (2, 1));
    assert!(calls.iter().all(|call| call.took_us >= LATENCY_US), "{calls:?}");
    let ends = |call: &nvml_sim::Call| call.began_us + call.took_us;
    let (a, b) = (ends(first[0]), ends(first[1]));
    assert!(a.abs_diff(b) + 5_000 >= LATENCY_US, "one after the other: {calls:?}");
    assert!(
        second[0].began_us < a.max(b) && first.iter().any(|call| call.began_us < ends(second[0])),
        "{calls:?}"
    );
}

#[test]
fn a_fault_can_make_one_call_slow() {
    let (bench, client) = Bench::with_mig("H100-80GB");
    bench.node.configure(|config| config.log_calls = true).unwrap();
    bench.node.inject(Fault::new(CREATE, Action::Latency(30.0)).times(1)).unwrap();
    client.create(0, ONE).unwrap();
    let log = bench.node.calls().unwrap();
    let call = log.iter().find(|call| call.call == CREATE).unwrap();
    assert!(call.took_us >= 30_000 && call.code == 0 && call.gpu == Some(0), "{call:?}");
    assert_eq!(call.pid, std::process::id());
}

#[test]
fn calls_are_logged_in_order_with_their_answers() {
    let (bench, client) = Bench::with_mig("H100-80GB");
    bench.node.configure(|config| config.log_calls = true).unwrap();
    let gi = client.create(0, ONE).unwrap();
    assert_eq!(client.destroy(gi), SUCCESS);
    assert_eq!(client.destroy(gi), INVALID_ARGUMENT);
    let log: Vec<(String, u32)> =
        bench.node.calls().unwrap().into_iter().map(|call| (call.call, call.code)).collect();
    let expected = [
        ("nvmlDeviceGetHandleByIndex_v2", 0),
        (CREATE, 0),
        ("nvmlGpuInstanceDestroy", 0),
        ("nvmlGpuInstanceDestroy", 2),
    ];
    assert_eq!(log, expected.map(|(call, code)| (call.to_string(), code)));
}

#[test]
fn an_older_driver_lacks_symbols() {
    let bench = Bench::new("H100-80GB");
    bench.node.hide_symbols(&["nvmlDeviceGetGpuInstanceProfileInfoV", "nvmlGpmMigSampleGet"]).unwrap();
    let client = bench.client();
    assert!(client.lib.nvmlDeviceGetGpuInstanceProfileInfoV.is_err());
    assert!(client.lib.nvmlGpmMigSampleGet.is_err());
    assert!(client.lib.nvmlDeviceGetGpuInstanceProfileInfo.is_ok());
    assert!(client.lib.nvmlDeviceGetGpuInstanceProfileInfoByIdV.is_ok());
    assert!(bench.node.hide_symbols(&["nvmlNoSuchFunction"]).is_err());
    let other = Bench::new("H100-80GB").client();
    assert!(other.lib.nvmlGpmMigSampleGet.is_ok(), "each node has its own copy of the library");
}
