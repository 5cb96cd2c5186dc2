//! What holds for every manifest.

use proptest::prelude::*;

use super::convert;

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

proptest! {
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
