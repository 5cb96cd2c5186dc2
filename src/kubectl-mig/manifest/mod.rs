//! Manifests: files of Kubernetes objects, and the pods and claims that they ask for.

mod demand;
mod file;
mod object;
mod snapshot;
#[cfg(test)]
mod tests;

pub use self::demand::{Catalog, Demand, DemandError, PodDemand};
pub use self::file::{ManifestError, read};
pub use self::object::{Object, Place};
pub use self::snapshot::apply;
