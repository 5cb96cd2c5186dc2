//! Work that may hang, on its own thread: one attempt at a time, and one wait for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::{Instant, timeout_at};

use crate::threads;

/// Work that has begun.
#[derive(Debug)]
pub(super) struct Attempt<T> {
    begun: Instant,
    result: oneshot::Receiver<T>,
    is_late: Arc<AtomicBool>,
}

/// What has become of it.
#[derive(Debug)]
pub(super) enum Outcome<T> {
    /// It has ended.
    Ended(T),
    /// Its thread has died without a result: a bug.
    Died,
    /// It takes longer, and can be asked again.
    Running(Attempt<T>),
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
    pub(super) async fn within(mut self, patience: Duration) -> Outcome<T> {
        match timeout_at(self.begun + patience, &mut self.result).await {
            Ok(Ok(result)) => Outcome::Ended(result),
            Ok(Err(_)) => Outcome::Died,
            Err(_) => {
                self.is_late.store(true, Ordering::SeqCst);
                // It may have ended before it could see that.
                match self.result.try_recv() {
                    Ok(result) => Outcome::Ended(result),
                    Err(TryRecvError::Closed) => Outcome::Died,
                    Err(TryRecvError::Empty) => Outcome::Running(self),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_does_not_come_back_is_waited_for_once_and_its_end_is_a_reason_to_look() {
        let (release, released) = mpsc::channel::<()>();
        let look_again = Arc::new(Notify::new());
        let attempt = Attempt::start("test", &look_again, move || released.recv().is_ok()).unwrap();
        let Outcome::Running(attempt) = attempt.within(Duration::from_millis(1)).await else {
            panic!("nothing has released it");
        };
        // A patience that is over is no wait at all.
        let Outcome::Running(attempt) = attempt.within(Duration::ZERO).await else {
            panic!("nothing has released it");
        };
        release.send(()).unwrap();
        look_again.notified().await;
        assert!(matches!(attempt.within(Duration::ZERO).await, Outcome::Ended(true)));
    }

    #[tokio::test]
    async fn what_ends_in_time_is_no_reason_to_look_again() {
        let look_again = Arc::new(Notify::new());
        let attempt = Attempt::start("test", &look_again, || 7).unwrap();
        assert!(matches!(attempt.within(Duration::from_secs(3600)).await, Outcome::Ended(7)));
        let woken = tokio::time::timeout(Duration::from_millis(1), look_again.notified()).await;
        assert!(woken.is_err());
    }
}
