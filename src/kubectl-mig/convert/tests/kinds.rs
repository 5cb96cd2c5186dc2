//! Pod templates of operators.

use super::*;

/// A pod spec that requests a MIG device, indented.
fn spec(indent: usize) -> String {
    let lines = [
        "containers:",
        "- name: c",
        "  image: x",
        "  resources:",
        "    limits:",
        "      nvidia.com/mig-1g.5gb: 1",
    ];
    lines.map(|it| format!("{}{it}\n", " ".repeat(indent))).concat()
}

/// An object whose field has the pod spec: `spec.a[*].b` becomes nested mappings and a list of one item.
fn object(api_version: &str, kind: &str, path: &str) -> String {
    let mut text =
        format!("apiVersion: {api_version}\nkind: {kind}\nmetadata:\n  name: x\n  namespace: team\n");
    let mut indent = 0;
    for step in path.split('.') {
        let (name, list) = step.strip_suffix("[*]").map_or((step, false), |it| (it, true));
        let name = if name == "*" { "any" } else { name };
        text.push_str(&format!("{}{name}:\n", " ".repeat(indent)));
        indent += 2;
        if list {
            text.push_str(&format!("{}- name: item\n", " ".repeat(indent)));
            indent += 2;
        }
        if step == "spec"
            && ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Rollout", "CloneSet"].contains(&kind)
            && indent == 2
        {
            text.push_str("  selector: {matchLabels: {a: b}}\n");
        }
    }
    text + &spec(indent)
}

/// The remarks of a first run, after checking that a second one says the same.
fn remarks(text: &str) -> (String, Vec<String>) {
    let it = convert(text).unwrap();
    again(&it);
    let shown = it.remarks.iter().map(ToString::to_string).collect();
    (it.text, shown)
}

#[test]
fn pod_templates_of_operators_are_converted() {
    for (api_version, kind, path) in [
        ("argoproj.io/v1alpha1", "Rollout", "spec.template.spec"),
        ("jobset.x-k8s.io/v1alpha2", "JobSet", "spec.replicatedJobs[*].template.spec.template.spec"),
        ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "spec.leaderWorkerTemplate.workerTemplate.spec"),
        ("kubeflow.org/v1", "PyTorchJob", "spec.pytorchReplicaSpecs.*.template.spec"),
        ("kubeflow.org/v1", "TFJob", "spec.tfReplicaSpecs.*.template.spec"),
        ("kubeflow.org/v2beta1", "MPIJob", "spec.mpiReplicaSpecs.*.template.spec"),
        ("serving.kserve.io/v1alpha1", "LLMInferenceService", "spec.template"),
        ("apps.kruise.io/v1alpha1", "CloneSet", "spec.template.spec"),
        ("keda.sh/v1alpha1", "ScaledJob", "spec.jobTargetRef.template.spec"),
        ("grove.io/v1alpha1", "PodCliqueSet", "spec.template.cliques[*].spec.podSpec"),
    ] {
        let (text, said) = remarks(&object(api_version, kind, path));
        assert_eq!(said, [""; 0], "{kind}");
        assert!(text.contains("  name: mig-1g.5gb\n  namespace: team\n"), "{kind}\n{text}");
        assert!(text.contains("resourceClaimTemplateName: mig-1g.5gb\n"), "{kind}\n{text}");
        assert!(!text.contains("nvidia.com"), "{kind}\n{text}");
    }
}

#[test]
fn what_an_operator_needs_beside_claims_is_said() {
    let volcano = object("batch.volcano.sh/v1alpha1", "Job", "spec.tasks[*].template.spec");
    let (text, said) = remarks(&volcano);
    assert!(text.contains("resourceClaimTemplateName") && said.len() == 1, "{said:?}");
    assert!(said[0].contains("note: ") && said[0].contains("DynamicResourceAllocation"), "{said:?}");

    let kserve = object("serving.kserve.io/v1beta1", "InferenceService", "spec.predictor");
    let (text, said) = remarks(&kserve);
    assert!(text.contains("resourceClaimTemplateName") && said[0].contains("review: "), "{said:?}");
    let annotated = |mode: &str| {
        let annotations =
            format!("metadata:\n  annotations:\n    serving.kserve.io/deploymentMode: {mode}\n");
        kserve.replace("metadata:\n", &annotations)
    };
    assert_eq!(remarks(&annotated("RawDeployment")).1, [""; 0]);
    assert!(untouched(&annotated("Serverless"))[0].contains("Knative refuses"));
}

#[test]
fn the_model_of_an_inference_service_is_a_container() {
    let text = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata:\n  name: llm\n  annotations: \
                {serving.kserve.io/deploymentMode: Standard}\nspec:\n  predictor:\n    model:\n      modelFormat: {name: \
                huggingface}\n      resources:\n        limits:\n          cpu: 1\n          nvidia.com/gpu: 1\n";
    let wanted = "      resources:\n        limits:\n          cpu: 1\n        claims:\n        - name: model-gpu\n    \
                  resourceClaims:\n    - name: model-gpu\n      resourceClaimTemplateName: gpu\n";
    let (converted, said) = remarks(text);
    assert_eq!(said, [""; 0]);
    assert!(converted.ends_with(wanted), "{converted}");
    let multi_node = text.replace("    model:\n", "    workerSpec: {pipelineParallelSize: 2}\n    model:\n");
    assert!(untouched(&multi_node)[0].contains("adds nvidia.com/gpu"));
}

#[test]
fn the_container_of_a_workflow_template_is_converted() {
    let text = "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nmetadata: {generateName: w-}\nspec:\n  entrypoint: main\n  templates:\n  \
                - name: main\n    container:\n      image: x\n      resources:\n        limits: {nvidia.com/gpu: 1}\n  - name: steps\n    \
                steps: []\n  - name: script\n    script:\n      image: x\n      resources:\n        limits: {nvidia.com/gpu: 1}\n";
    let (converted, said) = remarks(text);
    assert_eq!(converted.matches("    resourceClaims:\n    - name: ").count(), 2, "{converted}");
    assert!(
        converted.contains("- name: container-gpu\n") && converted.contains("- name: script-gpu\n"),
        "{converted}"
    );
    assert!(said.len() == 2 && said.iter().all(|it| it.contains("before 4.1")), "{said:?}");
    let cluster = text.replace("kind: Workflow", "kind: ClusterWorkflowTemplate");
    assert!(untouched(&cluster)[0].contains("no namespace"));
}

#[test]
fn an_operator_that_refuses_claims_keeps_its_objects_as_they_are() {
    let knative = object("serving.knative.dev/v1", "Service", "spec.template.spec");
    let left = untouched(&knative);
    assert!(left[0].contains("Service x, spec.template.spec: Knative refuses"), "{left:?}");
    // No template for it in front of the next object.
    let (text, _) = remarks(&format!("{knative}---\n{POD}"));
    assert_eq!(text.matches("kind: ResourceClaimTemplate\n").count(), 1, "{text}");
    let path = "spec.template.spec.replicatedJobs[*].template.spec.template.spec";
    let runtime = object("trainer.kubeflow.org/v1alpha1", "ClusterTrainingRuntime", path);
    assert!(untouched(&runtime)[0].contains("no namespace"));
}

fn ray(group: &str) -> String {
    let head = "apiVersion: ray.io/v1\nkind: RayCluster\nmetadata: {name: r}\nspec:\n  headGroupSpec:\n    template:\n      spec:\n        \
                containers:\n        - {name: head, image: x}\n  workerGroupSpecs:\n";
    format!(
        "{head}  - groupName: small\n{group}    template:\n      spec:\n{}",
        spec(8).replace(": 1\n", ": 2\n")
    )
}

#[test]
fn ray_is_given_the_number_of_gpus_by_its_parameters() {
    let (text, said) = remarks(&ray(""));
    assert!(text.contains("resourceClaimTemplateName: mig-1g.5gb-x2\n"), "{text}");
    assert!(
        said.iter()
            .any(|it| it.contains("review: ") && it.contains("`num-gpus: \"2\"` to its rayStartParams")),
        "{said:?}"
    );
    let (_, said) = remarks(&ray("    resources: {CPU: \"4\"}\n"));
    assert!(said.iter().any(|it| it.contains("`GPU: \"2\"` to its resources")), "{said:?}");
    for group in ["    rayStartParams:\n      num-gpus: \"2\"\n", "    resources: {GPU: \"2\"}\n"] {
        let (_, said) = remarks(&ray(group));
        assert!(said.iter().all(|it| !it.contains("KubeRay")), "{said:?}");
    }
}

#[test]
fn one_group_that_cannot_be_converted_keeps_the_whole_cluster_back() {
    let text = ray("    rayStartParams: {num-gpus: \"2\"}\n");
    let head = "        - {name: head, image: x, resources: {limits: {nvidia.com/gpu: 1}}}\n";
    let text =
        text.replace("        - {name: head, image: x}\n", head).replace("mig-1g.5gb: 2", "mig-1g.5gb: two");
    assert!(!untouched(&text).is_empty());
    // The template of the head is not left over.
    assert!(
        convert(&format!("{text}---\n{POD}")).unwrap().text.matches("kind: ResourceClaimTemplate\n").count()
            == 1
    );
}

#[test]
fn a_flag_adds_a_pod_template_and_the_remark_says_which() {
    let text = object("example.com/v1", "Trainer", "spec.groups.*.workers[*].template.spec");
    let left = untouched(&text);
    let flag = "example.com/*/Trainer=spec.groups.any.workers[*].template.spec";
    assert!(left[0].contains(&format!("--pod-template '{flag}'")), "{left:?}");
    for flag in [flag, "example.com/v1/Trainer=spec.groups.*.workers[*].template.spec"] {
        let it = convert_with(&text, &[flag.parse().unwrap()], &[]).unwrap();
        assert!(!it.left_something(), "{:?}", it.remarks);
        assert!(it.text.contains("resourceClaimTemplateName: mig-1g.5gb\n"), "{}", it.text);
    }
    // Two paths to one pod spec.
    let twice = ["spec.groups.*.workers[*].template.spec", "spec.groups.any.workers[*].template.spec"];
    let twice = twice.map(|it| format!("example.com/*/Trainer={it}").parse().unwrap());
    let it = convert_with(&text, &twice, &[]).unwrap();
    assert_eq!(it.text.matches("resourceClaims:").count(), 1, "{}", it.text);
}

#[test]
fn anchors_on_the_way_to_a_pod_spec_are_refused() {
    let text = object("kubeflow.org/v1", "PyTorchJob", "spec.pytorchReplicaSpecs.*.template.spec");
    let text = text.replace("    any:\n", "    any: &replica\n") + "    Worker: *replica\n";
    let left = untouched(&text);
    assert!(left.iter().any(|it| it.contains("spec.pytorchReplicaSpecs.any: it has an anchor")), "{left:?}");
    assert!(left.iter().any(|it| it.contains("spec.pytorchReplicaSpecs.Worker: it is an alias")), "{left:?}");
}

#[test]
fn a_profile_without_a_class_is_said() {
    let text = object("v1", "Pod", "spec").replace("1g.5gb", "1g.6gb").replace("6gb", "7gb");
    let left = untouched(&text);
    assert!(left[0].contains("no device class has the name mig-1g.7gb"), "{left:?}");
    assert!(left[0].contains("mig-1g.10gb") && left[0].contains("--device-class mig-1g.7gb"), "{left:?}");
    let it = convert_with(&text, &[], &["mig-1g.7gb".to_owned()]).unwrap();
    assert!(!it.left_something() && it.text.contains("deviceClassName: mig-1g.7gb\n"), "{}", it.text);
    let quota = "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: q}\nspec:\n  hard: {requests.nvidia.com/mig-1g.7gb: 1}\n";
    assert!(untouched(quota)[0].contains("no device class"));
}
