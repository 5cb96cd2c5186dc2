//! Claim templates: one per shape and namespace.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::yaml::quoted;

/// What one container asks for: a number of devices of each class.
pub(super) type Shape = BTreeMap<String, u32>;

/// Most devices of a claim (`AllocationResultsMaxSize` of resource.k8s.io/v1).
pub(super) const MAX_DEVICES: u32 = 32;

/// The name that a template of this shape has, the same in every file: `mig-1g.5gb`, `gpu-x2`.
fn name_of(shape: &Shape) -> String {
    let part = |(class, count): (&String, &u32)| {
        let class = short(class);
        if *count == 1 { class.to_owned() } else { format!("{class}-x{count}") }
    };
    shape.iter().map(part).collect::<Vec<_>>().join("-")
}

fn short(class: &str) -> &str {
    class.strip_suffix(".dra-driver.dev").unwrap_or(class)
}

/// The manifest of a template.
fn manifest(name: &str, namespace: Option<&str>, shape: &Shape) -> String {
    let mut out = format!(
        "apiVersion: resource.k8s.io/v1\nkind: ResourceClaimTemplate\nmetadata:\n  name: {}\n",
        quoted(name, false)
    );
    if let Some(namespace) = namespace {
        let _ = writeln!(out, "  namespace: {}", quoted(namespace, false));
    }
    out.push_str("spec:\n  spec:\n    devices:\n      requests:\n");
    for (class, count) in shape {
        let request = short(class).replace('.', "-");
        let _ =
            writeln!(out, "      - name: {request}\n        exactly:\n          deviceClassName: {class}");
        if *count != 1 {
            let _ = writeln!(out, "          count: {count}");
        }
    }
    out
}

/// Namespace and name of a template.
type Key = (Option<String>, String);

/// The templates of files that are applied together: those that they have and those that are added.
#[derive(Debug, Clone, Default)]
pub(super) struct Templates {
    /// Name by namespace and shape.
    names: BTreeMap<(Option<String>, Shape), String>,
    /// The shape of each template that exists, where `convert` could have written it.
    shapes: BTreeMap<Key, Option<Shape>>,
    /// Added and not yet written to a file.
    fresh: Vec<(Key, Shape)>,
}

impl Templates {
    /// Notes a template that a file has. `shape` where it is one that would be added for a shape.
    pub(super) fn found(&mut self, namespace: Option<&str>, name: &str, shape: Option<Shape>) {
        let namespace = namespace.map(str::to_owned);
        if let Some(shape) = &shape {
            self.names.insert((namespace.clone(), shape.clone()), name.to_owned());
        }
        self.shapes.insert((namespace, name.to_owned()), shape);
    }

    /// Takes over what the files have that these files build on.
    pub(super) fn inherit(&mut self, base: &Self) {
        self.names.extend(base.names.clone());
        self.shapes.extend(base.shapes.clone());
    }

    /// Whether there is any template.
    pub(super) fn is_empty(&self) -> bool {
        self.shapes.is_empty()
    }

    /// What a template claims, if nothing but a number of devices of each class.
    pub(super) fn shape(&self, namespace: Option<&str>, name: &str) -> Option<&Shape> {
        self.shapes.get(&(namespace.map(str::to_owned), name.to_owned()))?.as_ref()
    }

    /// The name of the template for a shape; added if there is none.
    pub(super) fn name(&mut self, namespace: Option<&str>, shape: &Shape) -> String {
        let namespace = namespace.map(str::to_owned);
        if let Some(name) = self.names.get(&(namespace.clone(), shape.clone())) {
            return name.clone();
        }
        let plain = name_of(shape);
        let mut name = plain.clone();
        let mut number = 2;
        while self.shapes.contains_key(&(namespace.clone(), name.clone())) {
            name = format!("{plain}-{number}");
            number += 1;
        }
        let key = (namespace.clone(), name.clone());
        self.names.insert((namespace, shape.clone()), name.clone());
        self.shapes.insert(key.clone(), Some(shape.clone()));
        self.fresh.push((key, shape.clone()));
        name
    }

    /// The number of templates that are added and not written, for [`Self::back_to`].
    pub(super) fn mark(&self) -> usize {
        self.fresh.len()
    }

    /// Removes the templates that were added after a mark: what needed them stays as it is.
    pub(super) fn back_to(&mut self, mark: usize) {
        for (key, shape) in self.fresh.drain(mark.min(self.fresh.len())..) {
            self.names.remove(&(key.0.clone(), shape));
            self.shapes.remove(&key);
        }
    }

    /// The manifests of the templates that are added and not yet written.
    pub(super) fn fresh(&self) -> Vec<String> {
        self.fresh
            .iter()
            .map(|((namespace, name), shape)| manifest(name, namespace.as_deref(), shape))
            .collect()
    }

    /// The templates of [`Self::fresh`] are written.
    pub(super) fn written(&mut self) {
        self.fresh.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(parts: &[(&str, u32)]) -> Shape {
        parts.iter().map(|(class, count)| ((*class).to_owned(), *count)).collect()
    }

    #[test]
    fn a_shape_has_one_template_in_each_namespace() {
        let mut templates = Templates::default();
        let one = shape(&[("mig-1g.5gb", 1)]);
        assert_eq!(templates.name(None, &one), "mig-1g.5gb");
        assert_eq!(templates.name(None, &one), "mig-1g.5gb");
        assert_eq!(templates.name(Some("team"), &one), "mig-1g.5gb");
        assert_eq!(templates.name(None, &shape(&[("gpu.dra-driver.dev", 2)])), "gpu-x2");
        let fresh = templates.fresh();
        assert_eq!(fresh.len(), 3);
        assert!(fresh[1].contains("\n  namespace: team\n"), "{}", fresh[1]);
        assert!(
            fresh[2].ends_with("deviceClassName: gpu.dra-driver.dev\n          count: 2\n"),
            "{}",
            fresh[2]
        );
        templates.written();
        assert!(templates.fresh().is_empty());
        assert_eq!(templates.shape(Some("team"), "mig-1g.5gb"), Some(&one));
        assert_eq!(templates.shape(Some("other"), "mig-1g.5gb"), None);
    }

    #[test]
    fn a_name_of_another_template_is_not_used() {
        let mut templates = Templates::default();
        templates.found(None, "gpu", None);
        assert_eq!(templates.name(None, &shape(&[("gpu.dra-driver.dev", 1)])), "gpu-2");
        assert_eq!(templates.name(Some("other"), &shape(&[("gpu.dra-driver.dev", 1)])), "gpu");
    }

    #[test]
    fn templates_that_are_not_needed_after_all_leave_nothing() {
        let mut templates = Templates::default();
        templates.name(None, &shape(&[("mig-1g.5gb", 1)]));
        let mark = templates.mark();
        templates.name(None, &shape(&[("mig-2g.10gb", 1)]));
        templates.back_to(mark);
        assert_eq!(templates.fresh().len(), 1);
        assert_eq!(templates.shape(None, "mig-2g.10gb"), None);
        let mut other = Templates::default();
        other.inherit(&templates);
        assert_eq!(other.name(None, &shape(&[("mig-1g.5gb", 1)])), "mig-1g.5gb");
        assert!(other.fresh().is_empty(), "the base has it");
    }
}
