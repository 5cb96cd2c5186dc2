//! Manifests: files of Kubernetes objects, and the pods and claims that they ask for.

mod demand;
mod error;
mod file;
mod object;
mod snapshot;
#[cfg(test)]
mod tests;

pub use self::demand::{Catalog, Demand, DemandError, PodDemand};
pub use self::error::{ManifestError, Place};
pub use self::file::read;
pub use self::object::Object;
pub use self::snapshot::apply;
