//! The one watch of the node's own MigNode.

use std::pin::pin;

use futures::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::api::{MigNodes, OwnMigNode};

/// Hands out what the API server has, until `stop`.
pub async fn watch_own(objects: MigNodes, own: watch::Sender<OwnMigNode>, stop: CancellationToken) {
    let mut changes = pin!(objects.changes());
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = changes.next() => next,
        };
        let Some(next) = next else { break };
        own.send_if_modified(|it| {
            let changed = *it != next;
            if changed && next == OwnMigNode::NoKind {
                info!(
                    "kube-apiserver has no mignodes.mig.dra-driver.dev: no status of the node is written, and no demand is \
                     followed; it is looked for again every 5 minutes"
                );
            }
            *it = next;
            changed
        });
    }
    // The watch reconnects for ever.
    stop.cancelled().await;
}
