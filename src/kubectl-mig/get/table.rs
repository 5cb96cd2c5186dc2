//! A table of texts in columns that fits a width. Pure.

use super::text::{Paint, cut, width};

/// Columns between two columns.
const GAP: usize = 2;

/// The content of a cell, without control characters.
#[derive(Debug, Clone)]
pub(super) enum Cell {
    /// Cut in the middle where there is no room.
    Text(String, Paint),
    /// Never cut.
    Spans(Vec<(String, Paint)>),
    /// As many as fit, from the first on.
    List(Vec<String>),
}

impl Cell {
    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self::Text(text.into(), Paint::Plain)
    }

    fn width(&self) -> usize {
        match self {
            Self::Text(text, _) => width(text),
            Self::Spans(spans) => spans.iter().map(|it| width(&it.0)).sum(),
            Self::List(items) => items.iter().map(|it| width(it) + 1).sum::<usize>().saturating_sub(1),
        }
    }

    /// What is printed in so many columns, with its width.
    fn render(&self, most: usize, is_colored: bool) -> (String, usize) {
        let paint = |text: &str, paint: Paint| if is_colored { paint.over(text) } else { text.to_owned() };
        match self {
            Self::Text(text, color) => {
                let text = cut(text, most);
                (paint(&text, *color), width(&text))
            }
            Self::Spans(spans) => (spans.iter().map(|it| paint(&it.0, it.1)).collect(), self.width()),
            Self::List(items) => {
                let text = fitting(items, most);
                let width = width(&text);
                (text, width)
            }
        }
    }

    /// The fewest columns that it can have.
    fn least(&self) -> usize {
        match self {
            Self::Text(..) => self.width().min(8),
            Self::Spans(_) => self.width(),
            Self::List(_) => self.width().min(12),
        }
    }
}

/// Items as long as there is room for them; `…` stands for the others.
fn fitting(items: &[String], most: usize) -> String {
    let mut text = String::new();
    for (index, item) in items.iter().enumerate() {
        let gap = usize::from(0 < index);
        let rest = if index + 1 < items.len() { 2 } else { 0 };
        if most < width(&text) + gap + width(item) + rest {
            return if text.is_empty() { cut(item, most) } else { text + " …" };
        }
        if 0 < index {
            text.push(' ');
        }
        text.push_str(item);
    }
    text
}

/// A row, and lines below it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) cells: Vec<Cell>,
    /// Each is cut or wrapped already.
    pub(super) below: Vec<String>,
}

/// The table in at most so many columns.
pub(super) fn render(header: &[&str], rows: &[Row], most: usize, is_colored: bool) -> String {
    let header: Vec<Cell> = header.iter().map(|it| Cell::plain(*it)).collect();
    let widths = widths(&header, rows, most);
    let mut text = String::new();
    let mut line = |cells: &[Cell]| {
        let mut padding = 0;
        for (cell, most) in cells.iter().zip(&widths) {
            let (part, width) = cell.render(*most, is_colored);
            if 0 < width {
                text.extend(std::iter::repeat_n(' ', padding));
                text.push_str(&part);
                padding = 0;
            }
            padding += most - width.min(*most) + GAP;
        }
        text.push('\n');
        std::mem::take(&mut text)
    };
    let mut all = line(&header);
    for row in rows {
        all.push_str(&line(&row.cells));
        for below in &row.below {
            all.push_str(below);
            all.push('\n');
        }
    }
    all
}

fn widths(header: &[Cell], rows: &[Row], most: usize) -> Vec<usize> {
    let each = |of: fn(&Cell) -> usize| -> Vec<usize> {
        let columns = 0..header.len();
        let in_rows = |column: usize| rows.iter().filter_map(|it| it.cells.get(column)).map(of).max();
        columns.map(|it| in_rows(it).unwrap_or(0).max(header[it].width())).collect()
    };
    let (mut widths, least) = (each(Cell::width), each(Cell::least));
    let gaps = GAP * header.len().saturating_sub(1);
    let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(most);
    // The widest column gives way first.
    while 0 < excess {
        let shrinkable = (0..widths.len()).filter(|it| least[*it] < widths[*it]);
        let Some(widest) = shrinkable.max_by_key(|it| widths[*it]) else { break };
        widths[widest] -= 1;
        excess -= 1;
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: Vec<Cell>) -> Row {
        Row { cells, below: Vec::new() }
    }

    #[test]
    fn columns_are_aligned_and_lines_do_not_end_in_spaces() {
        let rows = [
            row(vec![Cell::plain("a"), Cell::plain("long")]),
            row(vec![Cell::plain("bcd"), Cell::plain("")]),
        ];
        assert_eq!(render(&["X", "Y"], &rows, 80, false), "X    Y\na    long\nbcd\n");
    }

    #[test]
    fn the_widest_column_gives_way_first() {
        let rows = [row(vec![Cell::plain("n".repeat(30)), Cell::plain("x".repeat(10))])];
        let text = render(&["NAME", "Y"], &rows, 32, false);
        let second = text.lines().nth(1).unwrap_or_default();
        assert_eq!((width(second), second.ends_with("  xxxxxxxxxx")), (32, true), "{second}");
    }

    #[test]
    fn a_list_has_as_many_items_as_fit() {
        let items: Vec<String> = ["7x1g.10gb", "4x1g.20gb", "1xgpu"].map(str::to_owned).into();
        assert_eq!(fitting(&items, 25), "7x1g.10gb 4x1g.20gb 1xgpu");
        assert_eq!(fitting(&items, 24), "7x1g.10gb 4x1g.20gb …");
        assert_eq!(fitting(&items, 20), "7x1g.10gb …");
        assert_eq!(fitting(&items, 5), "7x…gb");
    }
}
