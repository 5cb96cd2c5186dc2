//! The integration tests of the driver, one module a subject; what they share is in [`common`].
//!
//! One program, so that it is linked once (only `fuzz` is another one, which limits the memory of its process): `cargo test --test integration health::` runs the tests of one module.
#![allow(clippy::unwrap_used, reason = "what fails in a test is the test")]

mod access;
mod addresses;
mod admin_access;
mod advertise;
mod auto_layout;
mod check;
mod common;
mod convert;
mod counters;
mod crash;
mod demand_loop;
mod deploy;
mod device_metadata;
mod disk;
mod docs;
mod events;
mod existing;
mod facts;
mod faults;
mod hang;
mod health;
mod inspect;
mod job_mapping;
mod kubectl_get;
mod layers;
mod layout;
mod load;
mod lost_records;
mod manifests;
mod metrics;
mod mig_node;
mod nvidia_name;
mod observability;
mod placement;
mod plan;
mod prepare;
mod random;
mod readiness;
mod recovery;
mod scheduling;
mod slices;
mod status;
mod time_slices;
mod two_processes;
mod vanishing;
