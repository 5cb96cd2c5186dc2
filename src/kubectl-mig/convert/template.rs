//! Claim templates: one per shape and namespace.

use std::collections::{BTreeMap, BTreeSet};
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

/// The templates of a file: those that it has and those that are made for it.
#[derive(Debug, Default)]
pub(super) struct Templates {
    /// Name by namespace and shape.
    made: BTreeMap<(Option<String>, Shape), String>,
    /// Namespace and name of those that there are.
    taken: BTreeSet<(Option<String>, String)>,
    /// Not yet written down.
    fresh: Vec<String>,
}

impl Templates {
    /// Notes a template that the file has. `shape` where it is one that would be made for a shape.
    pub(super) fn found(&mut self, namespace: Option<&str>, name: &str, shape: Option<Shape>) {
        let namespace = namespace.map(str::to_owned);
        if let Some(shape) = shape {
            self.made.insert((namespace.clone(), shape), name.to_owned());
        }
        self.taken.insert((namespace, name.to_owned()));
    }

    /// The name of the template for a shape; made if there is none.
    pub(super) fn name(&mut self, namespace: Option<&str>, shape: &Shape) -> String {
        let key = (namespace.map(str::to_owned), shape.clone());
        if let Some(name) = self.made.get(&key) {
            return name.clone();
        }
        let plain = name_of(shape);
        let mut name = plain.clone();
        let mut number = 2;
        while self.taken.contains(&(key.0.clone(), name.clone())) {
            name = format!("{plain}-{number}");
            number += 1;
        }
        self.fresh.push(manifest(&name, namespace, shape));
        self.taken.insert((key.0.clone(), name.clone()));
        self.made.insert(key, name.clone());
        name
    }

    /// Gives manifests back that could not be written down, for the next one who writes.
    pub(super) fn put_back(&mut self, manifests: Vec<String>) {
        self.fresh.splice(0..0, manifests);
    }

    /// The manifests made since the last call.
    pub(super) fn take_fresh(&mut self) -> Vec<String> {
        std::mem::take(&mut self.fresh)
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
        let fresh = templates.take_fresh();
        assert_eq!(fresh.len(), 3);
        assert!(fresh[1].contains("\n  namespace: team\n"), "{}", fresh[1]);
        assert!(
            fresh[2].ends_with("deviceClassName: gpu.dra-driver.dev\n          count: 2\n"),
            "{}",
            fresh[2]
        );
        assert!(templates.take_fresh().is_empty());
    }

    #[test]
    fn a_name_that_somebody_else_uses_is_not_taken() {
        let mut templates = Templates::default();
        templates.found(None, "gpu", None);
        assert_eq!(templates.name(None, &shape(&[("gpu.dra-driver.dev", 1)])), "gpu-2");
        assert_eq!(templates.name(Some("other"), &shape(&[("gpu.dra-driver.dev", 1)])), "gpu");
    }
}
