//! Changes to a document, made twice: in its text, line by line, and in its data. [`applied`] answers only if both agree.
//!
//! Kept: every line that no change concerns, comments on removed lines (they move to a separate line), the
//! style of quotes and the line ends. Lost: comments inside braces from which something is removed.

use std::collections::BTreeMap;
use std::ops::Range;

use super::tree::{self, Content, Document, Node};
use super::yaml::quoted;

/// An item of a list that is added: keys and values.
pub(super) type Item = Vec<(&'static str, String)>;

/// A change of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Remove an entry of a mapping.
    Remove(usize),
    /// Give an entry of a mapping another key.
    Rename(usize, String),
    /// Add an entry to a mapping: a list of items.
    Add(&'static str, Vec<Item>),
    /// Add items to a sequence.
    Append(Vec<Item>),
}

/// Changes by the id of the node that they are about.
#[derive(Debug, Default)]
pub(super) struct Changes(BTreeMap<usize, Vec<Change>>);

impl Changes {
    pub(super) fn add(&mut self, node: &Node<'_>, change: Change) {
        self.0.entry(node.id).or_default().push(change);
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&self, node: &Node<'_>) -> &[Change] {
        self.0.get(&node.id).map_or(&[], Vec::as_slice)
    }

    fn removes(&self, node: &Node<'_>, entry: usize) -> bool {
        self.of(node).contains(&Change::Remove(entry))
    }
}

/// The text of a document with the changes made and `before`, whole documents, in front of it. `None` where the layout of
/// the text does not allow it, or the result would not mean what the changes say.
pub(super) fn applied(
    text: &str,
    document: &Document<'_>,
    changes: &Changes,
    before: &[String],
) -> Option<String> {
    let region = &text[document.start..document.end];
    let eol = if text.split('\n').next().is_some_and(|line| line.ends_with('\r')) { "\r\n" } else { "\n" };
    // With a line end at its end every line can be treated alike.
    let whole = if region.ends_with('\n') { region.to_owned() } else { format!("{region}{eol}") };
    let mut editor = Editor { text: &whole, base: document.start, eol, edits: Vec::new() };
    editor.node(&document.root, changes)?;
    let mut out = prefix(before, region.starts_with("---"), eol);
    let edited = editor.finish()?;
    out.push_str(if region.ends_with('\n') { &edited } else { edited.strip_suffix(eol)? });

    let parsed = tree::parse(&out).ok()?;
    let mut wanted = Vec::new();
    for text in before {
        wanted.extend(tree::parse(text).ok()?.iter().map(|it| data(&it.root, &Changes::default())));
    }
    wanted.push(data(&document.root, changes));
    let found: Vec<Data> = parsed.iter().map(|it| data(&it.root, &Changes::default())).collect();
    (found == wanted).then_some(out)
}

/// Whole documents in front of another one, which has its own `---` or needs one now.
fn prefix(before: &[String], marked: bool, eol: &str) -> String {
    let mut out = String::new();
    for (index, text) in before.iter().enumerate() {
        if marked || index > 0 {
            out.push_str("---\n");
        }
        out.push_str(text);
    }
    if !before.is_empty() && !marked {
        out.push_str("---\n");
    }
    out.replace('\n', eol)
}

/// What a document says, without its layout.
#[derive(Debug, PartialEq)]
enum Data {
    Scalar { value: String, plain: bool, tagged: bool },
    Alias(usize),
    Sequence(Vec<Data>),
    Mapping(Vec<(Data, Data)>),
}

impl Data {
    fn string(value: &str) -> Self {
        // Written with quotes or without: it is a string that cannot be read as anything else.
        Self::Scalar { value: value.to_owned(), plain: false, tagged: false }
    }

    fn items(items: &[Item]) -> Vec<Self> {
        let item = |item: &Item| {
            Self::Mapping(item.iter().map(|(key, value)| (Self::string(key), Self::string(value))).collect())
        };
        items.iter().map(item).collect()
    }
}

fn data(node: &Node<'_>, changes: &Changes) -> Data {
    match &node.content {
        Content::Scalar { value, plain, .. } => {
            let plain = *plain && !is_name(value);
            Data::Scalar { value: value.as_ref().to_owned(), plain, tagged: node.tagged }
        }
        Content::Alias(number) => Data::Alias(*number),
        Content::Sequence { items, .. } => {
            let mut items: Vec<Data> = items.iter().map(|it| data(it, changes)).collect();
            for change in changes.of(node) {
                if let Change::Append(added) = change {
                    items.extend(Data::items(added));
                }
            }
            Data::Sequence(items)
        }
        Content::Mapping { entries, .. } => {
            let kept = entries.iter().enumerate().filter(|(index, _)| !changes.removes(node, *index));
            let renamed = |index: usize| {
                changes.of(node).iter().find_map(|it| match it {
                    Change::Rename(entry, key) if *entry == index => Some(Data::string(key)),
                    _ => None,
                })
            };
            let mut entries: Vec<(Data, Data)> = kept
                .map(|(index, (key, value))| {
                    (renamed(index).unwrap_or_else(|| data(key, changes)), data(value, changes))
                })
                .collect();
            for change in changes.of(node) {
                if let Change::Add(key, items) = change {
                    entries.push((Data::string(key), Data::Sequence(Data::items(items))));
                }
            }
            Data::Mapping(entries)
        }
    }
}

/// True for a text that is a string with quotes and without.
fn is_name(text: &str) -> bool {
    quoted(text, false) == text
}

/// Replaces ranges of a text.
struct Editor<'t> {
    text: &'t str,
    /// Where the text stands in the file that the nodes' places count in.
    base: usize,
    eol: &'static str,
    edits: Vec<(Range<usize>, String)>,
}

impl Editor<'_> {
    /// Collects the edits of a node, those of its parts first. `None` where the layout is not one that can be edited.
    fn node(&mut self, node: &Node<'_>, changes: &Changes) -> Option<()> {
        let mine = changes.of(node);
        match &node.content {
            Content::Scalar { .. } | Content::Alias(_) => {}
            Content::Sequence { flow, items } => {
                items.iter().try_for_each(|it| self.node(it, changes))?;
                for change in mine {
                    let Change::Append(added) = change else { return None };
                    if *flow {
                        self.append_flow(node, items, added)
                    } else {
                        self.append_block(node, added)
                    }?;
                }
            }
            Content::Mapping { flow, entries } => {
                for (index, (key, value)) in entries.iter().enumerate() {
                    if changes.removes(node, index) {
                        if !*flow {
                            self.remove_lines(key, value)?;
                        }
                        continue;
                    }
                    self.node(value, changes)?;
                    self.rename(key, index, mine);
                }
                if *flow { self.change_flow(node, entries, changes) } else { self.add_block(node, mine) }?;
            }
        }
        Some(())
    }

    fn rename(&mut self, key: &Node<'_>, index: usize, changes: &[Change]) {
        for change in changes {
            if let Change::Rename(entry, name) = change
                && *entry == index
            {
                let json = self.at(key).starts_with('"');
                self.edits.push((key.start - self.base..key.end - self.base, quoted(name, json)));
            }
        }
    }

    /// Takes the lines of an entry away, but not the comments that stand between or behind.
    fn remove_lines(&mut self, key: &Node<'_>, value: &Node<'_>) -> Option<()> {
        let start = self.line_start(key.start - self.base);
        let indent = &self.text[start..key.start - self.base];
        if !indent.chars().all(|it| it == ' ') {
            return None;
        }
        let last = if value.start == value.end { key.end } else { value.end };
        let end = self.line_end(last - self.base);
        let mut kept = String::new();
        for line in self.text[start..end].lines() {
            let comment = if line.trim_start().starts_with('#') { line.find('#') } else { comment_of(line) };
            if let Some(at) = comment {
                kept.push_str(indent);
                kept.push_str(line[at..].trim_end());
                kept.push_str(self.eol);
            }
        }
        self.edits.push((start..end, kept));
        Some(())
    }

    fn add_block(&mut self, node: &Node<'_>, changes: &[Change]) -> Option<()> {
        for change in changes {
            let Change::Add(key, items) = change else { continue };
            let column = self.column(node.start);
            let inner = column + self.list_indent(node);
            let text = format!("{}{key}:{}{}", " ".repeat(column), self.eol, self.block_items(inner, items));
            self.insert_below(node, text);
        }
        Some(())
    }

    fn append_block(&mut self, node: &Node<'_>, items: &[Item]) -> Option<()> {
        self.at(node).starts_with('-').then_some(())?;
        let text = self.block_items(self.column(node.start), items);
        self.insert_below(node, text);
        Some(())
    }

    fn block_items(&self, column: usize, items: &[Item]) -> String {
        let mut out = String::new();
        for item in items {
            for (index, (key, value)) in item.iter().enumerate() {
                let dash = if index == 0 { "- " } else { "  " };
                let value = quoted(value, false);
                out.push_str(&format!("{}{dash}{key}: {value}{}", " ".repeat(column), self.eol));
            }
        }
        out
    }

    /// By how much lists are indented below their key in this mapping; 0 where it has none.
    fn list_indent(&self, node: &Node<'_>) -> usize {
        let list = |(key, value): &(Node<'_>, Node<'_>)| {
            let block = matches!(&value.content, Content::Sequence { flow: false, .. });
            (block && self.at(value).starts_with('-'))
                .then(|| (self.column(value.start), self.column(key.start)))
        };
        let found = node.entries().iter().find_map(list);
        found.map_or(0, |(dash, key)| dash.saturating_sub(key))
    }

    fn append_flow(&mut self, node: &Node<'_>, items: &[Node<'_>], added: &[Item]) -> Option<()> {
        let json = self.at(node).contains('"');
        let text = flow_items(added, json);
        match items.last() {
            Some(last) => self.insert(last.end, format!(", {text}")),
            None => self.edits.push((node.start + 1 - self.base..node.end - 1 - self.base, text)),
        }
        Some(())
    }

    /// Removals and additions inside braces, commas included.
    fn change_flow(
        &mut self,
        node: &Node<'_>,
        entries: &[(Node<'_>, Node<'_>)],
        changes: &Changes,
    ) -> Option<()> {
        if changes.of(node).iter().all(|it| matches!(it, Change::Rename(..))) {
            return Some(());
        }
        let json = entries.iter().any(|(key, _)| self.at(key).starts_with('"'));
        let added: Vec<String> = changes
            .of(node)
            .iter()
            .filter_map(|it| match it {
                Change::Add(key, items) if json => Some(format!("\"{key}\": [{}]", flow_items(items, true))),
                Change::Add(key, items) => Some(format!("{key}: [{}]", flow_items(items, false))),
                _ => None,
            })
            .collect();
        let end = |(key, value): &(Node<'_>, Node<'_>)| key.end.max(value.end) - self.base;
        let kept: Vec<usize> = (0..entries.len()).filter(|it| !changes.removes(node, *it)).collect();
        let (Some(&first), Some(&last)) = (kept.first(), kept.last()) else {
            let inside = node.start + 1 - self.base..node.end - 1 - self.base;
            self.edits.push((inside, added.join(", ")));
            return Some(());
        };
        let mut edits = Vec::new();
        if first > 0 {
            edits.push((entries[0].0.start - self.base..entries[first].0.start - self.base, String::new()));
        }
        for pair in kept.windows(2) {
            if pair[0] + 1 < pair[1] {
                edits.push((end(&entries[pair[0]])..end(&entries[pair[1] - 1]), String::new()));
            }
        }
        let tail = entries.len() - 1;
        let mut text = String::new();
        added.iter().for_each(|it| text.push_str(&format!(", {it}")));
        edits.push((end(&entries[last])..end(&entries[tail]), text));
        self.edits.extend(edits);
        Some(())
    }

    fn insert(&mut self, place: usize, text: String) {
        let at = place - self.base;
        self.edits.push((at..at, text));
    }

    fn insert_below(&mut self, node: &Node<'_>, text: String) {
        let at = self.line_end(node.end - self.base);
        self.edits.push((at..at, text));
    }

    fn at(&self, node: &Node<'_>) -> &str {
        self.text.get(node.start - self.base..node.end - self.base).unwrap_or("")
    }

    fn column(&self, place: usize) -> usize {
        let at = place - self.base;
        at - self.line_start(at)
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |it| it + 1)
    }

    /// The byte after the line end.
    fn line_end(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |it| at + it + 1)
    }

    fn finish(mut self) -> Option<String> {
        // Stable: what is inserted at one place stays in order, parts before the whole.
        self.edits.sort_by_key(|(range, _)| range.start);
        let (mut out, mut at) = (String::with_capacity(self.text.len()), 0);
        for (range, text) in &self.edits {
            out.push_str(self.text.get(at..range.start)?);
            out.push_str(text);
            at = range.end;
        }
        out.push_str(self.text.get(at..)?);
        Some(out)
    }
}

/// Where a comment begins on a line that has no `#` in quotes.
fn comment_of(line: &str) -> Option<usize> {
    line.find(" #").or_else(|| line.find("\t#")).map(|it| it + 1)
}

fn flow_items(items: &[Item], json: bool) -> String {
    let key = |key: &str| if json { format!("\"{key}\"") } else { key.to_owned() };
    let field = |(name, value): &(&str, String)| format!("{}: {}", key(name), quoted(value, json));
    let item = |item: &Item| format!("{{{}}}", item.iter().map(field).collect::<Vec<_>>().join(", "));
    items.iter().map(item).collect::<Vec<_>>().join(", ")
}
