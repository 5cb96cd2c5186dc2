//! The heap: what glibc keeps of it for later.

#![expect(unsafe_code, reason = "a function of glibc that nothing else offers")]

use std::ffi::c_int;

// SAFETY: the signature is that of malloc.h. The function may be called at any time, from any thread (malloc_trim(3)).
#[cfg(target_env = "gnu")]
unsafe extern "C" {
    safe fn malloc_trim(pad: usize) -> c_int;
}

/// Gives free pages of the heap back to the kernel. glibc does so only at the end of the heap, where something small that lives on
/// holds all the rest. Takes less than a millisecond; for after work that needs much for a moment, and is rare.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    let _is_smaller = malloc_trim(0);
}
