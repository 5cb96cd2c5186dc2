//! Reading the claim that the kubelet names.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::core::Status;
use kube::{Api, Client, Error};
use mig_model::claim::ClaimRef;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::debug;

use super::CALL_TIMEOUT;
use crate::backoff::Backoff;
use crate::telemetry::with_causes;

/// Claims that are read at once. Each has a connection to the API server, which stays open for a while after a burst of
/// pods; more of them than this cost memory and gain no time.
const AT_ONCE: usize = 8;

/// Reads ResourceClaims. Needs the verb `get` only.
#[derive(Debug, Clone)]
pub struct ClaimReader {
    api: Api<ResourceClaim>,
    permits: Arc<Semaphore>,
}

/// Why a claim could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is gone, or another one has taken its name.
    #[error("ResourceClaim {0} no longer exists")]
    Gone(ClaimRef),
    /// The API server refuses.
    #[error(
        "the API server refuses to show ResourceClaim {claim}: {message}; check that the driver's service account may \
         get resourceclaims"
    )]
    Refused {
        /// The claim.
        claim: ClaimRef,
        /// What it says.
        message: String,
    },
    /// No useful answer in time.
    #[error("the API server did not show ResourceClaim {claim} in time: {message}; the kubelet tries again")]
    Unavailable {
        /// The claim.
        claim: ClaimRef,
        /// The last failure.
        message: String,
    },
}

impl ClaimReader {
    /// Reads through this client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client), permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// The claim with this namespace, name and UID. Passing failures are tried again until the deadline.
    pub async fn read(&self, claim: &ClaimRef, deadline: Instant) -> Result<ResourceClaim, ReadError> {
        const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
        let mut retry = Backoff::new(PAUSES.0, PAUSES.1, claim.uid.as_str());
        let api = self.api.clone().constrain(&claim.namespace);
        let unavailable = |message| ReadError::Unavailable { claim: claim.clone(), message };
        loop {
            // Never closed, so there is a turn sooner or later. Waiting for it is not waiting for an answer.
            let Ok(permit) = timeout_at(deadline, self.permits.acquire()).await else {
                return Err(unavailable("other claims are still being read".to_owned()));
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = timeout(CALL_TIMEOUT.min(left), api.get(&claim.name)).await;
            drop(permit);
            let message = match answer {
                Ok(Ok(found)) => match who(&found, claim) {
                    Some(uid) if uid == claim.uid.as_str() => return Ok(found),
                    Some(_) => return Err(ReadError::Gone(claim.clone())),
                    None => "the answer is not about this claim".to_owned(),
                },
                Ok(Err(Error::Api(status))) if says_that_it_is_gone(&status, claim) => {
                    return Err(ReadError::Gone(claim.clone()));
                }
                Ok(Err(Error::Api(status))) if status.is_forbidden() || status.code == 401 => {
                    return Err(ReadError::Refused { claim: claim.clone(), message: status.message.clone() });
                }
                Ok(Err(error)) => with_causes(&error),
                Err(_) => format!("no answer within {} s", CALL_TIMEOUT.min(left).as_secs()),
            };
            let pause = retry.failed();
            if deadline < Instant::now() + pause {
                return Err(unavailable(message));
            }
            debug!(message, "reading the claim failed, retrying");
            sleep(pause).await;
        }
    }
}

/// The UID in an answer that is about a claim of this name; nothing in one that is about anything else.
fn who<'a>(found: &'a ResourceClaim, claim: &ClaimRef) -> Option<&'a str> {
    let metadata = &found.metadata;
    let is_named =
        metadata.name.as_ref() == Some(&claim.name) && metadata.namespace.as_ref() == Some(&claim.namespace);
    metadata.uid.as_deref().filter(|_| is_named)
}

/// True for the API server's own answer that there is no such claim. Any other 404, a proxy's for example, says nothing
/// about the claim, and a claim that is thought to be gone loses its devices.
fn says_that_it_is_gone(status: &Status, claim: &ClaimRef) -> bool {
    let details = status.details.as_ref();
    status.code == 404
        && status.reason == "NotFound"
        && details.is_some_and(|it| it.name == claim.name && it.kind == "resourceclaims")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use axum::http::{Request, Response, StatusCode};
    use futures::future::{BoxFuture, join_all};
    use kube::client::Body;
    use tokio::task::yield_now;
    use tonic::codegen::Service;

    use super::*;

    /// An API server that has no claims and takes its time. Counts what it is asked at once, and the most there was.
    #[derive(Clone, Default)]
    struct Slow(Arc<[AtomicUsize; 2]>);

    impl Service<Request<Body>> for Slow {
        type Response = Response<Body>;
        type Error = Error;
        type Future = BoxFuture<'static, Result<Response<Body>, Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let counts = Arc::clone(&self.0);
            let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Box::pin(async move {
                counts[1].fetch_max(counts[0].fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                for _ in 0..100 {
                    yield_now().await;
                }
                counts[0].fetch_sub(1, Ordering::Relaxed);
                let details = serde_json::json!({"name": name, "kind": "resourceclaims"});
                let status = serde_json::json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
                    "details": details,
                });
                let answer = Response::builder().status(StatusCode::NOT_FOUND);
                Ok(answer.body(Body::from(status.to_string().into_bytes())).unwrap())
            })
        }
    }

    #[tokio::test]
    async fn a_burst_of_claims_is_read_by_few_connections_and_all_get_their_answer() {
        let slow = Slow::default();
        let reader = ClaimReader::new(Client::new(slow.clone(), "default"));
        let claim = |number: usize| {
            ClaimRef::new("ns".to_owned(), format!("c-{number}"), format!("u-{number}")).unwrap()
        };
        let deadline = Instant::now() + Duration::from_secs(45);
        let reads = join_all((0..56).map(|it| {
            let (claim, reader) = (claim(it), &reader);
            async move { reader.read(&claim, deadline).await }
        }));
        for answer in reads.await {
            assert!(matches!(answer, Err(ReadError::Gone(_))), "{answer:?}");
        }
        assert_eq!(slow.0[1].load(Ordering::Relaxed), AT_ONCE);
    }
}
