//! What no server can do better, whatever it knows and even if it moves what runs.
//!
//! **Memory served.** Let `w` be weights of profiles, and `C` the most weight that runs on one GPU at a time: the largest of all its
//! fillings. For every time `s`, what runs until the end `T` has no more weight than what would have run until `s` had every pod
//! started as it arrived, and after that `C` on every GPU: `D_w(s) + gpus * C * (T - s)`. The least of these over `s` bounds the weight
//! that runs, so it bounds memory: that, and for each profile what its weight does not cover of its memory. This holds for every
//! `w`, so the least of some of them is taken. Memory slices and compute slices, and what lies between, are tried: with both, seven
//! `1g` keep a GPU busy, although a memory slice stays free.
//!
//! **Waits.** A GPU runs one pod at a time for `4g`, `7g` or the whole GPU: two of them have more compute slices than there are. Take
//! some of these pods, and the one that starts last of them, at `S`. On the other GPUs one of them may run; all others have
//! ended. So from the first arrival to `S` the GPUs have run all of them but one for each GPU: `gpus * (S - first arrival)` is at
//! least the sum of their run times without the `gpus` longest. The last one has waited from the last arrival to `S` at the least.

use crate::arrivals::{Arrival, RUN, profiles};
use crate::fixed::fillings;
use crate::model::Model;
use crate::outcome::WARM_UP;

/// Directions that are tried between memory and compute slices.
const DIRECTIONS: u32 = 8;

/// The most memory that is served of what is asked for.
pub(crate) fn served(arrivals: &[Arrival], model: &Model, gpus: usize, sizes: &[u32]) -> f64 {
    let counted = &arrivals[arrivals.len() / WARM_UP..];
    let end = arrivals.last().map_or(0.0, |it| it.at);
    // What runs of each profile if everything starts as it arrives.
    let mut most = vec![0.0; sizes.len()];
    counted.iter().for_each(|it| most[it.profile] += it.lasts.min(end - it.at));
    let memory: Vec<f64> = sizes.iter().map(|it| f64::from(*it)).collect();
    let asked: f64 = most.iter().zip(&memory).map(|(time, size)| time * size).sum();
    let fillings = fillings(model);
    let compute: Vec<f64> = profiles(model).iter().map(|it| compute_slices(it.0)).collect();
    let mut least = asked;
    for turn in 0..=DIRECTIONS {
        for strength in 1..=2 * DIRECTIONS {
            let (turn, strength) =
                (f64::from(turn) / f64::from(DIRECTIONS), f64::from(strength) / f64::from(DIRECTIONS));
            let weight =
                |(memory, compute): (&f64, &f64)| strength * ((1.0 - turn) * memory + turn * compute);
            let weights: Vec<f64> = memory.iter().zip(&compute).map(weight).collect();
            let of = |filling: &Vec<usize>| {
                filling.iter().zip(&weights).map(|(count, it)| number(*count) * it).sum::<f64>()
            };
            let capacity = number(gpus) * fillings.iter().map(of).fold(0.0, f64::max);
            let covered = running(counted, &weights, end, capacity);
            let rest: f64 = (0..memory.len()).map(|it| most[it] * (memory[it] - weights[it]).max(0.0)).sum();
            least = least.min(covered + rest);
        }
    }
    least / asked
}

/// The least over `s` of what runs until `s` if everything starts as it arrives, and then `capacity` until the end.
fn running(arrivals: &[Arrival], weights: &[f64], end: f64, capacity: f64) -> f64 {
    let mut changes: Vec<(f64, f64)> = Vec::new();
    for it in arrivals {
        let weight = weights[it.profile];
        changes.push((it.at, weight));
        changes.push(((it.at + it.lasts).min(end), -weight));
    }
    changes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut at = arrivals.first().map_or(end, |it| it.at);
    let (mut now, mut done) = (0.0, 0.0);
    let mut least = capacity * (end - at);
    for (time, change) in changes {
        done += now * (time - at);
        (at, now) = (time, now + change);
        least = f64::min(least, done + capacity * (end - at));
    }
    least
}

/// The longest wait of pods for these profiles is not below this, in mean run times. Of these profiles a GPU must run one at a time.
pub(crate) fn longest_wait(arrivals: &[Arrival], model: &Model, gpus: usize, large: &[usize]) -> f64 {
    let together = |filling: &Vec<usize>| large.iter().map(|it| filling[*it]).sum::<usize>();
    assert!(
        fillings(model).iter().all(|it| together(it) <= 1),
        "the bound is for profiles that exclude each other"
    );
    let end = arrivals.last().map_or(0.0, |it| it.at);
    let counted = &arrivals[arrivals.len() / WARM_UP..];
    let pods: Vec<&Arrival> = counted.iter().filter(|it| large.contains(&it.profile)).collect();
    let mut bound: f64 = 0.0;
    for (first, of) in pods.iter().enumerate() {
        // Run times of the last ones, the longest of these pods, one for each GPU.
        let mut longest: Vec<f64> = Vec::new();
        let mut others = 0.0;
        for it in &pods[first..] {
            let place = longest.partition_point(|other| it.lasts < *other);
            longest.insert(place, it.lasts);
            if gpus < longest.len() {
                others += longest.pop().unwrap_or(0.0);
            }
            // A pod that still waits at the end counts with what it has waited.
            let start = (of.at + others / number(gpus)).min(end);
            bound = bound.max(start - it.at);
        }
    }
    bound / RUN
}

fn compute_slices(profile: &str) -> f64 {
    let slices = profile.split_once('g').and_then(|it| it.0.parse().ok());
    // The whole GPU has as many as its largest instance.
    slices.unwrap_or(7.0)
}

/// A count to reckon with.
#[expect(clippy::cast_precision_loss, reason = "there are few")]
pub(crate) fn number(count: usize) -> f64 {
    count as f64
}
