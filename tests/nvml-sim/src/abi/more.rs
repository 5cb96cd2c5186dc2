//! Small questions with constant answers, mostly about the PCI Express link and the topology.

use super::call::nvml;
use super::types::{Handle, Out, Text};
use crate::code::{Answer, Code};
use crate::store::Session;

/// PCI Express 5, 16 lanes: what the newer boards have.
const PCIE_GENERATION: u32 = 5;
const PCIE_LANES: u32 = 16;
/// `NVML_TOPOLOGY_HOSTBRIDGE`, `NVML_TOPOLOGY_NODE`, `NVML_TOPOLOGY_SYSTEM`.
const SAME_BRIDGE: u32 = 30;
const SAME_NODE: u32 = 40;
const SAME_SYSTEM: u32 = 50;

fn number(session: &Session<'_>, device: Handle, result: Out<u32>, value: u32) -> Answer<()> {
    device.physical(session.machine())?;
    result.set(value)
}

nvml! {
    fn nvmlDeviceGetMaxPcieLinkGeneration(device: Handle, result: Out<u32>) on device, |s| {
        number(s, device, result, PCIE_GENERATION)
    }

    fn nvmlDeviceGetGpuMaxPcieLinkGeneration(device: Handle, result: Out<u32>) on device, |s| {
        number(s, device, result, PCIE_GENERATION)
    }

    fn nvmlDeviceGetCurrPcieLinkGeneration(device: Handle, result: Out<u32>) on device, |s| {
        number(s, device, result, PCIE_GENERATION)
    }

    fn nvmlDeviceGetMaxPcieLinkWidth(device: Handle, result: Out<u32>) on device, |s| {
        number(s, device, result, PCIE_LANES)
    }

    fn nvmlDeviceGetCurrPcieLinkWidth(device: Handle, result: Out<u32>) on device, |s| {
        number(s, device, result, PCIE_LANES)
    }

    fn nvmlDeviceGetPcieReplayCounter(device: Handle, result: Out<u32>) on device, |s| {
        number(s, device, result, 0)
    }

    fn nvmlDeviceGetEccMode(device: Handle, current: Out<u32>, pending: Out<u32>) on device, |s| {
        number(s, device, current, 1)?;
        pending.set(1)
    }

    fn nvmlDeviceGetTotalEccErrors(
        device: Handle,
        _kind: u32,
        _counter: u32,
        count: Out<u64>,
    ) on device, |s| {
        device.physical(s.machine())?;
        count.set(0)
    }

    fn nvmlDeviceGetVbiosVersion(device: Handle, text: Text, length: u32) on device, |s| {
        device.physical(s.machine())?;
        text.put("96.00.74.00.01", length)
    }

    fn nvmlDeviceGetTopologyCommonAncestor(first: Handle, second: Handle, level: Out<u32>) on first, |s| {
        let (a, b) = (first.physical(s.machine())?, second.physical(s.machine())?);
        let (a, b) = (s.machine().gpu(a)?, s.machine().gpu(b)?);
        if a.pci == b.pci {
            return Err(Code::INVALID_ARGUMENT);
        }
        let near = if a.numa == b.numa { SAME_NODE } else { SAME_SYSTEM };
        level.set(if a.pci_root == b.pci_root { SAME_BRIDGE } else { near })
    }

    fn nvmlUnitGetCount(count: Out<u32>), |_s| { count.set(0) }
}
