//! The rules for names.

use serde_json::json;

use super::Errors;
use crate::api::error::FieldError;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
'[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const IDENTIFIER: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";

fn is_label_text(name: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.starts_with(alphanumeric)
        && name.ends_with(alphanumeric)
        && name.chars().all(|c| alphanumeric(c) || c == '-')
}

/// Whether the name is a DNS label: up to 63 of `[a-z0-9-]`, alphanumeric at both ends.
#[must_use]
pub fn is_dns_label(name: &str) -> bool {
    name.len() <= 63 && is_label_text(name)
}

/// Whether the name is a DNS subdomain: up to 253 characters, labels joined by dots.
#[must_use]
pub fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label_text)
}

fn is_identifier(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether the text is a semantic version as semver.org 2.0.0 has it: three numbers without leading zeros, and optionally a
/// pre-release and build part. Numbers may be of any length, which is why the `semver` crate is not asked.
pub(super) fn is_semver(text: &str) -> bool {
    let (text, build) = text.split_once('+').map_or((text, None), |(t, b)| (t, Some(b)));
    let (core, pre) = text.split_once('-').map_or((text, None), |(t, p)| (t, Some(p)));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let number = |part: &str| digits(part) && (part == "0" || !part.starts_with('0'));
    let identifier =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|pre| pre.split('.').all(|p| identifier(p) && (!digits(p) || number(p))))
        && build.is_none_or(|build| build.split('.').all(identifier))
}

/// A required DNS label.
pub(super) fn dns_label(name: &str, field: String, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(FieldError::required(field, ""));
    } else if name.len() > 63 {
        errors.push(FieldError::invalid(field, &json!(name), "must be no more than 63 bytes"));
    } else if !is_label_text(name) {
        errors.push(FieldError::invalid(field, &json!(name), LABEL));
    }
}

/// A required DNS subdomain.
pub(super) fn dns_subdomain(name: &str, field: String, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(FieldError::required(field, ""));
    } else if name.len() > 253 {
        errors.push(FieldError::invalid(field, &json!(name), "must be no more than 253 bytes"));
    } else if !is_dns_subdomain(name) {
        errors.push(FieldError::invalid(field, &json!(name), SUBDOMAIN));
    }
}

/// `metadata.name` of any object.
pub fn object_name(name: &str, errors: &mut Errors) {
    dns_subdomain(name, "metadata.name".into(), errors);
}

/// A driver name: a DNS subdomain of at most 63 bytes; upper case only draws a warning from the server.
pub(super) fn driver(name: &str, field: String, errors: &mut Errors) {
    if name.len() > 63 {
        errors.push(FieldError::too_long(field.clone(), 63));
    }
    dns_subdomain(&name.to_lowercase(), field, errors);
}

/// A pool name: at most 253 bytes, DNS subdomains joined by slashes.
pub(super) fn pool(name: &str, field: String, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(FieldError::required(field, ""));
        return;
    }
    if name.len() > 253 {
        errors.push(FieldError::too_long(field.clone(), 253));
    }
    if !name.split('/').all(is_dns_subdomain) {
        errors.push(FieldError::invalid(field, &json!(name), SUBDOMAIN));
    }
}

/// An attribute or capacity name: a C identifier of at most 32 bytes, optionally with a domain before a slash.
pub(super) fn qualified(name: &str, field: &str, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(FieldError::required(field, "name required"));
        return;
    }
    if name.matches('/').count() > 1 {
        // The server looks at one or two parts and lets more of them through unseen.
        return;
    }
    let (domain, identifier) = match name.split_once('/') {
        Some((domain, identifier)) => (Some(domain), identifier),
        None => (None, name),
    };
    match domain {
        Some("") => errors.push(FieldError::required(field, "the prefix before the slash must not be empty")),
        Some(domain) => driver(domain, field.to_owned(), errors),
        None => {}
    }
    if identifier.is_empty() {
        errors.push(FieldError::required(field, "the name must not be empty"));
    } else if identifier.len() > 32 {
        errors.push(FieldError::too_long(field, 32));
    } else if !is_identifier(identifier) {
        errors.push(FieldError::invalid(field, &json!(identifier), IDENTIFIER));
    }
}

/// A qualified name that must have its domain, as `matchAttribute` needs it.
pub(super) fn fully_qualified(name: &str, field: &str, errors: &mut Errors) {
    qualified(name, field, errors);
    if !name.is_empty() && !name.contains('/') {
        errors.push(FieldError::invalid(field, &json!(name), "must include a domain"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_name_with_a_dot_is_no_dns_label() {
        assert!(is_dns_label("gpu-0000-3b-00-mig-1g-10gb-6"));
        assert!(!is_dns_label("mig-1g.10gb"));
        assert!(!is_dns_label("-a"));
        assert!(!is_dns_label(&"a".repeat(64)));
        assert!(is_dns_subdomain("mig-1g.10gb"));
    }

    fn faults(check: impl Fn(&mut Errors)) -> usize {
        let mut errors = Vec::new();
        check(&mut errors);
        errors.len()
    }

    #[test]
    fn pool_names_may_have_slashes() {
        assert_eq!(faults(|e| pool("node-0/mig.dra-driver.dev", "f".into(), e)), 0);
        assert_eq!(faults(|e| pool("node-0//x", "f".into(), e)), 1);
        assert_eq!(faults(|e| pool("", "f".into(), e)), 1);
    }

    #[test]
    fn attribute_names_are_identifiers_with_an_optional_domain() {
        assert_eq!(faults(|e| qualified("resource.kubernetes.io/pciBusID", "f", e)), 0);
        assert_eq!(faults(|e| qualified("cuda-version", "f", e)), 1);
        assert_eq!(faults(|e| qualified("/x", "f", e)), 1);
        assert_eq!(faults(|e| qualified(&"a".repeat(33), "f", e)), 1);
        assert_eq!(faults(|e| fully_qualified("parentUUID", "f", e)), 1);
    }
}
