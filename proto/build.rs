//! Compiles the kubelet's protocols, and that of health checks, with protox, so that building needs no protoc; and has the driver
//! linked so that it is small.

use std::error::Error;
use std::path::Path;
use std::process::Command;

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
    if has_packed_relocations() {
        println!("cargo::rustc-link-arg-bin=dra-driver-mig=-Wl,-z,pack-relative-relocs");
    }
    Ok(())
}

/// Whether the loader of programs knows DT_RELR: glibc since 2.36. A program that may be loaded anywhere (PIE) has an entry of 24 bytes
/// for each pointer in its data: 1 MB that is read at each start and stays resident. Packed as DT_RELR they take a tenth. A program
/// needs the glibc of the machine that built it, or a newer one, in any case. Linkers that do not know the option warn and go on.
fn has_packed_relocations() -> bool {
    let is_gnu = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|it| it == "gnu");
    let version = || {
        let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    is_gnu && version().is_some_and(|it| (2, 36) <= it)
}
