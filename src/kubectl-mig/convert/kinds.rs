//! Where objects have pod specs: a list of (API version, kind, path) that the user can extend.

use std::str::FromStr;

use super::classes::Classes;

/// Most steps of a path.
const MAX_STEPS: usize = 32;

/// Where objects of one kind have a pod spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodTemplate {
    /// `apps/v1`, or `ray.io/*` for any version.
    api_version: String,
    kind: String,
    path: Vec<Step>,
    traits: Traits,
}

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A field of an object.
    Field(String),
    /// Every item of a list.
    Items,
    /// Every value of a map.
    Values,
}

/// What is special about a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Traits {
    /// What the API server or the operator requires, so that an object without it is a patch.
    pub(super) requires: Requires,
    /// Fields of the pod spec that are containers, beside `containers` and `initContainers`.
    pub(super) containers: &'static [&'static str],
    /// What the user has to know about claims in this kind.
    pub(super) advice: Advice,
}

/// What an object of a kind always has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Requires {
    /// `spec.selector`, and an image in each container.
    SelectorAndImage,
    /// An image in each container.
    Image,
    /// Neither: the operator fills in what is missing, or the kind is the user's.
    Nothing,
}

/// What the user has to know about claims in a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    /// Nothing: the operator passes claims on.
    Nothing,
    /// Something to verify in the cluster, which no manifest shows.
    Note(&'static str),
    /// Something to do, or the pods do not get what they had.
    Left(&'static str),
    /// Claims do not work.
    Refused(&'static str),
    /// KubeRay counts the GPUs of a group by its limits.
    Ray,
    /// KServe passes claims on only in the deployment mode Standard.
    KServe,
}

const PLAIN: Traits = Traits { requires: Requires::Image, containers: &[], advice: Advice::Nothing };
const SELECTOR: Traits = Traits { requires: Requires::SelectorAndImage, ..PLAIN };
const FILLED_IN: Traits = Traits { requires: Requires::Nothing, ..PLAIN };
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
    advice: Advice::Left(
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
const KNATIVE: Traits = Traits {
    advice: Advice::Refused(
        "Knative refuses resourceClaims and resources.claims (knative/serving issue 15332); use a Deployment, or the extended \
         resource of the device class where DRAExtendedResource is on",
    ),
    ..FILLED_IN
};

/// The kinds of Kubernetes, and those of operators whose CRDs keep `resourceClaims[].resourceClaimTemplateName` and
/// `containers[].resources.claims`, each path read in the CRD of the version above it; and kinds whose operator refuses claims.
const KNOWN: &[(&str, &str, &[&str], Traits)] = &[
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

impl PodTemplate {
    /// Whether this is about objects of a kind.
    fn is_of(&self, api_version: &str, kind: &str) -> bool {
        let group = |it: &str| it.rsplit_once('/').map(|(group, _)| group.to_owned());
        let version = match self.api_version.strip_suffix("/*") {
            Some(any) => group(api_version).as_deref() == Some(any),
            None => self.api_version == api_version,
        };
        version && self.kind == kind
    }

    pub(super) fn path(&self) -> &[Step] {
        &self.path
    }

    pub(super) fn traits(&self) -> Traits {
        self.traits
    }
}

impl FromStr for PodTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted =
            "write API_VERSION/KIND=PATH, such as example.com/*/Trainer=spec.workers[*].template.spec";
        let (name, path) = text.split_once('=').ok_or(wanted)?;
        let (api_version, kind) = name.rsplit_once('/').ok_or(wanted)?;
        let is_name =
            |it: &str| !it.is_empty() && it.chars().all(|it| it.is_ascii_alphanumeric() || "-.".contains(it));
        let version = api_version.strip_suffix("/*").unwrap_or(api_version);
        if !is_name(kind) || !version.split('/').all(is_name) || version.split('/').count() > 2 {
            return Err(format!("`{name}` is not an API version and a kind; {wanted}"));
        }
        let path = steps(path).ok_or_else(|| format!("`{path}` is not a path; {wanted}"))?;
        Ok(Self { api_version: api_version.to_owned(), kind: kind.to_owned(), path, traits: FILLED_IN })
    }
}

/// The steps of `spec.a[*].b.*.spec`.
fn steps(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let name = part.trim_end_matches("[*]");
        let lists = (part.len() - name.len()) / "[*]".len();
        match name {
            "" => return None,
            "*" => steps.push(Step::Values),
            _ if name.chars().all(|it| it.is_ascii_alphanumeric() || "-_".contains(it)) => {
                steps.push(Step::Field(name.to_owned()));
            }
            _ => return None,
        }
        steps.extend(std::iter::repeat_n(Step::Items, lists));
    }
    (steps.len() <= MAX_STEPS).then_some(steps)
}

/// What a conversion knows of the cluster: kinds with pod specs, and device classes.
#[derive(Debug)]
pub(super) struct Knowledge {
    kinds: Vec<PodTemplate>,
    pub(super) classes: Classes,
}

impl Knowledge {
    /// What is built in, and what the user adds.
    pub(super) fn with(pod_templates: &[PodTemplate], device_classes: &[String]) -> Self {
        let known = KNOWN.iter().flat_map(|(api_version, kind, paths, traits)| {
            paths.iter().filter_map(|path| {
                let (api_version, kind) = ((*api_version).to_owned(), (*kind).to_owned());
                Some(PodTemplate { api_version, kind, path: steps(path)?, traits: *traits })
            })
        });
        Self {
            kinds: known.chain(pod_templates.iter().cloned()).collect(),
            classes: Classes::shipped_and(device_classes),
        }
    }

    /// Where objects of a kind have pod specs.
    pub(super) fn pod_templates(&self, api_version: &str, kind: &str) -> Vec<&PodTemplate> {
        self.kinds.iter().filter(|it| it.is_of(api_version, kind)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_path_can_be_read() {
        let count = KNOWN.iter().map(|(_, _, paths, _)| paths.len()).sum::<usize>();
        let knowledge = Knowledge::with(&[], &[]);
        assert_eq!(knowledge.kinds.len(), count);
        for (api_version, kind, paths, _) in KNOWN {
            for path in *paths {
                let flag = format!("{api_version}/{kind}={path}");
                assert!(flag.parse::<PodTemplate>().is_ok(), "{flag}");
            }
        }
    }

    #[test]
    fn a_version_is_one_or_any() {
        let knowledge = Knowledge::with(&[], &[]);
        let has = |api_version, kind| !knowledge.pod_templates(api_version, kind).is_empty();
        assert!(has("v1", "Pod") && has("ray.io/v1", "RayCluster") && has("ray.io/v1alpha1", "RayCluster"));
        assert!(!has("v2", "Pod") && !has("example.com/v1", "Pod") && !has("ray.io", "RayCluster"));
        assert!(!has("batch/v1", "JobSet"));
    }

    #[test]
    fn a_flag_adds_a_kind_and_a_wrong_one_is_explained() {
        let flag =
            "example.com/*/Trainer=spec.groups.*.workers[*][*].template.spec".parse::<PodTemplate>().unwrap();
        let field = |name: &str| Step::Field(name.to_owned());
        let path = [
            field("spec"),
            field("groups"),
            Step::Values,
            field("workers"),
            Step::Items,
            Step::Items,
            field("template"),
            field("spec"),
        ];
        assert_eq!(flag.path(), path);
        assert!(!Knowledge::with(&[flag], &[]).pod_templates("example.com/v3", "Trainer").is_empty());
        let deep = format!("v1/A={}", ["a"; 33].join("."));
        for wrong in [
            "",
            "Kind=spec",
            "v1/Kind",
            "v1/Kind=",
            "v1/Kind=a..b",
            "v1/Kind=a[0]",
            "v1/K ind=a",
            "a/b/c/K=a",
            &deep,
        ] {
            assert!(wrong.parse::<PodTemplate>().unwrap_err().contains("example.com/*/Trainer="), "{wrong}");
        }
    }
}
