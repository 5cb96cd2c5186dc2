//! The watch stream: first what is already there, then every change, one JSON document per line.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use super::kinds::KindRef;
use super::selector::Selectors;
use super::store::{Change, Store};
use super::table;

/// How often an idle watch that asked for bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(10);

/// What a watch request asks for.
#[derive(Debug, Clone)]
pub(super) struct WatchRequest {
    pub(super) kind: KindRef,
    pub(super) namespace: Option<String>,
    pub(super) selectors: Selectors,
    /// `None`: start with the current objects.
    pub(super) from: Option<u64>,
    pub(super) bookmarks: bool,
    /// Streaming list: mark the end of the initial objects with a bookmark.
    pub(super) send_initial_events: bool,
    pub(super) timeout: Duration,
    pub(super) as_table: bool,
}

struct State {
    store: Arc<Store>,
    request: WatchRequest,
    revision: u64,
    first: Option<Vec<String>>,
    deadline: Instant,
    stop: CancellationToken,
    over: bool,
}

/// The stream of lines; it ends at the timeout, when `stop` is cancelled, or after an `ERROR` event.
pub(super) fn stream(
    store: Arc<Store>,
    request: WatchRequest,
    stop: CancellationToken,
) -> impl Stream<Item = Result<String, std::convert::Infallible>> + use<> {
    let deadline = Instant::now() + request.timeout;
    let (first, revision) = initial(&store, &request);
    let state = State { store, request, revision, first: Some(first), deadline, stop, over: false };
    stream::unfold(state, |mut state| async move {
        if state.over {
            return None;
        }
        let lines = state.next_lines().await?;
        Some((Ok(lines.concat()), state))
    })
}

fn initial(store: &Store, request: &WatchRequest) -> (Vec<String>, u64) {
    if let Some(from) = request.from {
        return (Vec::new(), from);
    }
    let (items, revision) = store.list(request.kind, request.namespace.as_deref(), &request.selectors);
    let mut lines: Vec<String> = items.iter().map(|object| request.line("ADDED", object)).collect();
    if request.send_initial_events {
        let annotations = json!({"k8s.io/initial-events-end": "true"});
        lines.push(request.bookmark(revision, &annotations));
    }
    (lines, revision)
}

impl WatchRequest {
    fn line(&self, event: &str, object: &Value) -> String {
        if self.as_table {
            let table = table::render(self.kind, &[object], &object["metadata"]["resourceVersion"]);
            return format!("{}\n", json!({"type": event, "object": table}));
        }
        format!("{}\n", json!({"type": event, "object": object}))
    }

    fn bookmark(&self, revision: u64, annotations: &Value) -> String {
        let metadata = json!({"resourceVersion": revision.to_string(), "annotations": annotations});
        let object =
            json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata});
        format!("{}\n", json!({"type": "BOOKMARK", "object": object}))
    }

    /// The event that a change is for this watch; selectors can turn a change into an arrival or a departure.
    fn event(&self, change: &Change) -> Option<String> {
        let seen = |object: &Value| {
            let namespace = object["metadata"]["namespace"].as_str();
            self.namespace.as_deref().is_none_or(|n| namespace == Some(n)) && self.selectors.matches(object)
        };
        let before = change.old.as_deref().is_some_and(seen);
        let now = !change.deleted && seen(&change.new);
        match (before, now) {
            (true, true) => Some(self.line("MODIFIED", &change.new)),
            (false, true) => Some(self.line("ADDED", &change.new)),
            (true, false) => Some(self.line("DELETED", &change.new)),
            (false, false) => None,
        }
    }
}

impl State {
    async fn next_lines(&mut self) -> Option<Vec<String>> {
        if let Some(first) = self.first.take().filter(|lines| !lines.is_empty()) {
            return Some(first);
        }
        // Subscribed before the history is read, so that no change falls in between.
        let mut revisions = self.store.subscribe();
        let bookmark_at = Instant::now() + BOOKMARK_EVERY;
        loop {
            revisions.borrow_and_update();
            match self.store.changes_since(self.request.kind, self.revision) {
                Ok((changes, revision)) => {
                    self.revision = self.revision.max(revision);
                    let lines: Vec<String> = changes.iter().filter_map(|c| self.request.event(c)).collect();
                    if !lines.is_empty() {
                        return Some(lines);
                    }
                }
                Err(error) => return Some(vec![self.failure(&error)]),
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep_until(self.deadline) => return None,
                () = tokio::time::sleep_until(bookmark_at), if self.request.bookmarks => {
                    return Some(vec![self.request.bookmark(self.revision, &json!({}))]);
                }
                changed = revisions.changed() => if changed.is_err() { return None },
            }
        }
    }

    fn failure(&mut self, error: &ApiError) -> String {
        self.over = true;
        format!("{}\n", json!({"type": "ERROR", "object": error.to_status()}))
    }
}
