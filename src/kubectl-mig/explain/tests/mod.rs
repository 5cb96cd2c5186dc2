//! Each reason, on small clusters.
#![allow(clippy::unwrap_used, reason = "what fails in a test is the test")]

mod devices;
mod fixture;
mod objects;
