//! Arguments of `convert`.

use std::path::PathBuf;

use clap::Args;

use super::kinds::PodTemplate;

/// Arguments of `convert`.
#[derive(Debug, Clone, Default, Args)]
pub struct ConvertArgs {
    /// Manifests to convert, in YAML or JSON, one object or many: a file, a directory (its *.yaml, *.yml and *.json), or `-`
    /// for standard input. Repeat it for several.
    #[arg(short, long, value_name = "PATH", required = true)]
    pub filename: Vec<String>,
    /// Also read the subdirectories of directories.
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Where to write. `-`: everything to standard output, as one stream. A name that ends in .yaml, .yml or .json, or an
    /// existing file: everything as one stream. Another name: with several inputs a directory that gets a file for each
    /// input, under the same relative path [default: -].
    #[arg(short, long, value_name = "PATH", conflicts_with = "in_place")]
    pub output: Option<PathBuf>,
    /// Replace the files that change.
    #[arg(long)]
    pub in_place: bool,
    /// Where a kind that `convert` does not know has a pod spec, for example
    /// `example.com/*/Trainer=spec.workers[*].template.spec`. `[*]` is every item of a list, `.*` every value of a map, and
    /// `*` any version. Repeat it for several.
    #[arg(long = "pod-template", value_name = "API_VERSION/KIND=PATH")]
    pub pod_templates: Vec<PodTemplate>,
    /// A device class of your cluster that the chart does not create by default, such as `mig-1g.99gb` after
    /// `deviceClasses.extraProfiles`. Repeat it for several.
    #[arg(long = "device-class", value_name = "NAME")]
    pub device_classes: Vec<String>,
}
