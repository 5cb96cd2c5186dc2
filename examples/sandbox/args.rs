//! The command line.

use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser};
use kube_sim::Options;
use nvml_sim::{Model, parse_gpus};

use crate::{manifests, operators};

/// Shows what dra-driver-mig does, on a simulated node with a simulated control plane.
#[derive(Debug, Parser)]
#[command(name = "sandbox", max_term_width = 110)]
pub(crate) struct Args {
    /// GPUs of the node, such as `4xA100-40GB,1xL4`; the models are listed below.
    #[arg(long, value_name = "LIST", default_value = "2xH100-80GB", value_parser = gpus)]
    pub(crate) gpus: Gpus,
    /// Manifests, files or directories; the driver's device classes are there already [default: five of examples/].
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub(crate) manifests: Vec<PathBuf>,
    /// Switches a feature gate of Kubernetes; may be given several times. DRAExtendedResource, DRAPartitionableDevices and
    /// DRAResourceClaimDeviceStatus are on unless switched off, DRADeviceTaints is off.
    #[arg(long = "gate", value_name = "NAME=BOOL", value_parser = gate)]
    pub(crate) gates: Vec<(Gate, bool)>,
    /// Keep it running for kubectl until Ctrl-C; starts empty unless -f is given.
    #[arg(long)]
    pub(crate) serve: bool,
    /// Port of the API server [default: a free one].
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Seconds that the pods may take to run, and to go again.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u64,
    /// What the driver logs, on standard error: a level or a filter.
    #[arg(long, value_name = "LEVEL", default_value = "error")]
    pub(crate) log_level: String,
}

impl Args {
    /// Reads the command line of the process, and ends the process where it cannot be read or asks for help.
    pub(crate) fn read() -> Self {
        let matches = Self::command().after_help(lists()).get_matches();
        match Self::from_arg_matches(&matches) {
            Ok(args) => args,
            Err(error) => error.exit(),
        }
    }

    /// How the API server is to run.
    pub(crate) fn options(&self) -> Options {
        let mut options = Options {
            partitionable_devices: true,
            extended_resource: true,
            port: self.port,
            without_request_log: true,
            ..Options::default()
        };
        for (gate, on) in &self.gates {
            match gate {
                Gate::DeviceTaints => options.device_taints = *on,
                Gate::ExtendedResource => options.extended_resource = *on,
                Gate::PartitionableDevices => options.partitionable_devices = *on,
                Gate::ResourceClaimDeviceStatus => options.without_device_status = !*on,
            }
        }
        options
    }
}

/// The lists at the end of the help.
fn lists() -> String {
    let models = |has_mig: bool| {
        let names: Vec<&str> =
            Model::all().filter(|it| it.has_mig() == has_mig).map(|it| it.name()).collect();
        names.join(", ")
    };
    format!(
        "GPU models with MIG:\n  {}\nGPU models without MIG:\n  {}\n\nKinds that are played:\n  {}\nKinds that are stored and \
         have no effect:\n  {}\nKinds of operators, of which the \
         pods are played:\n  {}\nOther kinds are skipped, unless they run pods.\n\nNo container is executed: the pods of Jobs run until \
         they are deleted, and a CronJob runs once, at once.\n\nExit status: 0 when all pods ran and everything was removed, \
         1 when not, 2 when the command line or a manifest has a mistake.",
        models(true),
        models(false),
        manifests::played().join(", "),
        manifests::WITHOUT_EFFECT.join(", "),
        operators::KINDS.map(|(group, kind)| format!("{kind} ({group})")).join(", "),
    )
}

/// The GPUs asked for.
#[derive(Debug, Clone)]
pub(crate) struct Gpus(pub(crate) Vec<Model>);

fn gpus(text: &str) -> Result<Gpus, String> {
    let models = parse_gpus(text)?;
    if models.is_empty() { Err("at least one GPU".into()) } else { Ok(Gpus(models)) }
}

/// A feature gate of Kubernetes that can be switched here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    DeviceTaints,
    ExtendedResource,
    PartitionableDevices,
    ResourceClaimDeviceStatus,
}

const GATES: [(&str, Gate); 4] = [
    ("DRADeviceTaints", Gate::DeviceTaints),
    ("DRAExtendedResource", Gate::ExtendedResource),
    ("DRAPartitionableDevices", Gate::PartitionableDevices),
    ("DRAResourceClaimDeviceStatus", Gate::ResourceClaimDeviceStatus),
];

fn gate(text: &str) -> Result<(Gate, bool), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=true or NAME=false")?;
    let known = GATES.iter().find(|(known, _)| *known == name);
    let (_, gate) = known.ok_or_else(|| {
        let names: Vec<&str> = GATES.iter().map(|(name, _)| *name).collect();
        format!("no gate is called {name:?}; known: {}", names.join(", "))
    })?;
    let on = value.parse().map_err(|_| format!("{value:?} is neither true nor false"))?;
    Ok((*gate, on))
}
