//! The files that tell containers what their devices are (KEP-5304), on the host and in the container.
//!
//! Names and places in the container are those of Kubernetes (`k8s.io/dynamic-resource-allocation/api/metadata`). On the host each claim
//! has a directory of its UID, with one file for each of its requests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cdi::device::{Kind, MAX_NAME, check_claim_uid, name_error};
use crate::cdi::file_error::{FilesError, MODE, failed};
use crate::cdi::spec::{Mount, SpecError};
use crate::files::replace;

/// Where all of them are in a container.
const CONTAINER: &str = "/var/run/kubernetes.io/dra-device-attributes";
/// The name of a file on the host.
const FILE: &str = "metadata.json";

/// By what a container finds the metadata of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimName<'a> {
    /// The ResourceClaim that the pod names.
    Claim(&'a str),
    /// The name within the pod, where the ResourceClaim was made from a template.
    InPod(&'a str),
}

/// The directory on the host with the metadata of all claims.
#[derive(Debug, Clone)]
pub(super) struct MetadataFiles(PathBuf);

impl MetadataFiles {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Writes the metadata of one request, and answers with the mount that a container with this request needs.
    pub(super) fn write(
        &self,
        kind: &Kind,
        claim_uid: &str,
        claim: ClaimName<'_>,
        request: &str,
        json: &[u8],
    ) -> Result<Mount, FilesError> {
        check_request(request)?;
        let directory = self.of(claim_uid)?.join(request);
        fs::create_dir_all(&directory).map_err(failed("create the directory", &directory))?;
        let path = directory.join(FILE);
        replace(&path, json, MODE).map_err(failed("write", &path))?;
        let (folder, name) = match claim {
            ClaimName::Claim(name) => ("resourceclaims", name),
            ClaimName::InPod(name) => ("resourceclaimtemplates", name),
        };
        let file = format!("{}-metadata.json", kind.driver());
        Ok(Mount {
            host_path: path.display().to_string(),
            container_path: format!("{CONTAINER}/{folder}/{name}/{request}/{file}"),
            options: ["ro", "bind"].map(str::to_owned).into(),
            ..Mount::default()
        })
    }

    /// True where a claim has metadata.
    pub(super) fn exists(&self, claim_uid: &str) -> Result<bool, FilesError> {
        let path = self.of(claim_uid)?;
        path.try_exists().map_err(failed("look for", &path))
    }

    /// Removes the metadata of a claim. That there is none is success.
    pub(super) fn remove(&self, claim_uid: &str) -> Result<(), FilesError> {
        let path = self.of(claim_uid)?;
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The UIDs of the claims that have metadata, whole or not.
    pub(super) fn list(&self) -> Result<Vec<String>, FilesError> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("list", &self.0))?,
        };
        let mut uids = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed("list", &self.0))?.file_name().into_string();
            uids.extend(name.ok().filter(|it| check_claim_uid(it).is_ok()));
        }
        Ok(uids)
    }

    fn of(&self, claim_uid: &str) -> Result<PathBuf, SpecError> {
        check_claim_uid(claim_uid)?;
        Ok(Path::new(&self.0).join(claim_uid))
    }
}

/// A request's name becomes part of paths.
fn check_request(name: &str) -> Result<(), SpecError> {
    let chars = name.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-');
    if chars && !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with('-') && !name.ends_with('-') {
        return Ok(());
    }
    Err(name_error("request name", name, "a DNS label, as every request name is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6f5b3c1e-0000-4000-8000-000000000001";

    #[test]
    fn a_file_is_where_kubernetes_says_that_containers_look_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let files = MetadataFiles::new(directory.path().join("metadata"));
        let kind = Kind::of_driver("mig.dra-driver.dev").unwrap();
        let path = |claim| files.write(&kind, UID, claim, "gpu", b"{}").unwrap().container_path;
        let root = "/var/run/kubernetes.io/dra-device-attributes";
        let file = "gpu/mig.dra-driver.dev-metadata.json";
        assert_eq!(path(ClaimName::Claim("shared")), format!("{root}/resourceclaims/shared/{file}"));
        assert_eq!(path(ClaimName::InPod("mine")), format!("{root}/resourceclaimtemplates/mine/{file}"));
        assert_eq!((files.list().unwrap(), files.exists(UID).unwrap()), (vec![UID.to_owned()], true));
        for _ in 0..2 {
            files.remove(UID).unwrap();
        }
        assert_eq!((files.list().unwrap(), files.exists(UID).unwrap()), (Vec::new(), false));
    }

    #[test]
    fn no_name_leaves_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let files = MetadataFiles::new(directory.path().join("metadata"));
        let kind = Kind::of_driver("mig.dra-driver.dev").unwrap();
        for (uid, request) in
            [("..", "gpu"), ("a/b", "gpu"), (UID, ".."), (UID, "a/b"), (UID, ""), (UID, "A")]
        {
            assert!(
                files.write(&kind, uid, ClaimName::Claim("c"), request, b"{}").is_err(),
                "{uid} {request}"
            );
        }
        assert!(files.remove("..").is_err() && directory.path().exists());
    }
}
