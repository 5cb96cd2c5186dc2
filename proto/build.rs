//! Compiles the kubelet's protocols, and that of health checks, with protox, so that building needs no protoc; and has the driver
//! linked so that it is small.

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
    // A program that may be loaded anywhere (PIE) has an entry of 24 bytes for each pointer in its data: 1 MB that is read at each
    // start and stays resident. Packed as DT_RELR they take a tenth. glibc knows that since 2.36, which the image brings; linkers
    // that do not know it warn and go on.
    println!("cargo::rustc-link-arg-bin=dra-driver-mig=-Wl,-z,pack-relative-relocs");
    Ok(())
}
