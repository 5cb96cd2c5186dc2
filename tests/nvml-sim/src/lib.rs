//! A simulated `libnvidia-ml.so`: the NVML C ABI over GPUs that exist only as files in a directory, MIG
//! included.
//!
//! As a cdylib it is what an NVML client loads; as an rlib it is what a test uses to set up a node and look
//! at it ([`SimNode`]). Both sides share one state directory, so that several programs and a restarted driver
//! see one machine.
//!
//! ```text
//! mig-models -> machine -> mig           pure: data, and the rules of partitioning
//! fault, store, host                     files: what calls suffer, the locked state, the rendered host
//! abi                                    the C functions, thin
//! node                                   the operator's side
//! ```
//!
//! | file in `<node>/nvml-sim/` | holds |
//! |---|---|
//! | `machine.json` | the GPUs and their partitions ([`Machine`]) |
//! | `config.json` | switches and latencies ([`Config`]); may be edited by hand at any time |
//! | `faults.json` | planted faults, a list of [`Fault`]; may be edited by hand |
//! | `calls.jsonl` | one [`Call`] per line, if `log_calls` is on |
//! | `lock`, `gpu<n>.lock` | locks; `lock` also counts the changes |
//!
//! The library finds its node by `NVML_SIM_STATE` (a node directory), else by the nearest directory above its
//! own file that contains `nvml-sim/`. It does not simulate CUDA, vGPU hosts, NvLink, clocks or power.

mod abi;
mod code;
mod fault;
mod host;
mod machine;
pub mod mig;
mod node;
mod snapshot;
mod store;

pub use abi::exported_functions;
pub use code::{Answer, Code};
pub use fault::{ANY_CALL, Action, CRASH_STATUS, Config, Fault, HARDWARE_LATENCY_MS};
pub use machine::{
    ComputeInstance, EVENT_DOUBLE_BIT_ECC, EVENT_MIG_CONFIG_CHANGE, EVENT_SINGLE_BIT_ECC, EVENT_XID, Event,
    Gpu, GpuInstance, Holder, Machine, Process,
};
pub use mig_models::{Evidence, Model, ModelData, Profile, Row, parse_gpus};
pub use node::{Call, Planted, SimNode};
pub use snapshot::{CiSnapshot, GiSnapshot, GpuSnapshot, Snapshot};
