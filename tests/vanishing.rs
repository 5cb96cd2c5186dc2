//! Instances that another program, or another process of the driver, destroys before any one of the calls that read them: what
//! is gone is not there, and what is still there is read.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::thread;

use dra_driver_mig::nvml::{self, CallError, DeviceHandle};
use nvml_sim::{Fault, Gpu, SimNode};

use crate::common::{ControlPlane, Lab, eventually, prepare, unprepare};

/// A GPU with a `1g.10gb` that vanishes and a `3g.40gb` that stays.
struct Bench {
    node: SimNode,
    library: Arc<nvml_wrapper::Nvml>,
    uuid: String,
    _directory: tempfile::TempDir,
}

const VANISHES: u32 = 0;
const STAYS: u32 = 4;

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let node = SimNode::create(directory.path(), &nvml_sim::parse_gpus("H100-80GB").unwrap()).unwrap();
        let library = nvml::open(&node.library()).unwrap();
        let uuid = node.snapshot().unwrap().gpus[0].uuid.clone();
        Self { node, library, uuid, _directory: directory }
    }

    fn cut(&self) -> u32 {
        self.node.on_gpu(0, |gpu| gpu.instances.clear()).unwrap();
        self.node.plant_instance(0, "3g.40gb", STAYS).unwrap();
        self.node.plant_instance(0, "1g.10gb", VANISHES).unwrap().gpu_instance
    }

    /// What is read where `destroy` comes before the first call, before the second one, and so on to the last one. `read` gets the
    /// id of the GPU instance.
    fn before_each_call<T: Ord + Debug + Send>(
        &self,
        destroy: impl Fn(&mut Gpu),
        read: impl Fn(&DeviceHandle<'_>, u32) -> Result<T, CallError> + Sync,
    ) -> BTreeSet<T> {
        let mut seen = BTreeSet::new();
        for calls in 0.. {
            let id = self.cut();
            self.node.inject(Fault::hanging_gpu(0).skipping(calls)).unwrap();
            let (was_met, result) = thread::scope(|scope| {
                let reader = scope.spawn(|| read(&DeviceHandle::by_uuid(&self.library, &self.uuid, 0)?, id));
                let was_met = loop {
                    if self.node.is_busy(0).unwrap() {
                        break true;
                    }
                    if reader.is_finished() {
                        break false;
                    }
                    thread::yield_now();
                };
                self.node.on_gpu(0, &destroy).unwrap();
                self.node.clear_faults().unwrap();
                (was_met, reader.join().unwrap())
            });
            match result {
                Ok(it) => seen.insert(it),
                Err(error) => panic!("destroyed after {calls} calls: {error}"),
            };
            if !was_met {
                break;
            }
        }
        seen
    }
}

fn destroy_instance(gpu: &mut Gpu) {
    gpu.instances.retain(|it| it.start != VANISHES);
}

fn destroy_compute_instance(gpu: &mut Gpu) {
    gpu.instances.iter_mut().filter(|it| it.start == VANISHES).for_each(|it| it.compute_instances.clear());
}

fn switch_mode_off(gpu: &mut Gpu) {
    gpu.instances.clear();
    (gpu.mig_current, gpu.mig_pending) = (false, false);
}

/// Before whichever call the instance goes, it is read as there, as there without its compute instance, or not at all.
#[test]
fn a_list_of_instances_leaves_out_what_goes_while_it_is_made() {
    let bench = Bench::new();
    let profiles = nvml::discover(&bench.library).unwrap().gpus.remove(0).mig.unwrap().profiles;
    let list = |device: &DeviceHandle<'_>, _| {
        let found = nvml::live_instances(device, &profiles)?;
        Ok(found.iter().map(|it| (it.placement.start, it.compute_instances.len())).collect::<Vec<_>>())
    };
    let whole = vec![(VANISHES, 1), (STAYS, 1)];
    let bare = vec![(VANISHES, 0), (STAYS, 1)];
    let seen = bench.before_each_call(destroy_instance, list);
    assert_eq!(seen, BTreeSet::from([whole.clone(), bare.clone(), vec![(STAYS, 1)]]));
    let seen = bench.before_each_call(destroy_compute_instance, list);
    assert_eq!(seen, BTreeSet::from([whole.clone(), bare.clone()]));
    let seen = bench.before_each_call(switch_mode_off, list);
    assert!(seen.contains(&whole) && seen.contains(&Vec::new()), "{seen:?}");
}

#[test]
fn an_instance_that_goes_while_it_is_looked_up_is_not_there() {
    let bench = Bench::new();
    let look_up = |device: &DeviceHandle<'_>, id| Ok(device.gpu_instance(id)?.is_some());
    for destroy in [destroy_instance as fn(&mut Gpu), switch_mode_off] {
        assert_eq!(bench.before_each_call(destroy, look_up), BTreeSet::from([false, true]));
    }
}

#[test]
fn an_instance_that_goes_while_it_is_measured_has_no_memory() {
    let bench = Bench::new();
    let measure = |device: &DeviceHandle<'_>, id| Ok(device.memory_of(id, 0)?.is_some());
    for destroy in [destroy_instance as fn(&mut Gpu), destroy_compute_instance, switch_mode_off] {
        assert_eq!(bench.before_each_call(destroy, measure), BTreeSet::from([false, true]));
    }
}

#[test]
fn an_instance_that_goes_while_its_processes_are_looked_for_has_none() {
    let bench = Bench::new();
    let look = |device: &DeviceHandle<'_>, id| match device.gpu_instance(id)? {
        Some(found) => device.processes_on(found),
        None => Ok(Vec::new()),
    };
    for destroy in [destroy_instance as fn(&mut Gpu), destroy_compute_instance, switch_mode_off] {
        assert_eq!(bench.before_each_call(destroy, look), BTreeSet::from([Vec::new()]));
    }
}

/// Destroys whatever the GPU has while a call of this name is under way.
async fn destroy_all_during(lab: &Lab, call: &str) {
    eventually(call, async || lab.sim.is_busy(0).unwrap().then_some(())).await;
    lab.sim.on_gpu(0, |gpu| gpu.instances.clear()).unwrap();
    lab.sim.clear_faults().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_prepared_though_an_instance_beside_its_own_goes_meanwhile() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", "gpu-0000-1a-00-mig-1g-10gb-6").await;
    let call = "nvmlGpuInstanceGetInfo";
    lab.sim.plant_instance(0, "1g.10gb", 0).unwrap();
    lab.sim.inject(Fault::hanging(call).on_gpu(0)).unwrap();
    let (prepared, ()) = tokio::join!(prepare(&kubelet, &claim), destroy_all_during(&lab, call));
    prepared.unwrap();
    unprepare(&kubelet, &claim).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_unprepared_though_its_instance_goes_meanwhile() {
    let mut lab = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await;
    lab.start();
    let kubelet = lab.kubelet().await;
    for call in ["nvmlGpuInstanceGetInfo", "nvmlComputeInstanceDestroy", "nvmlGpuInstanceDestroy"] {
        let claim = lab.claim_of(&call.to_lowercase(), "gpu-0000-1a-00-mig-1g-10gb-6").await;
        prepare(&kubelet, &claim).await.unwrap();
        lab.sim.inject(Fault::hanging(call).on_gpu(0)).unwrap();
        let (unprepared, ()) = tokio::join!(unprepare(&kubelet, &claim), destroy_all_during(&lab, call));
        unprepared.unwrap();
        assert_eq!((lab.instances(), lab.recorded()), (Vec::new(), Vec::new()));
    }
    lab.stop().await;
}
