//! What a container will lack because the host lacks it, worded so that an operator can act on it.

use std::fmt;

/// One thing that discovery looked for and did not find. The caller logs each once, not at every claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What it belongs to.
    pub part: MissingPart,
    /// How bad it is.
    pub severity: Severity,
    /// What was looked for, and where.
    pub what: String,
    /// What it means for containers.
    pub consequence: &'static str,
    /// What the operator can do.
    pub remedy: String,
}

/// What a [`Missing`] thing belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingPart {
    /// The NVIDIA driver's files and device nodes.
    Driver,
    /// The container toolkit's hooks, and what they run.
    Hooks,
}

/// How bad a [`Missing`] thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A container would start and then fail to use its GPU: better not to prepare it.
    Fatal,
    /// Containers start, and CUDA fails in those from some images.
    Impaired,
    /// Containers work, with less.
    Degraded,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.consequence, self.remedy)
    }
}
