//! The kubelet's `grpc` probe: `grpc.health.v1.Health`, over a socket or a port.

use std::net::SocketAddr;
use std::path::Path;

use futures::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint};

use super::client::{KubeletError, dial, failed};
use super::pb::health;

/// Asks for health.
#[derive(Debug, Clone)]
pub struct HealthProbe {
    channel: Channel,
}

impl HealthProbe {
    /// Over a Unix socket.
    ///
    /// # Errors
    /// When no server listens.
    pub async fn on_socket(path: &Path) -> Result<Self, KubeletError> {
        Ok(Self { channel: dial(&path.to_string_lossy(), None).await? })
    }

    /// Over a TCP port, as the kubelet's probes do.
    ///
    /// # Errors
    /// When no server listens.
    pub async fn on_port(address: SocketAddr) -> Result<Self, KubeletError> {
        let failed =
            |error: tonic::transport::Error| KubeletError::Call { call: "dial", text: error.to_string() };
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(failed)?;
        Ok(Self { channel: endpoint.connect().await.map_err(failed)? })
    }

    /// Whether the service serves. The empty name is the server as a whole.
    ///
    /// # Errors
    /// When it cannot be asked, or is not known.
    pub async fn check(&self, service: &str) -> Result<bool, KubeletError> {
        let mut client = health::health_client::HealthClient::new(self.channel.clone());
        let request = health::HealthCheckRequest { service: service.to_owned() };
        let answer = client.check(request).await.map_err(failed("Check"))?;
        Ok(answer.into_inner().status() == health::health_check_response::ServingStatus::Serving)
    }

    /// Whether it serves, now and after each change.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn watch(
        &self,
        service: &str,
    ) -> Result<impl Stream<Item = bool> + Unpin + use<>, KubeletError> {
        let mut client = health::health_client::HealthClient::new(self.channel.clone());
        let request = health::HealthCheckRequest { service: service.to_owned() };
        let answers = client.watch(request).await.map_err(failed("Watch"))?.into_inner();
        let serves = |it: health::HealthCheckResponse| {
            it.status() == health::health_check_response::ServingStatus::Serving
        };
        Ok(answers.filter_map(async |it| it.ok()).map(serves).boxed())
    }
}
