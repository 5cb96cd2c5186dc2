//! ValidatingAdmissionPolicies: what one says to a request, as the API server evaluates it.
//!
//! As in [`dra_allocator::cel_env`] there is no type checker and no cost; match constraints and bindings are not looked at. Refuses to
//! guess: what cannot be evaluated is a refusal, which is what `failurePolicy: Fail` makes of it.

use std::collections::HashMap;

use cel::objects::Key;
use cel::{Context, Value as CelValue};
use serde_json::{Value, json};

use crate::expression;

/// What a policy sees of a request.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// `CREATE`, `UPDATE` or `DELETE`.
    pub operation: &'a str,
    /// Who asks.
    pub username: &'a str,
    /// What the authenticator knows besides, by key.
    pub extra: Value,
    /// The object after the request; null for a deletion.
    pub object: Value,
    /// The object before the request; null for a creation.
    pub old_object: Value,
}

/// Whether the policy lets the request through; the message of the first validation that does not.
///
/// # Errors
/// The refusal.
pub fn admit(policy: &Value, request: &Request<'_>) -> Result<(), String> {
    let spec = &policy["spec"];
    let list = |field: &str| spec[field].as_array().cloned().unwrap_or_default();
    let name =
        [&request.object, &request.old_object].into_iter().find_map(|it| it["metadata"]["name"].as_str());
    let asked = json!({
        "operation": request.operation, "name": name.unwrap_or_default(), "dryRun": false,
        "userInfo": {"username": request.username, "extra": request.extra},
    });
    let mut context = expression::context();
    for (name, value) in
        [("request", &asked), ("object", &request.object), ("oldObject", &request.old_object)]
    {
        context.add_variable(name, value).map_err(|error| error.to_string())?;
    }
    let mut variables: HashMap<Key, CelValue> = HashMap::new();
    context.add_variable_from_value("variables", variables.clone());
    for condition in list("matchConditions") {
        if !is_true(&context, &condition["expression"])? {
            return Ok(());
        }
    }
    for variable in list("variables") {
        let value = evaluate(&context, &variable["expression"])?;
        variables.insert(variable["name"].as_str().unwrap_or_default().to_owned().into(), value);
        context.add_variable_from_value("variables", variables.clone());
    }
    for validation in list("validations") {
        if !is_true(&context, &validation["expression"])? {
            let expression = &validation["messageExpression"];
            let text = if expression.is_null() { None } else { Some(evaluate(&context, expression)?) };
            return Err(match text {
                Some(CelValue::String(text)) => text.to_string(),
                _ => validation["message"].as_str().unwrap_or("failed expression").to_owned(),
            });
        }
    }
    Ok(())
}

fn is_true(context: &Context<'_, '_>, expression: &Value) -> Result<bool, String> {
    match evaluate(context, expression)? {
        CelValue::Bool(answer) => Ok(answer),
        other => Err(format!("{expression}: {} is no boolean", other.type_of())),
    }
}

fn evaluate(context: &Context<'_, '_>, expression: &Value) -> Result<CelValue, String> {
    expression::evaluate(context, expression.as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(object: Value) -> Request<'static> {
        Request {
            operation: "CREATE",
            username: "it",
            extra: json!({"k": ["v"]}),
            object,
            old_object: Value::Null,
        }
    }

    fn policy() -> Value {
        json!({"spec": {
            "matchConditions": [{"name": "it", "expression": "request.userInfo.username == 'it'"}],
            "variables": [
                {"name": "k", "expression": "request.userInfo.extra[?'k'][?0].orValue('')"},
                {"name": "both", "expression": "variables.k + object.?spec.x.orValue('-')"},
            ],
            "validations": [
                {"expression": "variables.both == 'vy'", "messageExpression": "'not ' + variables.both"},
                {"expression": "object.metadata.name != 'z'", "message": "no z"},
            ],
        }})
    }

    #[test]
    fn the_first_validation_that_fails_is_the_refusal() {
        let named = |name: &str, x: &str| json!({"metadata": {"name": name}, "spec": {"x": x}});
        assert_eq!(admit(&policy(), &request(named("a", "y"))), Ok(()));
        assert_eq!(admit(&policy(), &request(named("a", "x"))), Err("not vx".to_owned()));
        assert_eq!(admit(&policy(), &request(named("z", "y"))), Err("no z".to_owned()));
        assert_eq!(admit(&policy(), &request(json!({}))), Err("not v-".to_owned()));
    }

    #[test]
    fn another_account_is_none_of_its_business_and_what_cannot_be_evaluated_is_refused() {
        let other = Request { username: "other", ..request(Value::Null) };
        assert_eq!(admit(&policy(), &other), Ok(()));
        let nameless = json!({"metadata": {}, "spec": {"x": "y"}});
        assert!(admit(&policy(), &request(nameless)).unwrap_err().contains("object.metadata.name"));
        let mut broken = policy();
        broken["spec"]["validations"][0]["expression"] = json!("variables.");
        admit(&broken, &request(json!({"spec": {"x": "y"}}))).unwrap_err();
    }
}
