//! A snapshot of objects from files, such as the output of `kubectl get -o json`.

use super::Snapshot;
use crate::manifest::Object;

impl FromIterator<Object> for Snapshot {
    /// Objects of other kinds are left out.
    fn from_iter<T: IntoIterator<Item = Object>>(objects: T) -> Self {
        let mut snapshot = Self::default();
        for object in objects {
            match object {
                Object::ResourceSlice(it) => snapshot.slices.push(&it),
                Object::ResourceClaim(it) => snapshot.claims.push(*it),
                Object::ResourceClaimTemplate(it) => snapshot.templates.push(*it),
                Object::DeviceClass(it) => snapshot.classes.push(*it),
                Object::Node(it) => snapshot.nodes.push(*it),
                Object::Pod(it) => snapshot.pods.push(*it),
                Object::ResourceQuota(it) => snapshot.quotas.push(*it),
                _ => {}
            }
        }
        snapshot
    }
}
