//! The types of the C interface: handles, pointers to results, and the structures with their version words.
//!
//! Sizes are asserted at the end against those compiled from nvml.h (reference 2.3).

#![allow(unsafe_code, reason = "reading and writing through the caller's pointers is what a C interface is")]

use std::ffi::{CStr, c_char};

use crate::code::{Answer, Code};
use crate::machine::{ComputeInstance, Gpu, GpuInstance, Machine};

/// Any of NVML's opaque pointers. It is a number: kind, GPU index and serial, so that a stale or invented
/// handle is recognised and never followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Handle(u64);

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Gpu = 1,
    MigDevice = 2,
    GpuInstance = 3,
    ComputeInstance = 4,
    EventSet = 5,
    GpmSample = 6,
}

/// Looks like a user-space address, and is none that malloc gives out.
const MAGIC: u64 = 0x5a4 << 36;

/// A device handle resolved: a GPU, or one compute instance of it.
pub(crate) struct Device<'a> {
    pub(crate) index: usize,
    pub(crate) gpu: &'a Gpu,
    pub(crate) mig: Option<(&'a GpuInstance, &'a ComputeInstance)>,
}

impl Handle {
    pub(crate) fn new(kind: Kind, gpu: usize, serial: u32) -> Handle {
        Handle(MAGIC | (kind as u64) << 32 | (gpu as u64 & 0xff) << 24 | u64::from(serial & 0xff_ffff))
    }

    fn is(self, kind: Kind) -> bool {
        self.0 >> 32 == (MAGIC >> 32) | kind as u64
    }

    /// A whole GPU has no serial number: its handle outlives resets.
    fn is_gpu(self) -> bool {
        self.is(Kind::Gpu) && self.serial() == 0
    }

    /// The GPU that the handle belongs to, if it is a handle.
    pub(crate) fn gpu(self) -> Option<usize> {
        let known = (MAGIC >> 36 == self.0 >> 36) && !self.is(Kind::EventSet) && !self.is(Kind::GpmSample);
        known.then_some((self.0 >> 24 & 0xff) as usize)
    }

    /// The serial number in it.
    fn serial(self) -> u32 {
        (self.0 & 0xff_ffff) as u32
    }

    /// The serial number of a handle of that kind.
    pub(crate) fn serial_of(self, kind: Kind) -> Answer<u32> {
        if self.is(kind) { Ok(self.serial()) } else { Err(Code::INVALID_ARGUMENT) }
    }

    fn on_bus(self, machine: &Machine) -> Answer<(usize, &Gpu)> {
        let index = self.gpu().ok_or(Code::INVALID_ARGUMENT)?;
        let gpu = machine.gpu(index)?;
        if gpu.lost { Err(Code::GPU_IS_LOST) } else { Ok((index, gpu)) }
    }

    /// A whole GPU. INVALID_ARGUMENT for a MIG device.
    pub(crate) fn physical(self, machine: &Machine) -> Answer<usize> {
        let (index, _) = self.on_bus(machine)?;
        if self.is_gpu() { Ok(index) } else { Err(Code::INVALID_ARGUMENT) }
    }

    /// A GPU or a MIG device.
    pub(crate) fn device(self, machine: &Machine) -> Answer<Device<'_>> {
        let (index, gpu) = self.on_bus(machine)?;
        if self.is_gpu() {
            return Ok(Device { index, gpu, mig: None });
        }
        if !self.is(Kind::MigDevice) {
            return Err(Code::INVALID_ARGUMENT);
        }
        let mig = find_compute(gpu, self.serial()).ok_or(Code::INVALID_ARGUMENT)?;
        Ok(Device { index, gpu, mig: Some(mig) })
    }

    /// A GPU instance: GPU index and GPU instance.
    pub(crate) fn gpu_instance(self, machine: &Machine) -> Answer<(usize, &GpuInstance)> {
        let (index, gpu) = self.on_bus(machine)?;
        let found = gpu.instances.iter().find(|instance| instance.serial == self.serial());
        found.filter(|_| self.is(Kind::GpuInstance)).map(|found| (index, found)).ok_or(Code::INVALID_ARGUMENT)
    }

    /// A compute instance with what it lies in.
    pub(crate) fn compute_instance(
        self,
        machine: &Machine,
    ) -> Answer<(usize, &GpuInstance, &ComputeInstance)> {
        let (index, gpu) = self.on_bus(machine)?;
        let found = find_compute(gpu, self.serial()).filter(|_| self.is(Kind::ComputeInstance));
        found.map(|(instance, compute)| (index, instance, compute)).ok_or(Code::INVALID_ARGUMENT)
    }
}

fn find_compute(gpu: &Gpu, serial: u32) -> Option<(&GpuInstance, &ComputeInstance)> {
    let all = gpu.instances.iter().flat_map(|gi| gi.compute_instances.iter().map(move |ci| (gi, ci)));
    all.into_iter().find(|(_, ci)| ci.serial == serial)
}

/// A pointer that the caller passes for a result. NULL is INVALID_ARGUMENT. Only the C interface makes one:
/// that it is valid for a `T` (or for the array that the call documents) is the caller's promise, as with the
/// real library.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    /// Whether the caller passed NULL.
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Refuses NULL before anything takes effect.
    pub(crate) fn present(self) -> Answer<()> {
        if self.0.is_null() { Err(Code::INVALID_ARGUMENT) } else { Ok(()) }
    }

    /// Writes the result.
    pub(crate) fn set(self, value: T) -> Answer<()> {
        self.set_at(0, value)
    }

    /// Writes one element of an array.
    pub(crate) fn set_at(self, index: usize, value: T) -> Answer<()> {
        self.present()?;
        // SAFETY: not NULL, and valid for writes by the promise of the C caller (see the type).
        unsafe { self.0.add(index).write_unaligned(value) };
        Ok(())
    }

    /// Reads what the caller has filled in.
    pub(crate) fn get(self) -> Answer<T> {
        self.get_at(0)
    }

    /// What follows one element, as another type.
    pub(crate) fn behind<U>(self) -> Out<U> {
        Out(self.0.wrapping_add(1).cast())
    }

    /// Reads one element of an array.
    pub(crate) fn get_at(self, index: usize) -> Answer<T> {
        self.present()?;
        // SAFETY: not NULL, and valid for reads by the promise of the C caller (see the type).
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    /// The same address as another type, for structures that begin with a head or a version word.
    pub(crate) fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

/// Writes a list into the caller's array of `room` elements, and the number of elements where it belongs.
/// INSUFFICIENT_SIZE, with the number, if there is no room.
pub(crate) fn list<T: Copy>(array: Out<T>, count: Out<u32>, room: Option<u32>, values: &[T]) -> Answer<()> {
    let wanted = u32::try_from(values.len()).unwrap_or(u32::MAX);
    count.set(wanted)?;
    if room.is_some_and(|room| room < wanted) {
        return Err(Code::INSUFFICIENT_SIZE);
    }
    values.iter().enumerate().try_for_each(|(index, value)| array.set_at(index, *value))
}

/// A buffer of the caller for a text.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Text(*mut c_char);

impl Text {
    /// Writes the text with its NUL. INSUFFICIENT_SIZE if it does not fit.
    pub(crate) fn put(self, text: &str, length: u32) -> Answer<()> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        if text.len() >= length as usize {
            return Err(Code::INSUFFICIENT_SIZE);
        }
        // SAFETY: the caller's buffer has `length` bytes, by its promise, and the text with its NUL has no
        // more.
        unsafe {
            self.0.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
            self.0.add(text.len()).write(0);
        }
        Ok(())
    }
}

/// A text that the caller passes.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Chars(*const c_char);

impl Chars {
    /// The text; INVALID_ARGUMENT for NULL and for what is not UTF-8.
    pub(crate) fn get(self) -> Answer<String> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not NULL, and a NUL-terminated string by the promise of the C caller.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(String::from).map_err(|_| Code::INVALID_ARGUMENT)
    }
}

/// The GPU that a call is about, as the call names it.
#[derive(Debug, Default)]
pub(crate) enum Subject {
    /// It is about none.
    #[default]
    None,
    /// By a handle of it, or of something on it.
    Handle(Handle),
    /// By its index.
    Index(u32),
    /// By UUID, PCI address or serial number.
    Name(Chars),
}

impl Subject {
    /// Its index, if there is such a GPU.
    pub(crate) fn gpu(self, machine: &Machine) -> Option<usize> {
        match self {
            Subject::None => None,
            Subject::Handle(handle) => handle.gpu(),
            Subject::Index(index) => Some(index as usize).filter(|index| *index < machine.gpus.len()),
            Subject::Name(name) => {
                let name = name.get().ok()?;
                let pci = pci_numbers(&name);
                machine.gpus.iter().position(|gpu| {
                    let is_at = pci.is_some() && pci_numbers(&gpu.pci) == pci;
                    gpu.uuid == name || gpu.serial == name || is_at
                })
            }
        }
    }
}

impl From<Handle> for Subject {
    fn from(handle: Handle) -> Subject {
        Subject::Handle(handle)
    }
}

impl From<u32> for Subject {
    fn from(index: u32) -> Subject {
        Subject::Index(index)
    }
}

impl From<Chars> for Subject {
    fn from(name: Chars) -> Subject {
        Subject::Name(name)
    }
}

/// The version word of version `version` of a structure.
pub(crate) const fn version<T>(version: u32) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "no structure has 16 MiB")]
    let size = size_of::<T>() as u32;
    size | version << 24
}

/// A fixed array with a text in it, cut if it must be.
pub(crate) fn name<const N: usize>(text: &str) -> [u8; N] {
    let mut array = [0; N];
    let length = text.len().min(N - 1);
    array[..length].copy_from_slice(&text.as_bytes()[..length]);
    array
}

macro_rules! structures {
    ($($name:ident $(: $size:literal)? { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            #[derive(Clone, Copy, Debug)]
            #[repr(C)]
            #[allow(dead_code, reason = "fields that only the C caller reads")]
            pub(crate) struct $name { $(pub(crate) $field: $type),* }
            $(const _: () = assert!(size_of::<$name>() == $size);)?
        )*
    };
}

structures! {
    Placement: 8 { start: u32, size: u32 }
    GiProfileV1: 48 {
        id: u32, p2p: u32, slices: u32, instances: u32, sm: u32, ce: u32, dec: u32, enc: u32, jpeg: u32, ofa:
        u32, memory_mb: u64,
    }
    GiProfileV2: 152 {
        version: u32, id: u32, p2p: u32, slices: u32, instances: u32, sm: u32, ce: u32, dec: u32, enc: u32,
        jpeg: u32, ofa: u32, memory_mb: u64, name: [u8; 96],
    }
    GiProfileV3: 152 {
        version: u32, id: u32, slices: u32, instances: u32, sm: u32, ce: u32, dec: u32, enc: u32, jpeg: u32,
        ofa: u32, memory_mb: u64, name: [u8; 96], capabilities: u32,
    }
    GiInfo: 24 { device: Handle, id: u32, profile_id: u32, placement: Placement }
    CiProfileV1: 36 {
        id: u32, slices: u32, instances: u32, sm: u32, ce: u32, dec: u32, enc: u32, jpeg: u32, ofa: u32,
    }
    CiProfileV2: 136 {
        version: u32, id: u32, slices: u32, instances: u32, sm: u32, ce: u32, dec: u32, enc: u32, jpeg: u32,
        ofa: u32, name: [u8; 96],
    }
    CiProfileV3: 140 {
        version: u32, id: u32, slices: u32, instances: u32, sm: u32, ce: u32, dec: u32, enc: u32, jpeg: u32,
        ofa: u32, name: [u8; 96], capabilities: u32,
    }
    CiInfo: 32 { device: Handle, gpu_instance: Handle, id: u32, profile_id: u32, placement: Placement }
    CiInfoV1: 24 { device: Handle, gpu_instance: Handle, id: u32, profile_id: u32 }
    EventData: 32 { device: Handle, kind: u64, data: u64, gpu_instance: u32, compute_instance: u32 }
    EventDataV1: 24 { device: Handle, kind: u64, data: u64 }
    Attributes: 40 {
        sm: u32, ce: u32, dec: u32, enc: u32, jpeg: u32, ofa: u32, gi_slices: u32, ci_slices: u32, memory_mb:
        u64,
    }
    Memory: 24 { total: u64, free: u64, used: u64 }
    MemoryV2: 40 { version: u32, total: u64, reserved: u64, free: u64, used: u64 }
    Pci: 68 {
        bus_id_legacy: [u8; 16], domain: u32, bus: u32, device: u32, pci_device_id: u32, pci_subsystem_id:
        u32, bus_id: [u8; 32],
    }
    PciExt: 64 {
        version: u32, domain: u32, bus: u32, device: u32, pci_device_id: u32, pci_subsystem_id: u32,
        base_class: u32, sub_class: u32, bus_id: [u8; 32],
    }
    ProcessInfo: 24 { pid: u32, memory: u64, gpu_instance: u32, compute_instance: u32 }
    ProcessInfoV1: 16 { pid: u32, memory: u64 }
    Utilization: 8 { gpu: u32, memory: u32 }
    Bar1: 24 { total: u64, free: u64, used: u64 }
    FieldValue: 40 {
        field: u32, scope: u32, timestamp: i64, latency_us: i64, kind: u32, code: Code, value: u64,
    }
    UuidV1: 52 { version: u32, kind: u32, value: [u8; 41] }
    Branch: 84 { version: u32, branch: [u8; 80] }
    GpmSupport: 8 { version: u32, supported: u32 }
    GpmHead: 24 { version: u32, count: u32, first: Handle, second: Handle }
    GpmMetric: 40 { metric: u32, code: Code, value: f64, texts: [usize; 3] }
    AddressingMode: 8 { version: u32, value: u32 }
}

/// Domain, bus and device of `[domain:]bus:device.function`, all hexadecimal.
pub(super) fn pci_numbers(text: &str) -> Option<(u32, u32, u32)> {
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let mut parts = text.rsplit(':');
    let device = hex(parts.next()?.split('.').next()?)?;
    let bus = hex(parts.next()?)?;
    Some((parts.next().map_or(Some(0), hex)?, bus, device))
}
