//! The manifests of the repository are ones that a strict API server takes.

use std::path::Path;

use kube_sim::{ApiServer, Options, kinds, manifest};
use serde_json::{Value, json};

fn served(object: &Value) -> bool {
    let text = |key: &str| object[key].as_str().unwrap_or("");
    kinds::by_type(text("apiVersion"), text("kind")).is_some()
}

#[tokio::test]
async fn every_manifest_of_the_repository_is_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folders = std::fs::read_dir(root.join("examples")).unwrap().map(|it| it.unwrap().path());
    let mut paths: Vec<_> = folders.filter(|it| it.is_dir() && !it.ends_with("sandbox")).collect();
    paths.push(root.join("deploy/manifests/deviceclasses.yaml"));
    for path in paths {
        let server = ApiServer::start(Options::default()).await.unwrap();
        let mut objects = manifest::load(&path).unwrap();
        // A pod needs its priority class, which may come later in the folder.
        objects.sort_by_key(|it| it["kind"] != "PriorityClass");
        assert!(!objects.is_empty());
        // Created by the person who installs the driver.
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "dra-driver-mig"}});
        server.create(namespace).unwrap();
        // The kinds that it does not serve are looked at by the driver's own test of manifests.
        for object in objects.iter().filter(|it| served(it)) {
            let answer = server.create(object.clone());
            if object["metadata"]["name"] == "too-large" {
                let error = answer.unwrap_err();
                assert!(error.code == 403 && error.message.contains("exceeded quota: gpus"), "{error}");
            } else if let Err(error) = answer {
                panic!("{}: {error}\n{object:#}", path.display());
            }
        }
    }
}
