//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Controller of a cluster with dra-driver-mig: reports why pods wait for devices.
#[derive(Debug, Clone, Parser)]
#[command(name = "mig-controller", version)]
pub struct Args {
    /// Kubeconfig file [default: the service account of the pod].
    #[arg(long, env, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}
