//! Whether claims can be served now, with the reasons.

use mig_model::slices::{CounterSupport, Publication};
use tokio::sync::watch;

use crate::hardware::NodeState;
use crate::health::HungCalls;
use crate::kubelet::RegistrationState;

/// What readiness is made of.
#[derive(Debug, Clone)]
pub struct Health {
    /// Whether the kubelet registered the plugin.
    pub registration: watch::Receiver<RegistrationState>,
    /// What the API server has.
    pub publication: watch::Receiver<Publication>,
    /// Whether there are GPUs.
    pub node: watch::Receiver<NodeState>,
    /// Whether NVML answers.
    pub hung_calls: watch::Receiver<HungCalls>,
}

impl Health {
    /// One line for each part, and whether all of them are ready. A node without GPUs is ready: it has nothing to offer and
    /// says so.
    #[must_use]
    pub fn report(&self) -> (bool, String) {
        let (is_registered, registration) = self.registration();
        let (is_published, publication) = self.publication();
        let (is_able, host) = self.host();
        let (is_answering, nvml) = self.nvml();
        let parts = [
            (is_registered, "kubelet", registration),
            (is_published, "resourceslices", publication),
            (true, "gpus", self.gpus()),
            (is_able, "host", host),
            (is_answering, "nvml", nvml),
        ];
        let line = |(is_well, name, text): &(bool, &str, String)| {
            format!("[{}] {name}: {text}\n", if *is_well { '+' } else { '-' })
        };
        (parts.iter().all(|(is_well, ..)| *is_well), parts.iter().map(line).collect())
    }

    fn registration(&self) -> (bool, String) {
        match &*self.registration.borrow() {
            RegistrationState::Registered => (true, "registered".to_owned()),
            RegistrationState::Waiting => (false, "waiting for the kubelet".to_owned()),
            RegistrationState::Asked => (
                false,
                "the kubelet asked what this plugin is, and has not reported yet whether it registered it"
                    .to_owned(),
            ),
            RegistrationState::Refused(reason) => (false, format!("refused by the kubelet: {reason}")),
        }
    }

    fn publication(&self) -> (bool, String) {
        match &*self.publication.borrow() {
            Publication::Pending { reason } => (false, reason.clone()),
            Publication::Complete { slices, devices, .. } => {
                (true, format!("{devices} devices in {slices} slices"))
            }
            Publication::Layout { slices, devices, waiting, settling, .. } => {
                let mut text = format!("{devices} devices in {slices} slices, by layout");
                if *settling {
                    text.push_str("\n    waiting: until every scheduler has noticed what was withdrawn");
                }
                for reason in waiting {
                    text.push_str(&format!("\n    waiting: {reason}"));
                }
                (true, text)
            }
            Publication::WithoutCounters { support, devices, withheld } => {
                let (reason, remedy) = match support {
                    CounterSupport::SliceOnly => (
                        "refuses counters of another slice",
                        "upgrade kube-apiserver and kube-scheduler to 1.35.6 or later",
                    ),
                    CounterSupport::Pool | CounterSupport::Dropped => (
                        "drops shared counters",
                        "turn the feature gate DRAPartitionableDevices on in kube-apiserver and kube-scheduler",
                    ),
                };
                let text = format!(
                    "{devices} devices, {withheld} withheld: kube-apiserver {reason}; {remedy}, or remove --mode=partitionable"
                );
                (false, text)
            }
        }
    }

    fn gpus(&self) -> String {
        let node = self.node.borrow();
        let mut gpus = match &node.hardware {
            Ok(hardware) => format!("{} GPUs", hardware.facts.gpus.len()),
            Err(reason) => format!("none: {reason}"),
        };
        let problems = node.problems.iter().map(ToString::to_string);
        for problem in problems.chain(node.left_alone.iter().cloned()) {
            gpus.push_str(&format!("\n    not offered: {problem}"));
        }
        gpus
    }

    fn host(&self) -> (bool, String) {
        let node = self.node.borrow();
        let is_able = !node.host.iter().any(|it| it.effect.is_blocking());
        let mut host = if is_able { "claims can be prepared" } else { "devices are withheld" }.to_owned();
        for condition in &node.host {
            host.push_str(&format!("\n    {condition}"));
        }
        (is_able, host)
    }

    fn nvml(&self) -> (bool, String) {
        let hung_calls = self.hung_calls.borrow();
        if hung_calls.is_empty() {
            return (true, "no call hangs".to_owned());
        }
        let list: Vec<String> =
            hung_calls.iter().map(|(what, time)| format!("{what} for {} s", time.as_secs())).collect();
        let text = format!(
            "a call does not come back: {}; see `nvidia-smi` and the kernel log of the node; a restart of this pod does \
             not help",
            list.join(", ")
        );
        (false, text)
    }

    /// Takes what is known now as seen, so that [`Self::changed`] waits for something else.
    pub(super) fn mark_seen(&mut self) {
        self.registration.mark_unchanged();
        self.publication.mark_unchanged();
        self.node.mark_unchanged();
        self.hung_calls.mark_unchanged();
    }

    /// Waits until any part of it changes; nothing once the driver ends.
    pub(super) async fn changed(&mut self) -> Option<()> {
        let changed = tokio::select! {
            changed = self.registration.changed() => changed,
            changed = self.publication.changed() => changed,
            changed = self.node.changed() => changed,
            changed = self.hung_calls.changed() => changed,
        };
        changed.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::readiness::{Effect, HostCondition, HostSubject};
    use mig_model::inventory::Problem;

    /// The report for a node whose driver is not loaded.
    fn report(registration: RegistrationState, publication: Publication) -> (bool, String) {
        health(registration, publication, HungCalls::new()).report()
    }

    fn health(registration: RegistrationState, publication: Publication, hung_calls: HungCalls) -> Health {
        let problems = vec![Problem { gpu: "3".to_owned(), reason: "it is lost".to_owned() }];
        let node = NodeState { problems, ..NodeState::without("no libnvidia-ml.so.1") };
        Health {
            registration: watch::channel(registration).1,
            publication: watch::channel(publication).1,
            node: watch::channel(node).1,
            hung_calls: watch::channel(hung_calls).1,
        }
    }

    #[test]
    fn a_call_that_hangs_is_not_ready_and_named() {
        let hung_calls = HungCalls::from([("GPU GPU-7".to_owned(), Duration::from_secs(75))]);
        let published = Publication::Complete { slices: 1, devices: 0, is_counted: true };
        let (is_ready, text) = health(RegistrationState::Registered, published, hung_calls).report();
        assert!(
            !is_ready && text.contains("[-] nvml: a call does not come back: GPU GPU-7 for 75 s"),
            "{text}"
        );
    }

    #[test]
    fn what_the_host_lacks_is_named_and_makes_the_node_unready_where_devices_are_withheld() {
        let condition = |effect| HostCondition {
            subject: HostSubject::Hooks,
            effect,
            text: "something is not there".to_owned(),
            remedy: "install it".to_owned(),
        };
        let published = || Publication::Complete { slices: 1, devices: 0, is_counted: true };
        for (effect, is_ready_then, line) in [
            (
                Effect::NoPartitioning,
                false,
                "[-] host: devices are withheld\n    no MIG instance can be created: ",
            ),
            (Effect::Impaired, true, "[+] host: claims can be prepared\n    CUDA fails in some containers: "),
        ] {
            let mut health = health(RegistrationState::Registered, published(), HungCalls::new());
            let node = NodeState { host: vec![condition(effect)], ..NodeState::without("x") };
            health.node = watch::channel(node).1;
            let (is_ready, text) = health.report();
            assert_eq!(is_ready, is_ready_then, "{text}");
            assert!(text.contains(&format!("{line}something is not there; install it\n")), "{text}");
        }
    }

    #[test]
    fn a_node_without_gpus_is_ready_and_says_why_it_offers_nothing() {
        let (is_ready, text) = report(
            RegistrationState::Registered,
            Publication::Complete { slices: 1, devices: 0, is_counted: true },
        );
        assert!(is_ready);
        assert!(text.contains("0 devices in 1 slices") && text.contains("no libnvidia-ml.so.1"), "{text}");
        assert!(text.contains("not offered: GPU 3: it is lost"), "{text}");
    }

    #[test]
    fn dropped_counters_and_a_kubelet_that_does_not_answer_are_not_ready_and_say_what_to_do() {
        let without = |support| Publication::WithoutCounters { support, devices: 2, withheld: 50 };
        let withheld = without(CounterSupport::Dropped);
        let (is_ready, text) = report(RegistrationState::Registered, withheld.clone());
        assert!(!is_ready && text.contains("DRAPartitionableDevices"), "{text}");
        let (is_ready, text) = report(RegistrationState::Registered, without(CounterSupport::SliceOnly));
        assert!(!is_ready && text.contains("upgrade kube-apiserver"), "{text}");
        let (is_ready, text) = report(
            RegistrationState::Waiting,
            Publication::Complete { slices: 2, devices: 26, is_counted: true },
        );
        assert!(!is_ready && text.contains("waiting for the kubelet"), "{text}");
        let (is_ready, text) = report(RegistrationState::Asked, withheld.clone());
        assert!(!is_ready && text.contains("has not reported yet"), "{text}");
        let (is_ready, text) = report(RegistrationState::Refused("name taken".into()), withheld);
        assert!(!is_ready && text.contains("name taken"), "{text}");
    }

    #[test]
    fn a_layout_is_ready_and_says_what_waits() {
        let waiting = vec!["gpu-0: 1 x 3g.40gb waits for a claim".to_owned()];
        let publication =
            Publication::Layout { revision: 1, slices: 1, devices: 3, waiting, settling: false };
        let (is_ready, text) = report(RegistrationState::Registered, publication);
        assert!(
            is_ready && text.contains("3 devices in 1 slices, by layout\n    waiting: gpu-0: 1 x 3g"),
            "{text}"
        );
    }
}
