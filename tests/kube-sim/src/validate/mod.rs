//! What the API server refuses: the rules of resource.k8s.io as Kubernetes 1.35 has them
//! (`pkg/apis/resource/validation/validation.go`), each with the field at fault.

mod claim;
mod names;
mod slice;

use serde_json::Value;

pub use claim::{claim, claim_status, claim_template, device_class};
pub use names::{is_dns_label, is_dns_subdomain, object_name};
pub use slice::slice;

use crate::api::error::FieldError;

/// Errors found so far.
pub(crate) type Errors = Vec<FieldError>;

/// The items of a list field; empty where there is none.
pub(crate) fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

/// The text of a field; empty where there is none.
pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("")
}

/// Adds a `Duplicate` error for every value that occurs a second time; `field` names the value at an index.
pub(crate) fn unique<'a>(
    values: impl Iterator<Item = &'a str>,
    field: impl Fn(usize) -> String,
    errors: &mut Errors,
) {
    let mut seen = std::collections::BTreeSet::new();
    for (index, value) in values.enumerate() {
        if !seen.insert(value) {
            errors.push(FieldError::duplicate(field(index), value));
        }
    }
}
