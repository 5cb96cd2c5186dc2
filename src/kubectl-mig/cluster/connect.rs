//! Connects to the API server as kubectl does.

use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use super::answer::{NOT_SERVED, UNREACHABLE, with_causes};
use super::{ClusterArgs, Unread};
use crate::yaml::yaml_problem;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the API server may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a cluster cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No usable kubeconfig.
    #[error("kubeconfig {file}{why}")]
    Kubeconfig {
        /// The file or files.
        file: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// No server answers.
    #[error(
        "cannot reach the API server {server}{}: {why}; `kubectl version` shows whether it can be reached, --context chooses another one",
        of_context(context.as_deref())
    )]
    Unreachable {
        /// Its URL.
        server: String,
        /// The context that names it.
        context: Option<String>,
        /// Why not.
        why: String,
    },
    /// The API server is too old, or the API is turned off.
    #[error("this cluster does not serve resource.k8s.io/v1: Kubernetes 1.34 or later is required")]
    NotServed,
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
    } else if why.contains("unauthorized") {
        "the API server does not accept your credentials: log in again, or choose another context with --context"
    } else {
        "`kubectl version` shows whether the API server can be reached; --context chooses another one"
    }
}

/// ` (context NAME)`.
fn of_context(context: Option<&str>) -> String {
    context.map(|it| format!(" (context {it})")).unwrap_or_default()
}

/// A client and the namespace of what is named without one.
#[derive(Clone)]
pub struct Connection {
    /// Talks to the API server.
    pub client: Client,
    /// The default namespace.
    pub namespace: String,
    /// URL of the API server; empty where only the client is known.
    server: String,
    /// The context, where a kubeconfig names the server.
    context: Option<String>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Connection {
    /// One with a client that exists.
    #[must_use]
    pub fn new(client: Client, namespace: impl Into<String>) -> Self {
        Self { client, namespace: namespace.into(), server: String::new(), context: None }
    }

    /// Connects as the flags say.
    ///
    /// # Errors
    /// [`ClusterError::Kubeconfig`] and [`ClusterError::Client`].
    pub async fn open(args: &ClusterArgs) -> Result<Self, ClusterError> {
        // The first caller installs it; later ones find it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (mut config, context) = configuration(args).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| ClusterError::Client(Box::new(error)))?;
        Ok(Self { client, namespace, server, context })
    }

    /// Why a list that nothing can be done without failed.
    pub(crate) fn failed(&self, unread: Unread) -> ClusterError {
        let Unread { resource, why } = unread;
        if let Some(why) = why.strip_prefix(UNREACHABLE) {
            let (server, context) = (self.server.clone(), self.context.clone());
            return ClusterError::Unreachable { server, context, why: why.to_owned() };
        }
        if why == NOT_SERVED { ClusterError::NotServed } else { ClusterError::List { resource, why } }
    }
}

/// The configuration, and the context that it is from.
async fn configuration(args: &ClusterArgs) -> Result<(Config, Option<String>), ClusterError> {
    let failed = |known: &[String], error: KubeconfigError| ClusterError::Kubeconfig {
        file: file(args),
        why: problem(error, known),
    };
    let loaded = match &args.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let result = match loaded {
        Ok(kubeconfig) => {
            let context = args.context.clone().or_else(|| kubeconfig.current_context.clone());
            let known: Vec<String> = kubeconfig.contexts.iter().map(|it| it.name.clone()).collect();
            let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
            config.map(|it| (it, context)).map_err(|error| failed(&known, error))
        }
        Err(error) => Err(failed(&[], error)),
    };
    match result {
        // In a pod there is no kubeconfig.
        Err(error) if args.context.is_none() && args.kubeconfig.is_none() => {
            Config::incluster().map(|it| (it, None)).map_err(|_| error)
        }
        result => result,
    }
}

/// The file or files that are read, as far as the environment says.
fn file(args: &ClusterArgs) -> String {
    if let Some(path) = &args.kubeconfig {
        return path.display().to_string();
    }
    let variable = std::env::var("KUBECONFIG").ok().filter(|it| !it.is_empty());
    variable.unwrap_or_else(|| "~/.kube/config".to_owned())
}

/// What is wrong with a kubeconfig that has these contexts, and what to do.
fn problem(error: KubeconfigError, known: &[String]) -> String {
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    match error {
        KubeconfigError::LoadContext(name) => format!(" has no context \"{name}\"; it has: {known}"),
        KubeconfigError::CurrentContextNotSet => {
            format!(" sets no current context; choose one with --context: {known}")
        }
        KubeconfigError::ReadConfig(error, _) => {
            format!(" cannot be read: {error}; name another one with --kubeconfig")
        }
        KubeconfigError::Parse(error) => format!(": {}", yaml_problem(&error)),
        error => format!(
            ": {}; name another one with --kubeconfig, or a context of it with --context",
            with_causes(&error)
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn opened(text: &str, context: Option<&str>) -> Result<Connection, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        std::fs::write(&path, text).unwrap();
        let args = ClusterArgs {
            kubeconfig: Some(path.clone()),
            context: context.map(str::to_owned),
            namespace: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let opened = runtime.block_on(Connection::open(&args));
        opened.map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
    }

    const CONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: k}}]\n\
                          clusters: [{name: k, cluster: {server: 'http://127.0.0.1:1'}}]\n";

    #[test]
    fn a_context_that_does_not_exist_is_named_with_those_that_do() {
        let error = opened(CONFIG, Some("nope")).unwrap_err();
        assert_eq!(error, "kubeconfig FILE has no context \"nope\"; it has: c");
        let error = opened(&CONFIG.replace("current-context: c\n", ""), None).unwrap_err();
        assert_eq!(error, "kubeconfig FILE sets no current context; choose one with --context: c");
    }

    #[test]
    fn a_broken_kubeconfig_is_reported_in_one_line() {
        let error = opened("apiVersion: v1\nclusters:\n\t- a\n", None).unwrap_err();
        assert!(error.starts_with("kubeconfig FILE: line 3, column "), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn a_list_that_fails_names_the_server_the_credentials_or_the_version() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connection = runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("config");
            std::fs::write(&path, CONFIG).unwrap();
            let args = ClusterArgs { kubeconfig: Some(path), ..ClusterArgs::default() };
            Connection::open(&args).await.unwrap()
        });
        let failed = |why: &str| {
            connection.failed(Unread { resource: "resourceslices", why: why.to_owned() }).to_string()
        };
        let unreachable = failed(&format!("{UNREACHABLE}connection refused"));
        assert!(
            unreachable.starts_with(
                "cannot reach the API server http://127.0.0.1:1 (context c): connection refused; "
            ),
            "{unreachable}"
        );
        assert!(failed("Unauthorized").contains("does not accept your credentials"));
        let old = "this cluster does not serve resource.k8s.io/v1: Kubernetes 1.34 or later is required";
        assert_eq!(failed(NOT_SERVED), old);
        // Port 1 is reserved, and nothing listens there.
        let read = runtime.block_on(crate::cluster::read(&connection, crate::cluster::Kinds::default()));
        let error = read.unwrap_err().to_string();
        assert!(
            error.starts_with(
                "cannot reach the API server http://127.0.0.1:1 (context c): connection refused"
            ),
            "{error}"
        );
    }
}
