//! Allocated devices of this node, whether or not the kubelet has requested them yet.

use std::collections::BTreeSet;
use std::io;

use futures::AsyncReadExt;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, ObjectList, Request};
use kube::{Api, Client, Error, Resource};
use mig_model::claim::ClaimRef;
use tracing::warn;

use super::slices::{SliceError, call};

/// Claims in one answer; where they are so large that it would exceed [`MAX_BYTES`], in one of the next.
const PAGE: u32 = 50;
/// Bound on the bytes of one answer. A claim has a few kB.
const MAX_BYTES: usize = 4 << 20;
/// The same for one claim. etcd takes no object of more than 1.5 MB, and JSON can have six times the bytes of what is stored.
const MAX_CLAIM: usize = 16 << 20;

/// Reads the allocations of all claims of the cluster. Needs the verbs `list` and `get`; is asked only when published devices
/// are about to go, or others are to take their place.
#[derive(Debug, Clone)]
pub struct Allocations {
    api: Api<ResourceClaim>,
    driver: String,
    pool: String,
    /// The devices of this pool that claims had by the last list, and their claims; without those that cannot be asked for.
    found: Vec<(Option<ClaimRef>, BTreeSet<String>)>,
}

impl Allocations {
    /// Allocations from this driver's pool.
    #[must_use]
    pub fn new(client: Client, driver: &str, pool: String) -> Self {
        Self { api: Api::all(client), driver: driver.to_owned(), pool, found: Vec::new() }
    }

    /// Names of the allocated devices. Consistent: it knows every allocation that was written before the call.
    pub async fn read(&mut self) -> Result<BTreeSet<String>, SliceError> {
        let mut found = Vec::new();
        // No resource version: the API server asks etcd, and not a cache that may be behind.
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let Some(page) = call("list resourceclaims".to_owned(), self.page(&params)).await? else {
                params.limit = params.limit.map(|it| it / 2);
                continue;
            };
            for claim in &page.items {
                let devices: BTreeSet<String> = self.devices(claim).collect();
                if !devices.is_empty() {
                    found.push((reference(claim), devices));
                }
            }
            match page.metadata.continue_.filter(|it| !it.is_empty()) {
                // A large claim makes only its own page small.
                Some(token) => params = ListParams::default().limit(PAGE).continue_token(&token),
                None => break,
            }
        }
        self.found = found;
        Ok(self.found.iter().flat_map(|(_, devices)| devices).cloned().collect())
    }

    /// Which of these devices the claims that the last list has found still have.
    pub async fn still(&self, devices: &BTreeSet<String>) -> Result<BTreeSet<String>, SliceError> {
        let mut still = BTreeSet::new();
        let theirs = self.found.iter().filter(|(_, its)| !its.is_disjoint(devices));
        for claim in theirs.filter_map(|(claim, _)| claim.as_ref()) {
            let api: Api<ResourceClaim> = Api::namespaced(self.api.clone().into_client(), &claim.namespace);
            let found = api.get_opt(&claim.name).await.map_err(|error| {
                warn!(%claim, %error, "cannot read a claim that has a device of this node");
                SliceError::unread_claim()
            })?;
            let found = found.filter(|it| it.metadata.uid.as_deref() == Some(claim.uid.as_str()));
            still.extend(found.iter().flat_map(|it| self.devices(it)).filter(|it| devices.contains(it)));
        }
        Ok(still)
    }

    /// A page of claims; `None` where it is larger than [`MAX_BYTES`] and has more than one claim.
    async fn page(&self, params: &ListParams) -> Result<Option<ObjectList<ResourceClaim>>, Error> {
        let request = Request::new(ResourceClaim::url_path(&(), None)).list(params);
        let request = request.map_err(Error::BuildRequest)?;
        let body = self.api.clone().into_client().request_stream(request).await?;
        let most = if params.limit == Some(1) { MAX_CLAIM } else { MAX_BYTES };
        let mut bytes = Vec::new();
        body.take(most as u64 + 1).read_to_end(&mut bytes).await.map_err(Error::ReadEvents)?;
        if bytes.len() <= most {
            return serde_json::from_slice(&bytes).map(Some).map_err(Error::SerdeError);
        }
        if params.limit.is_some_and(|it| 1 < it) {
            return Ok(None);
        }
        let message = format!("a claim of more than {MAX_CLAIM} bytes");
        Err(Error::ReadEvents(io::Error::new(io::ErrorKind::FileTooLarge, message)))
    }

    /// The devices of the pool that a claim has.
    fn devices<'a>(&'a self, claim: &'a ResourceClaim) -> impl Iterator<Item = String> + 'a {
        let allocation = claim.status.iter().filter_map(|it| it.allocation.as_ref());
        let results =
            allocation.filter_map(|it| it.devices.as_ref()).flat_map(|it| it.results.iter().flatten());
        // Admin access does not allocate a device.
        results
            .filter(|it| it.driver == self.driver && it.pool == self.pool && it.admin_access != Some(true))
            .map(|it| it.device.clone())
    }
}

/// The claim by its name, if that can be asked for.
fn reference(claim: &ResourceClaim) -> Option<ClaimRef> {
    let ObjectMeta { namespace, name, uid, .. } = &claim.metadata;
    ClaimRef::new(namespace.clone()?, name.clone()?, uid.clone()?).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll};

    use axum::http::{Request as HttpRequest, Response, StatusCode};
    use futures::future::{Ready, ready};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tonic::codegen::Service;

    use super::*;

    /// An API server with these claims in the namespace `ns`. Notes path and query of each request.
    #[derive(Clone)]
    struct Server(Arc<Mutex<(Vec<Value>, Vec<String>)>>);

    impl Server {
        fn new(claims: impl IntoIterator<Item = Value>) -> Self {
            Self(Arc::new(Mutex::new((claims.into_iter().collect(), Vec::new()))))
        }

        fn allocations(&self) -> Allocations {
            Allocations::new(Client::new(self.clone(), "default"), "d", "p".to_owned())
        }

        fn requests(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap().1)
        }

        fn answer(&self, path: &str, query: &str) -> (StatusCode, Value) {
            let (claims, requests) = &mut *self.0.lock().unwrap();
            requests.push(format!("{path}?{query}"));
            let number = |key: &str| {
                let found = query.split('&').find_map(|it| it.strip_prefix(key)?.strip_prefix('='));
                found.map(|it| it.parse::<usize>().unwrap())
            };
            match path.strip_prefix("/apis/resource.k8s.io/v1/namespaces/ns/resourceclaims/") {
                Some(name) => match claims.iter().find(|it| it["metadata"]["name"] == name) {
                    Some(claim) => (StatusCode::OK, claim.clone()),
                    None => {
                        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "gone",
                            "reason": "NotFound", "code": 404});
                        (StatusCode::NOT_FOUND, status)
                    }
                },
                None => {
                    assert_eq!(path, "/apis/resource.k8s.io/v1/resourceclaims");
                    let first = number("continue").unwrap_or_default();
                    let end = claims.len().min(first + number("limit").unwrap());
                    let token = if end < claims.len() { end.to_string() } else { String::new() };
                    let items = &claims[first..end];
                    (
                        StatusCode::OK,
                        json!({"kind": "ResourceClaimList", "metadata": {"continue": token}, "items": items}),
                    )
                }
            }
        }
    }

    impl Service<HttpRequest<Body>> for Server {
        type Response = Response<Body>;
        type Error = Error;
        type Future = Ready<Result<Response<Body>, Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
            let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
            let (status, body) = self.answer(path, query);
            let answer = Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
            ready(Ok(answer.unwrap()))
        }
    }

    /// The claim `c-<number>` with the device `<number>` of a pool.
    fn claim(number: usize, pool: &str, padding: usize) -> Value {
        let result = json!({"request": "r", "driver": "d", "pool": pool, "device": number.to_string()});
        json!({
            "metadata": {"namespace": "ns", "name": format!("c-{number}"), "uid": format!("u-{number}"),
                "annotations": {"padding": " ".repeat(padding)}},
            "status": {"allocation": {"devices": {"results": [result]}}},
        })
    }

    fn set(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<String> {
        numbers.into_iter().map(|it| it.to_string()).collect()
    }

    #[tokio::test]
    async fn claims_are_listed_in_pages_of_50() {
        let server = Server::new((0..120).map(|it| claim(it, if it % 60 == 7 { "p" } else { "q" }, 0)));
        assert_eq!(server.allocations().read().await.unwrap(), set([7, 67]));
        let requests = server.requests();
        assert_eq!(requests.len(), 3);
        assert!(requests.iter().all(|it| it.contains("limit=50")), "{requests:?}");
    }

    #[tokio::test]
    async fn a_page_that_is_too_large_is_read_as_smaller_ones_and_a_claim_that_is_too_large_is_an_error() {
        let server = Server::new((0..60).map(|it| claim(it, "p", MAX_BYTES / 20)));
        assert_eq!(server.allocations().read().await.unwrap(), set(0..60));
        let requests = server.requests();
        let limit = |it: &String| it.split("limit=").nth(1)?.split('&').next()?.parse::<usize>().ok();
        let limits: Vec<_> = requests.iter().filter_map(limit).collect();
        assert_eq!(limits[..4], [50, 25, 12, 50], "a small page is followed by one of the usual size");
        let server = Server::new([claim(0, "p", MAX_BYTES)]);
        assert_eq!(
            server.allocations().read().await.unwrap(),
            set([0]),
            "one claim may be larger than a page"
        );
        let server = Server::new([claim(0, "p", MAX_CLAIM)]);
        let error = server.allocations().read().await.unwrap_err().to_string();
        assert!(error.contains("a claim of more than"), "{error}");
    }

    #[tokio::test]
    async fn only_claims_that_were_found_and_matter_are_read_again_and_others_of_their_names_do_not_count() {
        let server = Server::new((0..5).map(|it| claim(it, "p", 0)));
        let mut allocations = server.allocations();
        assert_eq!(allocations.still(&set(0..5)).await.unwrap(), set([]), "nothing was found yet");
        allocations.read().await.unwrap();
        server.requests();
        assert_eq!(allocations.still(&set([1, 3])).await.unwrap(), set([1, 3]));
        assert_eq!(server.requests().len(), 2);
        {
            let claims = &mut server.0.lock().unwrap().0;
            claims[0]["metadata"]["uid"] = json!("another");
            claims[1]["status"] = json!({});
            claims[2]["status"]["allocation"]["devices"]["results"][0]["device"] = json!("9");
            claims.remove(3);
        }
        assert_eq!(allocations.still(&set(0..5)).await.unwrap(), set([4]));
    }

    #[tokio::test]
    async fn a_device_of_a_claim_that_cannot_be_asked_for_counts_as_allocated_and_is_listed_again() {
        let mut strange = claim(0, "p", 0);
        strange["metadata"]["name"] = json!("../escape");
        let mut allocations = Server::new([strange]).allocations();
        assert_eq!(allocations.read().await.unwrap(), set([0]));
        assert_eq!(allocations.still(&set([0])).await.unwrap(), set([]));
    }
}
