//! `kubectl mig get` against an API server and with files, as people call it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use kube_sim::{ApiServer, Fault, Options, Part, RequestInfo, kinds};
use serde_json::{Value, json};
use tempfile::TempDir;

const DRIVER: &str = "mig.dra-driver.dev";
const FIRST: &str = "gpu-0000-1a-00-mig-1g-10gb-0";

/// An API server with a kubeconfig.
struct Cluster {
    server: ApiServer,
    directory: TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Cluster {
    /// One without objects.
    fn empty() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let options = Options { partitionable_devices: true, ..Options::default() };
        let server = runtime.block_on(ApiServer::start(options)).unwrap();
        let directory = tempfile::tempdir().unwrap();
        server.write_kubeconfig(&directory.path().join("kubeconfig")).unwrap();
        Self { server, directory, _runtime: runtime }
    }

    /// One with a node that has two H100s, and a claim that holds a device of it.
    fn with_a_node() -> Self {
        let cluster = Self::empty();
        for object in objects() {
            cluster.server.create(object).unwrap();
        }
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
        cluster.server.create(namespace).unwrap();
        cluster.claim("train", FIRST);
        cluster
    }

    fn claim(&self, name: &str, device: &str) {
        let object = claim(name, device);
        let status = json!({"status": object["status"]});
        self.server.create(object).unwrap();
        self.server.patch(&kinds::RESOURCE_CLAIM, "team", name, Part::Status, status).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-mig"));
        command.arg("get").args(words).arg("--kubeconfig").arg(self.directory.path().join("kubeconfig"));
        command
    }

    fn get(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn refuse(&self, plural: &'static str) {
        let chosen = move |it: &RequestInfo| it.path.ends_with(plural);
        self.server.inject(usize::MAX, chosen, Fault::Status(403));
    }
}

/// What a node with two H100s publishes, and the Node.
fn objects() -> Vec<Value> {
    let shapes = include_str!("../../src/allocator/examples/agreement/shapes.json");
    let shapes: Value = serde_json::from_str(shapes).unwrap();
    let mut objects = vec![json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}})];
    for slice in shapes["2xH100-80GB"].as_array().unwrap() {
        let mut slice = slice.clone();
        slice["apiVersion"] = "resource.k8s.io/v1".into();
        slice["kind"] = "ResourceSlice".into();
        slice["spec"]["pool"]["generation"] = 1.into();
        objects.push(slice);
    }
    objects
}

fn claim(name: &str, device: &str) -> Value {
    let result =
        json!({"request": "gpu", "driver": DRIVER, "pool": format!("node/{DRIVER}"), "device": device});
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "team"},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "mig-1g.10gb"}}]}},
        "status": {
            "allocation": {"devices": {"results": [result]}},
            "reservedFor": [{"resource": "pods", "name": format!("pod-{name}"), "uid": "u"}],
        },
    })
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Output and exit status; nothing on standard error.
fn listed(output: &Output) -> String {
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    text(&output.stdout).to_owned()
}

#[test]
fn get_lists_what_the_api_server_holds() {
    let cluster = Cluster::with_a_node();
    let gpus = listed(&cluster.get(&[]));
    assert_eq!(gpus.lines().count(), 4, "{gpus}");
    assert!(gpus.contains("A.......") && gpus.contains("........"), "{gpus}");
    assert!(gpus.contains("A 1g.10gb") && gpus.contains("team/pod-train"), "{gpus}");
    assert!(!gpus.contains('\x1b'), "no colors in a pipe: {gpus:?}");
    let nodes = listed(&cluster.get(&["nodes"]));
    assert!(nodes.lines().nth(1).unwrap().starts_with("node  Unknown  2     1     6%"), "{nodes}");
    let claims = listed(&cluster.get(&["claims", "-n", "team"]));
    assert!(claims.contains("train") && claims.contains("allocated,reserved"), "{claims}");
    let json: Value = serde_json::from_str(&listed(&cluster.get(&["claims", "-A", "-o", "json"]))).unwrap();
    assert_eq!(json["claims"][0]["devices"][0]["profile"], "1g.10gb");
    let other = cluster.get(&["claims"]);
    assert_eq!((other.status.code(), text(&other.stdout)), (Some(1), ""));
    assert!(text(&other.stderr).contains("in namespace default"), "{}", text(&other.stderr));
}

#[test]
fn get_asks_for_no_more_than_the_reader_role_grants() {
    let cluster = Cluster::with_a_node();
    listed(&cluster.get(&[]));
    let mut watching = Watching::start(&cluster, &["nodes"]);
    watching.until("NODE");
    watching.stop();
    let role = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/manifests/optional/readerrole.yaml");
    let role: Value = serde_saphyr::from_str(&std::fs::read_to_string(role).unwrap()).unwrap();
    let grants = |group: &str, resource: &str, verb: &str| {
        let has = |rule: &Value, field: &str, it: &str| rule[field].as_array().unwrap().contains(&json!(it));
        let mut rules = role["rules"].as_array().unwrap().iter();
        rules
            .any(|it| has(it, "apiGroups", group) && has(it, "resources", resource) && has(it, "verbs", verb))
    };
    let mut count = 0;
    for request in cluster.server.requests() {
        assert_eq!(request.method, "GET", "{request:?}");
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        let (group, resource) = match parts.as_slice() {
            ["api", "v1", resource] => ("", *resource),
            ["apis", group, "v1", resource] => (*group, *resource),
            // Everyone may read the version.
            ["version"] => continue,
            other => panic!("{other:?}"),
        };
        let verb = if request.is_watch() { "watch" } else { "list" };
        assert!(grants(group, resource, verb), "{verb} {resource}");
        count += 1;
    }
    assert!(5 < count, "{count}");
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(rule["verbs"], json!(["get", "list", "watch"]), "only reads");
    }
}

#[test]
fn without_a_right_get_says_which_role_has_it() {
    let cluster = Cluster::with_a_node();
    cluster.refuse("/resourceclaims");
    let refused = cluster.get(&[]);
    assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(2), ""));
    let message = text(&refused.stderr);
    assert!(message.starts_with("kubectl mig get: cannot list resourceclaims: "), "{message}");
    assert!(message.contains("the ClusterRole `mig-reader` (docs/kubectl-mig.md)"), "{message}");
    let watching = cluster.get(&["-w"]);
    assert_eq!((watching.status.code(), text(&watching.stderr)), (Some(2), message));
}

#[test]
fn without_the_right_to_read_nodes_get_shows_the_rest() {
    let cluster = Cluster::with_a_node();
    cluster.refuse("/nodes");
    let output = cluster.get(&["nodes"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("node  Unknown"), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("cannot list nodes, so what depends on them is missing"));
    let mut watching = Watching::start(&cluster, &["nodes"]);
    watching.until("node  Unknown");
    watching.stop();
}

#[test]
fn an_empty_cluster_and_none_at_all_are_told_apart() {
    let empty = Cluster::empty().get(&[]);
    assert_eq!(empty.status.code(), Some(1));
    assert!(text(&empty.stderr).contains("the cluster has no ResourceSlices: no DRA driver runs"));
    let gone = Cluster::empty();
    let mut command = gone.command(&[]);
    let kubeconfig = gone.directory.path().join("kubeconfig");
    // Port 1 is reserved, and nothing listens there.
    let config =
        std::fs::read_to_string(&kubeconfig).unwrap().replace(&gone.server.url(), "http://127.0.0.1:1");
    std::fs::write(&kubeconfig, config).unwrap();
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = text(&output.stderr);
    let start = "kubectl mig get: cannot reach the API server http://127.0.0.1:1 (context ";
    assert!(message.starts_with(start) && message.contains("): connection refused; "), "{message}");
    assert!(message.contains("`kubectl version` shows whether it can be reached"), "{message}");
    let watching = gone.get(&["-w"]);
    assert_eq!((watching.status.code(), text(&watching.stderr)), (Some(2), message));
}

#[test]
fn an_old_cluster_and_refused_credentials_are_told_apart() {
    for (status, says) in [
        (404, "this cluster does not serve resource.k8s.io/v1: Kubernetes 1.34 or later is required"),
        (401, "the API server does not accept your credentials"),
    ] {
        let cluster = Cluster::empty();
        let chosen = |it: &RequestInfo| it.path.contains("resource.k8s.io");
        cluster.server.inject(usize::MAX, chosen, Fault::Status(status));
        for words in [&[][..], &["-w"]] {
            let output = cluster.get(words);
            assert_eq!(output.status.code(), Some(2));
            assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
        }
    }
}

#[test]
fn flags_of_the_cluster_may_stand_before_get() {
    let cluster = Cluster::with_a_node();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-mig"));
    command.arg("--kubeconfig").arg(cluster.directory.path().join("kubeconfig"));
    let claims = listed(&command.args(["-n", "team", "get", "claims"]).output().unwrap());
    assert!(claims.contains("train"), "{claims}");
    let slices = Command::new(env!("CARGO_BIN_EXE_kubectl-mig"))
        .args(["--context", "c", "slices", "--gpus", "1xL4"])
        .output()
        .unwrap();
    assert_eq!((slices.status.code(), slices.stdout.as_slice()), (Some(2), &b""[..]));
    assert_eq!(text(&slices.stderr), "kubectl mig: --context is for subcommands that read a cluster\n");
}

#[test]
fn the_page_about_get_shows_what_the_command_prints() {
    let slices = Command::new(env!("CARGO_BIN_EXE_kubectl-mig"))
        .args(["slices", "--gpus", "2xH100-80GB", "--node", "gpu-a", "-o", "json"])
        .output()
        .unwrap();
    let mut list: Value = serde_json::from_slice(&slices.stdout).unwrap();
    let items = list["items"].as_array_mut().unwrap();
    // As with an unmanaged instance in the slices 4 and 5 of the second GPU.
    let takes = |device: &Value| {
        let sets = device["consumesCounters"].as_array().into_iter().flatten();
        let mut counters = sets.flat_map(|it| it["counters"].as_object().into_iter().flatten());
        counters.any(|(it, _)| it == "memory-slice-4" || it == "memory-slice-5")
    };
    for slice in items.iter_mut() {
        if let Some(devices) = slice["spec"]["devices"].as_array_mut() {
            devices.retain(|it| !(takes(it) && it["name"].as_str().unwrap().contains("1b-00")));
        }
    }
    let now = k8s_openapi::jiff::Timestamp::now().as_second();
    let held = |namespace: &str, pods: &[&str], minutes: i64, device: &str| {
        let mut claim = claim(pods[0], device);
        let created = k8s_openapi::jiff::Timestamp::from_second(now - 60 * minutes - 30).unwrap();
        claim["metadata"]["namespace"] = namespace.into();
        claim["metadata"]["creationTimestamp"] = created.to_string().into();
        claim["status"]["allocation"]["devices"]["results"][0]["pool"] = format!("gpu-a/{DRIVER}").into();
        let pods = pods.iter().map(|it| json!({"resource": "pods", "name": it, "uid": it}));
        claim["status"]["reservedFor"] = pods.collect();
        claim
    };
    items.push(held("train", &["llama-0"], 90, "gpu-0000-1a-00-mig-4g-40gb-0"));
    items.push(held("web", &["chat-6f7c9-x2x9q", "chat-6f7c9-7zk4d"], 12, "gpu-0000-1a-00-mig-1g-10gb-5"));
    let directory = tempfile::tempdir().unwrap();
    let printed = listed(&from(&directory, "dump.json", &list.to_string(), &["gpus"]));
    let page = include_str!("../../docs/kubectl-mig-get.md");
    assert!(page.contains(&format!("$ kubectl mig get\n{printed}```")), "{printed}");
}

/// `get -w`, whose output is read line by line.
struct Watching {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Watching {
    fn start(cluster: &Cluster, words: &[&str]) -> Self {
        let mut command = cluster.command(words);
        command.arg("-w").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads up to the first line that has this text.
    fn until(&mut self, wanted: &str) -> String {
        loop {
            let line = self.lines.next().expect("output").unwrap();
            if line.contains(wanted) {
                return line;
            }
        }
    }

    fn stop(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn watch_prints_again_when_a_claim_or_a_slice_changes() {
    let cluster = Cluster::with_a_node();
    let mut watching = Watching::start(&cluster, &["gpus"]);
    watching.until("team/pod-train");
    cluster.claim("web", "gpu-0000-1b-00-mig-4g-40gb-0");
    watching.until("team/pod-web");
    // What happened meanwhile is not lost with the watch.
    cluster.server.cut_watches();
    cluster.server.compact();
    cluster.server.delete(&kinds::RESOURCE_CLAIM, "team", "web").unwrap();
    // The bar of the second GPU was printed before the claim above; now it is free again.
    watching.until("........");
    watching.stop();
}

#[test]
fn a_watch_in_json_is_one_document_a_line() {
    let cluster = Cluster::with_a_node();
    let mut watching = Watching::start(&cluster, &["claims", "-A", "-o", "json"]);
    let parsed = |line: &str| -> Value { serde_json::from_str(line).unwrap() };
    let first = parsed(&watching.until("{"));
    assert_eq!(first["claims"].as_array().unwrap().len(), 1);
    cluster.claim("web", "gpu-0000-1b-00-mig-4g-40gb-0");
    let last = parsed(&watching.until("pod-web"));
    assert_eq!(last["claims"].as_array().unwrap().len(), 2);
    watching.stop();
}

/// Runs `get` with files only.
fn from(directory: &TempDir, name: &str, content: &str, words: &[&str]) -> Output {
    let path: PathBuf = directory.path().join(name);
    std::fs::write(&path, content).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-mig"));
    command
        .arg("get")
        .args(words)
        .arg("--from")
        .arg(path)
        .env("KUBECONFIG", "/does/not/exist")
        .output()
        .unwrap()
}

#[test]
fn get_reads_what_kubectl_prints() {
    let directory = tempfile::tempdir().unwrap();
    let mut items = objects();
    items.push(claim("train", FIRST));
    items.push(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}}));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let gpus = listed(&from(&directory, "dump.json", &list.to_string(), &["gpus"]));
    assert!(gpus.contains("A.......") && gpus.contains("team/pod-train"), "{gpus}");
    // Each document as YAML; JSON is YAML, too.
    let yaml: String = items.iter().map(|it| format!("---\n{it}\n")).collect();
    assert_eq!(listed(&from(&directory, "dump.yaml", &yaml, &["gpus"])), gpus);
    let claims = listed(&from(&directory, "dump.yaml", &yaml, &["claims"]));
    assert!(claims.contains("team"), "claims of all namespaces: {claims}");

    let broken = from(&directory, "broken.json", "{\"kind\": ", &["gpus"]);
    assert_eq!((broken.status.code(), text(&broken.stdout)), (Some(2), ""));
    let message = "broken.json: line 1, column 9: not JSON: EOF while parsing a value\n";
    assert!(text(&broken.stderr).ends_with(message), "{}", text(&broken.stderr));
    let tabs = from(&directory, "tabs.yaml", "kind: Pod\nspec:\n\tcontainers: []\n", &[]);
    let message = text(&tabs.stderr);
    assert!(message.contains("tabs.yaml: line 3, column ") && message.lines().count() == 1, "{message}");
    assert!(!message.contains(['\u{fffd}', '\t']) && !message.contains("template"), "{message}");
    let nothing =
        from(&directory, "nothing.json", "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": []}", &[]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(text(&nothing.stderr).contains("the files have no ResourceSlices"), "{}", text(&nothing.stderr));
    let both = from(&directory, "dump.json", &list.to_string(), &["-w"]);
    assert_eq!(both.status.code(), Some(2), "files do not change");
}
