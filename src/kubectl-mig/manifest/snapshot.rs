//! Objects of files as a cluster.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

use super::Object;
use crate::cluster::Snapshot;

impl FromIterator<Object> for Snapshot {
    /// A cluster that holds these objects, such as those of `kubectl get ... -A -o json`. Kinds that a snapshot does not have are left
    /// out.
    fn from_iter<T: IntoIterator<Item = Object>>(objects: T) -> Self {
        let mut snapshot = Self::default();
        for object in objects {
            match object {
                Object::Pod(it) => snapshot.pods.push(*it),
                Object::Node(it) => snapshot.nodes.push(*it),
                Object::Event(it) => snapshot.events.push(*it),
                Object::ResourceSlice(it) => snapshot.slices.push(&it),
                Object::ResourceClaim(it) => snapshot.claims.push(*it),
                Object::ResourceClaimTemplate(it) => snapshot.templates.push(*it),
                Object::DeviceClass(it) => snapshot.classes.push(*it),
                Object::ResourceQuota(it) => snapshot.quotas.push(*it),
                _ => {}
            }
        }
        snapshot
    }
}

/// Adds what manifests define, as `kubectl apply` would: claims, templates, classes and quotas. An object replaces one of its name.
pub fn apply(snapshot: &mut Snapshot, objects: Vec<Object>) {
    for object in objects {
        match object {
            // A claim that exists cannot be changed by a manifest.
            Object::ResourceClaim(it) => match find(&snapshot.claims, &it.metadata) {
                Some(_) => {}
                None => snapshot.claims.push(*it),
            },
            Object::ResourceClaimTemplate(it) => put(&mut snapshot.templates, *it),
            Object::DeviceClass(it) => put(&mut snapshot.classes, *it),
            Object::ResourceQuota(it) => put(&mut snapshot.quotas, *it),
            _ => {}
        }
    }
}

fn put<K: Resource>(all: &mut Vec<K>, object: K) {
    match find(all, object.meta()) {
        Some(index) => all[index] = object,
        None => all.push(object),
    }
}

fn find<K: Resource>(all: &[K], wanted: &ObjectMeta) -> Option<usize> {
    all.iter().position(|it| it.meta().name == wanted.name && it.meta().namespace == wanted.namespace)
}
