//! Words of commands that people copy into a shell.

use std::borrow::Cow;

/// A text as one word of a shell: as it is where nothing in it means something to a shell, else in quotes.
pub(crate) fn word(text: &str) -> Cow<'_, str> {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || "-._:/=,+@".contains(it);
    if !text.is_empty() && text.chars().all(is_plain) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(format!("'{}'", text.replace('\'', "'\\''")))
    }
}

#[cfg(test)]
mod tests {
    use super::word;

    #[test]
    fn what_a_shell_would_interpret_is_quoted() {
        assert_eq!(word("gpu-1.example_a:b/c=d"), "gpu-1.example_a:b/c=d");
        assert_eq!(word("a; touch b"), "'a; touch b'");
        assert_eq!(word("it's $(id)"), "'it'\\''s $(id)'");
        assert_eq!(word(""), "''");
    }
}
