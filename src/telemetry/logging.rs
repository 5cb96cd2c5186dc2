//! The log: one line an event, to standard error.

use std::env;
use std::ffi::OsStr;
use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// Sets up the log. `level` is a level or a list of `target=level` as tracing-subscriber's `Targets` takes it: nothing here
/// filters by spans, and its EnvFilter brings an engine for regular expressions. A second call in one process, as tests make
/// it, changes nothing.
pub fn init_logging(level: &str, format: LogFormat) -> Result<(), ParseError> {
    let filter: Targets = level.parse()?;
    let colors = has_colors(io::stderr().is_terminal(), env::var_os("NO_COLOR").as_deref());
    let (log, lines) =
        (Registry::default().with(filter), fmt::layer().with_writer(io::stderr).with_ansi(colors));
    // The error only says that a log is set up already.
    let _ = match format {
        LogFormat::Text => log.with(lines).try_init(),
        LogFormat::Json => log.with(lines.json().flatten_event(true)).try_init(),
    };
    Ok(())
}

/// Colors are for terminals; a file or a log collector would keep the escape sequences. `NO_COLOR`, unless empty, turns them
/// off everywhere (https://no-color.org).
fn has_colors(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_are_for_terminals_without_no_color() {
        assert!(has_colors(true, None));
        assert!(has_colors(true, Some(OsStr::new(""))));
        assert!(!has_colors(true, Some(OsStr::new("1"))));
        assert!(!has_colors(false, None));
    }
}
