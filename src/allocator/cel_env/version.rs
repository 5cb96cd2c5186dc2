//! Kubernetes' semver library for CEL. The comparisons stand with those of quantities.

use std::sync::Arc;

use cel::extractors::{Arguments, This};
use cel::objects::Opaque;
use cel::{Context, DeclarationError, ExecutionError, Value};
use semver::Version;

use super::wrong_type::wrong_type;

/// A version as expressions hold it.
#[derive(Debug, Clone)]
pub(super) struct VersionValue(pub(super) Version);

/// Build metadata does not count.
impl PartialEq for VersionValue {
    fn eq(&self, other: &Self) -> bool {
        self.0.cmp_precedence(&other.0).is_eq()
    }
}

impl Eq for VersionValue {}

impl Opaque for VersionValue {
    fn runtime_type_name(&self) -> &'static str {
        "kubernetes.Semver"
    }
}

impl From<VersionValue> for Value {
    fn from(value: VersionValue) -> Self {
        Value::Opaque(Arc::new(value))
    }
}

type Answer = Result<Value, ExecutionError>;

/// What `semver(text, true)` forgives: a leading `v`, missing minor and patch, leading zeros.
fn normalized(text: &str) -> String {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (core, rest) = text.split_at(end);
    let mut parts: Vec<&str> = core.split('.').collect();
    while parts.len() < 3 {
        parts.push("0");
    }
    let strip = |part: &&str| match part.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    };
    format!("{}{rest}", parts.iter().map(strip).collect::<Vec<_>>().join("."))
}

fn parse(function: &str, arguments: &[Value]) -> Result<Version, ExecutionError> {
    let (text, lenient) = match arguments {
        [Value::String(text)] => (text, false),
        [Value::String(text), Value::Bool(lenient)] => (text, *lenient),
        [other, ..] => return Err(wrong_type(function, other)),
        [] => return Err(ExecutionError::function_error(function, "no matching overload for no argument")),
    };
    let text = if lenient { normalized(text) } else { text.as_str().to_owned() };
    Version::parse(&text).map_err(|e| ExecutionError::function_error(function, e))
}

fn part(function: &'static str, value: &Value, part: impl Fn(&Version) -> u64) -> Answer {
    let version = match value {
        Value::Opaque(opaque) => opaque.downcast_ref::<VersionValue>(),
        _ => None,
    };
    let number = part(&version.ok_or_else(|| wrong_type(function, value))?.0);
    i64::try_from(number).map(Value::Int).map_err(|e| ExecutionError::function_error(function, e))
}

/// Adds the functions to a context.
pub(super) fn register(context: &mut Context<'_, '_>) -> Result<(), DeclarationError> {
    context.add_function("semver", |Arguments(arguments): Arguments| -> Answer {
        Ok(VersionValue(parse("semver", &arguments)?).into())
    })?;
    context
        .add_function("isSemver", |Arguments(arguments): Arguments| parse("isSemver", &arguments).is_ok())?;
    context.add_function("major", |This(this): This<Value>| part("major", &this, |v| v.major))?;
    context.add_function("minor", |This(this): This<Value>| part("minor", &this, |v| v.minor))?;
    context.add_function("patch", |This(this): This<Value>| part("patch", &this, |v| v.patch))
}
