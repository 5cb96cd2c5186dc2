//! Proof by a client that this project did not write: NVIDIA's nvidia-ml-py.

use std::process::Command;

use nvml_sim::{SimNode, parse_gpus};

#[test]
#[allow(clippy::print_stderr, reason = "a skipped proof must say so")]
fn nvidia_ml_py_partitions_a_simulated_gpu() {
    let python = std::env::var("NVML_SIM_PYTHON").unwrap_or_else(|_| "python3".into());
    let importable = Command::new(&python).args(["-c", "import pynvml"]).output();
    if !importable.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "skipped: {python} cannot import pynvml. Run: pip install nvidia-ml-py (or set NVML_SIM_PYTHON)"
        );
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let node = SimNode::create(&root.path().join("node"), &parse_gpus("H100-80GB,L4").unwrap()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nvidia_ml_py.py");
    let output = Command::new(&python).arg(script).arg(node.library()).output().unwrap();
    let printed =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && printed.ends_with("ok\n"), "{printed}");
    assert!(node.snapshot().unwrap().gpus[0].gpu_instances.is_empty());
}
