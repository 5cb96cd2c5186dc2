//! Quotas on devices of the device plugin, renamed into quotas on device classes.

use super::change::Change;
use super::object::{Findings, Place};
use super::pod;
use super::resource::is_device;
use super::tree::Node;

/// Converts `spec.hard` of a ResourceQuota.
pub(super) fn convert(root: &Node<'_>, place: &Place<'_>, findings: &mut Findings) {
    let place = place.field("spec");
    let Some(spec) = pod::get(root, "spec", &place, findings) else { return };
    let scoped = ["scopes", "scopeSelector"].iter().any(|it| spec.get(it).is_some_and(|it| !it.is_null()));
    let place = place.field("hard");
    let Some(hard) = pod::get(spec, "hard", &place, findings) else { return };
    for (index, (key, _)) in hard.entries().iter().enumerate() {
        let Some(text) = key.text() else { continue };
        let place = place.field(text);
        let (prefix, name) = match text.split_once('.') {
            Some((prefix @ ("requests" | "limits"), name)) if name.starts_with("nvidia.com/") => {
                (prefix, name)
            }
            _ => ("", text),
        };
        if !is_device(name) {
            continue;
        }
        let Some(class) = findings.class_of(name, key, &place) else { continue };
        let to = format!("{class}.deviceclass.resource.k8s.io/devices");
        if prefix != "requests" {
            let why = format!(
                "no quota is enforced under this name, only under requests.{name}; remove it or rename it"
            );
            findings.refuse(key, &place, why);
        } else if scoped {
            let why = "the quota has scopes, which are for pods and not for claims; move the line to a quota without scopes";
            findings.refuse(key, &place, why.to_owned());
        } else if hard.get(&to).is_some() {
            findings.refuse(key, &place, format!("{to} is there too; keep one of them"));
        } else if key.anchor.is_some() || key.tagged {
            findings.refuse(
                key,
                &place,
                "it has an anchor or a tag; write it out and convert again".to_owned(),
            );
        } else {
            findings.changes.add(hard, Change::Rename(index, to));
        }
    }
    if !findings.changes.is_empty() {
        let why = "a class is counted, not a size: a claim with the class mig.dra-driver.dev and a selector is not counted \
             here; set mig.dra-driver.dev.deviceclass.resource.k8s.io/devices to \"0\" to close that way";
        findings.note(hard, &place, why.to_owned());
    }
}
