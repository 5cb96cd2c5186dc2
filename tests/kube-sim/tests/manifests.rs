//! The manifests of the repository are ones that a strict API server takes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

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
    for path in ["deploy/manifests/deviceclasses.yaml", "examples"] {
        let server = ApiServer::start(Options::default()).await.unwrap();
        let objects = manifest::load(&root.join(path)).unwrap();
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
                panic!("{path}: {error}\n{object:#}");
            }
        }
    }
}
