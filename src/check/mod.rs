//! `dra-driver-mig check`: what the driver needs on this host and in the cluster, what of it is missing, and what to do.
//!
//! `gather` looks, `findings` and `runtime` decide (they are pure), and this file prints. Nothing is changed: directories
//! are asked whether they could be written, and the API server is asked with dry runs.

mod findings;
mod gather;
mod runtime;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::thread;

use anyhow::bail;
use kube::Client;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

pub use findings::{ClusterFacts, DirectoryFacts, Facts, Finding, HostFacts, Verdict, findings};
pub use runtime::{CdiSetting, cdi_setting, nvidia_mode};

use crate::api::{self, ClientError};
use crate::args::{CheckArgs, NodeArgs};
use crate::hardware::{Hardware, NodeState};

/// How to read the list.
const LEGEND: &str = "What dra-driver-mig needs, in the order in which a node is set up. `MISSING` is to be mended, and `->` says how;\n\
                      `?` cannot be told from here or is good to know.\n\n";

/// Prints the list. Fails if something is missing, with how much.
pub async fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let args = args.clone();
    let cluster = match api::client(args.kubeconfig.as_deref()).await {
        Ok(client) => gather::cluster(client, args.node_name.as_deref(), &args.driver.driver_name).await,
        Err(ClientError::InCluster(_)) => {
            ClusterFacts::Unasked("this is not a pod, and no kubeconfig was given".to_owned())
        }
        Err(error) => ClusterFacts::Unasked(error.to_string()),
    };
    let hardware = Hardware::open(args.hardware.clone()).await.map_err(|it| it.to_string());
    let hardware = hardware.map(|it| it.facts.clone());
    let host = on_thread(move || gather::host(&args.hardware, &args.host, &args.driver, hardware)).await?;
    let found = findings(&Facts { host, cluster });
    io::stdout().write_all(format!("{LEGEND}{}", list(&found)).as_bytes())?;
    match found.iter().filter(|it| it.verdict == Verdict::Missing).count() {
        0 => Ok(()),
        1 => bail!("1 thing is missing; the list above says what to do"),
        count => bail!("{count} things are missing; the list above says what to do"),
    }
}

/// The same at the start of the driver, in its log. What NVML says is known then and not asked again, and whether the API
/// server keeps counters is told by the publisher.
pub async fn at_start(args: NodeArgs, client: Client, node: watch::Receiver<NodeState>) {
    let hardware = match &node.borrow().hardware {
        Ok(hardware) => Ok(hardware.facts.clone()),
        Err(reason) => Err(reason.clone()),
    };
    let rights = gather::rights(&client).await;
    let looked = on_thread(move || gather::host(&args.hardware, &args.host, &args.driver, hardware)).await;
    let Ok(host) = looked else { return };
    let cluster = ClusterFacts::Rights(rights);
    for finding in findings(&Facts { host, cluster }) {
        let (subject, remedy) = (finding.subject, finding.remedy);
        match finding.verdict {
            Verdict::Good | Verdict::Open => info!(subject, remedy, "checked: {}", finding.text),
            Verdict::Missing => warn!(subject, remedy, "missing: {}", finding.text),
        }
    }
}

/// Runs work on a thread of its own: files of the kernel module may not come back.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    let (send, ended) = oneshot::channel();
    thread::Builder::new().name("check".to_owned()).spawn(move || {
        // Nobody waits any more once the driver ends.
        let _ = send.send(work());
    })?;
    Ok(ended.await?)
}

/// The list as people read it.
#[must_use]
pub fn list(findings: &[Finding]) -> String {
    let width = findings.iter().map(|it| it.subject.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { subject, verdict, text: what, remedy } in findings {
        let mark = match verdict {
            Verdict::Good => "ok     ",
            Verdict::Missing => "MISSING",
            Verdict::Open => "?      ",
        };
        // Writing to a String does not fail.
        let _ = writeln!(text, "{mark}  {subject:width$}  {what}");
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "         {:width$}  -> {remedy}", "");
        }
    }
    text
}
