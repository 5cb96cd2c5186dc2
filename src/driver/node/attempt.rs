//! Work that may hang, on its own thread: one attempt at a time, and one wait for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::{Instant, timeout_at};

use crate::threads;

/// Why the node is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LookReason {
    /// It is time, or something has changed.
    Due,
    /// An attempt that was late has ended.
    LateResult,
}

/// Attempts at work of one kind, one at a time.
#[derive(Debug)]
pub(super) struct Attempts<T> {
    running: Option<Attempt<T>>,
    /// Whether the last one took longer than it was waited for.
    was_late: bool,
}

impl<T> Default for Attempts<T> {
    fn default() -> Self {
        Self { running: None, was_late: false }
    }
}

/// What has become of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome<T> {
    /// It has ended.
    Ended(T),
    /// Its thread has died without a result: a bug.
    Died,
    /// It takes longer, and can be asked for again.
    Running,
    /// It was not begun, see [`Attempts::result`].
    Paused,
}

impl<T: Send + 'static> Attempts<T> {
    /// The result of the attempt that runs, or of the one that `start` begins. Waits for it no longer than this time after its
    /// beginning; the end of one that takes longer is a reason to look again.
    ///
    /// Where that is the only reason, what was late itself is not begun again: two kinds of work that are always late
    /// would otherwise begin each other without pause.
    pub(super) async fn result(
        &mut self,
        patience: Duration,
        reason: LookReason,
        start: impl FnOnce() -> io::Result<Attempt<T>>,
    ) -> io::Result<Outcome<T>> {
        let mut attempt = match self.running.take() {
            Some(running) => running,
            None if self.was_late && reason == LookReason::LateResult => return Ok(Outcome::Paused),
            None => {
                self.was_late = false;
                start()?
            }
        };
        let outcome = attempt.within(patience).await;
        if let Outcome::Running = outcome {
            (self.running, self.was_late) = (Some(attempt), true);
        }
        Ok(outcome)
    }

    /// True where one runs that can be asked for again.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }
}

/// Work that has begun.
#[derive(Debug)]
pub(super) struct Attempt<T> {
    begun: Instant,
    result: oneshot::Receiver<T>,
    is_late: Arc<AtomicBool>,
}

impl<T: Send + 'static> Attempt<T> {
    /// Begins the work. Where it takes longer than it was waited for, its end is a reason to look again.
    pub(super) fn start(
        name: &str,
        look_again: &Arc<Notify>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Self> {
        let is_late = Arc::new(AtomicBool::new(false));
        let (was_late, look_again) = (Arc::clone(&is_late), Arc::clone(look_again));
        let notify = move || {
            if was_late.load(Ordering::SeqCst) {
                look_again.notify_one();
            }
        };
        let result = threads::start(name, work, notify)?;
        Ok(Self { begun: Instant::now(), result, is_late })
    }

    /// Waits until it ends, no longer than this time after its beginning.
    async fn within(&mut self, patience: Duration) -> Outcome<T> {
        match timeout_at(self.begun + patience, &mut self.result).await {
            Ok(Ok(result)) => Outcome::Ended(result),
            Ok(Err(_)) => Outcome::Died,
            Err(_) => {
                self.is_late.store(true, Ordering::SeqCst);
                // It may have ended before it could see that.
                match self.result.try_recv() {
                    Ok(result) => Outcome::Ended(result),
                    Err(TryRecvError::Closed) => Outcome::Died,
                    Err(TryRecvError::Empty) => Outcome::Running,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Sender};

    use super::LookReason::{Due, LateResult};
    use super::*;

    /// Begins work that ends with this number once the sender is used.
    fn held(
        look_again: &Arc<Notify>,
        number: u32,
    ) -> (Sender<()>, impl FnOnce() -> io::Result<Attempt<u32>>) {
        let (release, released) = mpsc::channel::<()>();
        let look_again = Arc::clone(look_again);
        let work = move || released.recv().map_or(0, |()| number);
        (release, move || Attempt::start("test", &look_again, work))
    }

    fn not_begun() -> io::Result<Attempt<u32>> {
        panic!("a second attempt")
    }

    #[tokio::test]
    async fn what_does_not_come_back_is_waited_for_once_and_its_end_is_a_reason_to_look() {
        let look_again = Arc::new(Notify::new());
        let (release, start) = held(&look_again, 7);
        let mut attempts = Attempts::default();
        assert_eq!(attempts.result(Duration::from_millis(1), Due, start).await.unwrap(), Outcome::Running);
        // A patience that is over is no wait at all.
        assert_eq!(attempts.result(Duration::ZERO, Due, not_begun).await.unwrap(), Outcome::Running);
        assert!(attempts.is_running());
        release.send(()).unwrap();
        look_again.notified().await;
        let ended = attempts.result(Duration::ZERO, LateResult, not_begun).await.unwrap();
        assert_eq!(ended, Outcome::Ended(7));
    }

    #[tokio::test]
    async fn what_ends_in_time_is_no_reason_to_look_again() {
        const LONG: Duration = Duration::from_secs(3600);
        let look_again = Arc::new(Notify::new());
        let mut attempts = Attempts::default();
        for reason in [Due, LateResult] {
            let start = || Attempt::start("test", &look_again, || 7);
            assert_eq!(attempts.result(LONG, reason, start).await.unwrap(), Outcome::Ended(7));
        }
        let woken = tokio::time::timeout(Duration::from_millis(1), look_again.notified()).await;
        assert!(woken.is_err());
    }

    /// As a look at the node does: each kind in turn.
    #[tokio::test]
    async fn two_kinds_that_are_always_late_do_not_begin_each_other_for_ever() {
        let look_again = Arc::new(Notify::new());
        let mut kinds = [Attempts::default(), Attempts::default()];
        let mut releases = Vec::new();
        for kind in &mut kinds {
            let (release, start) = held(&look_again, 1);
            assert_eq!(kind.result(Duration::ZERO, Due, start).await.unwrap(), Outcome::Running);
            releases.push(release);
        }
        releases[0].send(()).unwrap();
        look_again.notified().await;
        let [one, other] = &mut kinds;
        assert_eq!(one.result(Duration::ZERO, LateResult, not_begun).await.unwrap(), Outcome::Ended(1));
        assert_eq!(other.result(Duration::ZERO, LateResult, not_begun).await.unwrap(), Outcome::Running);
        releases[1].send(()).unwrap();
        look_again.notified().await;
        assert_eq!(one.result(Duration::ZERO, LateResult, not_begun).await.unwrap(), Outcome::Paused);
        assert_eq!(other.result(Duration::ZERO, LateResult, not_begun).await.unwrap(), Outcome::Ended(1));
        // The next regular look begins both again.
        for kind in &mut kinds {
            let (_release, start) = held(&look_again, 1);
            assert_eq!(kind.result(Duration::ZERO, Due, start).await.unwrap(), Outcome::Running);
        }
    }
}
