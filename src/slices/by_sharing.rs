//! GPUs without MIG: a whole GPU and its time-shared devices exclude each other without counters, in every mode.
//!
//! Their number changes only with a flag, at the start. Until then claims may have been given what is not wanted any more: so
//! if something else is published than is wanted, the claims are read, what they have stays, and what excludes it waits; as
//! with layouts, a device that goes is withdrawn first, and what excludes it appears after the settle time (`transition`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::publish::RESYNC;
use super::{Publisher, names};
use crate::api::SliceError;
use crate::inventory::{AllocatableDevice, DeviceKind, DeviceName, GpuInventory, Inventory, MOST_SHARES};

impl Publisher {
    /// The inventory with as much of the GPUs without MIG as may be published now, and when to look again.
    pub(super) async fn settle_shares<'i>(
        &mut self,
        inventory: &'i Inventory,
        held: &BTreeSet<String>,
        published: &BTreeSet<String>,
    ) -> Result<(Cow<'i, Inventory>, Duration), SliceError> {
        let uncut: Vec<&GpuInventory> = inventory.gpus.iter().filter(|it| !it.can_be_cut()).collect();
        let is_of_uncut = |name: &String| {
            let gpu = DeviceName::share_in(name).map_or(name.as_str(), |(gpu, _)| gpu);
            uncut.iter().any(|it| it.counter_set == gpu)
        };
        let before: BTreeSet<String> = published.iter().filter(|it| is_of_uncut(it)).cloned().collect();
        let wanted: BTreeSet<String> =
            uncut.iter().flat_map(|it| &it.devices).map(|it| it.name.to_string()).collect();
        let is_idle = self.sharing.next().is_none();
        if is_idle && (before.is_empty() || before == wanted) {
            self.sharing.counted(wanted);
            return Ok((Cow::Borrowed(inventory), RESYNC));
        }
        let read_at = Instant::now();
        let held = held | &self.parts.allocations.read().await?;
        let target = Inventory { gpus: uncut.iter().map(|it| it.with_held(&held)).collect() };
        let all = Inventory { gpus: uncut.iter().filter_map(|it| counted(it)).collect() };
        let next = self.sharing.step(&all, &target, Some(&before), &held, read_at);
        let due = self.sharing.next().map_or(RESYNC, |it| it.saturating_duration_since(Instant::now()));
        // Claims that are not prepared are not heard of when they are released.
        let is_held_up = names(&target) != wanted;
        let pause = if is_held_up { self.parts.settle_time.min(due) } else { due };
        let mut settled = inventory.clone();
        for gpu in next.gpus {
            let place = settled.gpus.iter_mut().find(|it| it.counter_set == gpu.counter_set);
            place.into_iter().for_each(|it| it.clone_from(&gpu));
        }
        Ok((Cow::Owned(settled), pause))
    }
}

/// Names and costs of all that a GPU can be offered as. The counter says what excludes what; it is not published.
fn counted(gpu: &GpuInventory) -> Option<GpuInventory> {
    const COUNTER: &str = "shares";
    let whole = gpu.devices.iter().chain(&gpu.withheld).find(|it| it.kind == DeviceKind::Gpu)?;
    let device = |share: Option<u32>| AllocatableDevice {
        name: share.map_or_else(|| whole.name.clone(), |it| DeviceName::share(&whole.name, it)),
        parent_uuid: whole.parent_uuid.clone(),
        kind: share.map_or(DeviceKind::Gpu, |index| DeviceKind::Share { index }),
        attributes: BTreeMap::new(),
        capacities: BTreeMap::new(),
        consumes: [(COUNTER.to_owned(), share.map_or(MOST_SHARES, |_| 1))].into(),
    };
    Some(GpuInventory {
        counter_set: gpu.counter_set.clone(),
        counters: [(COUNTER.to_owned(), MOST_SHARES)].into(),
        devices: (0..MOST_SHARES).map(Some).chain([None]).map(device).collect(),
        withheld: Vec::new(),
    })
}
