//! gRPC towards the kubelet: one socket for registration, one for claims.
//!
//! ```text
//! <registry>/<driver>-<pod>@reg.sock     GetInfo, NotifyRegistrationStatus   (the kubelet watches this directory)
//! <plugins>/<driver>/dra-<pod>.sock      NodePrepareResources, NodeUnprepareResources, v1 and v1beta1;
//!                                        NodeWatchResources, v1 and v1alpha1
//! ```
//!
//! Nothing is decided here about claims: a call is translated, handed to `claim`, and its answer translated back. Of two pods
//! that run at once, the sockets determine which one publishes ([`PublisherElection`]).

mod args;
mod election;
mod health;
mod metrics;
mod pb;
mod plugin;
mod registration;
mod socket;
mod sole;

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tracing::info;

pub use args::DriverArgs;
pub use election::PublisherElection;
pub use health::DeviceHealth;
pub use metrics::RegistrationMetrics;
pub use plugin::DraPlugin;
pub use registration::{
    Registration, RegistrationError, RegistrationState, SUPPORTED_VERSIONS, watch_registration,
};
pub use socket::{Socket, SocketError, SocketGone, SocketPaths, SocketWatch, is_pod_uid};
pub use sole::{OtherDriver, SoleError, SoleProcess, refuse_other_driver};

use crate::telemetry::with_causes;
use pb::dra_v1::dra_plugin_server::DraPluginServer as V1Server;
use pb::dra_v1beta1::dra_plugin_server::DraPluginServer as V1Beta1Server;
use pb::health_v1::dra_resource_health_server::DraResourceHealthServer as HealthV1Server;
use pb::health_v1alpha1::dra_resource_health_server::DraResourceHealthServer as HealthV1Alpha1Server;
use pb::registration::registration_server::RegistrationServer;

/// Longest request that is read, bytes. The claims of a pod take some hundred each; tonic's own limit is 4 MiB.
const LONGEST_REQUEST: usize = 1024 * 1024;

/// The server failed while it ran.
#[derive(Debug, thiserror::Error)]
#[error("gRPC server on `{path}` failed: {message}")]
pub struct ServeError {
    path: PathBuf,
    message: String,
}

/// Serves the plugin until `stop`, and with it `routes`, for example the gRPC health service; calls that run are finished first.
pub async fn serve_plugin(
    socket: Socket,
    plugin: Arc<DraPlugin>,
    devices: DeviceHealth,
    routes: Routes,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let path = socket.path().to_owned();
    info!(socket = %path.display(), "serving the kubelet");
    Server::builder()
        .add_routes(routes)
        .add_service(V1Server::from_arc(Arc::clone(&plugin)).max_decoding_message_size(LONGEST_REQUEST))
        .add_service(V1Beta1Server::from_arc(plugin).max_decoding_message_size(LONGEST_REQUEST))
        .add_service(HealthV1Server::new(devices.clone()).max_decoding_message_size(LONGEST_REQUEST))
        .add_service(HealthV1Alpha1Server::new(devices).max_decoding_message_size(LONGEST_REQUEST))
        .serve_with_incoming_shutdown(socket.into_incoming(), stop.cancelled_owned())
        .await
        .map_err(|error| ServeError { path, message: with_causes(&error) })
}

/// Serves the registration until `stop`. The end of its socket is what de-registers the driver.
pub async fn serve_registration(
    socket: Socket,
    registration: Registration,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let path = socket.path().to_owned();
    Server::builder()
        .add_service(RegistrationServer::new(registration))
        .serve_with_incoming_shutdown(socket.into_incoming(), stop.cancelled_owned())
        .await
        .map_err(|error| ServeError { path, message: with_causes(&error) })
}
