//! Health over gRPC, for the kubelet's `grpc` probes and other clients: `grpc.health.v1.Health`.
//!
//! Reports the same as `/healthz` and `/readyz`. The service `liveness` serves as long as it answers; every other service is
//! ready if the driver as a whole is.

use std::pin::Pin;

use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status};

use super::Health;
use pb::health_check_response::ServingStatus;
use pb::{HealthCheckRequest, HealthCheckResponse};

#[expect(unreachable_pub, reason = "generated code")]
mod pb {
    tonic::include_proto!("grpc.health.v1");
}

use pb::health_server::HealthServer;

/// Names that may be asked for besides that of the whole, which is empty.
const SERVICES: [&str; 3] = ["readiness", "v1.DRAPlugin", "v1beta1.DRAPlugin"];

/// Longest request that is read, bytes: the name of a service.
const LONGEST_REQUEST: usize = 1024;

/// The service, for a server.
pub fn health_service(health: Health) -> HealthServer<Health> {
    HealthServer::new(health).max_decoding_message_size(LONGEST_REQUEST)
}

fn status(health: &Health, service: &str) -> ServingStatus {
    let of = |is_well| if is_well { ServingStatus::Serving } else { ServingStatus::NotServing };
    match service {
        "liveness" => ServingStatus::Serving,
        "" => of(health.report().0),
        known if SERVICES.contains(&known) => of(health.report().0),
        _ => ServingStatus::ServiceUnknown,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl pb::health_server::Health for Health {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match status(self, &service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found(format!(
                "no service `{service}`; there are liveness, {}",
                SERVICES.join(", ")
            ))),
            status => Ok(Response::new(response(status))),
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let first = (self.clone(), None);
        let reported = stream::unfold(first, move |(mut health, reported)| {
            let service = service.clone();
            async move {
                loop {
                    health.mark_seen();
                    let now = status(&health, &service);
                    if reported != Some(now) {
                        return Some((Ok(response(now)), (health, Some(now))));
                    }
                    health.changed().await?;
                }
            }
        });
        Ok(Response::new(reported.boxed()))
    }
}
