//! Converts manifests for the device plugin into manifests with ResourceClaims.
//!
//! `nvidia.com/mig-2g.10gb: 1` in a container's limits becomes a ResourceClaimTemplate, a claim of the pod and a claim of the
//! container; `requests.nvidia.com/mig-1g.5gb` in a ResourceQuota becomes the quota of the device class. The text is
//! edited where it has to be and nowhere else; see [`change`](self) for what cannot be kept. It does not guess: what it
//! does not know it reports and leaves unchanged, and an edit whose result does not parse into what was meant is not made.
//! A second conversion changes nothing and reports the same.
//!
//! It does not talk to a cluster and does not know what GPUs there are.

mod access;
mod advice;
mod alias;
pub mod args;
mod change;
mod classes;
mod environment;
mod error;
mod findings;
mod inputs;
mod kinds;
mod known;
mod kustomize;
mod object;
mod outputs;
mod placement;
mod pod;
#[cfg(test)]
mod properties;
mod quota;
mod remark;
mod requests;
mod resource;
mod search;
mod set;
mod template;
#[cfg(test)]
mod tests;
mod traits;
mod tree;
mod yaml;

use std::io::{self, Write};
use std::path::Path;

use self::args::ConvertArgs;
pub use self::error::ConvertError;
use self::inputs::Inputs;
use self::kinds::Knowledge;
pub use self::kinds::PodTemplate;
use self::kustomize::{File, Layout};
use self::outputs::Destination;
pub use self::remark::{Remark, Severity};
pub use self::set::Converted;
use self::set::{Outcome, Source};

/// Converts files for the command line. Answers the exit status: 0 if all is converted, 1 if something was left unchanged or needs a review, 2
/// if a file cannot be used; then nothing is written.
#[must_use]
pub fn run(args: &ConvertArgs) -> u8 {
    let done = inputs::read(&args.filename, args.recursive).and_then(|inputs| convert_files(args, &inputs));
    // A closed standard error cannot be reported.
    let mut report = io::stderr().lock();
    match done {
        Ok(files) => {
            for (name, converted) in &files {
                for remark in &converted.remarks {
                    let _ = writeln!(report, "{name}:{remark}");
                }
            }
            u8::from(files.iter().any(|(_, it)| it.left_something()))
        }
        Err(errors) => {
            for (name, error) in errors {
                let name = if name.is_empty() { name } else { format!("{name}: ") };
                let _ = writeln!(report, "kubectl mig convert: {name}{error}");
            }
            2
        }
    }
}

/// Converts a text.
///
/// # Errors
/// [`ConvertError`] where the text is not a file of Kubernetes objects.
pub fn convert(text: &str) -> Result<Converted, ConvertError> {
    convert_with(text, &[], &[])
}

/// Converts a text with more kinds and device classes than those that are built in.
///
/// # Errors
/// [`ConvertError`] where the text is not a file of Kubernetes objects.
pub fn convert_with(
    text: &str,
    pod_templates: &[PodTemplate],
    device_classes: &[String],
) -> Result<Converted, ConvertError> {
    let knowledge = Knowledge::with(pod_templates, device_classes);
    let mut done = set::convert_all(&[Source { text, strict: true }], &Layout::one_group(1), &knowledge);
    done.pop()
        .map_or(Ok(Converted { text: text.to_owned(), remarks: Vec::new() }), |it| it.map(|it| it.converted))
}

/// Names with errors; the name is empty where the error is about no single file.
type Errors = Vec<(String, ConvertError)>;

/// Converts files and writes the results, if all can be converted.
fn convert_files(args: &ConvertArgs, inputs: &Inputs) -> Result<Vec<(String, Converted)>, Errors> {
    let about_all = |error| vec![(String::new(), error)];
    let destination = Destination::of(args, inputs).map_err(about_all)?;
    let files: Vec<File<'_>> =
        inputs.files.iter().map(|it| File { path: it.path.as_deref(), text: &it.text }).collect();
    let beside: Vec<File<'_>> =
        inputs.beside.iter().map(|(path, text)| File { path: Some(path), text }).collect();
    let layout = Layout::of(&files, &beside, destination.is_stream());
    let sources: Vec<Source<'_>> =
        inputs.files.iter().map(|it| Source { text: &it.text, strict: it.named }).collect();
    let knowledge = Knowledge::with(&args.pod_templates, &args.device_classes);

    let (mut outcomes, mut errors) = (Vec::new(), Vec::new());
    for (input, done) in inputs.files.iter().zip(set::convert_all(&sources, &layout, &knowledge)) {
        match done {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => errors.push((input.name.clone(), error)),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    write(&destination, inputs, &mut outcomes).map_err(about_all)?;
    Ok(inputs.files.iter().zip(outcomes).map(|(input, it)| (input.name.clone(), it.converted)).collect())
}

fn write(destination: &Destination, inputs: &Inputs, outcomes: &mut [Outcome]) -> Result<(), ConvertError> {
    let paths = match destination {
        Destination::Stdout => return outputs::print(&stream(outcomes)),
        Destination::File(path) => return outputs::write(&[(path.as_path(), &stream(outcomes))]),
        Destination::Files(paths) => paths,
    };
    // A file that would get what it has already is not touched.
    let changed = |path: &Path, index: usize| {
        let input = &inputs.files[index];
        input.path.as_deref() != Some(path) || input.text != outcomes[index].converted.text
    };
    let files: Vec<(&Path, &str)> = paths
        .iter()
        .enumerate()
        .filter(|(index, path)| changed(path, *index))
        .map(|(index, path)| (path.as_path(), outcomes[index].converted.text.as_str()))
        .collect();
    outputs::write(&files)
}

/// All results as one stream of objects; of several files, those that have no objects are left out.
fn stream(outcomes: &mut [Outcome]) -> String {
    let several = outcomes.len() > 1;
    for it in outcomes.iter_mut().filter(|it| several && !it.objects) {
        let text = "not part of the output, because it is a kustomization, a patch, or no object; `-o DIR` or `--in-place` keep it";
        it.converted.remarks.push(Remark {
            severity: Severity::Note,
            line: 1,
            document: 1,
            object: "file".to_owned(),
            path: "all".to_owned(),
            text: text.to_owned(),
        });
    }
    let parts = outcomes.iter().filter(|it| !several || it.objects);
    outputs::joined(parts.map(|it| it.converted.text.as_str()))
}
