//! Reads and writes the Lease.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, Error};
use mig_model::hash::fnv1a;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Candidate, Step};
use mig_telemetry::with_causes;

/// Whether this process leads, for those who act.
#[derive(Debug, Clone)]
pub struct Leadership(watch::Receiver<Lead>);

/// How often this process has begun to lead, and until when it leads.
#[derive(Debug, Clone, Copy, Default)]
struct Lead {
    term: u64,
    until: Option<Instant>,
}

/// A time in which this process leads without interruption. What was remembered in another one is out of date.
#[derive(Debug, Clone)]
pub struct Term {
    leadership: Leadership,
    number: u64,
}

impl Term {
    /// Which one.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether it lasts.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.leadership.term().is_some_and(|it| it.number == self.number)
    }
}

impl Leadership {
    /// Whether this process leads now.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.term().is_some()
    }

    /// The term of this moment, if this process leads.
    #[must_use]
    pub fn term(&self) -> Option<Term> {
        let Lead { term, until } = *self.0.borrow();
        let leads = until.is_some_and(|until| Instant::now() < until);
        leads.then(|| Term { leadership: self.clone(), number: term })
    }

    /// Waits until something about it changes: it is gained, renewed, or given up. Forever once the campaign has ended.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Tries to lead until it is stopped.
#[derive(Debug)]
pub struct Campaign {
    api: Api<Lease>,
    candidate: Candidate,
    leads: watch::Sender<Lead>,
    /// Pause between attempts, another one for each candidate.
    pause: Duration,
    /// Whether the last attempt has failed.
    fails: bool,
}

impl Campaign {
    /// A campaign, and what it comes to. Needs the verbs `get`, `create` and `update` for Leases of the namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str, candidate: Candidate) -> (Self, Leadership) {
        let (leads, leadership) = watch::channel(Lead::default());
        // Up to a fifth more, so that candidates do not ask at one moment.
        let percent = u32::try_from(fnv1a(candidate.identity().as_bytes()) % 20).unwrap_or_default();
        let retry = candidate.timings().retry;
        let pause = retry + retry * percent / 100;
        let api = Api::namespaced(client, namespace);
        (Self { api, candidate, leads, pause, fails: false }, Leadership(leadership))
    }

    /// Runs until `stop`. The Lease is kept meanwhile, and until `idle` is cancelled: the leader has stopped acting then, and
    /// another one may take over at once.
    pub async fn run(mut self, stop: CancellationToken, idle: CancellationToken) {
        loop {
            let begun = Instant::now();
            let led = self.candidate.leads(begun);
            self.attempt().await;
            self.report(led);
            tokio::select! {
                biased;
                () = idle.cancelled() => break,
                () = stop.cancelled(), if !self.candidate.leads(Instant::now()) => break,
                () = sleep_until(begun + self.pause) => {}
            }
        }
        self.release().await;
    }

    /// Renews the Lease, or takes it if it may be taken.
    async fn attempt(&mut self) {
        // Two attempts fit between a renewal and the deadline.
        let limit = self.candidate.timings().renew_deadline / 2;
        let error = match timeout(limit, self.try_once()).await {
            Ok(Ok(())) => return self.fails = false,
            // Another one was faster.
            Ok(Err(Error::Api(status))) if status.is_conflict() || status.is_already_exists() => return,
            Ok(Err(error)) => with_causes(&error),
            Err(_) => format!("no answer within {limit:?}"),
        };
        if !std::mem::replace(&mut self.fails, true) {
            let name = self.candidate.lease_name();
            warn!(
                error,
                "cannot read or write Lease {name}; trying again every {:?}. If it is forbidden, apply the Role mig-controller of this version again (chart, or deploy/manifests/optional/controller.yaml)",
                self.pause
            );
        }
    }

    async fn try_once(&mut self) -> Result<(), Error> {
        // The leader writes at the version that it has written last; what it has not seen makes that a conflict.
        if self.candidate.leads(Instant::now()) && self.write().await.is_ok() {
            return Ok(());
        }
        let lease = self.api.get_opt(self.candidate.lease_name()).await?;
        self.candidate.read(lease, Instant::now());
        self.write().await
    }

    async fn write(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        let Step::Write(lease) = self.candidate.step(begun, Timestamp::now()) else { return Ok(()) };
        let params = PostParams::default();
        let written = match &lease.metadata.resource_version {
            None => self.api.create(&params, &lease).await?,
            Some(_) => self.api.replace(self.candidate.lease_name(), &params, &lease).await?,
        };
        self.candidate.written(written, begun);
        Ok(())
    }

    /// Says who leads, and logs it where that has changed.
    fn report(&self, led: bool) {
        let leads = self.candidate.leads(Instant::now());
        let until = self.candidate.leads_until().filter(|_| leads);
        self.leads.send_modify(|it| {
            it.term += u64::from(!led && leads);
            it.until = until;
        });
        match (led, leads) {
            (false, true) => info!("leading: this replica acts"),
            (true, false) => warn!("no longer leading: the Lease was not renewed in time, or was taken"),
            _ => debug!(holder = self.candidate.holder(), "Lease"),
        }
    }

    async fn release(&mut self) {
        self.leads.send_modify(|it| it.until = None);
        let Some(lease) = self.candidate.release(Timestamp::now()) else { return };
        let (name, params) = (self.candidate.lease_name(), PostParams::default());
        let limit = self.candidate.timings().renew_deadline / 2;
        match timeout(limit, self.api.replace(name, &params, &lease)).await {
            Ok(Ok(_)) => info!("Lease released"),
            // It expires.
            Ok(Err(error)) => warn!(error = with_causes(&error), "cannot release the Lease"),
            Err(_) => warn!("cannot release the Lease: no answer within {limit:?}"),
        }
    }
}
