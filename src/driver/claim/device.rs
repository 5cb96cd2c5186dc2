//! One device of a claim on the hardware, each kind in its way; MIG devices that are created are in `prepare`.

use std::sync::Arc;

use mig_model::inventory::Adopted;

use super::PrepareError;
use super::host_files::{HostError, HostFiles, OnHost};
use super::session::SharedSession;
use super::work::{WorkError, to_its_end};
use crate::checkpoint::RecordedDevice;
use crate::hardware::{Hardware, LiveGpu};
use crate::mig;

/// A device that is there, with what a container needs for it.
pub(super) type Made = Result<Result<OnHost, HostError>, WorkError>;

/// The work keeps the claim until it ends, also after the call was answered. So it is with every work that changes a GPU.
pub(super) async fn whole_gpu(session: &SharedSession, gpu: &LiveGpu, host: HostFiles) -> Made {
    let (session, facts) = (Arc::clone(session), Arc::clone(&gpu.facts));
    to_its_end(gpu, move |handle| {
        let _claim_is_ours = session;
        if let Some(mig) = &facts.mig {
            mig::switch_mode(handle, mig, false)?;
        }
        Ok(host.read(handle.minor()?, None))
    })
    .await
}

/// A GPU is only looked up, whatever claims have of it.
pub(super) async fn as_it_is(gpu: &LiveGpu, host: HostFiles) -> Made {
    let has_mig = gpu.facts.mig.is_some();
    to_its_end(gpu, move |handle| Ok(host.read_for_admin(handle.minor()?, has_mig))).await
}

/// An unmanaged instance is only looked up.
pub(super) async fn existing(gpu: &LiveGpu, adopted: &Adopted, host: HostFiles) -> Made {
    let adopted = adopted.clone();
    to_its_end(gpu, move |handle| {
        let found = mig::find_existing(handle, &adopted)?;
        Ok(host.read(found.parent_minor, Some(&found)))
    })
    .await
}

pub(super) fn gpu_of<'a>(
    hardware: &'a Hardware,
    device: &RecordedDevice,
) -> Result<&'a Arc<LiveGpu>, PrepareError> {
    let missing = || {
        let uuid = &device.parent_uuid;
        PrepareError::NoHardware(format!("GPU {uuid} of device `{}` is not there", device.name))
    };
    hardware.gpu(&device.parent_uuid).ok_or_else(missing)
}

pub(super) fn failed(device: &RecordedDevice, error: WorkError) -> PrepareError {
    match error {
        WorkError::Mig(source) => PrepareError::Device { device: device.name.clone(), source },
        WorkError::Closed(closed) => closed.into(),
        WorkError::Hung(source) => PrepareError::Hung { device: device.name.clone(), source },
    }
}
