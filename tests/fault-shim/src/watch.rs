//! From a call to its point: which paths and connections are watched, what the plan says, and what is logged.

#![allow(
    unsafe_code,
    reason = "the address of a socket is had from the kernel, and only _exit ends a process at once"
)]

use std::ffi::{OsStr, OsString, c_int, c_long};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::mem;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::judge::{Count, Verdict};
use crate::plan::{CRASH_STATUS, DIRECTORY, LOCK, LOG, Op, PLAN, Plan, WATCH};

/// How much of a call is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    Whole,
    /// The first half of what is to be written.
    Half,
}

/// From the environment, read once.
#[derive(Debug)]
struct Settings {
    watched: Vec<PathBuf>,
    directory: PathBuf,
    lock: Option<PathBuf>,
}

fn settings() -> Option<&'static Settings> {
    static SETTINGS: OnceLock<Option<Settings>> = OnceLock::new();
    let read = || {
        let watched = std::env::var_os(WATCH)?;
        let watched =
            watched.as_bytes().split(|it| *it == b':').map(|it| PathBuf::from(OsStr::from_bytes(it)));
        let directory = std::env::var_os(DIRECTORY)?.into();
        Some(Settings { watched: watched.collect(), directory, lock: std::env::var_os(LOCK).map(Into::into) })
    };
    SETTINGS.get_or_init(read).as_ref()
}

/// Does a call that changes what `path` names. Answers as the C library does: -1 and `errno`, or the kernel's answer.
pub(crate) fn on_path(op: Op, path: Option<PathBuf>, act: impl FnOnce(Extent) -> c_long) -> c_long {
    match (settings(), path) {
        (Some(settings), Some(path)) if settings.watched.iter().any(|it| path.starts_with(it)) => {
            at_point(settings, op, &path, act)
        }
        _ => act(Extent::Whole),
    }
}

/// Does a call on an open file; a write to a connection is a reply.
pub(crate) fn on_file(op: Op, fd: c_int, act: impl FnOnce(Extent) -> c_long) -> c_long {
    if settings().is_none() {
        return act(Extent::Whole);
    }
    match path_of(fd) {
        Some(path) if path.as_os_str().as_bytes().starts_with(b"socket:") => {
            on_path(Op::Reply, listener_of(fd), act)
        }
        path => on_path(op, path, act),
    }
}

/// The path under which a file was opened.
pub(crate) fn path_of(fd: c_int) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{fd}")).ok()
}

/// The path of the Unix socket to which this connection was made; `None` for other sockets. An accepted connection has
/// the address of the socket that listened.
fn listener_of(fd: c_int) -> Option<PathBuf> {
    // SAFETY: a sockaddr_un is plain numbers, for which zero is a value.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    let mut length = libc::socklen_t::try_from(mem::size_of_val(&address)).ok()?;
    // SAFETY: the pointers are to two locals, and `length` is the size of the first.
    let answer = unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut length) };
    if answer != 0 || c_int::from(address.sun_family) != libc::AF_UNIX {
        return None;
    }
    let path: Vec<u8> =
        address.sun_path.iter().take_while(|it| **it != 0).map(|it| it.cast_unsigned()).collect();
    (!path.is_empty()).then(|| OsString::from_vec(path).into())
}

fn at_point(settings: &Settings, op: Op, path: &Path, act: impl FnOnce(Extent) -> c_long) -> c_long {
    match judge(settings, op, path) {
        Verdict::Pass => act(Extent::Whole),
        Verdict::Half => act(Extent::Half),
        Verdict::Hold(id) => {
            let is_in_force = || {
                let plan = fs::read_to_string(settings.directory.join(PLAN)).ok();
                plan.and_then(|it| it.parse::<Plan>().ok()).is_some_and(|it| it.id == id)
            };
            while is_in_force() {
                std::thread::sleep(Duration::from_millis(1));
            }
            act(Extent::Whole)
        }
        Verdict::CrashBefore => crash(settings),
        Verdict::CrashAfter => {
            act(Extent::Whole);
            crash(settings)
        }
        Verdict::Fail(errno) => {
            // SAFETY: the address of this thread's errno is valid as long as the thread.
            unsafe { *libc::__errno_location() = errno };
            -1
        }
    }
}

/// Asks the plan and logs the answer, before anything happens: a test that has the answer of a call knows from the log
/// whether the process is about to end.
fn judge(settings: &Settings, op: Op, path: &Path) -> Verdict {
    static COUNT: Mutex<Count> = Mutex::new(Count::new());
    let mut count = COUNT.lock().unwrap_or_else(PoisonError::into_inner);
    let verdict = match fs::read_to_string(settings.directory.join(PLAN)) {
        Err(_) => Verdict::Pass,
        Ok(text) => match text.parse::<Plan>() {
            Ok(plan) => count.judge(&plan, op),
            Err(error) => broken(&format!("the plan `{text}` is wrong: {error}")),
        },
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let line = format!("{now} {} {verdict} {}\n", op.name(), path.display());
    let log = OpenOptions::new().create(true).append(true).open(settings.directory.join(LOG));
    if let Err(error) = log.and_then(|mut it| it.write_all(line.as_bytes())) {
        broken(&format!("the log cannot be written: {error}"));
    }
    verdict
}

/// Ends the process as SIGKILL would, but recognisably.
fn crash(settings: &Settings) -> ! {
    let lock =
        settings.lock.as_ref().map(|it| fs::File::open(it).and_then(|file| file.lock().map(|()| file)));
    if let Some(Err(error)) = lock {
        broken(&format!("the lock is not available: {error}"));
    }
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(CRASH_STATUS) }
}

/// A test that does not work must not pass for one that does.
#[allow(clippy::print_stderr, reason = "there is no other way to report it")]
fn broken(problem: &str) -> ! {
    eprintln!("fault-shim: {problem}");
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(97) }
}
