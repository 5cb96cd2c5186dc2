//! A table in Markdown.

use crate::outcome::Outcome;

/// One scenario, a row for each server.
pub(crate) struct Table {
    pub(crate) text: String,
    profiles: Vec<&'static str>,
}

impl Table {
    pub(crate) fn new(title: &str, profiles: Vec<&'static str>) -> Self {
        let rule = "---|".repeat(profiles.len() + 4);
        let heads: Vec<String> = profiles.iter().map(|it| format!("{it} median / p95 / max")).collect();
        let text = format!(
            "\n**{title}**\n\n| server | memory served, % | {} | layout changes | slices written |\n|{rule}\n",
            heads.join(" | ")
        );
        Self { text, profiles }
    }

    pub(crate) fn row(&mut self, name: &str, outcome: &Outcome) {
        let waits = (0..self.profiles.len()).map(|it| {
            let wait = |part| format!("{:.1}", outcome.wait(it, part));
            format!("{} / {} / {}", wait(0.5), wait(0.95), wait(1.0))
        });
        let waits: Vec<String> = waits.collect();
        let number = |it: usize| if it == 0 { String::new() } else { it.to_string() };
        self.text.push_str(&format!(
            "| {name} | {:.1} | {} | {} | {} |\n",
            100.0 * outcome.served,
            waits.join(" | "),
            number(outcome.layout_changes),
            number(outcome.slice_writes)
        ));
    }

    /// A line below the table.
    pub(crate) fn note(&mut self, text: &str) {
        self.text.push_str(&format!("\n{text}\n"));
    }
}
