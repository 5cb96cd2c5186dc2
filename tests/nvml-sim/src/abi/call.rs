//! What all calls share: initialised or not, faults, latency, the lock, the log, and no panic across the ABI.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::client;
use super::types::Subject;
use crate::code::{Answer, Code};
use crate::fault::CRASH_STATUS;
use crate::node::{Call, log_call};
use crate::store::{Session, Store};

/// Declares exported functions. `on x` names the handle, index or name of the GPU that the call is about.
macro_rules! nvml {
    ($(
        fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(on $subject:ident)?, |$session:ident| $body:block
    )*) => {
        $(
            // SAFETY: no other item of the program has this name; a program that links the rlib and a real
            // NVML statically would be a mistake that the linker reports.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the names are NVML's")]
            extern "C" fn $name($($arg: $type),*) -> $crate::code::Code {
                #[allow(unused_mut, unused_assignments, reason = "some calls have no subject")]
                let mut subject: $crate::abi::types::Subject = Default::default();
                $(subject = $subject.into();)?
                $crate::abi::call::call(stringify!($name), subject, |$session| $body)
            }
        )*
        #[allow(dead_code, reason = "one list per module, of which a few are empty")]
        pub(super) const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}
pub(crate) use nvml;

/// What every call does around its body.
pub(super) fn call(name: &str, subject: Subject, body: impl FnOnce(&mut Session<'_>) -> Answer<()>) -> Code {
    guarded(|| {
        let store = client::initialised()?;
        perform(store, name, subject, body)
    })
}

/// A panic must not cross the ABI: the caller gets UNKNOWN.
pub(super) fn guarded(work: impl FnOnce() -> Answer<()>) -> Code {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => Code::SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => Code::UNKNOWN,
    }
}

/// Applies faults and latency, runs the body under the node's lock, saves what it changed, and logs the call.
pub(super) fn perform(
    store: &Store,
    name: &str,
    subject: Subject,
    body: impl FnOnce(&mut Session<'_>) -> Answer<()>,
) -> Answer<()> {
    perform_logged(store, name, subject, |_| true, body)
}

/// The same, logged only where the answer is worth it.
pub(super) fn perform_logged(
    store: &Store,
    name: &str,
    subject: Subject,
    is_logged: impl FnOnce(&Answer<()>) -> bool,
    body: impl FnOnce(&mut Session<'_>) -> Answer<()>,
) -> Answer<()> {
    let (began, clock) = (SystemTime::now(), Instant::now());
    let mut session = store.session().map_err(|error| broken(&error))?;
    let gpu = subject.gpu(session.machine());
    let plan = session.plan(name, gpu);
    let log = session.config().log_calls;
    let mut serial = None;
    if plan.latency_ms > 0.0 || plan.crash_before || plan.hangs {
        session.finish().map_err(|error| broken(&error))?;
        if plan.crash_before {
            crash(store);
        }
        // The wait is outside the node's lock and inside the GPU's: GPUs work in parallel, each of them one
        // by one.
        serial = gpu.map(|gpu| store.serialise(gpu)).transpose().map_err(|error| broken(&error))?;
        std::thread::sleep(Duration::from_secs_f64(plan.latency_ms.max(0.0) / 1000.0));
        while plan.hangs && store.still_hangs(name, gpu).map_err(|error| broken(&error))? {
            std::thread::sleep(Duration::from_millis(5));
        }
        session = store.session().map_err(|error| broken(&error))?;
    }
    let answer = match plan.refuse {
        Some(code) => Err(code),
        None => body(&mut session),
    };
    if answer.is_err() {
        session.undo();
    }
    session.finish().map_err(|error| broken(&error))?;
    drop(serial);
    if plan.crash_after {
        crash(store);
    }
    let answer = match (answer, plan.report) {
        (Ok(()), Some(code)) => Err(code),
        (answer, _) => answer,
    };
    if log && is_logged(&answer) {
        let code = answer.err().unwrap_or(Code::SUCCESS).0;
        let since = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (began_us, took_us) = (micros(since), micros(clock.elapsed()));
        let entry = Call { pid: std::process::id(), call: name.into(), gpu, code, began_us, took_us };
        log_call(store, &entry).map_err(|error| broken(&error))?;
    }
    answer
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A state directory that cannot be read or written is a broken installation of the simulator: say so, where
/// a real driver would write to the kernel log.
#[allow(
    clippy::print_stderr,
    reason = "the C ABI has no other way to tell what is wrong with the state files"
)]
pub(super) fn broken(error: &std::io::Error) -> Code {
    eprintln!("nvml-sim: {error}");
    Code::UNKNOWN
}

/// Ends the process at once, without destructors and without flushing: as SIGKILL would, but recognisable. The node is
/// locked meanwhile, so that no step that another thread is taking on another GPU is cut in half: on hardware, a step
/// is whole whatever happens to the process that asked for it.
#[allow(unsafe_code, reason = "there is no safe call that ends a process without running exit handlers")]
fn crash(store: &Store) -> ! {
    let _whole_steps = store.session();
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(CRASH_STATUS) }
}
