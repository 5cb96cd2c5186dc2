//! A driver as the kubelet meets one, made of HTTP/2 and hand-written messages, so that the client under test is not judged by
//! code generated from the same files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Response};
use prost::Message;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

#[derive(Clone, PartialEq, Message)]
struct PluginInfo {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    endpoint: String,
    #[prost(string, repeated, tag = "4")]
    versions: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    registered: bool,
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, Message)]
struct ClaimMessage {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    claims: Vec<ClaimMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct DeviceMessage {
    #[prost(string, repeated, tag = "1")]
    requests: Vec<String>,
    #[prost(string, tag = "2")]
    pool: String,
    #[prost(string, tag = "3")]
    device: String,
    #[prost(string, repeated, tag = "4")]
    cdi: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Prepared {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<DeviceMessage>,
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, Message)]
struct PrepareResponse {
    #[prost(map = "string, message", tag = "1")]
    claims: std::collections::HashMap<String, Prepared>,
}

#[derive(Clone, PartialEq, Message)]
struct Unprepared {
    #[prost(string, tag = "1")]
    error: String,
}

#[derive(Clone, PartialEq, Message)]
struct UnprepareResponse {
    #[prost(map = "string, message", tag = "1")]
    claims: std::collections::HashMap<String, Unprepared>,
}

/// What the driver saw and how it is to answer.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// `authority path` of every call.
    pub(crate) calls: Vec<String>,
    /// The outcome that the kubelet reported, and its text.
    pub(crate) registered: Option<(bool, String)>,
    /// Claim names of every prepare call.
    pub(crate) prepared: Vec<Vec<String>>,
    /// Claim names of every unprepare call.
    pub(crate) unprepared: Vec<Vec<String>>,
    /// While not empty, the answer to prepare.
    pub(crate) error: String,
}

/// The driver; it stops when dropped.
pub(crate) struct FakeDriver {
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) registry: PathBuf,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for FakeDriver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl FakeDriver {
    /// Listens below `root`, with this name for the registration socket and these versions.
    pub(crate) fn start(root: &Path, socket: &str, versions: &[&str]) -> Self {
        let registry = root.join("registry");
        std::fs::create_dir_all(&registry).unwrap();
        let endpoint = root.join("dra.sock");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let info = PluginInfo {
            kind: "DRAPlugin".into(),
            name: "mig.dra-driver.dev".into(),
            endpoint: endpoint.to_string_lossy().into_owned(),
            versions: versions.iter().map(|v| (*v).to_owned()).collect(),
        };
        // The service socket first, as drivers do it.
        let tasks = [endpoint, registry.join(socket)]
            .map(|path| tokio::spawn(serve(UnixListener::bind(path).unwrap(), seen.clone(), info.clone())))
            .into();
        Self { seen, registry, tasks }
    }
}

async fn serve(listener: UnixListener, seen: Arc<Mutex<Seen>>, info: PluginInfo) {
    while let Ok((stream, _)) = listener.accept().await {
        let (seen, info) = (seen.clone(), info.clone());
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer(request, respond, seen.clone(), info.clone()));
            }
        });
    }
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    seen: Arc<Mutex<Seen>>,
    info: PluginInfo,
) {
    let path = request.uri().path().to_owned();
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let mut body = request.into_body();
    let mut bytes = BytesMut::new();
    while let Some(Ok(chunk)) = body.data().await {
        bytes.extend_from_slice(&chunk);
    }
    let message = bytes.split_off(5).freeze();
    let reply = {
        let mut seen = seen.lock().unwrap();
        seen.calls.push(format!("{authority} {path}"));
        reply(&path, message, &mut seen, &info)
    };
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(reply.len()).unwrap());
    frame.extend_from_slice(&reply);
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut stream = respond.send_response(head, false).unwrap();
    stream.send_data(frame.freeze(), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    stream.send_trailers(trailers).unwrap();
}

fn reply(path: &str, message: Bytes, seen: &mut Seen, info: &PluginInfo) -> Vec<u8> {
    let names = |request: &Request| request.claims.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    match path.rsplit('/').next() {
        Some("GetInfo") => info.encode_to_vec(),
        Some("NotifyRegistrationStatus") => {
            let status = RegistrationStatus::decode(message).unwrap();
            seen.registered = Some((status.registered, status.error));
            Vec::new()
        }
        Some("NodePrepareResources") => {
            let request = Request::decode(message).unwrap();
            seen.prepared.push(names(&request));
            let one = |claim: &ClaimMessage| {
                let device = DeviceMessage {
                    requests: vec!["mig".into()],
                    pool: "p".into(),
                    device: "d".into(),
                    cdi: vec![format!("mig.dra-driver.dev/claim={}-d", claim.uid)],
                };
                let devices = if seen.error.is_empty() { vec![device] } else { Vec::new() };
                (claim.uid.clone(), Prepared { devices, error: seen.error.clone() })
            };
            PrepareResponse { claims: request.claims.iter().map(one).collect() }.encode_to_vec()
        }
        _ => {
            let request = Request::decode(message).unwrap();
            seen.unprepared.push(names(&request));
            let one = |claim: &ClaimMessage| (claim.uid.clone(), Unprepared { error: String::new() });
            UnprepareResponse { claims: request.claims.iter().map(one).collect() }.encode_to_vec()
        }
    }
}

/// Waits until something holds, for at most 20 s.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
