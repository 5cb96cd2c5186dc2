//! Variables that choose devices, which claims do instead.

use super::findings::{Findings, Place};
use super::requests::Container;
use super::resource::WHOLE_GPU;
use super::tree::Node;

/// The variable that the NVIDIA runtime reads.
const NVIDIA: &str = "NVIDIA_VISIBLE_DEVICES";
/// The variable that CUDA reads.
const CUDA: &str = "CUDA_VISIBLE_DEVICES";

/// Reports variables of a container that choose devices, in its environment or in its command line.
pub(super) fn remark(container: &Container<'_, '_, '_>, findings: &mut Findings<'_>) {
    let count = usable(container);
    let place = container.place.field("env");
    for (index, variable) in container.node.get("env").map_or(&[][..], Node::items).iter().enumerate() {
        let name = variable.get("name").and_then(Node::text).unwrap_or("");
        let value = variable.get("value").and_then(Node::text);
        let value = if variable.get("valueFrom").is_some() { None } else { Some(value.unwrap_or("")) };
        judge(name, value, count, variable, &place.item(index), findings);
    }
    for field in ["command", "args"] {
        let place = container.place.field(field);
        for (index, argument) in container.node.get(field).map_or(&[][..], Node::items).iter().enumerate() {
            let text = argument.text().unwrap_or("");
            for name in [NVIDIA, CUDA] {
                for value in assignments(text, name) {
                    judge(name, Some(value), count, argument, &place.item(index), findings);
                }
            }
        }
    }
}

/// How many devices a process of the container can use: all GPUs, or one MIG device.
fn usable(container: &Container<'_, '_, '_>) -> u32 {
    let uses = container.uses();
    let whole = uses.get(WHOLE_GPU).copied().unwrap_or(0);
    whole.max(u32::from(!uses.is_empty()))
}

fn judge(
    name: &str,
    value: Option<&str>,
    count: u32,
    node: &Node<'_>,
    place: &Place<'_>,
    findings: &mut Findings<'_>,
) {
    match (name, value) {
        // Neither asks for a device.
        (NVIDIA, Some("" | "void" | "none")) | (CUDA, Some("" | "-1" | "none" | "NoDevFiles")) => {}
        (NVIDIA, _) => {
            let why = "NVIDIA_VISIBLE_DEVICES gives the container devices without an allocation where the NVIDIA runtime reads it; \
                 remove it";
            findings.left(node, place, why.to_owned());
        }
        (CUDA, Some(value)) if value.contains(['$', '`']) => {
            let why = "CUDA_VISIBLE_DEVICES is computed; verify that it counts the devices of the container, from 0";
            findings.note(node, place, why.to_owned());
        }
        (CUDA, Some(value))
            if value.split(',').all(|it| it.trim().parse::<u32>().is_ok_and(|it| it < count)) =>
        {
            let why = "CUDA_VISIBLE_DEVICES counts the devices of the container, from 0, and is not needed; a claim decides which \
                 devices those are";
            findings.note(node, place, why.to_owned());
        }
        (CUDA, value) => {
            let what = value.map_or("a value that is not in the manifest".to_owned(), |it| format!("`{it}`"));
            let why = format!(
                "CUDA_VISIBLE_DEVICES pins {what}, but the claim decides which devices the container gets, and CUDA finds none if \
                 they differ; remove it"
            );
            findings.left(node, place, why);
        }
        _ => {}
    }
}

/// The values of `NAME=value` in a command line.
fn assignments<'t>(text: &'t str, name: &str) -> Vec<&'t str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(name) {
        rest = after;
        let separate = !before.ends_with(|it: char| it.is_ascii_alphanumeric() || it == '_');
        if let Some(value) = after.strip_prefix('=').filter(|_| separate) {
            let value = value.trim_start_matches(['"', '\'']);
            found.push(
                value.split(|it: char| it.is_whitespace() || "\"';&|)".contains(it)).next().unwrap_or(""),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_found_in_command_lines() {
        assert_eq!(assignments("CUDA_VISIBLE_DEVICES=0,1 python x.py", CUDA), ["0,1"]);
        assert_eq!(
            assignments("set -e; export CUDA_VISIBLE_DEVICES=\"MIG-1\"; CUDA_VISIBLE_DEVICES= x", CUDA),
            ["MIG-1", ""]
        );
        assert_eq!(assignments("echo $CUDA_VISIBLE_DEVICES; MY_CUDA_VISIBLE_DEVICES=3", CUDA), [""; 0]);
    }
}
