//! Processes of the driver on one node, which end as the kubelet ends them or by SIGKILL.

use std::fs::File;
use std::process::{Child, Command, ExitStatus, Stdio};

use kube_sim::kubelet::{KubeletClient, Plugin};
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{DRIVER, Lab, eventually};

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// SIGTERM, as at the end of a pod.
    Asked,
    /// SIGKILL.
    Killed,
}

/// A process of the driver, registered with the kubelet.
pub(crate) struct Driver {
    pub(crate) id: usize,
    /// It has no `--pod-uid`, so there is no other one like it.
    pub(crate) is_sole: bool,
    pub(crate) plugin: Plugin,
    process: Child,
}

impl Driver {
    /// Starts a process, and returns once it has registered.
    pub(crate) async fn start(lab: &Lab, id: usize, is_sole: bool) -> Self {
        let uid = format!("{id:08x}");
        let mut command = command(lab);
        let log = File::create(lab.path(&format!("driver-{id}.log"))).unwrap();
        let socket = if is_sole {
            lab.path("registry").join(format!("{DRIVER}@reg.sock"))
        } else {
            command.args(["--pod-uid", &uid]);
            lab.path("registry").join(format!("{DRIVER}-{uid}@reg.sock"))
        };
        let process = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        // A predecessor that was killed leaves its socket, which is refused until the driver has put its own there.
        let register = async || KubeletClient::register_socket(&socket).await.ok();
        let mut started = Started(Some(process));
        let plugin = eventually("the driver registers", register).await;
        let process = started.0.take().unwrap();
        Self { id, is_sole, plugin, process }
    }

    /// Ends the process, and returns once it has ended. One that was asked to end says that all went well.
    pub(crate) async fn end(mut self, how: Ending) -> Result<(), String> {
        match how {
            Ending::Asked => kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap(),
            Ending::Killed => self.process.kill().unwrap(),
        }
        let status = ended(&mut self.process).await;
        match how {
            Ending::Asked if !status.success() => Err(format!("driver {}: {status} after SIGTERM", self.id)),
            _ => Ok(()),
        }
    }

    /// Whether it runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A process that ends with the test if it does not come up.
struct Started(Option<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(mut process) = self.0.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn command(lab: &Lab) -> Command {
    let mut command = lab.command();
    // Given, so that the process need not replace itself to set it.
    command.env("MALLOC_ARENA_MAX", "1");
    command
}

async fn ended(process: &mut Child) -> ExitStatus {
    let mut look = || process.try_wait().unwrap();
    eventually("the driver ends", || {
        let status = look();
        async move { status }
    })
    .await
}

/// Starts one more process without `--pod-uid`, which must end by itself; what it says.
pub(crate) async fn intrude(lab: &Lab) -> Result<String, String> {
    let log = lab.path("intruder.log");
    let file = File::create(&log).unwrap();
    let mut process = Started(Some(command(lab).stdout(Stdio::null()).stderr(file).spawn().unwrap()));
    let status = ended(process.0.as_mut().unwrap()).await;
    let text = std::fs::read_to_string(log).unwrap();
    if status.success() { Err(text) } else { Ok(text) }
}
