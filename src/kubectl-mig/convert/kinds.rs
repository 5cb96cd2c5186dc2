//! Where objects have pod specs: a list of (API version, kind, path) that the user can extend.

use std::str::FromStr;

use super::classes::Classes;
use super::known::{FILLED_IN, KNOWN};
use super::traits::Traits;

/// Most steps of a path.
const MAX_STEPS: usize = 32;

/// Where objects of one kind have a pod spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodTemplate {
    /// `apps/v1`, or `ray.io/*` for any version.
    api_version: String,
    kind: String,
    path: Vec<Step>,
    traits: Traits,
}

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A field of an object.
    Field(String),
    /// Every item of a list.
    Items,
    /// Every value of a map.
    Values,
}

impl PodTemplate {
    /// Whether this is about objects of a kind.
    fn is_of(&self, api_version: &str, kind: &str) -> bool {
        let group = |it: &str| it.rsplit_once('/').map(|(group, _)| group.to_owned());
        let version = match self.api_version.strip_suffix("/*") {
            Some(any) => group(api_version).as_deref() == Some(any),
            None => self.api_version == api_version,
        };
        version && self.kind == kind
    }

    pub(super) fn path(&self) -> &[Step] {
        &self.path
    }

    pub(super) fn traits(&self) -> Traits {
        self.traits
    }
}

impl FromStr for PodTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted =
            "write API_VERSION/KIND=PATH, such as example.com/*/Trainer=spec.workers[*].template.spec";
        let (name, path) = text.split_once('=').ok_or(wanted)?;
        let (api_version, kind) = name.rsplit_once('/').ok_or(wanted)?;
        let is_name =
            |it: &str| !it.is_empty() && it.chars().all(|it| it.is_ascii_alphanumeric() || "-.".contains(it));
        let version = api_version.strip_suffix("/*").unwrap_or(api_version);
        if !is_name(kind) || !version.split('/').all(is_name) || version.split('/').count() > 2 {
            return Err(format!("`{name}` is not an API version and a kind; {wanted}"));
        }
        let path = steps(path).ok_or_else(|| format!("`{path}` is not a path; {wanted}"))?;
        Ok(Self { api_version: api_version.to_owned(), kind: kind.to_owned(), path, traits: FILLED_IN })
    }
}

/// The steps of `spec.a[*].b.*.spec`.
fn steps(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let name = part.trim_end_matches("[*]");
        let lists = (part.len() - name.len()) / "[*]".len();
        match name {
            "" => return None,
            "*" => steps.push(Step::Values),
            _ if name.chars().all(|it| it.is_ascii_alphanumeric() || "-_".contains(it)) => {
                steps.push(Step::Field(name.to_owned()));
            }
            _ => return None,
        }
        steps.extend(std::iter::repeat_n(Step::Items, lists));
    }
    (steps.len() <= MAX_STEPS).then_some(steps)
}

/// What a conversion knows of the cluster: kinds with pod specs, and device classes.
#[derive(Debug)]
pub(super) struct Knowledge {
    kinds: Vec<PodTemplate>,
    pub(super) classes: Classes,
}

impl Knowledge {
    /// What is built in, and what the user adds.
    pub(super) fn with(pod_templates: &[PodTemplate], device_classes: &[String]) -> Self {
        let known = KNOWN.iter().flat_map(|(api_version, kind, paths, traits)| {
            paths.iter().filter_map(|path| {
                let (api_version, kind) = ((*api_version).to_owned(), (*kind).to_owned());
                Some(PodTemplate { api_version, kind, path: steps(path)?, traits: *traits })
            })
        });
        Self {
            kinds: known.chain(pod_templates.iter().cloned()).collect(),
            classes: Classes::shipped_and(device_classes),
        }
    }

    /// Where objects of a kind have pod specs.
    pub(super) fn pod_templates(&self, api_version: &str, kind: &str) -> Vec<&PodTemplate> {
        self.kinds.iter().filter(|it| it.is_of(api_version, kind)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::traits::Advice;
    use super::*;

    #[test]
    fn every_known_path_can_be_read() {
        let count = KNOWN.iter().map(|(_, _, paths, _)| paths.len()).sum::<usize>();
        let knowledge = Knowledge::with(&[], &[]);
        assert_eq!(knowledge.kinds.len(), count);
        for (api_version, kind, paths, _) in KNOWN {
            for path in *paths {
                let flag = format!("{api_version}/{kind}={path}");
                assert!(flag.parse::<PodTemplate>().is_ok(), "{flag}");
            }
        }
    }

    #[test]
    fn the_documentation_lists_every_kind() {
        let page = include_str!("../../../docs/migrating.md");
        let kinds = page.split("\n#### Kinds\n").nth(1).unwrap().split("\n#### ").next().unwrap();
        for (api_version, kind, _, traits) in KNOWN {
            let converted = !matches!(traits.advice, Advice::Refused(_));
            let listed = kinds.split(|it: char| !it.is_ascii_alphanumeric()).any(|it| it == *kind);
            assert!(listed || !converted, "{api_version} {kind}");
        }
    }

    #[test]
    fn a_version_is_one_or_any() {
        let knowledge = Knowledge::with(&[], &[]);
        let has = |api_version, kind| !knowledge.pod_templates(api_version, kind).is_empty();
        assert!(has("v1", "Pod") && has("ray.io/v1", "RayCluster") && has("ray.io/v1alpha1", "RayCluster"));
        assert!(!has("v2", "Pod") && !has("example.com/v1", "Pod") && !has("ray.io", "RayCluster"));
        assert!(!has("batch/v1", "JobSet"));
    }

    #[test]
    fn a_flag_adds_a_kind_and_a_wrong_one_is_explained() {
        let flag =
            "example.com/*/Trainer=spec.groups.*.workers[*][*].template.spec".parse::<PodTemplate>().unwrap();
        let field = |name: &str| Step::Field(name.to_owned());
        let path = [
            field("spec"),
            field("groups"),
            Step::Values,
            field("workers"),
            Step::Items,
            Step::Items,
            field("template"),
            field("spec"),
        ];
        assert_eq!(flag.path(), path);
        assert!(!Knowledge::with(&[flag], &[]).pod_templates("example.com/v3", "Trainer").is_empty());
        let deep = format!("v1/A={}", ["a"; 33].join("."));
        for wrong in [
            "",
            "Kind=spec",
            "v1/Kind",
            "v1/Kind=",
            "v1/Kind=a..b",
            "v1/Kind=a[0]",
            "v1/K ind=a",
            "a/b/c/K=a",
            &deep,
        ] {
            assert!(wrong.parse::<PodTemplate>().unwrap_err().contains("example.com/*/Trainer="), "{wrong}");
        }
    }
}
