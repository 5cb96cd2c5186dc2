//! Why there is no plan.

use std::io;

use crate::cluster::{ClusterError, SliceError};
use crate::manifest::{DemandError, ManifestError};
use crate::template::TemplateError;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Manifests, or the file of `--from`, cannot be used.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// What the manifests ask for is not known.
    #[error("{0}")]
    Demand(#[from] DemandError),
    /// The cluster cannot be read.
    #[error("{0}")]
    Cluster(#[from] ClusterError),
    /// A slice cannot be read.
    #[error("{0}")]
    Slice(#[from] SliceError),
    /// There are no such nodes.
    #[error("{0}")]
    Template(#[from] TemplateError),
    /// There is nothing to plan on.
    #[error("{0} has {1}; for empty nodes give --gpus, such as --gpus 8xH100-80GB")]
    NoDevices(&'static str, &'static str),
    /// A field of an object has a value that the API server refuses.
    #[error("{owner}: {field}: {why}")]
    Field {
        /// Kind and name of the object.
        owner: String,
        /// The field.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is nothing to plan: what, and what was left out.
    #[error("no pod of the manifests needs a device{0}")]
    NoDemand(String),
    /// Two flags want standard input.
    #[error("`-` (standard input) can be given once; save the other input to a file and name it")]
    StandardInput,
    /// No runtime.
    #[error("cannot start the runtime that talks to the API server: {0}")]
    Runtime(#[source] io::Error),
    /// The plan cannot be written as text.
    #[error("cannot write the plan: {0}")]
    Text(String),
}
