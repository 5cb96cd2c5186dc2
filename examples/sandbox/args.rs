//! The command line.

use std::path::PathBuf;

use clap::Parser;
use nvml_sim::{Model, parse_gpus};

/// Shows what dra-driver-mig does, on a simulated node with a simulated control plane.
#[derive(Debug, Parser)]
#[command(name = "sandbox", max_term_width = 110)]
pub(crate) struct Args {
    /// GPUs of the node, such as `4xA100-40GB,1xL4`.
    #[arg(long, value_name = "LIST", default_value = "2xH100-80GB", value_parser = gpus)]
    pub(crate) gpus: Gpus,
    /// Manifests, files or directories; device classes are there already [default: five of examples/].
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub(crate) manifests: Vec<PathBuf>,
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

/// The GPUs asked for.
#[derive(Debug, Clone)]
pub(crate) struct Gpus(pub(crate) Vec<Model>);

fn gpus(text: &str) -> Result<Gpus, String> {
    let models = parse_gpus(text)?;
    if models.is_empty() { Err("at least one GPU".into()) } else { Ok(Gpus(models)) }
}
