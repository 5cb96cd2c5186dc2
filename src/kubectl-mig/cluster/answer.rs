//! What the API server answers in place of objects, as text.

/// Begins the text of an error where no server answers.
pub(super) const UNREACHABLE: &str = "no answer from the API server: ";

/// The text of an error where the API server does not know the kind. It is the one that the server sends.
pub(super) const NOT_SERVED: &str = "the server could not find the requested resource";

/// The API server's own message where there is one, else the error with its causes.
pub(crate) fn text(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        if status.code == 404 {
            return NOT_SERVED.to_owned();
        }
        let message = status.message.trim_end();
        let is_said = message.to_lowercase().contains(&status.reason.to_lowercase());
        return if is_said { message.to_owned() } else { format!("{message} ({})", status.reason) };
    }
    let text = with_causes(error);
    // As hyper says it.
    if text.contains("client error (Connect)") { format!("{UNREACHABLE}{}", root_cause(error)) } else { text }
}

/// An error with its causes.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(it) = cause {
        let it_text = it.to_string();
        // Some errors print their causes themselves.
        if !text.contains(&it_text) {
            text = format!("{text}: {it_text}");
        }
        cause = it.source();
    }
    text
}

/// The last cause, without the number of the operating system.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    let text = last.to_string();
    let text = text.split(" (os error ").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|it| it.to_lowercase().chain(letters).collect()).unwrap_or_default()
}
