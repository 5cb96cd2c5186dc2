//! Admission plugins that every cluster has: the priority of pods, and quotas.

use dra_allocator::extended::CLAIM_ANNOTATION;
use serde_json::{Value, json};

use super::error::ApiError;
use super::kinds::{self, KindRef};
use super::quota::{self, ExtendedNames, Usage};
use super::store::{Inner, Key};

impl Inner {
    /// Objects of a kind in a namespace.
    fn inside(&self, kind: KindRef, namespace: &str) -> impl Iterator<Item = &Value> {
        let first = Key { kind, namespace: namespace.to_owned(), name: String::new() };
        let objects = self.objects.range(first..).map(|(key, stored)| (key, &*stored.value));
        objects
            .take_while(move |(key, _)| key.kind == kind && key.namespace == namespace)
            .map(|(_, value)| value)
    }

    /// Gives a pod the priority of its class.
    pub(super) fn prioritise(&self, pod: &mut Value) -> Result<(), ApiError> {
        let class = match pod["spec"]["priorityClassName"].as_str() {
            None | Some("") => return Ok(()),
            Some(class) => class.to_owned(),
        };
        let priority = match class.as_str() {
            "system-node-critical" => json!(2_000_001_000),
            "system-cluster-critical" => json!(2_000_000_000),
            _ => match self.objects.get(&Key::new(&kinds::PRIORITY_CLASS, "", &class)) {
                Some(class) => class.value["value"].clone(),
                None => {
                    let why = format!("no PriorityClass with name {class} was found");
                    let name = pod["metadata"]["name"].as_str().unwrap_or("");
                    return Err(ApiError::forbidden(&kinds::POD, name, &why));
                }
            },
        };
        pod["spec"]["priority"] = priority;
        Ok(())
    }

    /// The extended resource names of the device classes, where their gate is on.
    fn extended_names(&self) -> Option<ExtendedNames> {
        let name = |class: &Value| {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            Some((text(&class["metadata"]["name"])?, text(&class["spec"]["extendedResourceName"])?))
        };
        self.gates.extended_resource.then(|| self.inside(&kinds::DEVICE_CLASS, "").filter_map(name).collect())
    }

    fn claim_usage(&self, claim: &Value, names: Option<&ExtendedNames>) -> Usage {
        let special = claim["metadata"]["annotations"][CLAIM_ANNOTATION] == "true";
        let namespace = claim["metadata"]["namespace"].as_str().unwrap_or("");
        let owner = claim["metadata"]["ownerReferences"][0]["name"].as_str().filter(|_| special);
        let pod = owner.and_then(|name| self.objects.get(&Key::new(&kinds::POD, namespace, name)));
        quota::of_claim(claim, names, pod.map(|stored| &*stored.value))
    }

    pub(super) fn quota_usage(&self, namespace: &str) -> Usage {
        let names = self.extended_names();
        let claims = self.inside(&kinds::RESOURCE_CLAIM, namespace);
        let claims = claims.map(|claim| self.claim_usage(claim, names.as_ref()));
        let mut sum = Usage::new();
        for usage in claims.chain(self.inside(&kinds::POD, namespace).map(quota::of_pod)) {
            quota::add(&mut sum, usage);
        }
        sum
    }

    /// The admission plugin `ResourceQuota`.
    pub(super) fn refuse_beyond_quota(
        &self,
        kind: KindRef,
        namespace: &str,
        object: &Value,
    ) -> Result<(), ApiError> {
        let counted = kind == &kinds::RESOURCE_CLAIM || kind == &kinds::POD;
        if !counted || self.inside(&kinds::RESOURCE_QUOTA, namespace).next().is_none() {
            return Ok(());
        }
        let new = if kind == &kinds::POD {
            quota::of_pod(object)
        } else {
            self.claim_usage(object, self.extended_names().as_ref())
        };
        let used = self.quota_usage(namespace);
        let mut refusals = self.inside(&kinds::RESOURCE_QUOTA, namespace);
        let why = refusals.find_map(|quota| quota::exceeded(quota, &used, &new));
        let name = object["metadata"]["name"].as_str().unwrap_or("");
        why.map_or(Ok(()), |why| Err(ApiError::forbidden(kind, name, &why)))
    }
}
