//! What holds for every manifest.

use proptest::prelude::*;

use super::convert;
use super::tests::said;

/// A manifest: what stands around the requests is arbitrary.
fn manifest() -> impl Strategy<Value = String> {
    let comment = prop_oneof![Just(""), Just("  # nvidia.com/gpu: 1"), Just(" # é {[\"'")];
    let resources = prop_oneof![
        Just("RES:\n  limits:\n    nvidia.com/gpu: 1COM\n"),
        Just(
            "RES:COM\n  limits:COM\n    # own line\n    cpu: 1\n    nvidia.com/mig-1g.5gb: '2'COM\n\n    memory: 1Gi\n"
        ),
        Just("RES: {limits: {nvidia.com/mig-2g.10gb: 1, cpu: \"1\"}}COM\n"),
        Just("RES:\n  requests: {nvidia.com/gpu: 1, cpu: 1}\n  limits:\n    nvidia.com/gpu: 1\n"),
        Just("RES:\n  limits: {cpu: 1}COM\n"),
    ];
    let extra = prop_oneof![
        Just(""),
        Just("args:\n- |\n  nvidia.com/gpu: 1\n\n   # not a comment\n"),
        Just("workingDir: 'a # b'\n"),
        Just("env: [{name: A, value: \"x\"}, {name: B}]COM\n"),
    ];
    let container = (0..4_u8, resources, extra, any::<bool>());
    let pod = (prop::collection::vec(container, 1..4), comment, any::<bool>(), 0..3_usize, any::<bool>());
    prop::collection::vec(pod, 1..4)
        .prop_map(|pods| pods.into_iter().enumerate().map(|(n, it)| write(n, it)).collect())
}

type Pod = (Vec<(u8, &'static str, &'static str, bool)>, &'static str, bool, usize, bool);

fn write(number: usize, (containers, comment, trailing, indent, windows): Pod) -> String {
    let pad = " ".repeat(indent);
    let mut text = format!(
        "---\n# pod {number}\napiVersion: v1\nkind: Pod\nmetadata:\n  name: p{number}\nspec:\n  containers:{comment}\n"
    );
    for (index, (lines, resources, extra, first)) in containers.into_iter().enumerate() {
        text.push_str(&format!("  {pad}- name: c{index}{comment}\n  {pad}  image: x\n"));
        let resources = resources.replace("RES", "resources");
        let parts = if first { [resources.as_str(), extra] } else { [extra, resources.as_str()] };
        for line in parts.concat().replace("COM", comment).lines() {
            text.push_str(&if line.is_empty() { "\n".to_owned() } else { format!("  {pad}  {line}\n") });
        }
        text.push_str(&"\n".repeat(usize::from(lines == 0)));
    }
    if trailing {
        text.push_str("  # at the end\n  restartPolicy: Never\n# after\n");
    }
    if windows { text.replace('\n', "\r\n") } else { text }
}

/// Whether a line is about a request; if so, it may be removed.
fn about_requests(line: &str) -> bool {
    ["nvidia.com/", "limits:", "requests:"].iter().any(|it| line.contains(it))
}

/// Where a pod spec is: what stands before it, and its indentation.
const AROUND: [(&str, usize); 9] = [
    ("apiVersion: v1\nkind: Pod\nmetadata: {name: NAME}\nspec:\n", 2),
    (
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: NAME, namespace: team}\nspec:\n  selector: {matchLabels: {a: b}}\n  \
         template:\n    metadata: {annotations: {gpu-fraction: \"1\"}}\n    spec:\n",
        6,
    ),
    ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: NAME}\nspec:\n  template:\n    spec:\n", 6),
    (
        "apiVersion: ray.io/v1\nkind: RayCluster\nmetadata: {name: NAME}\nspec:\n  workerGroupSpecs:\n  - template:\n      spec:\n",
        8,
    ),
    (
        "apiVersion: kubeflow.org/v1\nkind: PyTorchJob\nmetadata: {name: NAME}\nspec:\n  pytorchReplicaSpecs:\n    Worker:\n      \
         template:\n        spec:\n",
        10,
    ),
    (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: NAME}\nspec:\n  predictor:\n",
        4,
    ),
    (
        "apiVersion: batch.volcano.sh/v1alpha1\nkind: Job\nmetadata: {name: NAME}\nspec:\n  tasks:\n  - template:\n      spec:\n",
        8,
    ),
    (
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: NAME}\nspec:\n  template:\n    spec:\n",
        6,
    ),
    ("apiVersion: example.com/v1\nkind: Trainer\nmetadata: {name: NAME}\nspec:\n  template:\n    spec:\n", 6),
];

/// A pod spec with anything that there is a remark about.
fn pod_spec() -> impl Strategy<Value = String> {
    let amount = prop::sample::select(vec![
        "nvidia.com/gpu: 1",
        "nvidia.com/gpu: 2",
        "nvidia.com/mig-1g.5gb: 1",
        "nvidia.com/mig-1g.5gb: 2, nvidia.com/mig-2g.10gb: 1",
        "nvidia.com/mig-1g.99gb: 1",
        "nvidia.com/gpu: 1, nvidia.com/gpumem: 3000",
        "nvidia.com/gpu: 0, nvidia.com/hostdev: 1",
        "cpu: 1",
    ]);
    let more = prop::sample::select(vec![
        "",
        "  env: [{name: CUDA_VISIBLE_DEVICES, value: \"0\"}]\n",
        "  env: [{name: CUDA_VISIBLE_DEVICES, value: MIG-1}, {name: NVIDIA_VISIBLE_DEVICES, value: all}]\n",
        "  args: ['CUDA_VISIBLE_DEVICES=1 x', '{\"limits\": {\"nvidia.com/gpu\": 1}}']\n",
        "  restartPolicy: Always\n",
    ]);
    let image = prop::bool::weighted(0.9);
    let container = (amount, more, image).prop_map(|(amount, more, image)| {
        let image = if image { "  image: x\n" } else { "" };
        format!("- name: CONTAINER\n{image}{more}  resources: {{limits: {{{amount}}}}}\n")
    });
    let around = prop::sample::select(vec![
        "",
        "nodeSelector: {nvidia.com/mig.config: all-1g.5gb}\n",
        "nodeSelector: {nvidia.com/gpu.product: NVIDIA-A100-SXM4-40GB}\n",
        "nodeSelector: {nvidia.com/gpu.sharing-strategy: mps}\n",
        "tolerations: [{key: nvidia.com/gpu}]\nruntimeClassName: nvidia\nschedulerName: volcano\n",
    ]);
    let containers = prop::collection::vec(container, 1..4);
    (containers, 0..3_usize, around).prop_map(|(containers, init, around)| {
        let (first, rest) = containers.split_at(init.min(containers.len() - 1));
        let list = |all: &[String], prefix: &str| -> String {
            let named = all
                .iter()
                .enumerate()
                .map(|(index, it)| it.replace("CONTAINER", &format!("{prefix}{index}")));
            named.collect()
        };
        let init =
            if first.is_empty() { String::new() } else { format!("initContainers:\n{}", list(first, "i")) };
        format!("{around}{init}containers:\n{}", list(rest, "c"))
    })
}

/// A file with everything.
fn varied() -> impl Strategy<Value = String> {
    let object = (0..AROUND.len(), pod_spec()).prop_map(|(kind, spec)| {
        let (before, indent) = AROUND[kind];
        let spec: String = spec.lines().map(|it| format!("{}{it}\n", " ".repeat(indent))).collect();
        format!("{before}{spec}")
    });
    let other = prop::sample::select(vec![
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: NAME}\nspec:\n  hard:\n    requests.nvidia.com/mig-1g.5gb: 1\n",
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: NAME}\nspec: {scopes: [X], hard: {requests.nvidia.com/gpu: 1}}\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: NAME}\ndata:\n  a: |\n    nvidia.com/gpu: 1\n",
        "- {op: add, path: /spec/limits/nvidia.com~1gpu, value: 1}\n",
        "apiVersion: resource.k8s.io/v1\nkind: ResourceClaimTemplate\nmetadata: {name: gpu}\nspec: {spec: {devices: {}}}\n",
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: NAME}\n  spec:\n    containers:\n    - \
         name: c\n      image: x\n      resources: {limits: {nvidia.com/gpu: 2}}\n",
    ]);
    let document = prop_oneof![3 => object, 1 => other.prop_map(str::to_owned)];
    prop::collection::vec(document, 1..5).prop_map(|all| {
        let numbered = all
            .iter()
            .enumerate()
            .map(|(number, it)| format!("---\n{}", it.replace("NAME", &format!("n{number}"))));
        numbered.collect()
    })
}

proptest! {
    #[test]
    fn a_second_run_changes_nothing_and_says_the_same(text in varied()) {
        let first = convert(&text).unwrap();
        let second = convert(&first.text).unwrap();
        prop_assert_eq!(&second.text, &first.text, "{}", text);
        prop_assert_eq!(said(&second), said(&first), "{}\n=>\n{}", text, first.text);
        let lines = text.lines().count();
        prop_assert!(first.remarks.iter().all(|it| (1..=lines).contains(&it.line)), "{:#?}", first.remarks);
    }

    #[test]
    fn every_other_line_stays_byte_for_byte_and_in_order(text in manifest()) {
        let it = convert(&text).unwrap();
        prop_assert!(!it.left_something(), "{:#?}\n{text}", it.remarks);
        let mut lines = it.text.split_inclusive('\n');
        for line in text.split_inclusive('\n').filter(|it| !about_requests(it)) {
            prop_assert!(lines.any(|it| it == line), "{line:?} is gone\n{text}\n=>\n{}", it.text);
        }
        prop_assert_eq!(it.text.matches('#').count(), text.matches('#').count(), "comments\n{}", it.text);
        prop_assert_eq!(&convert(&it.text).unwrap().text, &it.text);
    }

    #[test]
    fn nothing_makes_it_panic(text in "[ -~\n\té]{0,200}") {
        let _ = convert(&text);
    }

    #[test]
    fn cut_and_changed_manifests_do_not_make_it_panic(text in manifest(), cut in 0..2000_usize, with in "[ -~\n]{0,3}") {
        let at = (0..=cut.min(text.len())).rev().find(|it| text.is_char_boundary(*it)).unwrap_or(0);
        let _ = convert(&format!("{}{with}{}", &text[..at], &text[at..]));
        let _ = convert(&text[..at]);
    }
}
