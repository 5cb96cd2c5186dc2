//! All ResourceSlices, kept as text, of which equal parts are kept once.

use std::collections::HashMap;
use std::sync::OnceLock;

use k8s_openapi::api::resource::v1::ResourceSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::pieces::{Pieces, Text};

/// A slice that was stored and cannot be parsed: memory is broken, or a version of this program is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ResourceSlice {name}: {why}")]
pub struct SliceError {
    /// Name of the slice.
    pub name: String,
    /// What the parser says.
    pub why: String,
}

/// ResourceSlices as JSON text, by node.
#[derive(Debug, Clone, Default)]
pub struct Slices {
    /// `None` where a slice was removed.
    all: Vec<Option<Stored>>,
    pieces: Pieces,
    by_name: HashMap<String, Vec<usize>>,
    /// Positions that removed slices have left.
    vacant: Vec<usize>,
    by_node: HashMap<String, Vec<usize>>,
    /// Those that choose their nodes otherwise than by one name.
    elsewhere: Vec<usize>,
    /// See [`Self::find_incomplete`].
    incomplete: OnceLock<Vec<usize>>,
}

#[derive(Debug, Clone)]
struct Stored {
    name: String,
    /// Empty where the slice names none.
    node: String,
    driver: String,
    pool: String,
    generation: i64,
    /// Slices that the pool should have.
    expected: i64,
    has_counters: bool,
    text: Text,
}

impl Stored {
    fn parsed(&self, pieces: &Pieces) -> Result<ResourceSlice, SliceError> {
        serde_json::from_slice(&pieces.text(&self.text))
            .map_err(|error| SliceError { name: self.name.clone(), why: error.to_string() })
    }
}

impl Slices {
    /// Adds a slice; of its metadata the name and the labels stay.
    pub fn push(&mut self, slice: &ResourceSlice) {
        let metadata = ObjectMeta {
            name: slice.metadata.name.clone(),
            labels: slice.metadata.labels.clone(),
            ..ObjectMeta::default()
        };
        let spec = &slice.spec;
        let kept = ResourceSlice { metadata, spec: spec.clone() };
        // Typed objects have no key that JSON cannot have.
        let Ok(text) = serde_json::to_vec(&kept) else { return };
        let name = slice.metadata.name.clone().unwrap_or_default();
        let index = self.vacant.pop().unwrap_or(self.all.len());
        self.incomplete.take();
        self.by_name.entry(name.clone()).or_default().push(index);
        match spec.node_name.as_deref().filter(|name| !name.is_empty()) {
            Some(node) => self.by_node.entry(node.to_owned()).or_default().push(index),
            None => self.elsewhere.push(index),
        }
        let stored = Stored {
            name,
            node: spec.node_name.clone().unwrap_or_default(),
            driver: spec.driver.clone(),
            pool: spec.pool.name.clone(),
            generation: spec.pool.generation,
            expected: spec.pool.resource_slice_count,
            has_counters: spec.shared_counters.as_ref().is_some_and(|sets| !sets.is_empty()),
            text: self.pieces.add(&text),
        };
        match self.all.get_mut(index) {
            Some(vacant) => *vacant = Some(stored),
            None => self.all.push(Some(stored)),
        }
    }

    /// Removes the slices of this name.
    pub fn remove(&mut self, name: &str) {
        for index in self.by_name.remove(name).unwrap_or_default() {
            let Some(stored) = self.all[index].take() else { continue };
            self.pieces.remove(&stored.text);
            if let Some(of_node) = self.by_node.get_mut(&stored.node) {
                of_node.retain(|it| *it != index);
                if of_node.is_empty() {
                    self.by_node.remove(&stored.node);
                }
            }
            self.elsewhere.retain(|it| *it != index);
            self.vacant.push(index);
            self.incomplete.take();
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len() - self.vacant.len()
    }

    /// True where there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of all slices, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// Names of nodes that slices name, sorted.
    #[must_use]
    pub fn nodes(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.by_node.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Driver names, sorted.
    #[must_use]
    pub fn drivers(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.stored().map(|(_, it)| it.driver.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The slices that the scheduler looks at for a node: those that name it, those that name no node, and the pools with
    /// counters that are incomplete anywhere, which concern requests for all devices on every node.
    ///
    /// # Errors
    /// [`SliceError`].
    pub fn of_node(&self, node: &str) -> Result<Vec<ResourceSlice>, SliceError> {
        let own = self.by_node.get(node).map(Vec::as_slice).unwrap_or_default();
        let mut indices: Vec<usize> = own.iter().chain(&self.elsewhere).copied().collect();
        indices.extend(self.incomplete.get_or_init(|| self.find_incomplete()));
        indices.sort_unstable();
        indices.dedup();
        self.parsed(&indices)
    }

    /// The slices that name a node.
    ///
    /// # Errors
    /// [`SliceError`].
    pub fn naming(&self, node: &str) -> Result<Vec<ResourceSlice>, SliceError> {
        self.parsed(self.by_node.get(node).map(Vec::as_slice).unwrap_or_default())
    }

    /// Whether a driver has slices that name this node.
    #[must_use]
    pub fn has(&self, node: &str, driver: &str) -> bool {
        let mut own = self.by_node.get(node).into_iter().flatten().filter_map(|it| self.all[*it].as_ref());
        own.any(|it| it.driver == driver)
    }

    /// All slices, parsed one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Result<ResourceSlice, SliceError>> {
        self.stored().map(|(_, it)| it.parsed(&self.pieces))
    }

    fn stored(&self) -> impl Iterator<Item = (usize, &Stored)> {
        self.all.iter().enumerate().filter_map(|(index, it)| Some((index, it.as_ref()?)))
    }

    fn parsed(&self, indices: &[usize]) -> Result<Vec<ResourceSlice>, SliceError> {
        indices.iter().filter_map(|it| self.all[*it].as_ref()).map(|it| it.parsed(&self.pieces)).collect()
    }

    /// Slices of the newest generation of pools with counters that have not as many as they should.
    fn find_incomplete(&self) -> Vec<usize> {
        let mut newest: HashMap<(&str, &str), i64> = HashMap::new();
        for (_, it) in self.stored() {
            let generation = newest.entry((&it.driver, &it.pool)).or_insert(it.generation);
            *generation = it.generation.max(*generation);
        }
        let mut current: HashMap<(&str, &str), Vec<(usize, &Stored)>> = HashMap::new();
        for (index, it) in self.stored() {
            let key = (it.driver.as_str(), it.pool.as_str());
            if newest.get(&key) == Some(&it.generation) {
                current.entry(key).or_default().push((index, it));
            }
        }
        current.retain(|_, pool| {
            let counted = pool.iter().any(|(_, it)| it.has_counters);
            counted && pool.iter().any(|(_, it)| i64::try_from(pool.len()) != Ok(it.expected))
        });
        current.into_values().flatten().map(|(index, _)| index).collect()
    }
}

impl Extend<ResourceSlice> for Slices {
    fn extend<T: IntoIterator<Item = ResourceSlice>>(&mut self, slices: T) {
        slices.into_iter().for_each(|slice| self.push(&slice));
    }
}

impl FromIterator<ResourceSlice> for Slices {
    fn from_iter<T: IntoIterator<Item = ResourceSlice>>(slices: T) -> Self {
        let mut all = Self::default();
        all.extend(slices);
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;

    fn slice(name: &str, pool: &str, count: i64, rest: Value) -> ResourceSlice {
        let pool = json!({"name": pool, "generation": 1, "resourceSliceCount": count});
        let mut spec = json!({"driver": "d", "pool": pool});
        spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_node_has_its_own_slices_those_without_a_node_and_incomplete_pools_with_counters() {
        let set = json!([{"name": "s", "counters": {"c": {"value": "1"}}}]);
        let slices: Slices = [
            slice("a", "a", 1, json!({"nodeName": "a"})),
            slice("b", "b", 1, json!({"nodeName": "b", "sharedCounters": set})),
            slice("c", "c", 2, json!({"nodeName": "c", "sharedCounters": set})),
            slice("d", "d", 2, json!({"nodeName": "d"})),
            slice("e", "e", 1, json!({"allNodes": true})),
        ]
        .into_iter()
        .collect();
        let names = |node: &str| -> Vec<String> {
            slices.of_node(node).unwrap().into_iter().map(|it| it.metadata.name.unwrap()).collect()
        };
        assert_eq!(names("a"), ["a", "c", "e"]);
        assert_eq!(names("b"), ["b", "c", "e"]);
        assert_eq!(names("unknown"), ["c", "e"]);
        assert_eq!(slices.nodes(), ["a", "b", "c", "d"]);
        assert_eq!(slices.iter().count(), slices.len());
    }

    #[test]
    fn a_removed_slice_is_in_no_answer_and_its_place_is_used_again() {
        let set = json!([{"name": "s", "counters": {"c": {"value": "1"}}}]);
        let mut slices: Slices = [
            slice("a", "a", 1, json!({"nodeName": "a"})),
            slice("b", "b", 2, json!({"nodeName": "b", "sharedCounters": set})),
            slice("e", "e", 1, json!({"allNodes": true})),
        ]
        .into_iter()
        .collect();
        let names = |slices: &Slices, node: &str| -> Vec<String> {
            slices.of_node(node).unwrap().into_iter().map(|it| it.metadata.name.unwrap()).collect()
        };
        assert_eq!(names(&slices, "a"), ["a", "b", "e"]);
        slices.remove("b");
        slices.remove("e");
        slices.remove("unknown");
        assert_eq!((names(&slices, "a"), slices.nodes(), slices.len()), (vec!["a".to_owned()], vec!["a"], 1));
        slices.push(&slice("c", "c", 1, json!({"nodeName": "c"})));
        assert_eq!((slices.len(), slices.all.len()), (2, 3));
        let named = slices.naming("c").unwrap();
        assert_eq!((named.len(), named[0].metadata.name.as_deref()), (1, Some("c")));
    }
}
