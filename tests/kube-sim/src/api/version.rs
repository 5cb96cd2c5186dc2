//! Which Kubernetes the server is.

/// A minor version of Kubernetes, with the rules that it has for ResourceSlices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Counters belong to one slice: its devices draw on its own counter sets, and on no others.
    V1_34,
    /// Counters belong to the pool: they are in slices of their own, and the API server checks no reference to them.
    #[default]
    V1_35,
}

impl Version {
    /// The release, as `/version` has it.
    #[must_use]
    pub fn release(self) -> &'static str {
        match self {
            Self::V1_34 => "v1.34.9",
            Self::V1_35 => "v1.35.6",
        }
    }

    /// The minor version, as `/version` has it.
    #[must_use]
    pub fn minor(self) -> &'static str {
        match self {
            Self::V1_34 => "34",
            Self::V1_35 => "35",
        }
    }
}
