//! Texts from objects, made safe for a terminal. Pure.

use std::borrow::Cow;

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
}
