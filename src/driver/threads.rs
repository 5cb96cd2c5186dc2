//! Runs work on its own thread: a call into the kernel or the NVIDIA driver may not come back, and must not keep a thread of the
//! runtime.
//!
//! The one way to start a thread for something that is done once and awaited. GPUs have threads that take one piece of work after
//! the other (`nvml::queue`, `nvml::monitor`), and `nvml::discover` waits for several threads at a time from one that may block.

use std::time::Duration;
use std::{io, thread};

use tokio::sync::oneshot;
use tokio::time::timeout;

/// Begins the work on a thread of this name. Its result comes over the channel, and then `notify` is called.
pub fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
    notify: impl FnOnce() + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (send, result) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        // The receiver may be gone: nothing waits for the result any more.
        let _ = send.send(work());
        notify();
    })?;
    Ok(result)
}

/// Does the work on a thread of this name and waits for its end.
pub async fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    start(name, work, || ())?.await.map_err(|_| died(name))
}

/// The same, waiting no longer than this. `None` where the work takes longer: it goes on, and its result is dropped.
pub async fn run_within<T: Send + 'static>(
    name: &str,
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    match timeout(patience, start(name, work, || ())?).await {
        Ok(result) => result.map(Some).map_err(|_| died(name)),
        Err(_) => Ok(None),
    }
}

/// A thread without a result: a bug.
fn died(name: &str) -> io::Error {
    io::Error::other(format!("the thread `{name}` has died"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn work_is_waited_for_to_its_end_or_as_long_as_said() {
        let (release, released) = mpsc::channel::<()>();
        let late = run_within("test", Duration::from_millis(1), move || released.recv().is_ok());
        assert_eq!(late.await.unwrap(), None);
        // The work has gone on.
        release.send(()).unwrap();
        assert_eq!(run_within("test", LONG, || 7).await.unwrap(), Some(7));
        assert_eq!(run("test", || 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn what_is_notified_can_have_the_result() {
        let (notify, notified) = mpsc::channel();
        let mut result = start("test", || 7, move || notify.send(()).unwrap()).unwrap();
        notified.recv().unwrap();
        assert_eq!(result.try_recv(), Ok(7));
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_that_names_its_thread() {
        let ended = run::<()>("bad", || panic!("a bug")).await;
        assert_eq!(ended.unwrap_err().to_string(), "the thread `bad` has died");
        let ended = run_within::<()>("bad", LONG, || panic!("a bug")).await;
        assert!(ended.unwrap_err().to_string().contains("`bad`"));
    }
}
