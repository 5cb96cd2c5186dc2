//! Kustomizations: which files are patches, and which files are built together.
//!
//! Files that one kustomization lists share their ResourceClaimTemplates, because kustomize refuses two resources with one name;
//! those of its bases count, too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::findings::{Findings, Place};
use super::search::{Subject, search};
use super::tree::{self, Node};

/// The names that kustomize looks for in a directory.
pub(super) const NAMES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Objects, as far as is known.
    Manifest,
    /// A kustomization.
    Kustomization,
    /// A patch that a kustomization lists.
    Patch,
}

/// A file: its absolute path, if it has one, and its text.
#[derive(Debug, Clone, Copy)]
pub(super) struct File<'a> {
    pub(super) path: Option<&'a Path>,
    pub(super) text: &'a str,
}

/// How files belong together.
#[derive(Debug)]
pub(super) struct Layout {
    /// For each file.
    pub(super) roles: Vec<Role>,
    /// For each file the number of its group. The files of a group share templates.
    pub(super) groups: Vec<usize>,
    /// All groups, bases before what builds on them.
    pub(super) order: Vec<usize>,
    /// For each group those that it builds on, directly.
    pub(super) bases: Vec<Vec<usize>>,
}

impl Layout {
    /// Files that have nothing to do with kustomize and share their templates.
    pub(super) fn one_group(files: usize) -> Self {
        Self {
            roles: vec![Role::Manifest; files],
            groups: vec![0; files],
            order: vec![0],
            bases: vec![Vec::new()],
        }
    }

    /// Reads the kustomizations among `files`, and `beside`: those that are not converted but may list files that are.
    /// With `stream` all files share their templates, because they become one file.
    pub(super) fn of(files: &[File<'_>], beside: &[File<'_>], stream: bool) -> Self {
        let mut lists = Lists::default();
        for file in files.iter().chain(beside).filter(|it| is_kustomization(it.path)) {
            lists.read(file);
        }
        let role = |file: &File<'_>| match file.path {
            Some(_) if is_kustomization(file.path) => Role::Kustomization,
            Some(path) if lists.patches.contains(path) => Role::Patch,
            _ => Role::Manifest,
        };
        let roles = files.iter().map(role).collect();
        if stream {
            return Self { roles, ..Self::one_group(files.len()) };
        }
        // Group numbers: first one for each kustomization, then one for each file without.
        let directories: Vec<&PathBuf> = lists.entries.keys().collect();
        let number: BTreeMap<&Path, usize> =
            directories.iter().enumerate().map(|(number, it)| (it.as_path(), number)).collect();
        let mut count = directories.len();
        let groups = files
            .iter()
            .map(|file| {
                let own = file.path.filter(|_| is_kustomization(file.path)).and_then(Path::parent);
                let listed = || file.path.and_then(|it| lists.owner.get(it)).map(PathBuf::as_path);
                own.or_else(listed).and_then(|it| number.get(it).copied()).unwrap_or_else(|| {
                    count += 1;
                    count - 1
                })
            })
            .collect();
        let mut bases = vec![Vec::new(); count];
        for (directory, entries) in &lists.entries {
            if let Some(group) = number.get(directory.as_path()) {
                bases[*group] = entries.iter().filter_map(|it| number.get(it.as_path()).copied()).collect();
            }
        }
        Self { roles, groups, order: bases_first(&bases), bases }
    }
}

/// What kustomizations list.
#[derive(Debug, Default)]
struct Lists {
    patches: BTreeSet<PathBuf>,
    /// By directory.
    entries: BTreeMap<PathBuf, Vec<PathBuf>>,
    /// The directory of the kustomization that lists a file.
    owner: BTreeMap<PathBuf, PathBuf>,
}

impl Lists {
    fn read(&mut self, file: &File<'_>) {
        let Some(directory) = file.path.and_then(Path::parent) else { return };
        // What cannot be read is reported when the file is converted.
        let documents = tree::parse(file.text).unwrap_or_default();
        let Some(root) = documents.first().map(|it| &it.root) else { return };
        let paths = |field: &str, inner: Option<&str>| -> Vec<PathBuf> {
            let items = root.get(field).map_or(&[][..], Node::items).iter();
            let texts = items.filter_map(|it| match inner {
                Some(key) => it.get(key)?.text(),
                None => it.text(),
            });
            texts.filter(|it| !it.contains('\n')).map(|it| resolved(directory, it)).collect()
        };
        self.patches.extend(paths("patches", Some("path")));
        self.patches.extend(paths("patchesJson6902", Some("path")));
        self.patches.extend(paths("patchesStrategicMerge", None));
        let mut entries = paths("resources", None);
        entries.extend(paths("bases", None));
        entries.extend(paths("components", None));
        for entry in &entries {
            self.owner.entry(entry.clone()).or_insert_with(|| directory.to_owned());
        }
        self.entries.insert(directory.to_owned(), entries);
    }
}

fn is_kustomization(path: Option<&Path>) -> bool {
    let name = path.and_then(Path::file_name).and_then(|it| it.to_str());
    name.is_some_and(|it| NAMES.contains(&it))
}

/// A path relative to a directory, without `.` and `..`.
fn resolved(directory: &Path, entry: &str) -> PathBuf {
    let mut out = PathBuf::new();
    for part in directory.join(entry).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// All groups in an order in which bases come first; a circle is cut somewhere.
fn bases_first(bases: &[Vec<usize>]) -> Vec<usize> {
    let mut order = Vec::new();
    let mut visited = vec![false; bases.len()];
    for start in 0..bases.len() {
        // Depth first, without recursion: a group is done when its bases are.
        let mut stack = vec![(start, false)];
        while let Some((group, done)) = stack.pop() {
            if done {
                order.push(group);
            } else if !std::mem::replace(&mut visited[group], true) {
                stack.push((group, true));
                stack.extend(bases[group].iter().map(|it| (*it, false)));
            }
        }
    }
    order
}

/// Reports patches in a kustomization that name devices, and prefixes that break the names of templates; `templates` where
/// what it builds has any.
pub(super) fn remark(root: &Node<'_>, place: &Place<'_>, templates: bool, findings: &mut Findings<'_>) {
    search(root, place, Subject::Kustomization, findings);
    for field in ["namePrefix", "nameSuffix"] {
        let Some(value) = root.get(field).filter(|it| templates && !it.is_null()) else { continue };
        if root.get("configurations").is_none() {
            let why = "kustomize gives ResourceClaimTemplates this name but does not change resourceClaimTemplateName in pods; add a \
                 file with a nameReference under `configurations`, as docs/migrating.md shows";
            findings.review(value, &place.field(field), why.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_come_before_what_builds_on_them_and_circles_end() {
        assert_eq!(bases_first(&[vec![1, 2], vec![2], vec![]]), [2, 1, 0]);
        let circle = bases_first(&[vec![1], vec![0]]);
        assert_eq!(circle.len(), 2);
    }

    #[test]
    fn a_kustomization_says_what_its_files_are() {
        let base = "resources:\n- deployment.yaml\n- ./service.yaml\n";
        let overlay = "resources: [../base, own.yaml]\npatches:\n- path: patch.yaml\n- patch: |-\n    a: 1\n  target: {kind: X}\n\
                       patchesStrategicMerge: [merge.yaml]\npatchesJson6902:\n- path: json.yaml\n  target: {kind: X}\n";
        let paths = [
            ("/k/overlay/kustomization.yaml", overlay),
            ("/k/overlay/own.yaml", ""),
            ("/k/overlay/patch.yaml", ""),
            ("/k/overlay/merge.yaml", ""),
            ("/k/overlay/json.yaml", ""),
            ("/k/base/kustomization.yaml", base),
            ("/k/base/deployment.yaml", ""),
            ("/k/base/service.yaml", ""),
            ("/k/other.yaml", ""),
        ];
        let files: Vec<File<'_>> =
            paths.iter().map(|(path, text)| File { path: Some(Path::new(path)), text }).collect();
        let layout = Layout::of(&files, &[], false);
        let Role::Manifest = layout.roles[1] else { panic!("{:?}", layout.roles) };
        assert!(layout.roles[2..5].iter().all(|it| *it == Role::Patch), "{:?}", layout.roles);
        assert_eq!(layout.roles[0], Role::Kustomization);
        assert!(layout.roles[6..].iter().all(|it| *it == Role::Manifest), "{:?}", layout.roles);
        let [overlay, base] = [layout.groups[0], layout.groups[5]];
        assert_eq!(layout.groups[1], overlay);
        assert_eq!([layout.groups[6], layout.groups[7]], [base, base]);
        assert!(layout.groups[8] != base && layout.groups[8] != overlay);
        assert_eq!(layout.bases[overlay], [base]);
        let at = |group| layout.order.iter().position(|it| *it == group).unwrap();
        assert!(at(base) < at(overlay));
        assert!(Layout::of(&files, &[], true).groups.iter().all(|it| *it == 0));
    }
}
