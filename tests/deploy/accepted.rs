//! Every manifest in `deploy/manifests/` and `examples/`, and what `convert` makes of those of others, on a real API server, where
//! `KUBEBUILDER_ASSETS` has one. `tests/manifests.rs` asks the types of the API where there is none.

use std::path::{Path, PathBuf};

use kubectl_mig::convert::convert;

use crate::common::{ControlPlane, eventually, repository};
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use kube_sim::manifest;
use serde_json::{Value, json};

use super::policy::{apply, refused};

/// Kinds without a namespace.
const CLUSTER_WIDE: [&str; 8] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "DeviceClass",
    "Namespace",
    "PriorityClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// The objects of a file or folder.
fn objects(path: &Path) -> Vec<Value> {
    prepared(manifest::load(path).unwrap())
}

/// Those that are Kubernetes' own, each with its namespace.
fn prepared(mut objects: Vec<Value>) -> Vec<Value> {
    objects.retain(|it| {
        let version = it["apiVersion"].as_str().unwrap();
        !["kustomize.config.k8s.io", "monitoring.coreos.com", "security.openshift.io"]
            .iter()
            .any(|group| version.contains(group))
    });
    for object in &mut objects {
        let is_cluster_wide = CLUSTER_WIDE.contains(&object["kind"].as_str().unwrap());
        if !is_cluster_wide && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = json!("default");
        }
    }
    objects
}

async fn make_namespace(client: &Client, name: &str) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    apply(client, &namespace, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_takes_every_manifest() {
    let Some(plane) = ControlPlane::real(true).await else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    let client = plane.client().await;
    let examples = std::fs::read_dir(repository().join("examples")).unwrap().map(|it| it.unwrap().path());
    let mut folders: Vec<PathBuf> = examples.filter(|it| it.is_dir() && !it.ends_with("sandbox")).collect();
    folders.push(repository().join("deploy/manifests"));
    let mut count = 0;
    for folder in folders {
        let objects = objects(&folder);
        // What others in the folder refer to must be there before they are asked for.
        for namespace in objects.iter().filter_map(|it| it["metadata"]["namespace"].as_str()) {
            make_namespace(&client, namespace).await;
        }
        for class in objects.iter().filter(|it| it["kind"] == "PriorityClass") {
            apply(&client, class, false).await.unwrap();
        }
        for object in &objects {
            let answer = apply(&client, object, true).await;
            assert!(answer.is_ok(), "{}: {answer:?}\n{object:#}", folder.display());
            count += 1;
        }
    }
    assert!(100 < count, "{count}");
}

/// What the quota controller does, which is no part of an API server: it puts the limits into the status.
async fn put_into_force(client: &Client, namespace: &str) {
    let quotas: Api<ResourceQuota> = Api::namespaced(client.clone(), namespace);
    for quota in quotas.list(&ListParams::default()).await.unwrap() {
        let hard = quota.spec.unwrap().hard.unwrap();
        let used: serde_json::Map<String, Value> = hard.keys().map(|it| (it.clone(), json!("0"))).collect();
        let status = Patch::Merge(json!({"status": {"hard": hard, "used": used}}));
        let name = quota.metadata.name.unwrap();
        quotas.patch_status(&name, &PatchParams::default(), &status).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_example_gives_each_team_what_it_says_and_refuses_the_rest() {
    let Some(plane) = ControlPlane::real(true).await else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    let client = plane.client().await;
    let example = repository().join("examples/team-quotas");
    for object in objects(&example.join("team-quotas.yaml")) {
        apply(&client, &object, false).await.unwrap();
    }
    let claim = |namespace: &str, class: &str| {
        let claims: Api<ResourceClaim> = Api::namespaced(client.clone(), namespace);
        let claim = json!({
            "metadata": {"generateName": "x-"},
            "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": class}}]}},
        });
        let claim = serde_json::from_value(claim).unwrap();
        async move { claims.create(&PostParams::default(), &claim).await }
    };
    for team in ["team-alpha", "team-beta"] {
        put_into_force(&client, team).await;
        // The admission plugin has its own view of quotas, which follows.
        eventually("the quota holds", async || {
            claim(team, "gpu.dra-driver.dev").await.is_err().then_some(())
        })
        .await;
    }
    for (team, class, number) in [
        ("team-alpha", "mig-1g.5gb", 4),
        ("team-alpha", "mig-3g.20gb", 0),
        ("team-alpha", "mig-7g.40gb", 0),
        ("team-alpha", "mig.dra-driver.dev", 0),
        ("team-beta", "mig-1g.5gb", 2),
        ("team-beta", "mig-3g.20gb", 2),
        ("team-beta", "gpu.dra-driver.dev", 0),
    ] {
        for _ in 0..number {
            claim(team, class).await.unwrap_or_else(|error| panic!("{team} {class}: {error}"));
        }
        let message = refused(claim(team, class).await);
        assert!(message.contains("exceeded quota: gpus"), "{team} {class}: {message}");
    }
    let too_large = &objects(&example.join("too-large.yaml"))[0];
    assert!(refused(apply(&client, too_large, false).await).contains("exceeded quota: gpus"));
}

/// What `kubectl mig convert` makes of a text; all of it must be converted.
fn converted(text: &str) -> String {
    let converted = convert(text).unwrap();
    assert!(!converted.left_something(), "{:?}", converted.remarks);
    converted.text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_takes_what_convert_makes() {
    let Some(plane) = ControlPlane::real(true).await else {
        return eprintln!("skipped: no KUBEBUILDER_ASSETS");
    };
    let client = plane.client().await;
    for file in ["tests/data/device-plugin.yaml", "tests/data/helm-rendered.yaml"] {
        let text = std::fs::read_to_string(repository().join(file)).unwrap();
        let done = converted(&text);
        assert_eq!(converted(&done), done, "{file}: a second time changes nothing");
        // The same from a machine with other line ends, and with a mark at the start.
        let windows = text.replace('\n', "\r\n");
        assert_eq!(converted(&windows), done.replace('\n', "\r\n"), "{file}");
        assert_eq!(converted(&format!("\u{feff}{text}")), format!("\u{feff}{done}"), "{file}");
        // Comments of lines that no request asked to change, and of those that go.
        for line in text.lines().filter_map(|it| Some(it.split_once('#')?.1)) {
            assert!(done.contains(line), "{file}: {line}");
        }
        let mut count = 0;
        for object in prepared(manifest::parse(&done).unwrap()) {
            let answer = apply(&client, &object, true).await;
            assert!(answer.is_ok(), "{file}: {answer:?}\n{object:#}");
            count += 1;
        }
        assert!(5 < count, "{file}: {count}");
        let asks = |line: &&str| line.contains("nvidia.com/mig-") && !line.contains("deviceclass");
        assert_eq!(done.lines().find(asks), None, "{file}");
    }
}
