//! A node with GPUs of one model: what it offers as numbers, and the lists in which it could be published.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use dra_driver_mig::nvml;
use mig_model::facts::MigMode;
use mig_model::inventory::{Attachment, Gpu, GpuState, Inventory, ProfileFilter, inventory};
use mig_model::placement::{Policy, Ranking};
use mig_model::slices::{Owner, render};
use nvml_sim::{Model, SimNode};

/// A device that could be allocated.
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) gpu: usize,
    pub(crate) profile: usize,
    pub(crate) start: u32,
    pub(crate) cost: Vec<u32>,
}

/// A profile, or the whole GPU.
pub(crate) struct Profile {
    pub(crate) name: String,
    pub(crate) slices: u32,
    pub(crate) size: u32,
    /// Starts in the order in which NVML takes them when it is not given one.
    nvml_order: Vec<u32>,
}

/// GPUs of one model.
pub(crate) struct Node {
    pub(crate) inventory: Inventory,
    pub(crate) devices: Vec<Device>,
    pub(crate) profiles: Vec<Profile>,
    /// Counters of one empty GPU.
    pub(crate) full: Vec<u32>,
    pub(crate) gpus: usize,
}

/// The lists that the scheduler visits, each in its order, as indices of devices.
pub(crate) type Lists = Vec<Vec<usize>>;

impl Node {
    /// A node with so many GPUs of a model, MIG mode being on, without the profiles that the filter leaves out.
    pub(crate) fn new(model: &str, gpus: usize, filter: &str) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let model = Model::named(model).map_err(|it| anyhow!(it))?;
        let sim = SimNode::create(directory.path(), &vec![model; gpus])?;
        let library = nvml::open(&sim.library())?;
        let facts = nvml::discover(&library)?;
        let gpu = |facts: &mig_model::facts::GpuFacts| Gpu {
            facts: Arc::new(facts.clone()),
            attachment: Attachment::default(),
            state: GpuState {
                mode: facts.mig.as_ref().map(|_| MigMode { current: true, pending: true }),
                instances: Vec::new(),
                problem: None,
            },
        };
        let filter: ProfileFilter = filter.parse()?;
        let all = inventory(&facts, &facts.gpus.iter().map(gpu).collect::<Vec<_>>(), &BTreeSet::new());
        let inventory = all.with_profiles(&filter, &BTreeSet::new());
        let counters: Vec<&String> = inventory.gpus[0].counters.keys().collect();
        let mut profiles: Vec<Profile> = Vec::new();
        let mut devices = Vec::new();
        for (gpu, offered) in inventory.gpus.iter().enumerate() {
            for device in &offered.devices {
                let name = device.mig().map_or("full", |it| &it.profile);
                let known = profiles.iter().position(|it| it.name == name);
                let profile = known.unwrap_or_else(|| {
                    let simulated = model.profiles().into_iter().find(|it| it.name == name);
                    profiles.push(Profile {
                        name: name.to_owned(),
                        slices: device.mig().map_or(0, |it| it.slices),
                        size: device.mig().map_or(0, |it| it.placement.size),
                        nvml_order: simulated.map(|it| it.default_order).unwrap_or_default(),
                    });
                    profiles.len() - 1
                });
                let amount = |it: &&String| device.consumes.get(*it).copied().unwrap_or(0);
                devices.push(Device {
                    name: device.name.to_string(),
                    gpu,
                    profile,
                    start: device.mig().map_or(0, |it| it.placement.start),
                    cost: counters.iter().map(amount).collect(),
                });
            }
        }
        let full = inventory.gpus[0].counters.values().copied().collect();
        Ok(Self { inventory, devices, profiles, full, gpus })
    }

    /// The driver's own slices.
    pub(crate) fn published(&self, ranking: &Ranking) -> anyhow::Result<Lists> {
        let owner = Owner { driver: "d".to_owned(), node: "n".to_owned(), node_uid: "u".to_owned() };
        let slices = render(&self.inventory, ranking, &owner);
        let index = |name: &str| self.devices.iter().position(|it| it.name == name);
        let devices = slices.iter().filter_map(|it| it.spec.devices.as_ref());
        let list = |it: &Vec<_>| {
            let names = it.iter().map(|it: &k8s_openapi::api::resource::v1::Device| it.name.as_str());
            names.map(|it| index(it).context("a device of this node")).collect()
        };
        devices.map(list).collect()
    }

    /// What is in the slices of the driver, in another order.
    pub(crate) fn in_our_slices(&self, order: impl Fn(&Device) -> u32) -> anyhow::Result<Lists> {
        let ranking = Ranking::of(&self.inventory, &BTreeSet::new(), Policy::Static);
        let mut lists = self.published(&ranking)?;
        lists.iter_mut().for_each(|it| it.sort_by_key(|it| self.key(*it, &order)));
        Ok(lists)
    }

    /// A slice for each GPU, as NVIDIA's driver has it.
    pub(crate) fn gpu_by_gpu(&self, order: impl Fn(&Device) -> u32) -> Lists {
        let list = |gpu| {
            let mut list: Vec<usize> =
                (0..self.devices.len()).filter(|it| self.devices[*it].gpu == gpu).collect();
            list.sort_by_key(|it| self.key(*it, &order));
            list
        };
        (0..self.gpus).map(list).collect()
    }

    fn key(&self, device: usize, order: impl Fn(&Device) -> u32) -> (usize, usize, u32) {
        let device = &self.devices[device];
        (device.profile, device.gpu, order(device))
    }

    /// NVML's preference among the placements of a profile.
    pub(crate) fn nvml_place(&self, device: &Device) -> u32 {
        let order = &self.profiles[device.profile].nvml_order;
        (0..).zip(order).find(|(_, it)| **it == device.start).map_or(u32::MAX, |it| it.0)
    }

    /// Index of a profile by compute slices and kind.
    pub(crate) fn profile(&self, wanted: Wanted) -> Option<usize> {
        let of = |slices: u32| {
            let all = self.profiles.iter().enumerate();
            all.filter(move |(_, it)| it.slices == slices && slices != 0)
        };
        let plain =
            |slices| of(slices).filter(|(_, it)| !it.name.contains(['+', '-'])).min_by_key(|(_, it)| it.size);
        let found = match wanted {
            Wanted::Plain(slices) => plain(slices),
            Wanted::Media => of(1).find(|(_, it)| it.name.ends_with("+me")),
            Wanted::MoreMemory => {
                let size = plain(1)?.1.size;
                of(1).find(|(_, it)| it.size > size)
            }
        };
        found.map(|it| it.0)
    }
}

/// What a request asks for, whatever the model calls it.
#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    /// So many compute slices.
    Plain(u32),
    /// One, with media engines.
    Media,
    /// One, with more memory.
    MoreMemory,
}

/// True where what is left is enough.
pub(crate) fn has_room(left: &[u32], cost: &[u32]) -> bool {
    left.iter().zip(cost).all(|(left, cost)| cost <= left)
}

/// Takes something away.
pub(crate) fn take(left: &mut [u32], cost: &[u32]) {
    left.iter_mut().zip(cost).for_each(|(left, cost)| *left -= cost);
}

/// Gives it back.
pub(crate) fn give(left: &mut [u32], cost: &[u32]) {
    left.iter_mut().zip(cost).for_each(|(left, cost)| *left += cost);
}
