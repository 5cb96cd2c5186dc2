//! CEL expressions of admission policies and of the validation rules of custom resources.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cel::{Context, Program, Value};
use dra_allocator::cel_env::environment;

/// Most expressions that are kept compiled: more than all that the chart has.
const MOST_PROGRAMS: usize = 1_024;

/// An empty context of the environment that the expressions are compiled in.
pub(crate) fn context<'a, 'p>() -> Context<'a, 'p> {
    Context::with_env(environment())
}

/// What an expression yields.
///
/// # Errors
/// Why it cannot be compiled or evaluated, with the expression.
pub(crate) fn evaluate(context: &Context<'_, '_>, text: &str) -> Result<Value, String> {
    compiled(text)?.execute(context).map_err(|error| format!("{text}: {error}"))
}

/// Compiling takes far longer than evaluating, and each request meets the same expressions.
fn compiled(text: &str) -> Result<Arc<Program>, String> {
    static PROGRAMS: LazyLock<Mutex<HashMap<String, Arc<Program>>>> = LazyLock::new(Mutex::default);
    let known = || PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = known().get(text) {
        return Ok(Arc::clone(program));
    }
    let program = environment().compile(text).map_err(|error| format!("{text}: {error}"))?;
    let program = Arc::new(program);
    let mut programs = known();
    if programs.len() < MOST_PROGRAMS {
        programs.insert(text.to_owned(), Arc::clone(&program));
    }
    Ok(program)
}
