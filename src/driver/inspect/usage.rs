//! Measures what GPUs and instances use.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use mig_model::facts::{Engine, GpuInstance, Memory};
use mig_model::inventory::Gpu;
use tokio::time::{sleep, timeout};

use crate::hardware::Hardware;
use crate::nvml::{CallError, GpuQueue};

/// The time over which it is measured how busy instances are. NVML wants a tenth of a second at least.
const MEASURED: Duration = Duration::from_millis(250);

/// What a GPU or an instance uses, as far as NVML reports it.
#[derive(Debug, Default)]
pub(super) struct Use {
    pub(super) memory: Option<Memory>,
    /// How busy its parts were, from 0 to 1; nothing where that is not measured.
    pub(super) engines: Vec<(Engine, f64)>,
}

/// What is used, by GPU and GPU instance; `None` is the whole GPU.
pub(super) type Usage = BTreeMap<(String, Option<u32>), Use>;

/// What each GPU and each instance uses, all GPUs at once.
pub(super) async fn usage(hardware: &Hardware, gpus: &[Gpu]) -> Usage {
    /// A GPU that does not answer must not keep the others from being shown.
    const PATIENCE: Duration = Duration::from_secs(5);
    let reads = gpus.iter().filter(|it| it.state.problem.is_none()).filter_map(|it| {
        let uuid = it.facts.uuid.clone();
        let first = |it: &GpuInstance| Some((it.id, it.compute_instances.first()?.id));
        let ids: Vec<(u32, u32)> = it.state.instances.iter().filter_map(first).collect();
        let queue = hardware.gpu(&uuid)?.queue.clone();
        Some(async move {
            let (memory, whole) = timeout(PATIENCE, memory(&queue, ids.clone())).await.ok()??;
            let busy = timeout(PATIENCE, utilization(&queue, ids)).await.ok().flatten().unwrap_or_default();
            let mut found: Usage = Usage::new();
            for (id, memory) in memory {
                found.entry((uuid.clone(), id)).or_default().memory = Some(memory);
            }
            if let Some(share) = whole {
                found.entry((uuid.clone(), None)).or_default().engines = vec![(Engine::Graphics, share)];
            }
            for (id, engines) in busy {
                found.entry((uuid.clone(), Some(id))).or_default().engines = engines;
            }
            Some(found)
        })
    });
    join_all(reads).await.into_iter().flatten().flatten().collect()
}

/// Memory of a GPU and of these instances, and how busy the GPU as a whole was lately, if NVML reports it.
async fn memory(queue: &GpuQueue, ids: Vec<(u32, u32)>) -> Option<(Vec<(Option<u32>, Memory)>, Option<f64>)> {
    let read = queue.run(move |device| {
        let whole = device.memory().ok().map(|it| (None, it));
        let of = |(gi, ci)| Some((Some(gi), device.memory_of(gi, ci).ok()??));
        let memory = whole.into_iter().chain(ids.into_iter().filter_map(of)).collect();
        Ok::<_, CallError>((memory, device.utilization().ok()))
    });
    read.await.ok()?.ok()
}

/// How busy these instances are over [`MEASURED`], on a GPU that measures it.
async fn utilization(queue: &GpuQueue, ids: Vec<(u32, u32)>) -> Option<Vec<(u32, Vec<(Engine, f64)>)>> {
    /// The samples of different processes are not distinguished here.
    const NO_OWNER: &str = "";
    let ids: Vec<u32> = ids.into_iter().map(|it| it.0).collect();
    let begun = ids.clone();
    let begin = queue.run(move |device| {
        let measures = device.measures();
        for id in begun.into_iter().filter(|_| measures) {
            // One that cannot be sampled is not measured.
            let _ = device.utilization_of(id, NO_OWNER);
        }
        Ok::<_, CallError>(measures)
    });
    if !begin.await.ok()?.ok()? {
        return None;
    }
    sleep(MEASURED).await;
    let end = queue.run(move |device| {
        let end = |id| {
            let found = device.utilization_of(id, NO_OWNER).unwrap_or_default();
            device.forget_utilization_of(id);
            (id, found)
        };
        Ok::<_, CallError>(ids.into_iter().map(end).collect())
    });
    end.await.ok()?.ok()
}
