//! From HTTP requests to store calls and back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use super::faults::{Fault, Faults, RequestInfo};
use super::kinds::{self, Kind, KindRef};
use super::patch::Patch;
use super::selector::Selectors;
use super::store::{DeleteOptions, Part, Store, WriteOptions};
use super::watch::{self, WatchRequest};
use super::{discovery, eviction, table};

const MAX_BODY: usize = 3 * 1024 * 1024;
const SELF_REVIEW: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const DEFAULT_WATCH: Duration = Duration::from_secs(1800);

/// What every request handler shares.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Arc<Store>,
    pub(super) faults: Faults,
    /// Replaced when a test cuts all watches; cancelled for good at shutdown.
    pub(super) watches: std::sync::Mutex<CancellationToken>,
}

/// The object or collection that a path names.
struct Target {
    kind: KindRef,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
}

struct Call {
    method: Method,
    target: Target,
    query: HashMap<String, String>,
    content_type: String,
    as_table: bool,
    body: Bytes,
}

/// Serves one request.
pub(super) async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let info = RequestInfo {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or("").to_owned(),
    };
    match shared.faults.meet(&info) {
        None => serve(&shared, request).await,
        Some(Fault::Status(code)) => failure(&ApiError::injected(code)),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Garbage) => reply(StatusCode::OK, "application/json", Body::from("{\"kind\": garbage")),
        Some(Fault::AfterEffect(code)) => {
            serve(&shared, request).await;
            failure(&ApiError::injected(code))
        }
    }
}

async fn serve(shared: &Arc<Shared>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if request.method() == Method::GET
        && let Some(answer) = discovery::answer(&path, shared.store.version(), &shared.store.served())
    {
        return match answer {
            discovery::Answer::Json(value) => json_reply(StatusCode::OK, &value),
            discovery::Answer::Text(text) => reply(StatusCode::OK, "text/plain", Body::from(text)),
        };
    }
    if request.method() == Method::POST && path == SELF_REVIEW {
        return self_review(request).await;
    }
    let Some(target) = target(&path) else { return failure(&ApiError::no_such_path()) };
    if !shared.store.serves(target.kind) {
        // As the real server puts it, which finds no handler for the path.
        return reply(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", Body::from("404 page not found\n"));
    }
    let (parts, body) = request.into_parts();
    let text = |name| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let accept = text(header::ACCEPT);
    let content_type = text(header::CONTENT_TYPE).split(';').next().unwrap_or("").trim().to_owned();
    let query = query(parts.uri.query().unwrap_or(""));
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return failure(&ApiError::bad_request("the body could not be read or is larger than 3 MiB"));
    };
    let as_table = accept.split(',').next().is_some_and(|first| first.contains("as=Table"));
    let call = Call { method: parts.method, target, query, content_type, as_table, body };
    let answer = if call.is_watch() { call.watch(shared) } else { call.answer(&shared.store) };
    answer.unwrap_or_else(|error| failure(&error))
}

/// Everybody may do everything here.
async fn self_review(request: Request) -> Response {
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY).await.unwrap_or_default();
    let Ok(Value::Object(mut review)) = serde_json::from_slice(&body) else {
        return failure(&ApiError::bad_request("the body is not a JSON object"));
    };
    review.insert("status".into(), json!({"allowed": true}));
    json_reply(StatusCode::CREATED, &review.into())
}

fn reply(code: StatusCode, content_type: &str, body: Body) -> Response {
    (code, [(header::CONTENT_TYPE, content_type)], body).into_response()
}

fn json_reply(code: StatusCode, value: &Value) -> Response {
    reply(code, "application/json", Body::from(value.to_string()))
}

fn failure(error: &ApiError) -> Response {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_reply(code, &error.to_status())
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let hex = text.get(index + 1..index + 3).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[index], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                index += 3;
            }
            (b'+', _) => {
                decoded.push(b' ');
                index += 1;
            }
            (byte, _) => {
                decoded.push(byte);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn query(text: &str) -> HashMap<String, String> {
    let pair = |part: &str| {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        (percent_decoded(key), percent_decoded(value))
    };
    text.split('&').filter(|p| !p.is_empty()).map(pair).collect()
}

fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && *rest != ["status"] => {
            (Some(*namespace), rest)
        }
        rest => (None, rest),
    };
    let (plural, rest) = rest.split_first()?;
    let kind = kinds::by_path(group, version, plural)?;
    if rest.len() > 2 || (namespace.is_some() && !kind.namespaced) {
        return None;
    }
    let own = |part: Option<&&str>| part.map(|p| percent_decoded(p));
    let subresource = own(rest.get(1));
    if subresource.as_deref().is_some_and(|s| !kind.subresources.contains(&s)) {
        return None;
    }
    if kind.namespaced && namespace.is_none() && !rest.is_empty() {
        return None;
    }
    Some(Target { kind, namespace: namespace.map(str::to_owned), name: own(rest.first()), subresource })
}

impl Call {
    fn param(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    fn flag(&self, name: &str) -> bool {
        self.query.get(name).is_some_and(|v| v.is_empty() || v == "true" || v == "1")
    }

    fn is_watch(&self) -> bool {
        self.method == Method::GET && self.flag("watch")
    }

    fn namespace(&self) -> &str {
        self.target.namespace.as_deref().unwrap_or("")
    }

    fn selectors(&self) -> Result<Selectors, ApiError> {
        let mut fields = self.param("fieldSelector").to_owned();
        if let Some(name) = &self.target.name {
            // A watch on one object is a watch with a selector.
            fields = format!("metadata.name={name}");
        }
        Selectors::parse(self.target.kind, self.param("labelSelector"), &fields)
    }

    fn options(&self) -> Result<WriteOptions, ApiError> {
        let dry_run = match self.param("dryRun") {
            "" => false,
            "All" => true,
            other => {
                return Err(ApiError::bad_request(format!(
                    "Invalid value: \"{other}\": supported values: \"All\""
                )));
            }
        };
        let strict = self.param("fieldValidation") == "Strict";
        Ok(WriteOptions { dry_run, strict, manager: self.param("fieldManager").to_owned() })
    }

    fn json_body(&self) -> Result<Value, ApiError> {
        let json = self.content_type.is_empty() || self.content_type.ends_with("json");
        if json {
            let broken = |e: serde_json::Error| ApiError::bad_request(format!("the body is not JSON: {e}"));
            return serde_json::from_slice(&self.body).map_err(broken);
        }
        if self.content_type.ends_with("yaml") {
            let text = String::from_utf8_lossy(&self.body);
            let broken = |e: serde_saphyr::Error| ApiError::bad_request(format!("the body is not YAML: {e}"));
            return serde_saphyr::from_str(&text).map_err(broken);
        }
        Err(ApiError::unsupported_media_type(&self.content_type))
    }

    fn part(&self) -> Part {
        if self.target.subresource.as_deref() == Some("status") { Part::Status } else { Part::Main }
    }

    fn answer(&self, store: &Store) -> Result<Response, ApiError> {
        if self.target.subresource.as_deref() == Some("scale") {
            return self.scale(store);
        }
        match (&self.method, &self.target.name) {
            (&Method::GET, None) => self.list(store),
            (&Method::GET, Some(name)) => {
                let object = store.get(self.target.kind, self.namespace(), name)?;
                Ok(self.objects(StatusCode::OK, &[&*object], &object))
            }
            (&Method::POST, Some(name)) if self.target.subresource.as_deref() == Some("binding") => {
                let node = json!({"spec": {"nodeName": self.json_body()?["target"]["name"]}});
                let options = self.options()?;
                store.patch(
                    self.target.kind,
                    self.namespace(),
                    name,
                    &Patch::Merge(node),
                    Part::Main,
                    &options,
                )?;
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201});
                Ok(json_reply(StatusCode::CREATED, &status))
            }
            (&Method::POST, Some(name)) if self.target.subresource.as_deref() == Some("eviction") => {
                eviction::evict(store, self.namespace(), name, &self.json_body()?, self.options()?.dry_run)?;
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
                Ok(json_reply(StatusCode::CREATED, &status))
            }
            (&Method::POST, None) => {
                let made =
                    store.create(self.target.kind, self.namespace(), self.json_body()?, &self.options()?)?;
                Ok(self.objects(StatusCode::CREATED, &[&*made], &made))
            }
            (&Method::PUT, Some(name)) => {
                let (kind, namespace) = (self.target.kind, self.namespace());
                let body = self.json_body()?;
                let stored = store.update(kind, namespace, name, body, self.part(), &self.options()?)?;
                Ok(self.objects(StatusCode::OK, &[&*stored], &stored))
            }
            (&Method::PATCH, Some(name)) => {
                let existed = store.get(self.target.kind, self.namespace(), name).is_ok();
                let (kind, namespace) = (self.target.kind, self.namespace());
                let patch = self.patch()?;
                let stored = store.patch(kind, namespace, name, &patch, self.part(), &self.options()?)?;
                let code = if existed { StatusCode::OK } else { StatusCode::CREATED };
                Ok(self.objects(code, &[&*stored], &stored))
            }
            (&Method::DELETE, Some(name)) => self.delete(store, name),
            (&Method::DELETE, None) => {
                let (kind, namespace) = (self.target.kind, self.target.namespace.as_deref());
                let gone =
                    store.delete_collection(kind, namespace, &self.selectors()?, &self.delete_options()?);
                Ok(json_reply(StatusCode::OK, &self.list_object(&gone, store.revision())))
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    fn patch(&self) -> Result<Patch, ApiError> {
        match self.content_type.as_str() {
            "application/json-patch+json" => Ok(Patch::Json(self.json_body()?)),
            "application/merge-patch+json" => Ok(Patch::Merge(self.json_body()?)),
            "application/strategic-merge-patch+json" if self.target.kind.definition().is_some() => {
                Err(ApiError::unsupported_media_type(&self.content_type))
            }
            "application/strategic-merge-patch+json" => Ok(Patch::Strategic(self.json_body()?)),
            "application/apply-patch+yaml" => {
                if self.param("fieldManager").is_empty() {
                    let text = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for \
                        apply patch";
                    return Err(ApiError { code: 422, reason: "Invalid", ..ApiError::bad_request(text) });
                }
                Ok(Patch::Apply { object: self.json_body()?, force: self.flag("force") })
            }
            other => Err(ApiError::unsupported_media_type(other)),
        }
    }

    fn delete_options(&self) -> Result<DeleteOptions, ApiError> {
        let body = if self.body.is_empty() { Value::Null } else { self.json_body()? };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let policy =
            text(&body["propagationPolicy"]).unwrap_or_else(|| self.param("propagationPolicy").to_owned());
        let dry_run_in_body = body["dryRun"].as_array().is_some_and(|list| list.iter().any(|v| v == "All"));
        Ok(DeleteOptions {
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            grace_period_seconds: body["gracePeriodSeconds"]
                .as_i64()
                .or_else(|| self.param("gracePeriodSeconds").parse().ok()),
            dry_run: dry_run_in_body || self.options()?.dry_run,
            orphan: policy == "Orphan",
        })
    }

    fn delete(&self, store: &Store, name: &str) -> Result<Response, ApiError> {
        let kind = self.target.kind;
        let (object, gone) = store.delete(kind, self.namespace(), name, &self.delete_options()?)?;
        // The server answers the object where it keeps some state of it, and else a Status.
        if !gone || kind.group == "resource.k8s.io" || kind == &kinds::POD {
            return Ok(json_reply(StatusCode::OK, &object));
        }
        let details =
            json!({"name": name, "group": kind.group, "kind": kind.plural, "uid": object["metadata"]["uid"]});
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
        Ok(json_reply(StatusCode::OK, &status))
    }

    fn scale(&self, store: &Store) -> Result<Response, ApiError> {
        let name = self.target.name.as_deref().unwrap_or("");
        let mut object = store.get(self.target.kind, self.namespace(), name)?;
        if self.method != Method::GET {
            let change = json!({"spec": {"replicas": self.json_body()?["spec"]["replicas"]}});
            let patch = Patch::Merge(change);
            object = store.patch(
                self.target.kind,
                self.namespace(),
                name,
                &patch,
                Part::Main,
                &self.options()?,
            )?;
        }
        let scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": object["metadata"],
            "spec": {"replicas": object["spec"]["replicas"]}, "status": {"replicas": object["spec"]["replicas"]}});
        Ok(json_reply(StatusCode::OK, &scale))
    }

    fn list(&self, store: &Store) -> Result<Response, ApiError> {
        let (items, revision) =
            store.list(self.target.kind, self.target.namespace.as_deref(), &self.selectors()?);
        if self.as_table {
            let refs: Vec<&Value> = items.iter().map(|i| &**i).collect();
            let table = table::render(self.target.kind, &refs, &revision.to_string().into());
            return Ok(json_reply(StatusCode::OK, &table));
        }
        Ok(json_reply(StatusCode::OK, &self.list_object(&items, revision)))
    }

    fn list_object(&self, items: &[Arc<Value>], revision: u64) -> Value {
        let kind: &Kind = self.target.kind;
        let items: Vec<&Value> = items.iter().map(|i| &**i).collect();
        json!({"kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
            "metadata": {"resourceVersion": revision.to_string()}, "items": items})
    }

    fn objects(&self, code: StatusCode, rows: &[&Value], object: &Value) -> Response {
        if self.as_table {
            let revision = &object["metadata"]["resourceVersion"];
            return json_reply(code, &table::render(self.target.kind, rows, revision));
        }
        json_reply(code, object)
    }

    fn watch(&self, shared: &Shared) -> Result<Response, ApiError> {
        let initial = self.flag("sendInitialEvents");
        let from = match self.param("resourceVersion") {
            "" | "0" => None,
            _ if initial => None,
            text => Some(text.parse().map_err(|_| ApiError::bad_request("invalid resource version"))?),
        };
        let request = WatchRequest {
            kind: self.target.kind,
            namespace: self.target.namespace.clone(),
            selectors: self.selectors()?,
            from,
            bookmarks: self.flag("allowWatchBookmarks"),
            send_initial_events: initial,
            timeout: self.param("timeoutSeconds").parse().map_or(DEFAULT_WATCH, Duration::from_secs),
            as_table: self.as_table,
        };
        let stop = shared.watches.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let stream = watch::stream(shared.store.clone(), request, stop);
        Ok(reply(StatusCode::OK, "application/json", Body::from_stream(stream)))
    }
}
