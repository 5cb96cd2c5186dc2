//! The common part from an operator's file.

use std::fs;
use std::path::PathBuf;

use crate::cdi::fixture::Fixture;
use crate::cdi::{CommonEdits, CommonFileError, CommonFileReason, HookSettings, Severity};

/// The shape of what `nvidia-ctk cdi generate` writes, shortened.
const YAML: &str = r#"---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
containerEdits:
    env:
        - NVIDIA_CTK_LIBCUDA_DIR=/usr/lib64
    deviceNodes:
        - path: /dev/nvidiactl
          fileMode: 438
          permissions: rwm
    hooks:
        - hookName: createContainer
          path: /usr/bin/nvidia-cdi-hook
          args:
            - nvidia-cdi-hook
            - update-ldcache
            - --folder
            - /usr/lib64
          env:
            - NVIDIA_CTK_DEBUG=false
    mounts:
        - hostPath: /usr/lib64/libcuda.so.550.54.15
          containerPath: /usr/lib64/libcuda.so.550.54.15
          options:
            - ro
"#;

fn load(fixture: &Fixture, name: &str, text: &str) -> Result<CommonEdits, CommonFileError> {
    let path: PathBuf = fixture.path(name);
    fs::write(&path, text).unwrap();
    CommonEdits::from_file(&path, &fixture.root().hooks)
}

#[test]
fn the_top_level_edits_of_a_whole_spec_are_taken() {
    let fixture = Fixture::on_host();
    let edits = load(&fixture, "common.yaml", YAML).unwrap();
    assert_eq!(edits.missing(), []);
    let taken = edits.edits();
    assert_eq!(taken.env, ["NVIDIA_CTK_LIBCUDA_DIR=/usr/lib64", "NVIDIA_VISIBLE_DEVICES=void"]);
    assert_eq!(taken.device_nodes.len(), 1, "devices of the file are not taken");
    assert_eq!(taken.device_nodes[0].file_mode, Some(0o666));
    assert_eq!((taken.hooks.len(), taken.mounts.len()), (1, 1));
}

#[test]
fn json_and_yaml_and_bare_edits_mean_the_same() {
    let fixture = Fixture::on_host();
    let whole = load(&fixture, "common.yaml", YAML).unwrap();
    let mut bare = whole.edits().clone();
    bare.env.pop();
    let json = serde_json::to_string(&bare).unwrap();
    assert_eq!(load(&fixture, "bare.json", &json).unwrap().edits(), whole.edits());
    let spec =
        format!(r#"{{"cdiVersion": "0.5.0", "kind": "a.b/c", "devices": [], "containerEdits": {json}}}"#);
    assert_eq!(load(&fixture, "whole.json", &spec).unwrap().edits(), whole.edits());
}

#[test]
fn an_environment_that_the_operator_set_stays() {
    let fixture = Fixture::on_host();
    let edits = load(&fixture, "c.json", r#"{"env": ["NVIDIA_VISIBLE_DEVICES=none"]}"#).unwrap();
    assert_eq!(edits.edits().env, ["NVIDIA_VISIBLE_DEVICES=none"]);
}

#[test]
fn a_hook_program_that_the_host_lacks_is_fatal() {
    let fixture = Fixture::on_host();
    fs::remove_file(fixture.path("/usr/bin/nvidia-cdi-hook")).unwrap();
    let edits = load(&fixture, "common.yaml", YAML).unwrap();
    let [missing] = edits.missing() else { panic!("{:?}", edits.missing()) };
    assert_eq!(missing.severity, Severity::Fatal);
    assert!(missing.to_string().contains("the common edits file names it"), "{missing}");
}

#[test]
fn hooks_of_the_file_that_the_program_lacks_or_the_operator_disabled_are_left_out() {
    let fixture = Fixture::on_host();
    let newer = YAML.replace("- update-ldcache", "- update-application-profile");
    let edits = load(&fixture, "common.yaml", &newer).unwrap();
    assert_eq!(edits.edits().hooks, []);
    let [missing] = edits.missing() else { panic!("{:?}", edits.missing()) };
    assert_eq!(missing.severity, Severity::Impaired);
    assert!(missing.what.contains("no subcommand update-application-profile"), "{missing}");

    let path = fixture.path("common.yaml");
    fs::write(&path, YAML).unwrap();
    let disabled = "update-ldcache".parse().unwrap();
    let hooks = HookSettings { disabled, ..fixture.root().hooks };
    let edits = CommonEdits::from_file(&path, &hooks).unwrap();
    assert_eq!((edits.edits().hooks.len(), edits.missing().len()), (0, 0));
}

#[test]
fn a_hook_of_the_file_that_is_another_program_is_kept() {
    let fixture = Fixture::on_host();
    fixture.host_program_with("/usr/bin/site-hook", b"#!/bin/sh\nexit 0\n");
    let site = YAML.replace("path: /usr/bin/nvidia-cdi-hook", "path: /usr/bin/site-hook");
    let edits = load(&fixture, "common.yaml", &site).unwrap();
    assert_eq!((edits.edits().hooks.len(), edits.missing().len()), (1, 0));
}

#[test]
fn a_changed_file_or_hook_is_noticed() {
    let fixture = Fixture::on_host();
    let edits = load(&fixture, "common.yaml", YAML).unwrap();
    assert!(edits.is_current());
    fs::remove_file(fixture.path("common.yaml")).unwrap();
    assert!(!edits.is_current());
    let edits = load(&fixture, "common.yaml", YAML).unwrap();
    fs::remove_file(fixture.path("/usr/bin/nvidia-cdi-hook")).unwrap();
    assert!(!edits.is_current());
}

#[test]
fn what_is_not_a_usable_file_is_refused_with_its_path_and_the_reason() {
    let fixture = Fixture::on_host();
    let check = |name: &str, text: &str, expected: fn(&CommonFileReason) -> bool| {
        let error = load(&fixture, name, text).unwrap_err();
        assert!(expected(&error.reason), "{error}");
        assert!(error.to_string().contains(name) && error.to_string().contains("nvidia-ctk"), "{error}");
    };
    check("a.txt", "{}", |r| matches!(r, CommonFileReason::Extension));
    check("a.json", "{", |r| matches!(r, CommonFileReason::Json(_)));
    check("a.yaml", "a: [", |r| matches!(r, CommonFileReason::Yaml(_)));
    check("a.json", "[]", |r| matches!(r, CommonFileReason::Shape(_)));
    check("a.json", r#"{"env": [], "surprise": 1}"#, |r| matches!(r, CommonFileReason::Shape(_)));
    check("a.json", "{}", |r| matches!(r, CommonFileReason::Empty));
    check("a.json", r#"{"env": ["x"]}"#, |r| matches!(r, CommonFileReason::Invalid(_)));
    check("a.yaml", &" ".repeat(5 << 20), |r| matches!(r, CommonFileReason::Read(_)));
    let absent = CommonEdits::from_file(&fixture.path("absent.json"), &fixture.root().hooks).unwrap_err();
    assert!(matches!(absent.reason, CommonFileReason::Read(_)));
}
