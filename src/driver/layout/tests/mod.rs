//! Layouts on every model of the simulator, against brute force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mig_model::facts::{
    GpuFacts, GpuInstance, MediaEngines, MigFacts, MigMode, NodeFacts, PciAddress, Placement, Profile,
};
use mig_model::inventory::{
    AllocatableDevice, Attachment, CounterPlan, DeviceKind, DeviceName, Gpu, GpuState, Inventory, MigSpec,
    inventory,
};
use nvml_sim::Model;

use mig_model::layout::*;

mod demand;
mod files;
mod search;
mod transition;
mod world;

type Counts = BTreeMap<String, u32>;

fn profiles(model: Model) -> Vec<Profile> {
    let profile = |it: nvml_sim::Profile| Profile {
        index: it.index,
        id: it.id,
        slices: it.slices,
        max_instances: it.max,
        multiprocessors: it.sm,
        copy_engines: it.ce,
        media: MediaEngines { decoders: it.dec, encoders: it.enc, jpegs: it.jpeg, ofas: it.ofa },
        memory_mib: it.memory_mib,
        placements: it.starts.iter().map(|start| Placement { start: *start, size: it.size }).collect(),
        name: it.name,
    };
    model.profiles().into_iter().map(profile).collect()
}

pub(crate) fn facts(models: &str) -> Vec<GpuFacts> {
    let models = nvml_sim::parse_gpus(models).unwrap();
    let gpu = |(index, model): (usize, Model)| {
        let index = u32::try_from(index).unwrap();
        GpuFacts {
            index,
            uuid: format!("GPU-{index}"),
            pci: PciAddress { domain: 0, bus: u8::try_from(index).unwrap() + 0x1a, device: 0 },
            pci_device_id: model.data().pci_device << 16 | 0x10DE,
            product_name: Some(model.data().product_name.to_owned()),
            brand: None,
            architecture: None,
            compute_capability: Some(model.data().compute_capability),
            memory_bytes: Some(model.data().memory_mib << 20),
            unknown: Vec::new(),
            mig: model.has_mig().then(|| MigFacts {
                resetless: model.resetless_mig(),
                profiles: profiles(model),
                mode: MigMode { current: false, pending: false },
            }),
        }
    };
    models.into_iter().enumerate().map(gpu).collect()
}

/// The GPUs with this MIG mode, and these unmanaged instances on the first one.
pub(crate) fn gpus(facts: &[GpuFacts], mode: bool, unmanaged: &[(&Profile, Placement)]) -> Vec<Gpu> {
    let gpu = |(index, facts): (usize, &GpuFacts)| {
        let instance = |(profile, placement): &(&Profile, Placement)| GpuInstance {
            id: 1,
            profile_id: profile.id,
            placement: *placement,
            compute_instances: Vec::new(),
        };
        let instances = if index == 0 { unmanaged.iter().map(instance).collect() } else { Vec::new() };
        let mode = facts.mig.as_ref().map(|_| MigMode { current: mode, pending: mode });
        let state = GpuState { mode, instances, problem: None };
        Gpu { facts: Arc::new(facts.clone()), attachment: Attachment::default(), state }
    };
    facts.iter().enumerate().map(gpu).collect()
}

fn inventory_of(facts: &[GpuFacts], mode: bool, held: &BTreeSet<String>) -> Inventory {
    inventory(&NodeFacts::default(), &gpus(facts, mode, &[]), held)
}

fn counts(text: &str) -> Counts {
    let count = |it: &str| {
        let (count, profile) = it.split_once('x').unwrap();
        (profile.to_owned(), count.parse().unwrap())
    };
    text.split_whitespace().map(count).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|it| (*it).to_owned()).collect()
}

/// Short names of what is offered, sorted: `3g.40gb@4`, or `whole`.
fn shown(offer: &Offer) -> Vec<String> {
    let show = |it: &AllocatableDevice| match &it.kind {
        DeviceKind::Gpu => "whole".to_owned(),
        DeviceKind::Share { index } => format!("share {index}"),
        DeviceKind::Adopted(it) => format!("adopted {}@{}", it.spec.profile, it.spec.placement.start),
        DeviceKind::Mig(spec) => format!("{}@{}", spec.profile, spec.placement.start),
    };
    let mut shown: Vec<String> = offer.inventory.devices().map(show).collect();
    shown.sort();
    shown
}

fn names_of(offer: &Offer) -> BTreeSet<String> {
    offer.inventory.devices().map(|it| it.name.to_string()).collect()
}

fn all_placements(profiles: &[Profile]) -> Vec<(&Profile, Placement)> {
    profiles.iter().flat_map(|it| it.placements.iter().map(move |placement| (it, *placement))).collect()
}

/// Whether instances can exist together, by overlaps and engines alone.
fn exist_together(profiles: &[Profile], chosen: &[(&Profile, Placement)]) -> bool {
    let media = |it: &Profile| [it.media.decoders, it.media.encoders, it.media.jpegs, it.media.ofas];
    let overlap = (0..chosen.len()).any(|one| (0..one).any(|other| chosen[one].1.overlaps(chosen[other].1)));
    let engines = (0..4).all(|engine| {
        let total = profiles.iter().map(|it| media(it)[engine]).max().unwrap_or(0);
        chosen.iter().map(|it| media(it.0)[engine]).sum::<u32>() <= total
    });
    !overlap && engines
}

fn mig_models() -> Vec<Model> {
    Model::all().filter(Model::has_mig).collect()
}

#[test]
fn the_built_in_mix_serves_large_medium_and_small() {
    for (model, expected) in [
        ("A30-24GB", "1x2g.12gb 2x1g.6gb"),
        ("A100-40GB", "1x3g.20gb 1x2g.10gb 2x1g.5gb"),
        ("A100-80GB", "1x3g.40gb 1x2g.20gb 2x1g.10gb"),
        ("H100-80GB", "1x3g.40gb 1x2g.20gb 2x1g.10gb"),
        ("H200-141GB", "1x3g.71gb 1x2g.35gb 2x1g.18gb"),
        ("B200-180GB", "1x3g.90gb 1x2g.45gb 2x1g.23gb"),
        ("RTX-PRO-6000-96GB", "1x2g.48gb 2x1g.24gb"),
    ] {
        assert_eq!(balanced(&profiles(Model::named(model).unwrap())), counts(expected), "{model}");
    }
    for model in mig_models() {
        let profiles = profiles(model);
        let mix = balanced(&profiles);
        assert!(
            3 <= mix.len() || 2 <= mix.len() && profiles.iter().map(|it| it.slices).max() == Some(4),
            "{mix:?}"
        );
        assert_eq!(possible(&profiles, &mix), mix, "{model:?}");
    }
}

#[test]
fn without_a_layout_half_of_the_gpus_of_a_kind_are_cut() {
    let cut = |models: &str| {
        let layouts = default_layouts(&facts(models));
        let is_cut = |it: &GpuLayout| matches!(it, GpuLayout::Free { cut: true, .. });
        layouts.values().map(is_cut).collect::<Vec<_>>()
    };
    assert_eq!(cut("1xH100-80GB"), [true]);
    assert_eq!(cut("2xH100-80GB"), [true, false]);
    assert_eq!(cut("3xH100-80GB"), [true, true, false]);
    assert_eq!(cut("1xL4,2xH100-80GB,1xB200-180GB"), [false, true, false, true]);
}

#[test]
fn a_gpu_whose_mode_is_fixed_follows_its_mode_unless_a_layout_is_chosen() {
    let facts = facts("2xA100-40GB");
    let held = BTreeSet::new();
    let layouts = default_layouts(&facts);
    assert_eq!(shown(&apply(&inventory_of(&facts, false, &held), &layouts, &held)), ["whole", "whole"]);
    let on = apply(&inventory_of(&facts, true, &held), &layouts, &held);
    assert_eq!((shown(&on).len(), on.waiting.len()), (8, 0));

    let disabled = choose(Some("all-disabled"), None, &facts).unwrap();
    let waits = apply(&inventory_of(&facts, true, &held), &disabled, &held);
    assert_eq!(shown(&waits), [""; 0], "it must not be cut, and it is not available whole");
    assert!(waits.waiting[0].contains("needs a GPU reset"), "{:?}", waits.waiting);
}

#[test]
fn built_in_names_work_without_a_file() {
    let all = |models: &str, name: &str| {
        let facts = facts(models);
        let held = BTreeSet::new();
        let layouts = choose(Some(name), None, &facts).unwrap();
        let offer = apply(&inventory_of(&facts, true, &held), &layouts, &held);
        assert_eq!(offer.waiting, [""; 0]);
        shown(&offer)
    };
    assert_eq!(all("1xH100-80GB", "all-1g.10gb").len(), 7);
    assert_eq!(all("1xA100-40GB", "all-1g.10gb").len(), 4, "the one with double memory");
    assert_eq!(all("1xH100-80GB", "all-1g.10gb.me").len(), 1);
    assert_eq!(all("1xRTX-PRO-6000-96GB", "all-1g.24gb-me").len(), 4);
    assert_eq!(all("1xRTX-PRO-6000-96GB", "all-1g.24gb.me.all").len(), 1);
    assert_eq!(all("1xB200-180GB", "all-1g.23gb").len(), 7);
    assert_eq!(all("1xB200-180GB", "all-2g.45gb").len(), 3);
    assert_eq!(all("1xH100-80GB,1xL4", "all-disabled"), ["whole", "whole"]);
    let balanced = ["1g.10gb@2", "1g.10gb@3", "2g.20gb@0", "3g.40gb@4"];
    assert_eq!(all("1xH100-80GB", "all-balanced"), balanced);
    assert_eq!(all("1xH100-80GB", "all-enabled"), balanced);
}

#[test]
fn an_unknown_name_lists_what_there_is() {
    let facts = facts("1xH100-80GB,1xL4");
    let refusal = choose(Some("all-1g.5gb"), None, &facts).unwrap_err().to_string();
    assert!(
        refusal.contains("no built-in layout `all-1g.5gb`") && refusal.contains("all-1g.10gb"),
        "{refusal}"
    );
    let file =
        LayoutFile::parse("f", b"{version: v1, mig-configs: {a: [{devices: all, mig-enabled: false}]}}");
    let refusal = choose(Some("b"), Some(&file.unwrap()), &facts).unwrap_err().to_string();
    assert!(refusal.contains("`f`: it has no layout `b`; it has a"), "{refusal}");
}

/// The refusal of a layout `x` with these entries, on an H100 and an L4.
fn refusal(entries: &str) -> String {
    let text = format!("{{version: v1, mig-configs: {{x: [{entries}]}}}}");
    let file = LayoutFile::parse("f", text.as_bytes()).unwrap();
    choose(Some("x"), Some(&file), &facts("1xH100-80GB,1xL4")).unwrap_err().to_string()
}

#[test]
fn what_does_not_fit_is_refused_with_the_entry_the_gpu_and_the_nearest_that_does() {
    let text = refusal("{devices: all, mig-enabled: true, mig-devices: {3g.40gb: 1, 1g.10gb: 5}}");
    assert!(text.contains("`f`: mig-configs.x[0]: GPU 0 (NVIDIA H100"), "{text}");
    assert!(
        text.contains("no room for 5 x 1g.10gb + 1 x 3g.40gb; closest is 4 x 1g.10gb + 1 x 3g.40gb"),
        "{text}"
    );
    let text = refusal("{devices: all, mig-enabled: true, mig-devices: {1g.10gb: 8}}");
    assert!(text.contains("closest is 7 x 1g.10gb"), "{text}");
    let text = refusal("{devices: all, mig-enabled: true, mig-devices: {1g.10gb+me: 2}}");
    assert!(text.contains("closest is 1 x 1g.10gb+me"), "{text}");
    let text = refusal("{devices: all, mig-enabled: true, mig-devices: {7g.80gb: 1, 1g.10gb: 1}}");
    assert!(text.contains("closest is 1 x 7g.80gb"), "{text}");
    let text = refusal("{devices: all, mig-enabled: true, mig-devices: {1g.5gb: 1}}");
    assert!(text.contains("has no profile `1g.5gb`; it has 1g.10gb"), "{text}");
    let text = refusal("{devices: [1], mig-enabled: true, mig-devices: {1g.10gb: 1}}");
    assert!(text.contains("has no MIG"), "{text}");
    let text = refusal("{devices: [5], mig-enabled: false}");
    assert!(text.contains("this node has no GPU 5; it has 0, 1"), "{text}");
}

#[test]
fn a_layout_that_asks_nothing_of_these_gpus_is_no_success() {
    let of_file = |entries: &str, models: &str| {
        let text = format!("{{version: v1, mig-configs: {{x: [{entries}]}}}}");
        choose(Some("x"), Some(&LayoutFile::parse("f", text.as_bytes()).unwrap()), &facts(models))
    };
    let has_no_effect = |it: Result<Layouts, Refusal>| match it {
        Ok(_) => None,
        Err(Refusal::NoEffect(text)) => Some(text),
        Err(other) => panic!("{other}"),
    };
    let cut = "mig-enabled: true, mig-devices: {1g.10gb: 7}";
    let filtered = format!("{{devices: all, device-filter: \"0x233010DE\", {cut}}}");
    assert_eq!(has_no_effect(of_file(&filtered, "1xH100-80GB,1xL4")), None);
    let text = has_no_effect(of_file(&filtered, "1xH200-141GB,1xL4")).unwrap();
    assert!(text.contains("`f`: mig-configs.x: no entry matches a GPU of this node"), "{text}");
    assert!(text.contains("GPU 1 (NVIDIA L4, 0000:1b:00.0), PCI id 0x27B810DE"), "{text}");
    let all = format!("{{devices: all, {cut}}}");
    assert!(has_no_effect(of_file(&all, "2xL4")).unwrap().contains("none of these GPUs can have"));
    let whole = "{devices: all, device-filter: \"0x27B810DE\", mig-enabled: false}";
    assert_eq!(has_no_effect(of_file(whole, "1xL4")), None, "it is as the layout asks for");

    for name in ["all-balanced", "all-enabled", "all-1g.10gb"] {
        let text = has_no_effect(choose(Some(name), None, &facts("1xL4"))).unwrap();
        assert!(text.contains("no GPU of this node can have MIG instances"), "{text}");
        assert_eq!(has_no_effect(choose(Some(name), None, &facts("1xH100-80GB,1xL4"))), None);
    }
    assert_eq!(has_no_effect(choose(Some("all-disabled"), None, &facts("1xL4"))), None);
}

#[test]
fn an_entry_means_its_gpus_only_and_the_last_one_counts() {
    let text = r#"{version: v1, mig-configs: {x: [
        {devices: all, device-filter: "0x233010DE", mig-enabled: true, mig-devices: {7g.80gb: 1}},
        {devices: [1, 2], mig-enabled: false},
        {devices: all, device-filter: "0x20B210DE", mig-enabled: true, mig-devices: {1g.5gb: 9}},
    ]}}"#;
    let file = LayoutFile::parse("f", text.as_bytes()).unwrap();
    let facts = facts("2xH100-80GB,1xB200-180GB,1xB200-180GB");
    let layouts: Vec<GpuLayout> = choose(Some("x"), Some(&file), &facts).unwrap().into_values().collect();
    assert_eq!(layouts[0], GpuLayout::Cut(counts("1x7g.80gb")));
    assert_eq!(layouts[1..3], [GpuLayout::Whole, GpuLayout::Whole]);
    assert!(
        matches!(layouts[3], GpuLayout::Free { cut: false, .. }),
        "no layout is chosen, and it is the second of its kind"
    );
}

#[test]
fn a_changed_layout_goes_around_what_is_held_and_takes_the_rest_when_it_is_released() {
    let facts = facts("1xH100-80GB");
    let layouts = choose(Some("all-balanced"), None, &facts).unwrap();
    let name = |it: &str| DeviceName::mig(facts[0].pci, "1g.10gb", it.parse().unwrap()).to_string();
    let offer = |held: &[&str]| {
        let held: BTreeSet<String> = held.iter().map(|it| name(it)).collect();
        apply(&inventory_of(&facts, true, &held), &layouts, &held)
    };
    // Instances of the layout before: one in the half that 3g would take first.
    let around = offer(&["6"]);
    assert_eq!(shown(&around), ["1g.10gb@6", "2g.20gb@4", "3g.40gb@0"]);
    assert!(
        around.waiting[0].contains("1 x 1g.10gb waits for gpu-0000-1a-00-mig-1g-10gb-6"),
        "{:?}",
        around.waiting
    );
    // Both in the way of any 3g.
    let blocked = offer(&["6", "0"]);
    assert_eq!(shown(&blocked), ["1g.10gb@0", "1g.10gb@6", "2g.20gb@4"]);
    // More of them than the layout has.
    let surplus = offer(&["0", "1", "2"]);
    assert_eq!(shown(&surplus), ["1g.10gb@0", "1g.10gb@1", "1g.10gb@2", "3g.40gb@4"]);
    let in_place = offer(&["2"]);
    assert_eq!((shown(&in_place).len(), in_place.waiting.len()), (4, 0));
    assert_eq!(shown(&offer(&[])), ["1g.10gb@2", "1g.10gb@3", "2g.20gb@0", "3g.40gb@4"]);
}

#[test]
fn a_held_whole_gpu_keeps_its_parts_away_and_the_other_way_round() {
    let facts = facts("1xH100-80GB");
    let cut = choose(Some("all-1g.10gb"), None, &facts).unwrap();
    let whole = choose(Some("all-disabled"), None, &facts).unwrap();
    let gpu = set(&["gpu-0000-1a-00"]);
    let offer = apply(&inventory_of(&facts, false, &gpu), &cut, &gpu);
    assert_eq!(shown(&offer), ["whole"]);
    assert!(offer.waiting[0].contains("wait for gpu-0000-1a-00"), "{:?}", offer.waiting);
    let part = set(&["gpu-0000-1a-00-mig-1g-10gb-0"]);
    let offer = apply(&inventory_of(&facts, true, &part), &whole, &part);
    assert_eq!(shown(&offer), ["1g.10gb@0"]);
    assert!(offer.waiting[0].contains("the whole GPU waits for"), "{:?}", offer.waiting);
}

#[test]
fn an_unmanaged_instance_is_gone_around() {
    let facts = facts("1xH100-80GB");
    let mig = facts[0].mig.clone().unwrap();
    let unmanaged = (&mig.profiles[0], Placement { start: 6, size: 1 });
    let held = BTreeSet::new();
    let inventory = inventory(&NodeFacts::default(), &gpus(&facts, true, &[unmanaged]), &held);
    let offer = apply(&inventory, &choose(Some("all-1g.10gb"), None, &facts).unwrap(), &held);
    assert_eq!(shown(&offer).len(), 6);
    assert!(offer.waiting[0].contains("1 x 1g.10gb is not available now"), "{:?}", offer.waiting);
}

#[test]
fn of_a_gpu_that_is_unhealthy_a_layout_says_so_whatever_claims_have_of_it() {
    let facts = facts("1xH100-80GB");
    let mut gpus = gpus(&facts, true, &[]);
    gpus[0].state.problem = Some("unhealthy: XID 48 (a double-bit ECC error)".to_owned());
    for held in [set(&[]), set(&["gpu-0000-1a-00-mig-1g-10gb-6"])] {
        let inventory = inventory(&NodeFacts::default(), &gpus, &held);
        for (layout, what) in [("all-1g.10gb", "x 1g.10gb"), ("all-disabled", "the whole GPU")] {
            let offer = apply(&inventory, &choose(Some(layout), None, &facts).unwrap(), &held);
            assert_eq!(names_of(&offer), held);
            let why = &offer.waiting[0];
            let expected = format!("{what} is not available now: the GPU is not offered: unhealthy: XID 48");
            assert!(why.contains(&expected) && !why.contains("reset"), "{why}");
        }
    }
}

#[test]
fn the_layouts_of_the_example_fit_the_gpus_that_they_are_for() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/layouts/layouts.yaml");
    let manifest: serde_json::Value =
        serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let text = manifest["data"]["config.yaml"].as_str().unwrap();
    let file = LayoutFile::parse("config.yaml", text.as_bytes()).unwrap();
    for name in file.configs.keys() {
        let of_h100 = choose(Some(name), Some(&file), &facts("8xH100-80GB"));
        match name.as_str() {
            "notebooks" => assert!(matches!(of_h100, Err(Refusal::NoEffect(_))), "its filter has no H100"),
            _ => drop(of_h100.unwrap()),
        }
        let others = choose(Some(name), Some(&file), &facts("2xB200-180GB,1xL4"));
        match name.as_str() {
            "training-and-inference" => {}
            "mixed" => assert!(matches!(others, Err(Refusal::NoEffect(_))), "its filter has no B200"),
            _ => drop(others.unwrap()),
        }
    }
}
