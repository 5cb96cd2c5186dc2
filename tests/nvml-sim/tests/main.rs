//! The simulated NVML as a driver sees it: the C ABI, the rendered host, and the rules of partitioning.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]
#![allow(unsafe_code, reason = "calling C functions is what these tests are about")]

mod common;
mod events;
mod faults;
mod host;
mod library;
mod mig;
mod mode;
mod python;
mod rules;
