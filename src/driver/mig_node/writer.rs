//! Writes the status of the MigNode where what it shows has changed.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use mig_model::layout::Decision;
use mig_model::mig_node::{Followed, MigNode, MigNodeStatus};
use mig_model::slices::{Offered, Publication};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::report::Known;
use crate::api::{MigNodeError, MigNodeErrorKind, MigNodes, OwnMigNode};
use crate::backoff::Backoff;
use crate::context::NodeContext;
use crate::hardware::NodeState;
use crate::kubelet::PublisherElection;

/// How long changes are collected: a claim brings several.
const BURST: Duration = Duration::from_millis(500);
/// The shortest time between two writes.
const SPACING: Duration = Duration::from_secs(3);
/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// How long a process waits for its first publication before it reports that there is none.
const GRACE: Duration = Duration::from_secs(30);
/// How soon a process that leaves the status to a newer one sees that it is gone.
const TURN_RETRY: Duration = Duration::from_secs(30);

/// What a status is made of.
#[derive(Debug)]
pub struct StatusParts {
    /// The node.
    pub context: NodeContext,
    /// Its MigNode.
    pub objects: MigNodes,
    /// What the API server has of it.
    pub own: watch::Receiver<OwnMigNode>,
    /// How the slices stand.
    pub publication: watch::Receiver<Publication>,
    /// What is in them.
    pub offered: watch::Receiver<Offered>,
    /// Which layout is in force.
    pub layouts: watch::Receiver<Decision>,
    /// What became of the spec.
    pub followed: watch::Receiver<Option<Followed>>,
    /// Fires on every change of the claims' devices.
    pub changes: watch::Receiver<()>,
    /// Whether this process or a newer one writes.
    pub election: PublisherElection,
}

/// Keeps the status of the node's MigNode.
#[derive(Debug)]
pub struct StatusWriter {
    parts: StatusParts,
    /// What was written last, and what the API server made of it: it drops fields that an older schema does not have.
    written: Option<(MigNodeStatus, Option<MigNodeStatus>)>,
    retry: Backoff,
    /// The refusal that was logged last.
    refusal: Option<String>,
    /// Until when a publication that is pending is not reported, because the process has just started.
    grace: Instant,
}

/// What to do after a look.
enum Next {
    /// Wait for a change.
    Wait,
    /// Wait for a change, at the longest until then.
    WaitUntil(Instant),
    /// Wait for a change, and write no sooner than this.
    Spaced,
    /// Look again then, whatever changes meanwhile.
    After(Duration),
}

impl StatusWriter {
    /// Writes the status that is made of these.
    #[must_use]
    pub fn new(parts: StatusParts) -> Self {
        let retry = Backoff::new(PAUSES.0, PAUSES.1, &parts.context.name);
        Self { parts, written: None, retry, refusal: None, grace: Instant::now() + GRACE }
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(mut self) {
        let mut node = self.parts.context.node.clone();
        loop {
            self.mark_seen(&mut node);
            let not_before = match self.look().await {
                Next::After(pause) => {
                    sleep(pause).await;
                    continue;
                }
                Next::Wait => Instant::now(),
                Next::WaitUntil(time) => {
                    let _ = timeout_at(time, self.changed(&mut node)).await;
                    continue;
                }
                Next::Spaced => Instant::now() + SPACING,
            };
            self.changed(&mut node).await;
            sleep_until(not_before.max(Instant::now() + BURST)).await;
        }
    }

    fn mark_seen(&mut self, node: &mut watch::Receiver<NodeState>) {
        node.mark_unchanged();
        self.parts.own.mark_unchanged();
        self.parts.publication.mark_unchanged();
        self.parts.offered.mark_unchanged();
        self.parts.layouts.mark_unchanged();
        self.parts.followed.mark_unchanged();
        self.parts.changes.mark_unchanged();
    }

    /// Waits for the next change of anything that matters.
    async fn changed(&mut self, node: &mut watch::Receiver<NodeState>) {
        let StatusParts { own, publication, offered, layouts, followed, changes, .. } = &mut self.parts;
        // Where there is no object, nothing else matters.
        if matches!(*own.borrow(), OwnMigNode::Unknown | OwnMigNode::NoKind) {
            return next(own).await;
        }
        tokio::select! {
            () = next(node) => {}
            () = next(own) => {}
            () = next(publication) => {}
            () = next(offered) => {}
            () = next(layouts) => {}
            () = next(followed) => {}
            () = next(changes) => {}
        }
    }

    async fn look(&mut self) -> Next {
        let own = self.parts.own.borrow().clone();
        let result = match own {
            OwnMigNode::Unknown | OwnMigNode::NoKind => return Next::Wait,
            _ if self.has_just_started() => return Next::WaitUntil(self.grace),
            OwnMigNode::Present(object) if object.metadata.deletion_timestamp.is_some() => return Next::Wait,
            OwnMigNode::Absent if !self.parts.election.is_ours().await => return Next::After(TURN_RETRY),
            OwnMigNode::Absent => match self.create().await {
                // The watch shows it.
                Ok(()) => return Next::Wait,
                Err(error) => Err(error),
            },
            OwnMigNode::Present(object) => match self.wanted(&object) {
                Err(error) => {
                    info!(
                        error,
                        "the status of the MigNode is not written: records of claims cannot be read"
                    );
                    return Next::After(self.retry.failed());
                }
                Ok(wanted) if self.is_there(&object, &wanted) => return Next::Wait,
                Ok(_) if !self.parts.election.is_ours().await => return Next::After(TURN_RETRY),
                Ok(wanted) => self.write(wanted).await,
            },
        };
        match result {
            Ok(()) => {
                self.retry.succeeded();
                if self.refusal.take().is_some() {
                    info!("the status of the MigNode is written again");
                }
                Next::Spaced
            }
            Err(error) => Next::After(self.failed(&error)),
        }
    }

    /// True while nothing is known of the slices yet, of which the object may say more.
    fn has_just_started(&self) -> bool {
        Instant::now() < self.grace && matches!(*self.parts.publication.borrow(), Publication::Pending { .. })
    }

    /// Whether the object shows this status already, as far as the API server keeps it.
    fn is_there(&self, object: &MigNode, wanted: &MigNodeStatus) -> bool {
        let is_as_kept = |(written, kept): &(MigNodeStatus, Option<MigNodeStatus>)| {
            written == wanted && *kept == object.status
        };
        object.status.as_ref() == Some(wanted) || self.written.as_ref().is_some_and(is_as_kept)
    }

    fn wanted(&self, object: &MigNode) -> Result<MigNodeStatus, String> {
        let records = tokio::task::block_in_place(|| self.parts.context.checkpoint.records());
        let records = records.map_err(|error| error.to_string())?;
        let (node, publication) = (self.parts.context.node.borrow(), self.parts.publication.borrow());
        let (offered, layouts) = (self.parts.offered.borrow(), self.parts.layouts.borrow());
        let followed = self.parts.followed.borrow();
        let known = Known {
            node: &node,
            publication: &publication,
            offered: &offered,
            records: &records,
            layout: layouts.label.as_deref(),
            followed: followed.as_ref(),
        };
        let before = object.status.as_ref().map_or(&[][..], |it| &it.conditions);
        Ok(known.status(before, Timestamp::now()))
    }

    async fn create(&self) -> Result<(), MigNodeError> {
        match self.parts.objects.create().await {
            Err(error) if error.kind == MigNodeErrorKind::Exists => Ok(()),
            answer => answer,
        }
    }

    async fn write(&mut self, wanted: MigNodeStatus) -> Result<(), MigNodeError> {
        let kept = self.parts.objects.write_status(&wanted).await?;
        debug!("status of the MigNode written");
        self.written = Some((wanted, kept));
        Ok(())
    }

    /// Logs a failure once, and answers how long to wait.
    fn failed(&mut self, error: &MigNodeError) -> Duration {
        let message = error.to_string();
        match error.kind {
            // The watch sees it, too.
            MigNodeErrorKind::Absent => debug!(message, "there is no MigNode"),
            MigNodeErrorKind::Forbidden | MigNodeErrorKind::Refused | MigNodeErrorKind::Exists => {
                if self.refusal.as_ref() != Some(&message) {
                    let advice = match error.kind {
                        MigNodeErrorKind::Forbidden => {
                            "its ClusterRole needs: create mignodes and patch mignodes/status of \
                             mig.dra-driver.dev; or start the driver with --mig-node=off"
                        }
                        _ => "install the CustomResourceDefinition and the admission policy of this version",
                    };
                    warn!(message, advice, "the status of the MigNode is not written");
                    self.refusal = Some(message);
                }
            }
            MigNodeErrorKind::Unavailable if self.retry.failures() == 0 => {
                info!(message, "the status of the MigNode is not written, retrying");
            }
            MigNodeErrorKind::Unavailable => {}
        }
        self.retry.failed()
    }
}

/// The next change; of a channel whose sender is gone there is none.
async fn next<T>(of: &mut watch::Receiver<T>) {
    if of.changed().await.is_err() {
        std::future::pending().await
    }
}
