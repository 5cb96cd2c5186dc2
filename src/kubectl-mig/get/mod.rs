//! `kubectl mig get`: nodes, GPUs and claims as the API server describes them.
//!
//! ```text
//! cluster or files -> Snapshot -> fleet (report) -> view (tables) or JSON -> standard output
//! ```
//!
//! Everything between reading and writing is pure.

mod args;
mod claims;
mod fleet;
mod gpus;
mod profile;
mod report;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod view;
mod watch;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;

use k8s_openapi::jiff::Timestamp;

pub use self::args::{Format, GetArgs, What};
pub use self::fleet::fleet;
pub use self::report::{
    ClaimRow, DeviceRow, Document, Fleet, Free, GpuRow, Holder, Layout, NodeRow, Part, Problem, Reason,
    RequestRow, SCHEMA_VERSION, State, UnreadRow,
};
pub use self::view::Style;
use crate::cluster::{ClusterError, Connection, Kinds, SliceError, Snapshot, read};
use crate::manifest::{self, ManifestError};

/// Exit status: something is listed.
const LISTED: u8 = 0;
/// Exit status: there is nothing to list, or not all that was named.
const NOTHING: u8 = 1;
/// Exit status: the cluster or the files cannot be read.
const FAILED: u8 = 2;

/// Why nothing can be listed.
#[derive(Debug, thiserror::Error)]
enum GetError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Files(#[from] ManifestError),
    #[error("{0}; report this as a defect of kubectl-mig")]
    Slice(#[from] SliceError),
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
}

/// Runs `get` for the command line, and answers the exit status.
#[must_use]
pub fn run(args: &GetArgs) -> u8 {
    match run_to_end(args) {
        Ok(status) => status,
        // Who reads no more, wants no more: `kubectl mig get | head`.
        Err(GetError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => LISTED,
        Err(error) => {
            complain(&error.to_string());
            FAILED
        }
    }
}

fn run_to_end(args: &GetArgs) -> Result<u8, GetError> {
    if !args.from.is_empty() {
        let snapshot: Snapshot = manifest::read(&args.from, false)?.into_iter().collect();
        return print(&snapshot, args, args.cluster.namespace.as_deref());
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(GetError::Runtime)?;
    runtime.block_on(async {
        let connection = Connection::open(&args.cluster).await?;
        let namespace = Some(connection.namespace.as_str()).filter(|_| !args.all_namespaces);
        if !args.watch {
            let snapshot = read(&connection, Kinds { nodes: true, ..Kinds::default() }).await?;
            return print(&snapshot, args, namespace);
        }
        let mut last = None;
        let shown =
            watch::follow(&connection, |snapshot| match again(snapshot, args, namespace, &mut last) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => ControlFlow::Break(error),
            });
        Err(shown.await?)
    })
}

/// What is printed, and what is said beside it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    output: String,
    remarks: Vec<String>,
    status: u8,
}

fn print(snapshot: &Snapshot, args: &GetArgs, namespace: Option<&str>) -> Result<u8, GetError> {
    let answer = answer(snapshot, args, namespace, &style(args))?;
    let mut out = io::stdout().lock();
    out.write_all(answer.output.as_bytes()).and_then(|()| out.flush()).map_err(GetError::Output)?;
    answer.remarks.iter().for_each(|it| complain(it));
    Ok(answer.status)
}

/// Prints again what differs from the last time.
fn again(
    snapshot: &Snapshot,
    args: &GetArgs,
    namespace: Option<&str>,
    last: &mut Option<Answer>,
) -> Result<(), GetError> {
    let answer = answer(snapshot, args, namespace, &style(args))?;
    if last.as_ref() == Some(&answer) {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    let mut text = String::new();
    if args.output != Format::Json {
        match (out.is_terminal(), &last) {
            (true, _) => text.push_str("\x1b[H\x1b[2J"),
            (false, Some(_)) => text.push('\n'),
            (false, None) => {}
        }
    }
    text.push_str(&answer.output);
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(GetError::Output)?;
    drop(out);
    answer.remarks.iter().for_each(|it| complain(it));
    *last = Some(answer);
    Ok(())
}

fn style(args: &GetArgs) -> Style {
    let variable = |name: &str| std::env::var(name).ok();
    Style {
        is_wide: args.output == Format::Wide,
        is_colored: text::wants_color(io::stdout().is_terminal(), variable),
        now: Timestamp::now(),
    }
}

/// A closed standard error cannot be reported.
fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "kubectl mig get: {}", text::printable(text));
}

/// `namespace` limits claims.
fn answer(
    snapshot: &Snapshot,
    args: &GetArgs,
    namespace: Option<&str>,
    style: &Style,
) -> Result<Answer, SliceError> {
    let mut fleet = fleet(snapshot)?;
    let mut remarks: Vec<String> = fleet.unread.iter().map(unread).collect();
    let missing = select(&mut fleet, args, namespace);
    let is_empty = match args.what {
        What::Nodes => fleet.nodes.is_empty(),
        What::Gpus => fleet.gpus.is_empty(),
        What::Claims => fleet.claims.is_empty(),
    };
    if missing.is_empty() && is_empty {
        remarks.push(nothing(&fleet, args, namespace));
    }
    let kind = if args.what == What::Claims { "claim" } else { "node with GPUs" };
    remarks.extend(missing.iter().map(|it| format!("there is no {kind} `{it}`{}", list_hint(args))));
    let status = if is_empty || !missing.is_empty() { NOTHING } else { LISTED };
    let output = match (args.output, args.what) {
        (Format::Json, what) => document(&fleet, what, args.watch),
        _ if is_empty => String::new(),
        (_, what) => table(&fleet, what, style),
    };
    Ok(Answer { output, remarks, status })
}

fn list_hint(args: &GetArgs) -> &'static str {
    match args.what {
        What::Claims => "; `kubectl mig get claims -A` lists all",
        What::Nodes | What::Gpus => "; `kubectl mig get nodes` lists all",
    }
}

/// Leaves out what was not asked for, and answers which names there are not.
fn select(fleet: &mut Fleet, args: &GetArgs, namespace: Option<&str>) -> Vec<String> {
    fleet.claims.retain(|it| namespace.is_none_or(|namespace| it.namespace == namespace));
    let names: BTreeSet<&str> = args.names.iter().map(String::as_str).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let is_named = |name: &String| names.contains(name.as_str());
    let known: BTreeSet<String> = match args.what {
        What::Claims => {
            fleet.claims.retain(|it| is_named(&it.name));
            fleet.claims.iter().map(|it| it.name.clone()).collect()
        }
        What::Nodes | What::Gpus => {
            fleet.nodes.retain(|it| is_named(&it.name));
            fleet.gpus.retain(|it| is_named(&it.node));
            fleet.nodes.iter().map(|it| it.name.clone()).collect()
        }
    };
    args.names.iter().filter(|it| !known.contains(*it)).cloned().collect()
}

fn unread(unread: &UnreadRow) -> String {
    let UnreadRow { resource, message } = unread;
    format!("cannot list {resource}, so what depends on them is missing: {message}")
}

/// Why there is nothing to list, and what to do.
fn nothing(fleet: &Fleet, args: &GetArgs, namespace: Option<&str>) -> String {
    let place = if args.from.is_empty() { "the cluster has" } else { "the files have" };
    if fleet.drivers.is_empty() {
        let what_to_do = if args.from.is_empty() {
            "no DRA driver runs, or its pods are not ready: `kubectl get pods -A -o wide` shows them, and docs/install.md \
             how to install this project's"
        } else {
            "`kubectl get \
             resourceslices,deviceclasses,resourceclaims,resourceclaimtemplates,pods,nodes,resourcequotas,events -A -o json` prints what is needed"
        };
        return format!("{place} no ResourceSlices: {what_to_do}");
    }
    if args.what == What::Claims {
        let scope = namespace.map(|it| format!(" in namespace {it}")).unwrap_or_default();
        let all = if namespace.is_some() && args.from.is_empty() { "; -A lists all namespaces" } else { "" };
        return format!("no claim{scope} holds a GPU or a part of one, or waits for a device{all}");
    }
    if fleet.nodes.is_empty() {
        let drivers = fleet.drivers.join(", ");
        return format!(
            "{place} ResourceSlices of {drivers}, and none describes a GPU: look at the pods of the GPU driver \
             (`kubectl get pods -A -o wide`)"
        );
    }
    "the GPU drivers publish no GPU: `kubectl mig get nodes` shows on which nodes, and the log of the driver's pod why".to_owned()
}

/// The table of `get`.
#[must_use]
pub fn table(fleet: &Fleet, what: What, style: &Style) -> String {
    match what {
        What::Nodes => view::nodes(fleet, style),
        What::Gpus => view::gpus(fleet, style),
        What::Claims => view::claims(fleet, style),
    }
}

/// The JSON of `get`: one line each with `-w`, so that a program can tell where a document ends.
#[must_use]
pub fn document(fleet: &Fleet, what: What, is_one_line: bool) -> String {
    let document = Document {
        schema_version: SCHEMA_VERSION,
        nodes: Some(fleet.nodes.as_slice()).filter(|_| what == What::Nodes),
        gpus: Some(fleet.gpus.as_slice()).filter(|_| what == What::Gpus),
        claims: Some(fleet.claims.as_slice()).filter(|_| what == What::Claims),
        unread: &fleet.unread,
    };
    let text =
        if is_one_line { serde_json::to_string(&document) } else { serde_json::to_string_pretty(&document) };
    // Keys are texts, and numbers are finite.
    text.map(|it| it + "\n").unwrap_or_default()
}
