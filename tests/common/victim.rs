//! A driver that crashes or whose disk fails, and what must hold of its node afterwards.

use std::fs::File;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::DeleteParams;
use kube_sim::kubelet::{Claim, KubeletClient, Plugin, PreparedDevice};
use nvml_sim::Planted;
use tokio::time::{Instant, sleep};

use super::shim::{CRASH_STATUS, Op, Shim};
use super::{ControlPlane, DRIVER, Lab};

/// How long the driver may take to start, to die and to tidy up; far above what it takes.
const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(5);
/// The driver's directory with the metadata of devices.
const METADATA: &str = "plugins/mig.dra-driver.dev/dra-device-metadata";

/// What a claim has allocated, and what the hardware has for it.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) name: &'static str,
    pub(crate) devices: &'static [&'static str],
    /// GPU, profile, first memory slice; sorted.
    pub(crate) instances: &'static [(usize, &'static str, u32)],
    /// MIG mode that the GPUs must have, so that a test can give them the other one.
    pub(crate) mig: bool,
    /// Profile and first memory slice of an unmanaged instance on the first GPU, which the claim is given
    /// instead of devices.
    pub(crate) planted: Option<(&'static str, u32)>,
    /// Whether containers get the metadata of the devices, which is one more file.
    pub(crate) metadata: bool,
}

pub(crate) const ONE: Wanted = Wanted {
    name: "one MIG device",
    devices: &["gpu-0000-1a-00-mig-1g-10gb-6"],
    instances: &[(0, "1g.10gb", 6)],
    mig: true,
    planted: None,
    metadata: true,
};

pub(crate) const TWO: Wanted = Wanted {
    name: "two MIG devices on one GPU",
    devices: &["gpu-0000-1a-00-mig-1g-10gb-6", "gpu-0000-1a-00-mig-2g-20gb-0"],
    instances: &[(0, "1g.10gb", 6), (0, "2g.20gb", 0)],
    mig: true,
    planted: None,
    metadata: false,
};

pub(crate) const THREE: Wanted = Wanted {
    name: "three MIG devices on two GPUs",
    devices: &[
        "gpu-0000-1a-00-mig-1g-10gb-6",
        "gpu-0000-1a-00-mig-2g-20gb-0",
        "gpu-0000-1b-00-mig-3g-40gb-4",
    ],
    instances: &[(0, "1g.10gb", 6), (0, "2g.20gb", 0), (1, "3g.40gb", 4)],
    mig: true,
    planted: None,
    metadata: false,
};

pub(crate) const WHOLE: Wanted = Wanted {
    name: "a whole GPU",
    devices: &["gpu-0000-1a-00"],
    instances: &[],
    mig: false,
    planted: None,
    metadata: false,
};

/// One of its devices is cut beside the other, so that crashes come between the two.
pub(crate) const ADOPTED: Wanted = Wanted {
    name: "an unmanaged instance and one of ours",
    devices: &["gpu-0000-1a-00-mig-1g-10gb-6"],
    instances: &[(0, "1g.10gb", 6)],
    mig: true,
    planted: Some(("2g.20gb", 2)),
    metadata: false,
};

/// A call of the kubelet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Prepare,
    Unprepare,
}

/// What went wrong.
#[derive(Debug)]
pub(crate) enum Bad {
    /// Something is left, or something is missing.
    Leaked(String),
    /// The claim cannot be prepared or unprepared, or the driver does not start.
    Wedged(String),
}

/// How a claim stands on its node: all of it is there or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Nothing,
    Whole,
}

/// What became of a call: the driver's answer, or nothing because it died.
pub(crate) type Answer = Option<Result<Vec<PreparedDevice>, String>>;

/// A driver in a process of its own, under the shim.
pub(crate) struct Victim {
    pub(crate) lab: Lab,
    pub(crate) shim: Shim,
    process: Option<Child>,
    kubelet: Option<Plugin>,
    claims: u32,
    planted: Option<Planted>,
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Victim {
    /// A node with two GPUs for claims of this kind; the driver does not run yet. It looks at the hardware when it starts and when it
    /// has to, never just because time has passed: so the points of a call are its own.
    pub(crate) async fn new(plane: &ControlPlane, wanted: &Wanted) -> Self {
        let mut args = vec!["--rescan-interval", "86400", "--existing-instances", "adopt"];
        args.extend(wanted.metadata.then_some("--device-metadata"));
        let lab = Lab::new(plane.clone(), "2xH100-80GB").await.with_args(&args);
        // So that making it is no point of the first call alone.
        std::fs::create_dir_all(lab.path(METADATA)).unwrap();
        let shim = Shim::new(&lab);
        Self { lab, shim, process: None, kubelet: None, claims: 0, planted: None }
    }

    /// Starts the driver and registers it. False where it died meanwhile of a plan.
    pub(crate) async fn start(&mut self) -> Result<bool, Bad> {
        let log = File::options().create(true).append(true).open(self.lab.path("driver.log")).unwrap();
        let mut command = self.shim.command(&self.lab);
        // Given, so that the process need not replace itself to set it.
        command.env("MALLOC_ARENA_MAX", "1").stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.status() {
                return ended_by_plan(status).map(|()| false);
            }
            if let Some(socket) = KubeletClient::sockets(&self.lab.path("registry")).first()
                && let Ok(kubelet) = KubeletClient::register_socket(socket).await
            {
                self.kubelet = Some(kubelet);
                return Ok(true);
            }
            if deadline < Instant::now() {
                return Err(Bad::Wedged("the driver does not come up".to_owned()));
            }
            sleep(PAUSE).await;
        }
    }

    /// Ends the driver as SIGKILL does.
    pub(crate) fn kill(&mut self) {
        self.kubelet = None;
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Whether a plan has ended the driver; waits for its end where it is near.
    pub(crate) async fn died(&mut self, answer: &Answer) -> Result<bool, Bad> {
        if answer.is_some() && !self.shim.has_crashed() {
            return Ok(false);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.status() {
                Some(status) => return ended_by_plan(status).map(|()| true),
                None if deadline < Instant::now() => {
                    return Err(Bad::Wedged("a call had no answer, yet the driver lives".to_owned()));
                }
                None => sleep(PAUSE).await,
            }
        }
    }

    fn status(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.try_wait().unwrap()?;
        (self.process, self.kubelet) = (None, None);
        Some(status)
    }

    /// Whether the driver runs and has registered.
    pub(crate) fn runs(&self) -> bool {
        self.kubelet.is_some()
    }

    /// Process id of the driver.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// A new claim for these devices.
    pub(crate) async fn claim(&mut self, wanted: &Wanted) -> Claim {
        self.claims += 1;
        let devices = self.devices(wanted);
        let results: Vec<_> = devices.iter().map(|device| ("gpu", DRIVER, device.as_str())).collect();
        self.lab.claim(&format!("claim-{}", self.claims), &results).await
    }

    /// Creates the unmanaged instances that are wanted; before the first start, because the driver looks only then.
    pub(crate) fn plant(&mut self, wanted: &Wanted) {
        if let (Some((profile, start)), None) = (wanted.planted, &self.planted) {
            self.planted = Some(self.lab.sim.plant_instance(0, profile, start).unwrap());
        }
    }

    /// Names of the devices of a claim.
    fn devices(&self, wanted: &Wanted) -> Vec<String> {
        let planted = self.planted.iter().map(|it| it.uuid.strip_prefix("MIG-").unwrap());
        let planted = planted.map(|it| format!("gpu-0000-1a-00-adopted-{it}"));
        wanted.devices.iter().map(|it| (*it).to_owned()).chain(planted).collect()
    }

    /// Deletes a claim from the API server.
    pub(crate) async fn delete(&self, claim: &Claim) {
        let api: Api<ResourceClaim> = Api::namespaced(self.lab.client.clone(), "default");
        api.delete(&claim.name, &DeleteParams::default()).await.unwrap();
    }

    /// A call for one claim.
    pub(crate) async fn call(&self, call: Call, claim: &Claim) -> Answer {
        let kubelet = self.kubelet.as_ref()?;
        let claims = std::slice::from_ref(claim);
        match call {
            Call::Prepare => kubelet.prepare(claims).await.ok()?.remove(&claim.uid),
            Call::Unprepare => {
                let answer = kubelet.unprepare(claims).await.ok()?.remove(&claim.uid)?;
                Some(answer.map(|()| Vec::new()))
            }
        }
    }

    /// A call that must succeed, and what must hold then.
    pub(crate) async fn must(&self, call: Call, claim: &Claim, wanted: &Wanted) -> Result<(), Bad> {
        match self.call(call, claim).await {
            Some(Ok(devices)) => self.acknowledged(call, &devices, claim, wanted),
            Some(Err(error)) => Err(Bad::Wedged(format!("{call:?}: {error}"))),
            None => Err(Bad::Wedged(format!("{call:?} had no answer"))),
        }
    }

    /// What must hold as soon as a call was answered with success.
    pub(crate) fn acknowledged(
        &self,
        call: Call,
        devices: &[PreparedDevice],
        claim: &Claim,
        wanted: &Wanted,
    ) -> Result<(), Bad> {
        let (ids, expected): (Vec<String>, Held) = match call {
            Call::Prepare => {
                let id = |it: &String| format!("{DRIVER}/claim={}-{it}", claim.uid);
                (self.devices(wanted).iter().map(id).collect(), Held::Whole)
            }
            Call::Unprepare => (Vec::new(), Held::Nothing),
        };
        let answered: Vec<String> = devices.iter().flat_map(|it| it.cdi_ids.clone()).collect();
        if answered != ids {
            return Err(Bad::Wedged(format!("{call:?} answered {answered:?}")));
        }
        match self.held(claim, wanted) {
            Ok(held) if held == expected => Ok(()),
            Ok(held) => Err(Bad::Leaked(format!("{call:?} was answered with {held:?}"))),
            Err(torn) => Err(Bad::Leaked(format!("{call:?} was answered with {torn}"))),
        }
    }

    /// How the only claim of the node stands; else what there is. Nothing else may be there, either.
    pub(crate) fn held(&self, claim: &Claim, wanted: &Wanted) -> Result<Held, String> {
        let left = self.left();
        let instances: Vec<(usize, &str, u32)> =
            left.instances.iter().map(|(gpu, profile, start)| (*gpu, profile.as_str(), *start)).collect();
        let is_its_own = |files: &[String]| matches!(files, [file] if file.contains(&claim.uid));
        let has_metadata =
            if wanted.metadata { is_its_own(&left.metadata) } else { left.metadata.is_empty() };
        let has_files = is_its_own(&left.records) && is_its_own(&left.cdi) && has_metadata;
        let has_all = has_files && instances == wanted.instances;
        if left.is_empty() {
            Ok(Held::Nothing)
        } else if has_all && !left.has_bare_instance {
            Ok(Held::Whole)
        } else {
            Err(format!("{left:?}"))
        }
    }

    /// What others made is there throughout; that it is gone is as bad as anything that is left.
    fn set_planted_aside(&self, planted: &Planted, instances: &mut Vec<(usize, String, u32)>) {
        let gpu = &self.lab.sim.snapshot().unwrap().gpus[0];
        let live = gpu.gpu_instances.iter().find(|it| {
            it.id == planted.gpu_instance && it.compute_instances.iter().any(|it| it.uuid == planted.uuid)
        });
        match live {
            Some(live) => instances.retain(|it| *it != (0, live.profile.clone(), live.start)),
            None => instances.push((0, "the unmanaged instance is gone".to_owned(), 0)),
        }
    }

    /// Everything there is on the node.
    pub(crate) fn left(&self) -> Left {
        let records = self.lab.state_files();
        let mut instances = self.lab.instances();
        instances.sort();
        if let Some(planted) = &self.planted {
            self.set_planted_aside(planted, &mut instances);
        }
        let gpus = self.lab.sim.snapshot().unwrap().gpus;
        let has_bare_instance =
            gpus.iter().flat_map(|it| &it.gpu_instances).any(|it| it.compute_instances.len() != 1);
        let metadata = self.lab.files(METADATA);
        Left { instances, has_bare_instance, records, cdi: self.lab.files("cdi"), metadata }
    }

    /// Waits until the claim is there as a whole or not at all, as `accept` wants it. False where the driver died
    /// meanwhile of a plan.
    pub(crate) async fn settled(
        &mut self,
        claim: &Claim,
        wanted: &Wanted,
        accept: impl Fn(Held) -> bool,
    ) -> Result<bool, Bad> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.status() {
                return ended_by_plan(status).map(|()| false);
            }
            match self.held(claim, wanted) {
                Ok(held) if accept(held) => return Ok(true),
                held if deadline < Instant::now() => {
                    return Err(Bad::Leaked(format!("after the restart: {held:?}")));
                }
                _ => sleep(PAUSE).await,
            }
        }
    }

    /// Waits for what follows the removal of a record: the sync of its directory. False where the driver died of a plan.
    pub(crate) async fn removal_is_synced(&mut self) -> Result<bool, Bad> {
        let deadline = Instant::now() + PATIENCE;
        while !self.shim.has_crashed() {
            if let Some(status) = self.status() {
                return ended_by_plan(status).map(|()| false);
            }
            let met = self.shim.met();
            let removal = met.iter().rposition(|it| it.op == Op::Unlink && it.path.contains("/claims/"));
            let mut later = met.iter().skip(removal.unwrap_or(met.len()));
            if later.any(|it| it.op == Op::Sync && it.path.ends_with("/claims")) {
                return Ok(true);
            }
            if deadline < Instant::now() {
                return Err(Bad::Wedged("a record was removed and its directory is not synced".to_owned()));
            }
            sleep(PAUSE).await;
        }
        Ok(true)
    }

    /// Gives all GPUs this MIG mode, but one that another program has cut.
    pub(crate) fn set_mig_mode(&self, on: bool) {
        for gpu in usize::from(self.planted.is_some())..2 {
            self.lab.sim.on_gpu(gpu, |it| (it.mig_current, it.mig_pending) = (on, on)).unwrap();
        }
    }
}

/// What is on a node.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) instances: Vec<(usize, String, u32)>,
    /// A GPU instance has no compute instance.
    pub(crate) has_bare_instance: bool,
    pub(crate) records: Vec<String>,
    pub(crate) cdi: Vec<String>,
    /// Directories of claims.
    pub(crate) metadata: Vec<String>,
}

impl Left {
    pub(crate) fn is_empty(&self) -> bool {
        self.instances.is_empty() && [&self.records, &self.cdi, &self.metadata].iter().all(|it| it.is_empty())
    }
}

fn ended_by_plan(status: ExitStatus) -> Result<(), Bad> {
    if status.code() == Some(CRASH_STATUS) {
        Ok(())
    } else {
        Err(Bad::Wedged(format!("the driver ended by itself, {status}")))
    }
}
