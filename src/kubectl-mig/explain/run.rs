//! The command: reads objects, asks, prints.

use std::io::{self, Write};

use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;
use mig_model::drivers;

use super::args::{ExplainArgs, Output};
use super::explanation::{Explanation, SCHEMA_VERSION, Verdict};
use super::subject::Subject;
use super::{explain, text};
use crate::cluster::{self, ClusterError, Connection, Kinds, Snapshot, Unread, error_text, pages};
use crate::manifest::{self, Demand, DemandError, ManifestError, Object};
use crate::plan::shipped_classes;
use crate::text::printable_lines;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum ExplainError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Demand(#[from] DemandError),
    #[error("cannot explain `{0}`: name pod/NAME or claim/NAME")]
    Subject(String),
    #[error("nothing in the files asks for devices: they have no pod, workload or ResourceClaim")]
    NothingAsked,
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
    #[error("cannot write the result: {0}")]
    Write(#[source] io::Error),
    #[error("cannot write the result as JSON: {0}")]
    Json(#[source] serde_json::Error),
}

/// Runs `explain` and returns its exit status: 0 has or will get its devices, 1 not now, 2 never as things are, 3 cannot tell.
#[must_use]
pub fn run(args: &ExplainArgs) -> u8 {
    match answer(args) {
        Ok(status) => status,
        Err(error) => {
            // A closed standard error cannot be reported.
            let _ = writeln!(io::stderr(), "kubectl mig explain: {}", printable_lines(&error.to_string()));
            Verdict::Unknown.exit_status()
        }
    }
}

fn answer(args: &ExplainArgs) -> Result<u8, ExplainError> {
    let named = args.cluster.namespace.as_deref();
    let mut assumed = Vec::new();
    let (mut snapshot, namespace) = if args.from.is_empty() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(ExplainError::Runtime)?.block_on(gather(args))?
    } else {
        let mut snapshot: Snapshot = manifest::read(&args.from, args.recursive)?.into_iter().collect();
        assume_classes(&mut snapshot, &mut assumed);
        (snapshot, named.unwrap_or("default").to_owned())
    };
    if args.filename.is_empty() {
        let subject = subject(&args.subject, &namespace)?;
        let mut explanation = explain(&snapshot, &subject);
        explanation.assumptions.append(&mut assumed);
        print(args.output, std::slice::from_ref(&explanation), true)?;
        return Ok(explanation.verdict.exit_status());
    }
    let mut explanations = planned(args, &mut snapshot, &namespace)?;
    for explanation in &mut explanations {
        explanation.assumptions.extend(assumed.iter().cloned());
    }
    print(args.output, &explanations, false)?;
    Ok(explanations.iter().map(|it| it.verdict.exit_status()).max().unwrap_or(0))
}

/// A dump without DeviceClasses says nothing about them: the drivers' own are the best guess.
fn assume_classes(snapshot: &mut Snapshot, assumed: &mut Vec<String>) {
    if snapshot.classes.is_empty() {
        snapshot.classes = shipped_classes(snapshot.slices.drivers().contains(&drivers::NVIDIA));
        assumed.push("the DeviceClasses are those that the drivers install: the files have none".to_owned());
    }
}

/// The pods and claims of manifests, one after the other: each finds what the ones before it leave.
fn planned(
    args: &ExplainArgs,
    snapshot: &mut Snapshot,
    namespace: &str,
) -> Result<Vec<Explanation>, ExplainError> {
    let mut objects = manifest::read(&args.filename, args.recursive)?;
    let mut subjects = Vec::new();
    for object in &objects {
        if let Some(demand) = Demand::of(object, namespace)?
            && (demand.replicas > 0 || demand.per_node)
        {
            subjects.push((
                Subject::Planned { owner: demand.owner.clone(), pod: Box::new(demand.pod(0)) },
                demand.replicas,
            ));
        }
    }
    let names = |subject: &Subject, claim: &str| match subject {
        Subject::Planned { pod, .. } => pod
            .spec
            .iter()
            .flat_map(|it| it.resource_claims.iter().flatten())
            .any(|it| it.resource_claim_name.as_deref() == Some(claim)),
        _ => false,
    };
    for object in &mut objects {
        if let Object::ResourceClaim(claim) = object {
            let namespace = claim.metadata.namespace.get_or_insert_with(|| namespace.to_owned()).clone();
            let name = claim.metadata.name.clone().unwrap_or_default();
            if !subjects.iter().any(|(it, _)| names(it, &name)) {
                subjects.push((Subject::Claim { namespace, name }, 1));
            }
        }
        if let Object::ResourceClaimTemplate(template) = object {
            template.metadata.namespace.get_or_insert_with(|| namespace.to_owned());
        }
    }
    if subjects.is_empty() {
        return Err(ExplainError::NothingAsked);
    }
    manifest::apply(snapshot, objects);
    let mut explanations = Vec::new();
    for (subject, replicas) in subjects {
        let mut explanation = explain(snapshot, &subject);
        if replicas > 1 {
            explanation.assumptions.push(format!(
                "one of {replicas} replicas is explained; kubectl mig plan -f {} places all of them",
                args.filename.join(" -f ")
            ));
        }
        take(snapshot, &explanation.allocated);
        explanations.push(explanation);
    }
    Ok(explanations)
}

/// Enters claims that are allocated.
fn take(snapshot: &mut Snapshot, allocated: &[ResourceClaim]) {
    for claim in allocated {
        let same = |it: &&mut ResourceClaim| {
            it.metadata.name == claim.metadata.name && it.metadata.namespace == claim.metadata.namespace
        };
        match snapshot.claims.iter_mut().find(same) {
            Some(known) => known.status.clone_from(&claim.status),
            None => snapshot.claims.push(claim.clone()),
        }
    }
}

/// `pod/NAME`, `claim/NAME`, `pod NAME`, or `NAME`.
fn subject(words: &[String], namespace: &str) -> Result<Subject, ExplainError> {
    let unknown = || ExplainError::Subject(words.join(" "));
    let (kind, name) = match words {
        [word] => word.split_once('/').unwrap_or(("pod", word)),
        [kind, name] => (kind.as_str(), name.as_str()),
        _ => return Err(unknown()),
    };
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    match kind.to_lowercase().as_str() {
        _ if name.is_empty() || name.contains('/') => Err(unknown()),
        "pod" | "pods" | "po" => Ok(Subject::Pod { namespace, name }),
        "claim" | "claims" | "resourceclaim" | "resourceclaims" | "resourceclaims.resource.k8s.io" => {
            Ok(Subject::Claim { namespace, name })
        }
        _ => Err(unknown()),
    }
}

/// Reads what the answer needs: everything about devices, and of pods those that the question is about.
async fn gather(args: &ExplainArgs) -> Result<(Snapshot, String), ExplainError> {
    let connection = Connection::open(&args.cluster).await?;
    let kinds =
        Kinds { pods: false, nodes: true, templates: true, quotas: true, mig_nodes: true, attributes: true };
    let mut snapshot = cluster::read(&connection, kinds).await?;
    let namespace = connection.namespace.clone();
    let mut about = vec!["involvedObject.kind=Node".to_owned()];
    if args.filename.is_empty() {
        match subject(&args.subject, &namespace)? {
            Subject::Pod { name, .. } => {
                let pods: Api<Pod> = Api::namespaced(connection.client.clone(), &namespace);
                match pods.get_opt(&name).await {
                    Ok(pod) => snapshot.pods.extend(pod),
                    Err(error) => snapshot.unread.push(Unread { resource: "pods", why: error_text(&error) }),
                }
                about.push(format!(
                    "involvedObject.kind=Pod,involvedObject.name={name},involvedObject.namespace={namespace}"
                ));
            }
            // Pods that use the claim.
            _ => pods_of(&connection, &namespace, &mut snapshot).await,
        }
    }
    for fields in about {
        events(&connection, &fields, &mut snapshot).await;
    }
    Ok((snapshot, namespace))
}

/// Pods that have claims.
async fn pods_of(connection: &Connection, namespace: &str, snapshot: &mut Snapshot) {
    let pods: Api<Pod> = Api::namespaced(connection.client.clone(), namespace);
    let with_claims = |pod: &Pod| pod.spec.as_ref().is_some_and(|it| it.resource_claims.is_some());
    let all = &mut snapshot.pods;
    let read = pages("pods", pods, ListParams::default(), |pod| {
        if with_claims(&pod) {
            all.push(pod);
        }
    });
    let read = read.await;
    snapshot.unread.extend(read.err());
}

/// Events are a help: without them fewer reasons are known.
async fn events(connection: &Connection, fields: &str, snapshot: &mut Snapshot) {
    let (api, params) = (Api::all(connection.client.clone()), ListParams::default().fields(fields));
    let read = pages("events", api, params, |it: Event| snapshot.events.push(it)).await;
    snapshot.unread.extend(read.err());
}

fn print(output: Output, explanations: &[Explanation], is_single: bool) -> Result<(), ExplainError> {
    let text = match output {
        Output::Text => {
            let now = Some(Timestamp::now());
            explanations.iter().map(|it| text::text(it, now)).collect::<Vec<_>>().join("\n")
        }
        Output::Json => {
            let json = match explanations {
                [one] if is_single => serde_json::to_string_pretty(one),
                all => serde_json::to_string_pretty(
                    &serde_json::json!({"schemaVersion": SCHEMA_VERSION, "explanations": all}),
                ),
            };
            json.map_err(ExplainError::Json)? + "\n"
        }
    };
    io::stdout().write_all(text.as_bytes()).map_err(ExplainError::Write)
}
