//! A real etcd and kube-apiserver, where `KUBEBUILDER_ASSETS` points at them: the judge of the simulation, and a second server for
//! tests that talk to one. Needs `openssl` for the key that the server signs service account tokens with.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

const READY_WITHIN: Duration = Duration::from_secs(90);

/// A running kube-apiserver with its etcd; both end when this is dropped.
#[derive(Debug)]
pub struct RealApiServer {
    processes: Vec<Child>,
    kubeconfig: PathBuf,
}

impl Drop for RealApiServer {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            // One that has ended already needs no killing.
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// A running kube-scheduler; it ends when this is dropped.
#[derive(Debug)]
pub struct RealScheduler(Child);

impl Drop for RealScheduler {
    fn drop(&mut self) {
        // One that has ended already needs no killing.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl RealApiServer {
    /// Starts kube-scheduler beside the server, which should have the same feature gates. Its log is beside the kubeconfig.
    ///
    /// # Errors
    /// When the binary is missing.
    pub fn start_scheduler(&self, gates: &str) -> anyhow::Result<RealScheduler> {
        let assets =
            PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS").context("KUBEBUILDER_ASSETS is not set")?);
        let log = std::fs::File::create(self.kubeconfig.with_file_name("kube-scheduler.log"))?;
        let mut command = Command::new(assets.join("kube-scheduler"));
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(["--leader-elect=false", "--secure-port=0"]);
        if !gates.is_empty() {
            command.args(["--feature-gates", gates]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(RealScheduler(command.spawn().context("starting kube-scheduler")?))
    }

    /// Starts the servers in `directory`, with feature gates such as `DRAPartitionableDevices=true`. `None` where
    /// `KUBEBUILDER_ASSETS` is not set. Blocks until the server is ready, some seconds.
    ///
    /// # Errors
    /// When a binary is missing, or the server does not come up within 90 s.
    pub fn start(directory: &Path, gates: &str) -> anyhow::Result<Option<Self>> {
        let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") else { return Ok(None) };
        let assets = PathBuf::from(assets);
        let [client, peer, secure] = [free_port()?, free_port()?, free_port()?];
        let kubeconfig = directory.join("kubeconfig");
        std::fs::write(&kubeconfig, config(secure))?;
        std::fs::write(directory.join("tokens.csv"), "sandbox,admin,admin,\"system:masters\"\n")?;
        let key = directory.join("sa.key");
        run(Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048"))?;

        let mut server = Self { processes: Vec::new(), kubeconfig };
        let etcd = format!("http://127.0.0.1:{client}");
        let peers = format!("http://127.0.0.1:{peer}");
        let arguments = [
            ("--data-dir", directory.join("etcd").into_os_string()),
            ("--listen-client-urls", OsString::from(&etcd)),
            ("--advertise-client-urls", OsString::from(&etcd)),
            ("--listen-peer-urls", OsString::from(&peers)),
            ("--initial-advertise-peer-urls", OsString::from(&peers)),
            ("--initial-cluster", format!("default={peers}").into()),
        ];
        server.spawn(&assets.join("etcd"), &arguments, directory)?;
        let mut arguments = vec![
            ("--etcd-servers", OsString::from(&etcd)),
            ("--secure-port", secure.to_string().into()),
            ("--bind-address", "127.0.0.1".into()),
            ("--cert-dir", directory.join("certs").into_os_string()),
            ("--token-auth-file", directory.join("tokens.csv").into_os_string()),
            // The account of `kubeconfig` is in system:masters and may do everything; others what rules grant them.
            ("--authorization-mode", "RBAC".into()),
            ("--service-account-issuer", "https://lab".into()),
            ("--service-account-key-file", key.clone().into_os_string()),
            ("--service-account-signing-key-file", key.into_os_string()),
            ("--service-cluster-ip-range", "10.96.0.0/16".into()),
            ("--disable-admission-plugins", "ServiceAccount".into()),
        ];
        if !gates.is_empty() {
            arguments.push(("--feature-gates", gates.into()));
        }
        server.spawn(&assets.join("kube-apiserver"), &arguments, directory)?;
        server.wait_ready(&assets.join("kubectl"))?;
        Ok(Some(server))
    }

    /// A kubeconfig with every right.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn spawn(
        &mut self,
        binary: &Path,
        arguments: &[(&str, OsString)],
        directory: &Path,
    ) -> anyhow::Result<()> {
        let name = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = std::fs::File::create(directory.join(format!("{name}.log")))?;
        let mut command = Command::new(binary);
        for (flag, value) in arguments {
            command.arg(flag).arg(value);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.processes.push(command.spawn().with_context(|| format!("starting {}", binary.display()))?);
        Ok(())
    }

    fn wait_ready(&mut self, kubectl: &Path) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let mut probe = Command::new(kubectl);
            probe.arg("--kubeconfig").arg(&self.kubeconfig).args(["get", "--raw", "/readyz"]);
            if run(&mut probe).is_ok() {
                return Ok(());
            }
            for process in &mut self.processes {
                if let Some(status) = process.try_wait()? {
                    bail!("a server ended with {status}; its log is beside the kubeconfig");
                }
            }
            if Instant::now() > deadline {
                bail!("kube-apiserver was not ready within {} s", READY_WITHIN.as_secs());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A port that was free a moment ago; there is nothing better for a program that cannot pass its listener on.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn config(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: real\nclusters:\n- name: real\n  cluster:\n    server: \
         https://127.0.0.1:{port}\n    insecure-skip-tls-verify: true\ncontexts:\n- name: real\n  context:\n    cluster: real\n    \
         user: admin\nusers:\n- name: admin\n  user:\n    token: sandbox\n"
    )
}
