//! Objects of a kind, sorted by namespace and name, as the API server lists them.

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// An object with metadata.
pub(super) trait Object: Metadata<Ty = ObjectMeta> + PartialEq {}
impl<K: Metadata<Ty = ObjectMeta> + PartialEq> Object for K {}

/// Namespace and name.
fn key(metadata: &ObjectMeta) -> (&str, &str) {
    (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

fn place<K: Object>(all: &[K], wanted: (&str, &str)) -> Result<usize, usize> {
    all.binary_search_by(|it| key(it.metadata()).cmp(&wanted))
}

/// The object of this name.
pub(super) fn find<'a, K: Object>(all: &'a [K], namespace: &str, name: &str) -> Option<&'a K> {
    place(all, (namespace, name)).ok().map(|index| &all[index])
}

/// Adds an object, or replaces the one of its name. True where that is a change.
pub(super) fn put<K: Object>(all: &mut Vec<K>, object: K) -> bool {
    match place(all, key(object.metadata())) {
        Ok(index) if all[index] == object => false,
        Ok(index) => {
            all[index] = object;
            true
        }
        Err(index) => {
            all.insert(index, object);
            true
        }
    }
}

/// Removes the object of this name. True where there was one.
pub(super) fn remove<K: Object>(all: &mut Vec<K>, metadata: &ObjectMeta) -> bool {
    match place(all, key(metadata)) {
        Ok(index) => {
            all.remove(index);
            true
        }
        Err(_) => false,
    }
}
