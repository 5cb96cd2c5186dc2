//! GPUs of one model as sets of bits, from what the driver would publish of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::resource::v1::ResourceSlice;
use kubectl_mig::template::{NodeTemplate, TemplateArgs};
use mig_controller::demand::{GpuState, Kind, Placed, Possible};
use mig_model::facts::GpuFacts;
use mig_model::inventory::Inventory;
use mig_model::layout::{GpuLayout, HeldBack, LayoutInputs, Layouts, apply_held_back, default_layouts};

pub(crate) type Set = u128;

/// A device that a GPU could be partitioned into.
#[derive(Debug, Clone)]
pub(crate) struct Dev {
    pub(crate) name: String,
    pub(crate) profile: String,
    pub(crate) start: u32,
    pub(crate) size: u32,
    /// What it excludes, itself included.
    pub(crate) conflicts: Set,
    /// Memory slices of what it excludes on an empty GPU.
    pub(crate) blocks: u32,
}

/// A node with some GPUs of one model.
pub(crate) struct Model {
    pub(crate) inventory: Inventory,
    pub(crate) gpus: usize,
    /// Of the first GPU; the others have the same in the same order.
    pub(crate) devices: Vec<Dev>,
    pub(crate) kind: Arc<Kind>,
    pub(crate) base: Layouts,
    pub(crate) facts: Vec<GpuFacts>,
    pub(crate) names: Vec<String>,
    /// Device of a name.
    index: HashMap<String, (usize, usize)>,
}

pub(crate) fn members(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let position = (set != 0).then_some(set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(position)
    })
}

impl Model {
    /// So many GPUs of a model, such as `H100-80GB`.
    pub(crate) fn new(model: &str, gpus: usize) -> Self {
        let models = kubectl_mig::template::gpus(&format!("{gpus}x{model}")).unwrap().models;
        let template = NodeTemplate::new(&models, &TemplateArgs::default(), true).unwrap();
        let slices = template.slices("mig.dra-driver.dev", "node", None);
        let inventory = template.inventory;
        let facts: Vec<GpuFacts> = template.gpus.iter().map(|it| (*it.facts).clone()).collect();
        let first = &inventory.gpus[0];
        let excludes = |one: usize, other: usize| {
            let (one, other) = (&first.devices[one].consumes, &first.devices[other].consumes);
            one.iter().any(|(name, amount)| {
                let total = first.counters.get(name).copied().unwrap_or(0);
                other.get(name).is_some_and(|it| total < amount + it)
            })
        };
        let count = first.devices.len();
        assert!(count <= 128);
        let whole =
            first.devices.iter().filter_map(|it| it.mig()).map(|it| it.placement.size).max().unwrap_or(1);
        let size = |it: usize| first.devices[it].mig().map_or(whole, |it| it.placement.size);
        let devices = (0..count).map(|it| {
            let conflicts = (0..count)
                .filter(|other| *other == it || excludes(it, *other))
                .fold(0, |set, other| set | 1 << other);
            let mig = first.devices[it].mig();
            Dev {
                name: first.devices[it].name.to_string(),
                profile: mig.map_or("full".to_owned(), |it| it.profile.clone()),
                start: mig.map_or(0, |it| it.placement.start),
                size: size(it),
                conflicts,
                blocks: members(conflicts).map(size).sum(),
            }
        });
        let devices: Vec<Dev> = devices.collect();
        let kind = Arc::new(kind(&slices, &devices));
        let mut index = HashMap::new();
        for (gpu, offered) in inventory.gpus.iter().enumerate() {
            for (position, device) in offered.devices.iter().enumerate() {
                index.insert(device.name.to_string(), (gpu, position));
            }
        }
        let base = default_layouts(&facts);
        let names = inventory.gpus.iter().map(|it| it.counter_set.clone()).collect();
        Self { gpus, devices, kind, base, facts, names, index, inventory }
    }

    pub(crate) fn is_whole(&self, device: usize) -> bool {
        self.devices[device].profile == "full"
    }

    /// All placements of a profile.
    pub(crate) fn of_profile(&self, profile: &str) -> Set {
        let all = self.devices.iter().enumerate().filter(|(_, it)| it.profile == profile);
        all.fold(0, |set, (it, _)| set | 1 << it)
    }

    /// What is not offered of a GPU that is held back for a profile: what shares a memory slice with it, wherever it is placed.
    pub(crate) fn in_the_way(&self, profile: &str) -> Set {
        let own = self.of_profile(profile);
        members(own).fold(0, |set, it| set | self.devices[it].conflicts) & !own
    }

    /// What stays possible beside what is held.
    pub(crate) fn open(&self, held: Set) -> Set {
        let all = (0..self.devices.len()).fold(0, |set: Set, it| set | 1 << it);
        members(held).fold(all, |open, it| open & !self.devices[it].conflicts)
    }

    /// Names of what is held.
    pub(crate) fn held_names(&self, held: &[Set]) -> BTreeSet<String> {
        let of = |(gpu, set): (usize, &Set)| {
            let devices = &self.inventory.gpus[gpu].devices;
            members(*set).map(|it| devices[it].name.to_string()).collect::<Vec<_>>()
        };
        held.iter().enumerate().flat_map(of).collect()
    }

    /// What layouts are arranged from.
    pub(crate) fn inputs<'a>(
        &'a self,
        held: &'a BTreeSet<String>,
        held_back: &'a HeldBack,
    ) -> LayoutInputs<'a> {
        LayoutInputs { inventory: &self.inventory, held, base: &self.base, held_back }
    }

    /// What layouts publish beside what is held: free devices, by GPU.
    pub(crate) fn offer(
        &self,
        layouts: &Layouts,
        held_back: &HeldBack,
        held: &[Set],
        known: &mut Offers,
    ) -> Vec<Set> {
        let of = |(gpu, held): (usize, &Set)| {
            let layout = layouts.get(&self.names[gpu]).cloned().unwrap_or(GpuLayout::Whole);
            let profile = held_back.get(&self.names[gpu]);
            let key = (format!("{layout:?} {profile:?}"), *held);
            *known.entry(key).or_insert_with(|| {
                let one = Inventory { gpus: vec![self.inventory.gpus[0].clone()] };
                let layouts = Layouts::from([(self.names[0].clone(), layout)]);
                let names = members(*held).map(|it| self.devices[it].name.clone()).collect();
                let held_back = profile.map(|it| (self.names[0].clone(), it.clone())).into_iter().collect();
                let offer = apply_held_back(&one, &layouts, &held_back, &names);
                let devices = offer.inventory.gpus[0].devices.iter();
                let set = devices.filter_map(|it| self.index.get(it.name.as_str()));
                set.fold(0, |set, it| set | 1 << it.1) & !held
            })
        };
        held.iter().enumerate().map(of).collect()
    }

    /// A GPU as its status would report it.
    pub(crate) fn state(&self, gpu: usize, held: Set, published: Set) -> GpuState {
        let placed = |set: Set| {
            let of = |it: usize| {
                let device = &self.devices[it];
                Placed { profile: device.profile.clone(), start: device.start, size: device.size }
            };
            members(set).map(of).collect::<Vec<_>>()
        };
        GpuState {
            name: self.names[gpu].clone(),
            kind: self.kind.clone(),
            identity: BTreeMap::new(),
            held: placed(held),
            published: placed(published),
            has_problem: false,
        }
    }
}

/// What layouts publish of a GPU beside what is held.
pub(crate) type Offers = HashMap<(String, Set), Set>;

fn kind(slices: &[ResourceSlice], devices: &[Dev]) -> Kind {
    let all = || slices.iter().flat_map(|it| it.spec.devices.iter().flatten());
    let possible = devices.iter().filter_map(|it| {
        let device = all().find(|device| device.name == it.name)?.clone();
        Some(Possible { profile: it.profile.clone(), start: it.start, size: it.size, device })
    });
    let possible: Vec<Possible> = possible.collect();
    assert_eq!(possible.len(), devices.len());
    let set = possible[0].device.consumes_counters.as_ref().unwrap()[0].counter_set.clone();
    let sets = slices.iter().flat_map(|it| it.spec.shared_counters.iter().flatten());
    let counters = sets.into_iter().find(|it| it.name == set).unwrap().counters.clone();
    Kind::new(possible, &counters)
}
