//! How many GPUs all pods need: the smallest number of nodes for which each pod has a place, by trying.
//!
//! More nodes can, rarely, serve fewer pods, because pods are spread differently; then a smaller number than the one that is
//! found may do as well.

use k8s_openapi::api::core::v1::Node;

use super::engine::{Engine, Outcome};
use super::place::Unplaced;
use super::stock::{Site, Stock};
use super::workload::Workload;

/// Most nodes that are tried.
const MAX_NODES: usize = 4096;

/// What would serve all pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Needed {
    /// GPUs: of all nodes, or of the nodes to add.
    pub(super) gpus: usize,
    /// Nodes that have them.
    pub(super) nodes: usize,
    /// What the node is, as text for people.
    pub(super) like: String,
    /// Whether the nodes come in addition to those that there are.
    pub(super) is_additional: bool,
}

/// Why no number is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotNeeded {
    /// Pods of these workloads do not fit on an empty node, however many there are.
    Never(Vec<usize>),
    /// More than are tried.
    TooMany,
}

/// The smallest number from `low` to `high` for which `fits`, found by doubling and halving.
pub(super) fn smallest(low: usize, high: usize, mut fits: impl FnMut(usize) -> bool) -> Option<usize> {
    let (mut below, mut step) = (low, 1);
    let mut at = low;
    while !fits(at) {
        if at >= high {
            return None;
        }
        below = at + 1;
        at = (at + step).min(high);
        step *= 2;
    }
    while below < at {
        let middle = below + (at - below) / 2;
        if fits(middle) {
            at = middle;
        } else {
            below = middle + 1;
        }
    }
    Some(at)
}

/// Workloads of these of which one pod does not fit on empty nodes like these, which have nothing else to do.
fn hopeless(
    engine: &Engine<'_>,
    workloads: &[Workload],
    of: impl IntoIterator<Item = usize>,
    nodes: &[(usize, Option<&Site>)],
) -> Vec<usize> {
    let mut empty = Stock::default();
    for (kind, like) in nodes {
        add(&mut empty, *kind, *like, "empty".to_owned());
    }
    let fits_alone = |index: &usize| {
        let workload = &workloads[*index];
        let mut demand = workload.demand.clone();
        (demand.replicas, demand.per_node) = (1, false);
        let (claims, resources) = (workload.claims.clone(), workload.resources.clone());
        all_fit(engine, &empty, &[Workload { id: workload.id, demand, priority: 0, claims, resources }])
    };
    let mut never: Vec<usize> = of.into_iter().filter(|it| !fits_alone(it)).collect();
    never.sort_unstable();
    never
}

fn add(stock: &mut Stock, kind: usize, like: Option<&Site>, name: String) {
    let book = stock.new_book();
    let mut site = Site::empty(name, kind, book, like.and_then(|it| it.node.as_ref()).map(healthy));
    if let Some(like) = like {
        site.capacity = like.capacity;
    }
    stock.sites.push(site);
}

/// A node without its cordon and without the taints of its condition, such as `node.kubernetes.io/not-ready`.
fn healthy(node: &Node) -> Node {
    let mut node = node.clone();
    if let Some(spec) = &mut node.spec {
        spec.unschedulable = None;
        spec.taints.iter_mut().for_each(|it| it.retain(|it| !it.key.starts_with("node.kubernetes.io/")));
    }
    node
}

/// Whether all pods fit.
fn all_fit(engine: &Engine<'_>, stock: &Stock, workloads: &[Workload]) -> bool {
    engine.place(stock, workloads, Unplaced::Stop).fits()
}

/// The fewest GPUs of one model that serve all pods, on nodes of `sizes.len()` GPUs each and one node with the rest. The kind at
/// index `i` is a node with `i + 1` GPUs. Fewer than `low` nodes do not do.
pub(super) fn gpus(
    engine: &Engine<'_>,
    workloads: &[Workload],
    sizes: usize,
    model: &str,
    low: usize,
) -> Result<Needed, NotNeeded> {
    let never = hopeless(engine, workloads, 0..workloads.len(), &[(sizes - 1, None)]);
    if !never.is_empty() {
        return Err(NotNeeded::Never(never));
    }
    let stock_of = |gpus: usize| {
        let mut stock = Stock::default();
        for number in 1..=gpus / sizes {
            add(&mut stock, sizes - 1, None, format!("node-{number}"));
        }
        if !gpus.is_multiple_of(sizes) {
            add(&mut stock, gpus % sizes - 1, None, format!("node-{}", gpus / sizes + 1));
        }
        stock
    };
    // Whole nodes first: that is what has to be tried often.
    let fits_on_nodes = |nodes: usize| all_fit(engine, &stock_of(nodes * sizes), workloads);
    let nodes = smallest(low, MAX_NODES, fits_on_nodes).ok_or(NotNeeded::TooMany)?;
    let fewest = (nodes - 1) * sizes + 1;
    let gpus = smallest(fewest, nodes * sizes, |gpus| all_fit(engine, &stock_of(gpus), workloads));
    let gpus = gpus.unwrap_or(nodes * sizes);
    Ok(Needed { gpus, nodes: gpus.div_ceil(sizes), like: model.to_owned(), is_additional: false })
}

/// The fewest multiples of a set of empty nodes that serve all pods.
pub(super) fn multiples(
    engine: &Engine<'_>,
    workloads: &[Workload],
    kinds: &[(usize, usize)],
    like: &str,
) -> Result<Needed, NotNeeded> {
    let nodes: Vec<(usize, Option<&Site>)> = kinds.iter().map(|(kind, _)| (*kind, None)).collect();
    let never = hopeless(engine, workloads, 0..workloads.len(), &nodes);
    if !never.is_empty() {
        return Err(NotNeeded::Never(never));
    }
    let fits = |times: usize| {
        let mut stock = Stock::default();
        for number in 1..=times {
            for (kind, _) in kinds {
                add(&mut stock, *kind, None, format!("node-{kind}-{number}"));
            }
        }
        all_fit(engine, &stock, workloads)
    };
    let times = smallest(1, MAX_NODES / kinds.len().max(1), fits).ok_or(NotNeeded::TooMany)?;
    let gpus: usize = kinds.iter().map(|(_, gpus)| gpus).sum();
    let nodes = times * kinds.len();
    Ok(Needed { gpus: times * gpus, nodes, like: like.to_owned(), is_additional: false })
}

/// The fewest empty nodes like one that there is, which serve what has no place now.
pub(super) fn additional(
    engine: &Engine<'_>,
    stock: &Stock,
    workloads: &[Workload],
    outcome: &Outcome,
    like: usize,
    gpus: usize,
) -> Result<Needed, NotNeeded> {
    let site = &stock.sites[like];
    let never = hopeless(engine, workloads, outcome.reasons.keys().copied(), &[(site.kind, Some(site))]);
    if !never.is_empty() {
        return Err(NotNeeded::Never(never));
    }
    let fits = |count: usize| {
        let mut more = Stock { sites: stock.sites.clone(), books: stock.books.clone(), ..Stock::default() };
        for number in 1..=count {
            add(&mut more, site.kind, Some(site), format!("additional-{number}"));
        }
        all_fit(engine, &more, workloads)
    };
    let nodes = smallest(1, MAX_NODES, fits).ok_or(NotNeeded::TooMany)?;
    Ok(Needed { gpus: nodes * gpus, nodes, like: site.name.clone(), is_additional: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_number_is_found_with_few_tries() {
        for (low, answer) in [(1, 1), (1, 2), (1, 7), (1, 100), (5, 5), (9, 40)] {
            let mut tries = 0;
            let found = smallest(low, 4096, |it| {
                tries += 1;
                answer <= it
            });
            assert_eq!(found, Some(answer));
            assert!(tries < 20, "{tries}");
        }
        assert_eq!(smallest(1, 10, |_| false), None);
    }
}
