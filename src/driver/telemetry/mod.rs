//! Log and metrics of the process. Imports no other module of the driver.

mod args;
mod bind;
mod logging;
pub mod metrics;

pub use args::{OutputFormat, seconds};
pub use bind::bind;
pub use logging::{LogFormat, init_logging};
