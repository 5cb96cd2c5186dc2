//! Dashboard, alerts and the table of docs/metrics.md against what a driver really shows: names and labels are those of `/metrics`
//! of a node on which everything happens that there are numbers for.

mod panels;
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use crate::common;
use crate::common::repository;
use common::{ControlPlane, Lab, Sample, eventually, prepare, samples, scrape, try_prepare};
use mig_controller::election::{Campaign, Candidate, Timings};
use mig_controller::metrics::Metrics;
use nvml_sim::{Code, Fault};
use promql_parser::label::MatchOp;
use promql_parser::parser::{Expr, VectorSelector, parse};
use serde::Deserialize;
use serde_json::Value;

use promql::{Labels, Series, grouped_by, selectors, vector};

/// Labels that Prometheus, or the PodMonitor, gives to every series of a target.
const OF_THE_TARGET: [&str; 3] = ["node", "job", "instance"];
/// Metrics of Prometheus itself.
const OF_PROMETHEUS: [&str; 1] = ["up"];
/// Labels whose values are closed sets, of which all are shown from the start.
const CLOSED: [&str; 8] = ["method", "outcome", "reason", "state", "step", "operation", "action", "cause"];

fn observability(file: &str) -> PathBuf {
    repository().join("deploy/observability").join(file)
}

/// What a node shows.
#[derive(Debug, Default)]
struct Shown {
    /// Each metric with its labels and their values; of a histogram `_bucket`, `_sum` and `_count` are metrics.
    metrics: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    /// What is declared: name and type.
    families: BTreeMap<String, String>,
}

/// Shown by a node with everything on, on which calls succeed and fail. Made once.
fn shown() -> &'static Shown {
    static SHOWN: OnceLock<Shown> = OnceLock::new();
    SHOWN.get_or_init(|| tokio::runtime::Runtime::new().unwrap().block_on(show_everything()))
}

async fn show_everything() -> Shown {
    let (mut lab, metrics) = Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB,1xA100-40GB")
        .await
        .with_metrics(&["--metrics-pod-labels", "--metrics-dcgm-names"]);
    // An unmanaged instance.
    lab.sim.on_gpu(0, |gpu| (gpu.mig_current, gpu.mig_pending) = (true, true)).unwrap();
    lab.sim.plant_instance(0, "1g.10gb", 0).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    lab.sim.inject(Fault::returning("nvmlGpuInstanceCreateComputeInstance", Code::UNKNOWN).times(1)).unwrap();
    let claim = lab.claim_of("one", "gpu-0000-1a-00-mig-1g-10gb-6").await;
    try_prepare(&kubelet, &claim).await.unwrap_err();
    prepare(&kubelet, &claim).await.unwrap();
    let seen = eventually("everything is shown", async || {
        // An error of a program; again, because the driver may not listen yet.
        lab.sim.post_xid(1, 31, None, None).unwrap();
        let seen = scrape(metrics).await;
        let is_shown = |name: &str| 0 < seen.all(name, &[]).count();
        let names = ["dra_mig_instance_utilization_ratio", "dra_mig_gpu_events_total"];
        names.into_iter().all(is_shown).then_some(seen)
    })
    .await;
    lab.stop().await;
    let mut shown = Shown::default();
    for sample in seen.samples.into_iter().chain(of_controller()) {
        let labels = shown.metrics.entry(sample.name).or_default();
        for (label, value) in sample.labels {
            labels.entry(label).or_default().insert(value);
        }
    }
    for line in seen.text.lines().filter_map(|it| it.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        shown.families.insert(name.to_owned(), kind.to_owned());
    }
    shown
}

/// What the controller shows from its start. docs/controller.md lists it.
fn of_controller() -> Vec<Sample> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let candidate = Candidate::new("n", "l", "i", Timings::of_lease(Duration::from_secs(15)));
    let (_campaign, leadership) = Campaign::new(client, "n", candidate);
    samples(&Metrics::default().exporter(leadership).text(16 << 10))
}

impl Shown {
    /// Panics with `place` unless what the query names is shown.
    fn must_have(&self, query: &str, place: &str) {
        let expr = parsed(query, place);
        let mut labels: BTreeSet<&str> = OF_THE_TARGET.into();
        for selector in selectors(&expr) {
            let name = selector.name.as_deref().unwrap_or_else(|| panic!("{place}: no name in {query}"));
            labels
                .extend(self.labels_of(name, place).into_iter().flat_map(BTreeMap::keys).map(String::as_str));
            self.must_select(selector, name, place);
        }
        for label in grouped_by(&expr) {
            assert!(labels.contains(label), "{place}: nothing in {query} has the label {label}");
        }
    }

    /// Labels of a metric; none of one that is Prometheus' own.
    fn labels_of(&self, name: &str, place: &str) -> Option<&BTreeMap<String, BTreeSet<String>>> {
        let found = self.metrics.get(name);
        assert!(found.is_some() || OF_PROMETHEUS.contains(&name), "{place}: no node shows {name}");
        found
    }

    fn must_select(&self, selector: &VectorSelector, name: &str, place: &str) {
        for matcher in &selector.matchers.matchers {
            let label = matcher.name.as_str();
            if OF_THE_TARGET.contains(&label) {
                continue;
            }
            let values = self.labels_of(name, place).and_then(|it| it.get(label));
            let values = values.unwrap_or_else(|| panic!("{place}: {name} has no label {label}"));
            let is_positive = matches!(matcher.op, MatchOp::Equal | MatchOp::Re(_));
            if is_positive && CLOSED.contains(&label) {
                assert!(
                    values.iter().any(|it| matcher.is_match(it)),
                    "{place}: {name} has no {label} {}",
                    matcher.value
                );
            }
        }
    }
}

fn parsed(query: &str, place: &str) -> Expr {
    parse(query).unwrap_or_else(|error| panic!("{place}: {query}: {error}"))
}

/// What Grafana puts in for its variables.
fn interpolated(query: &str) -> String {
    query.replace("$__rate_interval", "5m").replace("$node", ".*").replace("$gpu", ".*")
}

#[test]
fn every_query_of_the_dashboard_names_what_a_node_shows() {
    let dashboard: Value =
        serde_json::from_slice(&std::fs::read(observability("dashboard.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut count = 0;
    for panel in panels.iter().filter(|it| it["type"] != "row") {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().unwrap() {
            shown().must_have(&interpolated(target["expr"].as_str().unwrap()), title);
            count += 1;
        }
    }
    assert!(30 < count, "{count} queries");
    for variable in
        dashboard["templating"]["list"].as_array().unwrap().iter().filter(|it| it["type"] == "query")
    {
        let query = variable["query"]["query"].as_str().unwrap();
        let inner = query.strip_prefix("label_values(").and_then(|it| it.strip_suffix(')')).unwrap();
        let (selector, label) = inner.rsplit_once(", ").unwrap();
        // As a query that groups by the label.
        shown().must_have(&interpolated(&format!("sum by ({label}) ({selector})")), query);
    }
    let rows: Vec<&str> =
        panels.iter().filter(|it| it["type"] == "row").filter_map(|it| it["title"].as_str()).collect();
    for wanted in ["Fleet", "Node", "GPU map", "Claims", "Latency", "Health", "Controller"] {
        assert!(rows.contains(&wanted), "{wanted} in {rows:?}");
    }
    let ids: BTreeSet<_> = panels.iter().map(|it| it["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "every panel has an id of its own");
}

#[derive(Debug, Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(default)]
    r#for: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn yaml(file: &str) -> Value {
    let text = std::fs::read_to_string(observability(file)).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn rules() -> Vec<Rule> {
    let file = yaml("alerts.yaml");
    let groups = file["groups"].as_array().unwrap().iter();
    groups.flat_map(|it| serde_json::from_value::<Vec<Rule>>(it["rules"].clone()).unwrap()).collect()
}

/// Minutes of a time such as `15m` or `1h`.
fn minutes(text: &str) -> usize {
    let number = |unit: &str| text.strip_suffix(unit).and_then(|it| it.parse::<usize>().ok());
    number("m").or_else(|| number("h").map(|it| it * 60)).unwrap_or_default()
}

#[test]
fn every_alert_names_what_a_node_shows_and_says_what_to_do() {
    let rules = rules();
    assert!(10 < rules.len());
    for rule in &rules {
        shown().must_have(&rule.expr, &rule.alert);
        assert!(
            ["critical", "warning", "info"].contains(&rule.labels["severity"].as_str()),
            "{}",
            rule.alert
        );
        for text in ["summary", "description", "runbook_url"] {
            assert!(
                rule.annotations.get(text).is_some_and(|it| 20 < it.len()),
                "{} has no {text}",
                rule.alert
            );
        }
        // A number as Prometheus prints it has up to seventeen digits.
        for value in rule.annotations.values().flat_map(|it| it.split("{{").skip(1)) {
            let value = value.split("}}").next().unwrap().trim();
            let is_rounded = [r#"| printf "%.0f""#, "| humanizeDuration", "| humanizePercentage"]
                .iter()
                .any(|it| value.ends_with(it));
            assert!(!value.starts_with("$value") || is_rounded, "{}: {value}", rule.alert);
        }
        // What a text puts in must be left of the expression: its aggregations name all of it.
        let expr = parsed(&rule.expr, &rule.alert);
        let grouped = grouped_by(&expr);
        for label in rule.annotations["summary"].split("$labels.").skip(1) {
            let label = label.split_whitespace().next().unwrap();
            let is_there = if grouped.is_empty() {
                let name = selectors(&expr)[0].name.clone().unwrap();
                OF_THE_TARGET.contains(&label) || shown().metrics[&name].contains_key(label)
            } else {
                grouped.contains(&label)
            };
            assert!(
                is_there,
                "{}: the summary names {label}, which the expression does not have",
                rule.alert
            );
        }
    }
}

#[test]
fn the_object_for_the_operator_has_the_same_rules() {
    assert_eq!(yaml("prometheusrule.yaml")["spec"]["groups"], yaml("alerts.yaml")["groups"]);
}

/// Samples of one alert, and when it is to fire for what.
#[derive(Debug, Deserialize)]
struct Recording {
    alert: String,
    input_series: Vec<Input>,
    alert_rule_test: Vec<Expected>,
}

#[derive(Debug, Deserialize)]
struct Input {
    series: String,
    values: String,
}

#[derive(Debug, Deserialize)]
struct Expected {
    eval_time: String,
    exp_alerts: Vec<Labels>,
}

impl Input {
    fn series(&self) -> Series {
        let Expr::VectorSelector(selector) = parsed(&self.series, "a recorded series") else {
            panic!("{self:?}")
        };
        let labels: Labels =
            selector.matchers.matchers.iter().map(|it| (it.name.clone(), it.value.clone())).collect();
        Series {
            name: selector.name.unwrap(),
            labels,
            samples: self.values.split(' ').flat_map(expanded).collect(),
        }
    }
}

/// `a+bxn` is a, a+b, … a+n*b; `axn` is n+1 times a; a number is itself.
fn expanded(values: &str) -> Vec<f64> {
    let Some((start, times)) = values.split_once('x') else { return vec![values.parse().unwrap()] };
    let (start, step) = start.split_once('+').unwrap_or((start, "0"));
    let (start, step): (f64, f64) = (start.parse().unwrap(), step.parse().unwrap());
    (0..=times.parse::<u32>().unwrap()).map(|it| start + step * f64::from(it)).collect()
}

/// For what an alert fires at a minute: what it has found at every minute for as long as it waits.
fn firing(rule: &Rule, series: &[Series], minute: usize) -> BTreeSet<Labels> {
    let expr = parsed(&rule.expr, &rule.alert);
    let found =
        |minute| vector(&expr, series, minute).into_iter().map(|(labels, _)| labels).collect::<BTreeSet<_>>();
    let wait = minutes(&rule.r#for);
    let Some(first) = minute.checked_sub(wait) else { return BTreeSet::new() };
    let all = (first..=minute).map(found);
    all.reduce(|left, right| left.intersection(&right).cloned().collect()).unwrap_or_default()
}

#[test]
fn every_alert_fires_on_its_recorded_samples_and_only_for_them() {
    let recordings: Vec<Recording> =
        serde_json::from_value(yaml("alerts.test.yaml")["tests"].clone()).unwrap();
    let rules = rules();
    let recorded: Vec<&str> = recordings.iter().map(|it| it.alert.as_str()).collect();
    assert_eq!(recorded, rules.iter().map(|it| it.alert.as_str()).collect::<Vec<_>>());
    for (recording, rule) in recordings.iter().zip(&rules) {
        let series: Vec<Series> = recording.input_series.iter().map(Input::series).collect();
        for it in &series {
            let known = shown().labels_of(&it.name, &rule.alert);
            let is_known = |label: &String| {
                OF_THE_TARGET.contains(&label.as_str()) || known.is_none_or(|it| it.contains_key(label))
            };
            assert!(it.labels.keys().all(is_known), "{}: no node shows {it:?}", rule.alert);
        }
        for expected in &recording.alert_rule_test {
            let wanted: BTreeSet<Labels> = expected.exp_alerts.iter().cloned().collect();
            let mut found = firing(rule, &series, minutes(&expected.eval_time));
            // What a comparison leaves of a bare series has all its labels; a test names those that matter.
            if let Some(names) = wanted.first().map(|it| it.keys().cloned().collect::<BTreeSet<_>>()) {
                found = found
                    .into_iter()
                    .map(|it| it.into_iter().filter(|(name, _)| names.contains(name)).collect())
                    .collect();
            }
            assert_eq!(found, wanted, "{} at {}", rule.alert, expected.eval_time);
        }
        assert!(recording.alert_rule_test.iter().any(|it| !it.exp_alerts.is_empty()), "{} fires", rule.alert);
    }
}

/// True for a name of NVIDIA's.
fn is_dcgm(name: &str) -> bool {
    name.starts_with("DCGM_")
}

/// Name and labels of a metric as documentation names them: a counter with `_total`, an info with `_info`, a histogram
/// without `_bucket`.
fn documented() -> BTreeMap<String, String> {
    let mut rows = BTreeMap::new();
    for (family, kind) in shown().families.iter().filter(|(name, _)| !is_dcgm(name)) {
        let (name, sample) = match kind.as_str() {
            "counter" => (format!("{family}_total"), format!("{family}_total")),
            "info" => (format!("{family}_info"), format!("{family}_info")),
            "histogram" => (family.clone(), format!("{family}_count")),
            _ => (family.clone(), family.clone()),
        };
        let labels = shown().metrics.get(&sample).into_iter().flat_map(BTreeMap::keys);
        let labels: Vec<String> = labels.map(|it| format!("`{it}`")).collect();
        rows.insert(name, labels.join(" "));
    }
    rows
}

#[test]
fn the_page_of_metrics_lists_every_metric_with_its_labels() {
    let page = std::fs::read_to_string(repository().join("docs/metrics.md")).unwrap();
    let rows = page.lines().filter(|it| it.starts_with("| `dra_mig_"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        (cells[0].trim_matches('`').to_owned(), cells[1].to_owned())
    };
    let listed: BTreeMap<String, String> = rows.map(row).collect();
    let documented = documented();
    let missing: String = documented
        .iter()
        .filter(|(name, labels)| listed.get(*name) != Some(labels))
        .map(|(name, labels)| format!("| `{name}` | {labels} | … |\n"))
        .collect();
    assert!(missing.is_empty(), "docs/metrics.md lacks, or has otherwise:\n{missing}");
    let gone: Vec<&String> = listed.keys().filter(|it| !documented.contains_key(*it)).collect();
    assert!(gone.is_empty(), "docs/metrics.md has what no node shows: {gone:?}");
    for name in shown().families.keys().filter(|it| is_dcgm(it)) {
        assert!(page.contains(&format!("`{name}`")), "docs/metrics.md does not name {name}");
    }
}
