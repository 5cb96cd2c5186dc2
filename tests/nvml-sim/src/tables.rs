//! The tables: one entry per GPU model, one row per profile. Adding a model is adding an entry to [`MODELS`].
//!
//! Every row names its evidence, and lists its columns that are inferred although the rest was read
//! somewhere. The sources are those of `reference/mig-nvml-cdi.md`, section 1.4. `column` order of [`row`] is
//! that of `nvidia-smi mig -lgip`, line by line: SM, CE, DEC, ENC, JPEG, OFA.

use crate::model::Evidence::{self, Inferred, Verified};
use crate::model::{ModelData, Row};

/// `NVML_DEVICE_ARCH_*`.
const TURING: u32 = 6;
const AMPERE: u32 = 7;
const ADA: u32 = 8;
pub(crate) const HOPPER: u32 = 9;
const BLACKWELL: u32 = 10;

/// `NVML_BRAND_*`.
const TESLA: u32 = 2;
const NVIDIA_RTX: u32 = 12;
const NVIDIA: u32 = 14;

/// Where instances of one size may lie.
pub(crate) struct Spots {
    pub(crate) size: u32,
    pub(crate) starts: &'static [u32],
    pub(crate) default_order: &'static [u32],
}

const NOWHERE: Spots = Spots { size: 0, starts: &[], default_order: &[] };

/// Placements by memory units and profile index (reference 1.3, verified for A100, H100, H200, B200, A30 and
/// RTX PRO 6000). The default order is verified for 1g, 2g and 3g of 8-unit GPUs (reference 7) and inferred
/// elsewhere: NVML fills the upper half first.
pub(crate) fn spots(memory_units: u32, index: u32) -> Spots {
    match (memory_units, index) {
        (8, 0 | 7) => at(1, &[0, 1, 2, 3, 4, 5, 6], &[6, 4, 5, 0, 1, 2, 3]),
        (8, 9) => at(2, &[0, 2, 4, 6], &[6, 4, 0, 2]),
        (8, 1) => at(2, &[0, 2, 4], &[4, 0, 2]),
        (8, 2) => at(4, &[0, 4], &[4, 0]),
        (8, 3) => at(4, &[0], &[0]),
        (8, 4) => at(8, &[0], &[0]),
        (4, 0 | 7) => at(1, &[0, 1, 2, 3], &[2, 3, 0, 1]),
        (4, 1 | 8) => at(2, &[0, 2], &[2, 0]),
        (4, 3) => at(4, &[0], &[0]),
        (12, 0 | 7 | 10 | 13 | 15) => at(3, &[0, 3, 6, 9], &[6, 9, 0, 3]),
        (12, 1 | 8 | 11 | 14 | 16) => at(6, &[0, 6], &[6, 0]),
        (12, 3 | 12) => at(12, &[0], &[0]),
        _ => NOWHERE,
    }
}

const fn at(size: u32, starts: &'static [u32], default_order: &'static [u32]) -> Spots {
    Spots { size, starts, default_order }
}

/// One row. `counts` is SM, CE, DEC, ENC, JPEG, OFA.
const fn row(
    index: u32,
    id: u32,
    name: &'static str,
    counts: [u32; 6],
    memory_mib: u64,
    max: u32,
    evidence: Evidence,
) -> Row {
    let [sm, ce, dec, enc, jpeg, ofa] = counts;
    Row { index, id, name, sm, ce, dec, enc, jpeg, ofa, memory_mib, max, evidence, inferred: &[] }
}

/// The same row, with some of its columns marked as inferred.
const fn but(row: Row, inferred: &'static [&'static str]) -> Row {
    Row { inferred, ..row }
}

const LGIP_A30: Evidence = Verified("nvidia-smi mig -lgip of an A30");
const LGIP_A100_40: Evidence = Verified("MIG user guide, lgip of A100-SXM4-40GB");
const LGIP_A100_80: Evidence = Verified("nvidia-smi mig -lgip of an A100-80GB");
const LGIP_H100: Evidence = Verified("nvidia-smi mig -lgip of an H100 SXM5 80GB; Karpenter p5");
const LGIP_H100_PCIE: Evidence = Verified("Scaleway's lgip of an H100 PCIe, driver R525");
const LGIP_H100_94: Evidence = Verified("nvidia-smi mig -lgip of an H100 NVL");
const LGIP_H100_96: Evidence = Verified("nvidia-smi mig -lgip of a GH200/H100 96GB");
const LGIP_H200: Evidence = Verified("mig-parted #120");
const LGIP_B200: Evidence = Verified("Karpenter p6-b200; mig-parted #187, #166");
const LGIP_GB200: Evidence = Verified("gpu-operator #1303, mig-parted #227");
const LGIP_RTX: Evidence = Verified("bottlerocket-kernel-kit #300, lgip of RTX PRO 6000");
const AS_B300_NAMES: Evidence =
    Inferred("names from mig-parted's config-default.yaml, numbers as on the B200, memory from the name");
const AS_GB200: Evidence = Inferred("name from mig-parted, engines as on the B200, memory from the name");
/// The whole GPU: PCI id, compute capability and architecture are verified (reference 1.6).
const PCI: Evidence = Verified("mig-parted config-default.yaml and pci.ids");
const NUMBERS_OF_PCIE: &[&str] = &["ce", "dec", "enc", "jpeg", "ofa"];

/// Every model, in the order of the generations.
pub(crate) static MODELS: &[ModelData] = &[
    ModelData {
        name: "T4",
        aliases: &[],
        product_name: "Tesla T4",
        brand: TESLA,
        architecture: TURING,
        compute_capability: (7, 5),
        pci_device: 0x1eb8,
        memory_mib: 15360,
        sm: 40,
        memory_units: 0,
        evidence: PCI,
        inferred: &[],
        rows: &[],
    },
    ModelData {
        name: "A30-24GB",
        aliases: &["A30", "A30-24"],
        product_name: "NVIDIA A30",
        brand: NVIDIA,
        architecture: AMPERE,
        compute_capability: (8, 0),
        pci_device: 0x20b7,
        memory_mib: 24576,
        sm: 56,
        memory_units: 4,
        evidence: PCI,
        inferred: &[],
        rows: &[
            row(0, 14, "1g.6gb", [14, 1, 1, 0, 0, 0], 5952, 4, LGIP_A30),
            row(7, 21, "1g.6gb+me", [14, 1, 1, 0, 1, 1], 5952, 1, LGIP_A30),
            row(1, 5, "2g.12gb", [28, 2, 2, 0, 0, 0], 11968, 2, LGIP_A30),
            row(8, 6, "2g.12gb+me", [28, 2, 2, 0, 1, 1], 11968, 1, LGIP_A30),
            row(3, 0, "4g.24gb", [56, 4, 4, 0, 1, 1], 24000, 1, LGIP_A30),
        ],
    },
    ModelData {
        name: "A100-40GB",
        aliases: &["A100-40", "A100-SXM4-40GB"],
        product_name: "NVIDIA A100-SXM4-40GB",
        brand: NVIDIA,
        architecture: AMPERE,
        compute_capability: (8, 0),
        pci_device: 0x20b0,
        memory_mib: 40960,
        sm: 108,
        memory_units: 8,
        evidence: PCI,
        inferred: &[],
        rows: &[
            row(0, 19, "1g.5gb", [14, 1, 0, 0, 0, 0], 4864, 7, LGIP_A100_40),
            row(7, 20, "1g.5gb+me", [14, 1, 1, 0, 1, 1], 4864, 1, LGIP_A100_40),
            row(9, 15, "1g.10gb", [14, 1, 1, 0, 0, 0], 9856, 4, LGIP_A100_40),
            row(1, 14, "2g.10gb", [28, 2, 1, 0, 0, 0], 9856, 3, LGIP_A100_40),
            row(2, 9, "3g.20gb", [42, 3, 2, 0, 0, 0], 19968, 2, LGIP_A100_40),
            row(3, 5, "4g.20gb", [56, 4, 2, 0, 0, 0], 19968, 1, LGIP_A100_40),
            row(4, 0, "7g.40gb", [98, 7, 5, 0, 1, 1], 40192, 1, LGIP_A100_40),
        ],
    },
    ModelData {
        name: "A100-80GB",
        aliases: &["A100-80", "A100-SXM4-80GB"],
        product_name: "NVIDIA A100-SXM4-80GB",
        brand: NVIDIA,
        architecture: AMPERE,
        compute_capability: (8, 0),
        pci_device: 0x20b2,
        memory_mib: 81920,
        sm: 108,
        memory_units: 8,
        evidence: PCI,
        inferred: &[],
        rows: &[
            row(0, 19, "1g.10gb", [14, 1, 0, 0, 0, 0], 9728, 7, LGIP_A100_80),
            row(7, 20, "1g.10gb+me", [14, 1, 1, 0, 1, 1], 9728, 1, LGIP_A100_80),
            row(9, 15, "1g.20gb", [14, 1, 1, 0, 0, 0], 19968, 4, LGIP_A100_80),
            row(1, 14, "2g.20gb", [28, 2, 1, 0, 0, 0], 19968, 3, LGIP_A100_80),
            row(2, 9, "3g.40gb", [42, 3, 2, 0, 0, 0], 40192, 2, LGIP_A100_80),
            row(3, 5, "4g.40gb", [56, 4, 2, 0, 0, 0], 40192, 1, LGIP_A100_80),
            row(4, 0, "7g.80gb", [98, 7, 5, 0, 1, 1], 80896, 1, LGIP_A100_80),
        ],
    },
    ModelData {
        name: "L4",
        aliases: &[],
        product_name: "NVIDIA L4",
        brand: NVIDIA,
        architecture: ADA,
        compute_capability: (8, 9),
        pci_device: 0x27b8,
        memory_mib: 23034,
        sm: 58,
        memory_units: 0,
        evidence: PCI,
        inferred: &[],
        rows: &[],
    },
    ModelData {
        name: "L40S",
        aliases: &[],
        product_name: "NVIDIA L40S",
        brand: NVIDIA,
        architecture: ADA,
        compute_capability: (8, 9),
        pci_device: 0x26b9,
        memory_mib: 46068,
        sm: 142,
        memory_units: 0,
        evidence: PCI,
        inferred: &[],
        rows: &[],
    },
    ModelData {
        name: "H100-80GB",
        aliases: &["H100-80", "H100-SXM-80GB", "H100-SXM5-80GB"],
        product_name: "NVIDIA H100 80GB HBM3",
        brand: NVIDIA,
        architecture: HOPPER,
        compute_capability: (9, 0),
        pci_device: 0x2330,
        memory_mib: 81559,
        sm: 132,
        memory_units: 8,
        evidence: PCI,
        inferred: &[],
        rows: &[
            row(0, 19, "1g.10gb", [16, 1, 1, 0, 1, 0], 9984, 7, LGIP_H100),
            row(7, 20, "1g.10gb+me", [16, 1, 1, 0, 1, 1], 9984, 1, LGIP_H100),
            row(9, 15, "1g.20gb", [26, 1, 1, 0, 1, 0], 20096, 4, LGIP_H100),
            row(1, 14, "2g.20gb", [32, 2, 2, 0, 2, 0], 20096, 3, LGIP_H100),
            row(2, 9, "3g.40gb", [60, 3, 3, 0, 3, 0], 40448, 2, LGIP_H100),
            row(3, 5, "4g.40gb", [64, 4, 4, 0, 4, 0], 40448, 1, LGIP_H100),
            row(4, 0, "7g.80gb", [132, 8, 7, 0, 7, 1], 81152, 1, LGIP_H100),
        ],
    },
    ModelData {
        name: "H100-PCIE-80GB",
        aliases: &["H100-PCIE"],
        product_name: "NVIDIA H100 PCIe",
        brand: NVIDIA,
        architecture: HOPPER,
        compute_capability: (9, 0),
        pci_device: 0x2331,
        memory_mib: 81559,
        sm: 114,
        memory_units: 8,
        evidence: PCI,
        inferred: &[],
        rows: &[
            but(row(0, 19, "1g.10gb", [14, 1, 1, 0, 1, 0], 9856, 7, LGIP_H100_PCIE), NUMBERS_OF_PCIE),
            but(row(7, 20, "1g.10gb+me", [14, 1, 1, 0, 1, 1], 9856, 1, LGIP_H100_PCIE), NUMBERS_OF_PCIE),
            but(row(9, 15, "1g.20gb", [14, 1, 1, 0, 1, 0], 19968, 4, LGIP_H100_PCIE), NUMBERS_OF_PCIE),
            but(row(1, 14, "2g.20gb", [30, 2, 2, 0, 2, 0], 19968, 3, LGIP_H100_PCIE), NUMBERS_OF_PCIE),
            but(row(2, 9, "3g.40gb", [46, 3, 3, 0, 3, 0], 40192, 2, LGIP_H100_PCIE), NUMBERS_OF_PCIE),
            but(row(3, 5, "4g.40gb", [62, 4, 4, 0, 4, 0], 40192, 1, LGIP_H100_PCIE), NUMBERS_OF_PCIE),
            but(row(4, 0, "7g.80gb", [114, 8, 7, 0, 7, 1], 80896, 1, LGIP_H100_PCIE), NUMBERS_OF_PCIE),
        ],
    },
    ModelData {
        name: "H100-94GB",
        aliases: &["H100-94", "H100-NVL"],
        product_name: "NVIDIA H100 NVL",
        brand: NVIDIA,
        architecture: HOPPER,
        compute_capability: (9, 0),
        pci_device: 0x2321,
        memory_mib: 95830,
        sm: 132,
        memory_units: 8,
        evidence: PCI,
        inferred: &["memory_mib"],
        rows: &[
            row(0, 19, "1g.12gb", [16, 1, 1, 0, 1, 0], 11008, 7, LGIP_H100_94),
            row(7, 20, "1g.12gb+me", [16, 1, 1, 0, 1, 1], 11008, 1, LGIP_H100_94),
            row(9, 15, "1g.24gb", [26, 1, 1, 0, 1, 0], 22144, 4, LGIP_H100_94),
            row(1, 14, "2g.24gb", [32, 2, 2, 0, 2, 0], 22144, 3, LGIP_H100_94),
            row(2, 9, "3g.47gb", [60, 3, 3, 0, 3, 0], 47488, 2, LGIP_H100_94),
            row(3, 5, "4g.47gb", [64, 4, 4, 0, 4, 0], 47488, 1, LGIP_H100_94),
            row(4, 0, "7g.94gb", [132, 8, 7, 0, 7, 1], 95360, 1, LGIP_H100_94),
        ],
    },
    ModelData {
        name: "H100-96GB",
        aliases: &["H100-96"],
        product_name: "NVIDIA H100 96GB HBM3",
        brand: NVIDIA,
        architecture: HOPPER,
        compute_capability: (9, 0),
        pci_device: 0x233d,
        memory_mib: 97871,
        sm: 132,
        memory_units: 8,
        evidence: PCI,
        inferred: &["product_name", "memory_mib"],
        rows: &[
            row(0, 19, "1g.12gb", [16, 1, 1, 0, 1, 0], 11264, 7, LGIP_H100_96),
            row(7, 20, "1g.12gb+me", [16, 1, 1, 0, 1, 1], 11264, 1, LGIP_H100_96),
            row(9, 15, "1g.24gb", [26, 1, 1, 0, 1, 0], 23552, 4, LGIP_H100_96),
            row(1, 14, "2g.24gb", [32, 2, 2, 0, 2, 0], 23552, 3, LGIP_H100_96),
            row(2, 9, "3g.48gb", [60, 3, 3, 0, 3, 0], 47616, 2, LGIP_H100_96),
            row(3, 5, "4g.48gb", [64, 4, 4, 0, 4, 0], 47616, 1, LGIP_H100_96),
            row(4, 0, "7g.96gb", [132, 8, 7, 0, 7, 1], 95232, 1, LGIP_H100_96),
        ],
    },
    ModelData {
        name: "H200-141GB",
        aliases: &["H200", "H200-141"],
        product_name: "NVIDIA H200",
        brand: NVIDIA,
        architecture: HOPPER,
        compute_capability: (9, 0),
        pci_device: 0x2335,
        memory_mib: 143771,
        sm: 132,
        memory_units: 8,
        evidence: PCI,
        inferred: &[],
        rows: &[
            row(0, 19, "1g.18gb", [16, 1, 1, 0, 1, 0], 16384, 7, LGIP_H200),
            row(7, 20, "1g.18gb+me", [16, 1, 1, 0, 1, 1], 16384, 1, LGIP_H200),
            row(9, 15, "1g.35gb", [26, 1, 1, 0, 1, 0], 33024, 4, LGIP_H200),
            row(1, 14, "2g.35gb", [32, 2, 2, 0, 2, 0], 33024, 3, LGIP_H200),
            row(2, 9, "3g.71gb", [60, 3, 3, 0, 3, 0], 71168, 2, LGIP_H200),
            row(3, 5, "4g.71gb", [64, 4, 4, 0, 4, 0], 71168, 1, LGIP_H200),
            row(4, 0, "7g.141gb", [132, 8, 7, 0, 7, 1], 143360, 1, LGIP_H200),
        ],
    },
    ModelData {
        name: "B200-180GB",
        aliases: &["B200", "B200-180"],
        product_name: "NVIDIA B200",
        brand: NVIDIA,
        architecture: BLACKWELL,
        compute_capability: (10, 0),
        pci_device: 0x2901,
        memory_mib: 183359,
        sm: 148,
        memory_units: 8,
        evidence: PCI,
        inferred: &["memory_mib"],
        rows: &[
            row(0, 19, "1g.23gb", [18, 2, 1, 0, 1, 0], 20992, 7, LGIP_B200),
            row(7, 20, "1g.23gb+me", [18, 2, 1, 0, 1, 1], 20992, 1, LGIP_B200),
            row(9, 15, "1g.45gb", [30, 2, 1, 0, 1, 0], 45312, 4, LGIP_B200),
            row(1, 14, "2g.45gb", [36, 4, 2, 0, 2, 0], 45312, 3, LGIP_B200),
            row(2, 9, "3g.90gb", [70, 6, 3, 0, 3, 0], 91136, 2, LGIP_B200),
            row(3, 5, "4g.90gb", [72, 8, 4, 0, 4, 0], 91136, 1, LGIP_B200),
            row(4, 0, "7g.180gb", [148, 16, 7, 0, 7, 1], 182784, 1, LGIP_B200),
        ],
    },
    ModelData {
        name: "GB200-186GB",
        aliases: &["GB200", "GB200-186"],
        product_name: "NVIDIA GB200",
        brand: NVIDIA,
        architecture: BLACKWELL,
        compute_capability: (10, 0),
        pci_device: 0x2941,
        memory_mib: 189471,
        sm: 152,
        memory_units: 8,
        evidence: PCI,
        inferred: &["memory_mib", "sm"],
        rows: &[
            row(0, 19, "1g.23gb", [18, 2, 1, 0, 1, 0], 22528, 7, LGIP_GB200),
            but(row(7, 20, "1g.23gb+me", [18, 2, 1, 0, 1, 1], 22528, 1, LGIP_GB200), &["ofa"]),
            row(9, 15, "1g.47gb", [32, 2, 1, 0, 1, 0], 46592, 4, LGIP_GB200),
            row(1, 14, "2g.47gb", [38, 4, 2, 0, 2, 0], 46592, 3, LGIP_GB200),
            row(2, 9, "3g.93gb", [70, 6, 3, 0, 3, 0], 94464, 2, AS_GB200),
            row(3, 5, "4g.93gb", [76, 8, 4, 0, 4, 0], 94464, 1, AS_GB200),
            row(4, 0, "7g.186gb", [152, 16, 7, 0, 7, 1], 188928, 1, AS_GB200),
        ],
    },
    ModelData {
        name: "B300-269GB",
        aliases: &["B300", "B300-269"],
        product_name: "NVIDIA B300 SXM6 AC",
        brand: NVIDIA,
        architecture: BLACKWELL,
        compute_capability: (10, 3),
        pci_device: 0x3182,
        memory_mib: 275040,
        sm: 148,
        memory_units: 8,
        evidence: PCI,
        inferred: &["product_name", "compute_capability", "memory_mib", "sm"],
        rows: &[
            row(0, 19, "1g.34gb", [18, 2, 1, 0, 1, 0], 33792, 7, AS_B300_NAMES),
            row(7, 20, "1g.34gb+me", [18, 2, 1, 0, 1, 1], 33792, 1, AS_B300_NAMES),
            row(9, 15, "1g.67gb", [30, 2, 1, 0, 1, 0], 68096, 4, AS_B300_NAMES),
            row(1, 14, "2g.67gb", [36, 4, 2, 0, 2, 0], 68096, 3, AS_B300_NAMES),
            row(2, 9, "3g.135gb", [70, 6, 3, 0, 3, 0], 136704, 2, AS_B300_NAMES),
            row(3, 5, "4g.135gb", [72, 8, 4, 0, 4, 0], 136704, 1, AS_B300_NAMES),
            row(4, 0, "7g.269gb", [148, 16, 7, 0, 7, 1], 274432, 1, AS_B300_NAMES),
        ],
    },
    ModelData {
        name: "RTX-PRO-6000-96GB",
        aliases: &["RTX-PRO-6000", "RTX-PRO-6000-96"],
        product_name: "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        brand: NVIDIA_RTX,
        architecture: BLACKWELL,
        compute_capability: (12, 0),
        pci_device: 0x2bb5,
        memory_mib: 97887,
        sm: 188,
        memory_units: 12,
        evidence: PCI,
        inferred: &["brand"],
        rows: &[
            row(0, 14, "1g.24gb", [46, 1, 1, 1, 1, 0], 24192, 4, LGIP_RTX),
            row(7, 21, "1g.24gb+me", [46, 1, 1, 1, 1, 1], 24192, 1, LGIP_RTX),
            row(10, 47, "1g.24gb+gfx", [46, 1, 1, 1, 1, 0], 24192, 4, LGIP_RTX),
            row(15, 65, "1g.24gb+me.all", [46, 1, 4, 4, 4, 1], 24192, 1, LGIP_RTX),
            row(13, 67, "1g.24gb-me", [46, 1, 0, 0, 0, 0], 24192, 4, LGIP_RTX),
            row(1, 5, "2g.48gb", [94, 2, 2, 2, 2, 0], 48512, 2, LGIP_RTX),
            row(11, 35, "2g.48gb+gfx", [94, 2, 2, 2, 2, 0], 48512, 2, LGIP_RTX),
            row(16, 64, "2g.48gb+me.all", [94, 2, 4, 4, 4, 1], 48512, 1, LGIP_RTX),
            row(14, 66, "2g.48gb-me", [94, 2, 0, 0, 0, 0], 48512, 2, LGIP_RTX),
            row(3, 0, "4g.96gb", [188, 4, 4, 4, 4, 1], 97280, 1, LGIP_RTX),
            row(12, 32, "4g.96gb+gfx", [188, 4, 4, 4, 4, 1], 97280, 1, LGIP_RTX),
        ],
    },
];
