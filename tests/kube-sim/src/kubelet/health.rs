//! The kubelet's side of the health stream: it listens as long as it runs, and takes each list for the whole truth.

use tonic::Streaming;

use super::client::{KubeletError, Plugin, failed};
use super::pb::{health_v1 as v1, health_v1alpha1 as v1alpha1};

/// How a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It is unknown.
    Unknown,
    /// As it should be.
    Healthy,
    /// It has a problem.
    Unhealthy,
}

/// What the driver says of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceHealth {
    /// Pool.
    pub pool: String,
    /// Device.
    pub device: String,
    /// How it is.
    pub health: Health,
    /// Seconds after which that is forgotten.
    pub timeout_seconds: i64,
    /// For people.
    pub message: String,
}

/// The lists that a driver sends.
#[derive(Debug)]
pub enum HealthStream {
    /// As a kubelet from 1.37 on receives them.
    V1(Streaming<v1::NodeWatchResourcesResponse>),
    /// As older ones do.
    V1Alpha1(Streaming<v1alpha1::NodeWatchResourcesResponse>),
}

macro_rules! devices {
    ($version:ident, $answer:expr) => {
        $answer
            .devices
            .into_iter()
            .map(|it| {
                let health = match it.health() {
                    $version::HealthStatus::Unknown => Health::Unknown,
                    $version::HealthStatus::Healthy => Health::Healthy,
                    $version::HealthStatus::Unhealthy => Health::Unhealthy,
                };
                let $version::DeviceIdentifier { pool_name: pool, device_name: device } =
                    it.device.unwrap_or_default();
                let timeout_seconds = it.health_check_timeout_seconds;
                DeviceHealth { pool, device, health, timeout_seconds, message: it.message }
            })
            .collect()
    };
}

impl HealthStream {
    /// The next list; `None` when the driver has ended the stream or is gone.
    pub async fn next(&mut self) -> Option<Vec<DeviceHealth>> {
        match self {
            Self::V1(stream) => stream.message().await.ok()?.map(|it| devices!(v1, it)),
            Self::V1Alpha1(stream) => stream.message().await.ok()?.map(|it| devices!(v1alpha1, it)),
        }
    }
}

impl Plugin {
    /// `NodeWatchResources` as a kubelet from 1.37 on calls it.
    ///
    /// # Errors
    /// When the driver has no such service.
    pub async fn watch_health(&self) -> Result<HealthStream, KubeletError> {
        let mut client = v1::dra_resource_health_client::DraResourceHealthClient::new(self.channel());
        let answer = client.node_watch_resources(v1::NodeWatchResourcesRequest {}).await;
        Ok(HealthStream::V1(answer.map_err(failed("NodeWatchResources"))?.into_inner()))
    }

    /// `NodeWatchResources` as an older kubelet calls it.
    ///
    /// # Errors
    /// When the driver has no such service.
    pub async fn watch_health_v1alpha1(&self) -> Result<HealthStream, KubeletError> {
        let mut client = v1alpha1::dra_resource_health_client::DraResourceHealthClient::new(self.channel());
        let answer = client.node_watch_resources(v1alpha1::NodeWatchResourcesRequest {}).await;
        Ok(HealthStream::V1Alpha1(answer.map_err(failed("NodeWatchResources"))?.into_inner()))
    }
}
