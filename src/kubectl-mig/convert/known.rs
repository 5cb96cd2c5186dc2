//! The kinds with pod specs that are built in.

use super::traits::{Advice, Requires, Traits};

const PLAIN: Traits = Traits { requires: Requires::Image, containers: &[], advice: Advice::Nothing };
const SELECTOR: Traits = Traits { requires: Requires::SelectorAndImage, ..PLAIN };
pub(super) const FILLED_IN: Traits = Traits { requires: Requires::Nothing, ..PLAIN };
const RAY: Traits = Traits { advice: Advice::Ray, ..PLAIN };
const KSERVE: Traits = Traits {
    requires: Requires::Nothing,
    containers: &[
        "model",
        "sklearn",
        "xgboost",
        "tensorflow",
        "pytorch",
        "triton",
        "onnx",
        "huggingface",
        "pmml",
        "lightgbm",
        "paddle",
        "art",
    ],
    advice: Advice::KServe,
};
const SERVING_RUNTIME: Traits = Traits {
    advice: Advice::Review(
        "KServe before 0.20 drops the resourceClaims of a ServingRuntime, and with Knative no version accepts claims; verify \
         the version and the deployment mode of the InferenceServices that use it",
    ),
    ..FILLED_IN
};
const VOLCANO: Traits = Traits {
    advice: Advice::Note(
        "the Volcano scheduler (1.12 or later) allocates claims only with its feature gate DynamicResourceAllocation and the \
         argument predicate.DynamicResourceAllocationEnable; it does not count claims in queues",
    ),
    ..PLAIN
};
const TRAINER: Traits = Traits {
    advice: Advice::Note(
        "Kubeflow Trainer takes the processes per node from the GPU limits; set `numProcPerNode` in the TrainJobs that use \
         this runtime",
    ),
    ..FILLED_IN
};
const CLUSTER_TRAINER: Traits = Traits {
    advice: Advice::Refused(
        "the kind has no namespace, but a ResourceClaimTemplate must be in the namespace of the pods; use a TrainingRuntime in \
         each namespace, or create the template in each and name it here",
    ),
    ..FILLED_IN
};
const WORKFLOW: Traits = Traits {
    containers: &["container", "script"],
    advice: Advice::Review(
        "Argo Workflows before 4.1 has no resourceClaims in its templates and drops or refuses them; verify its version",
    ),
    ..FILLED_IN
};
const CLUSTER_WORKFLOW: Traits = Traits {
    advice: Advice::Refused(
        "the kind has no namespace, but a ResourceClaimTemplate must be in the namespace of the pods; use a WorkflowTemplate in \
         each namespace, or create the template in each and name it here (Argo Workflows 4.1 or later)",
    ),
    ..WORKFLOW
};
const KNATIVE: Traits = Traits {
    advice: Advice::Refused(
        "Knative refuses resourceClaims and resources.claims (knative/serving issue 15332); use a Deployment, or the extended \
         resource of the device class where DRAExtendedResource is on",
    ),
    ..FILLED_IN
};

/// The kinds of Kubernetes, and those of operators whose CRDs keep `resourceClaims[].resourceClaimTemplateName` and
/// `containers[].resources.claims`, each path read in the CRD of the version above it; and kinds whose operator refuses claims.
pub(super) const KNOWN: &[(&str, &str, &[&str], Traits)] = &[
    // Kubernetes 1.34.
    ("v1", "Pod", &["spec"], PLAIN),
    ("v1", "PodTemplate", &["template.spec"], PLAIN),
    ("v1", "ReplicationController", &["spec.template.spec"], PLAIN),
    ("apps/v1", "Deployment", &["spec.template.spec"], SELECTOR),
    ("apps/v1", "StatefulSet", &["spec.template.spec"], SELECTOR),
    ("apps/v1", "DaemonSet", &["spec.template.spec"], SELECTOR),
    ("apps/v1", "ReplicaSet", &["spec.template.spec"], SELECTOR),
    ("batch/v1", "Job", &["spec.template.spec"], PLAIN),
    ("batch/v1", "CronJob", &["spec.jobTemplate.spec.template.spec"], PLAIN),
    // ray-project/kuberay v1.7.0-rc.0 (feeaf72): helm-chart/kuberay-operator/crds.
    (
        "ray.io/*",
        "RayCluster",
        &["spec.headGroupSpec.template.spec", "spec.workerGroupSpecs[*].template.spec"],
        RAY,
    ),
    (
        "ray.io/*",
        "RayService",
        &[
            "spec.rayClusterConfig.headGroupSpec.template.spec",
            "spec.rayClusterConfig.workerGroupSpecs[*].template.spec",
        ],
        RAY,
    ),
    (
        "ray.io/*",
        "RayJob",
        &[
            "spec.rayClusterSpec.headGroupSpec.template.spec",
            "spec.rayClusterSpec.workerGroupSpecs[*].template.spec",
        ],
        RAY,
    ),
    ("ray.io/*", "RayJob", &["spec.submitterPodTemplate.spec"], PLAIN),
    (
        "ray.io/*",
        "RayCronJob",
        &[
            "spec.jobTemplate.rayClusterSpec.headGroupSpec.template.spec",
            "spec.jobTemplate.rayClusterSpec.workerGroupSpecs[*].template.spec",
        ],
        RAY,
    ),
    ("ray.io/*", "RayCronJob", &["spec.jobTemplate.submitterPodTemplate.spec"], PLAIN),
    // argoproj/argo-rollouts v1.10.0-rc1 (9f8d111): manifests/crds.
    ("argoproj.io/*", "Rollout", &["spec.template.spec"], SELECTOR),
    ("argoproj.io/*", "Experiment", &["spec.templates[*].template.spec"], PLAIN),
    ("argoproj.io/*", "AnalysisTemplate", &["spec.metrics[*].provider.job.spec.template.spec"], PLAIN),
    // argoproj/argo-workflows v4.1.0-rc2 (f016ad8): manifests/base/crds/full, .features/released/v4.1.0/dra-resource-claims.md.
    ("argoproj.io/*", "Workflow", &["spec.templates[*]"], WORKFLOW),
    ("argoproj.io/*", "WorkflowTemplate", &["spec.templates[*]"], WORKFLOW),
    ("argoproj.io/*", "CronWorkflow", &["spec.workflowSpec.templates[*]"], WORKFLOW),
    ("argoproj.io/*", "ClusterWorkflowTemplate", &["spec.templates[*]"], CLUSTER_WORKFLOW),
    // kubernetes-sigs/jobset v0.13.0-devel (08dfbdf): charts/jobset/crds.
    ("jobset.x-k8s.io/*", "JobSet", &["spec.replicatedJobs[*].template.spec.template.spec"], PLAIN),
    // kubernetes-sigs/lws v0.10.0 (060ab4d): charts/lws/crds.
    (
        "leaderworkerset.x-k8s.io/*",
        "LeaderWorkerSet",
        &["spec.leaderWorkerTemplate.leaderTemplate.spec", "spec.leaderWorkerTemplate.workerTemplate.spec"],
        PLAIN,
    ),
    (
        "disaggregatedset.x-k8s.io/*",
        "DisaggregatedSet",
        &[
            "spec.roles[*].spec.leaderWorkerTemplate.leaderTemplate.spec",
            "spec.roles[*].spec.leaderWorkerTemplate.workerTemplate.spec",
        ],
        PLAIN,
    ),
    // kubeflow/trainer, branch of version 1 (ee38ae8): manifests/base/crds/kubeflow.org_*.yaml; the kinds share one type
    // for replicas. kubeflow/mpi-operator (caa3c47): deploy/v2beta1.
    ("kubeflow.org/*", "PyTorchJob", &["spec.pytorchReplicaSpecs.*.template.spec"], PLAIN),
    ("kubeflow.org/*", "TFJob", &["spec.tfReplicaSpecs.*.template.spec"], PLAIN),
    ("kubeflow.org/*", "MPIJob", &["spec.mpiReplicaSpecs.*.template.spec"], PLAIN),
    ("kubeflow.org/*", "XGBoostJob", &["spec.xgbReplicaSpecs.*.template.spec"], PLAIN),
    ("kubeflow.org/*", "PaddleJob", &["spec.paddleReplicaSpecs.*.template.spec"], PLAIN),
    ("kubeflow.org/*", "JAXJob", &["spec.jaxReplicaSpecs.*.template.spec"], PLAIN),
    // kubeflow/trainer (8c0f505): manifests/base/crds, pkg/runtime/runtime.go for the count of GPUs.
    (
        "trainer.kubeflow.org/*",
        "TrainingRuntime",
        &["spec.template.spec.replicatedJobs[*].template.spec.template.spec"],
        TRAINER,
    ),
    (
        "trainer.kubeflow.org/*",
        "ClusterTrainingRuntime",
        &["spec.template.spec.replicatedJobs[*].template.spec.template.spec"],
        CLUSTER_TRAINER,
    ),
    // kserve/kserve v0.20.0-rc0 (aaac4e2): config/crd/full, pkg/apis/serving/v1beta1/predictor.go.
    (
        "serving.kserve.io/*",
        "InferenceService",
        &["spec.predictor", "spec.transformer", "spec.explainer"],
        KSERVE,
    ),
    (
        "serving.kserve.io/*",
        "LLMInferenceService",
        &["spec.template", "spec.worker", "spec.prefill.template", "spec.prefill.worker"],
        FILLED_IN,
    ),
    ("serving.kserve.io/*", "ServingRuntime", &["spec"], SERVING_RUNTIME),
    // volcano-sh/volcano v1.16.0-alpha.1 (ed72c7c): config/crd, docs/user-guide/how_to_enable_dra.md.
    ("batch.volcano.sh/*", "Job", &["spec.tasks[*].template.spec"], VOLCANO),
    ("batch.volcano.sh/*", "CronJob", &["spec.jobTemplate.spec.tasks[*].template.spec"], VOLCANO),
    ("flow.volcano.sh/*", "JobTemplate", &["spec.tasks[*].template.spec"], VOLCANO),
    // openkruise/kruise (07169cf): config/crd/bases; the schemas keep unknown fields of pod templates.
    ("apps.kruise.io/*", "CloneSet", &["spec.template.spec"], SELECTOR),
    ("apps.kruise.io/*", "StatefulSet", &["spec.template.spec"], SELECTOR),
    ("apps.kruise.io/*", "DaemonSet", &["spec.template.spec"], SELECTOR),
    ("apps.kruise.io/*", "BroadcastJob", &["spec.template.spec"], PLAIN),
    // kedacore/keda v2.20.1 (8b4f083): config/crd/bases.
    ("keda.sh/*", "ScaledJob", &["spec.jobTargetRef.template.spec"], PLAIN),
    // ai-dynamo/grove v0.1.0-alpha.12-rc1 (fcc3b3b): operator/api/core/v1alpha1/crds.
    ("grove.io/*", "PodClique", &["spec.podSpec"], PLAIN),
    ("grove.io/*", "PodCliqueSet", &["spec.template.cliques[*].spec.podSpec"], PLAIN),
    // knative/serving v1.23.0 (98e5ef9): config/core/300-resources; neither field is in the schema.
    ("serving.knative.dev/*", "Service", &["spec.template.spec"], KNATIVE),
    ("serving.knative.dev/*", "Configuration", &["spec.template.spec"], KNATIVE),
];
