//! Judges opaque configurations that are addressed to this driver. Pure.
//!
//! The driver has no configuration of its own. Under the name `gpu.nvidia.com` claims come with those of NVIDIA's driver
//! (`resource.nvidia.com/v1beta1`). One that says only what holds here anyway changes nothing and is accepted; everything else is
//! refused, so that no pod runs without what its claim asks for.

use serde_json::{Map, Value};

/// The API of NVIDIA's configurations.
const NVIDIA_API: &str = "resource.nvidia.com/v1beta1";
/// Longest text of a claim that an error repeats, characters.
const MOST_SHOWN: usize = 64;

/// Why the parameters of a configuration cannot be honoured, and what to use instead.
pub(super) fn refusal(parameters: &Value) -> Option<String> {
    let text = |key: &str| parameters.get(key).and_then(Value::as_str).unwrap_or_default();
    let (api, kind) = (text("apiVersion"), text("kind"));
    match (api, kind) {
        (NVIDIA_API, "GpuConfig" | "MigDeviceConfig") => of_sharing(parameters, kind),
        (NVIDIA_API, "VfioDeviceConfig") => {
            Some("VfioDeviceConfig: this driver passes no GPU through to virtual machines".to_owned())
        }
        ("", "") => {
            Some("it has no apiVersion and kind, and the driver has no configuration of its own".to_owned())
        }
        _ => Some(format!(
            "{} {} is none of the kinds GpuConfig and MigDeviceConfig of {NVIDIA_API}",
            shown(api),
            shown(kind)
        )),
    }
}

/// `GpuConfig` and `MigDeviceConfig`: both have nothing but `sharing`.
fn of_sharing(parameters: &Value, kind: &str) -> Option<String> {
    let fields = parameters.as_object()?;
    if let Some(field) = unknown(fields, &["apiVersion", "kind", "sharing"]) {
        return Some(format!("{kind} has the field {field}, which this driver does not know"));
    }
    let sharing = match fields.get("sharing") {
        None | Some(Value::Null) => return None,
        Some(Value::Object(it)) => it,
        Some(_) => return Some(format!("sharing of {kind} is not an object")),
    };
    if let Some(field) = unknown(sharing, &["strategy", "timeSlicingConfig", "mpsConfig"]) {
        return Some(format!("sharing of {kind} has the field {field}, which this driver does not know"));
    }
    match sharing.get("strategy").and_then(Value::as_str).unwrap_or_default() {
        "MPS" => Some(format!(
            "{kind} asks for MPS, which this driver does not start; let containers and pods name one ResourceClaim to share its \
             device"
        )),
        _ if sharing.get("mpsConfig").is_some_and(|it| !it.is_null()) => {
            Some(format!("{kind} has an mpsConfig, and this driver does not start MPS"))
        }
        "TimeSlicing" => of_time_slicing(sharing.get("timeSlicingConfig"), kind),
        other => Some(format!("{kind} has the strategy {}, which this driver does not know", shown(other))),
    }
}

/// Containers that share a device take turns anyway, for as long as the NVIDIA driver's default says. On MIG devices NVIDIA's driver
/// ignores the strategy as well.
fn of_time_slicing(config: Option<&Value>, kind: &str) -> Option<String> {
    let config = match config {
        None | Some(Value::Null) => return None,
        Some(Value::Object(it)) => it,
        Some(_) => return Some(format!("timeSlicingConfig of {kind} is not an object")),
    };
    if let Some(field) = unknown(config, &["interval"]) {
        return Some(format!(
            "timeSlicingConfig of {kind} has the field {field}, which this driver does not know"
        ));
    }
    match config.get("interval") {
        None | Some(Value::Null) => None,
        Some(Value::String(it)) if it == "Default" => None,
        Some(it) => {
            let interval = shown(it.as_str().unwrap_or("?"));
            Some(format!(
                "{kind} sets the time slice {interval}, and this driver leaves it at the NVIDIA driver's default"
            ))
        }
    }
}

/// The first field that is none of these.
fn unknown(fields: &Map<String, Value>, known: &[&str]) -> Option<String> {
    fields.keys().find(|it| !known.contains(&it.as_str())).map(|it| shown(it))
}

/// A text of a claim as an error may repeat it.
fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(MOST_SHOWN).flat_map(char::escape_debug).collect();
    if short.is_empty() {
        short.push_str("(none)");
    }
    format!("`{short}`")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nvidia(kind: &str, sharing: Value) -> Value {
        json!({"apiVersion": NVIDIA_API, "kind": kind, "sharing": sharing})
    }

    #[test]
    fn configurations_of_nvidia_that_say_only_defaults_change_nothing() {
        for kind in ["GpuConfig", "MigDeviceConfig"] {
            assert_eq!(refusal(&json!({"apiVersion": NVIDIA_API, "kind": kind})), None);
            for sharing in [
                Value::Null,
                json!({"strategy": "TimeSlicing"}),
                json!({"strategy": "TimeSlicing", "timeSlicingConfig": {}}),
                json!({"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Default"}}),
            ] {
                assert_eq!(refusal(&nvidia(kind, sharing.clone())), None, "{kind} {sharing}");
            }
        }
    }

    #[test]
    fn what_this_driver_cannot_do_is_refused_with_the_reason() {
        let slicing = |config: Value| json!({"strategy": "TimeSlicing", "timeSlicingConfig": config});
        for (sharing, reason) in [
            (json!({"strategy": "MPS"}), "asks for MPS"),
            (json!({"strategy": "MPS", "mpsConfig": {"defaultActiveThreadPercentage": 50}}), "asks for MPS"),
            (json!({"strategy": "TimeSlicing", "mpsConfig": {}}), "mpsConfig"),
            (slicing(json!({"interval": "Long"})), "time slice `Long`"),
            (slicing(json!({"interval": 5})), "time slice `?`"),
            (slicing(json!({"period": 5})), "field `period`"),
            (slicing(json!([])), "is not an object"),
            (json!({"strategy": "Lottery"}), "strategy `Lottery`"),
            (json!({}), "strategy `(none)`"),
            (json!("all"), "is not an object"),
            (json!({"strategy": "TimeSlicing", "fair": true}), "field `fair`"),
        ] {
            let found = refusal(&nvidia("GpuConfig", sharing.clone())).unwrap_or_default();
            assert!(found.contains(reason), "{sharing}: {found}");
        }
        let vfio = refusal(&json!({"apiVersion": NVIDIA_API, "kind": "VfioDeviceConfig"})).unwrap();
        assert!(vfio.contains("virtual machines"), "{vfio}");
    }

    #[test]
    fn parameters_of_any_other_kind_are_refused_and_repeated_only_in_part() {
        for parameters in [Value::Null, json!({}), json!([]), json!("GpuConfig")] {
            assert!(refusal(&parameters).unwrap().contains("no apiVersion and kind"), "{parameters}");
        }
        let newer = refusal(&json!({"apiVersion": "resource.nvidia.com/v1", "kind": "GpuConfig"})).unwrap();
        assert!(newer.contains("`resource.nvidia.com/v1` `GpuConfig`"), "{newer}");
        let long =
            refusal(&json!({"apiVersion": "\u{1b}[31m".repeat(99), "kind": "é".repeat(9999)})).unwrap();
        assert!(long.len() < 1024 && !long.contains('\u{1b}'), "{long}");
    }
}
