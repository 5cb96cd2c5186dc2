//! Time-shared devices of a GPU without MIG: which of them are published, and when the whole GPU is published instead.
//!
//! Pure. A whole GPU and its shares exclude each other. Allocated devices stay, whatever the number of shares is now.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::{AllocatableDevice, Attribute, DeviceKind, DeviceName, GpuInventory, Inventory};

impl AllocatableDevice {
    /// A share of this whole GPU: all of it, for a part of the time.
    #[must_use]
    pub fn share(&self, index: u32) -> Self {
        let mut share = Self {
            name: DeviceName::share(&self.name, index),
            kind: DeviceKind::Share { index },
            ..self.clone()
        };
        share.attributes.insert("sharing", Attribute::String("time-slicing".to_owned()));
        share
    }
}

impl GpuInventory {
    /// True for a GPU that has MIG.
    #[must_use]
    pub fn can_be_cut(&self) -> bool {
        self.all().any(|it| it.mig().is_some())
    }

    /// True for the name of this GPU, or of a share of it.
    #[must_use]
    pub fn is_of(&self, name: &str) -> bool {
        DeviceName::share_in(name).map_or(name, |(gpu, _)| gpu) == self.counter_set
    }

    /// Of a GPU without MIG what may be offered beside the devices in `held`, which stay or come back: no share beside the
    /// whole GPU, no whole GPU beside a share, and no more shares than are offered now.
    #[must_use]
    pub fn with_held(&self, held: &BTreeSet<String>) -> Self {
        let (false, Some(whole)) = (self.can_be_cut(), self.whole()) else { return self.clone() };
        let is_held = |it: &AllocatableDevice| held.contains(it.name.as_str());
        let index = |name: &String| {
            DeviceName::share_in(name).filter(|(gpu, _)| *gpu == self.counter_set).map(|(_, index)| index)
        };
        let mut shares: BTreeMap<u32, AllocatableDevice> =
            held.iter().filter_map(index).map(|it| (it, whole.share(it))).collect();
        let free_shares = self.devices.iter().filter_map(|it| match it.kind {
            DeviceKind::Share { index } => Some((index, it)),
            _ => None,
        });
        let most = free_shares.clone().count().max(shares.len());
        let offers_whole = self.devices.iter().any(|it| it.name == whole.name);
        let has_whole = is_held(whole) || offers_whole && shares.is_empty();
        if !has_whole {
            for (index, share) in free_shares {
                if shares.len() < most {
                    shares.entry(index).or_insert_with(|| share.clone());
                }
            }
        }
        let devices: Vec<AllocatableDevice> =
            has_whole.then(|| whole.clone()).into_iter().chain(shares.into_values()).collect();
        let is_left_out = |it: &&AllocatableDevice| !devices.iter().any(|other| other.name == it.name);
        let withheld = self.all().filter(is_left_out).cloned().collect();
        Self { devices, withheld, ..self.clone() }
    }

    /// The whole GPU, offered or not.
    pub(super) fn whole(&self) -> Option<&AllocatableDevice> {
        self.all().find(|it| it.kind == DeviceKind::Gpu)
    }

    fn all(&self) -> impl Iterator<Item = &AllocatableDevice> {
        self.devices.iter().chain(&self.withheld)
    }
}

impl Inventory {
    /// True for the name of a GPU without MIG, or of a share of it.
    #[must_use]
    pub fn is_uncut(&self, name: &str) -> bool {
        self.gpus.iter().any(|it| !it.can_be_cut() && it.is_of(name))
    }

    /// The device with this name, offered at the moment or not; also a share of a GPU that is not shared any more, or by
    /// fewer, because a claim may have been given it before.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Cow<'_, AllocatableDevice>> {
        if let Some(known) = self.device(name) {
            return Some(Cow::Borrowed(known));
        }
        let (gpu, index) = DeviceName::share_in(name)?;
        let gpu = self.gpus.iter().find(|it| it.counter_set == gpu && !it.can_be_cut())?;
        gpu.whole().map(|it| Cow::Owned(it.share(index)))
    }
}
