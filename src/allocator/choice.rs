//! What a search keeps of each request, and which devices it has chosen.

use crate::request::Wanted;

/// A device given to a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) request: usize,
    pub(crate) alternative: usize,
    pub(crate) candidate: usize,
}

/// A request's alternatives, and what is remembered of each.
#[derive(Debug, Default)]
pub(crate) struct Request<'a> {
    pub(crate) alternatives: Vec<Wanted<'a>>,
    /// Whether the request is a list of alternatives.
    pub(crate) is_list: bool,
    /// Answers of selectors by alternative and candidate.
    pub(crate) answers: Vec<Vec<Option<bool>>>,
    /// The alternative that the last success took.
    pub(crate) selected: usize,
}
