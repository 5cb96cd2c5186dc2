//! Crashes a process at a chosen file operation, or fails the operation: a library for `LD_PRELOAD`.
//!
//! It stands between the process and the C library's calls that change files or write to connections ([`hooks`]). Each
//! such call on a watched path is a point (`watch`): it is logged, and the plan (`plan`) says what happens there
//! (`judge`). Everything else goes straight to the kernel.
//!
//! It does not see what bypasses the C library (raw system calls, `io_uring`), and it does not reorder or lose what
//! was not yet forced to the disk: a crash is the end of the process, not a power failure. 64-bit Linux only.

pub mod hooks;
mod judge;
pub mod plan;
mod watch;
