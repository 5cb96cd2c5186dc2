//! What a newcomer does with the sandbox: mistakes in manifests, kinds that it does not know, pods that do not fit.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::common::{Run, manifest, run, sandbox};
use nvml_sim::Model;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  containers:
  - name: c
    image: i
    resources: {claims: [{name: gpu}]}
  resourceClaims: [{name: gpu, resourceClaimTemplateName: t}]
";

const TEMPLATE: &str = "
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: t}
spec: {spec: {devices: {requests: [{name: r, exactly: {deviceClassName: mig-1g.10gb}}]}}}
";

fn play(text: &str, more: &[&str]) -> (Run, String) {
    let (_directory, path) = manifest(text);
    let mut arguments = vec!["-f", path.as_str()];
    arguments.extend(more);
    (run(&arguments), path)
}

/// The mistakes that a text has; nothing may have started.
fn mistakes(text: &str) -> Vec<String> {
    let (run, path) = play(text, &[]);
    assert_eq!((run.status, run.out.as_str()), (Some(2), ""), "{run:?}");
    let own = |line: &str| line.strip_prefix(&format!("sandbox: {path}:")).unwrap_or(line).to_owned();
    run.err.lines().filter(|line| !line.starts_with(' ')).map(own).collect()
}

#[test]
fn every_mistake_is_printed_with_file_line_and_document_before_anything_starts() {
    let broken = POD.replace("image: i", "image: [i");
    let misspelt = POD.replace("containers:", "container:");
    let found = mistakes(&format!("{TEMPLATE}---{broken}---{misspelt}"));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("14 (document 2): "), "{found:?}");
    assert!(found[1].starts_with("21 (document 3): Pod pod: "), "{found:?}");
    assert!(found[1].ends_with("unknown field \"spec.container\""), "{found:?}");
}

#[test]
fn a_value_of_the_wrong_type_is_found_at_its_line() {
    let deployment = "kind: Deployment\napiVersion: apps/v1\nmetadata: {name: d}\nspec:\n  replicas: two\n  selector: {}\n  \
                      template: {spec: {containers: [{name: c}]}}\n";
    let found = mistakes(deployment);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("5 (document 1): Deployment d: ") && found[0].contains("spec.replicas: "),
        "{found:?}"
    );
}

#[test]
fn a_selector_that_is_no_cel_is_found_at_its_line() {
    let template = "apiVersion: resource.k8s.io/v1\nkind: ResourceClaimTemplate\nmetadata: {name: t}\nspec:\n  spec:\n    devices:\n      \
                    requests:\n      - name: r\n        exactly:\n          deviceClassName: mig.dra-driver.dev\n          selectors:\n          \
                    - cel:\n              expression: device.attributes[\n";
    let found = mistakes(template);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("13 (document 1): ResourceClaimTemplate t: "), "{found:?}");
    assert!(found[0].contains("compilation failed"), "{found:?}");
}

#[test]
fn a_version_that_is_not_served_and_a_namespace_that_is_missing_are_mistakes() {
    let old = TEMPLATE.replace("resource.k8s.io/v1", "resource.k8s.io/v1beta1");
    assert_eq!(
        mistakes(&old),
        [
            "2 (document 1): ResourceClaimTemplate t: the apiVersion is resource.k8s.io/v1beta1; write resource.k8s.io/v1"
        ]
    );
    let elsewhere = TEMPLATE.replace("{name: t}", "{name: t, namespace: elsewhere}");
    let found = mistakes(&elsewhere);
    assert!(
        found[0].ends_with(
            "namespaces \"elsewhere\" not found; put a document of kind Namespace before this one"
        ),
        "{found:?}"
    );
}

#[test]
fn a_kind_that_runs_pods_and_cannot_be_played_is_refused() {
    let service = "apiVersion: ray.io/v1\nkind: RayService\nmetadata: {name: ray}\nspec: {rayClusterConfig: {headGroupSpec: {template: \
                   {spec: {containers: [{name: c}]}}}}}\n";
    let found = mistakes(service);
    assert!(
        found[0].starts_with(
            "1 (document 1): RayService ray: RayService of ray.io/v1 runs pods, and cannot be played here"
        ),
        "{found:?}"
    );
}

#[test]
fn the_pod_templates_of_operators_are_judged_as_pods() {
    let worker = "\n    template:\n      spec:\n        template:\n          spec:\n            restartPolicy: Never\n            containers:\n            \
                  - {name: c, image: i, resources: {claims: [{name: CLAIM}]}}\n            resourceClaims:\n            \
                  - {name: gpu, resourceClaimTemplateName: t}\n";
    let set = format!(
        "{TEMPLATE}---\napiVersion: jobset.x-k8s.io/v1alpha2\nkind: JobSet\nmetadata: {{name: s}}\nspec:\n  replicatedJobs:\n  \
         - name: w{worker}"
    );
    let found = mistakes(&set.replace("CLAIM", "gpus"));
    let expected = "(document 2): JobSet s, as Pod s-w-0: ";
    assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
    assert!(found[0].contains("must be one of the names in pod.spec.resourceClaims"), "{found:?}");
    let misspelt = mistakes(&set.replace("CLAIM", "gpu").replace("restartPolicy", "restart"));
    assert!(misspelt[0].contains(expected) && misspelt[0].contains("restart"), "{misspelt:?}");
}

#[test]
fn harmless_kinds_are_named_and_do_not_matter() {
    let others = "
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec: {maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: web}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: []
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {a: b}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: q}
spec: {hard: {limits.cpu: 4, count/resourceclaims.resource.k8s.io: 9}}
";
    let (run, _) = play(&format!("{others}---{TEMPLATE}---{POD}"), &[]);
    assert_eq!((run.status, run.err.as_str()), (Some(0), ""), "{}", run.out);
    for line in [
        "skipped HorizontalPodAutoscaler web: no effect here",
        "created PodDisruptionBudget web",
        "skipped Role reader: no effect here",
        "Secret key: stored, no effect here",
        "ResourceQuota q: does not limit limits.cpu here",
    ] {
        assert!(run.out.lines().any(|it| it == line), "{line}: {}", run.out);
    }
    assert!(
        run.out.ends_with("sandbox: 1 claims prepared, 1 unprepared, 0 MIG instances left\n"),
        "{}",
        run.out
    );
}

#[test]
fn a_pod_that_does_not_fit_is_explained() {
    let (run, _) = play(&format!("{TEMPLATE}---{POD}"), &["--gpus", "1xA30-24GB"]);
    assert_eq!((run.status, run.err.as_str()), (Some(1), ""), "{}", run.out);
    assert!(run.out.contains("pod pod does not run\n"), "{}", run.out);
    assert!(
        run.out.contains("FailedScheduling: 0/1 nodes are available: 1 cannot allocate all claims."),
        "{}",
        run.out
    );
    let verdict =
        "pod/pod gets no devices as things are: no GPU of the cluster offers the MIG profile 1g.10gb.";
    assert!(run.out.contains(verdict), "{}", run.out);
    assert!(run.out.contains("1. ask for 2g.12gb: deviceClassName: mig-2g.12gb"), "{}", run.out);
    assert!(run.out.contains("sandbox: 0 claims prepared"), "{}", run.out);
}

#[test]
fn a_pod_whose_template_is_missing_is_explained() {
    let (run, _) = play(POD, &[]);
    assert_eq!(run.status, Some(1), "{}", run.out);
    let why = "FailedResourceClaimCreation: PodResourceClaim gpu: resourceclaimtemplates.resource.k8s.io \"t\" not found";
    assert!(run.out.contains(why), "{}", run.out);
}

#[test]
fn a_pod_that_waits_for_another_ones_device_is_explained_by_its_holder() {
    let template = TEMPLATE.replace("mig-1g.10gb", "mig-7g.80gb");
    // The sandbox has no such label; its scheduler does not ask for it, and so it is not what the pod waits for.
    let second =
        POD.replace("{name: pod}", "{name: second}").replace("spec:", "spec:\n  nodeSelector: {pool: mig}");
    let (run, _) = play(&format!("{template}---{POD}---{second}"), &["--gpus", "1xH100-80GB"]);
    assert_eq!((run.status, run.err.as_str()), (Some(1), ""), "{}", run.out);
    assert!(run.out.contains("pod/second gets no devices now: every 7g.80gb"), "{}", run.out);
    assert!(
        run.out.contains("kubectl -n default delete pod pod # makes room on node gpu-node-0"),
        "{}",
        run.out
    );
    assert!(!run.out.contains("nodeSelector wants"), "{}", run.out);
}

#[test]
fn an_extended_resource_without_its_gate_is_pending_and_never_served() {
    let pod = POD.replace("{claims: [{name: gpu}]}", "{limits: {nvidia.com/mig-1g.10gb: 1}}");
    let pod = pod.replace("  resourceClaims: [{name: gpu, resourceClaimTemplateName: t}]\n", "");
    let (run, _) = play(&pod, &["--gate", "DRAExtendedResource=false"]);
    assert_eq!((run.status, run.err.as_str()), (Some(1), ""), "{}", run.out);
    assert!(run.out.contains("1 Insufficient nvidia.com/mig-1g.10gb"), "{}", run.out);
    assert!(run.out.contains("and\n  DRAExtendedResource is off."), "{}", run.out);
    assert!(
        run.out.contains("--gate DRAExtendedResource=true") && run.out.contains("    NOTHING\n"),
        "{}",
        run.out
    );
    let (run, _) = play(&pod, &[]);
    assert_eq!((run.status, run.err.as_str()), (Some(0), ""), "{}", run.out);
    assert!(
        run.out.contains("/dev/nvidia-caps/") && run.out.contains("pod/c  (claim pod-extended-resources-"),
        "{}",
        run.out
    );
}

#[test]
fn a_gate_that_is_unknown_or_neither_true_nor_false_is_refused() {
    for (value, why) in [
        ("DRAMagic=true", "no gate is called \"DRAMagic\""),
        ("DRADeviceTaints=on", "neither true nor false"),
    ] {
        let run = run(&["--gate", value]);
        assert_eq!((run.status, run.out.as_str()), (Some(2), ""));
        assert!(run.err.contains(why), "{}", run.err);
    }
}

#[test]
fn the_help_lists_the_kinds_and_the_gpu_models() {
    let run = run(&["--help"]);
    assert_eq!(run.status, Some(0));
    for model in Model::all() {
        assert!(run.out.contains(model.name()), "{}", model.name());
    }
    for kind in
        ["CronJob", "DaemonSet", "Deployment", "Job", "Pod", "ResourceQuota", "StatefulSet", "Service"]
    {
        assert!(run.out.contains(kind), "{kind}");
    }
}

/// Ends a program when dropped.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn serve_prints_commands_that_work() {
    let mut served = Served(sandbox(&["--serve"]).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(served.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let url =
        lines.find_map(|it| Some(it.strip_prefix("serving on ")?.split(';').next()?.to_owned())).unwrap();
    let commands: Vec<String> = lines.by_ref().take_while(|it| it.starts_with("  ")).collect();
    let with = |text: &str| {
        commands.iter().find(|it| it.contains(text)).unwrap_or_else(|| panic!("{text}: {commands:?}"))
    };
    let kubeconfig = with("export KUBECONFIG=").split('=').nth(1).unwrap();
    assert!(std::fs::read_to_string(kubeconfig).unwrap().contains(&url));
    let example = with("kubectl apply -f ").split_whitespace().last().unwrap();
    assert!(std::path::Path::new(example).join("single-instance.yaml").is_file(), "{example}");
    with("kubectl get resourceslices");
    assert!(with("explain pod/single-instance").contains("kubectl-mig"));
    let inspect = with("inspect --driver-root");
    let (_, arguments) = inspect.split_once("inspect").unwrap();
    let line = ["dra-driver-mig", "inspect"].into_iter().chain(arguments.split_whitespace());
    use clap::Parser as _;
    let cli = dra_driver_mig::args::Cli::try_parse_from(line).unwrap();
    let dra_driver_mig::args::Command::Inspect(arguments) = cli.command else { panic!("{inspect}") };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    runtime.block_on(dra_driver_mig::inspect::run(&arguments)).unwrap();
}
