//! Follows the objects of a cluster: lists once, then watches.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::ControlFlow;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};

use crate::cluster::{ClusterError, Connection, Slices, Snapshot, Unread, error_text};
use crate::gpu;

/// Time between two pictures.
const PAUSE: Duration = Duration::from_secs(1);

/// A picture without a change, because ages grow.
const IDLE: Duration = Duration::from_secs(30);

/// Something that a watch reports. Boxed: slices are large.
enum Change {
    Slice(Box<Event<ResourceSlice>>),
    Claim(Box<Event<ResourceClaim>>),
    Node(Box<Event<Node>>),
    Failed { resource: &'static str, error: watcher::Error },
}

/// Objects of one kind by namespace and name, while they are listed and watched.
struct Store<K> {
    current: BTreeMap<(String, String), K>,
    /// What a list in progress has found so far.
    next: Option<BTreeMap<(String, String), K>>,
    is_complete: bool,
}

impl<K: Resource<DynamicType = ()>> Store<K> {
    fn new() -> Self {
        Self { current: BTreeMap::new(), next: None, is_complete: false }
    }

    fn apply(&mut self, event: Event<K>) {
        let key = |it: &K| (it.namespace().unwrap_or_default(), it.name_any());
        match event {
            Event::Init => self.next = Some(BTreeMap::new()),
            Event::InitApply(it) => drop(self.next.get_or_insert_default().insert(key(&it), it)),
            Event::InitDone => {
                self.current = self.next.take().unwrap_or_default();
                self.is_complete = true;
            }
            Event::Apply(it) => drop(self.current.insert(key(&it), it)),
            Event::Delete(it) => drop(self.current.remove(&key(&it))),
        }
    }
}

/// Slices, kept as text, without the attributes that are not shown.
#[derive(Default)]
struct SliceStore {
    slices: Slices,
    next: Option<Slices>,
    is_complete: bool,
}

impl SliceStore {
    fn apply(&mut self, event: Event<ResourceSlice>) {
        match event {
            Event::Init => self.next = Some(Slices::default()),
            Event::InitApply(mut it) => {
                gpu::trim(&mut it);
                self.next.get_or_insert_default().push(&it);
            }
            Event::InitDone => {
                self.slices = self.next.take().unwrap_or_default();
                self.is_complete = true;
            }
            Event::Apply(mut it) => {
                gpu::trim(&mut it);
                self.slices.remove(&it.name_any());
                self.slices.push(&it);
            }
            Event::Delete(it) => self.slices.remove(&it.name_any()),
        }
    }
}

/// Calls `show` with what is there, and again after each change, until it breaks.
///
/// # Errors
/// [`ClusterError::List`] where slices or claims cannot be listed.
pub(super) async fn follow<B>(
    connection: &Connection,
    mut show: impl FnMut(&Snapshot) -> ControlFlow<B>,
) -> Result<B, ClusterError> {
    let client = &connection.client;
    let mut changes = stream::select_all([
        changes("resourceslices", 100, client, |it| Change::Slice(Box::new(it))),
        changes("resourceclaims", 500, client, |it| Change::Claim(Box::new(it))),
        changes("nodes", 500, client, |it| Change::Node(Box::new(it))),
    ]);
    let (mut slices, mut claims, mut nodes) = (SliceStore::default(), Store::new(), Store::new());
    // Why nodes cannot be read.
    let mut unread: Option<String> = None;
    let mut due: Option<Instant> = None;
    let mut earliest = Instant::now();
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
        };
        match change {
            Some(Change::Slice(event)) => slices.apply(*event),
            Some(Change::Claim(event)) => claims.apply(*event),
            Some(Change::Node(event)) => {
                nodes.apply(*event);
                unread = None;
            }
            // Later failures are retried; what was read last stays.
            Some(Change::Failed { resource: "nodes", error }) if !nodes.is_complete => {
                unread = Some(text(&error));
            }
            Some(Change::Failed { resource, error }) => {
                let is_complete =
                    if resource == "resourceslices" { slices.is_complete } else { claims.is_complete };
                if !is_complete && resource != "nodes" {
                    return Err(connection.failed(Unread { resource, why: text(&error) }));
                }
                continue;
            }
            None if due.is_some_and(|it| it <= Instant::now()) => {
                let mut snapshot = snapshot(&claims, &nodes, unread.as_ref());
                std::mem::swap(&mut snapshot.slices, &mut slices.slices);
                let shown = show(&snapshot);
                slices.slices = snapshot.slices;
                if let ControlFlow::Break(it) = shown {
                    return Ok(it);
                }
                earliest = Instant::now() + PAUSE;
                due = Some(Instant::now() + IDLE);
                continue;
            }
            None => continue,
        }
        let nodes_known = nodes.is_complete || unread.is_some();
        if slices.is_complete && claims.is_complete && nodes_known {
            due = Some(due.map_or(earliest, |it| it.min(earliest)));
        }
    }
}

/// What is known beside slices.
fn snapshot(claims: &Store<ResourceClaim>, nodes: &Store<Node>, unread: Option<&String>) -> Snapshot {
    Snapshot {
        claims: claims.current.values().cloned().collect(),
        nodes: nodes.current.values().cloned().collect(),
        unread: unread.map(|it| Unread { resource: "nodes", why: it.clone() }).into_iter().collect(),
        ..Snapshot::default()
    }
}

fn changes<K>(
    resource: &'static str,
    page: u32,
    client: &Client,
    change: fn(Event<K>) -> Change,
) -> BoxStream<'static, Change>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let api: Api<K> = Api::all(client.clone());
    let events = watch(api, watcher::Config::default().page_size(page)).default_backoff();
    let forget = |mut it: K| {
        it.managed_fields_mut().clear();
        it
    };
    let events = events.map(move |it| match it {
        Ok(Event::Apply(it)) => change(Event::Apply(forget(it))),
        Ok(Event::InitApply(it)) => change(Event::InitApply(forget(it))),
        Ok(other) => change(other),
        Err(error) => Change::Failed { resource, error },
    });
    events.boxed()
}

/// The API server's own message where there is one.
fn text(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
            error_text(error)
        }
        watcher::Error::WatchError(status) => status.message.clone(),
        other => other.to_string(),
    }
}
