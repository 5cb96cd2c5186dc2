//! What is in `deploy/`: the chart, the manifests that are rendered from it, whether an API server takes them as it takes the
//! examples, and whether the driver does its work with them.
#![allow(clippy::unwrap_used, reason = "what fails in a test is the test")]

mod accepted;
mod admission;
mod chart;
mod classes;
#[path = "../common/mod.rs"]
mod common;
mod gpu_access;
mod helm;
mod image;
mod openshift;
mod policy;
mod rights;
mod rollout;
mod schema;
mod workflows;
