//! What the chart generates for Kueue's configuration, against the limits that Kueue 0.19 has (pkg/config/validation.go).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::chart::{objects, objects_of, refusal};

/// Mappings in a configuration, and classes in a mapping.
const MOST: (usize, usize) = (16, 8);

/// The mappings with these values.
fn mappings(kueue: &Value) -> Option<Vec<Value>> {
    let objects = objects(&json!({"kueue": kueue}))?;
    let map = objects.into_iter().find(|it| it["metadata"]["name"] == "dra-driver-mig-kueue").unwrap();
    let text = map["data"]["configuration.yaml"].as_str().unwrap();
    let configuration: Value = serde_saphyr::from_str(text).unwrap();
    Some(configuration["resources"]["deviceClassMappings"].as_array().unwrap().clone())
}

fn classes(mapping: &Value) -> Vec<&str> {
    mapping["deviceClassNames"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect()
}

#[test]
fn every_class_has_one_mapping_by_memory_within_kueues_limits() {
    let Some(mappings) = mappings(&json!({"create": true})) else { return };
    assert!(mappings.len() <= MOST.0, "{}", mappings.len());
    let all: Vec<&str> = mappings.iter().flat_map(classes).collect();
    let shipped: Vec<Value> = objects_of("DeviceClass");
    let expected: BTreeSet<&str> =
        shipped.iter().map(|it| it["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!((all.len(), BTreeSet::from_iter(all)), (expected.len(), expected));
    let names: BTreeSet<&str> = mappings.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), mappings.len());
    for mapping in &mappings {
        assert!(classes(mapping).len() <= MOST.1);
        let counter = &mapping["sources"][0]["counter"];
        assert_eq!((&counter["name"], &counter["driver"]), (&json!("memory"), &json!("mig.dra-driver.dev")));
    }
}

#[test]
fn the_classes_of_one_kind_of_gpu_share_a_resource_by_memory() {
    let h100 =
        ["gpu.dra-driver.dev", "mig-1g.10gb", "mig-1g.20gb", "mig-2g.20gb", "mig-3g.40gb", "mig-4g.40gb"];
    let Some(mappings) = mappings(&json!({"create": true, "classes": h100})) else { return };
    assert_eq!((mappings.len(), classes(&mappings[0])), (1, h100.to_vec()));
    assert_eq!(mappings[0]["name"], "gpu-memory");
}

#[test]
fn counted_by_device_each_class_is_a_resource_and_too_many_are_refused_with_the_remedy() {
    let kueue = json!({"create": true, "quota": "devices", "classes": ["mig-1g.10gb", "mig-3g.40gb"]});
    let Some(found) = mappings(&kueue) else { return };
    let names: Vec<&str> = found.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["mig-1g.10gb", "mig-3g.40gb"]);
    assert!(found.iter().all(|it| it["sources"].is_null() && classes(it).len() == 1));
    let error = refusal(&json!({"kueue": {"create": true, "quota": "devices"}})).unwrap();
    assert!(error.contains("Kueue takes 16") && error.contains("kueue.classes"), "{error}");
}

#[test]
fn the_configurations_of_the_example_are_what_the_chart_generates() {
    let example = |file: &str| -> Value {
        let path = crate::common::repository().join("examples/kueue").join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let configuration: Value = serde_saphyr::from_str(&text).unwrap();
        configuration["resources"]["deviceClassMappings"].clone()
    };
    for (file, quota) in [("configuration.yaml", "memory"), ("configuration-by-device.yaml", "devices")] {
        let expected = example(file);
        let listed: Vec<&str> = expected.as_array().unwrap().iter().flat_map(classes).collect();
        let values = json!({"create": true, "quota": quota, "classes": listed});
        let Some(found) = mappings(&values) else { return };
        assert_eq!(Value::from(found), expected, "{file}");
    }
}
