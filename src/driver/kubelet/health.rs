//! NodeWatchResources: the health of devices, which pods show (`allocatedResourcesStatus`), v1alpha1 and v1 from one
//! implementation.
//!
//! The kubelet takes each answer for the whole truth and forgets it after [`TIMEOUT`], so it is sent whenever it changes and
//! at least every [`RESEND`].

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::Stream;
use futures::stream::unfold;
use mig_model::health::Condition;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::pb::{health_v1 as v1, health_v1alpha1 as v1alpha1};
use crate::hardware::NodeState;

/// How long the kubelet believes an answer; what it takes where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often it gets one although nothing has changed.
const RESEND: Duration = Duration::from_secs(10);
/// Longest message that the kubelet takes, characters.
const LONGEST_MESSAGE: usize = 1024;

/// The service.
#[derive(Debug, Clone)]
pub struct DeviceHealth {
    /// The node's pool.
    pub pool: String,
    /// Its devices and their health.
    pub node: watch::Receiver<NodeState>,
    /// Ends all streams.
    pub stop: CancellationToken,
}

/// A device and how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    device: String,
    condition: Condition,
}

/// The health of every device that is offered, which those that claims hold always are.
fn lines(state: &NodeState) -> Vec<Line> {
    let line = |it: &mig_model::inventory::AllocatableDevice| {
        let device = it.name.as_str();
        Line { device: device.to_owned(), condition: state.health.device(&it.parent_uuid, device) }
    };
    state.inventory.devices().map(line).collect()
}

/// The lists that one kubelet is sent, each with the time of its making.
fn lists(service: DeviceHealth, resend: Duration) -> impl Stream<Item = Arc<Vec<Line>>> + Send {
    let begin = (service, None::<Arc<Vec<Line>>>);
    unfold(begin, move |(mut service, sent)| async move {
        let deadline = Instant::now() + resend;
        let next = loop {
            let now = lines(&service.node.borrow_and_update());
            if sent.as_ref().is_none_or(|it| **it != now) {
                break Arc::new(now);
            }
            let changed = tokio::select! {
                () = service.stop.cancelled() => return None,
                changed = timeout_at(deadline, service.node.changed()) => changed,
            };
            match changed {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => break Arc::new(now),
            }
        };
        if service.stop.is_cancelled() {
            return None;
        }
        Some((Arc::clone(&next), (service, Some(next))))
    })
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn message(condition: &Condition) -> String {
    match condition {
        Condition::Healthy => String::new(),
        condition => condition.text().chars().take(LONGEST_MESSAGE).collect(),
    }
}

/// The two versions have the same messages.
macro_rules! serve_version {
    ($version:ident) => {
        #[tonic::async_trait]
        impl $version::dra_resource_health_server::DraResourceHealth for DeviceHealth {
            type NodeWatchResourcesStream = Pin<
                Box<dyn Stream<Item = Result<$version::NodeWatchResourcesResponse, Status>> + Send + 'static>,
            >;

            async fn node_watch_resources(
                &self,
                _: Request<$version::NodeWatchResourcesRequest>,
            ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
                let pool = self.pool.clone();
                let answer = move |lines: Arc<Vec<Line>>| {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    let device = |line: &Line| {
                        let health = match &line.condition {
                            Condition::Healthy => $version::HealthStatus::Healthy,
                            Condition::Unmonitored { .. } => $version::HealthStatus::Unknown,
                            Condition::Unhealthy(_) | Condition::Lost { .. } => {
                                $version::HealthStatus::Unhealthy
                            }
                        };
                        $version::DeviceHealth {
                            device: Some($version::DeviceIdentifier {
                                pool_name: pool.clone(),
                                device_name: line.device.clone(),
                            }),
                            health: health.into(),
                            last_updated_time: seconds(now),
                            health_check_timeout_seconds: seconds(TIMEOUT),
                            message: message(&line.condition),
                        }
                    };
                    Ok($version::NodeWatchResourcesResponse { devices: lines.iter().map(device).collect() })
                };
                let lists = lists(self.clone(), RESEND);
                Ok(Response::new(Box::pin(futures::StreamExt::map(lists, answer))))
            }
        }
    };
}

serve_version!(v1);
serve_version!(v1alpha1);

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_list_comes_again_although_nothing_changes_and_ends_with_the_driver() {
        let (_sender, node) = watch::channel(NodeState::without("none"));
        let stop = CancellationToken::new();
        let service = DeviceHealth { pool: "pool".to_owned(), node, stop: stop.clone() };
        let mut lists = pin!(lists(service, Duration::from_millis(1)));
        assert!(lists.next().await.is_some());
        assert!(lists.next().await.is_some(), "sent again");
        stop.cancel();
        assert!(lists.next().await.is_none());
    }

    #[tokio::test]
    async fn a_list_ends_when_no_sender_of_the_state_is_left() {
        let (sender, node) = watch::channel(NodeState::without("none"));
        let service = DeviceHealth { pool: "pool".to_owned(), node, stop: CancellationToken::new() };
        let mut lists = pin!(lists(service, Duration::from_secs(3600)));
        assert!(lists.next().await.is_some());
        drop(sender);
        assert!(lists.next().await.is_none());
    }
}
