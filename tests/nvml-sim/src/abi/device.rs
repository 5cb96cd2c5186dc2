//! Finding GPUs and asking what they are: handles, names, numbers, memory, processes, utilisation.

use super::call::nvml;
use super::types::{
    AddressingMode, Chars, Device, FieldValue, Handle, Kind, Out, Pci, PciExt, Text, UuidV1, name,
    pci_numbers, version,
};
use super::usage::mig_profile;
use crate::code::{Answer, Code};
use crate::machine::{Gpu, Machine};

const NVIDIA_VENDOR: u32 = 0x10de;

fn gpu_handle(machine: &Machine, index: usize) -> Answer<Handle> {
    let gpu = machine.gpu(index)?;
    if let Some(code) = gpu.handle_error {
        return Err(Code(code));
    }
    if gpu.lost { Err(Code::GPU_IS_LOST) } else { Ok(Handle::new(Kind::Gpu, index, 0)) }
}

fn by_index(machine: &Machine, index: u32, device: Out<Handle>) -> Answer<()> {
    let index = index as usize;
    if machine.count() <= index {
        return Err(Code::INVALID_ARGUMENT);
    }
    device.set(gpu_handle(machine, index)?)
}

fn by_uuid(machine: &Machine, uuid: &str, device: Out<Handle>) -> Answer<()> {
    for (index, gpu) in machine.gpus.iter().enumerate() {
        if gpu.uuid == uuid {
            return device.set(gpu_handle(machine, index)?);
        }
        let computes = gpu.instances.iter().flat_map(|instance| &instance.compute_instances);
        if let Some(compute) = computes.into_iter().find(|compute| compute.uuid == uuid) {
            gpu_handle(machine, index)?;
            return device.set(Handle::new(Kind::MigDevice, index, compute.serial));
        }
    }
    Err(Code::NOT_FOUND)
}

fn by_pci(machine: &Machine, bus_id: &str, device: Out<Handle>) -> Answer<()> {
    let wanted = pci_numbers(bus_id).ok_or(Code::INVALID_ARGUMENT)?;
    let found = machine.gpus.iter().position(|gpu| pci_numbers(&gpu.pci) == Some(wanted));
    device.set(gpu_handle(machine, found.ok_or(Code::NOT_FOUND)?)?)
}

fn pci(machine: &Machine, device: Handle) -> Answer<Pci> {
    let gpu = machine.gpu(device.physical(machine)?)?;
    let (domain, bus, slot) = pci_numbers(&gpu.pci).ok_or(Code::UNKNOWN)?;
    let model = gpu.model().ok_or(Code::UNKNOWN)?;
    Ok(Pci {
        bus_id_legacy: name(&format!("{domain:04X}:{bus:02X}:{slot:02X}.0")),
        domain,
        bus,
        device: slot,
        pci_device_id: model.data().pci_device << 16 | NVIDIA_VENDOR,
        pci_subsystem_id: model.data().pci_device << 16 | NVIDIA_VENDOR,
        bus_id: name(&format!("{domain:08X}:{bus:02X}:{slot:02X}.0")),
    })
}

fn device_name(device: &Device<'_>) -> Answer<String> {
    let product = match &device.gpu.product_name {
        Some(name) => name,
        None => &device.gpu.model().ok_or(Code::UNKNOWN)?.data().product_name,
    };
    match device.mig {
        None => Ok(product.into()),
        Some(_) => Ok(format!("{product} MIG {}", mig_profile(device)?.name)),
    }
}

fn device_uuid(device: &Device<'_>) -> String {
    device.mig.map_or_else(|| device.gpu.uuid.clone(), |(_, compute)| compute.uuid.clone())
}

/// `NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED`, `NVML_FI_DEV_IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE`.
const FIELD_RESETLESS_MIG: u32 = 184;
const FIELD_MIG_QUERY: u32 = 199;
/// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`.
const FIELD_RECOVERY_ACTION: u32 = 230;
/// `NVML_VALUE_TYPE_UNSIGNED_INT`.
const TYPE_UNSIGNED: u32 = 1;

fn field(gpu: &Gpu, asked: FieldValue) -> FieldValue {
    let model = gpu.model();
    let value = match asked.field {
        FIELD_RESETLESS_MIG => Ok(u64::from(model.is_some_and(|model| model.resetless_mig()))),
        FIELD_MIG_QUERY => Ok(u64::from(model.is_some_and(|model| model.has_mig()))),
        FIELD_RECOVERY_ACTION => gpu.recovery_action.map(u64::from).ok_or(Code::NOT_SUPPORTED),
        _ => Err(Code::NOT_SUPPORTED),
    };
    let code = value.err().unwrap_or(Code::SUCCESS);
    FieldValue { kind: TYPE_UNSIGNED, code, value: value.unwrap_or(0), timestamp: 0, latency_us: 0, ..asked }
}

nvml! {
    fn nvmlDeviceGetCount(
        count: Out<u32>,
    ), |s| {
        count.set(u32::try_from(s.machine().count()).unwrap_or(0))
    }

    fn nvmlDeviceGetCount_v2(
        count: Out<u32>,
    ), |s| {
        count.set(u32::try_from(s.machine().count()).unwrap_or(0))
    }

    fn nvmlDeviceGetHandleByIndex(
        index: u32,
        device: Out<Handle>,
    ) on index, |s| {
        by_index(s.machine(), index, device)
    }

    fn nvmlDeviceGetHandleByIndex_v2(
        index: u32,
        device: Out<Handle>,
    ) on index, |s| {
        by_index(s.machine(), index, device)
    }

    fn nvmlDeviceGetHandleByUUID(
        uuid: Chars,
        device: Out<Handle>,
    ) on uuid, |s| {
        by_uuid(s.machine(), &uuid.get()?, device)
    }

    fn nvmlDeviceGetHandleByUUIDV(uuid: Out<UuidV1>, device: Out<Handle>), |s| {
        const ASCII: u32 = 1;
        if uuid.cast::<u32>().get()? != version::<UuidV1>(1) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        let asked = uuid.get()?;
        if asked.kind != ASCII {
            return Err(Code::NOT_SUPPORTED);
        }
        let text: Vec<u8> = asked.value.into_iter().take_while(|byte| *byte != 0).collect();
        by_uuid(s.machine(), &String::from_utf8_lossy(&text), device)
    }

    fn nvmlDeviceGetHandleByPciBusId(
        bus_id: Chars,
        device: Out<Handle>,
    ) on bus_id, |s| {
        by_pci(s.machine(), &bus_id.get()?, device)
    }

    fn nvmlDeviceGetHandleByPciBusId_v2(
        bus_id: Chars,
        device: Out<Handle>,
    ) on bus_id, |s| {
        by_pci(s.machine(), &bus_id.get()?, device)
    }

    fn nvmlDeviceGetHandleBySerial(serial: Chars, device: Out<Handle>) on serial, |s| {
        let serial = serial.get()?;
        let found = s.machine().gpus.iter().position(|gpu| gpu.serial == serial).ok_or(Code::NOT_FOUND)?;
        device.set(gpu_handle(s.machine(), found)?)
    }

    fn nvmlDeviceGetName(device: Handle, text: Text, length: u32) on device, |s| {
        text.put(&device_name(&device.device(s.machine())?)?, length)
    }

    fn nvmlDeviceGetUUID(device: Handle, text: Text, length: u32) on device, |s| {
        text.put(&device_uuid(&device.device(s.machine())?), length)
    }

    fn nvmlDeviceGetSerial(device: Handle, text: Text, length: u32) on device, |s| {
        let index = device.physical(s.machine())?;
        text.put(&s.machine().gpu(index)?.serial, length)
    }

    fn nvmlDeviceGetIndex(device: Handle, index: Out<u32>) on device, |s| {
        let found = device.device(s.machine())?;
        let number = match found.mig {
            None => Some(found.index),
            Some((gi, ci)) => found.gpu.mig_slots.iter().position(|slot| *slot == Some((gi.id, ci.id))),
        };
        index.set(u32::try_from(number.ok_or(Code::INVALID_ARGUMENT)?).unwrap_or(u32::MAX))
    }

    fn nvmlDeviceGetMinorNumber(device: Handle, minor: Out<u32>) on device, |s| {
        let index = device.physical(s.machine())?;
        minor.set(s.machine().gpu(index)?.minor)
    }

    fn nvmlDeviceGetNumaNodeId(device: Handle, node: Out<u32>) on device, |s| {
        let index = device.physical(s.machine())?;
        node.set(u32::try_from(s.machine().gpu(index)?.numa).map_err(|_| Code::NOT_SUPPORTED)?)
    }

    fn nvmlDeviceGetPciInfo(
        device: Handle,
        info: Out<Pci>,
    ) on device, |s| {
        info.set(pci(s.machine(), device)?)
    }

    fn nvmlDeviceGetPciInfo_v2(
        device: Handle,
        info: Out<Pci>,
    ) on device, |s| {
        info.set(pci(s.machine(), device)?)
    }

    fn nvmlDeviceGetPciInfo_v3(
        device: Handle,
        info: Out<Pci>,
    ) on device, |s| {
        info.set(pci(s.machine(), device)?)
    }

    fn nvmlDeviceGetPciInfoExt(device: Handle, info: Out<PciExt>) on device, |s| {
        if info.cast::<u32>().get()? != version::<PciExt>(1) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        let Pci { domain, bus, device, pci_device_id, pci_subsystem_id, bus_id, .. } =
            pci(s.machine(), device)?;
        // Class 3, subclass 2: a 3D controller.
        let (version, base_class, sub_class) = (version::<PciExt>(1), 3, 2);
        info.set(PciExt {
            version, domain, bus, device, pci_device_id, pci_subsystem_id, base_class, sub_class, bus_id,
        })
    }

    fn nvmlDeviceGetBrand(device: Handle, brand: Out<u32>) on device, |s| {
        let gpu = device.device(s.machine())?.gpu;
        let of_model = gpu.model().map(|it| it.data().brand);
        brand.set(gpu.brand.or(of_model).ok_or(Code::UNKNOWN)?)
    }

    fn nvmlDeviceGetArchitecture(device: Handle, architecture: Out<u32>) on device, |s| {
        let gpu = device.device(s.machine())?.gpu;
        let of_model = gpu.model().map(|it| it.data().architecture);
        architecture.set(gpu.architecture.or(of_model).ok_or(Code::UNKNOWN)?)
    }

    fn nvmlDeviceGetCudaComputeCapability(device: Handle, major: Out<i32>, minor: Out<i32>) on device, |s| {
        let model = device.device(s.machine())?.gpu.model().ok_or(Code::UNKNOWN)?;
        let capability = model.data().compute_capability;
        major.set(i32::try_from(capability.0).unwrap_or(0))?;
        minor.set(i32::try_from(capability.1).unwrap_or(0))
    }

    fn nvmlDeviceGetVirtualizationMode(device: Handle, mode: Out<u32>) on device, |s| {
        mode.set(device.device(s.machine())?.gpu.virtualization)
    }

    fn nvmlDeviceGetAddressingMode(device: Handle, mode: Out<AddressingMode>) on device, |s| {
        if mode.cast::<u32>().get()? != version::<AddressingMode>(1) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        device.physical(s.machine())?;
        mode.set(AddressingMode { version: version::<AddressingMode>(1), value: 0 })
    }

    fn nvmlDeviceGetPersistenceMode(device: Handle, mode: Out<u32>) on device, |s| {
        device.physical(s.machine())?;
        mode.set(1)
    }

    fn nvmlDeviceGetComputeMode(device: Handle, mode: Out<u32>) on device, |s| {
        mode.set(device.device(s.machine())?.gpu.compute_mode)
    }

    fn nvmlDeviceSetComputeMode(device: Handle, mode: u32) on device, |s| {
        if s.config().unprivileged {
            return Err(Code::NO_PERMISSION);
        }
        let found = device.device(s.machine())?;
        // In MIG mode the compute mode belongs to the MIG device, and there it is not kept by this simulator.
        if found.mig.is_none() && found.gpu.mig_current {
            return Err(Code::NOT_SUPPORTED);
        }
        if mode > 3 {
            return Err(Code::INVALID_ARGUMENT);
        }
        let (index, whole) = (found.index, found.mig.is_none());
        if whole {
            s.machine_mut().gpu_mut(index)?.compute_mode = mode;
        }
        Ok(())
    }

    fn nvmlDeviceGetFieldValues(device: Handle, count: i32, values: Out<FieldValue>) on device, |s| {
        let index = device.physical(s.machine())?;
        let gpu = s.machine().gpu(index)?;
        let count = usize::try_from(count).map_err(|_| Code::INVALID_ARGUMENT)?;
        (0..count).try_for_each(|at| values.set_at(at, field(gpu, values.get_at(at)?)))
    }
}
