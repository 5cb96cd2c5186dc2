//! This program as a client of the library: the node that it has opened, and how often it has initialised.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::code::{Answer, Code};
use crate::store::Store;

/// The node of this copy of the library. Each copy that is loaded has its own.
pub(super) static STORE: OnceLock<Store> = OnceLock::new();
/// How often the program has initialised the library and not yet shut it down.
pub(super) static USERS: AtomicU32 = AtomicU32::new(0);

/// The node, if the program has initialised the library.
pub(super) fn initialised() -> Answer<&'static Store> {
    if USERS.load(Ordering::SeqCst) == 0 {
        return Err(Code::UNINITIALIZED);
    }
    STORE.get().ok_or(Code::UNINITIALIZED)
}
