//! The files of `tests/layouts`: what they make of GPUs, and what is said of those that nothing can be made of.

use std::path::PathBuf;

use super::*;

fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/layouts")).join(name)
}

/// What a layout of a file is for these GPUs, in their order.
fn chosen(name: &str, layout: &str, models: &str) -> Vec<String> {
    let file = LayoutFile::parse(name, &std::fs::read(path(name)).unwrap()).unwrap();
    let facts = facts(models);
    let layouts = choose(Some(layout), Some(&file), &facts).unwrap();
    // None of them is more than there is room for.
    let offer = apply(&inventory_of(&facts, true, &BTreeSet::new()), &layouts, &BTreeSet::new());
    assert_eq!(offer.waiting, [""; 0]);
    let show = |it: &GpuLayout| match it {
        GpuLayout::Whole => "whole".to_owned(),
        GpuLayout::Free { .. } => "free".to_owned(),
        GpuLayout::Cut(counts) => {
            let part = |(profile, count): (&String, &u32)| format!("{count}x{profile}");
            counts.iter().map(part).collect::<Vec<_>>().join(" ")
        }
    };
    layouts.values().map(show).collect()
}

/// What is said of layout `x` of a file on two H100 and an L4.
fn refusal(name: &str, content: &[u8]) -> String {
    match LayoutFile::parse(name, content) {
        Err(error) => error.to_string(),
        Ok(file) => choose(Some("x"), Some(&file), &facts("2xH100-80GB,1xL4")).unwrap_err().to_string(),
    }
}

const MIXED: &str = "2x1g.10gb 1x2g.20gb 1x3g.40gb";

#[test]
fn files_that_people_have_are_understood() {
    let small = "7x1g.10gb";
    assert_eq!(chosen("all-1g.10gb.yaml", "all-1g.10gb", "2xH100-80GB,1xL4"), [small, small, "whole"]);
    assert_eq!(chosen("mixed.yaml", "mixed", "1xH100-80GB"), [MIXED]);
    assert_eq!(chosen("b200.yaml", "small", "1xB200-180GB"), ["7x1g.23gb"]);
    assert_eq!(chosen("b200.yaml", "medium", "1xB200-180GB"), ["3x2g.45gb"]);
    assert_eq!(chosen("all-disabled.yaml", "all-disabled", "1xH100-80GB,1xL4"), ["whole", "whole"]);
    assert_eq!(chosen("mig-enabled.yaml", "on", "1xH100-80GB"), [MIXED]);
    assert_eq!(chosen("mig-enabled.yaml", "off", "1xH100-80GB"), ["whole"]);
}

#[test]
fn gpus_are_split_by_index_on_nodes_of_any_size() {
    let split = |models: &str| chosen("training-and-inference.yaml", "training-and-inference", models);
    let small = "7x1g.10gb";
    let all = ["whole", "whole", "2x3g.40gb", small, small, small, small, small];
    assert_eq!(split("8xH100-80GB"), all);
    assert_eq!(split("4xH100-80GB"), all[..4], "indices that a smaller node does not have are passed over");
}

#[test]
fn filters_choose_gpus_by_kind_and_an_empty_one_does_not() {
    let chosen = |layout: &str, models: &str| chosen("device-filter.yaml", layout, models);
    let b200 = "2x1g.23gb 1x2g.45gb 1x3g.90gb";
    assert_eq!(chosen("all-balanced", "1xH100-80GB,1xB200-180GB,1xL4"), [MIXED, b200, "whole"]);
    assert_eq!(chosen("small-h100", "2xH100-80GB"), ["7x1g.10gb", "free"]);
    assert_eq!(chosen("any", "2xH100-80GB"), ["whole", "whole"]);
}

#[test]
fn files_that_cannot_be_used_are_refused_with_file_entry_and_gpu() {
    let cases: [(&str, &[&str]); 11] = [
        (
            "unknown-profile.yaml",
            &["mig-configs.x[1]: GPU 1 (NVIDIA H100", "has no profile `1g.5gb`; it has 1g.10gb"],
        ),
        (
            "too-many.yaml",
            &[
                "mig-configs.x[0]: GPU 0 (NVIDIA H100",
                "no room for 5 x 1g.10gb + 1 x 3g.40gb; closest is 4 x 1g.10gb + 1 x 3g.40gb",
                "(and 1 more like this)",
            ],
        ),
        ("bad-yaml.yaml", &["it is not YAML", "line"]),
        ("wrong-version.yaml", &["version: it must be `v1`, not `\"v2\"`"]),
        ("duplicate-key.yaml", &["it is not YAML", "duplicate"]),
        ("anchors.yaml", &["it is not YAML"]),
        ("unknown-field.yaml", &["mig-configs.x[0]", "the field `mig-device` is unknown"]),
        ("no-such-gpu.yaml", &["mig-configs.x[0]: this node has no GPU 4; it has 0, 1, 2"]),
        ("without-mig.yaml", &["mig-configs.x[0]: GPU 2 (NVIDIA L4", "has no MIG"]),
        ("counts-of-a-whole-gpu.yaml", &["mig-configs.x[0].mig-devices", "`mig-enabled` is false"]),
        ("no-such-layout.yaml", &["it has no layout `x`; it has y"]),
    ];
    for (name, expected) in cases {
        let text = refusal(name, &std::fs::read(path("refused").join(name)).unwrap());
        assert!(text.starts_with(&format!("layout file `{name}`")), "{text}");
        for part in expected {
            assert!(text.contains(part), "{name}: {text:?} does not say {part:?}");
        }
        assert!(text.len() < 600, "{text}");
    }
    let files = std::fs::read_dir(path("refused")).unwrap().count();
    assert_eq!(files, cases.len(), "each file has its line");
}

#[test]
fn a_huge_file_is_refused_before_it_is_parsed() {
    let mut content = std::fs::read(path("all-disabled.yaml")).unwrap();
    content.resize(MAX_FILE + 1, b'\n');
    assert!(
        refusal("huge.yaml", &content)
            .contains("layout file `huge.yaml`, the file: it is larger than 1024 KiB")
    );
}
