//! The heap that the threads of a process share.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// glibc's limit for heaps that threads have to themselves; read when the process starts.
const HEAPS: &str = "MALLOC_ARENA_MAX";

/// Replaces this process by itself with one heap for all threads, where the environment does not say how many there are. To be called
/// at the very start. Heaps of their own cost these programs a fifth to a half of their resident memory and gain nothing: their threads
/// wait for others, not for the allocator. A program also works if this fails, only larger.
pub fn use_one_heap() {
    if env::var_os(HEAPS).is_none()
        && let Ok(program) = env::current_exe()
    {
        let _error = Command::new(program).args(env::args_os().skip(1)).env(HEAPS, "1").exec();
    }
}
