//! NodePrepareResources and NodeUnprepareResources, v1 and v1beta1 from one implementation.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;

use futures::future::join_all;
use mig_model::claim::ClaimRef;
use tonic::{Request, Response, Status};
use tracing::{Instrument, error, info_span};

use super::pb::{dra_v1 as v1, dra_v1beta1 as v1beta1};
use crate::claim::{Claims, PreparedDevice};
use crate::telemetry::metrics::{Method, Metrics, Reason};

/// Most claims in one call. The kubelet sends those of one pod, which has far fewer; a limit keeps a confused client
/// from starting any number of tasks.
const MOST_CLAIMS: usize = 1024;

/// The plugin service.
#[derive(Debug)]
pub struct DraPlugin {
    claims: Arc<Claims>,
    metrics: Metrics,
}

/// A claim as both versions of the protocol name it: namespace, name, UID.
type WireClaim = (String, String, String);

impl DraPlugin {
    /// Serves these claims.
    #[must_use]
    pub fn new(claims: Arc<Claims>, metrics: Metrics) -> Self {
        Self { claims, metrics }
    }

    /// Prepares the claims of one call, in parallel; one that fails does not hold up the others.
    async fn prepare(
        &self,
        claims: Vec<WireClaim>,
    ) -> Result<HashMap<String, Result<Vec<PreparedDevice>, String>>, Status> {
        let prepare = |claim| {
            let claims = Arc::clone(&self.claims);
            async move { claims.prepare(&claim).await.map_err(|error| Failed::of(&error, "claim not prepared")) }
        };
        self.each(claims, Method::Prepare, prepare).await
    }

    async fn unprepare(&self, claims: Vec<WireClaim>) -> Result<HashMap<String, Result<(), String>>, Status> {
        let unprepare = |claim| {
            let claims = Arc::clone(&self.claims);
            async move {
                claims.unprepare(&claim).await.map_err(|error| Failed::of(&error, "claim not unprepared"))
            }
        };
        self.each(claims, Method::Unprepare, unprepare).await
    }

    /// Does the same for every claim of a call, each in its own span. An invalid claim gets its own error.
    async fn each<T, F>(
        &self,
        claims: Vec<WireClaim>,
        method: Method,
        work: impl Fn(ClaimRef) -> F,
    ) -> Result<HashMap<String, Result<T, String>>, Status>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        if MOST_CLAIMS < claims.len() {
            return Err(Status::invalid_argument(format!("more than {MOST_CLAIMS} claims in one call")));
        }
        let call = info_span!("call", operation = method.as_str(), claims = claims.len());
        let answers = claims.into_iter().map(|(namespace, name, uid)| {
            let span = info_span!(
                parent: &call, "claim", claim.namespace = namespace, claim.name = name, claim.uid = uid
            );
            let running = ClaimRef::new(namespace, name, uid.clone()).map(&work);
            async move {
                let clock = self.metrics.call(method);
                let answer = match running {
                    Ok(running) => running.await,
                    Err(error) => Err(Failed { reason: Reason::InvalidClaim, text: error.to_string() }),
                };
                clock.end(answer.as_ref().map_or_else(|it| it.reason, |_| Reason::Ok));
                (uid, answer.map_err(|it| it.text))
            }
            .instrument(span)
        });
        Ok(join_all(answers).await.into_iter().collect())
    }
}

/// Why a claim was not served: in a word, and as the kubelet shows it.
struct Failed {
    reason: Reason,
    text: String,
}

impl Failed {
    /// Logs the error, too.
    fn of<E: Display>(error: &E, what: &'static str) -> Self
    where
        Reason: for<'e> From<&'e E>,
    {
        error!(%error, "{what}");
        Self { reason: error.into(), text: error.to_string() }
    }
}

/// The two versions have the same messages except for `share_id`, which only v1 has and this driver does not use.
macro_rules! serve_version {
    ($version:ident, $($share_id:ident)?) => {
        #[tonic::async_trait]
        impl $version::dra_plugin_server::DraPlugin for DraPlugin {
            async fn node_prepare_resources(
                &self,
                request: Request<$version::NodePrepareResourcesRequest>,
            ) -> Result<Response<$version::NodePrepareResourcesResponse>, Status> {
                let claims = request.into_inner().claims.into_iter().map(|it| (it.namespace, it.name, it.uid));
                let answers = self.prepare(claims.collect()).await?.into_iter();
                let answer = |answer: Result<Vec<PreparedDevice>, String>| match answer {
                    Ok(devices) => $version::NodePrepareResourceResponse {
                        devices: devices
                            .into_iter()
                            .map(|it| $version::Device {
                                request_names: it.requests,
                                pool_name: it.pool,
                                device_name: it.device,
                                cdi_device_ids: vec![it.cdi_device_id],
                                $($share_id: None,)?
                            })
                            .collect(),
                        error: String::new(),
                    },
                    Err(error) => $version::NodePrepareResourceResponse { devices: Vec::new(), error },
                };
                let claims = answers.map(|(uid, it)| (uid, answer(it))).collect();
                Ok(Response::new($version::NodePrepareResourcesResponse { claims }))
            }

            async fn node_unprepare_resources(
                &self,
                request: Request<$version::NodeUnprepareResourcesRequest>,
            ) -> Result<Response<$version::NodeUnprepareResourcesResponse>, Status> {
                let claims = request.into_inner().claims.into_iter().map(|it| (it.namespace, it.name, it.uid));
                let answers = self.unprepare(claims.collect()).await?.into_iter();
                let answer = |answer: Result<(), String>| $version::NodeUnprepareResourceResponse {
                    error: answer.err().unwrap_or_default(),
                };
                let claims = answers.map(|(uid, it)| (uid, answer(it))).collect();
                Ok(Response::new($version::NodeUnprepareResourcesResponse { claims }))
            }
        }
    };
}

serve_version!(v1, share_id);
serve_version!(v1beta1,);
