//! Event sets: XIDs and configuration changes, delivered to the clients that have registered for them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::call::{broken, guarded, nvml, perform_logged};
use super::client;
use super::types::{EventData, EventDataV1, Handle, Kind, Out, Subject};
use super::usage::NO_INSTANCE;
use crate::code::{Answer, Code};
use crate::machine::{
    EVENT_DOUBLE_BIT_ECC, EVENT_MIG_CONFIG_CHANGE, EVENT_SINGLE_BIT_ECC, EVENT_XID, Event, Machine,
};
use crate::store::Store;

/// What an event set waits for.
#[derive(Debug)]
struct EventSet {
    /// Sequence number of the next event that it has not looked at.
    next: u64,
    /// GPU index to bits of event types.
    wanted: BTreeMap<usize, u64>,
}

/// The event sets of this program, by the serial number in their handles.
static SETS: Mutex<(u32, BTreeMap<u32, EventSet>)> = Mutex::new((1, BTreeMap::new()));

fn sets() -> MutexGuard<'static, (u32, BTreeMap<u32, EventSet>)> {
    SETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Functions here that are not made by `nvml!`.
pub(super) const OWN: &[&str] = &["nvmlEventSetWait", "nvmlEventSetWait_v2"];

/// ECC single and double bit, P-state, XID, clock, power source, MIG configuration change.
const SUPPORTED: u64 =
    EVENT_SINGLE_BIT_ECC | EVENT_DOUBLE_BIT_ECC | 0x4 | EVENT_XID | 0x10 | 0x80 | EVENT_MIG_CONFIG_CHANGE;
/// How often a waiting program looks at the node.
const POLL: Duration = Duration::from_millis(5);

/// Whether one of this program's event sets listens to the GPU.
pub(super) fn is_listened_to(gpu: usize) -> bool {
    sets().1.values().any(|set| set.wanted.contains_key(&gpu))
}

/// Waits for the next event. The node is locked only to look at it, and that only after it has changed: a program that
/// listens all the time must not slow the others down.
fn wait(store: &Store, set: Handle, timeout_ms: u32) -> Answer<EventData> {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms.into());
    let mut seen = None;
    loop {
        let now = store.stamp().map_err(|error| broken(&error))?;
        if seen.as_ref() == Some(&now) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Code::TIMEOUT);
            }
            std::thread::sleep(left.min(POLL));
            continue;
        }
        seen = Some(now);
        let session = store.session().map_err(|error| broken(&error))?;
        let event = next_event(session.machine(), set);
        session.finish().map_err(|error| broken(&error))?;
        if let Some(event) = event? {
            return Ok(EventData {
                device: Handle::new(Kind::Gpu, event.gpu, 0),
                kind: event.kind,
                data: event.data,
                gpu_instance: event.gpu_instance.unwrap_or(NO_INSTANCE),
                compute_instance: event.compute_instance.unwrap_or(NO_INSTANCE),
            });
        }
    }
}

/// The next event for the set; GPU_IS_LOST when there is none and a registered GPU has gone.
fn next_event(machine: &Machine, set: Handle) -> Answer<Option<Event>> {
    let mut sets = sets();
    let found = sets.1.get_mut(&set.serial_of(Kind::EventSet)?).ok_or(Code::INVALID_ARGUMENT)?;
    for event in &machine.events {
        if event.sequence >= found.next
            && found.wanted.get(&event.gpu).is_some_and(|bits| bits & event.kind != 0)
        {
            found.next = event.sequence + 1;
            return Ok(Some(*event));
        }
    }
    found.next = machine.next_event;
    let lost = found.wanted.keys().any(|gpu| machine.gpu(*gpu).is_ok_and(|gpu| gpu.lost));
    if lost { Err(Code::GPU_IS_LOST) } else { Ok(None) }
}

/// Faults and the log apply before the wait, so that the log shows the call's beginning and not the time it
/// waited. Only a wait that a fault strikes is logged: a program that listens does nothing else all day.
fn waited(name: &str, set: Handle, timeout_ms: u32) -> Answer<EventData> {
    let store = client::initialised()?;
    perform_logged(store, name, Subject::default(), |answer| answer.is_err(), |_| Ok(()))?;
    wait(store, set, timeout_ms)
}

// SAFETY (both): the names are NVML's and exist once in the program.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the names are NVML's")]
extern "C" fn nvmlEventSetWait_v2(set: Handle, data: Out<EventData>, timeout_ms: u32) -> Code {
    guarded(|| {
        data.present()?;
        data.set(waited("nvmlEventSetWait_v2", set, timeout_ms)?)
    })
}

#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the names are NVML's")]
extern "C" fn nvmlEventSetWait(set: Handle, data: Out<EventDataV1>, timeout_ms: u32) -> Code {
    guarded(|| {
        data.present()?;
        let EventData { device, kind, data: payload, .. } = waited("nvmlEventSetWait", set, timeout_ms)?;
        data.set(EventDataV1 { device, kind, data: payload })
    })
}

nvml! {
    fn nvmlEventSetCreate(set: Out<Handle>), |s| {
        let mut sets = sets();
        let serial = sets.0;
        set.set(Handle::new(Kind::EventSet, 0, serial))?;
        sets.0 += 1;
        sets.1.insert(serial, EventSet { next: s.machine().next_event, wanted: BTreeMap::new() });
        Ok(())
    }

    fn nvmlEventSetFree(set: Handle), |_s| {
        let freed = sets().1.remove(&set.serial_of(Kind::EventSet)?);
        freed.map(|_| ()).ok_or(Code::INVALID_ARGUMENT)
    }

    fn nvmlDeviceGetSupportedEventTypes(device: Handle, types: Out<u64>) on device, |s| {
        device.physical(s.machine())?;
        types.set(SUPPORTED)
    }

    fn nvmlDeviceRegisterEvents(device: Handle, types: u64, set: Handle) on device, |s| {
        // Events are the whole GPU's business: a MIG device is refused.
        let index = device.physical(s.machine())?;
        if types & !SUPPORTED != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        let mut sets = sets();
        let found = sets.1.get_mut(&set.serial_of(Kind::EventSet)?).ok_or(Code::INVALID_ARGUMENT)?;
        *found.wanted.entry(index).or_insert(0) |= types;
        Ok(())
    }
}
