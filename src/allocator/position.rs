//! Where the search stands, and why a branch of it ends.

use crate::refusal::{Abort, Refusal};

/// Where the search stands: the request, the alternative, and how many of its devices are found.
#[derive(Clone, Copy)]
pub(crate) struct At {
    pub(crate) claim: usize,
    pub(crate) request: usize,
    pub(crate) alternative: usize,
    pub(crate) device: usize,
}

impl At {
    pub(crate) fn start_of(claim: usize, request: usize) -> Self {
        Self { claim, request, alternative: 0, device: 0 }
    }
}

/// Why a branch of the search ends early.
pub(crate) enum Stop {
    /// The claim would get more than [`MAX_DEVICES`]; an alternative that takes fewer may do.
    TooManyDevices,
    Refused(Refusal),
}

impl From<Abort> for Stop {
    fn from(abort: Abort) -> Self {
        Self::Refused(abort.into())
    }
}
