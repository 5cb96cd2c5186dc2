//! The node as its operator sees it: set it up, look at it, and do to it what happens to machines. For tests,
//! the sandbox and the command line; programs under test use the C ABI.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::fault::{Config, Fault};
use crate::host;
use crate::machine::{EVENT_DOUBLE_BIT_ECC, EVENT_SINGLE_BIT_ECC, EVENT_XID, Gpu, Holder, Machine, Process};
use crate::mig;
use crate::snapshot::{self, Snapshot};
use crate::store::{STATE_DIR, Store};
use mig_models::{Model, Profile};

/// A simulated node: one directory that looks like a host's root.
#[derive(Debug)]
pub struct SimNode {
    store: Store,
}

/// XID 79: the GPU has fallen off the bus.
const XID_OFF_THE_BUS: u64 = 79;
/// "GPU recovery action changed".
const XID_RECOVERY_ACTION_CHANGED: u64 = 154;

impl SimNode {
    /// Makes a node in `root` (created if missing) with its own copy of the library, found beside the running
    /// program.
    pub fn create(root: &Path, models: &[Model]) -> io::Result<SimNode> {
        SimNode::create_with(root, models, &built_library()?)
    }

    /// The same with the library from `library`, for programs outside this workspace.
    pub fn create_with(root: &Path, models: &[Model], library: &Path) -> io::Result<SimNode> {
        fs::create_dir_all(root)?;
        let root = root.canonicalize()?;
        // The name of the directory makes UUIDs the same in each run of a test, and different on each node.
        let seed = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let machine = Machine::new(models, &seed).map_err(io::Error::other)?;
        Store::create(&root, &machine)?;
        host::build(&root, &machine, library)?;
        SimNode::open(&root)
    }

    /// Opens a node that exists.
    pub fn open(root: &Path) -> io::Result<SimNode> {
        Ok(SimNode { store: Store::open(&root.canonicalize()?)? })
    }

    /// The directory that stands for the host's root.
    pub fn driver_root(&self) -> &Path {
        self.store.root()
    }

    /// The library, as a program would open it.
    pub fn library(&self) -> PathBuf {
        self.driver_root().join(host::LIBRARY_DIR).join("libnvidia-ml.so.1")
    }

    /// Everything there is, for assertions.
    pub fn snapshot(&self) -> io::Result<Snapshot> {
        let session = self.store.session()?;
        let snapshot = snapshot::take(session.machine());
        session.finish()?;
        Ok(snapshot)
    }

    /// The profiles that a GPU reports now.
    pub fn profiles(&self, gpu: usize) -> io::Result<Vec<Profile>> {
        let session = self.store.session()?;
        let profiles = session.machine().gpu(gpu).map(Gpu::profiles).map_err(refused);
        session.finish()?;
        profiles
    }

    /// Makes a GPU instance with one full compute instance, as another program would: MIG mode is switched on
    /// if it is off. `profile` is a name or an id.
    pub fn plant_instance(&self, gpu: usize, profile: &str, start: u32) -> io::Result<Planted> {
        self.change(|machine, config| {
            let found = machine.gpu(gpu)?.profiles().into_iter().find(|known| is_called(known, profile));
            let profile = found.ok_or(Code::NOT_FOUND)?;
            if !machine.gpu(gpu)?.mig_current {
                let status = mig::set_mode(machine.gpu_mut(gpu)?, true)?;
                if status != Code::SUCCESS {
                    return Err(status);
                }
            }
            let place = Some((start, profile.size));
            let gi = mig::create_gpu_instance(machine, gpu, profile.id, place, config.permuted_gi_ids)?;
            let full = (0..9).find(|index| {
                machine.gpu(gpu).is_ok_and(|gpu| {
                    mig::compute_profile(gpu, &profile, *index)
                        .is_ok_and(|compute| compute.slices == profile.slices)
                })
            });
            let ci = mig::create_compute_instance(machine, gpu, gi, full.ok_or(Code::NOT_SUPPORTED)?, None)?;
            let made = machine.gpu(gpu)?.instance(gi).and_then(|made| made.compute_instances.first());
            let uuid = made.map(|made| made.uuid.clone()).unwrap_or_default();
            Ok(Planted { gpu_instance: gi, compute_instance: ci, uuid })
        })
    }

    /// Starts a process on a GPU, or on one of its instances.
    pub fn plant_process(&self, gpu: usize, process: Process) -> io::Result<()> {
        self.on_gpu(gpu, |gpu| gpu.processes.push(process))
    }

    /// Ends a process.
    pub fn remove_process(&self, gpu: usize, pid: u32) -> io::Result<()> {
        self.on_gpu(gpu, |gpu| gpu.processes.retain(|process| process.pid != pid))
    }

    /// Lets another client hold a GPU instance, or the whole GPU (`None`): then nothing can be created or
    /// destroyed.
    pub fn hold_handle(&self, gpu: usize, gpu_instance: Option<u32>, client: &str) -> io::Result<()> {
        self.on_gpu(gpu, |gpu| gpu.holders.push(Holder { client: client.into(), gpu_instance }))
    }

    /// Ends the holds of a client.
    pub fn release(&self, gpu: usize, client: &str) -> io::Result<()> {
        self.on_gpu(gpu, |gpu| gpu.holders.retain(|holder| holder.client != client))
    }

    /// Posts an XID, attributed to an instance or not.
    pub fn post_xid(&self, gpu: usize, xid: u64, gi: Option<u32>, ci: Option<u32>) -> io::Result<()> {
        self.change(|machine, _| {
            machine.gpu(gpu)?;
            machine.post(gpu, EVENT_XID, xid, gi, ci);
            Ok(())
        })
    }

    /// What NVML recommends from now on to do with a GPU (`nvmlDeviceGpuRecoveryAction_t`), with the XID by which the driver
    /// reports the change; `None` is a driver before 565, which recommends nothing.
    pub fn set_recovery_action(&self, gpu: usize, action: Option<u32>) -> io::Result<()> {
        self.change(|machine, _| {
            machine.gpu_mut(gpu)?.recovery_action = action;
            if action.is_some() {
                machine.post(gpu, EVENT_XID, XID_RECOVERY_ACTION_CHANGED, None, None);
            }
            Ok(())
        })
    }

    /// Posts an ECC error, which was corrected (`double` false) or not, attributed to an instance or not.
    pub fn post_ecc(&self, gpu: usize, double: bool, gi: Option<u32>, ci: Option<u32>) -> io::Result<()> {
        self.change(|machine, _| {
            machine.gpu(gpu)?;
            machine.post(gpu, if double { EVENT_DOUBLE_BIT_ECC } else { EVENT_SINGLE_BIT_ECC }, 0, gi, ci);
            Ok(())
        })
    }

    /// The GPU falls off the bus: XID 79, then GPU_IS_LOST from every call until [`Self::recover_gpu`] or a reboot.
    pub fn lose_gpu(&self, gpu: usize) -> io::Result<()> {
        self.change(|machine, _| {
            machine.gpu_mut(gpu)?.lost = true;
            machine.post(gpu, EVENT_XID, XID_OFF_THE_BUS, None, None);
            Ok(())
        })
    }

    /// A lost GPU answers again, after the reset that brought it back: nothing is left of its partitions.
    pub fn recover_gpu(&self, gpu: usize) -> io::Result<()> {
        self.on_gpu(gpu, |gpu| {
            gpu.lost = false;
            gpu.processes.clear();
            gpu.reset();
        })
    }

    /// NVML counts the first `count` GPUs only, as in a container that lacks the device nodes of the others; the kernel lists
    /// all. `None` counts all again.
    pub fn count_gpus(&self, count: Option<usize>) -> io::Result<()> {
        self.change(|machine, _| {
            machine.counted = count;
            Ok(())
        })
    }

    /// `nvmlDeviceGetHandleByIndex` answers this code for the GPU; `None` repairs it.
    pub fn break_handle(&self, gpu: usize, code: Option<Code>) -> io::Result<()> {
        self.on_gpu(gpu, |gpu| gpu.handle_error = code.map(|code| code.0))
    }

    /// Power cycle.
    pub fn reboot(&self) -> io::Result<()> {
        self.change(|machine, _| {
            machine.reboot();
            Ok(())
        })
    }

    /// `nvidia-smi --gpu-reset`: the pending MIG mode comes into force, partitions are gone.
    pub fn reset_gpu(&self, gpu: usize) -> io::Result<()> {
        self.on_gpu(gpu, Gpu::reset)
    }

    /// Changes anything else of a GPU: virtualization mode, minor, name, brand, architecture, extra profiles, utilisation.
    pub fn on_gpu(&self, gpu: usize, change: impl FnOnce(&mut Gpu)) -> io::Result<()> {
        self.change(|machine, _| {
            change(machine.gpu_mut(gpu)?);
            Ok(())
        })
    }

    /// Changes the configuration: root or not, driver loaded, permuted ids, call log, latencies.
    pub fn configure(&self, change: impl FnOnce(&mut Config)) -> io::Result<()> {
        let mut session = self.store.session()?;
        change(session.config_mut());
        session.finish()
    }

    /// Sets the latency of a call in milliseconds.
    pub fn set_latency(&self, call: &str, milliseconds: f64) -> io::Result<()> {
        self.configure(|config| {
            config.latency_ms.insert(call.into(), milliseconds);
        })
    }

    /// Plants a fault.
    pub fn inject(&self, fault: Fault) -> io::Result<()> {
        let mut session = self.store.session()?;
        session.faults_mut().push(fault);
        session.finish()
    }

    /// Removes all faults.
    pub fn clear_faults(&self) -> io::Result<()> {
        let mut session = self.store.session()?;
        session.faults_mut().clear();
        session.finish()
    }

    /// Removes the faults that strike one GPU only, and returns what is left of them.
    pub fn take_faults(&self, gpu: usize) -> io::Result<Vec<Fault>> {
        let mut session = self.store.session()?;
        let of_this = |fault: &mut Fault| fault.gpu == Some(gpu);
        let taken = session.faults_mut().extract_if(.., of_this).collect();
        session.finish()?;
        Ok(taken)
    }

    /// Waits until no call with a latency is under way on this GPU.
    pub fn wait_until_idle(&self, gpu: usize) -> io::Result<()> {
        self.store.serialise(gpu).map(drop)
    }

    /// True where a call with a latency, or one that hangs, is under way on this GPU.
    pub fn is_busy(&self, gpu: usize) -> io::Result<bool> {
        self.store.is_serialised(gpu)
    }

    /// Makes the library lack symbols, as an older driver's does. Before a program opens it.
    pub fn hide_symbols(&self, names: &[&str]) -> io::Result<()> {
        let path = self.library().canonicalize()?;
        let mut bytes = fs::read(&path)?;
        let mut hidden = Vec::new();
        for text in bytes.split_mut(|byte| *byte == 0) {
            if let Some(name) = names.iter().find(|name| name.as_bytes() == text) {
                // Looking a symbol up compares names in the end, so one other letter hides it.
                text[0] = b'-';
                hidden.push(*name);
            }
        }
        if let Some(name) = names.iter().find(|name| !hidden.contains(*name)) {
            return Err(io::Error::other(format!("{name} is no symbol of {}", path.display())));
        }
        // A new file, and not new bytes in one that a program may have mapped.
        let next = path.with_extension("next");
        fs::write(&next, bytes)?;
        fs::rename(next, path)
    }

    /// The calls logged so far, oldest first; none unless `log_calls` is on.
    pub fn calls(&self) -> io::Result<Vec<Call>> {
        let text = match fs::read_to_string(self.store.dir().join(CALLS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        // A line that goes over the end of a page is written in two parts: one without its end is not there yet.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(|line| serde_json::from_str(line).map_err(io::Error::other)).collect()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Machine, &Config) -> Result<T, Code>) -> io::Result<T> {
        let mut session = self.store.session()?;
        let config = session.config().clone();
        let value = change(session.machine_mut(), &config).map_err(|code| {
            io::Error::other(format!("refused: {} ({})", code.text().to_string_lossy(), code.0))
        })?;
        session.finish()?;
        Ok(value)
    }
}

fn refused(code: Code) -> io::Error {
    io::Error::other(format!("refused: {} ({})", code.text().to_string_lossy(), code.0))
}

fn is_called(profile: &Profile, name: &str) -> bool {
    profile.name == name || name.parse() == Ok(profile.id)
}

/// The library that cargo built beside this program: `target/<profile>/deps/libnvml_sim.so`.
fn built_library() -> io::Result<PathBuf> {
    if let Some(path) = std::env::var_os("NVML_SIM_LIBRARY") {
        return Ok(path.into());
    }
    let program = std::env::current_exe()?;
    let dir = program.parent().unwrap_or(Path::new("."));
    let places = [dir.join(LIBRARY), dir.join("deps").join(LIBRARY), dir.join("../deps").join(LIBRARY)];
    // The newest: `cargo test` renews the one in `deps` only.
    let built = places
        .iter()
        .filter(|path| path.is_file())
        .max_by_key(|it| it.metadata().and_then(|it| it.modified()).ok());
    built.cloned().ok_or_else(|| {
        let tried: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        io::Error::other(format!(
            "{LIBRARY} not found; build the package nvml-sim or set NVML_SIM_LIBRARY. Tried: {}",
            tried.join(", ")
        ))
    })
}

const LIBRARY: &str = "libnvml_sim.so";

/// Name of the call log within the state directory.
pub(crate) const CALLS: &str = "calls.jsonl";

/// Whether a directory holds a node.
pub(crate) fn is_node(root: &Path) -> bool {
    root.join(STATE_DIR).join("lock").is_file()
}

/// One logged call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Process that called.
    pub pid: u32,
    /// Name of the C function.
    pub call: String,
    /// Index of the GPU, where the call is about one.
    pub gpu: Option<usize>,
    /// What it answered.
    pub code: u32,
    /// When it began, microseconds since the epoch.
    pub began_us: u64,
    /// How long it took, injected latency included, microseconds.
    pub took_us: u64,
}

/// Appends a call to the log. A line is written at once, so that those of several processes do not mix.
pub(crate) fn log_call(store: &Store, call: &Call) -> io::Result<()> {
    let mut line = serde_json::to_vec(call).map_err(io::Error::other)?;
    line.push(b'\n');
    fs::OpenOptions::new().create(true).append(true).open(store.dir().join(CALLS))?.write_all(&line)
}

/// What [`SimNode::plant_instance`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planted {
    /// GPU instance id.
    pub gpu_instance: u32,
    /// Compute instance id.
    pub compute_instance: u32,
    /// The MIG device's UUID.
    pub uuid: String,
}
