//! The answer as text for a terminal.

use std::fmt::Write as _;

use k8s_openapi::jiff::Timestamp;

use super::explanation::{Explanation, GpuMap, RequestExplanation, Verdict};
use super::reason::{Holder, Reason};
use crate::text::{age, count, printable};

/// Columns.
const WIDTH: usize = 96;
/// Most holders that are listed where there is no map.
const MAX_HOLDERS: usize = 8;

/// The verdict in a sentence, then why for each request, then what to do. Ages are those at `now`; without it they are left out.
#[must_use]
pub fn text(explanation: &Explanation, now: Option<Timestamp>) -> String {
    let mut out = String::new();
    paragraph(&mut out, "", &explanation.sentence);
    let mut reasons = explanation.reasons.iter();
    // The sentence says the first one, unless all is well.
    if !matches!(explanation.verdict, Verdict::Fits)
        && let Some(first) = reasons.next()
    {
        more(&mut out, first, explanation, now);
    }
    for reason in reasons {
        if !of_request(explanation, reason) {
            paragraph(&mut out, "- ", &format!("{}.", reason.sentence));
            more(&mut out, reason, explanation, now);
        }
    }
    if let Some(placement) = &explanation.placement {
        for it in &placement.devices {
            let _ = writeln!(
                out,
                "  node {}: request {} of claim {} gets {}",
                printable(&placement.node),
                printable(&it.request),
                printable(&it.claim),
                printable(&it.device)
            );
        }
    }
    for request in &explanation.requests {
        of(&mut out, request, &explanation.sentence, now);
    }
    section(&mut out, "What to do", &explanation.advice, true);
    section(&mut out, "Assumed", &explanation.assumptions, false);
    out
}

/// Whether a reason stands with a request already.
fn of_request(explanation: &Explanation, reason: &Reason) -> bool {
    explanation.requests.iter().flat_map(|it| &it.reasons).any(|it| it.sentence == reason.sentence)
}

/// Details, and holders where no map shows them.
fn more(out: &mut String, reason: &Reason, explanation: &Explanation, now: Option<Timestamp>) {
    if of_request(explanation, reason) {
        return;
    }
    for detail in &reason.details {
        paragraph(out, "  ", detail);
    }
    holders(out, "  ", &reason.holders, now);
}

fn of(out: &mut String, request: &RequestExplanation, sentence: &str, now: Option<Timestamp>) {
    let number = match request.amount.as_str() {
        "all" => "all devices".to_owned(),
        number => number.parse().map_or_else(|_| number.to_owned(), |it| count(it, "device")),
    };
    let _ = writeln!(
        out,
        "\nRequest {} of claim {}: {number} of class {}",
        printable(&request.request),
        printable(&request.claim),
        printable(&request.class)
    );
    let devices = &request.devices;
    if devices.total > 0 {
        let mut parts = vec![format!("{} free", devices.free), format!("{} allocated", devices.allocated)];
        if devices.blocked > 0 {
            parts.push(format!("{} overlapping these", devices.blocked));
        }
        if devices.other > 0 {
            parts.push(format!("{} unavailable", devices.other));
        }
        let chosen =
            format!("{} of {} match: {}", devices.selected, count(devices.total, "device"), parts.join(", "));
        paragraph(out, "  ", &chosen);
    }
    if request.fits_alone {
        paragraph(out, "  ", "Fits, if the pod asks for nothing else.");
    }
    for reason in &request.reasons {
        if !sentence.contains(&reason.sentence) {
            paragraph(out, "  - ", &format!("{}.", reason.sentence));
        }
        for detail in &reason.details {
            paragraph(out, "    ", detail);
        }
        if request.gpus.is_empty() {
            holders(out, "    ", &reason.holders, now);
        }
    }
    for gpu in &request.gpus {
        map(out, gpu, now);
    }
}

fn map(out: &mut String, gpu: &GpuMap, now: Option<Timestamp>) {
    let _ = writeln!(
        out,
        "  node {}, GPU {} ({})  [{}]",
        printable(&gpu.node),
        printable(&gpu.gpu),
        printable(&gpu.product),
        gpu.cells
    );
    for entry in &gpu.legend {
        let _ = writeln!(out, "    {}  {}", entry.mark, holder(&entry.holder, now));
    }
}

fn holders(out: &mut String, indent: &str, holders: &[Holder], now: Option<Timestamp>) {
    for it in holders.iter().take(MAX_HOLDERS) {
        let _ = writeln!(out, "{indent}node {}: {}", it.node, holder(it, now));
    }
    if holders.len() > MAX_HOLDERS {
        let _ = writeln!(out, "{indent}and {} more", holders.len() - MAX_HOLDERS);
    }
}

fn holder(it: &Holder, now: Option<Timestamp>) -> String {
    let mut text = printable(&format!("{} of {}", it.device, it.who())).into_owned();
    if let (Some(since), Some(now)) = (&it.since, now) {
        let _ = write!(text, ", for {}", age(now.as_second().saturating_sub(since.0.as_second())));
    }
    text
}

fn section(out: &mut String, title: &str, lines: &[String], numbered: bool) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}");
    for (index, line) in lines.iter().enumerate() {
        let mark = if numbered { format!("  {}. ", index + 1) } else { "  - ".to_owned() };
        paragraph(out, &mark, line);
    }
}

/// Words in lines of [`WIDTH`] columns; lines after the first begin below the first word.
fn paragraph(out: &mut String, first: &str, text: &str) {
    let indent = " ".repeat(first.chars().count());
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in printable(&text.replace('\n', " ")).split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(out, "{line}");
            line.clone_from(&indent);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    let _ = writeln!(out, "{line}");
}
