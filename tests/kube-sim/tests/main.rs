//! The simulated control plane as its clients see it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod common;
mod evictions;
mod kube_client;
mod life_of_a_pod;
mod manifests;
mod real_api_server;
mod workloads;
