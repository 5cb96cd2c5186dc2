//! The same numbers for readers that do not know OpenMetrics: Prometheus' text format 0.0.4. Pure.
//!
//! Only what our own encoder writes is turned: counters, gauges, histograms and infos, without timestamps and
//! exemplars. The formats differ in the names of families (a counter's is that of its samples, `_total` included, and so is an
//! info's, which 0.0.4 knows as a gauge), in `# UNIT` and `# EOF`, which 0.0.4 lacks, and in what a help text escapes.

/// The content type of OpenMetrics 1.0 text, which prometheus-client writes.
pub(crate) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The content type of what [`plain`] makes.
pub(crate) const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a reader who sends this `Accept` takes OpenMetrics. One who sends none, or anything else, is given plain text.
pub(crate) fn takes_open_metrics(accept: &str) -> bool {
    let types = accept.split(',').map(|it| it.split(';').next().unwrap_or_default().trim());
    types.into_iter().any(|it| it.eq_ignore_ascii_case("application/openmetrics-text"))
}

/// OpenMetrics text as text of version 0.0.4.
pub fn plain(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // The help of a family comes before its type, which its name depends on.
    let mut help = None;
    for line in open_metrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("HELP"), Some(_), said) => help = said,
            (Some("TYPE"), Some(family), Some(kind)) => {
                let (ending, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                if let Some(help) = help.take() {
                    // OpenMetrics escapes quotes, too; 0.0.4 would show the backslash.
                    let help = help.replace("\\\"", "\"");
                    text.push_str(&format!("# HELP {family}{ending} {help}\n"));
                }
                text.push_str(&format!("# TYPE {family}{ending} {kind}\n"));
            }
            // `# UNIT` and `# EOF`.
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_called_as_their_samples_and_nothing_else_changes() {
        let given = "# HELP dra_mig_calls Calls, \\\"all\\\".\n# TYPE dra_mig_calls counter\n\
                     dra_mig_calls_total{method=\"prepare\"} 3\n\
                     # HELP dra_mig_build The driver.\n# TYPE dra_mig_build info\ndra_mig_build_info{version=\"1\"} 1\n\
                     # HELP dra_mig_time_seconds Time.\n# TYPE dra_mig_time_seconds histogram\n\
                     # UNIT dra_mig_time_seconds seconds\ndra_mig_time_seconds_bucket{le=\"+Inf\"} 0\n\
                     # EOF\n";
        let expected = "# HELP dra_mig_calls_total Calls, \"all\".\n# TYPE dra_mig_calls_total counter\n\
                        dra_mig_calls_total{method=\"prepare\"} 3\n\
                        # HELP dra_mig_build_info The driver.\n# TYPE dra_mig_build_info gauge\n\
                        dra_mig_build_info{version=\"1\"} 1\n\
                        # HELP dra_mig_time_seconds Time.\n# TYPE dra_mig_time_seconds histogram\n\
                        dra_mig_time_seconds_bucket{le=\"+Inf\"} 0\n";
        assert_eq!(plain(given), expected);
    }

    #[test]
    fn only_who_asks_for_openmetrics_is_given_it() {
        // What Prometheus 3 sends, and what a version before 2.5, curl and a browser do.
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3";
        assert!(takes_open_metrics(prometheus));
        for accept in ["", "*/*", "text/plain;version=0.0.4;q=1,*/*;q=0.1", "text/html"] {
            assert!(!takes_open_metrics(accept), "{accept}");
        }
    }
}
