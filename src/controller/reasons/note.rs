//! An explanation as the note of an event. Pure.

use std::collections::BTreeSet;

use kubectl_mig::explain::{Explanation, ReasonId, Verdict};

use super::waiting::Waiting;

/// Longest note: validation of events.k8s.io/v1 takes 1 kB.
const LONGEST: usize = 1024;

/// What keeps a pod from its devices, and what to do, for pods of one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    sentence: String,
    advice: Vec<String>,
    /// The pod that was explained, and its generated claims by their entries.
    pod: String,
    claims: Vec<(String, String)>,
}

impl Finding {
    /// The finding of an explanation of this pod. `None` where its devices are free, or where something else than devices keeps it
    /// waiting: then there is nothing to report about devices.
    ///
    /// A user who may read events of the pod's namespace may not know what is in others: advice that names an object there is left
    /// out, and a sentence does not name it. `namespaces` are those of the cluster.
    #[must_use]
    pub fn of(explanation: &Explanation, of: &Waiting<'_>, namespaces: &BTreeSet<&str>) -> Option<Self> {
        if !matches!(explanation.verdict, Verdict::NotNow | Verdict::Never) {
            return None;
        }
        let is_about_devices = |it: ReasonId| {
            use ReasonId::{
                NoDeviceRequested, NotDevices, NotFound, OtherScheduler, PodBeingDeleted, PodEnded,
                SchedulingGates,
            };
            let others = [
                NoDeviceRequested,
                NotDevices,
                NotFound,
                OtherScheduler,
                PodBeingDeleted,
                PodEnded,
                SchedulingGates,
            ];
            !others.contains(&it)
        };
        if explanation.reasons.first().is_some_and(|it| !is_about_devices(it.reason)) {
            return None;
        }
        let sentence = match explanation.sentence.strip_prefix(&explanation.subject) {
            Some(rest) => format!("The pod{rest}"),
            None => explanation.sentence.clone(),
        };
        let (sentence, _) = without_others(&sentence, of.namespace(), namespaces);
        let own = |it: &String| match without_others(it, of.namespace(), namespaces) {
            (text, false) => Some(text),
            (_, true) => None,
        };
        let advice = explanation.advice.iter().filter_map(own).collect();
        let claims = of.claims.iter().map(|(entry, name)| ((*entry).to_owned(), (*name).to_owned()));
        Some(Self { sentence, advice, pod: of.name().to_owned(), claims: claims.collect() })
    }

    /// The note for a pod of this shape: the verdict, as much of what to do as there is room for, and how to see all of it.
    #[must_use]
    pub fn note(&self, pod: &Waiting<'_>) -> String {
        let mut names: Vec<(&str, &str)> = vec![(&self.pod, pod.name())];
        for (entry, name) in &self.claims {
            let own = pod.claims.iter().find(|(it, _)| it == entry);
            names.extend(own.map(|(_, own)| (name.as_str(), *own)));
        }
        // A claim's name has the pod's in it.
        names.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        let own = |text: &str| printable(&renamed(text, &names));
        let more = format!(" All of it: kubectl mig explain pod/{} -n {}", pod.name(), pod.namespace());
        let room = LONGEST - more.len().min(LONGEST);
        let mut note = shortened(own(&self.sentence), room);
        for (index, advice) in self.advice.iter().enumerate() {
            let title = if index == 0 { " What to do:" } else { "" };
            let line = format!("{title} {}. {}.", index + 1, own(advice).trim_end_matches('.'));
            if note.len() + line.len() > room {
                break;
            }
            note.push_str(&line);
        }
        note + &more
    }
}

/// A text without names of objects in other namespaces, which have the form `namespace/name` or come after `-n namespace`, and whether it
/// had any.
fn without_others(text: &str, own: &str, namespaces: &BTreeSet<&str>) -> (String, bool) {
    let is_other = |it: &str| it != own && namespaces.contains(it);
    let (mut out, mut has_others, mut is_namespace_next) = (String::with_capacity(text.len()), false, false);
    // Words with the separator after each.
    for piece in text.split_inclusive(|it: char| !is_of_name(it) && it != '/') {
        let word = piece.trim_end_matches(|it: char| !is_of_name(it) && it != '/');
        let name = word.trim_end_matches('.');
        let names_other = name.split_once('/').is_some_and(|(namespace, _)| is_other(namespace))
            || (is_namespace_next && is_other(name));
        is_namespace_next = word == "-n" || (is_namespace_next && word.is_empty());
        if names_other {
            has_others = true;
            out.push_str("(of another namespace)");
            out.push_str(&piece[name.len()..]);
        } else {
            out.push_str(piece);
        }
    }
    (out, has_others)
}

/// A text with other names. A name is replaced where it stands alone, not as a part of a longer one.
fn renamed(text: &str, names: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let is_start = !out.ends_with(is_of_name);
        let found = names.iter().find(|(from, _)| {
            is_start && !from.is_empty() && rest.strip_prefix(from).is_some_and(|after| !continues(after))
        });
        if let Some((from, to)) = found {
            out.push_str(to);
            rest = &rest[from.len()..];
        } else if let Some(first) = rest.chars().next() {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

fn is_of_name(it: char) -> bool {
    it.is_ascii_alphanumeric() || it == '-' || it == '.'
}

/// Whether a name goes on here. A full stop ends it, unless more follows.
fn continues(after: &str) -> bool {
    let mut chars = after.chars();
    match chars.next() {
        Some('.') => chars.next().is_some_and(is_of_name),
        next => next.is_some_and(is_of_name),
    }
}

/// Without characters that a terminal acts on: names in claims come from their authors.
fn printable(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { ' ' } else { it }).collect()
}

/// At most so many bytes, cut between characters.
fn shortened(mut text: String, longest: usize) -> String {
    const MARK: &str = "…";
    if longest < text.len() {
        let room = longest.saturating_sub(MARK.len());
        let end = (0..=room).rev().find(|it| text.is_char_boundary(*it)).unwrap_or_default();
        text.truncate(end);
        text.push_str(MARK);
    }
    text
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::jiff::Timestamp;
    use kubectl_mig::explain::Reason;

    use super::*;

    const NAMESPACES: [&str; 3] = ["team", "other", "pod"];

    fn pod(name: &str) -> Pod {
        let mut pod = Pod::default();
        (pod.metadata.name, pod.metadata.namespace) = (Some(name.to_owned()), Some("team".to_owned()));
        pod
    }

    fn of<'a>(pod: &'a Pod, claim: &'a str) -> Waiting<'a> {
        Waiting { pod, since: Timestamp::UNIX_EPOCH, claims: vec![("gpu", claim)], entries: Vec::new() }
    }

    fn explanation(verdict: Verdict, reason: ReasonId, advice: &[&str]) -> Explanation {
        let sentence = "every 1g.10gb is taken";
        Explanation {
            schema_version: 1,
            subject: "pod/a".to_owned(),
            namespace: "team".to_owned(),
            verdict,
            sentence: format!("pod/a gets no devices now: {sentence}."),
            reasons: vec![Reason::new(reason, sentence)],
            requests: Vec::new(),
            nodes: kubectl_mig::explain::NodeCounts::default(),
            placement: None,
            advice: advice.iter().map(|it| (*it).to_owned()).collect(),
            assumptions: Vec::new(),
            allocated: Vec::new(),
        }
    }

    #[test]
    fn the_note_is_the_verdict_and_what_to_do() {
        let pod = pod("a");
        let explanation = explanation(Verdict::NotNow, ReasonId::AllAllocated, &["wait", "end pod x."]);
        let finding = Finding::of(&explanation, &of(&pod, "a-gpu-x"), &NAMESPACES.into()).unwrap();
        assert_eq!(
            finding.note(&of(&pod, "a-gpu-x")),
            "The pod gets no devices now: every 1g.10gb is taken. What to do: 1. wait. 2. end pod x. All of it: kubectl mig \
             explain pod/a -n team"
        );
    }

    #[test]
    fn another_pod_of_the_shape_has_its_own_names_in_its_note() {
        let (a, b) = (pod("a"), pod("b.c"));
        let advice = "see claim a-gpu-x, kubectl describe pod a; a-gpu-xy and ab stay, as does a.";
        let explanation = explanation(Verdict::NotNow, ReasonId::AllAllocated, &[advice]);
        let note = Finding::of(&explanation, &of(&a, "a-gpu-x"), &NAMESPACES.into())
            .unwrap()
            .note(&of(&b, "b-gpu-y"));
        let expected = "see claim b-gpu-y, kubectl describe pod b.c; a-gpu-xy and ab stay, as does b.c.";
        assert!(note.contains(expected), "{note}");
    }

    #[test]
    fn objects_of_other_namespaces_are_not_named() {
        let pod = pod("a");
        let advice = [
            "kubectl -n other delete pod secret-1  # makes room",
            "end the pods that use it: team/own and other/secret-2.",
            "end team/own.",
            "kubectl -n team describe pod a",
        ];
        let mut explanation = explanation(Verdict::NotNow, ReasonId::PoolOverdrawn, &advice);
        explanation.sentence =
            "pod/a gets no devices now: it is allocated to claim other/secret-3, claim team/c.".to_owned();
        let note =
            Finding::of(&explanation, &of(&pod, "x"), &NAMESPACES.into()).unwrap().note(&of(&pod, "x"));
        assert!(!note.contains("secret"), "{note}");
        let expected = "it is allocated to claim (of another namespace), claim team/c. What to do: 1. end team/own. 2. kubectl -n team \
                        describe pod a.";
        assert!(note.contains(expected), "{note}");
    }

    #[test]
    fn a_note_is_at_most_1024_bytes_and_has_whole_advice() {
        let pod = pod("a");
        let long = "é".repeat(200);
        let advice = [long.as_str(), &long, &long];
        let mut explanation = explanation(Verdict::Never, ReasonId::AllAllocated, &advice);
        let note =
            Finding::of(&explanation, &of(&pod, "x"), &NAMESPACES.into()).unwrap().note(&of(&pod, "x"));
        assert!(note.len() <= LONGEST && note.contains(&format!("2. {long}. All of it")), "{note}");
        explanation.sentence = long.repeat(10);
        let note =
            Finding::of(&explanation, &of(&pod, "x"), &NAMESPACES.into()).unwrap().note(&of(&pod, "x"));
        assert!(note.len() <= LONGEST && note.contains("… All of it"), "{note}");
    }

    #[test]
    fn what_has_nothing_to_do_with_devices_is_not_reported() {
        let pod = pod("a");
        for (verdict, reason) in [
            (Verdict::Fits, ReasonId::AllAllocated),
            (Verdict::Unknown, ReasonId::AllAllocated),
            (Verdict::NotNow, ReasonId::NotDevices),
            (Verdict::Never, ReasonId::PodBeingDeleted),
        ] {
            assert_eq!(
                Finding::of(&explanation(verdict, reason, &[]), &of(&pod, "x"), &NAMESPACES.into()),
                None
            );
        }
    }

    #[test]
    fn characters_that_a_terminal_acts_on_are_not_in_a_note() {
        let pod = pod("a");
        let explanation = explanation(Verdict::Never, ReasonId::AllAllocated, &["a\u{1b}[31mb\nc"]);
        let note =
            Finding::of(&explanation, &of(&pod, "x"), &NAMESPACES.into()).unwrap().note(&of(&pod, "x"));
        assert!(note.contains("a [31mb c"), "{note}");
    }
}
