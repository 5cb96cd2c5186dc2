//! A simulated Kubernetes control plane and kubelet, as far as Dynamic Resource Allocation needs them, over real sockets.
//!
//! Not a cluster: no networking, no images, no authentication. What it does simulate it takes from Kubernetes 1.35, and the rules for
//! ResourceSlices from 1.34, too ([`Version`]).

pub mod admission;
pub mod api;
pub mod control;
mod expression;
pub mod kubelet;
pub mod manifest;
pub mod real;
pub mod validate;

pub use api::faults::{Fault, RequestInfo};
pub use api::kinds;
pub use api::server::{ApiServer, Options};
pub use api::store::Part;
pub use api::version::Version;
pub use control::ControlPlane;
pub use kubelet::{Kubelet, KubeletClient, KubeletOptions};
