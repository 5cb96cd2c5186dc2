//! Registration: the kubelet asks for the plugin's information and reports whether it registered the plugin.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use tracing::{error, info};

use super::pb::registration::registration_server::Registration as Service;
use super::pb::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// Services that the plugin socket offers, as the kubelet names them; of each kind it takes the first one that it knows
/// (pkg/kubelet/cm/dra/plugin/dra_plugin_manager.go).
pub const SUPPORTED_VERSIONS: [&str; 4] =
    ["v1.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth"];

/// How long after its last question the kubelet may report whether it registered the plugin. It gives up after 5 s, and never reports
/// again (pkg/kubelet/pluginmanager/operationexecutor), although it may have registered the plugin. Where the answer to its question
/// came too late for it, it asks again after at most 2 minutes and 2 seconds.
const LONGEST_REPORT: Duration = Duration::from_secs(150);

/// How the registration stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistrationState {
    /// The kubelet has not asked yet.
    Waiting,
    /// The kubelet has asked what the plugin is, and has not reported yet whether it registered it.
    Asked,
    /// The kubelet registered the plugin.
    Registered,
    /// The kubelet rejected it, and does not retry until the socket is recreated.
    Refused(String),
}

/// The registration socket has to be recreated, as the next start of the driver does: until then the kubelet does not register the
/// plugin, or does not report it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// The kubelet rejected the plugin.
    #[error("{0}")]
    Refused(String),
    /// The report was lost, for example on a node without CPU time.
    #[error(
        "the kubelet asked what this plugin is, and did not report within {} s whether it registered it; it does not report again. The driver \
         ends, and the kubelet asks again when the driver is started again",
        LONGEST_REPORT.as_secs()
    )]
    NotReported,
}

/// Ends where the registration has failed.
///
/// # Errors
/// [`RegistrationError`].
pub async fn watch_registration(state: watch::Receiver<RegistrationState>) -> Result<(), RegistrationError> {
    reported_within(LONGEST_REPORT, state).await
}

async fn reported_within(
    longest: Duration,
    mut state: watch::Receiver<RegistrationState>,
) -> Result<(), RegistrationError> {
    loop {
        let current = state.borrow_and_update().clone();
        let changed = match current {
            RegistrationState::Refused(reason) => return Err(RegistrationError::Refused(reason)),
            RegistrationState::Waiting | RegistrationState::Registered => state.changed().await,
            RegistrationState::Asked => {
                timeout(longest, state.changed()).await.map_err(|_| RegistrationError::NotReported)?
            }
        };
        if changed.is_err() {
            // The socket is not served any more.
            return Ok(());
        }
    }
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
        // A kubelet that was restarted asks again; the plugin was registered, and remains so.
        self.state.send_if_modified(|it| {
            let is_open = matches!(it, RegistrationState::Waiting | RegistrationState::Asked);
            if is_open {
                *it = RegistrationState::Asked;
            }
            is_open
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn registration() -> (Registration, watch::Receiver<RegistrationState>) {
        let (sender, state) = watch::channel(RegistrationState::Waiting);
        (Registration::new("mig.dra-driver.dev", PathBuf::from("/plugins/dra.sock"), sender), state)
    }

    async fn ask(registration: &Registration) {
        registration.get_info(Request::new(InfoRequest {})).await.unwrap();
    }

    async fn report(registration: &Registration, plugin_registered: bool) {
        let error = if plugin_registered { String::new() } else { "name taken".to_owned() };
        let status = RegistrationStatus { plugin_registered, error };
        registration.notify_registration_status(Request::new(status)).await.unwrap();
    }

    #[tokio::test]
    async fn a_report_that_never_comes_ends_the_wait() {
        let (registration, state) = registration();
        ask(&registration).await;
        let ended = reported_within(Duration::from_millis(1), state).await;
        assert_eq!(ended, Err(RegistrationError::NotReported));
    }

    #[tokio::test]
    async fn the_wait_begins_with_the_first_question_and_again_with_each() {
        let (registration, mut state) = registration();
        for _ in 0..2 {
            ask(&registration).await;
            assert!(state.has_changed().unwrap());
            assert_eq!(*state.borrow_and_update(), RegistrationState::Asked);
        }
        let (registration, state) = self::registration();
        drop(registration);
        assert_eq!(reported_within(Duration::ZERO, state).await, Ok(()));
    }

    #[tokio::test]
    async fn a_registered_plugin_stays_registered_when_a_new_kubelet_asks_and_reports_nothing() {
        let (registration, state) = registration();
        ask(&registration).await;
        report(&registration, true).await;
        ask(&registration).await;
        assert_eq!(*state.borrow(), RegistrationState::Registered);
        drop(registration);
        assert_eq!(reported_within(Duration::ZERO, state).await, Ok(()));
    }

    #[tokio::test]
    async fn a_refusal_ends_at_once_with_the_kubelets_reason() {
        let (registration, state) = registration();
        ask(&registration).await;
        report(&registration, false).await;
        assert_eq!(watch_registration(state).await, Err(RegistrationError::Refused("name taken".to_owned())));
    }
}
