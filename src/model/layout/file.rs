//! The layout file, in the format that mig-parted and the GPU Operator's MIG manager read.
//!
//! Strict: what is not understood is refused with its place in the file, because a layout that is half understood
//! partitions GPUs in a way that the author did not ask for. Knows no GPU; whether a layout fits is decided elsewhere.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

/// Largest file, bytes: that of a ConfigMap (k8s.io/api/core/v1).
pub const MAX_FILE: usize = 1 << 20;
/// Most layouts in a file; NVIDIA's own has some eighty.
const MAX_CONFIGS: usize = 1024;
/// Most entries in a layout, profiles in an entry, filters or indices in a list; NVIDIA's own have a dozen.
const MAX_ENTRIES: usize = 128;
/// Largest count and index.
const MAX_NUMBER: u64 = 1024;
/// Longest name of a layout (a label value) and of a profile.
const MAX_NAME: usize = 63;

/// A layout file that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutFile {
    /// What it is called in messages.
    pub name: String,
    /// Layouts by name.
    pub configs: BTreeMap<String, Vec<Entry>>,
}

/// What a layout says of some GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which GPUs of the node.
    pub devices: Devices,
    /// Only GPUs with one of these PCI ids, device in the upper half (0x233010DE); none means any.
    pub filter: Option<Vec<u32>>,
    /// How many of which profile; `None` leaves the GPU whole.
    pub cut: Option<BTreeMap<String, u32>>,
}

/// Which GPUs of a node an entry is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// All of them.
    All,
    /// Those with these NVML indices.
    Indices(Vec<u32>),
}

/// A file that cannot be used, and where it is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("layout file `{file}`, {place}: {problem}")]
pub struct FileError {
    /// The file.
    pub file: String,
    /// The place, such as `mig-configs.all-1g.10gb[0].devices`.
    pub place: String,
    /// What is wrong and what to write instead.
    pub problem: String,
}

impl LayoutFile {
    /// Reads a file's content. `name` is for messages.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, FileError> {
        let parsed = (|| {
            if MAX_FILE < bytes.len() {
                return Err(wrong("the file", format!("it is larger than {} KiB", MAX_FILE >> 10)));
            }
            let value: Value =
                serde_saphyr::from_slice(bytes).map_err(|error| match error.without_snippet() {
                    serde_saphyr::Error::MultipleDocuments { .. } => {
                        wrong("the file", "it is not a layout file: it has several documents".to_owned())
                    }
                    _ => wrong("the file", format!("it is not YAML: {}", first_line(&error))),
                })?;
            configs(&value)
        })();
        let configs =
            parsed.map_err(|Wrong { place, problem }| FileError { file: name.to_owned(), place, problem })?;
        Ok(Self { name: name.to_owned(), configs })
    }
}

impl Entry {
    /// True where the entry is about the GPU with this index and PCI id.
    #[must_use]
    pub fn selects(&self, index: u32, pci_device_id: u32) -> bool {
        let is_listed = match &self.devices {
            Devices::All => true,
            Devices::Indices(indices) => indices.contains(&index),
        };
        is_listed && self.filter.as_ref().is_none_or(|it| it.contains(&pci_device_id))
    }
}

struct Wrong {
    place: String,
    problem: String,
}

fn wrong(place: impl Into<String>, problem: impl Into<String>) -> Wrong {
    Wrong { place: place.into(), problem: problem.into() }
}

fn configs(value: &Value) -> Result<BTreeMap<String, Vec<Entry>>, Wrong> {
    let root = object(value, "the top level")?;
    only(root, &["version", "mig-configs"], "the top level")?;
    match root.get("version") {
        Some(Value::String(version)) if version == "v1" => {}
        Some(other) => return Err(wrong("version", format!("it must be `v1`, not {}", show(other)))),
        None => return Err(wrong("version", "it is missing; write `version: v1`")),
    }
    let layouts = root.get("mig-configs").ok_or_else(|| wrong("mig-configs", "it is missing"))?;
    let layouts = object(layouts, "mig-configs")?;
    if layouts.is_empty() || MAX_CONFIGS < layouts.len() {
        return Err(wrong("mig-configs", format!("it must have 1 to {MAX_CONFIGS} layouts")));
    }
    layouts.iter().map(|(name, value)| Ok((name.clone(), layout(name, value)?))).collect()
}

fn layout(name: &str, value: &Value) -> Result<Vec<Entry>, Wrong> {
    let place = format!("mig-configs.{}", shorten(name));
    let is_label = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.');
    if name.is_empty() || MAX_NAME < name.len() || !name.chars().all(is_label) {
        let problem = "the name must do as a label value: at most 63 letters, digits, `-`, `_` and `.`";
        return Err(wrong(place, problem));
    }
    let entries = list(value, &place)?;
    if entries.is_empty() {
        return Err(wrong(place, "it must have at least one entry"));
    }
    entries.iter().enumerate().map(|(index, it)| entry(it, &format!("{place}[{index}]"))).collect()
}

fn entry(value: &Value, place: &str) -> Result<Entry, Wrong> {
    let fields = object(value, place)?;
    only(fields, &["devices", "device-filter", "mig-enabled", "mig-devices"], place)?;
    let at = |field: &str| format!("{place}.{field}");
    let devices = match fields.get("devices") {
        Some(Value::String(text)) if text == "all" => Devices::All,
        Some(Value::Array(_)) => Devices::Indices(indices(&fields["devices"], &at("devices"))?),
        Some(other) => {
            let problem = format!("it must be `all` or a list of GPU indices, not {}", show(other));
            return Err(wrong(at("devices"), problem));
        }
        None => return Err(wrong(at("devices"), "it is missing; write `all` or a list of GPU indices")),
    };
    let filter = match fields.get("device-filter") {
        None | Some(Value::Null) => None,
        // An empty filter filters nothing, as with mig-parted.
        Some(filter) => Some(filters(filter, &at("device-filter"))?).filter(|it| !it.is_empty()),
    };
    let is_enabled = match fields.get("mig-enabled") {
        Some(Value::Bool(it)) => *it,
        Some(other) => {
            let problem = format!("it must be `true` or `false`, not {}", show(other));
            return Err(wrong(at("mig-enabled"), problem));
        }
        None => return Err(wrong(at("mig-enabled"), "it is missing; write `true` or `false`")),
    };
    let cut = match fields.get("mig-devices") {
        Some(it) if !it.is_null() => Some(counts(it, &at("mig-devices"))?),
        _ => None,
    };
    match (is_enabled, cut) {
        (true, Some(cut)) => Ok(Entry { devices, filter, cut: Some(cut) }),
        (true, None) => Err(wrong(
            at("mig-devices"),
            "it is missing although `mig-enabled` is true; write profiles and counts",
        )),
        (false, Some(cut)) if !cut.is_empty() => {
            Err(wrong(at("mig-devices"), "it must be empty because `mig-enabled` is false"))
        }
        (false, _) => Ok(Entry { devices, filter, cut: None }),
    }
}

fn indices(value: &Value, place: &str) -> Result<Vec<u32>, Wrong> {
    let items = list(value, place)?;
    items.iter().map(|it| number(it, place, "a GPU index")).collect()
}

/// PCI ids: text as mig-parted writes them, or the number that YAML makes of them without quotes.
fn filters(value: &Value, place: &str) -> Result<Vec<u32>, Wrong> {
    let one = |value: &Value| {
        let parsed = match value {
            Value::String(text) => text
                .strip_prefix("0x")
                .or_else(|| text.strip_prefix("0X"))
                .and_then(|digits| u32::from_str_radix(digits, 16).ok()),
            Value::Number(number) => number.as_u64().and_then(|it| u32::try_from(it).ok()),
            _ => None,
        };
        parsed.ok_or_else(|| wrong(place, format!("{} is not a PCI id such as \"0x233010DE\"", show(value))))
    };
    match value {
        Value::Array(_) => list(value, place)?.iter().map(one).collect(),
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        value => Ok(vec![one(value)?]),
    }
}

fn counts(value: &Value, place: &str) -> Result<BTreeMap<String, u32>, Wrong> {
    let profiles = object(value, place)?;
    if MAX_ENTRIES < profiles.len() {
        return Err(wrong(place, format!("it has more than {MAX_ENTRIES} profiles")));
    }
    let mut counts = BTreeMap::new();
    for (profile, count) in profiles {
        let place = format!("{place}.{}", shorten(profile));
        let is_known = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '+' | '-' | ',');
        if profile.is_empty() || MAX_NAME < profile.len() || !profile.chars().all(is_known) {
            return Err(wrong(place, "the key must be a MIG profile such as `1g.10gb`"));
        }
        let count = number(count, &place, "a count")?;
        if 0 < count {
            counts.insert(profile.clone(), count);
        }
    }
    Ok(counts)
}

fn number(value: &Value, place: &str, what: &str) -> Result<u32, Wrong> {
    value
        .as_u64()
        .filter(|it| *it <= MAX_NUMBER)
        .and_then(|it| u32::try_from(it).ok())
        .ok_or_else(|| wrong(place, format!("{} is not {what} from 0 to {MAX_NUMBER}", show(value))))
}

fn object<'a>(value: &'a Value, place: &str) -> Result<&'a Map<String, Value>, Wrong> {
    value.as_object().ok_or_else(|| wrong(place, format!("it must be a mapping, not {}", show(value))))
}

fn list<'a>(value: &'a Value, place: &str) -> Result<&'a [Value], Wrong> {
    let items =
        value.as_array().ok_or_else(|| wrong(place, format!("it must be a list, not {}", show(value))))?;
    if MAX_ENTRIES < items.len() {
        return Err(wrong(place, format!("it has more than {MAX_ENTRIES} items")));
    }
    Ok(items)
}

fn only(fields: &Map<String, Value>, known: &[&str], place: &str) -> Result<(), Wrong> {
    match fields.keys().find(|it| !known.contains(&it.as_str())) {
        None => Ok(()),
        Some(unknown) => {
            let problem =
                format!("the field `{}` is unknown; there are {}", shorten(unknown), known.join(", "));
            Err(wrong(place, problem))
        }
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Object(_) => "a mapping".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        other => format!("`{}`", shorten(&other.to_string())),
    }
}

/// Text of a file in a message: the beginning says enough.
fn shorten(text: &str) -> String {
    if text.chars().count() <= MAX_NAME {
        return text.to_owned();
    }
    text.chars().take(MAX_NAME).chain(['…']).collect()
}

/// The parser's own text shows lines of the file; the first line says what and where.
fn first_line(error: &impl fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        LayoutFile::parse("layouts.yaml", text.as_bytes()).unwrap_err().to_string()
    }

    /// A file with one layout `x` that has this one entry, in flow style.
    fn entry_error(entry: &str) -> String {
        error(&format!("{{version: v1, mig-configs: {{x: [{entry}]}}}}"))
    }

    #[test]
    fn the_formats_of_mig_parted_are_understood() {
        let text = r#"
version: v1
mig-configs:
  all-disabled:
    - devices: all
      mig-enabled: false
  all-enabled:
    - devices: all
      mig-enabled: true
      mig-devices: {}
  split:
    - devices: [0, 1]
      device-filter: "0x233010DE"
      mig-enabled: true
      mig-devices:
        "1g.10gb": 2
        2g.20gb: 1
        "1g.10gb+me": 0
    - devices: [2]
      device-filter: ["0x20B010de", 0x20B110DE]
      mig-enabled: false
      mig-devices: {}
"#;
        let file = LayoutFile::parse("f", text.as_bytes()).unwrap();
        assert_eq!(file.configs["all-disabled"], [Entry { devices: Devices::All, filter: None, cut: None }]);
        assert_eq!(file.configs["all-enabled"][0].cut, Some(BTreeMap::new()));
        let split = &file.configs["split"];
        assert_eq!(split[0].devices, Devices::Indices(vec![0, 1]));
        assert_eq!(split[0].cut, Some([("1g.10gb".to_owned(), 2), ("2g.20gb".to_owned(), 1)].into()));
        assert!(split[0].selects(1, 0x2330_10DE) && !split[0].selects(2, 0x2330_10DE));
        assert!(!split[0].selects(1, 0x2331_10DE));
        assert_eq!(split[1].filter, Some(vec![0x20B0_10DE, 0x20B1_10DE]));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let cases = [
            (error("a: ["), "it is not YAML"),
            (error("version: v1\n---\nversion: v1\n"), "it is not a layout file: it has several documents"),
            (error("[]"), "the top level: it must be a mapping, not a list"),
            (error("version: v2\nmig-configs: {}"), "version: it must be `v1`, not `\"v2\"`"),
            (error("mig-configs: {}"), "version: it is missing"),
            (error("version: v1"), "mig-configs: it is missing"),
            (error("version: v1\nmig-configs: {}"), "mig-configs: it must have 1 to"),
            (error("version: v1\nextra: 1"), "the field `extra` is unknown"),
            (error("version: v1\nmig-configs: {x: []}"), "mig-configs.x: it must have at least one entry"),
            (error("version: v1\nmig-configs: {x y: []}"), "must do as a label value"),
            (error("version: v1\nmig-configs: {x: 1, x: 2}"), "it is not YAML"),
            (entry_error("{mig-enabled: true}"), "mig-configs.x[0].devices: it is missing"),
            (entry_error("{devices: some}"), "must be `all` or a list of GPU indices, not `\"some\"`"),
            (entry_error("{devices: [-1]}"), "mig-configs.x[0].devices: `-1` is not a GPU index"),
            (entry_error("{devices: all}"), "mig-configs.x[0].mig-enabled: it is missing"),
            (entry_error("{devices: all, mig-enabled: yep}"), "must be `true` or `false`"),
            (entry_error("{devices: all, mig-enabled: true}"), "mig-configs.x[0].mig-devices: it is missing"),
            (entry_error("{devices: all, mig-enabled: false, mig-devices: {1g.5gb: 1}}"), "must be empty"),
            (
                entry_error("{devices: all, mig-enabled: true, mig-devices: {1g.5gb: many}}"),
                "1g.5gb: `\"many\"` is not",
            ),
            (
                entry_error("{devices: all, mig-enabled: true, mig-devices: {1g.5gb: 1.5}}"),
                "`1.5` is not a count",
            ),
            (
                entry_error("{devices: all, mig-enabled: true, mig-devices: {1g.5gb: 99999}}"),
                "is not a count from 0 to",
            ),
            (
                entry_error("{devices: all, mig-enabled: true, mig-devices: {\"1g 5\": 1}}"),
                "must be a MIG profile",
            ),
            (
                entry_error("{devices: all, mig-enabled: true, mig-devices: {}, count: 1}"),
                "the field `count` is unknown",
            ),
            (
                entry_error("{devices: all, device-filter: H100, mig-enabled: false}"),
                "`\"H100\"` is not a PCI id",
            ),
        ];
        for (error, expected) in cases {
            assert!(error.starts_with("layout file `layouts.yaml`, "), "{error}");
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        }
    }

    #[test]
    fn a_huge_file_is_refused_before_it_is_parsed() {
        assert!(error(&" ".repeat(MAX_FILE + 1)).contains("larger than 1024 KiB"));
        let many = vec!["{devices: all, mig-enabled: false}"; MAX_ENTRIES + 1].join(", ");
        assert!(entry_error(&many).contains("more than 128 items"));
    }

    #[test]
    fn aliases_that_multiply_are_refused() {
        let mut text = "version: v1\nmig-configs:\n  a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
        for level in 1..12 {
            let below = vec![format!("*a{}", level - 1); 8].join(", ");
            text.push_str(&format!("  a{level}: &a{level} [{below}]\n"));
        }
        assert!(error(&text).contains("it is not YAML"));
    }
}
