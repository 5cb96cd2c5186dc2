//! Connects to the API server as kubectl does.

use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use super::ClusterArgs;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the API server may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a cluster cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No usable kubeconfig.
    #[error("cannot load the kubeconfig: {0}; name one with --kubeconfig, or a context of it with --context")]
    Kubeconfig(#[source] Box<KubeconfigError>),
    /// The configuration cannot be used.
    #[error("cannot use the kubeconfig: {0}")]
    Client(#[source] Box<kube::Error>),
    /// A list that nothing can be done without failed.
    #[error("cannot list {resource}: {why}; {}", advice(why))]
    List {
        /// Plural of the kind.
        resource: &'static str,
        /// What the API server said.
        why: String,
    },
}

/// What to do when the API server, or no server, has answered so.
fn advice(why: &str) -> &'static str {
    let why = why.to_lowercase();
    if why.contains("forbidden") {
        "the ClusterRole `mig-reader` (docs/kubectl-mig.md) grants what `kubectl mig` reads"
    } else if why.contains("404") || why.contains("could not find the requested resource") {
        "the API resource.k8s.io/v1 is in Kubernetes 1.34 and later"
    } else if why.contains("unauthorized") {
        "log in again, or choose another context with --context"
    } else {
        "`kubectl version` shows whether the API server can be reached; --context chooses another one"
    }
}

/// A client and the namespace of what is named without one.
#[derive(Clone)]
pub struct Connection {
    /// Talks to the API server.
    pub client: Client,
    /// The default namespace.
    pub namespace: String,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects as the flags say.
    ///
    /// # Errors
    /// [`ClusterError::Kubeconfig`] and [`ClusterError::Client`].
    pub async fn open(args: &ClusterArgs) -> Result<Self, ClusterError> {
        // The first caller installs it; later ones find it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config =
            Self::config(args).await.map_err(|error| ClusterError::Kubeconfig(Box::new(error)))?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| ClusterError::Client(Box::new(error)))?;
        Ok(Self { client, namespace })
    }

    async fn config(args: &ClusterArgs) -> Result<Config, KubeconfigError> {
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        if let Some(path) = &args.kubeconfig {
            return Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await;
        }
        match Config::from_kubeconfig(&options).await {
            // In a pod there is no kubeconfig.
            Err(error) if args.context.is_none() => Config::incluster().map_err(|_| error),
            result => result,
        }
    }
}
