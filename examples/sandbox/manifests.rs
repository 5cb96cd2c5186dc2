//! What the manifests ask for: all of it is read and checked before anything starts.

use std::path::PathBuf;

use kube_sim::api::error::ApiError;
use kube_sim::api::quota::is_enforced;
use kube_sim::api::store::{Store, WriteOptions};
use kube_sim::kinds::{self, KindRef};
use kube_sim::manifest::{self, Document, Mistake};
use serde_json::Value;

use crate::operators;

/// Kinds that are stored and have no effect.
pub(crate) const WITHOUT_EFFECT: [&str; 5] =
    ["ConfigMap", "PersistentVolumeClaim", "Secret", "Service", "ServiceAccount"];

/// Kinds that controllers create, not users.
const MADE_BY_OTHERS: [&str; 3] = ["Event", "Node", "ResourceSlice"];

/// Kinds that manifests may have. The sandbox defines MigNode itself, and the driver creates the object.
fn taken() -> impl Iterator<Item = KindRef> {
    let is_taken = |it: &KindRef| **it != kinds::CUSTOM_RESOURCE_DEFINITION && it.definition().is_none();
    kinds::ALL.iter().copied().filter(is_taken)
}

/// Kinds that are played.
pub(crate) fn played() -> Vec<&'static str> {
    let unplayed = |kind: &&str| !WITHOUT_EFFECT.contains(kind) && !MADE_BY_OTHERS.contains(kind);
    let mut names: Vec<&str> = taken().map(|it| it.kind).filter(unplayed).collect();
    names.sort_unstable();
    names
}

/// What is to be created.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The objects, in order.
    pub(crate) documents: Vec<Document>,
    /// What is skipped or has no effect, a line each.
    pub(crate) notes: Vec<String>,
}

/// Reads all manifests and tries them on an empty cluster of their own.
///
/// # Errors
/// When a file cannot be read; the mistakes are in the answer.
pub(crate) fn read(sources: &[PathBuf], scratch: &Store) -> anyhow::Result<Result<Plan, Vec<Mistake>>> {
    let (mut plan, mut mistakes) = (Plan::default(), Vec::new());
    for source in sources {
        let (documents, wrong) = manifest::read(source)?;
        mistakes.extend(wrong);
        for document in documents {
            if let Some(pods) = operators::pods(&document) {
                let owner = title(&document.object);
                plan.notes.push(format!(
                    "{owner}: played as {} pods, its controller does not run here",
                    pods.len()
                ));
                for pod in pods {
                    let error =
                        create(scratch, &kinds::POD, &pod.object).err().filter(|it| !is_beyond_quota(it));
                    let why = error.map(|it| format!("{owner}, as {}: {it}", title(&pod.object)));
                    mistakes.extend(why.map(|it| document.mistake(Some("kind"), it)));
                    plan.documents.push(pod);
                }
                continue;
            }
            match served(&document) {
                Ok(Some(kind)) => {
                    mistakes.extend(
                        create(scratch, kind, &document.object).err().and_then(|e| mistake(&document, &e)),
                    );
                    plan.notes.extend(notes(&document.object));
                    plan.documents.push(document);
                }
                Ok(None) => plan.notes.push(format!("skipped {}: no effect here", title(&document.object))),
                Err(mistake) => mistakes.push(mistake),
            }
        }
    }
    mistakes.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    Ok(if mistakes.is_empty() { Ok(plan) } else { Err(mistakes) })
}

/// Creates an object, or replaces the one of that name as `kubectl apply` would.
///
/// # Errors
/// As the server answers.
pub(crate) fn create(store: &Store, kind: KindRef, object: &Value) -> Result<(), ApiError> {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    let options = WriteOptions { strict: true, ..WriteOptions::default() };
    match store.create(kind, namespace, object.clone(), &options) {
        Err(error) if error.reason == "AlreadyExists" => {
            let name = object["metadata"]["name"].as_str().unwrap_or("");
            let part = kube_sim::Part::Main;
            store.update(kind, namespace, name, object.clone(), part, &options).map(drop)
        }
        answer => answer.map(drop),
    }
}

/// Whether a quota refused an object, which is no mistake in the manifest.
pub(crate) fn is_beyond_quota(error: &ApiError) -> bool {
    error.code == 403 && error.message.contains("exceeded quota")
}

fn mistake(document: &Document, error: &ApiError) -> Option<Mistake> {
    if is_beyond_quota(error) {
        return None;
    }
    let mut why = format!("{}: {error}", title(&document.object));
    if error.code == 404 {
        why.push_str("; put a document of kind Namespace before this one");
    }
    Some(document.mistake(error.place(), why))
}

/// Kind and name.
pub(crate) fn title(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let name = &object["metadata"]["name"];
    let name = if name.is_null() { &object["metadata"]["generateName"] } else { name };
    format!("{} {}", text(&object["kind"]), text(name))
}

/// The kind of a document as it is served, `None` where it can be skipped.
fn served(document: &Document) -> Result<Option<KindRef>, Mistake> {
    let object = &document.object;
    let (version, name) =
        (object["apiVersion"].as_str().unwrap_or(""), object["kind"].as_str().unwrap_or(""));
    if let Some(kind) = taken().find(|it| it.kind == name && it.api_version() == version) {
        return Ok(Some(kind));
    }
    if version.is_empty() {
        return Err(document.mistake(Some("kind"), format!("{}: apiVersion is missing", title(object))));
    }
    let refuse = |why: String| Err(document.mistake(Some("apiVersion"), format!("{}: {why}", title(object))));
    if let Some(kind) = taken().find(|it| it.kind == name && it.group != "events.k8s.io") {
        return refuse(format!("the apiVersion is {version}; write {}", kind.api_version()));
    }
    if version.starts_with("resource.k8s.io/") {
        return refuse(format!("{version} has no kind {name} that can be played here"));
    }
    if runs_pods(object) {
        let kinds = played().join(", ");
        return refuse(format!(
            "{name} of {version} runs pods, and cannot be played here; kinds that can: {kinds}"
        ));
    }
    Ok(None)
}

/// Whether an object of an unknown kind contains a pod template.
fn runs_pods(value: &Value) -> bool {
    match value {
        Value::Object(map) => {
            map.get("containers").is_some_and(Value::is_array) || map.values().any(runs_pods)
        }
        Value::Array(list) => list.iter().any(runs_pods),
        _ => false,
    }
}

/// What of an object that is created has no effect.
fn notes(object: &Value) -> Vec<String> {
    let title = title(object);
    let mut notes = Vec::new();
    match object["kind"].as_str().unwrap_or("") {
        kind if WITHOUT_EFFECT.contains(&kind) => notes.push(format!("{title}: stored, no effect here")),
        "ResourceQuota" => {
            let hard = object["spec"]["hard"].as_object().cloned().unwrap_or_default();
            let others: Vec<&str> = hard.keys().map(String::as_str).filter(|it| !is_enforced(it)).collect();
            if !others.is_empty() {
                notes.push(format!("{title}: does not limit {} here", others.join(", ")));
            }
        }
        "CronJob" => notes.push(format!("{title}: runs once, at once")),
        _ => {}
    }
    let pod = match object["kind"].as_str() {
        Some("Pod") => &object["spec"],
        Some("CronJob") => &object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
        _ => &object["spec"]["template"]["spec"],
    };
    let required = &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    for (field, value) in [("nodeSelector", &pod["nodeSelector"]), ("nodeAffinity", required)] {
        if !value.is_null() {
            notes.push(format!("{title}: {field} has no effect here, there is one node"));
        }
    }
    notes
}
