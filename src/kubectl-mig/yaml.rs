//! What is wrong with a text that is not YAML or JSON, in one line.

/// `line 4, column 10: not YAML: …`.
pub(crate) fn yaml_problem(error: &serde_saphyr::Error) -> String {
    let message = error.without_snippet().to_string();
    let message = message.lines().next().unwrap_or_default();
    let Some(place) = error.location() else { return format!("not YAML: {message}") };
    let (line, column) = (place.line(), place.column());
    let message = without_place(
        message,
        &[format!("line {line}, column {column}"), format!("line {line} column {column}")],
    );
    format!("line {line}, column {column}: not YAML: {message}")
}

/// `line 4, column 10: not JSON: …`.
pub(crate) fn json_problem(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let message = error.to_string();
    let message = without_place(&message, &[format!("line {line} column {column}")]);
    format!("line {line}, column {column}: not JSON: {message}")
}

/// The message without the place at its end or its beginning.
fn without_place<'m>(message: &'m str, places: &[String]) -> &'m str {
    let mut message = message;
    for place in places {
        message = message.strip_suffix(place.as_str()).map_or(message, |it| it.trim_end_matches(" at "));
        message =
            message.strip_prefix(place.as_str()).map_or(message, |it| it.trim_start_matches([':', ' ']));
    }
    message
}
