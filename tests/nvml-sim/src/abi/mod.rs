//! The C functions. Each is declared through [`nvml!`](call), which wraps a short body over the locked machine into
//! what all calls share: initialised or not, faults, latency, the lock, the log, and no panic across the ABI.

#![allow(unsafe_code, reason = "exporting a symbol is unsafe; the functions themselves are safe Rust")]

mod absent;
mod call;
mod client;
mod device;
mod event;
mod gpm;
mod instance;
mod library;
mod more;
mod partition;
mod types;
mod usage;

/// The names of all functions that the library exports, for tests of completeness.
pub fn exported_functions() -> Vec<&'static str> {
    let own = [library::OWN, event::OWN, absent::NAMES];
    let made = [
        library::NAMES,
        device::NAMES,
        partition::NAMES,
        instance::NAMES,
        event::NAMES,
        gpm::NAMES,
        more::NAMES,
        usage::NAMES,
    ];
    [own.concat(), made.concat()].concat()
}
