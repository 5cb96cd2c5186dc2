//! The kubelet, as far as a DRA driver meets it: it finds the registration socket, dials it the way grpc-go does, prepares and
//! unprepares claims over the service socket, and runs pods in name only.

mod authority;
mod cdi;
mod client;
mod health;
mod node;
mod pb;
mod pod;
mod probe;

pub use authority::encode_authority;
pub use cdi::{CdiDevice, find as find_cdi_device};
pub use client::{
    Claim, KubeletClient, KubeletError, Plugin, PrepareAnswer, PreparedDevice, UnprepareAnswer, Version,
};
pub use health::{DeviceHealth, Health, HealthStream};
pub use node::{ContainerDevice, Counts, Kubelet, KubeletOptions, PreparedClaim};
pub use probe::HealthProbe;
