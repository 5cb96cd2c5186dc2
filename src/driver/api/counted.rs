//! Counts requests to the API server and their results, below all clients, so that watches, events and retries
//! are included.

use std::task::{Context, Poll};

use axum::http::{Method, Request, Response};
use futures::future::BoxFuture;
use kube::Client;
use kube::client::Body;
// The trait of the tower crates, which kube's client is made of.
use tonic::codegen::Service;

use super::RIGHTS;
use crate::telemetry::metrics::Metrics;

/// The same client, with its requests counted.
#[must_use]
pub fn counted(client: Client, metrics: &Metrics) -> Client {
    let namespace = client.default_namespace().to_owned();
    Client::new(Counted { client, metrics: metrics.clone() }, namespace)
}

struct Counted {
    client: Client,
    metrics: Metrics,
}

impl Service<Request<Body>> for Counted {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (verb, resource) = meaning(request.method(), request.uri().path(), request.uri().query());
        // The caller stops waiting after the time limit of a call.
        let asked = Asked { metrics: self.metrics.clone(), verb, resource, code: "timeout".to_owned() };
        let client = self.client.clone();
        Box::pin(async move {
            let answer = client.send(request).await;
            asked.end(answer.as_ref().map_or("error".to_owned(), |it| it.status().as_str().to_owned()));
            answer
        })
    }
}

/// A request that is counted when it is answered or cancelled.
struct Asked {
    metrics: Metrics,
    verb: &'static str,
    resource: &'static str,
    code: String,
}

impl Asked {
    fn end(mut self, code: String) {
        self.code = code;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.metrics.api_answered(self.verb, self.resource, std::mem::take(&mut self.code));
    }
}

/// Verb and resource of a request, as RBAC names them. Resources are those of [`RIGHTS`], and `other`.
fn meaning(method: &Method, path: &str, query: Option<&str>) -> (&'static str, &'static str) {
    let mut parts: Vec<&str> = path.split('/').filter(|it| !it.is_empty()).collect();
    // `api/v1/…` and `apis/<group>/<version>/…`, and in both `namespaces/<name>/…`.
    let root = if parts.first() == Some(&"apis") { 3 } else { 2 };
    parts.drain(..root.min(parts.len()));
    if parts.len() > 2 && parts[0] == "namespaces" {
        parts.drain(..2);
    }
    let asked = match parts[..] {
        [resource, _, part, ..] => format!("{resource}/{part}"),
        [resource, ..] => resource.to_owned(),
        [] => String::new(),
    };
    let resource = RIGHTS.iter().map(|it| it.resource).find(|it| *it == asked).unwrap_or("other");
    let is_watch = query.is_some_and(|it| it.split('&').any(|it| it == "watch=true" || it == "watch=1"));
    let verb = match *method {
        Method::GET if is_watch => "watch",
        Method::GET if parts.len() > 1 => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    (verb, resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_named_as_rbac_names_them() {
        let claims = "/apis/resource.k8s.io/v1/namespaces/team/resourceclaims/c";
        for (method, path, query, verb, resource) in [
            (Method::GET, claims, None, "get", "resourceclaims"),
            (
                Method::GET,
                "/apis/resource.k8s.io/v1/resourceclaims",
                Some("limit=500"),
                "list",
                "resourceclaims",
            ),
            (
                Method::GET,
                "/apis/resource.k8s.io/v1/resourceslices",
                Some("a=b&watch=true"),
                "watch",
                "resourceslices",
            ),
            (
                Method::POST,
                "/apis/resource.k8s.io/v1/resourceslices",
                Some("dryRun=All"),
                "create",
                "resourceslices",
            ),
            (Method::PATCH, "/api/v1/nodes/n", None, "patch", "nodes"),
            (Method::GET, "/api/v1/namespaces/n/secrets/s", None, "get", "other"),
            (Method::GET, "/version", None, "list", "other"),
        ] {
            assert_eq!(meaning(&method, path, query), (verb, resource), "{path}");
        }
    }
}
