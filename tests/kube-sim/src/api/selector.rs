//! Label and field selectors of list and watch requests.

use serde_json::Value;

use super::error::ApiError;
use super::kinds::Kind;

/// What a list or watch asks for.
#[derive(Debug, Clone, Default)]
pub struct Selectors {
    labels: Vec<LabelRule>,
    fields: Vec<(String, String, bool)>,
}

#[derive(Debug, Clone)]
enum LabelRule {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

/// The fields that each kind can be selected by, besides its name and namespace.
fn selectable(kind: &Kind) -> &'static [&'static str] {
    match kind.kind {
        "Pod" => &["spec.nodeName", "status.phase"],
        "ResourceSlice" => &["spec.nodeName", "spec.driver"],
        "Event" => &[
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.kind",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "reason",
            "type",
        ],
        "Node" => &["spec.unschedulable"],
        _ => &[],
    }
}

impl Selectors {
    /// Whether anything is selected by.
    #[must_use]
    pub fn are_given(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }

    /// Reads the `labelSelector` and `fieldSelector` parameters.
    ///
    /// # Errors
    /// 400 when a selector cannot be read, or names a field that the kind cannot be selected by.
    pub fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, ApiError> {
        let labels = split_outside_parentheses(labels)
            .into_iter()
            .map(|r| label_rule(&r))
            .collect::<Result<_, _>>()?;
        let mut parsed = Vec::new();
        for rule in fields.split(',').filter(|r| !r.trim().is_empty()) {
            let (path, value, equal) = if let Some((path, value)) = rule.split_once("!=") {
                (path, value, false)
            } else if let Some((path, value)) = rule.split_once("==").or_else(|| rule.split_once('=')) {
                (path, value, true)
            } else {
                return Err(ApiError::bad_request(format!("invalid field selector: {rule}")));
            };
            let path = path.trim();
            let known =
                ["metadata.name", "metadata.namespace"].contains(&path) || selectable(kind).contains(&path);
            if !known {
                let text = format!("field label not supported: {path}");
                return Err(ApiError::bad_request(text));
            }
            parsed.push((path.to_owned(), value.trim().to_owned(), equal));
        }
        Ok(Self { labels, fields: parsed })
    }

    /// Whether an object is selected.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        let labels = self.labels.iter().all(|rule| match rule {
            LabelRule::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            LabelRule::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            LabelRule::Exists(key) => label(key).is_some(),
            LabelRule::Absent(key) => label(key).is_none(),
        });
        labels && self.fields.iter().all(|(path, value, equal)| (field(object, path) == *value) == *equal)
    }
}

/// The text of the field at a dotted path; empty where there is none, as for the API server.
fn field(object: &Value, path: &str) -> String {
    match path.split('.').fold(object, |value, key| &value[key]) {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn split_outside_parentheses(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts.into_iter().map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect()
}

fn label_rule(rule: &str) -> Result<LabelRule, ApiError> {
    let own = |text: &str| text.trim().to_owned();
    let set =
        |text: &str| text.trim().trim_start_matches('(').trim_end_matches(')').split(',').map(own).collect();
    if let Some((key, values)) = rule.split_once(" notin ") {
        return Ok(LabelRule::NotIn(own(key), set(values)));
    }
    if let Some((key, values)) = rule.split_once(" in ") {
        return Ok(LabelRule::In(own(key), set(values)));
    }
    if let Some((key, value)) = rule.split_once("!=") {
        return Ok(LabelRule::NotIn(own(key), vec![own(value)]));
    }
    if let Some((key, value)) = rule.split_once("==").or_else(|| rule.split_once('=')) {
        return Ok(LabelRule::In(own(key), vec![own(value)]));
    }
    let (absent, key) = rule.strip_prefix('!').map_or((false, rule), |key| (true, key));
    if key.contains(char::is_whitespace) {
        return Err(ApiError::bad_request(format!("unable to parse requirement: {rule}")));
    }
    Ok(if absent { LabelRule::Absent(own(key)) } else { LabelRule::Exists(own(key)) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::kinds::{POD, RESOURCE_SLICE};
    use super::*;

    fn selected(labels: &str, fields: &str) -> bool {
        let slice = json!({"metadata": {"name": "a", "labels": {"app": "x"}}, "spec": {"nodeName": "n", "driver": "d"}});
        Selectors::parse(&RESOURCE_SLICE, labels, fields).unwrap().matches(&slice)
    }

    #[test]
    fn slices_are_selected_by_node_and_driver() {
        assert!(selected("", "spec.driver=d,spec.nodeName=n"));
        assert!(!selected("", "spec.driver=d,spec.nodeName=m"));
        assert!(selected("", "metadata.name!=b"));
    }

    #[test]
    fn labels_are_selected_by_equality_sets_and_presence() {
        assert!(selected("app=x", ""));
        assert!(selected("app in (x, y),!other", ""));
        assert!(!selected("app notin (x)", ""));
        assert!(selected("app", ""));
    }

    #[test]
    fn a_field_that_is_not_indexed_is_refused() {
        let error = Selectors::parse(&POD, "", "spec.driver=d").unwrap_err();
        assert!(error.message.contains("field label not supported"));
    }
}
