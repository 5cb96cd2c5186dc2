//! YAML as a tree that knows where in the text each node stands.
//!
//! Only reads. Aliases stay aliases, so a text that refers to itself a million times costs nothing. What a text may cost
//! is bounded: its size by the reader, the number of nodes here, the depth by the parser (255 block and 255 flow levels).

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_saphyr::granit_parser::{
    self, Event, Marker, Parser, ScalarStyle, ScanError, Span, StructureStyle,
};

use super::ConvertError;

/// Most nodes of a file; a thousand Deployments have fewer.
const MAX_NODES: usize = 1_000_000;

/// One document of a stream.
#[derive(Debug)]
pub(super) struct Document<'t> {
    /// Byte where it begins: at its `---`, or where the one before ended.
    pub(super) start: usize,
    /// Byte where the next one begins.
    pub(super) end: usize,
    /// Its content.
    pub(super) root: Node<'t>,
}

/// A node and its place.
#[derive(Debug)]
pub(super) struct Node<'t> {
    /// Unique in the file.
    pub(super) id: usize,
    /// First byte of its content; an anchor or a tag may stand before it.
    pub(super) start: usize,
    /// Byte after its content, without white space at its end. `start` where there is no content.
    pub(super) end: usize,
    /// Line, from 1.
    pub(super) line: usize,
    /// The number of its anchor in the document, where an alias may refer to it.
    pub(super) anchor: Option<usize>,
    /// Whether it has a tag such as `!!str`.
    pub(super) tagged: bool,
    /// What it is.
    pub(super) content: Content<'t>,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Content<'t> {
    /// A text, number, anything without parts; `plain` without quotes, `literal` behind `|`, with the lines of the file.
    Scalar { value: Cow<'t, str>, plain: bool, literal: bool },
    /// A reference to the anchor with this number in the document.
    Alias(usize),
    /// A list; `flow` in brackets.
    Sequence { flow: bool, items: Vec<Node<'t>> },
    /// Keys and values; `flow` in braces.
    Mapping { flow: bool, entries: Vec<(Node<'t>, Node<'t>)> },
}

impl<'t> Node<'t> {
    /// The text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar { value, .. } => Some(value),
            _ => None,
        }
    }

    /// The entries of a mapping; none of anything else.
    pub(super) fn entries(&self) -> &[(Node<'t>, Node<'t>)] {
        match &self.content {
            Content::Mapping { entries, .. } => entries,
            _ => &[],
        }
    }

    /// The items of a sequence; none of anything else.
    pub(super) fn items(&self) -> &[Node<'t>] {
        match &self.content {
            Content::Sequence { items, .. } => items,
            _ => &[],
        }
    }

    /// The value of the first entry with this key.
    pub(super) fn get(&self, key: &str) -> Option<&Node<'t>> {
        self.entries().iter().find(|(it, _)| it.text() == Some(key)).map(|(_, value)| value)
    }

    /// True where there is no value: `key:` or `key: null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar { value, plain: true, .. } if matches!(value.as_ref(), "" | "~" | "null"))
    }
}

/// The documents of a text.
///
/// # Errors
/// [`ConvertError::Malformed`] with line and column, [`ConvertError::TooLarge`].
pub(super) fn parse(text: &str) -> Result<Vec<Document<'_>>, ConvertError> {
    parse_within(text, MAX_NODES)
}

fn parse_within(text: &str, limit: usize) -> Result<Vec<Document<'_>>, ConvertError> {
    let mut options = granit_parser::options! {};
    options.set_emit_comments(false);
    let mut builder =
        Builder { text, documents: Vec::new(), open: Vec::new(), anchors: BTreeMap::new(), nodes: 0, limit };
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| malformed(&error))?;
        builder.take(event, span)?;
    }
    let mut documents = builder.documents;
    let ends: Vec<usize> = documents.iter().skip(1).map(|it| it.start).chain([text.len()]).collect();
    for (document, end) in documents.iter_mut().zip(ends) {
        document.end = end;
    }
    Ok(documents)
}

fn malformed(error: &ScanError) -> ConvertError {
    ConvertError::Malformed {
        line: error.marker().line(),
        column: error.marker().col() + 1,
        message: error.info().to_owned(),
    }
}

/// A collection whose end has not come.
struct Open<'t> {
    node: Node<'t>,
    key: Option<Node<'t>>,
}

struct Builder<'t> {
    text: &'t str,
    documents: Vec<Document<'t>>,
    open: Vec<Open<'t>>,
    /// Number of each anchor in its document, by the parser's id.
    anchors: BTreeMap<usize, usize>,
    nodes: usize,
    limit: usize,
}

impl<'t> Builder<'t> {
    fn take(&mut self, event: Event<'t>, span: Span) -> Result<(), ConvertError> {
        let tagged = event.tag().is_some();
        let anchor = event.anchor_id().map(|id| {
            let number = self.anchors.len();
            *self.anchors.entry(id).or_insert(number)
        });
        let content = match event {
            Event::DocumentStart(explicit, _) => {
                self.anchors.clear();
                self.begin(explicit, span)?;
                return Ok(());
            }
            Event::SequenceEnd | Event::MappingEnd => return self.close(span),
            Event::Scalar(value, style, ..) => Content::Scalar {
                value,
                plain: style == ScalarStyle::Plain,
                literal: style == ScalarStyle::Literal,
            },
            Event::Alias(id) => Content::Alias(self.anchors.get(&id).copied().unwrap_or(usize::MAX)),
            Event::SequenceStart(style, ..) => {
                Content::Sequence { flow: style == StructureStyle::Flow, items: Vec::new() }
            }
            Event::MappingStart(style, ..) => {
                Content::Mapping { flow: style == StructureStyle::Flow, entries: Vec::new() }
            }
            _ => return Ok(()),
        };
        self.nodes += 1;
        if self.nodes > self.limit {
            return Err(ConvertError::TooLarge { what: "nodes", limit: self.limit });
        }
        let (start, end) = (byte(span.start)?, byte(span.end)?);
        let end = start + self.text.get(start..end).unwrap_or("").trim_end().len();
        let node = Node { id: self.nodes, start, end, line: span.start.line(), anchor, tagged, content };
        if matches!(node.content, Content::Scalar { .. } | Content::Alias(_)) {
            self.put(node);
        } else {
            self.open.push(Open { node, key: None });
        }
        Ok(())
    }

    fn begin(&mut self, explicit: bool, span: Span) -> Result<(), ConvertError> {
        let start = match (explicit, self.documents.is_empty()) {
            (true, _) => byte(span.start)?,
            (false, true) => 0,
            (false, false) => byte(span.start)?,
        };
        let content = Content::Scalar { value: Cow::Borrowed(""), plain: true, literal: false };
        let root =
            Node { id: 0, start, end: start, line: span.start.line(), anchor: None, tagged: false, content };
        self.documents.push(Document { start, end: start, root });
        Ok(())
    }

    fn close(&mut self, span: Span) -> Result<(), ConvertError> {
        let Some(Open { mut node, .. }) = self.open.pop() else { return Ok(()) };
        match &node.content {
            Content::Sequence { flow: true, .. } | Content::Mapping { flow: true, .. } => {
                node.end = byte(span.end)?
            }
            // The end event of a block collection stands where the next token is; its content ends with its last part.
            Content::Sequence { items, .. } => {
                // Where a list is not indented below its key, its event stands behind the first dash.
                let before = items.first().and_then(|it| self.text.get(..it.start)).unwrap_or("").trim_end();
                if before.ends_with('-') {
                    node.start = before.len() - 1;
                }
                node.end = items.last().map_or(node.start, |it| it.end.max(node.start));
            }
            Content::Mapping { entries, .. } => {
                if let (Some((first, _)), Some((key, value))) = (entries.first(), entries.last()) {
                    node.start = first.start;
                    node.end = key.end.max(if value.start == value.end { key.end } else { value.end });
                }
            }
            _ => {}
        }
        self.put(node);
        Ok(())
    }

    fn put(&mut self, node: Node<'t>) {
        let Some(open) = self.open.last_mut() else {
            if let Some(document) = self.documents.last_mut() {
                document.root = node;
            }
            return;
        };
        match &mut open.node.content {
            Content::Sequence { items, .. } => items.push(node),
            Content::Mapping { entries, .. } => match open.key.take() {
                None => open.key = Some(node),
                Some(key) => entries.push((key, node)),
            },
            _ => {}
        }
    }
}

fn byte(marker: Marker) -> Result<usize, ConvertError> {
    let message = "the place of a node is not known".to_owned();
    let unknown = ConvertError::Malformed { line: marker.line(), column: marker.col() + 1, message };
    marker.byte_offset().ok_or(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, node: &Node<'_>) -> String {
        text[node.start..node.end].to_owned()
    }

    #[test]
    fn every_node_knows_its_place() {
        let text = "# head\nspec:\n  a: 1   # one\n  b:\n  - x: 'q'\n    y: {z: [1, 2]}\n  # last\n";
        let documents = parse(text).unwrap();
        let spec = documents[0].root.get("spec").unwrap();
        assert_eq!(shown(text, spec), "a: 1   # one\n  b:\n  - x: 'q'\n    y: {z: [1, 2]}");
        assert_eq!(shown(text, spec.get("a").unwrap()), "1");
        let b = spec.get("b").unwrap();
        assert_eq!(shown(text, b), "- x: 'q'\n    y: {z: [1, 2]}");
        assert_eq!(shown(text, &b.items()[0]), "x: 'q'\n    y: {z: [1, 2]}");
        assert_eq!(shown(text, b.items()[0].get("y").unwrap()), "{z: [1, 2]}");
        assert_eq!(b.items()[0].line, 5);
    }

    #[test]
    fn documents_begin_at_their_marker() {
        let text = "# one\na: é\n---\n# two\nb: 2\n--- {c: 3}\n";
        let documents = parse(text).unwrap();
        let starts: Vec<&str> = documents.iter().map(|it| &text[it.start..it.end]).collect();
        assert_eq!(starts, ["# one\na: é\n", "---\n# two\nb: 2\n", "--- {c: 3}\n"]);
    }

    #[test]
    fn windows_line_ends_and_block_scalars_have_their_ends() {
        let text = "a: |\r\n  one\r\n  two\r\n\r\nb:\r\nc: 1\r\n";
        let root = parse(text).unwrap().remove(0).root;
        assert_eq!(shown(text, root.get("a").unwrap()).lines().last(), Some("  two"));
        assert!(root.get("b").unwrap().is_null());
        assert_eq!(shown(text, &root).lines().last(), Some("c: 1"));
    }

    #[test]
    fn what_is_not_yaml_has_a_place_too() {
        let error = parse("a: 1\nb: [\n").unwrap_err().to_string();
        assert!(error.contains("line"), "{error}");
        assert!(parse("a: *unknown\n").is_err());
    }

    #[test]
    fn a_text_of_too_many_nodes_is_refused() {
        let text = format!("[{}]", "1,".repeat(100));
        assert!(parse_within(&text, 101).is_ok());
        assert!(matches!(parse_within(&text, 100), Err(ConvertError::TooLarge { limit: 100, .. })));
    }

    #[test]
    fn a_text_that_is_too_deep_is_refused() {
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"- ".repeat(100_000)).is_err());
    }
}
