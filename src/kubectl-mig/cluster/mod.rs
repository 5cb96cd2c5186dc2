//! What a cluster holds, as far as this program needs it: read from the API server ([`read`](read::read)) or from files.
//!
//! A thousand nodes publish 250 MB of ResourceSlices. [`Slices`] keeps them as text, of which equal parts are kept once, and parses
//! those of one node at a time.

mod args;
mod connect;
mod gates;
mod pieces;
mod read;
mod rules;
mod slices;

pub use self::args::ClusterArgs;
pub use self::connect::{ClusterError, Connection};
pub use self::gates::Gates;
pub use self::read::{Kinds, read};
pub(crate) use self::read::{pages, text as error_text};
pub(crate) use self::rules::{Rule, cordon_toleration, rules};
pub use self::slices::{SliceError, Slices};

use k8s_openapi::api::core::v1::{Event, Node, Pod, ResourceQuota};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate};

/// The objects of a cluster at one time.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// All nodes.
    pub nodes: Vec<Node>,
    /// All DeviceClasses.
    pub classes: Vec<DeviceClass>,
    /// The ResourceSlices of all drivers.
    pub slices: Slices,
    /// The ResourceClaims of all namespaces.
    pub claims: Vec<ResourceClaim>,
    /// The ResourceClaimTemplates of all namespaces.
    pub templates: Vec<ResourceClaimTemplate>,
    /// The pods of all namespaces.
    pub pods: Vec<Pod>,
    /// The ResourceQuotas of all namespaces.
    pub quotas: Vec<ResourceQuota>,
    /// Events, as far as they were asked for.
    pub events: Vec<Event>,
    /// Version of the API server, for example `(1, 35)`; `None` where the objects come from files.
    pub version: Option<(u32, u32)>,
    /// Feature gates, where they are known. An API server does not say them; the engine then goes by what it stores.
    pub gates: Option<Gates>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

/// A kind of objects that could not be read, for example because the user may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Plural of the kind, as RBAC has it: `resourcequotas`.
    pub resource: &'static str,
    /// What the API server said.
    pub why: String,
}

impl Snapshot {
    /// Why a kind could not be read; `None` where it was, or was not asked for.
    #[must_use]
    pub fn unread(&self, resource: &str) -> Option<&Unread> {
        self.unread.iter().find(|it| it.resource == resource)
    }
}
