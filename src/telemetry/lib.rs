//! What the programs that run in a cluster share, the driver of a node and the controller: log, metrics, addresses, signals.
//!
//! ```text
//! flags     values of flags that these programs share
//! logging   the log, to standard error
//! causes    errors as text
//! signals   when the process is to end
//! bind      addresses that are served
//! heap      one heap for all threads
//! health    the address of the probes
//! labels    closed sets of label values
//! gauges    values that are computed at scrape time
//! exporter  all that /metrics shows
//! plain     the same for readers that do not know OpenMetrics
//! serve     /metrics
//! ```

mod bind;
mod causes;
mod exporter;
mod flags;
mod gauges;
mod health;
mod heap;
mod labels;
mod logging;
mod plain;
mod serve;
mod signals;

pub use bind::bind;
pub use causes::with_causes;
pub use exporter::{Exporter, PREFIX};
pub use flags::{log_level, seconds};
pub use gauges::{Gauge, count, flag, gauge, write, write_one};
pub use health::{HealthError, bind_health};
pub use heap::use_one_heap;
pub use logging::{LogFormat, init_logging};
pub use plain::plain;
pub use serve::{MetricsAddress, MetricsError, bind_metrics, serve_metrics};
pub use signals::stop_on_signal;
