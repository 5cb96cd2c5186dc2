//! The conditions of a node. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::bounds::MAX_TEXT;
use super::status::{GpuStatus, condition, reason};

/// What became of the spec, as the part of the driver that follows it reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// `metadata.generation` of the object whose spec it was.
    pub generation: i64,
    /// Whether what is published is what is demanded.
    pub status: bool,
    /// One of [`reason`].
    pub reason: &'static str,
    /// What is missing and why, for a person; empty where nothing is.
    pub message: String,
}

/// Whether the node offers what its GPUs can provide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Whether a claim can get anything.
    pub status: bool,
    /// One of [`reason`].
    pub reason: &'static str,
    /// Why not, or what is missing.
    pub message: String,
}

impl Readiness {
    /// Of what keeps the slices from being published, what keeps claims from being prepared, the GPUs, and why GPUs are missing
    /// among them.
    #[must_use]
    pub fn of(unpublished: Option<&str>, host: Option<&str>, gpus: &[GpuStatus], missing: &[String]) -> Self {
        let not_ready = |reason, message: &str| Self { status: false, reason, message: message.to_owned() };
        if let Some(why) = host {
            return not_ready(reason::HOST_NOT_READY, why);
        }
        if let Some(why) = unpublished {
            return not_ready(reason::NOT_PUBLISHED, why);
        }
        let problem = |it: &GpuStatus| Some(format!("{}: {}", it.name, it.problem.as_ref()?));
        let problems: Vec<String> = gpus.iter().filter_map(problem).chain(missing.iter().cloned()).collect();
        let message = problems.join("; ");
        match (problems.len(), gpus.len() + missing.len()) {
            (0, 0) => not_ready(reason::NO_GPU, "NVML reports no GPU that can be offered"),
            (0, _) => Self { status: true, reason: reason::AVAILABLE, message },
            (some, all) if some < all => Self { status: true, reason: reason::PARTLY_AVAILABLE, message },
            _ => not_ready(reason::NO_GPU, &message),
        }
    }
}

/// The conditions to report. A condition keeps the time of its last transition while its status stays.
#[must_use]
pub fn conditions(
    ready: &Readiness,
    followed: Option<&Followed>,
    before: &[Condition],
    now: Timestamp,
) -> Vec<Condition> {
    let new = |type_: &str, status: bool, reason: &str, message: &str, generation: Option<i64>| {
        let status = if status { "True" } else { "False" };
        let same = before.iter().find(|it| it.type_ == type_ && it.status == status);
        // The API server keeps whole seconds.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.chars().take(MAX_TEXT).collect(),
            observed_generation: generation,
            last_transition_time: same.map_or(Time(now), |it| it.last_transition_time.clone()),
        }
    };
    let ready = new(condition::READY, ready.status, ready.reason, &ready.message, None);
    let followed = followed.map(|Followed { generation, status, reason, message }| {
        new(condition::DEMAND_FOLLOWED, *status, reason, message, Some(*generation))
    });
    [ready].into_iter().chain(followed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(name: &str, problem: Option<&str>) -> GpuStatus {
        GpuStatus { name: name.to_owned(), problem: problem.map(str::to_owned), ..GpuStatus::default() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_node_is_ready_while_one_gpu_can_be_allocated() {
        let of = |gpus: &[GpuStatus]| {
            let Readiness { status, reason, message } = Readiness::of(None, None, gpus, &[]);
            (status, reason, message)
        };
        let (good, bad) = (gpu("gpu-a", None), gpu("gpu-b", Some("XID 48")));
        assert_eq!(of(std::slice::from_ref(&good)), (true, reason::AVAILABLE, String::new()));
        assert_eq!(of(&[good, bad.clone()]), (true, reason::PARTLY_AVAILABLE, "gpu-b: XID 48".to_owned()));
        assert_eq!(of(std::slice::from_ref(&bad)), (false, reason::NO_GPU, "gpu-b: XID 48".to_owned()));
        assert!(!of(&[]).0);
        let lost = Readiness::of(None, None, &[gpu("gpu-a", None)], &["GPU 1: lost".to_owned()]);
        assert_eq!(
            (lost.status, lost.reason, lost.message.as_str()),
            (true, reason::PARTLY_AVAILABLE, "GPU 1: lost")
        );
        assert_eq!(
            Readiness::of(Some("p"), None, std::slice::from_ref(&bad), &[]).reason,
            reason::NOT_PUBLISHED
        );
        assert_eq!(Readiness::of(Some("p"), Some("h"), &[bad], &[]).reason, reason::HOST_NOT_READY);
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let ready = |status: bool, reason| Readiness { status, reason, message: String::new() };
        let first = conditions(&ready(true, reason::AVAILABLE), None, &[], at(10));
        let same = conditions(&ready(true, reason::PARTLY_AVAILABLE), None, &first, at(20));
        assert_eq!(same[0].last_transition_time, Time(at(10)));
        assert_eq!(same[0].reason, reason::PARTLY_AVAILABLE);
        let other = conditions(&ready(false, reason::NO_GPU), None, &same, at(30));
        assert_eq!(other[0].last_transition_time, Time(at(30)));
    }

    #[test]
    fn what_became_of_the_spec_is_a_condition_with_its_generation() {
        let ready = Readiness { status: true, reason: reason::AVAILABLE, message: String::new() };
        let followed =
            Followed { generation: 3, status: false, reason: reason::STALE, message: "m".repeat(5000) };
        let found = conditions(&ready, Some(&followed), &[], at(1));
        assert_eq!(
            (found[1].type_.as_str(), found[1].status.as_str()),
            (condition::DEMAND_FOLLOWED, "False")
        );
        assert_eq!((found[1].observed_generation, found[1].message.len()), (Some(3), MAX_TEXT));
    }
}
