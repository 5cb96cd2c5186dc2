//! Arguments of `slices`.

use clap::{Args, ValueEnum};
use mig_model::drivers::DEFAULT;

use crate::template::{Gpus, TemplateArgs, gpus};

/// Arguments of `slices`.
#[derive(Debug, Clone, Args)]
pub struct SlicesArgs {
    /// GPUs of the node, such as 8xH100-80GB or 2xH100-80GB,1xL4 (one node that has both).
    #[arg(long, value_name = "GPUS", value_parser = gpus)]
    pub gpus: Gpus,
    /// Name of the node.
    #[arg(long, value_name = "NAME", default_value = "node", value_parser = node_name)]
    pub node: String,
    /// UID of the Node object. With it the slices are owned by the node, and end with it, as those of the driver do.
    #[arg(long, value_name = "UID")]
    pub node_uid: Option<String>,
    /// Driver name.
    #[arg(long, value_name = "NAME", default_value = DEFAULT, value_parser = driver_name)]
    pub driver_name: String,
    /// Format of the output.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "yaml")]
    pub output: SlicesFormat,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for help text")]
    pub template: TemplateArgs,
}

/// Format of the output of `slices`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SlicesFormat {
    /// One document for each slice.
    Yaml,
    /// A List.
    Json,
}

/// Longest driver name (k8s.io/api/resource/v1, DriverNameMaxLength).
const MAX_DRIVER_NAME: usize = 63;
/// Longest object name.
const MAX_NAME: usize = 253;

fn node_name(text: &str) -> Result<String, String> {
    if is_subdomain(text, MAX_NAME) {
        return Ok(text.to_owned());
    }
    Err(format!("the name of a node: lower-case letters, digits, `-` and `.`, at most {MAX_NAME} characters"))
}

fn driver_name(text: &str) -> Result<String, String> {
    if is_subdomain(text, MAX_DRIVER_NAME) {
        return Ok(text.to_owned());
    }
    Err(format!("a DNS name such as mig.dra-driver.dev, at most {MAX_DRIVER_NAME} characters"))
}

/// RFC 1123, as Kubernetes checks it.
fn is_subdomain(text: &str, most: usize) -> bool {
    let is_alphanumeric = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit();
    let is_label = |it: &str| {
        it.starts_with(is_alphanumeric)
            && it.ends_with(is_alphanumeric)
            && it.chars().all(|it| is_alphanumeric(it) || it == '-')
    };
    text.len() <= most && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_api_server_takes() {
        for name in ["node", "ip-10-0-0-1.ec2.internal", "n", "0"] {
            assert_eq!(node_name(name).as_deref(), Ok(name));
        }
        let long = "n".repeat(64);
        for name in ["", "Node", "a_b", "-a", "a-", "a..b", "a b", &"n".repeat(254)] {
            assert!(node_name(name).is_err(), "{name}");
        }
        assert!(driver_name(&long).is_err() && node_name(&long).is_ok());
    }
}
