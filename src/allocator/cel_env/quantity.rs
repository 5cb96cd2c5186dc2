//! Kubernetes' quantity library for CEL, and the comparisons that quantities and versions share.

use std::cmp::Ordering;
use std::sync::Arc;

use cel::extractors::This;
use cel::objects::Opaque;
use cel::{Context, DeclarationError, ExecutionError, Value};

use super::version::VersionValue;
use super::wrong_type::wrong_type;
use crate::quantity::Quantity;

/// A quantity as expressions hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QuantityValue(pub(super) Quantity);

impl Opaque for QuantityValue {
    fn runtime_type_name(&self) -> &'static str {
        "kubernetes.Quantity"
    }
}

impl From<QuantityValue> for Value {
    fn from(value: QuantityValue) -> Self {
        Value::Opaque(Arc::new(value))
    }
}

type Answer = Result<Value, ExecutionError>;

fn quantity(function: &str, value: &Value) -> Result<Quantity, ExecutionError> {
    match value {
        Value::Opaque(opaque) => opaque.downcast_ref::<QuantityValue>().map(|q| q.0),
        _ => None,
    }
    .ok_or_else(|| wrong_type(function, value))
}

/// Compares two quantities or two versions.
fn order(function: &str, a: &Value, b: &Value) -> Result<Ordering, ExecutionError> {
    let (Value::Opaque(left), Value::Opaque(right)) = (a, b) else { return Err(wrong_type(function, b)) };
    if let (Some(left), Some(right)) =
        (left.downcast_ref::<QuantityValue>(), right.downcast_ref::<QuantityValue>())
    {
        return Ok(left.0.cmp(&right.0));
    }
    if let (Some(left), Some(right)) =
        (left.downcast_ref::<VersionValue>(), right.downcast_ref::<VersionValue>())
    {
        return Ok(left.0.cmp_precedence(&right.0));
    }
    Err(wrong_type(function, b))
}

/// The operand of `add` and `sub`: a quantity or an int.
fn operand(function: &str, value: &Value) -> Result<Quantity, ExecutionError> {
    if let Value::Int(number) = value {
        Ok(Quantity::from_integer(*number))
    } else {
        quantity(function, value)
    }
}

/// Adds the functions to a context.
pub(super) fn register(context: &mut Context<'_, '_>) -> Result<(), DeclarationError> {
    context.add_function("quantity", |text: Arc<String>| -> Answer {
        let parsed = Quantity::parse(&text).map_err(|e| ExecutionError::function_error("quantity", e))?;
        Ok(QuantityValue(parsed).into())
    })?;
    context.add_function("isQuantity", |text: Arc<String>| Quantity::parse(&text).is_ok())?;
    context.add_function("sign", |This(this): This<Value>| -> Answer {
        Ok(Value::Int(quantity("sign", &this)?.sign()))
    })?;
    context.add_function("isInteger", |This(this): This<Value>| -> Answer {
        Ok(Value::Bool(quantity("isInteger", &this)?.as_integer().is_some()))
    })?;
    context.add_function("asInteger", |This(this): This<Value>| -> Answer {
        let whole = quantity("asInteger", &this)?.as_integer();
        whole
            .map(Value::Int)
            .ok_or_else(|| ExecutionError::function_error("asInteger", "cannot convert value to integer"))
    })?;
    context.add_function("asApproximateFloat", |This(this): This<Value>| -> Answer {
        Ok(Value::Float(quantity("asApproximateFloat", &this)?.as_float()))
    })?;
    context.add_function("add", |This(this): This<Value>, other: Value| -> Answer {
        Ok(QuantityValue(quantity("add", &this)?.plus(operand("add", &other)?)).into())
    })?;
    context.add_function("sub", |This(this): This<Value>, other: Value| -> Answer {
        Ok(QuantityValue(quantity("sub", &this)?.minus(operand("sub", &other)?)).into())
    })?;
    context.add_function("compareTo", |This(this): This<Value>, other: Value| -> Answer {
        Ok(Value::Int(order("compareTo", &this, &other)? as i64))
    })?;
    context.add_function("isGreaterThan", |This(this): This<Value>, other: Value| -> Answer {
        Ok(Value::Bool(order("isGreaterThan", &this, &other)?.is_gt()))
    })?;
    context.add_function("isLessThan", |This(this): This<Value>, other: Value| -> Answer {
        Ok(Value::Bool(order("isLessThan", &this, &other)?.is_lt()))
    })
}
