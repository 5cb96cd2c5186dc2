//! Prepares and unprepares ResourceClaims, from the kubelet's call to the answer.
//!
//! `allocation` reads what the scheduler decided, `plan` turns it into a record, `prepare` and `unprepare` carry it out:
//! record, hardware, CDI file, answer, in this order. `recovery` handles claims that are no longer requested. The
//! stages of a claim are those of [`Record`]. Rejects what it does not support: unknown
//! devices, configuration, admin access to anything but a whole GPU.
//!
//! The holder of a claim's [`Journal`] has exclusive access to the claim. A repeated call waits for the running one and returns its
//! result; prepare and unprepare of one claim run one after the other, in the order of the calls, and
//! a call that the kubelet cancelled while it waited does not start. No claim waits for another one, except for a part of
//! a GPU that the other still holds.

mod agreement;
mod allocation;
mod config;
mod device;
mod error;
mod host_files;
mod metadata;
mod plan;
mod prepare;
mod reason;
mod recovery;
mod repair;
mod session;
mod unprepare;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mig_model::claim::{ClaimRef, ClaimUid};
use mig_model::inventory::Inventory;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

pub use allocation::{AllocatedDevice, AllocationError, allocated_devices};
pub use error::{Busy, OtherDevices, PrepareError, UnprepareError};
pub use plan::{Conflict, ImpossibleClaim, PlanContext, PlanError, plan};
pub use work::{HungGpu, Unfinished};

use crate::api::ClaimReader;
use crate::cdi::{ClaimFiles, FilesError, Kind, NamedDevices};
use crate::checkpoint::{Journal, Record, Stage, StoreError, Stored, Taken};
use crate::context::NodeContext;
use crate::hardware::Hardware;
use crate::mig::ModePolicy;
use crate::readiness::HostReadiness;
use crate::telemetry::metrics::Step;
use session::{ClaimQueues, Opened};
use work::blocking;

/// A device as it is reported to the kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedDevice {
    /// Requests it satisfies, without sub-request names.
    pub requests: Vec<String>,
    /// Pool it was allocated from.
    pub pool: String,
    /// Device name.
    pub device: String,
    /// CDI device id.
    pub cdi_device_id: String,
}

/// Everything that preparing and unpreparing need.
#[derive(Debug)]
pub struct Claims {
    context: NodeContext,
    kind: Kind,
    proc_root: PathBuf,
    reader: ClaimReader,
    readiness: Arc<HostReadiness>,
    cdi: ClaimFiles,
    changed: watch::Sender<()>,
    budget: Duration,
    mode_policy: ModePolicy,
    device_metadata: bool,
    queues: ClaimQueues,
    /// Within this process, whose turn it is to make a new record.
    reserving: tokio::sync::Mutex<()>,
    /// Claims whose unreadable file was reported.
    reported: Mutex<BTreeSet<ClaimUid>>,
    /// Claims that this process has begun to work on, until nothing is left of them.
    begun: Mutex<BTreeSet<ClaimUid>>,
}

/// How claims are prepared.
#[derive(Debug)]
pub struct ClaimSettings {
    /// CDI kind, which carries the driver name: results of other drivers in a claim are not ours.
    pub kind: Kind,
    /// `/proc`, where the device numbers of instances are.
    pub proc_root: PathBuf,
    /// Time that is spent on one call before it is answered with an error.
    pub budget: Duration,
    /// What becomes of MIG mode when the last instance goes.
    pub mode_policy: ModePolicy,
    /// Whether containers get the metadata of their devices.
    pub device_metadata: bool,
}

/// Names of devices, by claim.
type Named = BTreeMap<ClaimUid, Vec<String>>;

impl Claims {
    /// `reader` reads claims, `readiness` knows what they need of the host and what their CDI specs share, `cdi` has their files,
    /// and `changed` is notified after each change of what claims hold.
    #[must_use]
    pub fn new(
        context: NodeContext,
        settings: ClaimSettings,
        reader: ClaimReader,
        readiness: Arc<HostReadiness>,
        cdi: ClaimFiles,
        changed: watch::Sender<()>,
    ) -> Self {
        let ClaimSettings { kind, proc_root, budget, mode_policy, device_metadata } = settings;
        Self {
            context,
            kind,
            proc_root,
            reader,
            readiness,
            cdi,
            changed,
            budget,
            mode_policy,
            device_metadata,
            queues: ClaimQueues::default(),
            reserving: tokio::sync::Mutex::default(),
            reported: Mutex::default(),
            begun: Mutex::default(),
        }
    }

    fn hardware(&self) -> Result<Arc<Hardware>, PrepareError> {
        self.context.node.borrow().hardware.clone().map_err(PrepareError::NoHardware)
    }

    /// This process has begun to work on a claim that is on record.
    fn note_begun(&self, uid: &ClaimUid) {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone());
    }

    /// Nothing is left of a claim. True where this process has begun to work on it.
    fn note_ended(&self, uid: &ClaimUid) -> bool {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).remove(uid)
    }

    fn is_begun(&self, uid: &ClaimUid) -> bool {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).contains(uid)
    }

    /// Requests a rescan of the hardware if a call found that the NVIDIA driver was unloaded or replaced.
    fn look_again_if_stale(&self) {
        if self.hardware().is_ok_and(|it| it.is_stale()) {
            self.context.rescan.notify_one();
        }
    }

    /// Waits until it is this call's turn and no other process has the claim's journal, until the deadline; `None` where nothing
    /// is on disk about the claim and `or_new` is false.
    async fn open<E: From<StoreError> + From<Busy>>(
        &self,
        claim: &ClaimRef,
        or_new: bool,
        deadline: Instant,
    ) -> Result<Option<Opened>, E> {
        let waiting = self.context.metrics.step(Step::LockWait);
        let ticket =
            timeout_at(deadline, self.queues.wait(&claim.uid)).await.map_err(|_| Busy(claim.clone()))?;
        let taken = until_free(claim, deadline, || {
            Ok::<_, E>(match self.context.checkpoint.take(&claim.uid, or_new)? {
                Taken::Journal(journal) => Some(Some(journal)),
                Taken::Nothing => Some(None),
                Taken::Busy => None,
            })
        });
        let taken = taken.await?;
        waiting.end(true);
        Ok(taken.map(|journal| Opened { journal, _ticket: Some(ticket) }))
    }

    /// Begins a claim's journal with a record that is made in view of all others, while no other record is created.
    ///
    /// The reservation holds up the new records of every other claim, so what may wait for a disk is done before it and after
    /// it. Within it remain: the names in the directory and those of its files that have changed since they were read a
    /// moment before, because the record has to be made in view of them; and the record's line, which others must see. That
    /// line is not forced to the disk there: they read it all the same, and after a power failure nothing exists of it.
    async fn reserve<E: From<StoreError> + From<Busy> + From<FilesError>>(
        &self,
        claim: &ClaimRef,
        journal: &mut Journal,
        deadline: Instant,
        make: impl FnOnce(&[Arc<Record>]) -> Result<Record, E>,
    ) -> Result<Record, E> {
        let named = blocking(|| {
            journal.keep_aside()?;
            self.named_by_cdi::<E>(&self.context.checkpoint.list()?, &Named::new())
        })?;
        let waiting = self.context.metrics.step(Step::LockWait);
        let first_here =
            timeout_at(deadline, self.reserving.lock()).await.map_err(|_| Busy(claim.clone()))?;
        let reservation =
            until_free(claim, deadline, || Ok::<_, E>(self.context.checkpoint.try_reserve()?)).await?;
        waiting.end(true);
        let (record, begun) = blocking(|| {
            let listed = self.context.checkpoint.list()?;
            let mut others: Vec<_> = listed.iter().filter_map(|(_, stored)| stored.record()).collect();
            others.extend(self.records_from_cdi(self.named_by_cdi::<E>(&listed, &named)?));
            let record = make(&others)?;
            let begun = journal.begin(&record, &reservation)?;
            Ok::<_, E>((record, begun))
        })?;
        drop((reservation, first_here));
        blocking(|| self.context.metrics.timed(Step::RecordSync, || journal.force(begun)))?;
        if let Some(aside) = journal.keep_aside()? {
            warn!(aside = %aside.display(), "state file set aside and rebuilt");
        }
        Ok(record)
    }

    /// The devices that claims hold whose state files cannot be read, by their CDI files. Those that are `known` are not read again.
    /// Fails where neither file can be read now: nothing else stops a second claim from getting the same whole GPU or share.
    fn named_by_cdi<E: From<StoreError> + From<FilesError>>(
        &self,
        listed: &[(ClaimUid, Arc<Stored>)],
        known: &Named,
    ) -> Result<Named, E> {
        let mut named = Named::new();
        for (uid, stored) in listed {
            if !matches!(**stored, Stored::Unreadable(_) | Stored::Inaccessible(_)) {
                continue;
            }
            let held = match known.get(uid) {
                Some(held) => held.clone(),
                None => {
                    let in_cdi = self.cdi.named(uid.as_str())?;
                    self.context.checkpoint.named_instead(uid, stored, &in_cdi.all)?;
                    in_cdi.held
                }
            };
            named.insert(uid.clone(), held);
        }
        Ok(named)
    }

    /// What claims hold whose state files cannot be read, as far as their CDI files show it.
    fn records_from_cdi(&self, named: Named) -> Vec<Arc<Record>> {
        let mut records = Vec::new();
        for (uid, names) in named {
            let claim = ClaimRef { namespace: "?".to_owned(), name: format!("(UID {uid})"), uid };
            let known = self.named(names).into_iter().filter_map(|it| self.planned(&claim, &[it], &[]).ok());
            records.extend(known.map(|it| Arc::new(it.assume_created(Stage::Prepared))));
        }
        records
    }

    /// Those of a claim's devices that no other claim has been given in this boot. What is not held, as with adminAccess, other claims
    /// may have as well.
    fn not_recorded(&self, named: NamedDevices) -> Result<Vec<String>, StoreError> {
        let records = self.context.checkpoint.records()?;
        let of_this_boot = records.iter().filter(|it| it.boot_id == self.context.boot_id);
        let recorded: BTreeSet<&str> =
            of_this_boot.flat_map(|it| it.held()).map(|it| it.name.as_str()).collect();
        let NamedDevices { held, all } = named;
        let is_given_back = |it: &String| held.contains(it) && recorded.contains(it.as_str());
        Ok(all.into_iter().filter(|it| !is_given_back(it)).collect())
    }

    /// Devices of this node as an allocation of which no more is known than their names.
    fn named(&self, names: Vec<String>) -> Vec<AllocatedDevice> {
        let (pool, requests) = (&self.context.pool, Vec::new());
        let device = |device| AllocatedDevice {
            device,
            pool: pool.clone(),
            requests: requests.clone(),
            admin_access: false,
        };
        names.into_iter().map(device).collect()
    }

    fn planned(
        &self,
        claim: &ClaimRef,
        allocated: &[AllocatedDevice],
        others: &[Arc<Record>],
    ) -> Result<Record, PlanError> {
        let (inventory, unknown) = {
            let node = self.context.node.borrow();
            (Arc::clone(&node.inventory), node.unread())
        };
        let (pool, boot_id) = (self.context.pool.as_str(), self.context.boot_id.as_str());
        let context = PlanContext { pool, inventory: &inventory, unread: &unknown, boot_id };
        let pod_claim_name = self.context.pods.claim_name(&claim.uid);
        Ok(Record { pod_claim_name, ..plan(claim, allocated, context, others)? })
    }

    fn inventory(&self) -> Arc<Inventory> {
        Arc::clone(&self.context.node.borrow().inventory)
    }
}

/// Asks for what another process may have until it is free; `None` says that it is not.
async fn until_free<T, E: From<Busy>>(
    claim: &ClaimRef,
    deadline: Instant,
    mut ask: impl FnMut() -> Result<Option<T>, E>,
) -> Result<T, E> {
    /// Far below what making or destroying an instance takes.
    const PAUSE: Duration = Duration::from_millis(10);
    loop {
        match ask()? {
            Some(free) => return Ok(free),
            None if deadline < Instant::now() + PAUSE => return Err(Busy(claim.clone()).into()),
            None => sleep(PAUSE).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_cannot_leave_its_directory() {
        for text in ["", "..", "a/b", "a.json", "a\0", "-a", "a-", &"a".repeat(64)] {
            assert!(text.parse::<ClaimUid>().is_err(), "{text}");
        }
        assert!("0f3c2d1e-1111-2222-3333-444455556666".parse::<ClaimUid>().is_ok());
    }

    #[test]
    fn a_name_cannot_leave_its_url() {
        let new = |namespace: &str, name: &str| ClaimRef::new(namespace.into(), name.into(), "u-1".into());
        assert!(new("team-a", "pod-gpu-x7k2p").is_ok());
        for (namespace, name) in [("", "c"), ("n", ""), ("n", "../x"), ("n", "a?b"), ("a/b", "c"), ("n", "A")]
        {
            assert!(new(namespace, name).is_err(), "{namespace} {name}");
        }
    }
}
