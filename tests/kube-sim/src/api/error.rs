//! Errors in the API server's own form: a `Status` object and its HTTP code.

use serde_json::{Value, json};

use super::kinds::Kind;

/// Everything the API server can answer instead of an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, such as `NotFound`.
    pub reason: &'static str,
    /// Text for people, in the API server's wording.
    pub message: String,
    /// Fields at fault, for `Invalid`.
    pub causes: Vec<FieldError>,
    /// The object it is about.
    pub object: Option<Box<ObjectDetails>>,
    /// Seconds after which the request may succeed.
    pub retry_after_seconds: Option<u32>,
    /// Path of the first field at fault, where the body could not be read. Not part of the answer.
    pub field: Option<String>,
}

/// What an error is about, as clients find it in `details`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectDetails {
    /// Name.
    pub name: String,
    /// API group, empty for core.
    pub group: &'static str,
    /// Plural of the kind, as apimachinery/pkg/api/errors writes it into `kind`.
    pub plural: &'static str,
}

/// One field that did not pass validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// JSON path, such as `spec.devices[3].name`.
    pub field: String,
    /// The API server's reason, such as `FieldValueInvalid`.
    pub reason: &'static str,
    /// Text for people, starting with the kind of fault.
    pub message: String,
}

impl FieldError {
    /// The field must be set.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Self { field: field.into(), reason: "FieldValueRequired", message }
    }

    /// The value is not allowed.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value}: {detail}"),
        }
    }

    /// The value appears twice.
    pub fn duplicate(field: impl Into<String>, value: &str) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {}", json!(value)),
        }
    }

    /// The list or map has too many entries.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueTooMany",
            message: format!("Too many: {actual}: must have at most {max} items"),
        }
    }

    /// The text is too long.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {max} bytes"),
        }
    }

    /// The value is not one of the supported ones.
    pub fn not_supported(field: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        Self {
            field: field.into(),
            reason: "FieldValueNotSupported",
            message: format!("Unsupported value: {}: supported values: {}", json!(value), list.join(", ")),
        }
    }

    /// The field must not be set here.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self { field: field.into(), reason: "FieldValueForbidden", message: format!("Forbidden: {detail}") }
    }
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: String) -> Self {
        Self {
            code,
            reason,
            message,
            causes: Vec::new(),
            object: None,
            retry_after_seconds: None,
            field: None,
        }
    }

    /// The same, with the field at fault.
    pub(super) fn at(self, field: String) -> Self {
        Self { field: Some(field), ..self }
    }

    /// Path of the first field at fault, where one is known.
    #[must_use]
    pub fn place(&self) -> Option<&str> {
        self.field.as_deref().or_else(|| self.causes.first().map(|cause| cause.field.as_str()))
    }

    fn about(self, kind: &Kind, name: &str) -> Self {
        let object = ObjectDetails { name: name.to_owned(), group: kind.group, plural: kind.plural };
        Self { object: Some(Box::new(object)), ..self }
    }

    /// 404: no such object.
    #[must_use]
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", kind.qualified_plural()))
            .about(kind, name)
    }

    /// 404: no such path.
    #[must_use]
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource".into())
    }

    /// 409: the name is taken.
    #[must_use]
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", kind.qualified_plural());
        Self::new(409, "AlreadyExists", message).about(kind, name)
    }

    /// 409: the object has changed since it was read, or a precondition does not hold.
    #[must_use]
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.qualified_plural());
        Self::new(409, "Conflict", message).about(kind, name)
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message.into())
    }

    /// 405: the path exists, the verb does not.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource".into(),
        )
    }

    /// 410: the resource version is too old to watch from.
    #[must_use]
    pub fn expired(requested: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {requested} ({oldest})"))
    }

    /// 415: a patch type that the server does not know.
    #[must_use]
    pub fn unsupported_media_type(content_type: &str) -> Self {
        let message = format!("the body of the request was in an unknown format - {content_type}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422: the object does not pass validation.
    #[must_use]
    pub fn invalid(kind: &Kind, name: &str, causes: Vec<FieldError>) -> Self {
        let texts: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let list = if texts.len() == 1 { texts[0].clone() } else { format!("[{}]", texts.join(", ")) };
        let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
        let message = format!("{}{group} \"{name}\" is invalid: {list}", kind.kind);
        Self { causes, ..Self::new(422, "Invalid", message) }
    }

    /// 403: an admission plugin of the server refuses.
    #[must_use]
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", kind.qualified_plural());
        Self::new(403, "Forbidden", message).about(kind, name)
    }

    /// A ValidatingAdmissionPolicy says no.
    pub fn denied(kind: &Kind, name: &str, why: &str) -> Self {
        let message =
            format!("{}.{} \"{name}\" is forbidden: denied request: {why}", kind.plural, kind.group);
        Self::new(422, "Invalid", message)
    }

    /// 429: a PodDisruptionBudget keeps a pod.
    #[must_use]
    pub fn budget(why: &str, retry_after_seconds: Option<u32>) -> Self {
        let cause = FieldError { field: String::new(), reason: "DisruptionBudget", message: why.to_owned() };
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        Self {
            causes: vec![cause],
            retry_after_seconds,
            ..Self::new(429, "TooManyRequests", message.to_owned())
        }
    }

    /// 500: the server itself is at fault.
    #[must_use]
    pub fn internal(why: &str) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {why}"))
    }

    /// Any other code, for injected faults.
    #[must_use]
    pub fn injected(code: u16) -> Self {
        let reason = match code {
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            410 => "Expired",
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        Self::new(code, reason, format!("injected fault {code}"))
    }

    /// The `Status` object that goes over the wire.
    #[must_use]
    pub fn to_status(&self) -> Value {
        let causes: Vec<Value> = self
            .causes
            .iter()
            .map(|c| match c.field.as_str() {
                "" => json!({"reason": c.reason, "message": c.message}),
                field => json!({"reason": c.reason, "message": c.message, "field": field}),
            })
            .collect();
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(object) = &self.object {
            status["details"] = json!({"name": object.name, "group": object.group, "kind": object.plural});
        }
        if let Some(seconds) = self.retry_after_seconds {
            status["details"]["retryAfterSeconds"] = json!(seconds);
        }
        if !causes.is_empty() {
            status["details"]["causes"] = json!(causes);
        }
        status
    }
}
