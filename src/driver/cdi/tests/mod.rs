//! The folder as its callers see it: what is found in which installation, and whether a runtime accepts the result.

mod common_file;
mod discovery;
mod files;
mod judge;
mod layouts;
mod management;
