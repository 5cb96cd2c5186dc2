//! What is known about all nodes when the reasons are put into words.

use k8s_openapi::api::resource::v1::DeviceClass;

use super::detail::Detail;
use super::fleet::NodeAnswer;
use super::profile::Published;

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
}
