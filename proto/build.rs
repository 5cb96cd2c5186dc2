//! Compiles the kubelet's protocols, and that of health checks, with protox, so that building needs no protoc.

use std::error::Error;
use std::path::Path;

const PROTOS: [&str; 6] = [
    "dra-v1.proto",
    "dra-v1beta1.proto",
    "dra-health-v1.proto",
    "dra-health-v1alpha1.proto",
    "health-v1.proto",
    "pluginregistration-v1.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo::rerun-if-changed={}", folder.display());
    let files = protox::compile(PROTOS, [folder])?;
    tonic_prost_build::configure().build_client(false).compile_fds(files)?;
    Ok(())
}
