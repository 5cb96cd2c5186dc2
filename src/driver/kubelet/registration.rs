//! Registration: the kubelet asks for the plugin's information and reports whether it registered the plugin.

use std::path::PathBuf;

use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::{error, info};

use super::pb::registration::registration_server::Registration as Service;
use super::pb::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// Services that the plugin socket offers, as the kubelet names them; of each kind it takes the first one that it knows
/// (pkg/kubelet/cm/dra/plugin/dra_plugin_manager.go).
pub const SUPPORTED_VERSIONS: [&str; 4] =
    ["v1.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth"];

/// How the registration stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistrationState {
    /// The kubelet has not answered yet.
    Waiting,
    /// The kubelet registered the plugin.
    Registered,
    /// The kubelet rejected it, and does not retry until the socket is recreated.
    Refused(String),
}

/// Answers the kubelet's questions. GetInfo must answer within a second, so nothing here waits.
#[derive(Debug)]
pub struct Registration {
    driver: String,
    endpoint: PathBuf,
    state: watch::Sender<RegistrationState>,
}

impl Registration {
    /// For this driver, whose work is done on the socket at `endpoint`.
    #[must_use]
    pub fn new(driver: &str, endpoint: PathBuf, state: watch::Sender<RegistrationState>) -> Self {
        Self { driver: driver.to_owned(), endpoint, state }
    }
}

#[tonic::async_trait]
impl Service for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".to_owned(),
            name: self.driver.clone(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            supported_versions: SUPPORTED_VERSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            info!("registered with the kubelet");
            self.state.send_replace(RegistrationState::Registered);
        } else {
            error!(error = status.error, "the kubelet refused the registration");
            self.state.send_replace(RegistrationState::Refused(status.error));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
