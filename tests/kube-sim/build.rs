//! Compiles the kubelet's protocols, client side only, from the driver's own `proto` folder.

use std::error::Error;

const PROTOS: [&str; 6] = [
    "../../proto/dra-v1.proto",
    "../../proto/dra-v1beta1.proto",
    "../../proto/dra-health-v1.proto",
    "../../proto/dra-health-v1alpha1.proto",
    "../../proto/health-v1.proto",
    "../../proto/pluginregistration-v1.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../../proto");
    let files = protox::compile(PROTOS, ["../../proto"])?;
    tonic_prost_build::configure().build_server(false).build_transport(false).compile_fds(files)?;
    Ok(())
}
