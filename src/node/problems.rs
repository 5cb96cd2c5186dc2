//! What of the hardware is not offered, in words. Pure.

use crate::health::Report;
use crate::inventory::{Gpu, Terms, not_adopted};
use crate::nvml::facts::{GpuInstance, SkippedGpu};

/// Which GPUs are not offered, and why. What is said before the colon is the GPU.
pub(super) fn problems(gpus: &[Gpu], skipped: &[SkippedGpu], health: &Report) -> Vec<String> {
    let unreadable = gpus.iter().filter_map(|it| Some((&it.facts.uuid, it.state.problem.as_ref()?)));
    let unreadable = unreadable.map(|(uuid, problem)| format!("GPU {uuid}: {problem}"));
    let sick = gpus.iter().filter(|it| it.state.problem.is_none()).map(|it| &it.facts.uuid);
    let sick =
        sick.filter(|it| health.gpu(it).is_bad()).map(|it| format!("GPU {it}: {}", health.gpu(it).text()));
    // By the same name as before it was skipped, so that it does not seem to be offered again.
    let skipped = skipped.iter().map(|it| {
        let gpu = it.uuid.clone().unwrap_or_else(|| it.index.to_string());
        format!("GPU {gpu}: {}", it.reason)
    });
    unreadable.chain(sick).chain(skipped).collect()
}

/// Which instances of others are not offered, and why.
pub(super) fn left_alone(gpus: &[Gpu], terms: &Terms) -> Vec<String> {
    let instances = gpus.iter().flat_map(|gpu| gpu.state.instances.iter().map(move |it| (gpu, it)));
    let left_alone = instances.filter_map(|(gpu, it)| {
        let (uuid, GpuInstance { id, placement, .. }) = (&gpu.facts.uuid, it);
        let reason = not_adopted(gpu, it, terms)?;
        Some(format!("GPU instance {id} at {placement} of {uuid}, which somebody else made: {reason}"))
    });
    left_alone.collect()
}

/// The problems of which the health of GPUs does not tell.
pub(super) fn otherwise(problems: &[String], health: &Report) -> Vec<String> {
    let gpu = |it: &str| it.strip_prefix("GPU ")?.split(": ").next().map(|it| health.gpu(it).is_bad());
    problems.iter().filter(|it| gpu(it) != Some(true)).cloned().collect()
}
