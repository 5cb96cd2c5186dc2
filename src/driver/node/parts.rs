//! The tasks of the process, and their common shutdown.

use std::future::Future;
use std::time::Duration;

use anyhow::anyhow;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long running calls may take to end once the process was asked to stop; below the 30 s that Kubernetes gives.
const DRAIN: Duration = Duration::from_secs(25);

/// The tasks of the process. One that ends before it was asked to ends them all.
#[derive(Default)]
pub(super) struct Parts {
    running: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Parts {
    pub(super) fn add<E>(
        &mut self,
        name: &'static str,
        part: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<anyhow::Error>,
    {
        self.running.spawn(async move { (name, part.await.map_err(Into::into)) });
    }

    /// Adds a part that cannot fail, only end.
    pub(super) fn add_endless(
        &mut self,
        name: &'static str,
        part: impl Future<Output = ()> + Send + 'static,
    ) {
        self.add(name, async {
            part.await;
            anyhow::Ok(())
        });
    }

    /// Waits for `stop`, or for the first part that ends, and then until all have ended.
    pub(super) async fn watch(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let failure = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            ended = self.running.join_next() => Some(match ended {
                Some(Ok((name, Err(error)))) => anyhow!("{name} failed: {error}"),
                Some(Ok((name, Ok(())))) => anyhow!("{name} ended by itself"),
                Some(Err(error)) => anyhow!("a part of the driver died: {error}"),
                None => anyhow!("nothing to run"),
            }),
        };
        stop.cancel();
        info!("stopping: running calls are finished first");
        let drained = timeout(DRAIN, async { while self.running.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            warn!(
                "some calls did not end in time; they are finished or undone by the next call for their claims"
            );
        }
        info!("stopped");
        failure.map_or(Ok(()), Err)
    }
}
