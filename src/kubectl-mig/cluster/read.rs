//! Reads the objects of a cluster, in pages.

use std::collections::BTreeMap;
use std::fmt::Debug;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceSlice;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use mig_model::mig_node::MigNode;
use serde::de::DeserializeOwned;

use super::answer::{NOT_SERVED, text};
use super::{ClusterError, Connection, Demanded, Slices, Snapshot, Unread};
use crate::gpu;

/// Objects per page. kubectl's number.
const PAGE: u32 = 500;

/// ResourceSlices per page: one has up to 100 kB.
const SLICES_PER_PAGE: u32 = 100;

/// MigNodes per page: one of eight GPUs has 35 kB.
const MIG_NODES_PER_PAGE: u32 = 100;

/// Which kinds to read beside ResourceSlices, DeviceClasses and ResourceClaims.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kinds {
    /// Nodes.
    pub nodes: bool,
    /// Pods.
    pub pods: bool,
    /// ResourceClaimTemplates.
    pub templates: bool,
    /// ResourceQuotas.
    pub quotas: bool,
    /// MigNodes, where their kind is installed.
    pub mig_nodes: bool,
    /// All attributes and capacities of devices: selectors may need any. Without, those by which GPUs are described.
    pub attributes: bool,
}

/// Reads a cluster. What the user may not read, apart from slices, classes and claims, is noted in [`Snapshot::unread`].
///
/// # Errors
/// [`ClusterError::List`].
pub async fn read(connection: &Connection, kinds: Kinds) -> Result<Snapshot, ClusterError> {
    let client = &connection.client;
    let (slices, classes, claims, nodes, pods, templates, quotas, mig_nodes, version) = tokio::join!(
        read_slices(client, kinds.attributes),
        list("deviceclasses", true, client),
        list("resourceclaims", true, client),
        list("nodes", kinds.nodes, client),
        list("pods", kinds.pods, client),
        list("resourceclaimtemplates", kinds.templates, client),
        list("resourcequotas", kinds.quotas, client),
        list_mig_nodes(kinds.mig_nodes, client),
        version(client),
    );
    let required = |unread: Unread| connection.failed(unread);
    let mut snapshot = Snapshot {
        slices: slices.map_err(required)?,
        classes: classes.map_err(required)?,
        claims: claims.map_err(required)?,
        version,
        ..Snapshot::default()
    };
    let unread = &mut snapshot.unread;
    snapshot.nodes = optional(nodes, unread);
    snapshot.pods = optional(pods, unread);
    snapshot.templates = optional(templates, unread);
    snapshot.quotas = optional(quotas, unread);
    snapshot.demanded = with_labels(optional(mig_nodes, unread), &snapshot.nodes);
    Ok(snapshot)
}

fn optional<K>(result: Result<Vec<K>, Unread>, unread: &mut Vec<Unread>) -> Vec<K> {
    result.unwrap_or_else(|error| {
        unread.push(error);
        Vec::new()
    })
}

async fn read_slices(client: &Client, with_attributes: bool) -> Result<Slices, Unread> {
    let mut slices = Slices::default();
    let params = ListParams::default().limit(SLICES_PER_PAGE);
    let take = |mut slice: ResourceSlice| {
        if !with_attributes {
            gpu::trim(&mut slice);
        }
        slices.push(&slice);
    };
    // Boxed, as the one below: several of them are in one future.
    Box::pin(pages("resourceslices", Api::all(client.clone()), params, take)).await?;
    Ok(slices)
}

async fn list<K>(resource: &'static str, wanted: bool, client: &Client) -> Result<Vec<K>, Unread>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut all = Vec::new();
    if wanted {
        let pages = pages(resource, Api::all(client.clone()), ListParams::default(), |it| all.push(it));
        Box::pin(pages).await?;
    }
    Ok(all)
}

/// What MigNodes say, by node. This command cannot see how the controller runs: nodes without the label count as ones that follow demand
/// where something is demanded of any of them.
fn with_labels(listed: Vec<(String, Demanded, bool)>, nodes: &[Node]) -> BTreeMap<String, Demanded> {
    let by_name: BTreeMap<&str, &Node> =
        nodes.iter().filter_map(|it| Some((it.metadata.name.as_deref()?, it))).collect();
    let is_auto = |(name, demanded, is_demanded): &(String, Demanded, bool)| {
        let is_asked_for = *is_demanded || !demanded.holds.is_empty();
        is_asked_for && by_name.get(name.as_str()).is_some_and(|it| Demanded::label_of(it).is_none())
    };
    let default_auto = listed.iter().any(is_auto);
    let now = Timestamp::now();
    let of = |(name, mut demanded, _): (String, Demanded, bool)| {
        demanded.with_label_of(by_name.get(name.as_str()).copied(), default_auto);
        demanded.end_holds(now);
        (name, demanded)
    };
    listed.into_iter().map(of).collect()
}

/// What each MigNode says, and whether it demands anything; none where the API server does not know the kind.
async fn list_mig_nodes(wanted: bool, client: &Client) -> Result<Vec<(String, Demanded, bool)>, Unread> {
    let mut all = Vec::new();
    if !wanted {
        return Ok(all);
    }
    let params = ListParams::default().limit(MIG_NODES_PER_PAGE);
    let take = |it: MigNode| {
        let is_demanded = it.spec.demand.is_some();
        all.push((it.node().to_owned(), Demanded::whatever_the_label(&it), is_demanded));
    };
    match Box::pin(pages("mignodes", Api::all(client.clone()), params, take)).await {
        Err(unread) if unread.why == NOT_SERVED => Ok(Vec::new()),
        done => done.map(|()| all),
    }
}

/// Calls `take` with each object, without its managed fields.
pub(crate) async fn pages<K>(
    resource: &'static str,
    api: Api<K>,
    mut params: ListParams,
    mut take: impl FnMut(K),
) -> Result<(), Unread>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    params.limit.get_or_insert(PAGE);
    loop {
        let page = api.list(&params).await.map_err(|error| Unread { resource, why: text(&error) })?;
        for mut object in page.items {
            object.managed_fields_mut().clear();
            take(object);
        }
        match page.metadata.continue_ {
            Some(next) if !next.is_empty() => params.continue_token = Some(next),
            _ => return Ok(()),
        }
    }
}

async fn version(client: &Client) -> Option<(u32, u32)> {
    let info = client.apiserver_version().await.ok()?;
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok();
    Some((number(&info.major)?, number(&info.minor)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_without_the_label_follow_demand_where_something_is_demanded_of_one_of_them() {
        let node = |name: &str, label: Option<&str>| {
            let mut node = Node::default();
            node.metadata.name = Some(name.to_owned());
            let labels =
                label.map(|it| BTreeMap::from([("nvidia.com/mig.config".to_owned(), it.to_owned())]));
            node.metadata.labels = labels;
            node
        };
        let nodes =
            [node("a", None), node("b", None), node("auto", Some("auto")), node("own", Some("all-disabled"))];
        let follow = |demanded: &[&str]| {
            let all = nodes.iter().filter_map(|it| it.metadata.name.clone());
            let listed = all.map(|it| {
                let is_demanded = demanded.contains(&it.as_str());
                (it, Demanded { follows: true, ..Demanded::default() }, is_demanded)
            });
            let said = with_labels(listed.collect(), &nodes);
            said.into_iter().filter(|(_, it)| it.follows).map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(follow(&[]), ["auto"]);
        assert_eq!(follow(&["auto"]), ["auto"]);
        assert_eq!(follow(&["b"]), ["a", "auto", "b"]);
    }
}
