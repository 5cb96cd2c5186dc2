//! Whether files of a crate use each other in a circle, read from their paths: `use` and names with `::` in the code.
//!
//! A name that a module imports from another file counts as use of that file, so a re-export alone is no use. Methods are not
//! seen: a file may add methods to a type of another one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A module by its path in the crate, or any other path.
type ModulePath = Vec<String>;

/// The files of a crate by their modules: name and text.
type Files = BTreeMap<ModulePath, (String, String)>;

/// What a file says about other files.
#[derive(Debug, Default)]
struct Source {
    name: String,
    /// Imported names: what they are, and whether they are re-exported.
    imports: BTreeMap<String, (ModulePath, bool)>,
    /// Paths with `::` in the code.
    paths: Vec<ModulePath>,
    /// Single names in the code.
    names: BTreeSet<String>,
}

/// The uses, `from -> to`, that are part of a circle of files of the crate in this folder.
pub(super) fn circles(root: &Path) -> Vec<String> {
    let files = super::sources(root).into_iter().filter_map(|file| {
        let inside = file.strip_prefix(root).unwrap().with_extension("");
        let mut module: ModulePath = inside.iter().map(|it| it.to_str().unwrap().to_owned()).collect();
        let is_test = module.iter().any(|it| ["tests", "fixture", "examples"].contains(&it.as_str()));
        if is_test || module == ["main"] {
            return None;
        }
        module.pop_if(|it| *it == "mod" || *it == "lib");
        Some((module, (inside.display().to_string(), std::fs::read_to_string(&file).unwrap())))
    });
    in_circles(&files.collect())
}

fn in_circles(files: &Files) -> Vec<String> {
    let sources: BTreeMap<&ModulePath, Source> =
        files.iter().map(|(module, (name, text))| (module, read(module, name, text, files))).collect();
    let uses: BTreeMap<&ModulePath, BTreeSet<&ModulePath>> =
        sources.keys().map(|module| (*module, used(module, &sources))).collect();
    let reached = |from: &ModulePath| {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&ModulePath> = uses[from].iter().copied().collect();
        while let Some(module) = open.pop() {
            if seen.insert(module) {
                open.extend(&uses[module]);
            }
        }
        seen
    };
    let back: BTreeMap<&ModulePath, BTreeSet<&ModulePath>> =
        uses.keys().map(|it| (*it, reached(it))).collect();
    let name = |it: &ModulePath| sources[it].name.clone();
    let edges = uses.iter().flat_map(|(from, to)| to.iter().map(move |it| (*from, *it)));
    let circular = edges.filter(|(from, to)| back[to].contains(from));
    circular.map(|(from, to)| format!("{} -> {}", name(from), name(to))).collect()
}

/// The other files that a file uses.
fn used<'a>(module: &ModulePath, sources: &BTreeMap<&'a ModulePath, Source>) -> BTreeSet<&'a ModulePath> {
    let source = &sources[module];
    let imported =
        source.imports.iter().filter(|(name, (_, is_shown))| !is_shown || source.names.contains(*name));
    let imported = imported.map(|(_, (path, _))| path.clone());
    let written = source.paths.iter().map(|path| match source.imports.get(&path[0]) {
        Some((import, _)) => import.iter().chain(&path[1..]).cloned().collect(),
        None => absolute(module, path, |it| sources.contains_key(it)),
    });
    let all = imported.chain(written).filter_map(|path| owner(&path, sources));
    all.filter(|it| *it != module).collect()
}

/// The file in which the thing at this path is defined, or which stands for its crate's own name for it.
fn owner<'a>(path: &ModulePath, sources: &BTreeMap<&'a ModulePath, Source>) -> Option<&'a ModulePath> {
    let mut path = path.clone();
    // A chain of re-exports is no longer than this.
    for _ in 0..8 {
        if path.first().is_some_and(|it| it == OUTSIDE) {
            return None;
        }
        let length = (0..=path.len()).rev().find(|it| sources.contains_key(&path[..*it].to_vec()))?;
        let (module, source) = sources.get_key_value(&path[..length].to_vec())?;
        match path.get(length).and_then(|it| source.imports.get(it)) {
            Some((import, _)) => path = import.iter().chain(&path[length + 1..]).cloned().collect(),
            None => return Some(*module),
        }
    }
    None
}

/// The first part of a path into another crate.
const OUTSIDE: &str = "";

/// The path from the root of the crate.
fn absolute(module: &ModulePath, path: &[String], is_module: impl Fn(&ModulePath) -> bool) -> ModulePath {
    let mut from = module.clone();
    let mut rest = path;
    match path[0].as_str() {
        "crate" => return path[1..].to_vec(),
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|it| it == "super") {
                from.pop();
                rest = &rest[1..];
            }
        }
        child if is_module(&[module.as_slice(), &[child.to_owned()]].concat()) => {}
        _ => return vec![OUTSIDE.to_owned()],
    }
    from.extend_from_slice(rest);
    from
}

/// Reads a file.
fn read(module: &ModulePath, name: &str, text: &str, files: &Files) -> Source {
    let tokens = tokens(text);
    let mut source = Source { name: name.to_owned(), ..Source::default() };
    let mut at = 0;
    while at < tokens.len() {
        let rest = &tokens[at..];
        if let Some(length) = test_module(rest) {
            at += length;
        } else if rest[0] == "use" {
            let end = rest.iter().position(|it| it == ";").unwrap_or(rest.len());
            let is_shown = at > 0 && [")", "pub"].contains(&tokens[at - 1].as_str());
            for (path, alias) in tree(&rest[1..end], &[]) {
                let path = absolute(module, &path, |it| files.contains_key(it));
                source.imports.insert(alias, (path, is_shown));
            }
            at += end + 1;
        } else if rest[0] == "mod" && rest.get(2).is_some_and(|it| it == ";") {
            at += 3;
        } else if is_name(&rest[0]) {
            let mut length = 1;
            while rest.get(length).is_some_and(|it| it == "::")
                && rest.get(length + 1).is_some_and(|it| is_name(it))
            {
                length += 2;
            }
            source.names.insert(rest[0].clone());
            if length > 1 {
                source.paths.push(rest[..length].iter().filter(|it| *it != "::").cloned().collect());
            }
            at += length;
        } else {
            at += 1;
        }
    }
    source
}

/// How many tokens a module, or an import, for tests takes; nothing where none begins here.
fn test_module(tokens: &[String]) -> Option<usize> {
    const TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    if !tokens.iter().map(String::as_str).take(TEST.len()).eq(TEST) {
        return None;
    }
    // Before the word there may be `pub(crate)`.
    let mut words = tokens[TEST.len()..].iter().take(5);
    if !words.any(|it| it == "mod" || it == "use") {
        return Some(TEST.len());
    }
    let mut depth = 0;
    let is_end = |token: &String| {
        depth += i32::from(token == "{") - i32::from(token == "}");
        depth == 0 && (token == "}" || token == ";")
    };
    let end = tokens.iter().position(is_end);
    Some(end.map_or(tokens.len(), |it| it + 1))
}

/// The paths of a `use`, each with the name that it has in the file.
fn tree(tokens: &[String], before: &[String]) -> Vec<(ModulePath, String)> {
    let mut path = before.to_vec();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "::" => {}
            "{" => {
                let inner = &tokens[at + 1..tokens.len() - 1];
                let mut depth = 0;
                let parts = inner.split(|it| {
                    depth += i32::from(it == "{") - i32::from(it == "}");
                    it == "," && depth == 0
                });
                return parts.filter(|it| !it.is_empty()).flat_map(|it| tree(it, &path)).collect();
            }
            "as" => return vec![(path, tokens[at + 1].clone())],
            "self" if !path.is_empty() => {}
            name => path.push(name.to_owned()),
        }
        at += 1;
    }
    let alias = path.last().cloned().unwrap_or_default();
    vec![(path, alias)]
}

fn is_name(token: &str) -> bool {
    token.starts_with(|it: char| it.is_ascii_alphabetic() || it == '_')
}

/// The tokens of a text, without comments, texts and lifetimes.
fn tokens(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    let at = |index: usize| characters.get(index).copied().unwrap_or(' ');
    let find = |from: usize, end: &str| {
        let end: Vec<char> = end.chars().collect();
        (from..characters.len())
            .find(|it| characters[*it..].starts_with(&end))
            .map_or(characters.len(), |it| it + end.len())
    };
    let mut found = Vec::new();
    let mut index = 0;
    while index < characters.len() {
        let hashes = (index + 1..).take_while(|it| at(*it) == '#').count();
        match (at(index), at(index + 1)) {
            ('/', '/') => index = find(index, "\n"),
            ('/', '*') => index = find(index, "*/"),
            ('r', '"' | '#') if at(index + 1 + hashes) == '"' => {
                index = find(index + 2 + hashes, &format!("\"{}", "#".repeat(hashes)));
            }
            ('"', _) => {
                index += 1;
                while index < characters.len() && at(index) != '"' {
                    index += if at(index) == '\\' { 2 } else { 1 };
                }
                index += 1;
            }
            ('\'', '\\') => index = find(index + 3, "'"),
            ('\'', _) if at(index + 2) == '\'' => index += 3,
            (':', ':') => {
                found.push("::".to_owned());
                index += 2;
            }
            (first, _) if first.is_ascii_alphanumeric() || first == '_' => {
                let length =
                    (index..).take_while(|it| at(*it).is_ascii_alphanumeric() || at(*it) == '_').count();
                found.push(characters[index..index + length].iter().collect());
                index += length;
            }
            (first, _) => {
                if !first.is_whitespace() && first != '\'' {
                    found.push(first.to_string());
                }
                index += 1;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The circles of a crate with these files.
    fn of(files: &[(&str, &str)]) -> Vec<String> {
        let module = |name: &str| match name {
            "lib" => Vec::new(),
            name => name.trim_end_matches("/mod").split('/').map(str::to_owned).collect(),
        };
        let files = files.iter().map(|(name, text)| (module(name), ((*name).to_owned(), (*text).to_owned())));
        in_circles(&files.collect())
    }

    #[test]
    fn files_that_use_each_other_are_found_by_imports_and_by_paths() {
        let both = ["a -> b", "b -> a"];
        assert_eq!(of(&[("a", "use crate::b::B;"), ("b", "use super::a::A;")]), both);
        assert_eq!(of(&[("a", "use crate::{b::{self, B}, c};"), ("b", "fn f() { crate::a::f() }")]), both);
        assert_eq!(of(&[("a", "use crate::b as x; fn f() { x::f() }"), ("b", "use crate::a;")]), both);
        let three = [
            ("a", "use crate::b::B;"),
            ("b", "use crate::c::C;"),
            ("c", "use crate::a::A;"),
            ("d", "use crate::a::A;"),
        ];
        assert_eq!(of(&three), ["a -> b", "b -> c", "c -> a"]);
    }

    #[test]
    fn a_child_that_uses_its_parent_is_in_a_circle_where_the_parent_uses_it() {
        let parent = "mod child; use child::Child; pub struct Parent(Child);";
        assert_eq!(
            of(&[("m/mod", parent), ("m/child", "use super::Parent;")]),
            ["m/mod -> m/child", "m/child -> m/mod"]
        );
        let shows_it = "mod child; pub use child::Child; pub struct Parent;";
        assert_eq!(of(&[("m/mod", shows_it), ("m/child", "use super::Parent;")]), [""; 0]);
    }

    #[test]
    fn a_name_that_a_parent_shows_is_its_childs() {
        let parent = "mod one; mod two; pub use one::One; pub use two::Two;";
        let files = |two| [("m/mod", parent), ("m/one", "pub struct One;"), ("m/two", two)];
        assert_eq!(of(&files("use super::One; pub struct Two(One);")), [""; 0]);
        let one = ("m/one", "pub struct One(super::Two);");
        assert_eq!(
            of(&[files("use super::One;")[0], one, files("use super::One;")[2]]),
            ["m/one -> m/two", "m/two -> m/one"]
        );
    }

    #[test]
    fn comments_texts_and_tests_are_no_use() {
        let a = ("a", "use crate::b::B;");
        for b in [
            "// crate::a::A\n",
            "/* crate::a::A */",
            "const A: &str = \"use crate::a::A;\";",
            "const A: &str = r#\"\"use crate::a::A;\"#;",
            "#[cfg(test)]\nmod tests { use crate::a::A; fn f() {} }",
            "#[cfg(test)]\nuse crate::a::A;",
            "use other::a::A;",
        ] {
            assert_eq!(of(&[a, ("b", b)]), [""; 0], "{b}");
        }
        assert_eq!(
            of(&[a, ("b", "const Q: char = '\"'; fn f<'a>() { crate::a::f() }")]),
            ["a -> b", "b -> a"]
        );
    }
}
