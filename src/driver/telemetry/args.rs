//! What flags have in common.

use std::time::Duration;

use clap::ValueEnum;

/// How a subcommand prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// A whole number of seconds above 0, for clap.
///
/// # Errors
/// What is expected, for the message.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds) if 0 < seconds => Ok(Duration::from_secs(seconds.into())),
        _ => Err("a whole number of seconds above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rescan_interval_of_nothing_is_refused() {
        assert_eq!(seconds("60"), Ok(Duration::from_secs(60)));
        for text in ["0", "-1", "1m", ""] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
