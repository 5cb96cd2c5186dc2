//! The picture: every GPU as a row of memory slices, every instance as a box over the slices that it takes.

use dra_driver_mig::inspect::map::{Block, letters, row};
use nvml_sim::{GiSnapshot, GpuSnapshot};

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

/// Draws a GPU. Boxes have letters, and the lines below the row tell whose they are.
pub(crate) fn draw(gpu: &GpuSnapshot, owners: &[Owner]) -> String {
    let mut picture = format!("GPU {}  {}  {}  {}\n", gpu.index, gpu.model, gpu.pci, gpu.uuid);
    let whole = owners.iter().find(|owner| owner.gpu == gpu.uuid && owner.profile == "full");
    if gpu.memory_slices == 0 {
        let state = whole.map_or_else(|| "free".to_owned(), |owner| format!("in use: {}", owner.text));
        picture.push_str(&format!("  whole, this model has no MIG; {state}\n"));
        return picture;
    }
    let mut legend = String::new();
    let blocks = match whole {
        Some(owner) => {
            legend.push_str(&format!("  A  the whole GPU  {}\n", owner.text));
            vec![Block { start: 0, size: gpu.memory_slices, label: "A whole".into() }]
        }
        None => blocks(gpu, owners, &mut legend),
    };
    picture.push_str(&row(gpu.memory_slices, &blocks));
    picture + &legend
}

/// The instances, in the order of the memory slices.
fn blocks(gpu: &GpuSnapshot, owners: &[Owner], legend: &mut String) -> Vec<Block> {
    let mut instances: Vec<&GiSnapshot> = gpu.gpu_instances.iter().collect();
    instances.sort_by_key(|instance| instance.start);
    let block = |(instance, letter): (&GiSnapshot, char)| {
        let holds =
            |o: &&Owner| o.gpu == gpu.uuid && o.profile == instance.profile && o.start == instance.start;
        let text = owners.iter().find(holds).map_or("not allocated to a claim", |o| &o.text);
        legend.push_str(&format!("  {letter}  {:<12}  {text}\n", instance.profile));
        Block { start: instance.start, size: instance.size, label: format!("{letter} {}", instance.profile) }
    };
    instances.into_iter().zip(letters()).map(block).collect()
}
