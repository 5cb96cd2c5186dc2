//! Generated from `proto/`; nothing else.
#![expect(unreachable_pub, reason = "generated code")]

pub(super) mod dra_v1 {
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
}

pub(super) mod dra_v1beta1 {
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1beta1");
}

pub(super) mod health_v1 {
    tonic::include_proto!("v1");
}

pub(super) mod health_v1alpha1 {
    tonic::include_proto!("v1alpha1");
}

pub(super) mod registration {
    tonic::include_proto!("pluginregistration");
}
