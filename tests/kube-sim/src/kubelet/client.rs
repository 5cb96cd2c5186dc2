//! The kubelet's side of the gRPC conversation, call by call.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint, Uri};

use super::authority::encode_authority;
use super::pb::{registration, v1, v1beta1};

/// The kubelet's limits: for the dial, `GetInfo`, `NotifyRegistrationStatus`, and prepare and unprepare calls.
const DIAL: Duration = Duration::from_secs(10);
const GET_INFO: Duration = Duration::from_secs(1);
const NOTIFY: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(45);

/// What went wrong between kubelet and driver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KubeletError {
    /// The directory has no registration socket, or cannot be read.
    #[error("no registration socket in {0}")]
    NoSocket(PathBuf),
    /// The authority of this socket's path is one that a server built on the `http` crate answers with PROTOCOL_ERROR.
    #[error(
        "stream terminated by RST_STREAM with error code: PROTOCOL_ERROR (the :authority {0} is refused)"
    )]
    Authority(String),
    /// The connection or call failed.
    #[error("{call}: {text}")]
    Call {
        /// The call.
        call: &'static str,
        /// gRPC code and message, or the transport's error.
        text: String,
    },
    /// The driver is not one, or speaks no version that the kubelet knows.
    #[error("{0}")]
    Unsuitable(String),
}

pub(super) fn failed(call: &'static str) -> impl Fn(tonic::Status) -> KubeletError {
    move |status| KubeletError::Call { call, text: format!("{:?}: {}", status.code(), status.message()) }
}

fn timed_out(call: &'static str) -> impl Fn(tokio::time::error::Elapsed) -> KubeletError {
    move |_| KubeletError::Call { call, text: "DeadlineExceeded: context deadline exceeded".into() }
}

/// A claim as the kubelet names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// A device that the driver prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedDevice {
    /// Requests of the claim that it serves; empty means all.
    pub requests: Vec<String>,
    /// Pool.
    pub pool: String,
    /// Device name.
    pub device: String,
    /// CDI device ids for the container runtime.
    pub cdi_ids: Vec<String>,
}

/// Per claim uid, its devices or the driver's error text.
pub type PrepareAnswer = BTreeMap<String, Result<Vec<PreparedDevice>, String>>;

/// Per claim uid, done or the driver's error text.
pub type UnprepareAnswer = BTreeMap<String, Result<(), String>>;

/// The service version that was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `v1.DRAPlugin`.
    V1,
    /// `v1beta1.DRAPlugin`.
    V1Beta1,
}

/// Finds and registers drivers.
#[derive(Debug)]
pub struct KubeletClient;

/// A registered driver.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// Driver name.
    pub name: String,
    /// The service socket.
    pub endpoint: String,
    /// What the driver offers, in its order.
    pub supported_versions: Vec<String>,
    /// What is spoken: the first of those that the kubelet knows.
    pub version: Version,
    channel: Channel,
}

impl KubeletClient {
    /// Sockets below a registry directory, hidden ones excepted, sorted.
    #[must_use]
    pub fn sockets(registry_dir: &Path) -> Vec<PathBuf> {
        use std::os::unix::fs::FileTypeExt;
        let mut sockets = Vec::new();
        for entry in std::fs::read_dir(registry_dir).into_iter().flatten().flatten() {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !hidden => sockets.extend(Self::sockets(&entry.path())),
                Ok(kind) if kind.is_socket() && !hidden => sockets.push(entry.path()),
                _ => {}
            }
        }
        sockets.sort();
        sockets
    }

    /// Waits up to 10 s for a registration socket and registers the driver behind it.
    ///
    /// # Errors
    /// [`KubeletError`].
    pub async fn register(registry_dir: &Path) -> Result<Plugin, KubeletError> {
        let deadline = Instant::now() + DIAL;
        loop {
            if let Some(socket) = Self::sockets(registry_dir).first() {
                return Self::register_socket(socket).await;
            }
            if Instant::now() > deadline {
                return Err(KubeletError::NoSocket(registry_dir.to_owned()));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Registers the driver behind one registration socket, exactly as the kubelet dials it, and tells it the outcome.
    ///
    /// # Errors
    /// [`KubeletError`].
    pub async fn register_socket(socket: &Path) -> Result<Plugin, KubeletError> {
        let channel = dial_registration(socket).await?;
        let mut client = registration::registration_client::RegistrationClient::new(channel);
        let call = "GetInfo";
        let info = timeout(GET_INFO, client.get_info(registration::InfoRequest {}))
            .await
            .map_err(timed_out(call))?
            .map_err(failed(call))?
            .into_inner();
        let plugin = Plugin::from_info(info).await;
        let error = plugin.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let status = registration::RegistrationStatus { plugin_registered: plugin.is_ok(), error };
        let call = "NotifyRegistrationStatus";
        timeout(NOTIFY, client.notify_registration_status(status))
            .await
            .map_err(timed_out(call))?
            .map_err(failed(call))?;
        plugin
    }
}

/// Dials a registration socket with the authority that grpc-go sends for it.
async fn dial_registration(socket: &Path) -> Result<Channel, KubeletError> {
    let path = socket.to_string_lossy();
    let authority = encode_authority(&path);
    // The server's check is this crate's own: what cannot be built here is what it would refuse.
    let origin: Uri =
        format!("http://{authority}").parse().map_err(|_| KubeletError::Authority(authority.clone()))?;
    dial(&path, Some(origin)).await
}

pub(super) async fn dial(path: &str, origin: Option<Uri>) -> Result<Channel, KubeletError> {
    let failed = |e: &dyn std::error::Error| {
        let source = e.source().map(|s| format!(": {s}")).unwrap_or_default();
        KubeletError::Call { call: "dial", text: format!("{path}: {e}{source}") }
    };
    let mut endpoint =
        Endpoint::from_shared(format!("unix:{path}")).map_err(|e| failed(&e))?.connect_timeout(DIAL);
    if let Some(origin) = origin {
        endpoint = endpoint.origin(origin);
    }
    endpoint.connect().await.map_err(|e| failed(&e))
}

impl Plugin {
    async fn from_info(info: registration::PluginInfo) -> Result<Self, KubeletError> {
        if info.r#type != "DRAPlugin" {
            return Err(KubeletError::Unsuitable(format!("plugin type {} is not DRAPlugin", info.r#type)));
        }
        let known = |version: &String| match version.as_str() {
            "v1.DRAPlugin" => Some(Version::V1),
            "v1beta1.DRAPlugin" => Some(Version::V1Beta1),
            _ => None,
        };
        let version = info.supported_versions.iter().find_map(known).ok_or_else(|| {
            KubeletError::Unsuitable(format!(
                "none of the versions {:?} is supported",
                info.supported_versions
            ))
        })?;
        let channel = dial(&info.endpoint, None).await?;
        let (name, endpoint, supported_versions) = (info.name, info.endpoint, info.supported_versions);
        Ok(Self { name, endpoint, supported_versions, version, channel })
    }

    /// The connection, for the driver's other services.
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The same driver spoken to in another version, as an older kubelet would.
    #[must_use]
    pub fn speaking(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// `NodePrepareResources` with the kubelet's deadline of 45 s.
    ///
    /// # Errors
    /// When the call fails, or the answer names a claim that was not asked about.
    pub async fn prepare(&self, claims: &[Claim]) -> Result<PrepareAnswer, KubeletError> {
        let call = "NodePrepareResources";
        let answer: PrepareAnswer = match self.version {
            Version::V1 => {
                let mut client = v1::dra_plugin_client::DraPluginClient::new(self.channel.clone());
                let request =
                    v1::NodePrepareResourcesRequest { claims: claims.iter().map(Into::into).collect() };
                let response = timeout(CALL, client.node_prepare_resources(request)).await;
                let response = response.map_err(timed_out(call))?.map_err(failed(call))?.into_inner();
                let devices =
                    |r: v1::NodePrepareResourceResponse| r.devices.into_iter().map(Into::into).collect();
                let entry = |(uid, r): (String, v1::NodePrepareResourceResponse)| {
                    (uid, if r.error.is_empty() { Ok(devices(r)) } else { Err(r.error) })
                };
                response.claims.into_iter().map(entry).collect()
            }
            Version::V1Beta1 => {
                let mut client = v1beta1::dra_plugin_client::DraPluginClient::new(self.channel.clone());
                let request =
                    v1beta1::NodePrepareResourcesRequest { claims: claims.iter().map(Into::into).collect() };
                let response = timeout(CALL, client.node_prepare_resources(request)).await;
                let response = response.map_err(timed_out(call))?.map_err(failed(call))?.into_inner();
                let devices =
                    |r: v1beta1::NodePrepareResourceResponse| r.devices.into_iter().map(Into::into).collect();
                let entry = |(uid, r): (String, v1beta1::NodePrepareResourceResponse)| {
                    (uid, if r.error.is_empty() { Ok(devices(r)) } else { Err(r.error) })
                };
                response.claims.into_iter().map(entry).collect()
            }
        };
        complete(claims, answer, call)
    }

    /// `NodeUnprepareResources` with the kubelet's deadline of 45 s.
    ///
    /// # Errors
    /// When the call fails, or the answer names a claim that was not asked about.
    pub async fn unprepare(&self, claims: &[Claim]) -> Result<UnprepareAnswer, KubeletError> {
        let call = "NodeUnprepareResources";
        let result = |error: String| if error.is_empty() { Ok(()) } else { Err(error) };
        let answer: UnprepareAnswer = match self.version {
            Version::V1 => {
                let mut client = v1::dra_plugin_client::DraPluginClient::new(self.channel.clone());
                let request =
                    v1::NodeUnprepareResourcesRequest { claims: claims.iter().map(Into::into).collect() };
                let response = timeout(CALL, client.node_unprepare_resources(request)).await;
                let response = response.map_err(timed_out(call))?.map_err(failed(call))?.into_inner();
                response.claims.into_iter().map(|(uid, r)| (uid, result(r.error))).collect()
            }
            Version::V1Beta1 => {
                let mut client = v1beta1::dra_plugin_client::DraPluginClient::new(self.channel.clone());
                let request = v1beta1::NodeUnprepareResourcesRequest {
                    claims: claims.iter().map(Into::into).collect(),
                };
                let response = timeout(CALL, client.node_unprepare_resources(request)).await;
                let response = response.map_err(timed_out(call))?.map_err(failed(call))?.into_inner();
                response.claims.into_iter().map(|(uid, r)| (uid, result(r.error))).collect()
            }
        };
        complete(claims, answer, call)
    }
}

/// Holds the answer against the question, as the kubelet does: no other claims, and a missing one is an error of its own.
fn complete<T>(
    claims: &[Claim],
    mut answer: BTreeMap<String, Result<T, String>>,
    call: &'static str,
) -> Result<BTreeMap<String, Result<T, String>>, KubeletError> {
    if let Some(unknown) = answer.keys().find(|uid| !claims.iter().any(|c| c.uid == **uid)) {
        return Err(KubeletError::Call {
            call,
            text: format!("unknown claim UID {unknown} in the response"),
        });
    }
    for claim in claims {
        answer.entry(claim.uid.clone()).or_insert_with(|| Err(format!("{call} skipped this ResourceClaim")));
    }
    Ok(answer)
}

impl From<&Claim> for v1::Claim {
    fn from(claim: &Claim) -> Self {
        Self { namespace: claim.namespace.clone(), name: claim.name.clone(), uid: claim.uid.clone() }
    }
}

impl From<&Claim> for v1beta1::Claim {
    fn from(claim: &Claim) -> Self {
        Self { namespace: claim.namespace.clone(), name: claim.name.clone(), uid: claim.uid.clone() }
    }
}

impl From<v1::Device> for PreparedDevice {
    fn from(device: v1::Device) -> Self {
        let (pool, device_name, cdi_ids) = (device.pool_name, device.device_name, device.cdi_device_ids);
        Self { requests: device.request_names, pool, device: device_name, cdi_ids }
    }
}

impl From<v1beta1::Device> for PreparedDevice {
    fn from(device: v1beta1::Device) -> Self {
        let (pool, device_name, cdi_ids) = (device.pool_name, device.device_name, device.cdi_device_ids);
        Self { requests: device.request_names, pool, device: device_name, cdi_ids }
    }
}
