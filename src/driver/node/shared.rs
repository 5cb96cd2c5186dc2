//! What several parts of the driver are made of, and the channels between them.

use std::sync::Arc;

use kube::Client;
use mig_model::mig_node::Followed;
use mig_model::slices::{Publication, pool_name};
use tokio::sync::{mpsc, watch};

use super::NodeArgs;
use crate::api::{self, Events, OwnMigNode};
use crate::cdi::{ClaimFiles, CommonSource, Kind};
use crate::checkpoint::Checkpoint;
use crate::context::NodeContext;
use crate::hardware::NodeState;
use crate::health::{HealthStore, HungCalls};
use crate::host;
use crate::kubelet::RegistrationState;
use crate::nvml::NvmlEvent;
use crate::pods::Pods;
use crate::probes::Health;
use crate::readiness::HostReadiness;
use crate::telemetry::metrics::Metrics;
use crate::usage::Seen;

/// Directory of the metadata of devices, in the driver's own.
const METADATA: &str = "dra-device-metadata";
/// Capacity of the queue of GPU events; the kernel log keeps more.
const MOST_NVML_EVENTS: usize = 64;

/// What several parts are made of.
pub(super) struct Shared {
    pub(super) context: NodeContext,
    pub(super) client: Client,
    pub(super) kind: Kind,
    pub(super) cdi: ClaimFiles,
    pub(super) store: HealthStore,
    pub(super) readiness: Arc<HostReadiness>,
    pub(super) seen: Arc<Seen>,
    pub(super) changes: watch::Receiver<()>,
    pub(super) publication: watch::Receiver<Publication>,
    pub(super) registration: watch::Receiver<RegistrationState>,
    pub(super) hung_calls: watch::Receiver<HungCalls>,
    /// What the API server has of this node's MigNode.
    pub(super) own_mig_node: watch::Receiver<OwnMigNode>,
    /// What became of its spec.
    pub(super) followed: watch::Receiver<Option<Followed>>,
    /// Whether a driver was on this node before this process: each has left its directory, whatever the GPUs and the mode.
    pub(super) has_past: bool,
}

/// The other ends of the channels, each for one part.
pub(super) struct Senders {
    pub(super) state: watch::Sender<NodeState>,
    pub(super) nvml_events: mpsc::Sender<NvmlEvent>,
    pub(super) nvml_event_receiver: mpsc::Receiver<NvmlEvent>,
    pub(super) changed: watch::Sender<()>,
    pub(super) publication: watch::Sender<Publication>,
    pub(super) registration: watch::Sender<RegistrationState>,
    pub(super) hung: watch::Sender<HungCalls>,
    pub(super) own_mig_node: watch::Sender<OwnMigNode>,
    pub(super) followed: watch::Sender<Option<Followed>>,
}

impl Shared {
    pub(super) async fn new(args: &NodeArgs) -> anyhow::Result<(Self, Senders)> {
        let (name, driver) = (args.node_name.clone(), args.driver.driver_name.clone());
        let metrics = Metrics::default();
        let kind = Kind::of_driver(&driver)?;
        let client = api::counted(api::client(args.kubeconfig.as_deref()).await?, &metrics);
        let boot_id = host::boot_id(&args.hardware.proc_root)?;
        let directory = args.driver.claims_directory();
        let has_past = directory.exists();
        let checkpoint = Checkpoint::open(&directory)?;
        let metadata = args.driver.plugin_directory().join(METADATA);
        let cdi = ClaimFiles::open(&args.host.cdi_root, metadata, kind.clone())?;
        let health_file = args.driver.plugin_directory().join("health.json");
        let store = HealthStore::new(health_file, &boot_id, args.ignore_xids.clone());
        let unknown = NodeState::without("NVML was not opened yet");
        let (state, node) = watch::channel(NodeState { health: store.report(), ..unknown });
        let (changed, changes) = watch::channel(());
        let (nvml_events, nvml_event_receiver) = mpsc::channel(MOST_NVML_EVENTS);
        let pending = Publication::Pending { reason: "not published yet".to_owned() };
        let (publication_sender, publication) = watch::channel(pending);
        let (registration_sender, registration) = watch::channel(RegistrationState::Waiting);
        let (hung, hung_calls) = watch::channel(HungCalls::new());
        let (own_sender, own_mig_node) = watch::channel(OwnMigNode::default());
        let (followed_sender, followed) = watch::channel(None);
        let common = CommonSource::new(args.host.driver_root(&args.hardware), args.host.common_edits.clone());
        let (proc_root, cdi_root) = (args.hardware.proc_root.clone(), args.host.cdi_root.clone());
        let readiness = Arc::new(HostReadiness::new(common, proc_root, cdi_root, directory));
        let context = NodeContext {
            pool: pool_name(&name, &driver),
            events: Events::new(client.clone(), &name, &driver),
            name,
            driver,
            boot_id,
            node,
            checkpoint,
            metrics,
            pods: Pods::default(),
            rescan: Arc::default(),
        };
        let seen = Arc::default();
        let shared = Self {
            context,
            client,
            kind,
            cdi,
            store,
            readiness,
            seen,
            changes,
            publication,
            registration,
            hung_calls,
            own_mig_node,
            followed,
            has_past,
        };
        let senders = Senders {
            state,
            nvml_events,
            nvml_event_receiver,
            changed,
            publication: publication_sender,
            registration: registration_sender,
            hung,
            own_mig_node: own_sender,
            followed: followed_sender,
        };
        Ok((shared, senders))
    }

    pub(super) fn health(&self) -> Health {
        Health {
            registration: self.registration.clone(),
            publication: self.publication.clone(),
            node: self.context.node.clone(),
            hung_calls: self.hung_calls.clone(),
        }
    }
}
