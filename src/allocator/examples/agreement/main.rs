//! Makes random cases, and compares answers of another implementation with those of this crate.
//!
//! ```text
//! agreement generate FIRST COUNT > cases.jsonl        one case per line, by seed
//! agreement compare cases.jsonl answers.jsonl         prints what differs
//! agreement record cases.jsonl answers.jsonl COUNT    prints a sample with the answers, small cases first
//! ```
//! An answer is a line `{"id", "outcome", "allocations"}`; outcomes are `yes`, `no`, `invalidPools`, `error` and `timeout`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool of the developers")]

#[path = "../../tests/case/mod.rs"]
mod case;
mod generate;
mod selectors;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, BufWriter, Write};

use serde_json::{Value, json};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["generate", first, count] => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            let first: u64 = first.parse().unwrap();
            for seed in first..first + count.parse::<u64>().unwrap() {
                writeln!(out, "{}", generate::case(seed)).unwrap();
            }
        }
        ["selectors"] => selectors::cases().for_each(|case| println!("{case}")),
        ["compare", cases, answers] => compare(cases, answers),
        ["record", cases, answers, count] => record(cases, answers, count.parse().unwrap()),
        _ => panic!("see the head of main.rs"),
    }
}

fn lines(path: &str) -> impl Iterator<Item = Value> {
    let file = BufReader::new(std::fs::File::open(path).unwrap());
    file.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap())
}

fn pairs(cases: &str, answers: &str) -> impl Iterator<Item = (Value, Value)> {
    let answers: BTreeMap<u64, Value> = lines(answers).map(|a| (a["id"].as_u64().unwrap(), a)).collect();
    lines(cases).map(move |case| {
        let answer = answers[&case["id"].as_u64().unwrap()].clone();
        (case, answer)
    })
}

fn compare(cases: &str, answers: &str) {
    let (mut outcomes, mut different) = (BTreeMap::<String, usize>::new(), 0);
    for (case, theirs) in pairs(cases, answers) {
        let question = case::Case::read(&case);
        let explanation = question.explain();
        let ours = case::essence(&case::answer(&explanation.outcome));
        *outcomes.entry(theirs["outcome"].to_string()).or_default() += 1;
        for contradiction in case::contradictions(&question, &explanation) {
            println!("{}: explanation: {contradiction}", case["id"]);
        }
        if ours != case::essence(&theirs) {
            different += 1;
            let error = explanation.outcome.err().map(|e| e.to_string());
            println!(
                "{}: {}\n  ours:   {ours} {error:?}\n  theirs: {} {}",
                case["id"],
                case["note"],
                case::essence(&theirs),
                theirs["error"]
            );
        }
    }
    println!("{outcomes:?}, {different} different");
}

/// Equal slices and classes are written once.
fn record(cases: &str, answers: &str, count: usize) {
    let mut all: Vec<(Value, Value)> =
        pairs(cases, answers).filter(|(_, a)| a["outcome"] != "timeout").collect();
    all.sort_by_key(|(case, _)| case.to_string().len());
    // What is allocated says more than what is not, and that more than an error.
    let shares = [("yes", count / 2), ("no", count / 4), ("invalidPools", count / 20)];
    let mut left = BTreeMap::from(shares);
    left.insert("error", count - left.values().sum::<usize>());
    let mut shared: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    let mut chosen = Vec::new();
    for (mut case, answer) in all {
        let left = left.get_mut(answer["outcome"].as_str().unwrap()).unwrap();
        if *left == 0 || case["slices"].as_array().unwrap().iter().len() > 6 {
            continue;
        }
        *left -= 1;
        for field in ["slices", "classes"] {
            let table = shared.entry(field).or_default();
            for value in case[field].as_array_mut().unwrap() {
                let known = table.iter().position(|v| v == value);
                let index = known.unwrap_or_else(|| {
                    table.push(value.clone());
                    table.len() - 1
                });
                *value = json!(index);
            }
        }
        case["answer"] = case::essence(&answer);
        chosen.push(case);
    }
    let field = |name: &str| shared.get(name).cloned().unwrap_or_default();
    println!("{{\"slices\":[");
    print_lines(&field("slices"));
    println!("],\"classes\":[");
    print_lines(&field("classes"));
    println!("],\"cases\":[");
    print_lines(&chosen);
    println!("]}}");
}

fn print_lines(values: &[Value]) {
    for (index, value) in values.iter().enumerate() {
        println!("{value}{}", if index + 1 == values.len() { "" } else { "," });
    }
}
