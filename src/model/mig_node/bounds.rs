//! Bounds of what is read. The OpenAPI schema of the CRD has the same ones, so an object that breaks one was stored under
//! another schema.

/// GPUs of a node: more than any board has.
pub const MAX_GPUS: usize = 32;
/// Profiles of a GPU, with the whole GPU.
pub const MAX_PROFILES: usize = 32;
/// Placements of a profile.
pub const MAX_PLACEMENTS: usize = 32;
/// Attributes, or capacities, of a GPU or a profile.
pub const MAX_ATTRIBUTES: usize = 32;
/// Held devices of a GPU.
pub const MAX_HELD: usize = 64;
/// Published devices of a GPU.
pub const MAX_PUBLISHED: usize = 256;
/// Profiles that a demand or the floor lists.
pub const MAX_DEMANDED: usize = 64;
/// Devices of one profile that a demand or the floor asks for.
pub const MAX_COUNT: u32 = 512;
/// Holds of a node: one for each GPU.
pub const MAX_HOLDS: usize = MAX_GPUS;
/// Bytes of a profile's name: NVML's names of devices have at most 95.
pub const MAX_PROFILE_NAME: usize = 95;
/// Bytes of a name of a device or an object.
pub const MAX_NAME: usize = 253;
/// Bytes of a text for people.
pub const MAX_TEXT: usize = 1024;

/// A part of an object that breaks a bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct OutOfBounds {
    field: String,
    problem: String,
}

/// What has bounds.
pub trait Bounded {
    /// Finds the first bound that is broken.
    fn check(&self) -> Result<(), OutOfBounds>;
}

/// A list that is not too long.
pub(super) fn list<T>(field: &str, items: &[T], most: usize) -> Result<(), OutOfBounds> {
    most_of(field, items.len(), most)
}

/// So many entries at most.
pub(super) fn most_of(field: &str, count: usize, most: usize) -> Result<(), OutOfBounds> {
    ensure(count <= most, field, || format!("has {count} entries; at most {most} are allowed"))
}

/// A text that is not too long.
pub(super) fn text(field: &str, text: &str, most: usize) -> Result<(), OutOfBounds> {
    ensure(text.len() <= most, field, || format!("has {} bytes; at most {most} are allowed", text.len()))
}

/// A name that is neither empty nor too long, and can be printed.
pub(super) fn name(field: &str, name: &str, most: usize) -> Result<(), OutOfBounds> {
    text(field, name, most)?;
    let is_printable = !name.is_empty() && name.chars().all(|it| it.is_ascii_graphic());
    ensure(is_printable, field, || {
        "must be printable ASCII characters without spaces, at least one".to_owned()
    })
}

pub(super) fn ensure(
    is_kept: bool,
    field: &str,
    problem: impl FnOnce() -> String,
) -> Result<(), OutOfBounds> {
    if is_kept { Ok(()) } else { Err(OutOfBounds { field: field.to_owned(), problem: problem() }) }
}

/// A message about input, which may quote it, in one line of bounded length.
pub(super) fn shortened(message: &str) -> String {
    const LONGEST: usize = 256;
    let line: String =
        message.chars().map(|it| if it.is_control() { ' ' } else { it }).take(LONGEST).collect();
    if line.chars().count() < LONGEST { line } else { format!("{line}…") }
}
