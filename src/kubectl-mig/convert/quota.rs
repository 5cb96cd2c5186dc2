//! Quotas on devices of the device plugin, renamed into quotas on device classes.

use super::access::{WRITE_OUT, get};
use super::change::Change;
use super::findings::{Findings, Place};
use super::resource::{ANY_MIG, is_device};
use super::tree::Node;

/// What a quota calls the devices of a class.
const SUFFIX: &str = ".deviceclass.resource.k8s.io/devices";

/// Converts `spec.hard` of a ResourceQuota.
pub(super) fn convert(root: &Node<'_>, place: &Place<'_>, findings: &mut Findings<'_>) {
    let place = place.field("spec");
    let Some(spec) = get(root, "spec", &place, findings) else { return };
    let scoped = ["scopes", "scopeSelector"].iter().any(|it| spec.get(it).is_some_and(|it| !it.is_null()));
    let place = place.field("hard");
    let Some(hard) = get(spec, "hard", &place, findings) else { return };
    for (index, (key, _)) in hard.entries().iter().enumerate() {
        let Some(text) = key.text() else { continue };
        let place = place.field(text);
        let (prefix, name) = match text.split_once('.') {
            Some((prefix @ ("requests" | "limits"), name)) if is_device(name) => (prefix, name),
            _ => ("", text),
        };
        if !is_device(name) {
            continue;
        }
        let Some(class) = findings.class_of(name, key, &place) else { continue };
        let to = format!("{class}{SUFFIX}");
        if prefix != "requests" {
            let why = format!(
                "no quota is enforced under this name, only under requests.{name}; remove it or rename it"
            );
            findings.refuse(key, &place, why);
        } else if scoped {
            let why = "the quota has scopes, which select pods and not claims; move the line to a quota without scopes";
            findings.refuse(key, &place, why.to_owned());
        } else if hard.get(&to).is_some() {
            findings.refuse(key, &place, format!("{to} also exists; keep one of them"));
        } else if key.anchor.is_some() || key.tagged {
            findings.refuse(key, &place, format!("it has an anchor or a tag; {WRITE_OUT}"));
        } else {
            findings.changes.add(hard, Change::Rename(index, to));
        }
    }
    // The same before and after the conversion.
    let any = format!("{ANY_MIG}{SUFFIX}");
    let classes = &findings.knowledge.classes;
    let limits = |key: &str| key.strip_suffix(SUFFIX).is_some_and(|it| classes.has(it));
    let limited = hard.entries().iter().any(|(key, _)| key.text().is_some_and(limits));
    if (limited || !findings.changes.is_empty()) && hard.get(&any).is_none() {
        let why = format!(
            "a quota counts classes, not sizes: a claim with the class {ANY_MIG} and a selector is not counted here; set {any} to \
             \"0\" to prevent that"
        );
        findings.note(hard, &place, why);
    }
}
