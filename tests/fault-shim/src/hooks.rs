//! The interposed calls, thin: each finds its point and then asks the kernel by itself, so that nothing depends on the
//! order in which libraries are loaded.
//!
//! The names are those of the C library. Variadic ones are declared with all the arguments they may have: on the
//! supported machines a caller passes both kinds alike, and an argument that was not given is not used.

#![allow(unsafe_code, reason = "these functions stand in for those of the C library")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_long, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libc::{AT_FDCWD, iovec, mode_t, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t};

use crate::plan::Op;
use crate::watch::{Extent, on_file, on_path, path_of};

/// What a path argument names. Paths relative to the working directory are of no interest here.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn resolve(directory: c_int, path: *const c_char) -> Option<PathBuf> {
    if path.is_null() {
        return None;
    }
    // SAFETY: not null, so a C string by this function's contract; it is copied before the caller can change it.
    let text = unsafe { CStr::from_ptr(path) };
    let path = Path::new(OsStr::from_bytes(text.to_bytes()));
    if path.is_absolute() {
        return Some(path.to_owned());
    }
    if directory == AT_FDCWD { None } else { Some(path_of(directory)?.join(path)) }
}

/// The kernel answers with an int to these calls.
#[allow(clippy::cast_possible_truncation, reason = "the kernel's answer is an int by the call's signature")]
fn int(answer: c_long) -> c_int {
    answer as c_int
}

/// And with a size to these; on 64-bit machines both types are the same.
#[allow(clippy::cast_possible_truncation, reason = "both types have 64 bits here")]
fn size(answer: c_long) -> ssize_t {
    answer as ssize_t
}

fn opens_for_writing(flags: c_int) -> bool {
    flags & libc::O_CREAT != 0 || flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// # Safety
/// As openat(2).
unsafe fn open_at(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the arguments are the caller's, who keeps to openat(2).
    let act = |_| unsafe { libc::syscall(libc::SYS_openat, directory, path, flags, mode) };
    if !opens_for_writing(flags) {
        return int(act(Extent::Whole));
    }
    // SAFETY: `path` is what the caller passes for a path.
    int(on_path(Op::Open, unsafe { resolve(directory, path) }, act))
}

/// # Safety
/// As open(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: passed on.
    unsafe { open_at(AT_FDCWD, path, flags, mode) }
}

/// # Safety
/// As open(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: passed on. On 64-bit machines every file may be large.
    unsafe { open_at(AT_FDCWD, path, flags, mode) }
}

/// # Safety
/// As openat(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn openat(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: passed on.
    unsafe { open_at(directory, path, flags, mode) }
}

/// # Safety
/// As openat(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn openat64(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: passed on.
    unsafe { open_at(directory, path, flags, mode) }
}

fn part(extent: Extent, count: size_t) -> size_t {
    match extent {
        Extent::Whole => count,
        Extent::Half => count / 2,
    }
}

/// # Safety
/// As write(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn write(fd: c_int, buffer: *const c_void, count: size_t) -> ssize_t {
    // SAFETY: the arguments are the caller's, who keeps to write(2); half of a buffer is a buffer.
    let act = |extent| unsafe { libc::syscall(libc::SYS_write, fd, buffer, part(extent, count)) };
    size(on_file(Op::Write, fd, act))
}

/// # Safety
/// As pwrite(2).
unsafe fn write_at(fd: c_int, buffer: *const c_void, count: size_t, offset: off_t) -> ssize_t {
    // SAFETY: as for write.
    let act = |extent| unsafe { libc::syscall(libc::SYS_pwrite64, fd, buffer, part(extent, count), offset) };
    size(on_file(Op::Write, fd, act))
}

/// # Safety
/// As pwrite(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pwrite(fd: c_int, buffer: *const c_void, count: size_t, offset: off_t) -> ssize_t {
    // SAFETY: passed on.
    unsafe { write_at(fd, buffer, count, offset) }
}

/// # Safety
/// As pwrite(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pwrite64(fd: c_int, buffer: *const c_void, count: size_t, offset: off_t) -> ssize_t {
    // SAFETY: passed on.
    unsafe { write_at(fd, buffer, count, offset) }
}

/// # Safety
/// As writev(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    let act = |extent| match extent {
        // SAFETY: the arguments are the caller's, who keeps to writev(2).
        Extent::Whole => unsafe { libc::syscall(libc::SYS_writev, fd, parts, count) },
        Extent::Half if count < 1 => 0,
        Extent::Half => {
            // SAFETY: there is at least one part, which lives as long as the call.
            let first = unsafe { *parts };
            // SAFETY: half of the first part's buffer is a buffer.
            unsafe { libc::syscall(libc::SYS_write, fd, first.iov_base, first.iov_len / 2) }
        }
    };
    size(on_file(Op::Write, fd, act))
}

/// # Safety
/// As send(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn send(fd: c_int, buffer: *const c_void, count: size_t, flags: c_int) -> ssize_t {
    let no_address = std::ptr::null::<sockaddr>();
    // SAFETY: the arguments are the caller's, who keeps to send(2); that is sendto(2) without an address.
    let act =
        |_| unsafe { libc::syscall(libc::SYS_sendto, fd, buffer, count, flags, no_address, 0 as socklen_t) };
    size(on_file(Op::Reply, fd, act))
}

/// # Safety
/// As sendmsg(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the arguments are the caller's, who keeps to sendmsg(2).
    let act = |_| unsafe { libc::syscall(libc::SYS_sendmsg, fd, message, flags) };
    size(on_file(Op::Reply, fd, act))
}

/// # Safety
/// As ftruncate(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ftruncate(fd: c_int, length: off_t) -> c_int {
    // SAFETY: numbers only.
    int(on_file(Op::Truncate, fd, |_| unsafe { libc::syscall(libc::SYS_ftruncate, fd, length) }))
}

/// # Safety
/// As ftruncate(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ftruncate64(fd: c_int, length: off_t) -> c_int {
    // SAFETY: passed on.
    unsafe { ftruncate(fd, length) }
}

/// # Safety
/// As fsync(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: a number only.
    int(on_file(Op::Sync, fd, |_| unsafe { libc::syscall(libc::SYS_fsync, fd) }))
}

/// # Safety
/// As fdatasync(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: a number only.
    int(on_file(Op::Sync, fd, |_| unsafe { libc::syscall(libc::SYS_fdatasync, fd) }))
}

/// # Safety
/// As renameat2(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn renameat2(
    from_directory: c_int,
    from: *const c_char,
    to_directory: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    let act = |_| {
        // SAFETY: the arguments are the caller's, who keeps to renameat2(2).
        unsafe { libc::syscall(libc::SYS_renameat2, from_directory, from, to_directory, to, flags) }
    };
    // SAFETY: `to` is what the caller passes for a path.
    int(on_path(Op::Rename, unsafe { resolve(to_directory, to) }, act))
}

/// # Safety
/// As renameat(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn renameat(
    from_directory: c_int,
    from: *const c_char,
    to_directory: c_int,
    to: *const c_char,
) -> c_int {
    // SAFETY: passed on.
    unsafe { renameat2(from_directory, from, to_directory, to, 0) }
}

/// # Safety
/// As rename(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: passed on.
    unsafe { renameat2(AT_FDCWD, from, AT_FDCWD, to, 0) }
}

/// # Safety
/// As unlinkat(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn unlinkat(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the arguments are the caller's, who keeps to unlinkat(2).
    let act = |_| unsafe { libc::syscall(libc::SYS_unlinkat, directory, path, flags) };
    // SAFETY: `path` is what the caller passes for a path.
    int(on_path(Op::Unlink, unsafe { resolve(directory, path) }, act))
}

/// # Safety
/// As unlink(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: passed on.
    unsafe { unlinkat(AT_FDCWD, path, 0) }
}

/// # Safety
/// As linkat(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn linkat(
    from_directory: c_int,
    from: *const c_char,
    to_directory: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    let act = |_| {
        // SAFETY: the arguments are the caller's, who keeps to linkat(2).
        unsafe { libc::syscall(libc::SYS_linkat, from_directory, from, to_directory, to, flags) }
    };
    // SAFETY: `to` is what the caller passes for a path.
    int(on_path(Op::Link, unsafe { resolve(to_directory, to) }, act))
}

/// # Safety
/// As link(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn link(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: passed on.
    unsafe { linkat(AT_FDCWD, from, AT_FDCWD, to, 0) }
}

/// # Safety
/// As mkdirat(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mkdirat(directory: c_int, path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the arguments are the caller's, who keeps to mkdirat(2).
    let act = |_| unsafe { libc::syscall(libc::SYS_mkdirat, directory, path, mode) };
    // SAFETY: `path` is what the caller passes for a path.
    int(on_path(Op::Mkdir, unsafe { resolve(directory, path) }, act))
}

/// # Safety
/// As mkdir(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: passed on.
    unsafe { mkdirat(AT_FDCWD, path, mode) }
}
