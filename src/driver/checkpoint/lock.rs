//! Rights that one process, or one call, has at a time: each is the lock of a file.

use std::fs::File;

/// The right to begin journals, given back by dropping it, or by the end of the process.
#[derive(Debug)]
pub struct Reservation {
    pub(super) _lock: File,
}

/// The right to rely on the MIG mode of a GPU, which several processes can have, or to switch it off, which only one can have
/// and no other then. Given back by dropping it, or by the end of the process.
#[derive(Debug)]
pub struct ModeLock {
    pub(super) _lock: File,
}
