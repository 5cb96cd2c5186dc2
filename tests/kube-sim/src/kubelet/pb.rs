//! Generated clients of the kubelet's protocols.

/// `dra/v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
pub(super) mod v1 {
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
}

/// `dra/v1beta1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
pub(super) mod v1beta1 {
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1beta1");
}

/// `dra-health/v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
pub(super) mod health_v1 {
    tonic::include_proto!("v1");
}

/// `dra-health/v1alpha1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
pub(super) mod health_v1alpha1 {
    tonic::include_proto!("v1alpha1");
}

/// `grpc.health.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
pub(super) mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// `pluginregistration/v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
pub(super) mod registration {
    tonic::include_proto!("pluginregistration");
}
