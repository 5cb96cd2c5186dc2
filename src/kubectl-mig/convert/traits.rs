//! What is special about kinds with pod specs.

/// What is special about a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Traits {
    /// What the API server or the operator requires, so that an object without it is a patch.
    pub(super) requires: Requires,
    /// Fields of the pod spec that are containers, beside `containers` and `initContainers`.
    pub(super) containers: &'static [&'static str],
    /// What the user has to know about claims in this kind.
    pub(super) advice: Advice,
}

/// What an object of a kind always has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Requires {
    /// `spec.selector`, and an image in each container.
    SelectorAndImage,
    /// An image in each container.
    Image,
    /// Neither: the operator fills in what is missing, or the kind is the user's.
    Nothing,
}

/// What the user has to know about claims in a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    /// Nothing: the operator passes claims on.
    Nothing,
    /// Something to verify in the cluster, which no manifest shows.
    Note(&'static str),
    /// Something to do, or the pods do not get what they had.
    Review(&'static str),
    /// Claims do not work.
    Refused(&'static str),
    /// KubeRay counts the GPUs of a group by its limits.
    Ray,
    /// KServe passes claims on only in the deployment mode Standard.
    KServe,
}
