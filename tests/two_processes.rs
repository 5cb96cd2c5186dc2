//! Two processes for one node, and sockets that are taken away from one that runs.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::common;
use common::{ControlPlane, DRIVER, Lab, free_address, is_complete, prepare, unprepare};
use tokio::time::timeout;

/// Far above what the end of a process takes.
const PATIENCE: Duration = Duration::from_secs(60);

const LAST: &str = "gpu-0000-1a-00-mig-1g-10gb-6";

async fn lab() -> Lab {
    Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await
}

/// Where the kubelet finds the driver, and where it sends the work.
fn sockets(lab: &Lab) -> [PathBuf; 2] {
    [lab.path(&format!("registry/{DRIVER}@reg.sock")), lab.path(&format!("plugins/{DRIVER}/dra.sock"))]
}

/// The exit of a process that ends by itself, and what it has written.
async fn ended(process: Child) -> (bool, String) {
    let output = tokio::task::spawn_blocking(|| process.wait_with_output());
    let output = timeout(PATIENCE, output).await.expect("the process ends").unwrap().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_for_the_node_ends_and_leaves_the_first_as_it_was() {
    // Both have the same port, as two with the default settings have.
    let mut lab = lab().await.with_args(&["--http-address", &free_address().to_string()]);
    lab.start();
    let kubelet = lab.kubelet().await;
    lab.slices_when(is_complete).await;
    let claim = lab.claim_of("one", LAST).await;
    prepare(&kubelet, &claim).await.unwrap();

    let second = lab.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (is_success, text) = ended(second).await;
    assert!(!is_success);
    let named = format!("process {}", std::process::id());
    assert!(text.contains("already serves this node") && text.contains(&named), "{text}");

    assert!(sockets(&lab).iter().all(|it| it.exists()), "the sockets are still those of the first");
    unprepare(&lab.kubelet().await, &claim).await.unwrap();
    lab.delete_claim(&claim).await;
    lab.stop().await;
    // Its end is the end of the lock.
    lab.start();
    lab.kubelet().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_whose_socket_is_removed_or_replaced_ends_with_the_reason() {
    for (which, is_replaced) in [(0, false), (1, false), (0, true), (1, true)] {
        let lab = lab().await;
        let process = lab.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        lab.kubelet().await;
        let path = &sockets(&lab)[which];
        fs::remove_file(path).unwrap();
        if is_replaced {
            drop(UnixListener::bind(path).unwrap());
        }
        let (is_success, text) = ended(process).await;
        assert!(!is_success);
        let what = if is_replaced { "replaced by another file" } else { "removed" };
        assert!(text.contains(what) && text.contains(&path.display().to_string()), "{text}");
        assert_eq!(path.exists(), is_replaced, "what another process put there is not removed");
    }
}
