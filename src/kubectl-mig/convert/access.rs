//! Nodes that can be edited without a change elsewhere.

use super::findings::{Findings, Place};
use super::tree::{Content, Node};

/// Advice where the same can be written in a simpler way.
pub(super) const WRITE_OUT: &str = "write it out and convert again";

/// A field that can be edited; refused where it cannot and leads to devices.
pub(super) fn get<'n, 't>(
    node: &'n Node<'t>,
    key: &str,
    place: &Place<'_>,
    findings: &mut Findings<'_>,
) -> Option<&'n Node<'t>> {
    let value = node.get(key)?;
    let twice = node.entries().iter().filter(|(it, _)| it.text() == Some(key)).count() > 1;
    check(value, twice, place, findings)
}

/// An item of a list or a value of a map, if it can be edited; refused where it cannot and leads to devices.
pub(super) fn editable<'n, 't>(
    value: &'n Node<'t>,
    place: &Place<'_>,
    findings: &mut Findings<'_>,
) -> Option<&'n Node<'t>> {
    check(value, false, place, findings)
}

fn check<'n, 't>(
    value: &'n Node<'t>,
    twice: bool,
    place: &Place<'_>,
    findings: &mut Findings<'_>,
) -> Option<&'n Node<'t>> {
    if value.is_null() {
        return None;
    }
    let why = if twice {
        "the key appears twice"
    } else if matches!(value.content, Content::Alias(_)) {
        "it is an alias"
    } else if value.anchor.is_some() {
        "it has an anchor, so a change here could also change another place"
    } else if value.tagged {
        "it has a tag"
    } else if value.get("<<").is_some() {
        "it has a merge key"
    } else {
        return Some(value);
    };
    // Reported only where devices are requested, here or where the alias leads to.
    if findings.aliases.mention_devices(value) {
        findings.refuse(value, place, format!("{why}; {WRITE_OUT}"));
        return None;
    }
    // The target of an alias is not read, and the alias itself has nothing to convert.
    (!matches!(value.content, Content::Alias(_))).then_some(value)
}
