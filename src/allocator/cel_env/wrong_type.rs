//! The error that the functions of quantities and of versions share.

use cel::{ExecutionError, Value};

/// The error of a function that was called with something else than it takes.
pub(super) fn wrong_type(function: &str, got: &Value) -> ExecutionError {
    ExecutionError::function_error(function, format!("no matching overload for {}", got.type_of()))
}
