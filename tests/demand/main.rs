//! Decisions on demand: facts one by one, and worlds in which everything goes wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

#[allow(dead_code, reason = "the benchmark uses the rest")]
mod chance;
mod composition;
mod consolidation;
mod convert;
mod facts;
mod large;
#[allow(dead_code, reason = "the benchmark uses the rest")]
mod model;
#[allow(dead_code, reason = "the benchmark uses the rest")]
mod node;
#[allow(dead_code, reason = "the benchmark uses the rest")]
mod pods;
mod scale;
mod several;
mod worlds;
