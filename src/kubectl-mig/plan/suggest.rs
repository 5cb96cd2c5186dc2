//! `--suggest layout`: a layout file for these pods on clusters without counters.
//!
//! Several ways of cutting the GPUs are tried by placing the pods on them, and the first one is taken with which the workloads have
//! the largest share of their pods placed, on average: as the pods would cut the GPUs where there are counters, in the order of the
//! manifests and with the largest first; one, two or three of the largest profile on each GPU with smaller ones beside them; and as
//! many instances on each GPU as possible. What they leave free is cut into more of the same.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use dra_allocator::Cluster;
use mig_model::drivers;
use mig_model::facts::Profile;
use mig_model::inventory::DeviceName;
use mig_model::layout::{self, GpuLayout, Layouts};
use mig_models::Model;

use super::engine::{Engine, Outcome};
use super::map::{MappedGpu, map};
use super::place::Unplaced;
use super::stock::{Kind, Site, Stock, named};
use super::workload::Workload;
use super::{NODE, PlanError, Request, with_any};
use crate::cluster::Gates;
use crate::template::{NodeTemplate, TemplateArgs};
use crate::text::count as number_of;
use crate::text::printable;

/// What a whole GPU is called among profiles.
const WHOLE: &str = "full";

/// Most instances of the largest profile that are tried beside smaller ones. A GPU has room for at most three that are not the smallest.
const MAX_LARGE: u32 = 3;

/// Profiles with counts.
type Cut = BTreeMap<String, u32>;

/// A node of the plan: which of `--gpus` it is, and how each of its GPUs is cut; `None` is whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct CutNode {
    shape: usize,
    cut: Vec<Option<Cut>>,
}

/// The file, and whether all pods fit.
pub(super) fn layout(request: &Request<'_>) -> Result<(String, bool), PlanError> {
    let mut best: Option<(Vec<CutNode>, Outcome)> = None;
    for nodes in candidates(request)? {
        let outcome = on_layouts(request, &nodes);
        let workloads = request.workloads.len();
        if best.as_ref().is_none_or(|(_, most)| share(most, workloads) < share(&outcome, workloads)) {
            best = Some((nodes, outcome));
        }
    }
    // There are always candidates.
    Ok(best.map_or_else(
        || (String::new(), true),
        |(nodes, outcome)| (text(request, &nodes, &outcome), outcome.fits()),
    ))
}

/// The share of the pods that have a place, by workload, added up.
fn share(outcome: &Outcome, workloads: usize) -> f64 {
    let of = |index: usize| {
        let (mut all, mut placed) = (0_u32, 0_u32);
        for planned in outcome.pods.iter().filter(|it| it.workload == index) {
            all += 1;
            placed += u32::from(planned.place.is_some());
        }
        f64::from(placed) / f64::from(all.max(1))
    };
    (0..workloads).map(of).sum()
}

/// Ways of cutting the GPUs of all nodes.
fn candidates(request: &Request<'_>) -> Result<Vec<Vec<CutNode>>, PlanError> {
    let counted = TemplateArgs { layout: None, layouts: None, ..request.args.template.clone() };
    let mut kinds = Vec::new();
    let mut profiles = Vec::new();
    for gpus in &request.args.gpus {
        let template = NodeTemplate::new(&gpus.models, &counted, true)?;
        kinds.push(Kind { slices: template.slices(drivers::DEFAULT, NODE, None), node: named(NODE) });
        let of = |gpu: &mig_model::inventory::Gpu| {
            gpu.facts.cuttable().map(|it| it.profiles.clone()).unwrap_or_default()
        };
        profiles.push(template.gpus.iter().map(of).collect::<Vec<Vec<Profile>>>());
    }
    let classes = with_any(request.classes);
    let engine = engine(request, &kinds, &classes, Gates::ALL);
    let stock = &request.source.stock;

    // What one pod of each workload takes of an empty node.
    let mut wanted: Vec<(usize, Vec<String>)> = Vec::new();
    for workload in request.workloads {
        let mut one = workload.clone();
        (one.demand.replicas, one.demand.per_node) = (1, false);
        let one = [one];
        let outcome = engine.place(stock, &one, Unplaced::Skip);
        let gpus = map(&engine, &outcome, &one);
        let instances = gpus.iter().flat_map(|it| &it.instances);
        wanted.push((
            instances.clone().map(|it| it.cells).sum(),
            instances.map(|it| it.profile.clone()).collect(),
        ));
    }
    let mix: BTreeSet<&str> = wanted.iter().flat_map(|it| &it.1).map(String::as_str).collect();

    let mut found = Vec::new();
    let mut by_size: Vec<(usize, Workload)> =
        wanted.iter().map(|it| it.0).zip(request.workloads.iter().cloned()).collect();
    by_size.sort_by_key(|(cells, _)| Reverse(*cells));
    let by_size: Vec<Workload> = by_size.into_iter().map(|it| it.1).collect();
    for workloads in [request.workloads, &by_size] {
        let outcome = engine.place(stock, workloads, Unplaced::Skip);
        let gpus = map(&engine, &outcome, workloads);
        let cuts = stock.sites.iter().map(|site| {
            let of_site = gpus.iter().filter(|it| it.node == site.name);
            let cut = of_site.zip(&profiles[site.kind]).map(|(gpu, profiles)| cut_of(gpu, profiles, &mix));
            CutNode { shape: site.kind, cut: cut.collect() }
        });
        found.push(cuts.collect());
    }
    let mut left: Cut = Cut::new();
    for ((_, each), workload) in wanted.iter().zip(request.workloads) {
        let pods = u32::try_from(workload.demand.replicas).unwrap_or(u32::MAX);
        each.iter().for_each(|it| *left.entry(it.clone()).or_default() += pods);
    }
    for most in 1..=MAX_LARGE {
        let mut left = left.clone();
        let mixed = stock.sites.iter().map(|site| {
            let cut = profiles[site.kind].iter().map(|profiles| mixed(profiles, &mut left, most, &mix));
            CutNode { shape: site.kind, cut: cut.collect() }
        });
        found.push(mixed.collect());
    }
    let most = stock.sites.iter().map(|site| {
        let cut = profiles[site.kind].iter().map(|profiles| most_of(profiles, &mut left, &mix));
        CutNode { shape: site.kind, cut: cut.collect() }
    });
    found.push(most.collect());
    Ok(found)
}

/// The cut that allocated devices make of a GPU, and what is free into more of the mix.
fn cut_of(gpu: &MappedGpu, profiles: &[Profile], mix: &BTreeSet<&str>) -> Option<Cut> {
    if gpu.instances.iter().any(|it| it.profile == WHOLE) {
        return None;
    }
    let mut cut = Cut::new();
    gpu.instances.iter().for_each(|it| *cut.entry(it.profile.clone()).or_default() += 1);
    filled(cut, profiles, mix)
}

/// As many of what is left to serve as the GPU has room for.
fn most_of(profiles: &[Profile], left: &mut Cut, mix: &BTreeSet<&str>) -> Option<Cut> {
    if let Some(whole) = left.get_mut(WHOLE).filter(|it| 0 < **it) {
        *whole -= 1;
        return None;
    }
    let cut = layout::possible(profiles, left);
    for (profile, count) in &cut {
        left.entry(profile.clone()).and_modify(|it| *it = it.saturating_sub(*count));
    }
    filled(cut, profiles, mix)
}

/// At most so many instances of the largest profile that is left to serve, and smaller ones beside them.
fn mixed(profiles: &[Profile], left: &mut Cut, most: u32, mix: &BTreeSet<&str>) -> Option<Cut> {
    if let Some(whole) = left.get_mut(WHOLE).filter(|it| 0 < **it) {
        *whole -= 1;
        return None;
    }
    let is_left = |left: &Cut, it: &Profile| left.get(it.name.as_str()).is_some_and(|it| 0 < *it);
    let asked = by_size(profiles, |it| is_left(left, it));
    let mut cut = Cut::new();
    if let Some((large, smaller)) = asked.split_first() {
        let wanted = left.get(large.name.as_str()).copied().unwrap_or(0).min(most);
        cut = layout::possible(profiles, &Cut::from([(large.name.clone(), wanted)]));
        cut = grown(cut, profiles, smaller, |name, count| left.get(name).is_some_and(|it| count <= *it));
    }
    for (profile, count) in &cut {
        left.entry(profile.clone()).and_modify(|it| *it = it.saturating_sub(*count));
    }
    filled(cut, profiles, mix)
}

/// A cut with more of the mix, the larger ones first, as long as there is room; `None` where that is nothing.
fn filled(cut: Cut, profiles: &[Profile], mix: &BTreeSet<&str>) -> Option<Cut> {
    let more = by_size(profiles, |it| mix.contains(it.name.as_str()));
    Some(grown(cut, profiles, &more, |_, _| true)).filter(|it| !it.is_empty())
}

/// Some of the profiles, the largest first.
fn by_size(profiles: &[Profile], is_wanted: impl Fn(&Profile) -> bool) -> Vec<&Profile> {
    let mut wanted: Vec<&Profile> = profiles.iter().filter(|it| is_wanted(it)).collect();
    wanted.sort_by_key(|it| Reverse((it.placements.first().map_or(0, |it| it.size), it.slices)));
    wanted
}

/// A cut with one more of each profile, again and again, as long as there is room and the number of them is allowed.
fn grown(
    mut cut: Cut,
    profiles: &[Profile],
    more: &[&Profile],
    is_allowed: impl Fn(&str, u32) -> bool,
) -> Cut {
    let mut has_grown = true;
    while has_grown {
        has_grown = false;
        for profile in more {
            let mut larger = cut.clone();
            let count = larger.entry(profile.name.clone()).or_default();
            *count += 1;
            if is_allowed(&profile.name, *count) && layout::possible(profiles, &larger) == larger {
                (cut, has_grown) = (larger, true);
            }
        }
    }
    cut
}

fn engine<'e>(
    request: &'e Request<'_>,
    kinds: &'e [Kind],
    classes: &'e [k8s_openapi::api::resource::v1::DeviceClass],
    gates: Gates,
) -> Engine<'e> {
    let clusters = kinds.iter().map(|kind| Cluster::new(&kind.slices, classes, gates.features)).collect();
    Engine::new(kinds, clusters, request.catalog, gates, request.args.scoring)
}

fn models<'r>(request: &'r Request<'_>, shape: usize) -> &'r [Model] {
    request.args.gpus.get(shape).map_or(&[], |it| &it.models)
}

/// Places the pods on nodes with these layouts, as a stock cluster does.
fn on_layouts(request: &Request<'_>, nodes: &[CutNode]) -> Outcome {
    let distinct: BTreeSet<&CutNode> = nodes.iter().collect();
    let kinds: Vec<Kind> = distinct
        .iter()
        .map(|node| {
            let models = models(request, node.shape);
            let facts = NodeTemplate::with_layouts(models, &request.args.template, &Layouts::new());
            let one = |(gpu, cut): (&mig_model::inventory::Gpu, &Option<Cut>)| {
                let layout = cut.clone().map_or(GpuLayout::Whole, GpuLayout::Cut);
                (DeviceName::gpu(gpu.facts.pci).to_string(), layout)
            };
            let layouts: Layouts = facts.gpus.iter().zip(&node.cut).map(one).collect();
            let template = NodeTemplate::with_layouts(models, &request.args.template, &layouts);
            Kind { slices: template.slices(drivers::DEFAULT, NODE, None), node: named(NODE) }
        })
        .collect();
    let mut stock = Stock::default();
    for (node, site) in nodes.iter().zip(&request.source.stock.sites) {
        let kind = distinct.iter().position(|it| *it == node).unwrap_or(0);
        let book = stock.new_book();
        stock.sites.push(Site::empty(site.name.clone(), kind, book, None));
    }
    let gates = request.args.gates.clone().unwrap_or_default().change(Gates::STOCK);
    let classes = with_any(request.classes);
    engine(request, &kinds, &classes, gates).place(&stock, request.workloads, Unplaced::Explain)
}

/// The layout file.
fn text(request: &Request<'_>, nodes: &[CutNode], outcome: &Outcome) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(request, nodes, outcome, &mut text);
    text
}

fn write(request: &Request<'_>, nodes: &[CutNode], outcome: &Outcome, text: &mut String) -> std::fmt::Result {
    let mut counts: BTreeMap<&CutNode, usize> = BTreeMap::new();
    nodes.iter().for_each(|it| *counts.entry(it).or_default() += 1);
    let (placed, all) = (outcome.placed(), outcome.pods.len());
    let have = if placed == 1 { "has" } else { "have" };
    writeln!(
        text,
        "# {placed} of {all} pods {have} a place with these layouts, on clusters without DRAPartitionableDevices."
    )?;
    let mut without: Vec<(&usize, &String)> = outcome.reasons.iter().collect();
    without.sort();
    for (index, reason) in without {
        let owner = printable(&request.workloads[*index].demand.owner);
        writeln!(text, "# {owner} has pods without a place: {}.", printable(reason))?;
    }
    for (number, (node, count)) in counts.iter().enumerate() {
        let gpus = request.args.gpus.get(node.shape).map_or("", |it| it.text.as_str());
        let label = format!("kubectl label node NODE nvidia.com/mig.config=plan-{}", number + 1);
        writeln!(text, "# {} with {gpus}: {label}", number_of(*count, "node"))?;
    }
    writeln!(text, "version: v1\nmig-configs:")?;
    for (number, node) in counts.keys().enumerate() {
        writeln!(text, "  plan-{}:", number + 1)?;
        let mut by_cut: BTreeMap<&Option<Cut>, Vec<String>> = BTreeMap::new();
        for (index, cut) in node.cut.iter().enumerate() {
            by_cut.entry(cut).or_default().push(index.to_string());
        }
        for (cut, gpus) in by_cut {
            writeln!(text, "  - devices: [{}]", gpus.join(", "))?;
            match cut {
                None => writeln!(text, "    mig-enabled: false\n    mig-devices: {{}}")?,
                Some(cut) => {
                    writeln!(text, "    mig-enabled: true\n    mig-devices:")?;
                    for (profile, count) in cut {
                        writeln!(text, "      \"{profile}\": {count}")?;
                    }
                }
            }
        }
    }
    Ok(())
}
