//! The program `sandbox`, run as a user runs it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

mod common;
mod examples;
mod newcomer;
