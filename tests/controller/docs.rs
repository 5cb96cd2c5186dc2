//! docs/controller.md against the program.

use std::collections::BTreeSet;
use std::path::Path;

use clap::CommandFactory;
use mig_controller::args::Args;

use crate::cluster::{Cluster, eventually, get};

fn page() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/controller.md");
    std::fs::read_to_string(file).unwrap()
}

/// The cells of the rows of a section's table.
fn rows<'a>(page: &'a str, section: &str) -> Vec<Vec<&'a str>> {
    let body = page.split(&format!("\n## {section}\n")).nth(1).unwrap();
    let body = body.split("\n## ").next().unwrap();
    let lines = body.lines().filter(|it| it.starts_with("| `"));
    lines.map(|it| it.split('|').skip(1).map(str::trim).collect()).collect()
}

#[test]
fn the_page_has_every_flag_with_its_default_and_no_other() {
    let command = Args::command();
    let flags = command.get_arguments().filter(|it| !["help", "version"].contains(&it.get_id().as_str()));
    let flags: BTreeSet<(String, Option<String>)> = flags
        .map(|it| {
            let default = it.get_default_values().first().map(|it| it.to_string_lossy().into_owned());
            (it.get_long().unwrap().to_owned(), default.filter(|it| it != "false"))
        })
        .collect();
    let page = page();
    let listed = rows(&page, "Flags").into_iter().map(|row| {
        let flag = row[0].trim_matches('`').trim_start_matches("--").split(' ').next().unwrap().to_owned();
        let default = row[1].strip_prefix('`').map(|it| it.trim_end_matches('`').to_owned());
        (flag, default)
    });
    assert_eq!(listed.collect::<BTreeSet<_>>(), flags);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_has_every_metric_with_its_labels_and_no_other() {
    let cluster = Cluster::new(&[]).await;
    let controller = cluster.controller("a", &[]);
    let text = eventually("metrics", || get(controller.metrics, "/metrics")).await;
    let mut served: BTreeSet<(String, BTreeSet<String>)> = BTreeSet::new();
    for line in text.lines().filter(|it| it.starts_with("dra_mig_")) {
        let (name, labels) = line.split_once(['{', ' ']).unwrap();
        let name = ["_bucket", "_sum", "_count"].iter().find_map(|it| name.strip_suffix(it)).unwrap_or(name);
        let labels = if line.contains('{') { labels.split('}').next().unwrap() } else { "" };
        let labels = labels.split(',').filter_map(|it| it.split_once('=')).map(|(label, _)| label.to_owned());
        served.insert((name.to_owned(), labels.filter(|it| it != "le").collect()));
    }
    let page = page();
    let listed = rows(&page, "Metrics").into_iter().map(|row| {
        let labels = row[1].split(' ').map(|it| it.trim_matches('`').to_owned()).filter(|it| !it.is_empty());
        (row[0].trim_matches('`').to_owned(), labels.collect())
    });
    assert_eq!(listed.collect::<BTreeSet<(String, BTreeSet<String>)>>(), served);
    controller.stop().await;
}
