//! Texts that the subcommands share: names from objects made safe for a terminal, plurals, ages, maps. Pure.

use std::borrow::Cow;

/// A free memory slice in a map of a GPU. ASCII, as everything of a map: it is one column in every terminal and locale.
pub(crate) const FREE: char = '.';

/// A text from outside without characters that move the cursor, change colors or reorder text.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let is_hidden = |it: char| {
        let reorders = matches!(it, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        it.is_control() || reorders
    };
    if text.contains(is_hidden) {
        Cow::Owned(text.replace(is_hidden, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// The same for each line of a text of several.
pub(crate) fn printable_lines(text: &str) -> Cow<'_, str> {
    if text.contains('\n') {
        Cow::Owned(text.split('\n').map(printable).collect::<Vec<_>>().join("\n"))
    } else {
        printable(text)
    }
}

/// `1 device`, `2 devices`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// An age as kubectl prints it: `duration.HumanDuration` of Kubernetes.
pub(crate) fn age(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |large: i64, name: &str, small: i64, small_name: &str| {
        let rest = seconds % large / small;
        let first = format!("{}{name}", seconds / large);
        if rest == 0 { first } else { format!("{first}{rest}{small_name}") }
    };
    match seconds {
        ..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(MINUTE, "m", 1, "s"),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => two(HOUR, "h", MINUTE, "m"),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => two(DAY, "d", HOUR, "h"),
        691_200..63_072_000 => format!("{}d", seconds / DAY),
        63_072_000..252_288_000 => two(YEAR, "y", DAY, "d"),
        _ => format!("{}y", seconds / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_replaced() {
        assert_eq!(
            printable("a\x1b[31mb\r\n\u{9b}c\u{202e}d"),
            "a\u{fffd}[31mb\u{fffd}\u{fffd}\u{fffd}c\u{fffd}d"
        );
        assert_eq!(printable("gpu-é"), "gpu-é");
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(printable_lines("a\nb\r\n"), "a\nb\u{fffd}\n");
    }

    #[test]
    fn ages_are_written_as_kubectl_writes_them() {
        // k8s.io/apimachinery/pkg/util/duration: HumanDuration.
        for (seconds, expected) in [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_860, "3h1m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (300_000_000, "9y"),
        ] {
            assert_eq!(age(seconds), expected, "{seconds}");
        }
    }
}
