//! The tables that `kubectl get` prints.

use serde_json::{Value, json};

use super::clock;
use super::kinds::Kind;

/// A column's heading and its cell for an object.
type Column = (&'static str, fn(&Value) -> Value);

fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

fn age(object: &Value) -> Value {
    let seconds = object["metadata"]["creationTimestamp"].as_str().and_then(clock::age_seconds);
    seconds.map_or_else(|| "<unknown>".into(), duration).into()
}

/// A duration as `kubectl` prints ages: two units at most, fewer as it grows.
fn duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        ..0 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 if seconds % 60 != 0 => format!("{minutes}m{}s", seconds % 60),
        120..10800 => format!("{minutes}m"),
        10800..28800 if minutes % 60 != 0 => format!("{hours}h{}m", minutes % 60),
        10800..172_800 => format!("{hours}h"),
        172_800..691_200 if hours % 24 != 0 => format!("{days}d{}h", hours % 24),
        _ => format!("{days}d"),
    }
}

fn count(list: &Value) -> usize {
    list.as_array().map_or(0, Vec::len)
}

fn ready_containers(pod: &Value) -> Value {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let ready = statuses.map_or(0, |list| list.iter().filter(|s| s["ready"] == true).count());
    format!("{ready}/{}", count(&pod["spec"]["containers"])).into()
}

fn pod_status(pod: &Value) -> Value {
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return "Terminating".into();
    }
    let waiting = pod["status"]["containerStatuses"]
        .as_array()
        .and_then(|list| list.iter().find_map(|s| s["state"]["waiting"]["reason"].as_str()));
    waiting.map_or_else(|| pod["status"]["phase"].clone(), Into::into)
}

/// `pending`, or what holds of `deleted`, `allocated`, `reserved`.
#[must_use]
pub fn claim_state(claim: &Value) -> String {
    let mut states = Vec::new();
    if !claim["metadata"]["deletionTimestamp"].is_null() {
        states.push("deleted");
    }
    if !claim["status"]["allocation"].is_null() {
        states.push("allocated");
        if count(&claim["status"]["reservedFor"]) > 0 {
            states.push("reserved");
        }
    } else if states.is_empty() {
        states.push("pending");
    }
    states.join(",")
}

/// The status of a condition; null where there is none.
fn condition_status(object: &Value, condition: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.and_then(|list| list.iter().find(|c| c["type"] == condition));
    found.map_or(Value::Null, |it| it["status"].clone())
}

fn node_status(node: &Value) -> Value {
    match condition_status(node, "Ready").as_str() {
        Some("True") => "Ready".into(),
        Some(_) => "NotReady".into(),
        None => "Unknown".into(),
    }
}

fn event_object(event: &Value) -> Value {
    let about =
        if event["involvedObject"].is_null() { &event["regarding"] } else { &event["involvedObject"] };
    let kind = about["kind"].as_str().unwrap_or("").to_lowercase();
    format!("{kind}/{}", about["name"].as_str().unwrap_or("")).into()
}

fn event_message(event: &Value) -> Value {
    if event["message"].is_null() { event["note"].clone() } else { event["message"].clone() }
}

fn columns(kind: &Kind) -> Vec<Column> {
    let middle: Vec<Column> = match kind.kind {
        "ResourceSlice" => vec![
            ("Node", |o| o["spec"]["nodeName"].as_str().unwrap_or("").into()),
            ("Driver", |o| o["spec"]["driver"].clone()),
            ("Pool", |o| o["spec"]["pool"]["name"].clone()),
        ],
        "ResourceClaim" => vec![("State", |o| claim_state(o).into())],
        "Pod" => vec![("Ready", ready_containers), ("Status", pod_status), ("Restarts", |_| json!(0))],
        "Node" => vec![("Status", node_status), ("Roles", |_| "<none>".into())],
        "MigNode" => vec![
            ("Mode", |o| o["status"]["mode"].clone()),
            ("GPUs", |o| o["status"]["summary"]["gpus"].clone()),
            ("Unused", |o| o["status"]["summary"]["unused"].clone()),
            ("Held", |o| o["status"]["summary"]["held"].clone()),
            ("Ready", |o| condition_status(o, "Ready")),
        ],
        "Namespace" => vec![("Status", |o| o["status"]["phase"].clone())],
        "Deployment" => vec![
            ("Ready", |o| {
                format!("{}/{}", o["status"]["readyReplicas"].as_i64().unwrap_or(0), o["spec"]["replicas"])
                    .into()
            }),
            ("Up-to-date", |o| o["status"]["updatedReplicas"].as_i64().unwrap_or(0).into()),
            ("Available", |o| o["status"]["availableReplicas"].as_i64().unwrap_or(0).into()),
        ],
        "ReplicaSet" => vec![
            ("Desired", |o| o["spec"]["replicas"].clone()),
            ("Current", |o| o["status"]["replicas"].as_i64().unwrap_or(0).into()),
            ("Ready", |o| o["status"]["readyReplicas"].as_i64().unwrap_or(0).into()),
        ],
        "Event" => {
            return vec![
                ("Last Seen", age),
                ("Type", |o| o["type"].clone()),
                ("Reason", |o| o["reason"].clone()),
                ("Object", event_object),
                ("Message", event_message),
            ];
        }
        _ => Vec::new(),
    };
    let mut columns: Vec<Column> = vec![("Name", name)];
    columns.extend(middle);
    columns.push(("Age", age));
    if kind.kind == "Node" {
        columns.push(("Version", |o| o["status"]["nodeInfo"]["kubeletVersion"].clone()));
    }
    columns
}

/// The `Table` of some objects of one kind.
#[must_use]
pub fn render(kind: &Kind, objects: &[&Value], revision: &Value) -> Value {
    let columns = columns(kind);
    let definition = |(heading, _): &Column| {
        let format = if *heading == "Name" { "name" } else { "" };
        json!({"name": heading, "type": "string", "format": format, "description": "", "priority": 0})
    };
    let row = |object: &&Value| {
        let cells: Vec<Value> = columns.iter().map(|(_, cell)| cell(object)).collect();
        let metadata = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"]});
        json!({"cells": cells, "object": metadata})
    };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision},
        "columnDefinitions": columns.iter().map(definition).collect::<Vec<_>>(),
        "rows": objects.iter().map(row).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_printed_as_kubectl_prints_them() {
        let cases = [
            (5, "5s"),
            (119, "119s"),
            (125, "2m5s"),
            (600, "10m"),
            (10_900, "3h1m"),
            (90_000, "25h"),
            (200_000, "2d7h"),
            (900_000, "10d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn the_state_of_a_claim_is_read_from_its_status() {
        assert_eq!(claim_state(&json!({})), "pending");
        let mut claim = json!({"status": {"allocation": {}, "reservedFor": [{"uid": "u"}]}});
        assert_eq!(claim_state(&claim), "allocated,reserved");
        claim["status"] = json!({"allocation": {}});
        claim["metadata"] = json!({"deletionTimestamp": "now"});
        assert_eq!(claim_state(&claim), "deleted,allocated");
    }
}
