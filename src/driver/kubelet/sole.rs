//! Ensures one process for each set of sockets, and one driver for each name.
//!
//! A second process that listens on the same paths would take the kubelet away from the first one, and remove the sockets when
//! it ends. Pods have their own sockets, named by their UID, and need no lock; a process without a UID holds one for as long
//! as it runs.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::election::is_answered;
use super::socket::siblings;

/// How the registration sockets of drivers end that use Kubernetes' Go library, as NVIDIA's does; ours end otherwise.
const OTHER_REGISTRATION_END: &str = "-reg.sock";

/// Another driver serves the kubelet under the same name.
#[derive(Debug, thiserror::Error)]
#[error(
    "another DRA driver serves this node under the name {driver}: it answers on `{socket}`; both would offer the same GPUs. Stop it on \
     this node: kubectl label node NODE nvidia.com/gpu.deploy.dra-driver=false --overwrite where the GPU Operator deploys NVIDIA's \
     DRA driver, else the affinity of its DaemonSet; or stop this one: kubectl label node NODE mig.dra-driver.dev/deploy=false \
     --overwrite"
)]
pub struct OtherDriver {
    driver: String,
    socket: PathBuf,
}

/// Fails where a driver that is not this program answers on a registration socket for this name. The kubelet would give each the
/// claims of the other.
///
/// # Errors
/// [`OtherDriver`].
pub async fn refuse_other_driver(registry: &Path, driver: &str) -> Result<(), OtherDriver> {
    for socket in siblings(registry, driver, OTHER_REGISTRATION_END) {
        if is_answered(&socket).await {
            return Err(OtherDriver { driver: driver.to_owned(), socket });
        }
    }
    Ok(())
}

/// The right of a process to serve a node under the sockets that have no pod's UID. Ends with the process, also when it is killed.
#[derive(Debug)]
pub struct SoleProcess {
    _file: File,
}

/// Another process serves the node, or it cannot be found out whether one does.
#[derive(Debug, thiserror::Error)]
pub enum SoleError {
    /// Another process holds the lock.
    #[error(
        "another dra-driver-mig process{holder} already serves this node (it holds `{path}`); stop it, or give each process its own \
         --pod-uid"
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, as it says itself: empty, or a text in brackets with a space before it.
        holder: String,
    },
    /// The lock file cannot be used.
    #[error(
        "cannot lock `{path}`: {source}; the plugin directory must be writable and on a file system with locks"
    )]
    File {
        /// The lock file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl SoleProcess {
    /// Takes the lock in the plugin directory, which is made if it is not there, and writes down who holds it. Does not wait.
    pub fn claim(plugin_directory: &Path) -> Result<Self, SoleError> {
        let path = plugin_directory.join("dra.lock");
        let failed = |source| SoleError::File { path: path.clone(), source };
        fs::create_dir_all(plugin_directory).map_err(failed)?;
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SoleError::Held { holder: holder(&file), path }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).and_then(|()| write!(file, "process {}", std::process::id())).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// What the holder has written about itself, as far as it can be printed.
fn holder(file: &File) -> String {
    const LONGEST: u64 = 64;
    let mut text = String::new();
    match file.take(LONGEST).read_to_string(&mut text) {
        Ok(_) if !text.is_empty() && text.chars().all(|it| it.is_ascii_graphic() || it == ' ') => {
            format!(" ({text})")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_driver_of_the_same_name_that_answers_is_refused_and_no_other_socket_is() {
        let registry = tempfile::tempdir().unwrap();
        let bind = |name: &str| UnixListener::bind(registry.path().join(name)).unwrap();
        // Our own, one of another name, and one that a driver left when it was killed.
        let _others = [bind("gpu.nvidia.com@reg.sock"), bind("compute-domain.nvidia.com-reg.sock")];
        drop(bind("gpu.nvidia.com-0a0a-reg.sock"));
        refuse_other_driver(registry.path(), "gpu.nvidia.com").await.unwrap();
        for name in ["gpu.nvidia.com-reg.sock", "gpu.nvidia.com-0b0b0b0b-1111-reg.sock"] {
            let listener = bind(name);
            let error = refuse_other_driver(registry.path(), "gpu.nvidia.com").await.unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("gpu.deploy.dra-driver=false"), "{error}");
            refuse_other_driver(registry.path(), "mig.dra-driver.dev").await.unwrap();
            drop(listener);
            fs::remove_file(registry.path().join(name)).unwrap();
        }
    }

    #[test]
    fn a_second_process_is_refused_with_the_name_of_the_first_until_that_ends() {
        let directory = tempfile::tempdir().unwrap();
        let plugin = directory.path().join("x.example.com");
        let first = SoleProcess::claim(&plugin).unwrap();
        let error = SoleProcess::claim(&plugin).unwrap_err().to_string();
        let own = format!("(process {})", std::process::id());
        assert!(error.contains(&own) && error.contains("--pod-uid"), "{error}");
        drop(first);
        SoleProcess::claim(&plugin).unwrap();
    }

    #[test]
    fn a_lock_file_with_anything_in_it_is_only_a_file() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("dra.lock"), [0xff, 0x1b, b'[']).unwrap();
        let _first = SoleProcess::claim(directory.path()).unwrap();
        fs::write(directory.path().join("dra.lock"), "\u{1b}[31m").unwrap();
        let error = SoleProcess::claim(directory.path()).unwrap_err().to_string();
        assert!(!error.contains('\u{1b}') && error.contains("process already serves"), "{error}");
    }
}
