//! CEL as Dynamic Resource Allocation has it.

/// Why an expression could not be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("compilation failed: {0}")]
pub struct CompileError(String);

/// Compiles an expression.
///
/// # Errors
/// When the text is not CEL.
pub fn compile(expression: &str) -> Result<cel::Program, CompileError> {
    cel::Program::compile(expression).map_err(|e| CompileError(e.to_string()))
}
