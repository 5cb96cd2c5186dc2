use super::*;
use crate::cdi::fixture::{Fixture, HOOK_PROGRAM};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Stands for the program of toolkit 1.17.
const OLDER: &[u8] = b"\x7fELF create-symlinks enable-cuda-compat update-ldcache";

fn host() -> (Fixture, HookSettings) {
    let fixture = Fixture::on_host();
    let settings = fixture.root().hooks;
    (fixture, settings)
}

fn names(hooks: &Hooks) -> Vec<&str> {
    hooks.hooks.iter().map(|hook| hook.args[1].as_str()).collect()
}

fn input<'a>(links: &'a [Link], folders: &'a [String]) -> HookInput<'a> {
    HookInput { version: "550.54.15", links, folders }
}

fn disabled(kinds: &[HookKind]) -> DisabledHooks {
    DisabledHooks(kinds.iter().copied().collect())
}

#[test]
fn all_hooks_run_in_order_with_their_arguments() {
    let (_fixture, settings) = host();
    let [target, in_container] = ["libcuda.so.1", "/usr/lib64/libcuda.so"].map(str::to_owned);
    let links = [Link { target, in_container, resolved: String::new() }];
    let folders = ["/usr/lib64".to_owned(), "/opt/lib".to_owned()];
    let Hooks { hooks, missing, .. } = settings.hooks(&input(&links, &folders));
    assert_eq!(missing, []);
    let lines: Vec<String> = hooks.iter().map(|hook| hook.args.join(" ")).collect();
    assert_eq!(
        lines,
        [
            "nvidia-cdi-hook create-symlinks --link libcuda.so.1::/usr/lib64/libcuda.so",
            "nvidia-cdi-hook enable-cuda-compat --host-driver-version=550.54.15",
            "nvidia-cdi-hook update-ldcache --folder /usr/lib64 --folder /opt/lib",
            "nvidia-cdi-hook disable-device-node-modification",
        ]
    );
    assert!(hooks.iter().all(|hook| hook.path == DEFAULT_HOOK && hook.hook_name == "createContainer"));
}

#[test]
fn without_the_hook_program_there_is_no_hook_and_one_report() {
    let (fixture, settings) = host();
    fs::remove_file(fixture.path(DEFAULT_HOOK)).unwrap();
    let found = settings.hooks(&input(&[], &[]));
    assert_eq!(found.hooks, []);
    assert_eq!(found.missing.len(), 1);
    let text = found.missing[0].to_string();
    assert!(text.contains(DEFAULT_HOOK) && text.contains("nvidia-container-toolkit-base"), "{text}");
}

#[test]
fn a_hook_program_that_is_not_executable_is_missing() {
    let (fixture, settings) = host();
    fs::set_permissions(fixture.path(DEFAULT_HOOK), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(settings.hooks(&input(&[], &[])).hooks, []);
}

#[test]
fn a_subcommand_that_the_program_lacks_is_left_out_and_reported_with_the_version_that_has_it() {
    let (fixture, mut settings) = host();
    fixture.host_program_with(DEFAULT_HOOK, OLDER);
    let found = settings.hooks(&input(&[], &[]));
    assert_eq!(names(&found), ["enable-cuda-compat", "update-ldcache"]);
    let [missing] = &found.missing[..] else { panic!("{found:?}") };
    assert_eq!(missing.severity, Severity::Degraded);
    let text = missing.to_string();
    assert!(text.contains("no subcommand disable-device-node-modification"), "{text}");
    assert!(text.contains("1.18.0") && text.contains("--disable-hooks="), "{text}");
    settings.disabled = disabled(&[HookKind::DisableDeviceNodeModification]);
    assert_eq!(settings.hooks(&input(&[], &[])).missing, []);

    fixture.host_program_with(DEFAULT_HOOK, b"\x7fELF another program");
    let found = settings.hooks(&input(&[], &[]));
    assert_eq!((found.hooks.len(), found.missing.len()), (0, 3));
    assert!(found.missing.iter().any(|it| it.severity == Severity::Impaired));
}

#[test]
fn of_a_program_that_cannot_be_judged_the_hooks_of_the_minimum_are_used() {
    let (fixture, settings) = host();
    fixture.host_program_with(DEFAULT_HOOK, b"#!/bin/sh\nexec /elsewhere/program \"$@\"\n");
    let found = settings.hooks(&input(&[], &[]));
    assert_eq!(names(&found), ["enable-cuda-compat", "update-ldcache"]);
    let [missing] = &found.missing[..] else { panic!("{found:?}") };
    assert!(missing.what.contains("is a script") && missing.remedy.contains(MINIMUM_TOOLKIT), "{missing}");
    assert!(found.watched.contains(&format!("{DEFAULT_HOOK}.real")), "{:?}", found.watched);
}

#[test]
fn the_minimum_is_the_version_that_has_every_hook_that_containers_need() {
    let number = |version: &str| version.split('.').map(|it| it.parse().unwrap()).collect::<Vec<u32>>();
    let needed = HookKind::ALL.into_iter().filter(|it| it.severity() == Severity::Impaired);
    let greatest = needed.map(|it| number(it.since())).max().unwrap();
    assert_eq!(greatest, number(MINIMUM_TOOLKIT));
    assert!(number(HookKind::CreateSymlinks.since()) <= greatest);
}

#[test]
fn without_ldconfig_only_its_hook_is_left_out() {
    let (fixture, mut settings) = host();
    fs::remove_file(fixture.path(DEFAULT_LDCONFIG)).unwrap();
    let found = settings.hooks(&input(&[], &[]));
    assert_eq!(names(&found), ["enable-cuda-compat", "disable-device-node-modification"]);
    assert!(found.missing[0].what.contains(DEFAULT_LDCONFIG), "{found:?}");
    settings.disabled = disabled(&[HookKind::UpdateLdcache]);
    assert_eq!(settings.hooks(&input(&[], &[])).missing, []);
}

#[test]
fn ldconfig_may_be_the_one_behind_a_wrapper_or_elsewhere() {
    let (fixture, mut settings) = host();
    fs::rename(fixture.path(DEFAULT_LDCONFIG), fixture.path("/sbin/ldconfig.real")).unwrap();
    let Hooks { hooks, missing, .. } = settings.hooks(&input(&[], &["/lib".to_owned()]));
    assert_eq!(missing, []);
    assert_eq!(hooks[1].args[2..], ["--folder", "/lib"]);

    fixture.host_program("/opt/ldconfig");
    settings.ldconfig = "/opt/ldconfig".into();
    let Hooks { hooks, .. } = settings.hooks(&input(&[], &["/lib".to_owned()]));
    assert_eq!(hooks[1].args[2..], ["--ldconfig-path", "/opt/ldconfig", "--folder", "/lib"]);
}

#[test]
fn every_hook_is_known_by_its_name_and_no_other() {
    for kind in HookKind::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
        assert!(String::from_utf8_lossy(HOOK_PROGRAM).contains(kind.name()));
    }
    let error = "chmod".parse::<HookKind>().unwrap_err().to_string();
    assert!(error.contains("chmod") && error.contains("update-ldcache"), "{error}");
}

#[test]
fn a_list_of_disabled_hooks_is_read_as_it_is_written() {
    let two = disabled(&[HookKind::EnableCudaCompat, HookKind::DisableDeviceNodeModification]);
    assert_eq!("enable-cuda-compat, disable-device-node-modification,".parse(), Ok(two.clone()));
    assert_eq!(two.to_string().parse(), Ok(two));
    assert_eq!("".parse(), Ok(DisabledHooks::default()));
    assert!("all".parse::<DisabledHooks>().is_err());
}

#[test]
fn disabled_hooks_are_not_emitted() {
    let (_fixture, mut settings) = host();
    settings.disabled = disabled(&[HookKind::EnableCudaCompat, HookKind::DisableDeviceNodeModification]);
    let found = settings.hooks(&input(&[], &[]));
    assert_eq!(names(&found), ["update-ldcache"]);
    assert_eq!(found.missing, []);
}
