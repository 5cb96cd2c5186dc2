//! Jobs and CronJobs. Containers are not executed, so pods run until something sets their phase to `Succeeded` or `Failed`. A
//! CronJob runs once, at once: its schedule is not followed.

use serde_json::{Value, json};

use super::events;
use super::objects::{place, text};
use super::owned::{create_pod, delete_pod, is_active, is_leaving, owned, owner, runs, status};
use crate::api::clock;
use crate::api::kinds::{CRON_JOB, JOB, POD};
use crate::api::store::{Store, WriteOptions};

pub(super) fn reconcile(store: &Store) {
    for cron in store.list_by_age(&CRON_JOB) {
        if !is_leaving(&cron)
            && cron["spec"]["suspend"] != true
            && cron["status"]["lastScheduleTime"].is_null()
        {
            start(store, &cron);
        }
    }
    for job in store.list_by_age(&JOB) {
        if !is_leaving(&job) {
            work(store, &job);
        }
    }
}

/// Makes the one Job of a CronJob.
fn start(store: &Store, cron: &Value) {
    let (namespace, name) = place(cron);
    let template = &cron["spec"]["jobTemplate"];
    let mut metadata = template["metadata"].clone();
    metadata["name"] = format!("{name}-1").into();
    metadata["namespace"] = namespace.into();
    metadata["ownerReferences"] = owner(cron);
    let job = json!({"metadata": metadata, "spec": template["spec"]});
    match store.create(&JOB, namespace, job, &WriteOptions::default()) {
        Ok(_) => status(store, &CRON_JOB, cron, json!({"lastScheduleTime": clock::now()})),
        Err(error) => {
            let message = format!("Error creating job: {error}");
            events::record_once(store, cron, "Warning", "FailedCreate", &message, "cronjob-controller");
        }
    }
}

fn work(store: &Store, job: &Value) {
    let spec = &job["spec"];
    let number = |field: &str| spec[field].as_u64().and_then(|n| usize::try_from(n).ok());
    let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ended = conditions.iter().any(|c| matches!(text(c, "type"), "Complete" | "Failed"));
    let pods = owned(store, &POD, job);
    let phase = |phase: &str| pods.iter().filter(|pod| text(&pod["status"], "phase") == phase).count();
    let (succeeded, failed) = (phase("Succeeded"), phase("Failed"));
    let active: Vec<_> = pods.iter().filter(|pod| is_active(pod)).collect();
    let completions = number("completions");
    let has_failed = failed > number("backoffLimit").unwrap_or(6);
    let has_completed = match completions {
        Some(completions) => succeeded >= completions,
        None => succeeded > 0 && active.is_empty(),
    };
    let parallelism = number("parallelism").unwrap_or(1);
    let wanted = match completions {
        _ if ended || has_failed || has_completed || spec["suspend"] == true => 0,
        Some(completions) => parallelism.min(completions.saturating_sub(succeeded)),
        // Of a queue, no pod is replaced once one has succeeded.
        None if succeeded > 0 => active.len(),
        None => parallelism,
    };
    let name = place(job).1;
    let labels = json!({"job-name": name, "batch.kubernetes.io/job-name": name});
    let metadata = json!({"generateName": format!("{name}-"), "labels": labels});
    for _ in active.len()..wanted {
        if !create_pod(store, job, &spec["template"], &metadata) {
            break;
        }
    }
    active.iter().skip(wanted).for_each(|pod| delete_pod(store, pod));
    let ready = active.iter().filter(|pod| runs(pod)).count();
    let mut report =
        json!({"active": active.len(), "ready": ready, "succeeded": succeeded, "failed": failed});
    if !ended && (has_failed || has_completed) {
        let condition = if has_failed { "Failed" } else { "Complete" };
        let now = clock::now();
        report["conditions"] = json!([{"type": condition, "status": "True", "lastTransitionTime": now}]);
        report["completionTime"] = if has_failed { Value::Null } else { now.into() };
    }
    status(store, &JOB, job, report);
}
