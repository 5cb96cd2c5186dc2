//! `dra-driver-mig check`: what the driver needs on this host and in the cluster, what is missing or turned off, and what to do.
//!
//! `gather` reads, `findings` and `runtime` decide (they are pure), and this file prints. Nothing is changed: directories
//! are only tested for write access, and the API server is queried with dry runs.

mod args;
mod facts;
mod finding;
mod findings;
mod gather;
mod runtime;

use std::io::{self, Write};

use anyhow::bail;
use kube::Client;
use mig_client::ClientError;
use serde::Serialize;
use tokio::sync::watch;
use tracing::{info, warn};

pub use args::{CheckArgs, Place};
pub use facts::{ClusterFacts, DirectoryFacts, Facts, HostFacts, Settings};
pub use finding::{Finding, Subject, Verdict};
pub use findings::findings;
pub use runtime::{CdiSetting, cdi_setting, nvidia_mode};

use crate::api;
use crate::hardware::{Hardware, NodeState};
use crate::telemetry::OutputFormat;
use crate::threads;

/// How to read the list.
const LEGEND: &str = "What dra-driver-mig needs, in the order in which a node is set up. `MISSING` has to be repaired,\n\
                      `off` was turned off, `note` is good to know, and `?` is unknown from here. `->` says what to do.\n\n";

/// Version of the form of `check -o json`. A field, id or status that is renamed, removed or changes its meaning raises it; a
/// new one does not.
pub const SCHEMA_VERSION: u32 = 1;

/// Columns of a line.
const WIDTH: usize = 100;

/// What `check -o json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    schema_version: u32,
    findings: &'a [Finding],
}

/// Prints the list. Fails if something is missing, with how much.
pub async fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let (args, output) = (args.clone(), args.output);
    let settings = Settings {
        mode: args.mode,
        state_label: args.state_label,
        mig_node: args.mig_node,
        disabled_hooks: args.place.host.disable_hooks.clone(),
    };
    let cluster = match api::client(args.kubeconfig.as_deref()).await {
        Ok(client) => {
            gather::cluster(client, args.node_name.as_deref(), &args.place.driver.driver_name).await
        }
        Err(ClientError::InCluster(_)) => {
            ClusterFacts::NotRead("this is not a pod, and no kubeconfig was given".to_owned())
        }
        Err(error) => ClusterFacts::NotRead(error.to_string()),
    };
    let Place { driver, hardware, host } = args.place;
    let found = Hardware::open(hardware.clone()).await.map_err(|it| it.to_string());
    let found = found.map(|it| it.facts.clone());
    // On its own thread: files of the kernel module may not come back.
    let host = threads::run("check", move || gather::host(&hardware, &host, &driver, found)).await?;
    let found = findings(&Facts { settings, host, cluster });
    let text = match output {
        OutputFormat::Table => format!("{LEGEND}{}", list(&found)),
        OutputFormat::Json => {
            let report = Report { schema_version: SCHEMA_VERSION, findings: &found };
            format!("{}\n", serde_json::to_string_pretty(&report)?)
        }
    };
    io::stdout().write_all(text.as_bytes())?;
    match found.iter().filter(|it| it.verdict == Verdict::Missing).count() {
        0 => Ok(()),
        1 => bail!("1 thing is missing; the list above says what to do"),
        count => bail!("{count} things are missing; the list above says what to do"),
    }
}

/// The same at the start of the driver, in its log. What NVML says is known then and not asked again, and whether the API
/// server keeps counters is reported by the publisher.
pub async fn at_start(place: Place, settings: Settings, client: Client, node: watch::Receiver<NodeState>) {
    let hardware = match &node.borrow().hardware {
        Ok(hardware) => Ok(hardware.facts.clone()),
        Err(reason) => Err(reason.clone()),
    };
    let rights = gather::rights(&client).await;
    let look = move || gather::host(&place.hardware, &place.host, &place.driver, hardware);
    let looked = threads::run("check", look).await;
    let Ok(host) = looked else { return };
    let cluster = ClusterFacts::Rights(rights);
    for finding in findings(&Facts { settings, host, cluster }) {
        let (subject, remedy) = (finding.subject.name(), finding.remedy);
        match finding.verdict {
            Verdict::Missing => warn!(subject, remedy, "missing: {}", finding.text),
            Verdict::Good | Verdict::Off | Verdict::Note | Verdict::Unknown => {
                info!(subject, remedy, "checked: {}", finding.text);
            }
        }
    }
}

/// The list as people read it, at most 100 columns wide, unless a word or a command is longer.
#[must_use]
pub fn list(findings: &[Finding]) -> String {
    let width = findings.iter().map(|it| it.subject.name().len()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { subject, verdict, text: what, remedy } in findings {
        let mark = match verdict {
            Verdict::Good => "ok     ",
            Verdict::Off => "off    ",
            Verdict::Note => "note   ",
            Verdict::Unknown => "?      ",
            Verdict::Missing => "MISSING",
        };
        let first = format!("{mark}  {:width$}  ", subject.name());
        wrap(&mut text, &first, what);
        if let Some(remedy) = remedy {
            wrap(&mut text, &format!("         {:width$}  -> ", ""), remedy);
        }
    }
    text
}

/// Appends a text in lines that begin below its first word.
fn wrap(lines: &mut String, first: &str, text: &str) {
    let indent = first.chars().count();
    let mut line = first.to_owned();
    let mut columns = indent;
    for word in words(text) {
        let length = word.chars().count();
        if columns > indent && columns + 1 + length > WIDTH {
            lines.push_str(&line);
            lines.push('\n');
            line = " ".repeat(indent);
            columns = indent;
        }
        if columns > indent {
            line.push(' ');
            columns += 1;
        }
        line.push_str(word);
        columns += length;
    }
    lines.push_str(line.trim_end());
    lines.push('\n');
}

/// Words of a text; what is between backquotes is one, so that a command can be copied.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    text.split(move |it: char| {
        is_quoted ^= it == '`';
        it.is_whitespace() && !is_quoted
    })
    .filter(|it| !it.is_empty())
}
