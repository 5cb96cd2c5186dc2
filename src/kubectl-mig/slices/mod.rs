//! `kubectl mig slices`: the ResourceSlices of a node that does not exist, for templates of autoscalers, KWOK and tests.

mod args;

use std::io::{self, Write};
use std::process::ExitCode;

use k8s_openapi::api::resource::v1::ResourceSlice;
use serde_json::json;

pub use self::args::{SlicesArgs, SlicesFormat};
use crate::template::{NodeTemplate, TemplateError, warnings};

/// Why no slices are printed.
#[derive(Debug, thiserror::Error)]
pub enum SlicesError {
    /// There is no such node.
    #[error("{0}")]
    Template(#[from] TemplateError),
    /// The names of the slices would be too long without a UID.
    #[error(
        "with the node name `{0}` the names of the slices would be too long; the driver uses the UID of the Node object instead, give it with --node-uid"
    )]
    NameTooLong(String),
    /// The slices cannot be written as text.
    #[error("cannot write the slices: {0}")]
    Text(String),
    /// They cannot be printed.
    #[error("cannot print the slices: {0}")]
    Io(#[from] io::Error),
}

/// Longest object name.
const MAX_NAME: usize = 253;

/// Prints the slices. Exit status 0, or 2 for what cannot be used.
#[must_use]
pub fn run(args: &SlicesArgs) -> ExitCode {
    for warning in warnings(&args.gpus.models, &args.template) {
        // A closed standard error cannot be reported.
        let _ = writeln!(io::stderr(), "kubectl mig slices: warning: {warning}");
    }
    let printed = text(args).and_then(|text| Ok(io::stdout().write_all(text.as_bytes())?));
    match printed {
        // The reader has what it wanted.
        Err(SlicesError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // A closed standard error cannot be reported.
            let _ = writeln!(io::stderr(), "kubectl mig slices: {error}");
            ExitCode::from(2)
        }
        Ok(()) => ExitCode::SUCCESS,
    }
}

/// What is printed.
///
/// # Errors
/// [`SlicesError`].
pub fn text(args: &SlicesArgs) -> Result<String, SlicesError> {
    let slices = slices(args)?;
    match args.output {
        SlicesFormat::Json => {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": slices});
            let text =
                serde_json::to_string_pretty(&list).map_err(|error| SlicesError::Text(error.to_string()))?;
            Ok(text + "\n")
        }
        SlicesFormat::Yaml => {
            let one = |slice: &ResourceSlice| {
                serde_saphyr::to_string(slice).map_err(|error| SlicesError::Text(error.to_string()))
            };
            let documents: Vec<String> = slices.iter().map(one).collect::<Result<_, _>>()?;
            let mut text = documents.iter().map(|it| it.trim_end()).collect::<Vec<_>>().join("\n---\n");
            text.push('\n');
            Ok(text)
        }
    }
}

/// The slices.
///
/// # Errors
/// [`SlicesError`].
pub fn slices(args: &SlicesArgs) -> Result<Vec<ResourceSlice>, SlicesError> {
    let template = NodeTemplate::new(&args.gpus.models, &args.template, true)?;
    let slices = template.slices(&args.driver_name, &args.node, args.node_uid.as_deref());
    let longest = format!("00000-{}-{}", args.driver_name, args.node).len();
    if longest > MAX_NAME && args.node_uid.is_none() {
        return Err(SlicesError::NameTooLong(args.node.clone()));
    }
    Ok(slices)
}
