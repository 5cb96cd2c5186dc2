//! Converts manifests for the device plugin into manifests with ResourceClaims.
//!
//! `nvidia.com/mig-2g.10gb: 1` in a container's limits becomes a ResourceClaimTemplate, a claim of the pod and a claim of the
//! container; `requests.nvidia.com/mig-1g.5gb` in a ResourceQuota becomes the quota of the device class. The text is
//! edited where it has to be and nowhere else; see [`change`](self) for what cannot be kept. It does not guess: what it
//! does not know it reports and leaves unchanged, and an edit whose result does not parse into what was meant is not made.
//!
//! It does not talk to a cluster and does not know what GPUs there are.

mod alias;
mod change;
mod object;
mod placement;
mod pod;
#[cfg(test)]
mod properties;
mod quota;
mod remark;
mod resource;
mod template;
#[cfg(test)]
mod tests;
mod tree;
mod yaml;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

pub use self::remark::{Remark, Severity};
use crate::args::ConvertArgs;

/// Most bytes of a file; an object has at most 1.5 MiB in etcd.
const MAX_BYTES: usize = 16 << 20;

/// A converted file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// The new text.
    pub text: String,
    /// What was left alone, and what is good to know, in the order of lines.
    pub remarks: Vec<Remark>,
}

impl Converted {
    /// True where something needs a look.
    #[must_use]
    pub fn left_something(&self) -> bool {
        self.remarks.iter().any(|it| it.severity == Severity::Left)
    }
}

/// Why a file could not be converted at all.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// It could not be read or written.
    #[error("cannot {operation} `{path}`: {source}")]
    Io {
        /// `read` or `write`.
        operation: &'static str,
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// More than any manifest has.
    #[error("the file has more than {limit} {what}; split it")]
    TooLarge {
        /// Bytes or nodes.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// Not UTF-8.
    #[error("the file is not UTF-8 text")]
    NotText,
    /// Not YAML.
    #[error(
        "line {line}, column {column}: not YAML: {message}; if the file is a template, render it first (`helm template`, \
         `kubectl kustomize`)"
    )]
    Malformed {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// Not a Kubernetes object.
    #[error("line {line}: document {document} is not an object with a kind")]
    NotAnObject {
        /// From 1.
        line: usize,
        /// From 1.
        document: usize,
    },
}

/// Converts a file for the command line. Answers the exit status: 0 if all is converted, 1 if something was left alone, 2
/// if the file cannot be used; then nothing is written.
#[must_use]
pub fn run(args: &ConvertArgs) -> u8 {
    let name = if args.filename == "-" { "standard input" } else { &args.filename };
    let done = read(args).and_then(|text| convert(&text)).and_then(|it| write(args, &it.text).map(|()| it));
    // A closed standard error cannot be reported.
    let mut report = io::stderr().lock();
    match done {
        Ok(converted) => {
            for remark in &converted.remarks {
                let _ = writeln!(report, "{name}:{remark}");
            }
            u8::from(converted.left_something())
        }
        Err(error) => {
            let _ = writeln!(report, "kubectl mig convert: {name}: {error}");
            2
        }
    }
}

/// Converts a text.
///
/// # Errors
/// [`ConvertError`] where the text is not a file of Kubernetes objects.
pub fn convert(text: &str) -> Result<Converted, ConvertError> {
    if text.len() > MAX_BYTES {
        return Err(ConvertError::TooLarge { what: "bytes", limit: MAX_BYTES });
    }
    // A byte order mark is no part of the first key.
    let (mark, text) = text.strip_prefix('\u{feff}').map_or(("", text), |text| ("\u{feff}", text));
    let documents = tree::parse(text)?;
    let mut templates = template::Templates::default();
    for (index, document) in documents.iter().enumerate() {
        let root = &document.root;
        if !root.is_null() && root.get("kind").is_none() {
            return Err(ConvertError::NotAnObject { line: root.line, document: index + 1 });
        }
        object::note_templates(root, &mut templates);
    }
    let (mut out, mut remarks, mut at) = (mark.to_owned(), Vec::new(), 0);
    for (index, document) in documents.iter().enumerate() {
        let findings = object::examine(&document.root, index + 1, &mut templates);
        remarks.extend(findings.remarks);
        if findings.changes.is_empty() {
            continue;
        }
        let before = templates.take_fresh();
        let Some(changed) = change::applied(text, document, &findings.changes, &before) else {
            templates.put_back(before);
            remarks.push(not_editable(&document.root, index + 1));
            continue;
        };
        out.push_str(&text[at..document.start]);
        out.push_str(&changed);
        at = document.end;
    }
    out.push_str(&text[at..]);
    remarks.sort_by_key(|it| it.line);
    Ok(Converted { text: out, remarks })
}

fn not_editable(root: &tree::Node<'_>, document: usize) -> Remark {
    let text = "the document is laid out in a way that cannot be edited line by line; write it in plain block style \
         (`kubectl create --dry-run=client -o yaml -f` does it) and convert again";
    let object = root.get("kind").and_then(tree::Node::text).unwrap_or("").to_owned();
    Remark {
        severity: Severity::Left,
        line: root.line,
        document,
        object,
        path: "all".to_owned(),
        text: text.to_owned(),
    }
}

fn read(args: &ConvertArgs) -> Result<String, ConvertError> {
    let path = &args.filename;
    let failed = |source| ConvertError::Io { operation: "read", path: path.clone(), source };
    let source: Box<dyn Read> =
        if path == "-" { Box::new(io::stdin()) } else { Box::new(File::open(path).map_err(failed)?) };
    let mut bytes = Vec::new();
    // Reads one byte more than allowed, which shows that the input is too large; the rest is not read.
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX);
    source.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_BYTES {
        return Err(ConvertError::TooLarge { what: "bytes", limit: MAX_BYTES });
    }
    String::from_utf8(bytes).map_err(|_| ConvertError::NotText)
}

fn write(args: &ConvertArgs, text: &str) -> Result<(), ConvertError> {
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from("-"));
    let failed = |source| ConvertError::Io { operation: "write", path: path.display().to_string(), source };
    if path.as_os_str() == "-" {
        let mut out = io::stdout().lock();
        return out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(failed);
    }
    replace(&path, text).map_err(failed)
}

/// Writes a file beside the old one and puts it in its place, so that a full disk does not cost the manifest.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let Some(real) = fs::canonicalize(path).ok().filter(|it| it.is_file()) else {
        return fs::write(path, text);
    };
    let mut beside = real.clone().into_os_string();
    beside.push(".converting");
    let put = || {
        fs::write(&beside, text)?;
        fs::set_permissions(&beside, fs::metadata(&real)?.permissions())?;
        fs::rename(&beside, &real)
    };
    put().inspect_err(|_| drop(fs::remove_file(&beside)))
}
