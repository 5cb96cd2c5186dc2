//! The picture: every GPU as a row of memory slices, every instance as a box over the slices that it takes.

use nvml_sim::{GiSnapshot, GpuSnapshot};

/// Columns of one memory slice, its right border included.
const CELL: usize = 12;

/// Who holds a device, by what identifies the device on the hardware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// UUID of the physical GPU.
    pub(crate) gpu: String,
    /// Profile, `full` for a whole GPU.
    pub(crate) profile: String,
    /// First memory slice.
    pub(crate) start: u32,
    /// Whose it is, for people.
    pub(crate) text: String,
}

/// A box of the row.
struct Block {
    label: String,
    slices: usize,
}

/// Draws a GPU. Boxes have letters, and the lines below the row tell whose they are.
pub(crate) fn draw(gpu: &GpuSnapshot, owners: &[Owner]) -> String {
    let mut picture = format!("GPU {}  {}  {}  {}\n", gpu.index, gpu.model, gpu.pci, gpu.uuid);
    let whole = owners.iter().find(|owner| owner.gpu == gpu.uuid && owner.profile == "full");
    if gpu.memory_slices == 0 {
        let state = whole.map_or_else(|| "free".to_owned(), |owner| format!("in use: {}", owner.text));
        picture.push_str(&format!("  whole, this model has no MIG; {state}\n"));
        return picture;
    }
    let slices = usize::try_from(gpu.memory_slices).unwrap_or(0);
    let mut legend = String::new();
    let blocks = match whole {
        Some(owner) => {
            legend.push_str(&format!("  A  the whole GPU  {}\n", owner.text));
            vec![Block { label: "A whole".into(), slices }]
        }
        None => blocks(gpu, owners, slices, &mut legend),
    };
    picture.push_str(&row(&blocks));
    let numbers: Vec<String> = (0..slices).map(|n| format!("{n:<CELL$}")).collect();
    picture.push_str(&format!("  {}\n", format!(" {}", numbers.concat()).trim_end()));
    picture + &legend
}

/// The instances and the gaps between them, in the order of the memory slices.
fn blocks(gpu: &GpuSnapshot, owners: &[Owner], slices: usize, legend: &mut String) -> Vec<Block> {
    let mut instances: Vec<&GiSnapshot> = gpu.gpu_instances.iter().collect();
    instances.sort_by_key(|instance| instance.start);
    let mut blocks = Vec::new();
    let mut at = 0;
    for (instance, letter) in instances.iter().zip('A'..='Z') {
        let start = usize::try_from(instance.start).unwrap_or(0);
        let size = usize::try_from(instance.size).unwrap_or(1);
        free(&mut blocks, start.saturating_sub(at));
        let holds =
            |o: &&Owner| o.gpu == gpu.uuid && o.profile == instance.profile && o.start == instance.start;
        let text = owners.iter().find(holds).map_or("nobody's: no claim is allocated this", |o| &o.text);
        legend.push_str(&format!("  {letter}  {:<12}  {text}\n", instance.profile));
        blocks.push(Block { label: format!("{letter} {}", instance.profile), slices: size });
        at = start + size;
    }
    free(&mut blocks, slices.saturating_sub(at));
    blocks
}

/// Every free slice is a box of its own.
fn free(blocks: &mut Vec<Block>, slices: usize) {
    blocks.extend((0..slices).map(|_| Block { label: String::new(), slices: 1 }));
}

fn row(blocks: &[Block]) -> String {
    let width = |block: &Block| block.slices * CELL - 1;
    let line = |left: &str, middle: &str, right: &str| {
        let parts: Vec<String> = blocks.iter().map(|block| "─".repeat(width(block))).collect();
        format!("  {left}{}{right}\n", parts.join(middle))
    };
    let cell = |block: &Block| {
        let text: String = block.label.chars().take(width(block)).collect();
        if text.is_empty() {
            format!("{:^1$}", "·", width(block))
        } else {
            format!("{text:^0$}", width(block))
        }
    };
    let cells: Vec<String> = blocks.iter().map(cell).collect();
    format!("{}  │{}│\n{}", line("┌", "┬", "┐"), cells.join("│"), line("└", "┴", "┘"))
}
