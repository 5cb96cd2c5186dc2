//! The bound: everything that runs may be moved at any time and at no cost. Whether a number of instances fits is found by placing
//! the largest first, where the least is left over; the scheduler's order of age decides who is tried.

use crate::arrivals::{Arrival, profiles};
use crate::fixed::{Counts, fillings};
use crate::model::Model;
use crate::outcome::Outcome;

/// Serves arrivals by moving what runs.
pub(crate) fn repacking(arrivals: &[Arrival], model: &Model, gpus: usize, sizes: &[u32]) -> Outcome {
    let fits = Fits { fillings: fillings(model), gpus, sizes: sizes.to_vec() };
    let mut starts = vec![None; arrivals.len()];
    let mut running: Vec<(f64, usize)> = Vec::new();
    let mut counts = vec![0; profiles(model).len()];
    let mut queue: Vec<usize> = Vec::new();
    let end = arrivals.last().map_or(0.0, |it| it.at);
    let mut next = 0;
    loop {
        let ends = running.iter().map(|it| it.0).fold(f64::MAX, f64::min);
        let comes = arrivals.get(next).map_or(f64::MAX, |it| it.at);
        let now = ends.min(comes);
        if end < now || now == f64::MAX {
            return Outcome::of(arrivals, &starts, sizes);
        }
        if comes <= ends {
            queue.push(next);
            next += 1;
        } else {
            running.retain(|(at, profile)| {
                let stays = ends < *at;
                counts[*profile] -= usize::from(!stays);
                stays
            });
        }
        let mut full = vec![false; counts.len()];
        queue.retain(|pod| {
            let profile = arrivals[*pod].profile;
            if full[profile] {
                return true;
            }
            counts[profile] += 1;
            if fits.all(&counts) {
                starts[*pod] = Some(now);
                running.push((now + arrivals[*pod].lasts, profile));
                return false;
            }
            counts[profile] -= 1;
            full[profile] = true;
            true
        });
    }
}

struct Fits {
    fillings: Vec<Counts>,
    gpus: usize,
    sizes: Vec<u32>,
}

impl Fits {
    fn all(&self, counts: &Counts) -> bool {
        let mut left = counts.clone();
        for _ in 0..self.gpus {
            // The filling that takes most of the largest that is left, and then the most memory.
            let Some(largest) = (0..left.len()).rev().find(|it| 0 < left[*it]) else { return true };
            let taken = |filling: &Counts| -> Counts {
                filling.iter().zip(&left).map(|(room, left)| *room.min(left)).collect()
            };
            let value = |filling: &Counts| {
                let taken = taken(filling);
                let memory: u32 = taken
                    .iter()
                    .zip(&self.sizes)
                    .map(|(it, size)| u32::try_from(*it).unwrap_or(0) * size)
                    .sum();
                (0 < taken[largest], memory, taken.iter().rev().copied().collect::<Vec<_>>())
            };
            let Some(best) = self.fillings.iter().max_by_key(|it| value(it)) else { return false };
            let taken = taken(best);
            left.iter_mut().zip(taken).for_each(|(left, taken)| *left -= taken);
        }
        left.iter().all(|it| *it == 0)
    }
}
