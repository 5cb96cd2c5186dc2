//! Describes the hardware that is not published. Pure.

use mig_model::facts::{GpuInstance, SkippedGpu};
use mig_model::health::Report;
use mig_model::inventory::{Gpu, OfferPolicy, Problem, not_adopted};

/// Which GPUs are not offered, and why.
pub(super) fn problems(
    gpus: &[Gpu],
    skipped: &[SkippedGpu],
    missing: &[Problem],
    health: &Report,
) -> Vec<Problem> {
    let problem = |gpu: &str, reason: &str| Problem { gpu: gpu.to_owned(), reason: reason.to_owned() };
    let unreadable = gpus.iter().filter_map(|it| Some(problem(&it.facts.uuid, it.state.problem.as_ref()?)));
    let unhealthy = gpus.iter().filter(|it| it.state.problem.is_none()).map(|it| &it.facts.uuid);
    let unhealthy =
        unhealthy.filter(|it| health.gpu(it).is_bad()).map(|it| problem(it, &health.gpu(it).text()));
    let uncut = gpus.iter().filter(|it| it.state.problem.is_none()).filter_map(in_mig_mode_without_profiles);
    // By the same name as before it was skipped, so that it does not seem to be offered again.
    let skipped = skipped.iter().map(|it| {
        let index = it.index.to_string();
        problem(it.uuid.as_ref().unwrap_or(&index), &it.reason)
    });
    unreadable.chain(unhealthy).chain(uncut).chain(skipped).chain(missing.iter().cloned()).collect()
}

/// Nothing of the GPU is published: the whole GPU cannot be used, and its MIG profiles are unknown.
fn in_mig_mode_without_profiles(gpu: &Gpu) -> Option<Problem> {
    let has_profiles = gpu.facts.cuttable().is_some();
    gpu.state.mode.filter(|it| it.current && !has_profiles)?;
    let why: Vec<String> = gpu.facts.unknown.iter().map(ToString::to_string).collect();
    let reason = format!(
        "MIG mode is on, and NVML reports no MIG profile ({}); with MIG mode off the GPU is offered whole",
        why.join(", ")
    );
    Some(Problem { gpu: gpu.facts.uuid.clone(), reason })
}

/// Which unmanaged instances are not offered, and why.
pub(super) fn left_alone(gpus: &[Gpu], policy: &OfferPolicy) -> Vec<String> {
    let instances = gpus.iter().flat_map(|gpu| gpu.state.instances.iter().map(move |it| (gpu, it)));
    let left_alone = instances.filter_map(|(gpu, it)| {
        let (uuid, GpuInstance { id, placement, .. }) = (&gpu.facts.uuid, it);
        let reason = not_adopted(gpu, it, policy)?;
        Some(format!("unmanaged MIG instance {id} at {placement} of {uuid}: {reason}"))
    });
    left_alone.collect()
}

/// The problems that the health of GPUs does not include.
pub(super) fn otherwise<'a>(
    problems: &'a [Problem],
    health: &'a Report,
) -> impl Iterator<Item = &'a Problem> {
    problems.iter().filter(|it| !health.gpu(&it.gpu).is_bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mig_model::health::Condition;

    #[test]
    fn what_health_reports_is_left_out_by_the_gpu_and_not_by_the_text() {
        let lost = Condition::Lost { reason: "GPU_IS_LOST".to_owned(), since: 7 };
        let health = Report { gpus: [("GPU-1".to_owned(), lost)].into(), instances: Vec::new() };
        let problem = |gpu: &str, reason: &str| Problem { gpu: gpu.to_owned(), reason: reason.to_owned() };
        let problems = [problem("GPU-1", "lost"), problem("GPU-2", "as GPU-1: lost"), problem("3", "a: b")];
        let left: Vec<String> = otherwise(&problems, &health).map(ToString::to_string).collect();
        assert_eq!(left, ["GPU GPU-2: as GPU-1: lost", "GPU 3: a: b"]);
    }
}
