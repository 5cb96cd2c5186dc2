//! What is in `deploy/`: the chart, the manifests that are rendered from it, whether an API server takes them as it takes the
//! examples, and whether the driver does its work with them.

mod accepted;
mod admission;
mod chart;
mod classes;
mod controller;
mod gpu_access;
mod helm;
mod image;
mod krew;
mod kueue;
mod openshift;
mod policy;
mod rights;
mod rollout;
mod schema;
mod workflows;

pub(crate) use policy::apply;
