//! Lists in pages: `limit` and `continue` of list requests.
//!
//! All pages of a list show the objects as they were when the first page was made. What has changed since is undone with the history,
//! so a token is out of date when the history is.

use std::collections::HashMap;

use super::error::ApiError;

/// Which part of a list is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Objects in it at most; `None` for all.
    pub limit: Option<usize>,
    /// Where it begins; `None` for a new list.
    pub from: Option<Continue>,
}

/// What a token of the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continue {
    /// The resource version of the list.
    pub(super) revision: u64,
    /// Namespace and name of the last object before.
    pub(super) after: (String, String),
}

impl Page {
    /// Reads the parameters of a list request.
    ///
    /// # Errors
    /// 400 where they cannot be read, or contradict each other.
    pub(super) fn of(query: &HashMap<String, String>) -> Result<Self, ApiError> {
        let text = |name: &str| query.get(name).map_or("", String::as_str);
        let limit = match text("limit") {
            "" => 0,
            text => text.parse::<i64>().map_err(|_| ApiError::bad_request("limit: not a whole number"))?,
        };
        let version = text("resourceVersion");
        let from = match text("continue") {
            "" => None,
            _ if !matches!(version, "" | "0") => {
                return Err(ApiError::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            token => Some(Continue::parse(token)?),
        };
        // A list of version 0 comes from the server's cache, which does not cut it.
        let limit = usize::try_from(limit).ok().filter(|it| 0 < *it && version != "0");
        Ok(Self { limit, from })
    }
}

impl Continue {
    fn parse(token: &str) -> Result<Self, ApiError> {
        let invalid = || ApiError::bad_request("continue key is not valid");
        let (revision, object) = token.split_once('/').ok_or_else(invalid)?;
        let (namespace, name) = object.split_once('/').ok_or_else(invalid)?;
        let revision = revision.parse().map_err(|_| invalid())?;
        Ok(Self { revision, after: (namespace.to_owned(), name.to_owned()) })
    }
}

impl std::fmt::Display for Continue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.revision, self.after.0, self.after.1)
    }
}
