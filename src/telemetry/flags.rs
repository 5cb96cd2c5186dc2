//! Values of flags that programs share.

use std::time::Duration;

use tracing_subscriber::filter::{LevelFilter, Targets};

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

/// A level, or a list of `target=level`, for clap. `Targets` alone would take a misspelt level for the name of a target.
///
/// # Errors
/// What is expected, for the message.
pub fn log_level(text: &str) -> Result<String, String> {
    let is_known = |part: &str| {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level).trim();
        !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    if text.split(',').all(is_known) && text.parse::<Targets>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("a level (error, warn, info, debug, trace or off), or a list such as `info,dra_driver_mig::claim=debug`".to_owned())
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

    #[test]
    fn a_misspelt_log_level_is_refused() {
        for text in ["info", "warn", "off", "info,dra_driver_mig::claim=debug", "dra_driver_mig=trace"] {
            assert_eq!(log_level(text).as_deref(), Ok(text));
        }
        for text in ["", "nonsense", "info,verbose", "dra_driver_mig=loud", "info,,"] {
            assert!(log_level(text).is_err(), "{text}");
        }
    }
}
