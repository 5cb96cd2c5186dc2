//! Samples and the table they are shown in. Pure.

use std::fmt::Write;
use std::time::Duration;

/// Samples of one quantity, sorted.
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// From durations, in milliseconds.
    pub(crate) fn milliseconds(durations: impl IntoIterator<Item = Duration>) -> Self {
        Self::new(durations.into_iter().map(|it| it.as_secs_f64() * 1000.0))
    }

    pub(crate) fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub(crate) fn median(&self) -> f64 {
        self.rank(50)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.rank(99)
    }

    pub(crate) fn min(&self) -> f64 {
        self.rank(0)
    }

    pub(crate) fn max(&self) -> f64 {
        self.rank(100)
    }

    /// Median and spread as two cells of the table; p99 means something only from a hundred samples on.
    pub(crate) fn cells(&self, unit: &str) -> (String, String) {
        let spread = if self.0.len() < 100 {
            format!("{:.2} .. {:.2} (n={})", self.min(), self.max(), self.0.len())
        } else {
            format!("p99 {:.2}, {:.2} .. {:.2} (n={})", self.p99(), self.min(), self.max(), self.0.len())
        };
        (format!("{:.2} {unit}", self.median()), spread)
    }

    /// The nearest-rank percentile: a value that was measured, never one in between.
    fn rank(&self, percent: usize) -> f64 {
        let index = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(index).copied().unwrap_or(f64::NAN)
    }
}

/// Rows of figure, median, spread, target and verdict.
#[derive(Default)]
pub(crate) struct Table(Vec<[String; 5]>);

impl Table {
    /// A figure that has a target.
    pub(crate) fn judged(&mut self, figure: &str, cells: (String, String), target: &str, is_met: bool) {
        let verdict = if is_met { "ok" } else { "MISSED" };
        self.0.push([figure.to_owned(), cells.0, cells.1, target.to_owned(), verdict.to_owned()]);
    }

    /// A figure that explains another one.
    pub(crate) fn shown(&mut self, figure: &str, cells: (String, String)) {
        self.0.push([format!("  {figure}"), cells.0, cells.1, String::new(), String::new()]);
    }

    pub(crate) fn render(&self) -> String {
        let head = ["figure", "median", "spread", "target", ""].map(str::to_owned);
        let rows = || std::iter::once(&head).chain(&self.0);
        let widths: Vec<usize> =
            (0..5).map(|column| rows().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
        let mut text = String::new();
        for row in rows() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a string cannot fail.
                let _ = write!(line, "{cell:<width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}
