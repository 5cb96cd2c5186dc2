//! An attempt to allocate claims on a node, kept for questions about it.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};

use crate::allocated::Allocated;
use crate::cluster::Cluster;
use crate::explain::{self, Explanation};
use crate::pool::View;
use crate::refusal::Refusal;
use crate::search::{Search, Solved};

/// An attempt to allocate claims on a node; made by [`Cluster::attempt`].
#[derive(Debug)]
pub struct Attempt<'c> {
    cluster: &'c Cluster<'c>,
    view: View<'c>,
    claims: &'c [ResourceClaim],
    allocated: &'c Allocated,
    solved: Solved,
}

impl<'a> Cluster<'a> {
    /// Tries to allocate all the claims on the node. What comes after the outcome costs a part of a further attempt.
    #[must_use]
    pub fn attempt<'c>(
        &'c self,
        node: &'c Node,
        claims: &'c [ResourceClaim],
        allocated: &'c Allocated,
    ) -> Attempt<'c> {
        let view = self.pools.view(node);
        let solved = Search::new(self, &view, claims, allocated).solve(self.leaks);
        Attempt { cluster: self, view, claims, allocated, solved }
    }
}

impl Attempt<'_> {
    /// What [`Cluster::allocate`] answers.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn outcome(&self) -> Result<&[AllocationResult], &Refusal> {
        self.solved.outcome.as_deref()
    }

    /// The same without what is known besides.
    pub(crate) fn into_outcome(self) -> Result<Vec<AllocationResult>, Refusal> {
        self.solved.outcome
    }

    /// Whether the claims fit if nothing is allocated.
    #[must_use]
    pub fn fits_empty(&self) -> bool {
        let nothing = Allocated::default();
        let search = Search::new(self.cluster, &self.view, self.claims, &nothing);
        search.solve(self.cluster.leaks).outcome.is_ok()
    }

    /// What [`Cluster::explain`] answers.
    #[must_use]
    pub fn explain(self) -> Explanation {
        explain::explain(self.cluster, &self.view, self.claims, self.allocated, self.solved)
    }
}
