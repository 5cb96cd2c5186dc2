//! The heap: what glibc keeps of it for later.

#![expect(unsafe_code, reason = "a function of glibc that nothing else offers")]

use std::ffi::c_int;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

// SAFETY: the signature is that of malloc.h. The function may be called at any time, from any thread (malloc_trim(3)).
#[cfg(target_env = "gnu")]
unsafe extern "C" {
    safe fn malloc_trim(pad: usize) -> c_int;
}

/// How long the heap is left alone after it was trimmed: what is freed meanwhile is given back the next time.
const PAUSE: Duration = Duration::from_secs(1);

/// When the heap of this process was trimmed last.
static LAST: Mutex<Option<Instant>> = Mutex::new(None);

/// Gives free pages of the heap back to the kernel, at most once a second. glibc does so only at the end of the heap, where something
/// small that lives on holds all the rest. Takes less than a millisecond, and more where pages are needed again at once; for after
/// work that needs much for a moment.
pub fn trim() {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_some_and(|it| it.elapsed() < PAUSE) {
        return;
    }
    *last = Some(Instant::now());
    #[cfg(target_env = "gnu")]
    let _is_smaller = malloc_trim(0);
}
