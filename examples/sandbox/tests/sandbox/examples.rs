//! The folders of `examples/`, each by the command of its README, and the shipped story on every GPU model with MIG.

use crate::common::{Run, repository, run};
use nvml_sim::Model;

/// Every folder but the sandbox itself.
const FOLDERS: [&str; 26] = [
    "ansible",
    "b200",
    "deployment",
    "dev-environment",
    "extended-resources",
    "first-available",
    "heterogeneous",
    "jobset",
    "kserve",
    "kueue",
    "layouts",
    "node-pools",
    "notebook",
    "plan",
    "priority",
    "profiles-on-one-gpu",
    "raycluster",
    "several-devices",
    "shared-claim",
    "single-instance",
    "spread-and-pack",
    "team-quotas",
    "training-and-inference",
    "triton",
    "vllm",
    "volcano",
];

/// Plays a folder as its README says; also how many claims were prepared.
fn played(folder: &str) -> (Run, usize) {
    let text = std::fs::read_to_string(repository().join("examples").join(folder).join("README.md")).unwrap();
    let (_, rest) = text.split_once("`cargo run -p sandbox -- ").unwrap();
    let arguments: Vec<&str> = rest.split_once('`').unwrap().0.split_whitespace().collect();
    assert!(arguments.contains(&format!("examples/{folder}").as_str()), "{arguments:?}");
    let run = run(&arguments);
    assert_eq!(run.err, "", "{folder}: {}", run.out);
    let last = run.out.lines().last().unwrap();
    let prepared: usize = last.split_whitespace().nth(1).unwrap().parse().unwrap();
    let expected =
        format!("sandbox: {prepared} claims prepared, {prepared} unprepared, 0 MIG instances left");
    assert_eq!(last, expected, "{folder}: {}", run.out);
    (run, prepared)
}

/// Plays a folder in which everything runs.
fn plays(folder: &str, claims: usize) {
    let (run, prepared) = played(folder);
    assert_eq!((run.status, prepared), (Some(0), claims), "{folder}: {}", run.out);
}

macro_rules! folders {
    ($($name:ident: $folder:literal $claims:literal;)*) => {
        $(
            #[test]
            fn $name() {
                plays($folder, $claims);
            }
        )*
    };
}

folders! {
    ansible_plays: "ansible" 0;
    b200_plays: "b200" 5;
    deployment_plays: "deployment" 2;
    dev_environment_plays: "dev-environment" 7;
    extended_resources_plays: "extended-resources" 3;
    first_available_plays: "first-available" 1;
    heterogeneous_plays: "heterogeneous" 3;
    jobset_plays: "jobset" 3;
    kserve_plays: "kserve" 2;
    kueue_plays: "kueue" 4;
    layouts_plays: "layouts" 0;
    node_pools_plays: "node-pools" 2;
    notebook_plays: "notebook" 3;
    plan_plays: "plan" 22;
    priority_plays: "priority" 2;
    profiles_on_one_gpu_plays: "profiles-on-one-gpu" 1;
    raycluster_plays: "raycluster" 3;
    several_devices_plays: "several-devices" 2;
    shared_claim_plays: "shared-claim" 1;
    single_instance_plays: "single-instance" 1;
    spread_and_pack_plays: "spread-and-pack" 3;
    training_and_inference_plays: "training-and-inference" 5;
    triton_plays: "triton" 1;
    vllm_plays: "vllm" 2;
    volcano_plays: "volcano" 3;
}

#[test]
fn team_quotas_plays_and_its_quota_refuses_what_is_too_large() {
    let (run, prepared) = played("team-quotas");
    assert_eq!((run.status, prepared), (Some(1), 4), "{}", run.out);
    let name = "mig-3g.20gb.deviceclass.resource.k8s.io/devices";
    let why = format!("exceeded quota: gpus, requested: {name}=1, used: {name}=0, limited: {name}=0");
    assert!(run.out.contains("refused ResourceClaim too-large: ") && run.out.contains(&why), "{}", run.out);
}

#[test]
fn every_folder_is_played() {
    let entries = std::fs::read_dir(repository().join("examples")).unwrap().map(|it| it.unwrap());
    let folders = entries.filter(|it| it.path().is_dir() && it.file_name() != "sandbox");
    let mut folders: Vec<String> = folders.map(|it| it.file_name().into_string().unwrap()).collect();
    folders.sort();
    assert_eq!(folders, FOLDERS);
}

#[test]
fn the_shipped_examples_play_on_every_model_with_mig() {
    // Two at a time: each is mostly waiting.
    let models: Vec<&str> = Model::all().filter(Model::has_mig).map(|model| model.name()).collect();
    assert!(models.len() > 8, "{models:?}");
    let failures: Vec<String> = std::thread::scope(|scope| {
        let halves: Vec<_> = (0..2)
            .map(|half| {
                let mine: Vec<&str> = models.iter().copied().skip(half).step_by(2).collect();
                scope.spawn(move || mine.into_iter().filter_map(fails).collect::<Vec<_>>())
            })
            .collect();
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What the shipped story prints on four GPUs of a model, unless all of it runs.
fn fails(model: &str) -> Option<String> {
    let run = run(&["--gpus", &format!("4x{model}")]);
    let last = "\nsandbox: 6 claims prepared, 6 unprepared, 0 MIG instances left\n";
    let good = run.status == Some(0) && run.err.is_empty() && run.out.ends_with(last);
    (!good).then(|| format!("{model}: {run:?}"))
}
