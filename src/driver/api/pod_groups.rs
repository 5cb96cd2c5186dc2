//! The pods behind claims that are reserved for a PodGroup (Kubernetes 1.37): those of this node that name the group.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, Error};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::CALL_TIMEOUT;
use super::node::refusal_pauses;
use crate::backoff::Backoff;
use crate::pods::{PodRef, Pods};
use crate::telemetry::with_causes;

/// How long changes are collected: each pass is a request for each namespace.
const BURST: Duration = Duration::from_secs(1);
/// Selects pods that have not ended.
const RUNNING: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Keeps the pods of claims known that are reserved for a PodGroup. Needs the verb `list` on pods, and asks nothing while no claim of
/// the node is reserved so.
#[derive(Debug)]
pub struct PodGroups {
    /// As data, because the driver's types are those of an earlier Kubernetes.
    api: Api<DynamicObject>,
    node: String,
    pods: Pods,
}

/// Why pods cannot be listed.
#[derive(Debug, thiserror::Error)]
enum ListError {
    #[error("the driver's account may not list pods: {0}")]
    Forbidden(String),
    #[error("{0}")]
    Failed(String),
}

impl ListError {
    /// How long to wait before the next attempt.
    fn pause(&self, retry: &mut Backoff, refusals: &mut Backoff) -> Duration {
        let pause = retry.failed();
        match self {
            // An administrator may grant the right.
            Self::Forbidden(_) => refusals.failed(),
            Self::Failed(_) => pause,
        }
    }
}

impl PodGroups {
    /// The groups of claims on this node.
    #[must_use]
    pub fn new(client: Client, node: &str, pods: Pods) -> Self {
        Self { api: Api::all_with(client, &ApiResource::erase::<Pod>(&())), node: node.to_owned(), pods }
    }

    /// Runs until `stop`: looks when other claims are known, and every `pause`, because pods join a group later.
    pub async fn run(self, pause: Duration, stop: CancellationToken) {
        let mut changes = self.pods.changes();
        let mut retry = Backoff::new(PAUSES.0, PAUSES.1, &self.node);
        let mut refusals = refusal_pauses(&self.node);
        loop {
            changes.borrow_and_update();
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look() => looked,
            };
            let next = match looked {
                Ok(()) => {
                    if 0 < retry.failures() {
                        info!("the pods of PodGroups are known again");
                    }
                    retry.succeeded();
                    refusals.succeeded();
                    pause
                }
                Err(error) => {
                    if retry.failures() == 0 {
                        warn!(%error, "the pods of claims that are reserved for a PodGroup are unknown, retrying");
                    }
                    error.pause(&mut retry, &mut refusals)
                }
            };
            let is_failing = 0 < retry.failures();
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = changes.changed(), if !is_failing => sleep(BURST).await,
                () = sleep(next) => {}
            }
        }
    }

    async fn look(&self) -> Result<(), ListError> {
        let mut looked = Ok(());
        for namespace in self.pods.namespaces_with_groups() {
            match self.members(&namespace).await {
                Ok(members) => self.pods.note_members(&namespace, &members),
                // The others are looked at all the same.
                Err(error) => looked = Err(error),
            }
        }
        looked
    }

    /// The pods of this node in a namespace, by their group. Pods that have ended are left out by the API server: of them there may be
    /// any number, while a kubelet runs some hundred at once.
    async fn members(&self, namespace: &str) -> Result<BTreeMap<String, Vec<PodRef>>, ListError> {
        let (client, kind) = (self.api.clone().into_client(), ApiResource::erase::<Pod>(&()));
        let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &kind);
        let of_node =
            ListParams::default().fields(&format!("spec.nodeName={},{RUNNING}", self.node)).match_any();
        let listed = match timeout(CALL_TIMEOUT, api.list(&of_node)).await {
            Ok(Ok(listed)) => listed,
            Ok(Err(Error::Api(status))) if status.code == 403 => {
                return Err(ListError::Forbidden(status.message.clone()));
            }
            Ok(Err(error)) => return Err(ListError::Failed(with_causes(&error))),
            Err(_) => {
                return Err(ListError::Failed(format!("no answer within {} s", CALL_TIMEOUT.as_secs())));
            }
        };
        let mut members: BTreeMap<String, Vec<PodRef>> = BTreeMap::new();
        for pod in listed.items {
            if let Some(group) = group_of(&pod) {
                let pod = PodRef {
                    name: pod.metadata.name.clone().unwrap_or_default(),
                    uid: pod.metadata.uid.clone().unwrap_or_default(),
                };
                members.entry(group).or_default().push(pod);
            }
        }
        Ok(members)
    }
}

/// The PodGroup of a pod that has not ended.
fn group_of(pod: &DynamicObject) -> Option<String> {
    let has_ended = matches!(pod.data["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let group = pod.data["spec"]["schedulingGroup"]["podGroupName"].as_str()?;
    (!has_ended).then(|| group.to_owned())
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll};

    use axum::http::{Request, Response};
    use k8s_openapi::api::resource::v1::ResourceClaim;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tonic::codegen::Service;

    use super::*;

    /// An API server that gives every request this answer, but refuses those about one namespace, and keeps the requests.
    #[derive(Clone)]
    struct Canned {
        code: u16,
        answer: Value,
        refused: &'static str,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Canned {
        fn new(code: u16, answer: Value) -> Self {
            Self { code, answer, refused: "/none/", asked: Arc::default() }
        }
    }

    impl Service<Request<Body>> for Canned {
        type Response = Response<Body>;
        type Error = kube::Error;
        type Future = Ready<Result<Response<Body>, kube::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let path = request.uri().to_string();
            let is_refused = path.contains(self.refused);
            self.asked.lock().unwrap().push(path);
            let answer = if is_refused { refusal() } else { self.answer.clone() };
            let code = if is_refused { 403 } else { self.code };
            let body = Body::from(answer.to_string().into_bytes());
            ready(Ok(Response::builder().status(code).body(body).unwrap()))
        }
    }

    fn refusal() -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "no",
        })
    }

    fn claim(group: &str) -> ResourceClaim {
        claim_in("team", group)
    }

    fn claim_in(namespace: &str, group: &str) -> ResourceClaim {
        let consumer =
            json!({"apiGroup": "scheduling.k8s.io", "resource": "podgroups", "name": group, "uid": "g-1"});
        let claim = json!({
            "metadata": {"name": "c", "namespace": namespace}, "spec": {}, "status": {"reservedFor": [consumer]},
        });
        serde_json::from_value(claim).unwrap()
    }

    fn pod(name: &str, group: &str, phase: &str) -> Value {
        json!({
            "metadata": {"name": name, "uid": format!("uid-{name}")},
            "spec": {"schedulingGroup": {"podGroupName": group}}, "status": {"phase": phase},
        })
    }

    #[tokio::test]
    async fn the_pods_of_a_group_on_this_node_are_the_pods_of_its_claim() {
        let items = [
            pod("b", "ring", "Running"),
            pod("a", "ring", "Pending"),
            pod("ended", "ring", "Succeeded"),
            pod("other", "mesh", "Running"),
            json!({"metadata": {"name": "alone"}, "spec": {}}),
        ];
        let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items});
        let server = Canned::new(200, list);
        let (asked, client) = (Arc::clone(&server.asked), Client::new(server, "default"));
        let (pods, uid) = (Pods::default(), "u-1".parse().unwrap());
        let groups = PodGroups::new(client, "node-1", pods.clone());
        groups.look().await.unwrap();
        assert!(asked.lock().unwrap().is_empty(), "no claim is reserved for a group");

        pods.note(&uid, &claim("ring"));
        let changes = pods.changes();
        groups.look().await.unwrap();
        assert_eq!((pods.names(&uid).as_str(), changes.has_changed().unwrap()), ("a,b", true));
        let first = asked.lock().unwrap()[0].clone();
        assert!(first.starts_with("/api/v1/namespaces/team/pods?"), "{first}");
        // The API server leaves out those that have ended, of which there may be any number.
        let selector =
            "fieldSelector=spec.nodeName%3Dnode-1%2Cstatus.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed";
        assert!(first.contains(selector), "{first}");
        // That the claim is read again does not make them unknown; that it is reserved for another group does.
        pods.note(&uid, &claim("ring"));
        assert_eq!(pods.names(&uid), "a,b");
        pods.note(&uid, &claim("chain"));
        assert_eq!(pods.names(&uid), "");
    }

    #[tokio::test]
    async fn a_namespace_whose_pods_cannot_be_read_keeps_those_of_no_other_unknown() {
        for (refused, [known, unknown]) in [("/first/", ["u-2", "u-1"]), ("/second/", ["u-1", "u-2"])] {
            let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [pod("a", "ring", "Running")]});
            let server = Canned { refused, ..Canned::new(200, list) };
            let pods = Pods::default();
            for (uid, namespace) in [("u-1", "first"), ("u-2", "second")] {
                pods.note(&uid.parse().unwrap(), &claim_in(namespace, "ring"));
            }
            let groups = PodGroups::new(Client::new(server, "default"), "node-1", pods.clone());
            let error = groups.look().await.unwrap_err();
            assert!(matches!(error, ListError::Forbidden(_)), "it is reported and tried again: {error}");
            let names = [known, unknown].map(|it| pods.names(&it.parse().unwrap()));
            assert_eq!(names, ["a", ""], "{refused}");
        }
    }

    #[tokio::test]
    async fn without_the_right_it_asks_seldom() {
        let pods = Pods::default();
        pods.note(&"u-1".parse().unwrap(), &claim("ring"));
        let groups = PodGroups::new(Client::new(Canned::new(403, refusal()), "default"), "node-1", pods);
        let error = groups.look().await.unwrap_err();
        let (mut retry, mut refusals) =
            (Backoff::new(PAUSES.0, PAUSES.1, "node-1"), refusal_pauses("node-1"));
        let refused = error.pause(&mut retry, &mut refusals);
        let failed = ListError::Failed("down".to_owned()).pause(&mut retry, &mut refusals);
        assert!(failed < refused, "{error}");
    }
}
