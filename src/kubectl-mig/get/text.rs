//! Texts that go to a terminal: names from the API without control characters, cut to a width; colors. Pure.

pub(super) use crate::text::printable;

/// Color of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    /// As everything else.
    Plain,
    /// What is held.
    Held,
    /// What is free.
    Good,
    /// What needs attention.
    Bad,
    /// What matters less.
    Dim,
}

impl Paint {
    /// The text with this color.
    pub(super) fn over(self, text: &str) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Held => "36",
            Self::Good => "32",
            Self::Bad => "31",
            Self::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Whether colors are wanted: on terminals, unless NO_COLOR is set (<https://no-color.org>) or the terminal has none.
pub(super) fn wants_color(is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> bool {
    let is_set = |name: &str| variable(name).is_some_and(|it| !it.is_empty());
    is_terminal && !is_set("NO_COLOR") && variable("TERM").is_none_or(|it| it != "dumb")
}

/// Number of characters.
pub(super) fn width(text: &str) -> usize {
    text.chars().count()
}

/// At most so many characters: what is too much is taken out in the middle, because names differ at both ends.
pub(super) fn cut(text: &str, most: usize) -> String {
    let length = width(text);
    if length <= most {
        return text.to_owned();
    }
    let (Some(kept), true) = (most.checked_sub(1), 0 < most) else { return String::new() };
    let (head, tail) = (kept.div_ceil(2), kept / 2);
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(length - tail).collect();
    format!("{start}…{end}")
}

/// Words in lines of at most so many characters; a longer word is cut.
pub(super) fn wrap(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word = cut(word, most);
        match lines.last_mut() {
            Some(line) if width(line) + 1 + width(&word) <= most => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_keeps_both_ends() {
        assert_eq!(cut("gpu-node-0123456789", 9), "gpu-…6789");
        assert_eq!(cut("short", 5), "short");
        assert_eq!((cut("abc", 1), cut("abc", 0)), ("…".to_owned(), String::new()));
    }

    #[test]
    fn colors_are_for_terminals_that_want_them() {
        let none = |_: &str| None;
        assert!(wants_color(true, none));
        assert!(!wants_color(false, none));
        let set =
            |name: &'static str, value: &'static str| move |it: &str| (it == name).then(|| value.to_owned());
        assert!(!wants_color(true, set("NO_COLOR", "1")));
        assert!(wants_color(true, set("NO_COLOR", "")));
        assert!(!wants_color(true, set("TERM", "dumb")));
    }

    #[test]
    fn lines_are_wrapped_at_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("0123456789 a", 5), ["01…89", "a"]);
    }
}
