//! What a client asks before it asks for objects: versions, groups, kinds, and as much of OpenAPI as makes `kubectl apply`
//! leave validation to the server.

use serde_json::{Map, Value, json};

use super::kinds::KindRef;
use super::version::Version;

/// An answer that does not depend on the stored objects.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// A JSON document.
    Json(Value),
    /// Plain text, for the health endpoints.
    Text(&'static str),
}

/// The groups of these kinds, with their version.
fn groups(served: &[KindRef]) -> Vec<(&'static str, &'static str)> {
    let mut groups: Vec<(&str, &str)> = served.iter().map(|k| (k.group, k.version)).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn in_group(served: &[KindRef], group: &str, version: &str) -> Vec<KindRef> {
    served.iter().copied().filter(|k| k.group == group && k.version == version).collect()
}

/// The answer to a discovery path where these kinds are served; `None` where the path is about objects.
#[must_use]
pub fn answer(path: &str, version: Version, served: &[KindRef]) -> Option<Answer> {
    let release = version.release();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let value = match parts.as_slice() {
        ["healthz" | "livez" | "readyz"] => return Some(Answer::Text("ok")),
        ["version"] => {
            json!({"major": "1", "minor": version.minor(), "gitVersion": release, "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": "linux/amd64"})
        }
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        ["apis"] => group_list(served),
        ["api", version] => resource_list(served, "", version)?,
        ["apis", group] => group_entry(groups(served).into_iter().find(|(g, _)| g == group)?),
        ["apis", group, version] => resource_list(served, group, version)?,
        ["openapi", "v2"] => {
            json!({"swagger": "2.0", "info": {"title": "kube-sim", "version": release}, "paths": {},
            "definitions": {}})
        }
        ["openapi", "v3"] => openapi_index(served),
        ["openapi", "v3", "api", version] => openapi_group(served, "", version, release)?,
        ["openapi", "v3", "apis", group, version] => openapi_group(served, group, version, release)?,
        _ => return None,
    };
    Some(Answer::Json(value))
}

fn group_entry((group, version): (&str, &str)) -> Value {
    let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": [version], "preferredVersion": version})
}

fn group_list(served: &[KindRef]) -> Value {
    let groups: Vec<Value> =
        groups(served).into_iter().filter(|(g, _)| !g.is_empty()).map(group_entry).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn resource_list(served: &[KindRef], group: &str, version: &str) -> Option<Value> {
    let kinds = in_group(served, group, version);
    let group_version = kinds.first()?.api_version();
    let mut resources = Vec::new();
    for kind in kinds {
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        resources
            .push(json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": verbs, "shortNames": kind.short}));
        for subresource in kind.subresources {
            let name = format!("{}/{subresource}", kind.plural);
            let mut entry = json!({"name": name, "singularName": "", "namespaced": kind.namespaced, "kind": kind.kind,
                "verbs": ["get", "patch", "update"]});
            if *subresource == "scale" {
                entry["kind"] = "Scale".into();
                entry["group"] = "autoscaling".into();
                entry["version"] = "v1".into();
            }
            if *subresource == "eviction" {
                entry["kind"] = "Eviction".into();
                entry["group"] = "policy".into();
                entry["version"] = "v1".into();
                entry["verbs"] = json!(["create"]);
            }
            resources.push(entry);
        }
    }
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}),
    )
}

fn openapi_index(served: &[KindRef]) -> Value {
    let mut paths = Map::new();
    for (group, version) in groups(served) {
        let path =
            if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
        paths.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash=0")}));
    }
    json!({ "paths": paths })
}

/// One document per group: no schemas, only the paths with the parameters that tell `kubectl` that the server validates.
fn openapi_group(served: &[KindRef], group: &str, version: &str, release: &str) -> Option<Value> {
    let kinds = in_group(served, group, version);
    let root = kinds.first()?.root();
    let mut paths = Map::new();
    for kind in kinds {
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
        let parameters =
            json!([parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")]);
        let operation = json!({"parameters": parameters, "responses": {},
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind.kind}});
        let path = format!("{root}{scope}/{}/{{name}}", kind.plural);
        paths.insert(path, json!({"patch": operation, "put": operation}));
        paths.insert(format!("{root}{scope}/{}", kind.plural), json!({"post": operation}));
    }
    let info = json!({"title": "kube-sim", "version": release});
    Some(json!({"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}))
}

#[cfg(test)]
mod tests {
    use super::super::kinds;
    use super::*;

    #[test]
    fn every_kind_is_discovered_under_its_group() {
        for kind in kinds::ALL {
            let Some(Answer::Json(list)) = answer(&kind.root(), Version::default(), kinds::ALL) else {
                panic!("{} is not discovered", kind.root())
            };
            let resources = list["resources"].as_array().unwrap();
            assert!(
                resources.iter().any(|r| r["name"] == kind.plural && r["kind"] == kind.kind),
                "{}",
                kind.plural
            );
        }
    }

    #[test]
    fn paths_about_objects_are_left_to_the_store() {
        assert_eq!(answer("/api/v1/nodes", Version::default(), kinds::ALL), None);
        assert_eq!(answer("/apis/none.example.com", Version::default(), kinds::ALL), None);
    }
}
