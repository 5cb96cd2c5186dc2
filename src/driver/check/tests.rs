use mig_model::facts::{NodeFacts, SkippedGpu};
use mig_model::inventory::Problem;

use super::*;
use crate::api::RIGHTS;
use crate::cdi::DisabledHooks;
use crate::check::list;

fn host() -> HostFacts {
    let directory = |subject: Subject, path: &str| DirectoryFacts {
        subject,
        path: path.into(),
        is_there: true,
        problem: None,
        remedy: "",
    };
    HostFacts {
        library: Ok("/usr/lib64/libnvidia-ml.so.1".into()),
        hardware: Ok(NodeFacts { driver_version: Some("570.124.06".to_owned()), ..NodeFacts::default() }),
        missing_gpus: Vec::new(),
        nvidia_mode: None,
        conditions: Vec::new(),
        hook: "/usr/bin/nvidia-cdi-hook".to_owned(),
        directories: vec![directory(Subject::CdiDirectory, "/var/run/cdi")],
        cdi: CdiSetting::Unseen,
    }
}

fn condition(subject: HostSubject, effect: Effect) -> HostCondition {
    HostCondition { subject, effect, text: "x: y".to_owned(), remedy: "z".to_owned() }
}

fn all_rights(answer: &Result<bool, String>) -> Vec<(Right, Result<bool, String>)> {
    RIGHTS.iter().map(|it| (*it, answer.clone())).collect()
}

fn settings() -> Settings {
    Settings {
        mode: Mode::Auto,
        state_label: StateLabel::On,
        mig_node: MigNodeSwitch::On,
        disabled_hooks: DisabledHooks::default(),
    }
}

fn facts(host: HostFacts, cluster: ClusterFacts) -> Facts {
    Facts { settings: settings(), host, cluster }
}

fn of(subject: Subject, facts: &Facts) -> Vec<Finding> {
    findings(facts).into_iter().filter(|it| it.subject == subject).collect()
}

#[test]
fn everything_that_is_missing_comes_with_what_to_do() {
    let mut host = host();
    host.library = Err("no libnvidia-ml.so.1 below the driver root `/`; install it".to_owned());
    host.conditions = vec![condition(HostSubject::Hooks, Effect::Impaired)];
    host.directories[0].problem = Some("read-only".to_owned());
    host.directories[0].remedy = "remount";
    host.cdi = CdiSetting::Off { file: "/etc/containerd/config.toml".into() };
    let cluster = ClusterFacts::All {
        version: Ok("v1.35.6".to_owned()),
        node: Some(("n".to_owned(), Err("not found".to_owned()))),
        rights: all_rights(&Ok(false)),
        counters: Some(Ok(CounterSupport::Dropped)),
    };
    let found = findings(&facts(host, cluster));
    let missing: Vec<&Finding> = found.iter().filter(|it| it.verdict == Verdict::Missing).collect();
    let subjects: Vec<&str> = missing.iter().map(|it| it.subject.name()).collect();
    assert_eq!(
        subjects,
        [
            "NVIDIA driver",
            "nvidia-cdi-hook",
            "CDI directory",
            "container runtime",
            "Node object",
            "permissions",
        ]
    );
    assert!(missing.iter().all(|it| it.remedy.as_ref().is_some_and(|it| !it.is_empty())), "{missing:?}");
}

#[test]
fn a_library_that_does_not_initialise_differs_from_one_that_is_missing() {
    let mut host = host();
    host.hardware =
        Err("cannot initialise `x`: driver not loaded; `nvidia-smi` on the host shows".to_owned());
    let facts = facts(host, ClusterFacts::NotRead("not in a pod".to_owned()));
    let found = of(Subject::NvidiaDriver, &facts);
    assert_eq!(found[0].verdict, Verdict::Missing);
    assert!(found[0].text.ends_with("driver not loaded"), "{}", found[0].text);
    assert_eq!(of(Subject::Gpus, &facts)[0].verdict, Verdict::Unknown);
}

#[test]
fn a_gpu_that_is_left_out_and_a_node_without_gpus_are_reported() {
    let mut host = host();
    let skipped = SkippedGpu {
        index: 3,
        uuid: None,
        reason: "it is lost".to_owned(),
        is_gone: true,
        is_for_good: false,
    };
    host.hardware = Ok(NodeFacts { skipped: vec![skipped], ..NodeFacts::default() });
    let found = of(Subject::Gpus, &facts(host, ClusterFacts::Rights(Vec::new())));
    assert!(found[0].text.contains("GPU 3") && found[1].text.contains("none"), "{found:?}");
}

#[test]
fn a_runtime_of_nvidia_that_gives_no_cdi_devices_is_named_with_the_two_ways_out() {
    let verdict = |mode: &str| {
        let mut host = host();
        host.nvidia_mode = Some(("/etc/nvidia-container-runtime/config.toml".into(), mode.to_owned()));
        of(Subject::NvidiaRuntime, &facts(host, ClusterFacts::Rights(Vec::new()))).remove(0)
    };
    assert!(["auto", "cdi", "jit-cdi"].iter().all(|it| verdict(it).verdict == Verdict::Good));
    let legacy = verdict("legacy");
    let remedy = legacy.remedy.unwrap();
    assert_eq!(legacy.verdict, Verdict::Note);
    assert!(remedy.contains("mode = \"auto\"") && remedy.contains("privileged=true"), "{remedy}");
}

#[test]
fn a_gpu_that_only_the_kernel_lists_is_missing_with_its_remedy() {
    let mut host = host();
    let gpu = Problem {
        gpu: "0000:86:00.0".to_owned(),
        reason: "has no node. Delete this pod: it helps".to_owned(),
    };
    host.missing_gpus = vec![gpu];
    let found = of(Subject::Gpus, &facts(host, ClusterFacts::Rights(Vec::new())));
    let lines: Vec<_> = found.iter().filter(|it| it.verdict == Verdict::Missing).collect();
    assert!(lines.iter().any(|it| it.text == "GPU 0000:86:00.0: has no node"), "{found:?}");
    assert!(lines.iter().any(|it| it.remedy.as_deref() == Some("Delete this pod: it helps")), "{found:?}");
}

#[test]
fn degraded_things_are_reported_but_do_not_fail_the_check() {
    let mut host = host();
    let effects = [Effect::NoClaims, Effect::Degraded];
    host.conditions = effects.map(|it| condition(HostSubject::DriverFiles, it)).into();
    let found = of(Subject::Containers, &facts(host, ClusterFacts::Rights(Vec::new())));
    assert_eq!([found[0].verdict, found[1].verdict], [Verdict::Missing, Verdict::Note]);
}

#[test]
fn rights_that_are_unknown_are_not_called_missing() {
    let verdict_of = |answer| {
        let cluster = ClusterFacts::Rights(all_rights(&answer));
        of(Subject::Permissions, &facts(host(), cluster))[0].verdict
    };
    assert_eq!(verdict_of(Ok(true)), Verdict::Good);
    assert_eq!(verdict_of(Err("404".to_owned())), Verdict::Unknown);
    assert_eq!(verdict_of(Ok(false)), Verdict::Missing);
}

#[test]
fn a_right_without_which_the_driver_works_is_not_called_missing() {
    let without = |resource: &str| {
        let granted = RIGHTS.iter().map(|it| (*it, Ok(it.resource != resource))).collect();
        of(Subject::Permissions, &facts(host(), ClusterFacts::Rights(granted)))
    };
    let found = without("resourceclaims/status");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].verdict, Verdict::Off);
    let text = "status.devices of ResourceClaims is not written: this account may not patch \
                resourceclaims/status.resource.k8s.io";
    assert_eq!(found[0].text, text);
    // To read the Node is needed, the rest is not.
    let found = without("nodes");
    let verdicts: Vec<Verdict> = found.iter().map(|it| it.verdict).collect();
    assert_eq!(verdicts, [Verdict::Missing, Verdict::Off, Verdict::Off, Verdict::Off]);
    assert!(found[0].text.ends_with("may not get nodes"), "{found:?}");
}

#[test]
fn what_is_turned_off_by_a_flag_is_off_and_not_missing() {
    let all = |settings: Settings, counters| {
        let without_patch = RIGHTS.iter().map(|it| (*it, Ok((it.resource, it.verb) != ("nodes", "patch"))));
        let cluster = ClusterFacts::All {
            version: Ok("v1.35.6".to_owned()),
            node: None,
            rights: without_patch.collect(),
            counters: Some(Ok(counters)),
        };
        findings(&Facts { settings, host: host(), cluster })
    };
    let verdict =
        |found: &[Finding], subject| found.iter().find(|it| it.subject == subject).map(|it| it.verdict);
    // Everything is wanted: the label cannot be written, and layouts serve a cluster without the gate.
    let found = all(settings(), CounterSupport::Dropped);
    assert_eq!(verdict(&found, Subject::FeatureGate), Some(Verdict::Off));
    assert_eq!(verdict(&found, Subject::Permissions), Some(Verdict::Off));
    assert_eq!(verdict(&found, Subject::StateLabel), None);

    let hooks = "update-ldcache".parse().unwrap();
    let wanted = Settings {
        mode: Mode::Layout,
        state_label: StateLabel::Off,
        mig_node: MigNodeSwitch::On,
        disabled_hooks: hooks,
    };
    let found = all(wanted, CounterSupport::Pool);
    assert_eq!(verdict(&found, Subject::StateLabel), Some(Verdict::Off));
    assert_eq!(verdict(&found, Subject::Permissions), Some(Verdict::Good), "the right is not used");
    assert_eq!(verdict(&found, Subject::FeatureGate), Some(Verdict::Off));
    let hook = found.iter().rfind(|it| it.subject == Subject::CdiHook).unwrap();
    assert_eq!((hook.verdict, hook.text.contains("update-ldcache")), (Verdict::Off, true));

    // Only who insists on counters lacks them.
    let insists = Settings { mode: Mode::Partitionable, ..settings() };
    let found = all(insists, CounterSupport::Dropped);
    assert_eq!(verdict(&found, Subject::FeatureGate), Some(Verdict::Missing));
}

#[test]
fn the_list_has_a_mark_for_each_status_and_the_remedy_below() {
    let found = [
        good(Subject::Node, "fine"),
        missing(Subject::Gpus, "gone", "bring it back"),
        off(Subject::Gpus, "no", None),
        note(Subject::Gpus, "well", None),
        unknown(Subject::Gpus, "who knows", None),
    ];
    let expected = "\
ok       Node object  fine
MISSING  GPUs         gone
                      -> bring it back
off      GPUs         no
note     GPUs         well
?        GPUs         who knows
";
    assert_eq!(list(&found), expected);
}

#[test]
fn long_lines_are_wrapped_at_100_columns_and_commands_are_kept_whole() {
    let text = "a".repeat(40);
    let command = format!("`{} {}`", "b".repeat(20), "c".repeat(20));
    let path = format!("/{}", "d".repeat(120));
    let found = [missing(Subject::Gpus, format!("{text} {command} {path} end"), &format!("{text} {text} z"))];
    let indent = " ".repeat(15);
    let expected = format!(
        "MISSING  GPUs  {text} {}\n{indent}{path}\n{indent}end\n{indent}-> {text} {text}\n{indent}   z\n",
        command
    );
    assert_eq!(list(&found).lines().next().unwrap().len(), 99);
    assert_eq!(list(&found), expected);
}

#[test]
fn a_cluster_that_is_too_old_is_reported() {
    let verdict_of = |version: &str| {
        let cluster = ClusterFacts::All {
            version: Ok(version.to_owned()),
            node: None,
            rights: all_rights(&Ok(true)),
            counters: None,
        };
        of(Subject::ApiServer, &facts(host(), cluster))[0].verdict
    };
    for (version, verdict) in [
        ("v1.33.9", Verdict::Missing),
        ("v1.9.0", Verdict::Missing),
        ("v1.34.0", Verdict::Good),
        ("v1.34.1+k3s1", Verdict::Good),
        ("v1.35.5-gke.100", Verdict::Note),
        ("v1.35.6", Verdict::Good),
        ("v1.36.0-alpha.1", Verdict::Good),
        ("v2.0.0", Verdict::Good),
        ("latest", Verdict::Good),
        ("", Verdict::Good),
    ] {
        assert_eq!(verdict_of(version), verdict, "{version}");
    }
}
