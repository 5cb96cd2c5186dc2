//! CEL as Dynamic Resource Allocation has it: `device` with attributes and capacity by domain, quantities, semantic versions,
//! `cel.bind` and optionals.
//!
//! Differences from Kubernetes 1.35, found by comparing 154 expressions with it (`examples/agreement`):
//!
//! - There is no type checker (the `cel` crate has none). What the API server refuses when it is written, such as
//!   `device.nosuchfield` or a comparison of a quantity with a number, fails here at evaluation or is false. A loop whose last element
//!   decides hides an error of an earlier one here.
//! - Costs are bounded by the text, not counted.
//! - Not there: the libraries `regex`, `sets`, `ip`, `cidr`, `url`, `format`, most of `lists`, durations and timestamps, macros with two
//!   variables, and `device.attributes` or `device.capacity` as the range of a macro. `string.format` and `reverse` are there, which
//!   Kubernetes does not have. A selector that uses what is not there is an error, which aborts the pod.

mod cost;
mod device;
mod quantity;
mod reads;
mod version;
mod wrong_type;

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use cel::common::ast::{ComprehensionExpr, Expr, ListExpr, LiteralValue};
use cel::parser::Macro;
use cel::{Context, Env, ExecutionError, Program, Value};
use k8s_openapi::api::resource::v1::Device;
use serde::Serialize;

use device::DeviceValue;
use reads::Reads;

/// Why an expression could not be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("compilation failed: {0}")]
pub struct CompileError(String);

/// Why an expression gave no yes or no for a device. In a scheduler this aborts the pod on all nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(rename_all = "camelCase", tag = "reason", content = "detail")]
pub enum EvaluationError {
    /// The expression cannot be compiled.
    #[error("CEL compile error: {0}")]
    Compile(CompileError),
    /// The device has no attribute or capacity of this name.
    #[error("evaluate CEL expression: no such key: {0}")]
    NoSuchKey(String),
    /// The evaluation failed, for example at an attribute that the device does not have.
    #[error("evaluate CEL expression: {0}")]
    Failed(String),
    /// The result is not a boolean.
    #[error("evaluate CEL expression: the result is {0}, not a boolean")]
    NotBoolean(String),
}

/// `cel.bind(name, value, body)`: a comprehension over nothing whose accumulator is the bound name, as in cel-go.
fn bind() -> Macro {
    Macro::receiver("bind", 3, |helper, target, args| {
        let on_cel = matches!(target, Some(t) if matches!(&t.expr, Expr::Ident(name) if name == "cel"));
        if !on_cel || args.len() != 3 {
            return Ok(None);
        }
        let Expr::Ident(name) = args[0].expr.clone() else {
            return Err(helper.new_error(args[0].id, "cel.bind() variable names must be simple identifiers"));
        };
        let (Some(body), Some(value)) = (args.pop(), args.pop()) else { return Ok(None) };
        let nothing = helper.next_expr(Expr::List(ListExpr::new(Vec::new())));
        let never = helper.next_expr(Expr::Literal(LiteralValue::Boolean(false.into())));
        let unchanged = helper.next_expr(Expr::Ident(name.clone()));
        let bound = ComprehensionExpr {
            iter_range: nothing,
            iter_var: "#unused".into(),
            iter_var2: None,
            accu_var: name,
            accu_init: value,
            loop_cond: never,
            loop_step: unchanged,
            result: body,
        };
        Ok(Some(helper.next_expr(Expr::Comprehension(Box::new(bound)))))
    })
}

/// The environment that expressions are compiled in: the standard library, `cel.bind` and the string extensions. There is one for all,
/// because it is large.
#[must_use]
pub fn environment() -> Arc<Env> {
    static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
        let mut env = Env::stdlib();
        // Neither can clash with the standard library: the names are not in it.
        let added = env.add_macro(bind()).and_then(|()| env.add_extension(cel::extensions::strings));
        debug_assert!(added.is_ok(), "{added:?}");
        Arc::new(env)
    });
    Arc::clone(&ENVIRONMENT)
}

/// Compiles an expression.
///
/// # Errors
/// When the text is not CEL, is longer than 10 KiB, or may cost too much.
pub fn compile(expression: &str) -> Result<Program, CompileError> {
    if expression.len() > cost::MAX_LENGTH {
        return Err(CompileError(format!("longer than {} bytes", cost::MAX_LENGTH)));
    }
    let program = environment().compile(expression);
    let program = program.map_err(|e| CompileError(e.to_string().trim().to_owned()))?;
    let cost = cost::of(program.expression());
    if cost > cost::LIMIT {
        return Err(CompileError(format!("estimated cost {cost} exceeds the limit of {}", cost::LIMIT)));
    }
    Ok(program)
}

/// Answers of an expression that are remembered by what it reads.
const MAX_ANSWERS: usize = 1 << 12;

/// Compiled expressions, to be shared by clusters that use the same ones.
#[derive(Debug, Clone, Default)]
pub struct Programs(Arc<Mutex<HashMap<String, Arc<Compiled>>>>);

/// An expression and what became of it.
#[derive(Debug)]
struct Compiled {
    number: usize,
    program: Result<Program, CompileError>,
    reads: Option<Reads>,
    /// By the values that it reads of a device.
    answers: Mutex<HashMap<Vec<u8>, Result<bool, EvaluationError>>>,
}

impl Programs {
    fn compiled(&self, expression: &str) -> Arc<Compiled> {
        let mut known = lock(&self.0);
        if let Some(compiled) = known.get(expression) {
            return Arc::clone(compiled);
        }
        let (number, program) = (known.len(), compile(expression));
        let reads = program.as_ref().ok().and_then(|it| Reads::of(it.expression()));
        let compiled = Arc::new(Compiled { number, program, reads, answers: Mutex::default() });
        known.insert(expression.to_owned(), Arc::clone(&compiled));
        compiled
    }
}

/// A map of finished entries is whole whenever another thread panicked.
fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Compiled {
    /// Whether the expression selects the device. The same is asked for many devices that differ in nothing that it reads.
    fn answer(&self, evaluator: &Evaluator, driver: &str, device: &Device) -> Result<bool, EvaluationError> {
        let program = self.program.as_ref().map_err(|error| EvaluationError::Compile(error.clone()))?;
        let Some(reads) = &self.reads else { return evaluator.selects(program, driver, device) };
        let values = reads.values(driver, device);
        if let Some(known) = lock(&self.answers).get(&values) {
            return known.clone();
        }
        let answer = evaluator.selects(program, driver, device);
        let mut answers = lock(&self.answers);
        if answers.len() < MAX_ANSWERS {
            answers.insert(values, answer.clone());
        }
        answer
    }
}

/// Expressions by text, each compiled when it is evaluated first, as upstream does: one that is never evaluated causes no error.
/// What an expression says about a device is remembered.
#[derive(Debug, Default)]
pub(crate) struct Selectors {
    programs: Programs,
    /// By number of the expression and address of the device: the devices of a cluster stay where they are as long as it lives.
    answers: Mutex<HashMap<(usize, usize), Result<bool, EvaluationError>>>,
}

impl Selectors {
    pub(crate) fn with(programs: Programs) -> Self {
        Self { programs, ..Self::default() }
    }

    /// Whether the expression selects the device, which is one of the cluster.
    pub(crate) fn evaluate(
        &self,
        expression: &str,
        evaluator: &Evaluator,
        driver: &str,
        device: &Device,
    ) -> Result<bool, EvaluationError> {
        let compiled = self.programs.compiled(expression);
        let key = (compiled.number, std::ptr::from_ref(device).addr());
        if let Some(known) = lock(&self.answers).get(&key) {
            return known.clone();
        }
        let answer = compiled.answer(evaluator, driver, device);
        lock(&self.answers).insert(key, answer.clone());
        answer
    }
}

/// Evaluates compiled expressions on devices.
pub struct Evaluator {
    /// Made when it is needed first.
    context: OnceCell<Context<'static, 'static>>,
}

impl std::fmt::Debug for Evaluator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Evaluator")
    }
}

impl Default for Evaluator {
    fn default() -> Self {
        Self::new()
    }
}

impl Evaluator {
    /// An evaluator with the DRA functions.
    #[must_use]
    pub fn new() -> Self {
        Self { context: OnceCell::new() }
    }

    fn context() -> Context<'static, 'static> {
        let mut context = Context::with_env(environment());
        let added = quantity::register(&mut context).and_then(|()| version::register(&mut context));
        debug_assert!(added.is_ok(), "{added:?}");
        context
    }

    /// Whether the expression selects the device. Names without a domain belong to the driver's domain.
    ///
    /// # Errors
    /// When the evaluation fails or its result is not a boolean.
    pub fn selects(&self, program: &Program, driver: &str, device: &Device) -> Result<bool, EvaluationError> {
        let mut scope = self.context.get_or_init(Self::context).new_inner_scope();
        scope.add_variable_as_val("device", Box::new(DeviceValue::new(driver, device)));
        match program.execute(&scope) {
            Ok(Value::Bool(answer)) => Ok(answer),
            Ok(other) => Err(EvaluationError::NotBoolean(other.type_of().to_string())),
            Err(ExecutionError::NoSuchKey(key)) => Err(EvaluationError::NoSuchKey(key.to_string())),
            Err(error) => Err(EvaluationError::Failed(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn device() -> Device {
        serde_json::from_value(json!({"name": "d", "attributes": {
            "type": {"string": "mig"}, "profile": {"string": "1g.10gb"}, "computeSlices": {"int": 1},
            "mediaExtensions": {"bool": false}, "driverVersion": {"version": "570.124.6"},
            "resource.kubernetes.io/pciBusID": {"string": "0000:3b:00.0"}},
            "capacity": {"memory": {"value": "9856Mi"}, "multiprocessors": {"value": "16"}}}))
        .unwrap()
    }

    fn evaluate(expression: &str) -> Result<bool, EvaluationError> {
        let program = compile(expression).unwrap();
        Evaluator::new().selects(&program, "mig.dra-driver.dev", &device())
    }

    #[track_caller]
    fn yes(expression: &str) {
        assert_eq!(evaluate(expression), Ok(true), "{expression}");
    }

    #[track_caller]
    fn no(expression: &str) {
        assert_eq!(evaluate(expression), Ok(false), "{expression}");
    }

    #[test]
    fn driver_and_attributes_of_every_type_can_be_compared() {
        yes(r#"device.driver == "mig.dra-driver.dev""#);
        yes(r#"device.attributes["mig.dra-driver.dev"].profile == "1g.10gb""#);
        yes(r#"device.attributes["mig.dra-driver.dev"].computeSlices >= 1"#);
        yes(r#"!device.attributes["mig.dra-driver.dev"].mediaExtensions"#);
        yes(r#"device.attributes["resource.kubernetes.io"].pciBusID.startsWith("0000:3b")"#);
        yes(r#"device.attributes["mig.dra-driver.dev"].profile in ["1g.10gb", "2g.20gb"]"#);
        yes(r#"device.attributes["mig.dra-driver.dev"].profile.matches("^1g[.]")"#);
    }

    #[test]
    fn an_unknown_domain_is_an_empty_map_and_an_unknown_key_an_error() {
        no(r#"has(device.attributes["other.example.com"].profile)"#);
        no(r#""profile" in device.attributes["other.example.com"]"#);
        assert!(evaluate(r#"device.attributes["mig.dra-driver.dev"].colour == "red""#).is_err());
        assert!(evaluate(r#"device.attributes["other.example.com"].profile == "x""#).is_err());
        no(r#"device.driver == "other" && device.attributes["mig.dra-driver.dev"].colour == "red""#);
    }

    #[test]
    fn optional_syntax_and_bind_work() {
        yes(r#"device.attributes["mig.dra-driver.dev"].?profile.orValue("") == "1g.10gb""#);
        yes(r#"device.attributes["mig.dra-driver.dev"].?colour.orValue("none") == "none""#);
        yes(
            r#"cel.bind(a, device.attributes["mig.dra-driver.dev"], a.type == "mig" && a.profile == "1g.10gb")"#,
        );
        yes(r#"cel.bind(x, 1, cel.bind(y, x + 1, x + y == 3))"#);
    }

    #[test]
    fn capacities_are_quantities() {
        let memory = r#"device.capacity["mig.dra-driver.dev"].memory"#;
        yes(&format!(r#"{memory}.compareTo(quantity("9Gi")) >= 0"#));
        no(&format!(r#"{memory}.compareTo(quantity("10Gi")) >= 0"#));
        yes(&format!(r#"{memory}.isGreaterThan(quantity("1G"))"#));
        yes(&format!(r#"{memory}.isLessThan(quantity("10Gi"))"#));
        yes(&format!(r#"{memory} == quantity("9856Mi")"#));
        yes(&format!(r#"{memory}.sub(quantity("1Mi")).isLessThan({memory})"#));
        yes(r#"device.capacity["mig.dra-driver.dev"].multiprocessors.asInteger() == 16"#);
        yes(r#"quantity("1500m").isInteger() == false && quantity("2").add(1).asInteger() == 3"#);
        yes(r#"isQuantity("10Gi") && !isQuantity("ten")"#);
        yes(r#"quantity("500m").asApproximateFloat() == 0.5 && quantity("-1").sign() == -1"#);
        assert!(evaluate(r#"quantity("1500m").asInteger() == 1"#).is_err());
        assert!(evaluate(r#"quantity("ten").asInteger() == 1"#).is_err());
    }

    #[test]
    fn version_attributes_are_semantic_versions() {
        let version = r#"device.attributes["mig.dra-driver.dev"].driverVersion"#;
        yes(&format!(r#"{version}.compareTo(semver("570.0.0")) > 0"#));
        yes(&format!(
            r#"{version}.isGreaterThan(semver("550.54.15")) && {version}.isLessThan(semver("580.0.0"))"#
        ));
        yes(&format!("{version}.major() == 570 && {version}.minor() == 124 && {version}.patch() == 6"));
        yes(&format!(r#"{version} == semver("570.124.6")"#));
        yes(r#"isSemver("1.2.3") && !isSemver("1.2") && isSemver("v1.2", true)"#);
        yes(r#"semver("v01.2", true).compareTo(semver("1.2.0")) == 0"#);
        assert!(evaluate(r#"semver("1.2").major() == 1"#).is_err());
    }

    #[test]
    fn an_expression_that_may_run_for_long_does_not_compile() {
        let loops = |depth: usize| {
            let mut inner = "true".to_owned();
            for level in 0..depth {
                inner = format!("[1,2,3,4,5,6,7,8,9,10].all(v{level}, {inner})");
            }
            inner
        };
        yes(&loops(4));
        assert!(compile(&loops(7)).unwrap_err().to_string().contains("cost"));
        let list = format!("[{}0]", "0,".repeat(1500));
        let bound = format!("cel.bind(l, {list}, l.all(a, l.all(b, a == b)))");
        assert!(compile(&bound).unwrap_err().to_string().contains("cost"));
        assert!(compile(&"!".repeat(20_000)).unwrap_err().to_string().contains("10240"));
    }

    #[test]
    fn what_is_not_cel_does_not_compile_and_what_is_not_boolean_is_an_error() {
        assert!(compile("device.driver ==").is_err());
        assert!(matches!(evaluate("device.driver"), Err(EvaluationError::NotBoolean(_))));
        assert!(matches!(evaluate("device.nosuchfield == 1"), Err(EvaluationError::Failed(_))));
    }
}
