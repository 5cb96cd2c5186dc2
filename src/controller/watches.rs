//! The watches that feed the [`World`](crate::world::World).

use std::fmt::Debug;
use std::future::ready;

use futures::stream::{self, BoxStream, SelectAll};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod, ResourceQuota};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client, Resource};
use mig_model::mig_node::MigNode;
use serde::de::DeserializeOwned;

use crate::world::{Change, Kind};
use mig_telemetry::with_causes;

/// Seconds after which a watch is opened again; a connection that died silently is noticed then.
const WATCH_SECONDS: u32 = 120;

/// Slices in one answer: each has up to 100 kB.
const SLICES_A_PAGE: u32 = 50;

/// Objects of other kinds in one answer, which is in memory as a whole: a MigNode of eight GPUs has 34 kB, pods and nodes have about as
/// much.
const PAGE: u32 = 100;

/// Pods without a node that have not ended: those with a node have their devices, and claims say which.
const WAITING_PODS: &str = "spec.nodeName=,status.phase!=Succeeded,status.phase!=Failed";

/// Pods with a node that have not ended, of those that may be evicted.
const MOVABLE_PODS: &str = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed";

/// The label by which the owner of a pod agrees that it may be evicted, and its value.
pub const MOVABLE_LABEL: &str = "mig.dra-driver.dev/movable=true";

/// A watch failed; it is opened again after a pause.
#[derive(Debug)]
pub struct WatchError {
    /// Of what.
    pub kind: Kind,
    /// Why.
    pub why: String,
}

/// What all watches report, as it comes.
pub type Changes = SelectAll<BoxStream<'static, Result<Change, WatchError>>>;

/// Opens the watches. They are polled, and so read, one event at a time; none ends.
pub fn changes(client: &Client, with_mig_nodes: bool, with_movable_pods: bool) -> Changes {
    let all = Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    let pods = all.clone().fields(WAITING_PODS);
    let slices = all.clone().page_size(SLICES_A_PAGE);
    let mig_nodes = match with_mig_nodes {
        true => watch::<MigNode>(client, Kind::MigNodes, all.clone(), Change::MigNodes),
        // It never ends, as the others.
        false => stream::once(ready(Ok(Change::NoMigNodes))).chain(stream::pending()).boxed(),
    };
    let movable = match with_movable_pods {
        true => {
            let chosen = all.clone().fields(MOVABLE_PODS).labels(MOVABLE_LABEL);
            watch::<Pod>(client, Kind::MovablePods, chosen, Change::MovablePods)
        }
        false => stream::once(ready(Ok(Change::NoMovablePods))).chain(stream::pending()).boxed(),
    };
    let streams: [BoxStream<'static, _>; Kind::ALL.len()] = [
        watch::<Pod>(client, Kind::Pods, pods, Change::Pods),
        watch::<Node>(client, Kind::Nodes, all.clone(), Change::Nodes),
        watch::<ResourceClaim>(client, Kind::Claims, all.clone(), Change::Claims),
        watch::<ResourceClaimTemplate>(client, Kind::Templates, all.clone(), Change::Templates),
        watch::<DeviceClass>(client, Kind::Classes, all.clone(), Change::Classes),
        watch::<ResourceSlice>(client, Kind::Slices, slices, Change::Slices),
        watch::<ResourceQuota>(client, Kind::Quotas, all, Change::Quotas),
        mig_nodes,
        movable,
    ];
    streams.into_iter().collect()
}

fn watch<K>(
    client: &Client,
    kind: Kind,
    config: Config,
    change: fn(Event<K>) -> Change,
) -> BoxStream<'static, Result<Change, WatchError>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = watcher(Api::<K>::all(client.clone()), config).default_backoff();
    reported(events, kind, change).boxed()
}

fn reported<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    kind: Kind,
    change: fn(Event<K>) -> Change,
) -> impl Stream<Item = Result<Change, WatchError>> {
    events.map(move |it| match it {
        Ok(event) => Ok(change(event)),
        Err(error) if kind == Kind::MigNodes && is_not_served(&error) => Ok(Change::NoMigNodes),
        Err(error) => Err(WatchError { kind, why: with_causes(&error) }),
    })
}

/// Whether the API server does not know the kind: its definition is not installed, and may be later.
fn is_not_served(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    // A watch cannot be opened again once the definition is deleted.
    matches!(error, InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[tokio::test]
    async fn a_definition_that_is_not_there_or_was_deleted_is_no_failure() {
        let status = || Box::new(Status::failure("404 page not found", "NotFound").with_code(404));
        let errors = [
            watcher::Error::InitialListFailed(kube::Error::Api(status())),
            watcher::Error::WatchStartFailed(kube::Error::Api(status())),
        ];
        for error in errors {
            let events = stream::iter([Err(error)]);
            let said: Vec<_> = reported(events, Kind::MigNodes, Change::MigNodes).collect().await;
            assert!(matches!(said[..], [Ok(Change::NoMigNodes)]), "{said:?}");
        }
    }
}
