//! The server as a whole: a socket, a store and the hooks for tests.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::error::ApiError;
use super::faults::{Fault, Faults, RequestInfo};
use super::gates::Gates;
use super::http::{Shared, handle};
use super::kinds::{self, KindRef};
use super::patch::Patch;
use super::selector::Selectors;
use super::store::{DeleteOptions, Part, Store, WriteOptions};
use super::version::Version;

/// How to start the server.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `DRAPartitionableDevices`; off, as in a stock 1.35 cluster, unless asked for.
    pub partitionable_devices: bool,
    /// `DRADeviceTaints`; likewise.
    pub device_taints: bool,
    /// `DRAExtendedResource`; likewise.
    pub extended_resource: bool,
    /// `DRAResourceClaimDeviceStatus` off; it is on by default since 1.33.
    pub without_device_status: bool,
    /// Whose rules apply.
    pub version: Version,
    /// TCP port; any free one by default.
    pub port: Option<u16>,
    /// Do not record requests for [`ApiServer::requests`], which takes memory for each.
    pub without_request_log: bool,
}

impl Options {
    /// The feature gates.
    #[must_use]
    pub fn gates(&self) -> Gates {
        Gates {
            version: self.version,
            partitionable_devices: self.partitionable_devices,
            device_taints: self.device_taints,
            extended_resource: self.extended_resource,
            without_device_status: self.without_device_status,
        }
    }
}

/// A running API server; it stops when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    // Dropped with the last handle, which ends the server task and all watches.
    _stop: Arc<DropGuard>,
    stop: CancellationToken,
}

impl ApiServer {
    /// Starts a server on 127.0.0.1.
    ///
    /// # Errors
    /// When the port is not available.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", options.port.unwrap_or(0))).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            store: Arc::new(Store::new(options.gates())),
            faults: Faults::new(!options.without_request_log),
            watches: Mutex::new(stop.child_token()),
        });
        let app = Router::new().fallback(handle).with_state(shared.clone());
        let stopped = stop.clone();
        tokio::spawn(async move {
            let server = axum::serve(listener, app);
            // Ending the task drops the listener; requests in flight end by themselves.
            tokio::select! {
                () = stopped.cancelled() => {}
                _ = server => {}
            }
        });
        Ok(Self { shared, address, _stop: Arc::new(stop.clone().drop_guard()), stop })
    }

    /// Its base address, such as `http://127.0.0.1:34567`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig that points here.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) -> io::Result<()> {
        let url = self.url();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: sim\nclusters:\n- name: sim\n  cluster:\n    server: {url}\n\
             contexts:\n- name: sim\n  context:\n    cluster: sim\n    user: sim\n    namespace: default\n\
             users:\n- name: sim\n  user: {{}}\n"
        );
        std::fs::write(path, text)
    }

    /// Switches `DRAPartitionableDevices`, as a restart of the server with another flag would.
    pub fn set_partitionable_devices(&self, on: bool) {
        self.shared.store.set_gates(|gates| gates.partitionable_devices = on);
    }

    /// Switches the version whose rules apply, as an upgrade of the server would.
    pub fn set_version(&self, version: Version) {
        self.shared.store.set_gates(|gates| gates.version = version);
    }

    /// The store, for controllers in the same process.
    #[must_use]
    pub fn store(&self) -> Arc<Store> {
        self.shared.store.clone()
    }

    /// Creates an object given with `apiVersion` and `kind`; in `default` where it names no namespace.
    ///
    /// # Errors
    /// As the server answers; 400 for a kind that is not served.
    pub fn create(&self, object: Value) -> Result<Arc<Value>, ApiError> {
        let kind = kind_of(&object)?;
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        self.shared.store.create(
            kind,
            &namespace,
            object,
            &WriteOptions { strict: true, ..WriteOptions::default() },
        )
    }

    /// Reads one object; the namespace is ignored for cluster-wide kinds.
    ///
    /// # Errors
    /// 404.
    pub fn get(&self, kind: KindRef, namespace: &str, name: &str) -> Result<Arc<Value>, ApiError> {
        self.shared.store.get(kind, namespace, name)
    }

    /// All objects of a kind.
    #[must_use]
    pub fn list(&self, kind: KindRef) -> Vec<Arc<Value>> {
        self.shared.store.list(kind, None, &Selectors::default()).0
    }

    /// Applies a merge patch to an object or its status.
    ///
    /// # Errors
    /// As the server answers.
    pub fn patch(
        &self,
        kind: KindRef,
        namespace: &str,
        name: &str,
        part: Part,
        change: Value,
    ) -> Result<Arc<Value>, ApiError> {
        self.shared.store.patch(kind, namespace, name, &Patch::Merge(change), part, &WriteOptions::default())
    }

    /// Deletes an object as `kubectl delete` does. True when it is gone, false when something holds it.
    ///
    /// # Errors
    /// 404.
    pub fn delete(&self, kind: KindRef, namespace: &str, name: &str) -> Result<bool, ApiError> {
        Ok(self.shared.store.delete(kind, namespace, name, &DeleteOptions::default())?.1)
    }

    /// The next `count` requests that `choose` picks meet this fault.
    pub fn inject(&self, count: usize, choose: impl Fn(&RequestInfo) -> bool + Send + 'static, fault: Fault) {
        self.shared.faults.arm(count, Box::new(choose), fault);
    }

    /// Disarms all faults.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Every HTTP request so far, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<RequestInfo> {
        self.shared.faults.seen()
    }

    /// Ends every open watch, as a restart of the server would.
    pub fn cut_watches(&self) {
        let mut current = self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner);
        current.cancel();
        *current = self.stop.child_token();
    }

    /// Forgets all history, so that a watch from an older resource version is answered 410.
    pub fn compact(&self) {
        self.shared.store.compact();
    }
}

fn kind_of(object: &Value) -> Result<KindRef, ApiError> {
    let text = |field: &str| object[field].as_str().unwrap_or("");
    kinds::by_type(text("apiVersion"), text("kind")).ok_or_else(|| {
        ApiError::bad_request(format!(
            "no matches for kind \"{}\" in version \"{}\"",
            text("kind"),
            text("apiVersion")
        ))
    })
}
