//! The map of a GPU: a row of memory slices, and a box over the slices that each instance takes. Pure.

/// Columns of one memory slice, its right border included.
const CELL: usize = 12;

/// An instance in the picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// First memory slice.
    pub start: u32,
    /// Memory slices that it takes.
    pub size: u32,
    /// What its box says, as far as there is room.
    pub label: String,
}

/// Draws the memory slices of a GPU. Each free one has its own box with a dot; blocks may come in any order.
#[must_use]
pub fn row(memory_slices: u32, blocks: &[Block]) -> String {
    let mut blocks: Vec<&Block> = blocks.iter().collect();
    blocks.sort_by_key(|it| it.start);
    let mut boxes: Vec<(usize, &str)> = Vec::new();
    let mut at = 0;
    for block in blocks {
        boxes.extend((at..block.start).map(|_| (1, "·")));
        boxes.push((usize::try_from(block.size).unwrap_or(1), &block.label));
        at = block.start.saturating_add(block.size);
    }
    boxes.extend((at..memory_slices).map(|_| (1, "·")));

    let width = |slices: usize| slices.max(1) * CELL - 1;
    let line = |left: &str, middle: &str, right: &str| {
        let parts: Vec<String> = boxes.iter().map(|(slices, _)| "─".repeat(width(*slices))).collect();
        format!("  {left}{}{right}\n", parts.join(middle))
    };
    let cell = |(slices, label): &(usize, &str)| {
        let text: String = label.chars().take(width(*slices)).collect();
        format!("{text:^0$}", width(*slices))
    };
    let cells: Vec<String> = boxes.iter().map(cell).collect();
    let numbers: String = (0..memory_slices).map(|it| format!("{it:<CELL$}")).collect();
    format!(
        "{}  │{}│\n{}  {}\n",
        line("┌", "┬", "┐"),
        cells.join("│"),
        line("└", "┴", "┘"),
        format!(" {numbers}").trim_end()
    )
}

/// Letters for boxes, in the order of the alphabet and then from its beginning.
pub fn letters() -> impl Iterator<Item = char> {
    ('A'..='Z').cycle()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_boxes_over_their_slices_and_free_slices_dots() {
        let block = |start, size, label: &str| Block { start, size, label: label.to_owned() };
        let drawn = row(4, &[block(3, 1, "B 1g.6gb+me.all"), block(0, 2, "A 2g.12gb")]);
        let expected = "  \
┌───────────────────────┬───────────┬───────────┐
  │       A 2g.12gb       │     ·     │B 1g.6gb+me│
  └───────────────────────┴───────────┴───────────┘
   0           1           2           3
";
        assert_eq!(drawn, expected);
    }
}
