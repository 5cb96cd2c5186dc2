//! Starts and ends of the driver: restarts, reboots, rolling updates, a second process that is refused.

use std::collections::BTreeSet;

use tokio::time::timeout;

use super::drivers::{self, Driver, Ending};
use super::model::{State, Tenant};
use super::record::{self, Progress};
use super::{PATIENCE, World};
use crate::common::eventually;

impl World {
    /// Starts one more process of the driver, with a pod's UID or without.
    pub(crate) async fn start_driver(&mut self) {
        let is_sole = !self.drivers.iter().any(|it| it.is_sole) && self.random.percent(50);
        self.started += 1;
        self.note(format!("driver {} starts, sole: {is_sole}", self.started));
        let driver = Driver::start(&self.lab, self.started, is_sole).await;
        self.drivers.push(driver);
    }

    /// The driver ends and starts, with the machine or without it.
    pub(crate) async fn restart(&mut self, with_machine: bool) {
        self.make_way();
        while !self.drivers.is_empty() {
            let how = if with_machine { Ending::Asked } else { self.some_ending() };
            self.end_driver(0, how).await;
        }
        self.unhang();
        if with_machine {
            let boot_id = self.lab.sim.snapshot().unwrap().boot_id;
            self.lab.sim.reboot().unwrap();
            if self.random.percent(50) {
                std::fs::remove_dir_all(self.lab.path("cdi")).unwrap();
            }
            self.model.unmanaged.clear();
            for tenant in self.model.tenants.iter_mut() {
                tenant.process = None;
                tenant.lost.clear();
                // What was promised survives, also where it was not made yet.
                let recorded = record::read(&self.lab, &tenant.claim.uid, &boot_id);
                if recorded.is_some_and(|it| it.stage != "unpreparing") {
                    tenant.state = State::Stale;
                }
            }
        }
        self.meet(if with_machine { "reboots" } else { "restarts" });
        self.note(if with_machine { "reboot".to_owned() } else { "restart".to_owned() });
        self.start_and_settle().await;
    }

    /// A rolling update begins: the new pod comes up beside the old one. Or it goes on: one of the two ends.
    pub(crate) async fn roll(&mut self) {
        if self.drivers.len() == 2 {
            let which = usize::from(self.random.percent(25));
            let how = self.some_ending();
            self.end_driver(which, how).await;
            return;
        }
        // A start looks at every GPU, and takes up what is left there.
        let is_in_the_way = |gpu: usize| {
            let is_left = |it: &Tenant| it.is_on(gpu) && (it.state == State::Leaving || it.is_orphan());
            self.model.tenants.iter().any(is_left)
        };
        if self.model.hung.is_some_and(|it| it.is_whole || is_in_the_way(it.gpu)) {
            self.let_go().await;
        }
        self.make_way();
        self.meet("rolling updates");
        self.start_and_settle().await;
    }

    /// An administrator starts the driver once more, without a UID, while such a process serves the node.
    pub(crate) async fn start_twice(&mut self) {
        if !self.drivers.iter().any(|it| it.is_sole) {
            return;
        }
        self.note("a second process".to_owned());
        self.meet("second processes refused");
        match drivers::intrude(&self.lab).await {
            Err(text) => self.fail(&format!("a second process ends as if all were well: {text}")),
            Ok(text) if !text.contains("already serves this node") => {
                self.fail(&format!("a second process ends for another reason: {text}"));
            }
            Ok(_) => {}
        }
        if !self.drivers.iter_mut().all(Driver::is_alive) {
            self.fail("a second process has ended the first one");
        }
    }

    fn some_ending(&mut self) -> Ending {
        if self.random.percent(50) { Ending::Killed } else { Ending::Asked }
    }

    /// What would keep recovery busy is ended: what is still used cannot be taken down.
    fn make_way(&mut self) {
        if self.model.tenants.iter().any(Tenant::is_orphan) {
            self.set_api(false);
        }
        self.end_processes(|it| it.state == State::Leaving || it.work.is_some() || it.is_orphan());
    }

    /// A process ends, and its work with it: then what is on record counts.
    async fn end_driver(&mut self, which: usize, how: Ending) {
        let driver = self.drivers.remove(which);
        let id = driver.id;
        self.note(format!("driver {id} ends, {how:?}"));
        if let Err(error) = driver.end(how).await {
            self.fail(&error);
        }
        let was_at_work = |it: &Tenant| it.work.is_some_and(|it| it.driver == id);
        let numbers: Vec<usize> =
            (0..self.model.tenants.len()).filter(|it| was_at_work(&self.model.tenants[*it])).collect();
        for number in numbers {
            self.meet("processes killed at work");
            let state = self.state_on_record(number);
            if state == State::Free {
                self.fail(&format!("{} was forgotten at work", self.model.tenants[number].claim.name));
            }
            self.becomes(number, state);
        }
    }

    /// Starts a process, and waits until it has brought to an end what was left and has looked at everything once.
    async fn start_and_settle(&mut self) {
        let asked = self.server().requests().len();
        self.start_driver().await;
        for number in 0..self.model.tenants.len() {
            let tenant = &self.model.tenants[number];
            if tenant.work.is_none() && (tenant.state == State::Leaving || tenant.is_orphan()) {
                self.becomes(number, State::Free);
            }
        }
        let wanted = self.recorded();
        let settled = async || (BTreeSet::from_iter(self.lab.recorded()) == wanted).then_some(());
        if timeout(PATIENCE, eventually("recovery settles", settled)).await.is_err() {
            self.fail(&format!("recovery has left {:?} and not {wanted:?}", self.lab.recorded()));
        }
        let missed = async || self.missed().is_none().then_some(());
        if timeout(PATIENCE, eventually("what is gone is missed", missed)).await.is_err() {
            self.fail(&format!("the driver does not miss {}", self.missed().unwrap_or_default()));
        }
        // Beside another one it is unknown which of the two has asked.
        self.is_blind = !self.model.api_is_down && self.drivers.len() == 1;
        if self.is_blind {
            self.wait_for_the_questions_after(asked).await;
        }
    }

    /// A device that an administrator has destroyed, and that a state file still says to be there.
    fn missed(&self) -> Option<String> {
        let boot_id = self.lab.sim.snapshot().unwrap().boot_id;
        let prepared =
            self.model.tenants.iter().filter(|it| it.state == State::Prepared && it.work.is_none());
        for tenant in prepared.filter(|it| !it.lost.is_empty()) {
            let recorded = record::read(&self.lab, &tenant.claim.uid, &boot_id)?;
            for part in &tenant.lost {
                let device = self.device_of(part);
                if recorded.progress(&device) != Some(Progress::Reserved) {
                    return Some(format!("{device} of {}", tenant.claim.name));
                }
            }
        }
        None
    }

    /// Returns once the driver has asked for every claim that it has, which it does after its start: whether it exists and, of
    /// one that was prepared, what its status says. They come in any order.
    async fn wait_for_the_questions_after(&self, start: usize) {
        let has_asked = async || {
            let requests = self.server().requests().split_off(start);
            let is_asked = |it: &Tenant| {
                let path = format!("/resourceclaims/{}", it.claim.name);
                let recorded = record::read(&self.lab, &it.claim.uid, "");
                let questions = 1 + usize::from(recorded.is_none_or(|it| it.stage == "prepared"));
                let asked = requests.iter().filter(|it| it.method == "GET" && it.path.ends_with(&path));
                questions <= asked.count()
            };
            self.model.tenants.iter().filter(|it| it.is_recorded()).all(is_asked).then_some(())
        };
        if timeout(PATIENCE, eventually("claims are asked for", has_asked)).await.is_err() {
            self.fail("the driver does not ask whether its claims exist");
        }
    }
}
