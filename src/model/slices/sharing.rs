//! GPUs without MIG: a whole GPU and its time-shared devices exclude each other without counters, in every mode.
//!
//! Their number changes only with a flag, at the start. Until then devices may have been allocated that are not wanted any more. So
//! where something else is published than is wanted, the claims are read and what they have stays; a device that goes is
//! withdrawn first, and what excludes it appears only after it has been gone for the settle time and a read of the claims,
//! begun after that, shows that it was not allocated.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::inventory::{DeviceKind, GpuInventory, Inventory};

use super::withdrawn::Withdrawn;
use super::world::{Question, RESYNC, World};

/// Whole GPUs and shares that were withdrawn lately, so far as this process knows.
#[derive(Debug, Clone)]
pub(super) struct ShareTransition {
    withdrawn: Withdrawn,
    /// When this process first looked, if a driver before it may have withdrawn something a moment before.
    start: Option<Instant>,
    has_past: bool,
}

impl ShareTransition {
    /// Starts without knowledge of what was before; `has_past` is whether a driver was on this node before this process.
    pub(super) fn new(has_past: bool) -> Self {
        Self { withdrawn: Withdrawn::default(), start: None, has_past }
    }

    /// The inventory with as much of the GPUs without MIG as may be published now, and when to look again. `seen` is what
    /// schedulers could see.
    pub(super) fn settle<'i>(
        &mut self,
        world: &World<'_>,
        inventory: &'i Inventory,
        seen: &BTreeSet<String>,
        now: Instant,
    ) -> Result<(Cow<'i, Inventory>, Duration), Question> {
        let uncut = || inventory.gpus.iter().filter(|it| !it.can_be_cut());
        let before: BTreeSet<String> = seen.iter().filter(|it| inventory.is_uncut(it)).cloned().collect();
        let wanted: BTreeSet<String> = uncut().flat_map(names).collect();
        let settle = world.settings.settle_time;
        self.look(now);
        self.withdrawn.retain(|name| inventory.is_uncut(name));
        if uncut().next().is_none() {
            return Ok((Cow::Borrowed(inventory), RESYNC));
        }
        if before == wanted && self.withdrawn.is_empty() && world.claims.is_none() {
            let has_settled = self.has_settled(now, settle);
            // Of a GPU that offers nothing, the process before may have withdrawn what was allocated at the last moment.
            let may_come_back = self.start.is_some() && uncut().any(|it| it.devices.is_empty());
            if has_settled && !may_come_back {
                self.start = None;
            }
            if !has_settled || !may_come_back {
                let pause = self.start.filter(|_| may_come_back);
                let pause = pause.map_or(RESYNC, |it| (it + settle).saturating_duration_since(now));
                return Ok((Cow::Borrowed(inventory), pause));
            }
        }
        let claims = world.claims()?;
        let held = world.node.held | &claims.allocated;
        let mut settled = inventory.clone();
        let mut is_held_up = false;
        for gpu in settled.gpus.iter_mut().filter(|it| !it.can_be_cut()) {
            let target = gpu.with_held(&held);
            is_held_up |= names(&target) != names(gpu);
            let before = before.iter().filter(|it| gpu.is_of(it)).cloned().collect();
            *gpu = self.step(&target, &before, &held, claims.read_at, settle);
        }
        let due = match self.since() {
            Some(since) => (since + settle).saturating_duration_since(now),
            None if self.withdrawn.is_empty() => RESYNC,
            None => settle,
        };
        // No event says when claims that are not prepared are released.
        Ok((Cow::Owned(settled), if is_held_up { settle.min(due) } else { due }))
    }

    /// Takes note of the first look. Until a settle time after it nothing may come that was not published then, unless this
    /// process itself has withdrawn it.
    fn look(&mut self, now: Instant) {
        if std::mem::take(&mut self.has_past) {
            self.start = Some(now);
        }
    }

    /// Whether a settle time has passed since the first look.
    fn has_settled(&self, now: Instant, settle: Duration) -> bool {
        self.start.is_some_and(|it| it + settle <= now)
    }

    /// What of a GPU's devices may be published now. `before` is what is published of it, `held` what claims have, by a read
    /// of the claims that began at `read_at`.
    fn step(
        &mut self,
        target: &GpuInventory,
        before: &BTreeSet<String>,
        held: &BTreeSet<String>,
        read_at: Instant,
        settle: Duration,
    ) -> GpuInventory {
        let wanted = names(target);
        self.start = self.start.filter(|it| read_at < *it + settle);
        self.withdrawn.add_missing(before, &wanted);
        self.withdrawn.settle(settle, read_at);
        self.withdrawn.retain(|name| !wanted.contains(name));
        let gone = || self.withdrawn.names().filter(|it| target.is_of(it));
        let (whole_is_gone, share_is_gone) =
            (gone().any(|it| *it == target.counter_set), gone().any(|it| *it != target.counter_set));
        let mut next = target.clone();
        next.devices.retain(|it| {
            let is_excluded = if it.kind == DeviceKind::Gpu { share_is_gone } else { whole_is_gone };
            let name = it.name.as_str();
            let may_come = self.start.is_none() || before.contains(name);
            may_come && !is_excluded || held.contains(name)
        });
        // What is published and has to wait all the same was never withdrawn for long; it counts from now.
        self.withdrawn.add_missing(before, &names(&next));
        next
    }

    /// Takes note that what the last step said is written.
    pub(super) fn written(&mut self, now: Instant) {
        self.withdrawn.written(now);
    }

    /// Whether something may have been allocated at the last moment. Without a GPU that is not cut, only time tells.
    pub(super) fn is_settling(&self, has_uncut: bool, settle: Duration, now: Instant) -> bool {
        let is_recent = self.start.is_some() && (has_uncut || !self.has_settled(now, settle));
        self.has_past || is_recent || !self.withdrawn.is_empty()
    }

    /// Since when the first thing is waited for.
    fn since(&self) -> Option<Instant> {
        self.withdrawn.since().into_iter().chain(self.start).min()
    }
}

fn names(gpu: &GpuInventory) -> BTreeSet<String> {
    gpu.devices.iter().map(|it| it.name.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::inventory::{AllocatableDevice, DeviceName};

    const SETTLE: Duration = Duration::from_secs(10);

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|it| (*it).to_owned()).collect()
    }

    /// A GPU that is offered as so many shares; none is whole.
    fn gpu(shares: u32) -> GpuInventory {
        let whole = AllocatableDevice {
            name: DeviceName::gpu("0000:3b:00.0".parse().unwrap()),
            parent_uuid: "GPU-1".to_owned(),
            kind: DeviceKind::Gpu,
            attributes: BTreeMap::new(),
            capacities: BTreeMap::new(),
            consumes: BTreeMap::new(),
        };
        let shared: Vec<_> = (0..shares).map(|it| whole.share(it)).collect();
        let (devices, withheld) = if shares == 0 { (vec![whole], Vec::new()) } else { (shared, vec![whole]) };
        let counter_set = "gpu-0000-3b-00".to_owned();
        GpuInventory { counter_set, devices, withheld, ..GpuInventory::default() }
    }

    #[test]
    fn a_whole_gpu_comes_when_its_shares_have_been_gone_for_the_settle_time() {
        let (mut withdrawn, start) = (ShareTransition::new(false), Instant::now());
        let shares = set(&["gpu-0000-3b-00-share-0", "gpu-0000-3b-00-share-1"]);
        let none = BTreeSet::new();
        let mut step = |before: &BTreeSet<String>, held: &BTreeSet<String>, seconds: u64| {
            let read_at = start + Duration::from_secs(seconds);
            let next = withdrawn.step(&gpu(0).with_held(held), before, held, read_at, SETTLE);
            withdrawn.written(read_at);
            names(&next)
        };
        assert_eq!(step(&shares, &none, 0), none);
        assert_eq!(step(&none, &none, 9), none);
        // One was allocated just before it was gone.
        let taken = set(&["gpu-0000-3b-00-share-1"]);
        assert_eq!(step(&none, &taken, 10), taken);
        assert_eq!(step(&taken, &none, 11), none);
        assert_eq!(step(&none, &none, 20), none);
        assert_eq!(step(&none, &none, 21), set(&["gpu-0000-3b-00"]));
    }

    #[test]
    fn shares_come_when_the_whole_gpu_has_been_gone_and_fewer_of_them_at_once() {
        let (mut withdrawn, start) = (ShareTransition::new(false), Instant::now());
        let (whole, none) = (set(&["gpu-0000-3b-00"]), BTreeSet::new());
        let mut step = |count, before: &BTreeSet<String>, seconds: u64| {
            let read_at = start + Duration::from_secs(seconds);
            let next = withdrawn.step(&gpu(count), before, &none, read_at, SETTLE);
            withdrawn.written(read_at);
            names(&next)
        };
        assert_eq!(step(4, &whole, 0), none);
        assert_eq!(step(4, &none, 10), names(&gpu(4)));
        assert_eq!(step(2, &names(&gpu(4)), 11), names(&gpu(2)));
        assert_eq!(
            step(4, &names(&gpu(2)), 12),
            names(&gpu(4)),
            "what was withdrawn may come back at any time"
        );
    }

    #[test]
    fn a_restart_behind_a_withdrawal_waits_as_the_process_before_would_have() {
        let (whole, none) = (set(&["gpu-0000-3b-00"]), BTreeSet::new());
        for (has_past, first) in [(true, &none), (false, &whole)] {
            let (mut withdrawn, start) = (ShareTransition::new(has_past), Instant::now());
            let mut step = |before: &BTreeSet<String>, held: &BTreeSet<String>, seconds: u64| {
                let read_at = start + Duration::from_secs(seconds);
                withdrawn.look(read_at);
                let next = withdrawn.step(&gpu(0).with_held(held), before, held, read_at, SETTLE);
                withdrawn.written(read_at);
                names(&next)
            };
            assert_eq!(step(&none, &none, 0), *first);
            if has_past {
                // A share was allocated of which only the process before knew.
                let taken = set(&["gpu-0000-3b-00-share-3"]);
                assert_eq!(step(&none, &taken, 5), taken);
                assert_eq!(step(&taken, &none, 9), none);
                assert_eq!(step(&none, &none, 18), none);
                assert_eq!(step(&none, &none, 19), whole);
            }
        }
        let (mut withdrawn, start) = (ShareTransition::new(true), Instant::now());
        withdrawn.look(start);
        let next = withdrawn.step(&gpu(0), &whole, &none, start, SETTLE);
        assert_eq!(names(&next), whole, "what is published stays");
    }
}
