//! Runs work that may hang on its own thread, and waits for it with or without a limit.
//!
//! The way to a thread for everything that is done once and awaited. GPUs have threads of their own that take one piece of work
//! after the other (`nvml::queue`), and `nvml::discover` waits for several threads at a time from one that may block.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{io, thread};

use tokio::sync::Notify;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::{Instant, timeout_at};

/// Work that has begun.
#[derive(Debug)]
pub struct Attempt<T> {
    begun: Instant,
    result: oneshot::Receiver<T>,
    is_late: Arc<AtomicBool>,
}

/// What has become of it.
#[derive(Debug)]
pub enum Outcome<T> {
    /// It has ended.
    Ended(T),
    /// Its thread has died without a result: a bug.
    Died,
    /// It takes longer, and can be asked again.
    Running(Attempt<T>),
}

impl<T: Send + 'static> Attempt<T> {
    /// Begins the work on a thread of this name. Where it takes longer than it was waited for, its end notifies `look_again`.
    pub fn start(
        name: &str,
        look_again: &Arc<Notify>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Self> {
        let (send, result) = oneshot::channel();
        let is_late = Arc::new(AtomicBool::new(false));
        let (was_late, look_again) = (Arc::clone(&is_late), Arc::clone(look_again));
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            // No receiver is left when the driver stops.
            let _ = send.send(work());
            if was_late.load(Ordering::SeqCst) {
                look_again.notify_one();
            }
        })?;
        Ok(Self { begun: Instant::now(), result, is_late })
    }

    /// Waits until it ends, no longer than this time after its beginning.
    pub async fn within(mut self, patience: Duration) -> Outcome<T> {
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

/// Does the work on a thread of this name and waits for its end, however long that takes.
pub async fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let attempt = Attempt::start(name, &Arc::default(), work)?;
    attempt.result.await.map_err(|_| io::Error::other(format!("the thread `{name}` ended without a result")))
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
    async fn work_that_panics_has_no_result() {
        let attempt = Attempt::start("test", &Arc::default(), || panic!("a bug")).unwrap();
        let ended: Outcome<()> = attempt.within(Duration::from_secs(3600)).await;
        assert!(matches!(ended, Outcome::Died));
        assert!(
            on_thread("test", || panic!("a bug")).await.is_err_and(|it| it.to_string().contains("`test`"))
        );
        assert_eq!(on_thread("test", || 7).await.unwrap(), 7);
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
