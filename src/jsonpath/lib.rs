//! The part of JSONPath that kubeconfig files use: names of fields with dots between them, `$.credential.access_token`.
//!
//! kube's client depends on the crate `jsonpath-rust` for one purpose: to find a token in what the command of a kubeconfig with the
//! authentication provider `gcp` prints (`token-key`, `expiry-key`). That crate brings two engines, for grammars and for regular
//! expressions with the tables of Unicode, which were a tenth of the driver's program and are resident on every node. This one
//! takes its place, for all programs of the workspace, by `[patch.crates-io]`. It understands what `gcloud` and its like need, and
//! refuses the rest.

use std::fmt;

use serde_json::Value;

/// A path that is more than names with dots between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedPath;

impl fmt::Display for UnsupportedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("only names with dots between them are supported, such as {.credential.access_token}")
    }
}

impl std::error::Error for UnsupportedPath {}

/// Finds values by path.
pub trait JsonPath {
    /// The value at the path, which begins with `$`; none where a field is missing.
    ///
    /// # Errors
    /// [`UnsupportedPath`].
    fn query(&self, path: &str) -> Result<Vec<&Value>, UnsupportedPath>;
}

impl JsonPath for Value {
    fn query(&self, path: &str) -> Result<Vec<&Value>, UnsupportedPath> {
        let mut names = path.split('.');
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|it| it.is_alphanumeric() || matches!(it, '_' | '-'))
        };
        if names.next() != Some("$") || !names.clone().all(is_name) {
            return Err(UnsupportedPath);
        }
        Ok(names.try_fold(self, |value, name| value.get(name)).into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_is_found_by_the_names_on_the_way_to_it() {
        let printed = json!({"credential": {"access_token": "t", "token_expiry": "2026-11-29T00:00:00Z"}});
        assert_eq!(printed.query("$.credential.access_token"), Ok(vec![&json!("t")]));
        assert_eq!(printed.query("$"), Ok(vec![&printed]));
        assert_eq!(printed.query("$.credential.missing"), Ok(vec![]));
        assert_eq!(printed.query("$.credential.access_token.deeper"), Ok(vec![]));
    }

    #[test]
    fn what_is_more_than_names_is_refused() {
        let printed = json!({"a": [1]});
        for path in ["", "a", "$a", "$.", "$..a", "$.a[0]", "$.*", "$.a?(@)", "$.a."] {
            assert_eq!(printed.query(path), Err(UnsupportedPath), "{path}");
        }
    }
}
