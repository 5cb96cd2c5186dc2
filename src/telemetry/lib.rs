//! Log, metrics and addresses of the programs that run in a cluster: the driver of a node and the controller.
//!
//! ```text
//! flags     values of flags that these programs share
//! logging   the log, to standard error
//! bind      addresses that are served
//! labels    closed sets of label values
//! gauges    values that are computed at scrape time
//! exporter  all that /metrics shows
//! plain     the same for readers that do not know OpenMetrics
//! serve     /metrics
//! ```

mod bind;
mod exporter;
mod flags;
mod gauges;
mod labels;
mod logging;
mod plain;
mod serve;

pub use bind::bind;
pub use exporter::{Exporter, PREFIX};
pub use flags::{log_level, seconds};
pub use gauges::{Gauge, count, flag, gauge, write, write_one};
pub use logging::{LogFormat, init_logging};
pub use plain::plain;
pub use serve::{MetricsAddress, MetricsError, bind_metrics, serve_metrics};
