//! Names as YAML.

/// A name as YAML text: plain where no reader takes it for anything but a string, else, or with `json`, in quotes.
pub(super) fn quoted(name: &str, json: bool) -> String {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = name.starts_with(|it: char| it.is_ascii_alphabetic())
        && name.chars().all(|it| it.is_ascii_alphanumeric() || "-./_".contains(it))
        && !WORDS.contains(&name.to_ascii_lowercase().as_str());
    if plain && !json { name.to_owned() } else { serde_json::Value::from(name).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_only_where_they_are_strings_for_everybody() {
        assert_eq!(quoted("mig-1g.5gb", false), "mig-1g.5gb");
        assert_eq!(quoted("mig-1g.5gb", true), "\"mig-1g.5gb\"");
        for name in ["1", "1e3", "0x1f", "true", "No", "null", "y", "N", "n", "", "a b", "a: b", "~"] {
            assert!(quoted(name, false).starts_with('"'), "{name}");
        }
    }
}
