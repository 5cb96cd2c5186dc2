//! Identity of a ResourceClaim.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// UID of a ResourceClaim. Safe as part of a file name and of a CDI device name: letters, digits and, within, `-`; at most
/// 63 of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClaimUid(String);

/// A text that is no UID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a claim UID has 1 to 63 letters, digits and dashes, and no dash at its ends")]
pub struct InvalidClaimUid;

impl ClaimUid {
    /// The UID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClaimUid {
    type Err = InvalidClaimUid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const LONGEST: usize = 63;
        let is_allowed = |it: u8| it.is_ascii_alphanumeric() || it == b'-';
        let is_plain = text.bytes().all(is_allowed) && !text.starts_with('-') && !text.ends_with('-');
        if is_plain && (1..=LONGEST).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidClaimUid)
        }
    }
}

impl TryFrom<String> for ClaimUid {
    type Error = InvalidClaimUid;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ClaimUid> for String {
    fn from(uid: ClaimUid) -> Self {
        uid.0
    }
}

impl fmt::Display for ClaimUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which claim the kubelet means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: ClaimUid,
}

/// A claim that the kubelet cannot mean.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{namespace}/{name}` with UID `{uid}` does not name a ResourceClaim")]
pub struct InvalidClaimRef {
    namespace: String,
    name: String,
    uid: String,
}

impl ClaimRef {
    /// Checks what came over the wire: namespace and name become part of a URL, the UID part of file names.
    pub fn new(namespace: String, name: String, uid: String) -> Result<Self, InvalidClaimRef> {
        const LONGEST_NAMESPACE: usize = 63;
        const LONGEST_NAME: usize = 253;
        let is_plain = |text: &str, longest: usize| {
            let is_allowed =
                |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-' || it == b'.';
            (1..=longest).contains(&text.len()) && text.bytes().all(is_allowed) && !text.starts_with('.')
        };
        match uid.parse() {
            Ok(uid) if is_plain(&namespace, LONGEST_NAMESPACE) && is_plain(&name, LONGEST_NAME) => {
                Ok(Self { namespace, name, uid })
            }
            _ => Err(InvalidClaimRef { namespace, name, uid }),
        }
    }
}

impl fmt::Display for ClaimRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
