//! What is known about all nodes when the reasons are put into words.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::DeviceClass;

use super::detail::Detail;
use super::fleet::NodeAnswer;
use super::profile::Published;
use crate::cluster::Demanded;

/// What is known about all nodes when the reasons are put into words.
pub(super) struct Findings<'a> {
    pub(super) classes: &'a [DeviceClass],
    /// Nodes that the pod can use.
    pub(super) usable: &'a [NodeAnswer],
    /// The others.
    pub(super) hidden: &'a [NodeAnswer],
    /// Everything that any node publishes.
    pub(super) published: &'a Published,
    pub(super) details: &'a [Detail],
    /// What MigNodes say of demand, by the name of the node.
    pub(super) demanded: &'a BTreeMap<String, Demanded>,
}
