//! Keeping the sandbox running for others.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube_sim::kinds::POD;
use tokio::time::sleep;

use crate::cluster::Cluster;
use crate::report;
use crate::why::why_pending;

/// Keeps the cluster up until Ctrl-C. Draws the map whenever it has changed, and says of pods that do not fit why.
pub(crate) async fn serve(cluster: &Cluster) -> anyhow::Result<()> {
    println!("serving on {}; Ctrl-C ends it. In another terminal:\n{}", cluster.server.url(), lines(cluster));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let (mut last, mut seen) = (state(cluster)?, 0);
    loop {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            _ = terminate.recv() => return Ok(()),
            () = sleep(Duration::from_millis(500)) => {}
        }
        cluster.driver_runs()?;
        let revision = cluster.server.store().revision();
        if revision == seen {
            continue;
        }
        seen = revision;
        let state = state(cluster)?;
        if state != last {
            println!("{state}");
            last = state;
        }
    }
}

/// The map, and the pods that wait.
fn state(cluster: &Cluster) -> anyhow::Result<String> {
    let mut state = report::picture(cluster)?;
    if !cluster.is_settled() {
        return Ok(state);
    }
    for pod in cluster.server.list(&POD).iter().filter(|pod| report::is_refused(pod)) {
        let name = pod["metadata"]["name"].as_str().unwrap_or("");
        state.push_str(&format!(
            "\npod {name} is pending\n{}",
            report::indented(&why_pending(&cluster.server, pod))
        ));
    }
    Ok(state)
}

/// Commands that work as they stand.
fn lines(cluster: &Cluster) -> String {
    let repository = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let repository = repository.canonicalize().unwrap_or_else(|_| repository.to_owned());
    let example = repository.join("examples/single-instance");
    let (inspect, mig) = (program(&repository, "dra-driver-mig"), program(&repository, "kubectl-mig"));
    let flags = cluster.inspect_flags().join(" ");
    format!(
        "  export KUBECONFIG={}\n  kubectl get resourceslices\n  kubectl apply -f {}\n  kubectl get pods,resourceclaims\n  \
         {mig} explain pod/single-instance\n  {inspect} inspect {flags}\n",
        cluster.kubeconfig.display(),
        example.display(),
    )
}

/// How to start a program of this repository: as it was built beside this one, else through cargo.
fn program(repository: &Path, name: &str) -> String {
    let beside: Option<PathBuf> = std::env::current_exe().ok().map(|it| it.with_file_name(name));
    match beside.filter(|it| it.is_file()) {
        Some(path) => path.display().to_string(),
        None => {
            format!("cargo run -q --manifest-path {} -p {name} --", repository.join("Cargo.toml").display())
        }
    }
}
