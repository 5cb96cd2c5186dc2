//! Parses the command line and calls the library.

use clap::Parser;
use mig_controller::args::Args;

fn main() {
    let _args = Args::parse();
}
