"""Performance counters (pmu.h, arch-x86/pmu.h): a virtual PMU for guests, with samples in a shared page."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union

# arch-x86/pmu.h: the counters of AMD and Intel processors, register values at offsets in the page.
xen_pmu_amd_ctxt = Layout(
    "xen_pmu_amd_ctxt",
    ("uint32_t", "counters"),
    ("uint32_t", "ctrls"),
    ("uint64_t", "regs", 0),
)

xen_pmu_cntr_pair = Layout(
    "xen_pmu_cntr_pair",
    ("uint64_t", "counter"),
    ("uint64_t", "control"),
)

xen_pmu_intel_ctxt = Layout(
    "xen_pmu_intel_ctxt",
    ("uint32_t", "fixed_counters"),
    ("uint32_t", "arch_counters"),
    ("uint64_t", "global_ctrl"),
    ("uint64_t", "global_ovf_ctrl"),
    ("uint64_t", "global_status"),
    ("uint64_t", "fixed_ctrl"),
    ("uint64_t", "ds_area"),
    ("uint64_t", "pebs_enable"),
    ("uint64_t", "debugctl"),
    ("uint64_t", "regs", 0),
)

# The interrupted code, and flags that tell what it was.
xen_pmu_regs = Layout(
    "xen_pmu_regs",
    ("uint64_t", "ip"),
    ("uint64_t", "sp"),
    ("uint64_t", "flags"),
    ("uint16_t", "cs"),
    ("uint16_t", "ss"),
    ("uint8_t", "cpl"),
    ("uint8_t", "pad", 3),
)

PMU_CACHED = 1 << 0
PMU_SAMPLE_USER = 1 << 1
PMU_SAMPLE_REAL = 1 << 2
PMU_SAMPLE_PV = 1 << 3

XENPMU_REGS_PAD_SZ = 64
XENPMU_CTXT_PAD_SZ = 128

xen_pmu_arch = Layout(
    "xen_pmu_arch",
    (
        Union(
            "r",
            (xen_pmu_regs, "regs"),
            ("uint8_t", "pad", XENPMU_REGS_PAD_SZ),
        ),
        "r",
    ),
    ("uint64_t", "pmu_flags"),
    (
        Union(
            "l",
            ("uint32_t", "lapic_lvtpc"),
            ("uint64_t", "pad"),
        ),
        "l",
    ),
    (
        Union(
            "c",
            (xen_pmu_amd_ctxt, "amd"),
            (xen_pmu_intel_ctxt, "intel"),
            ("uint8_t", "pad", XENPMU_CTXT_PAD_SZ),
        ),
        "c",
    ),
)

# pmu.h: version of the interface, operations and their argument.
XENPMU_VER_MAJ = 0
XENPMU_VER_MIN = 1

XENPMU_mode_get = 0
XENPMU_mode_set = 1
XENPMU_feature_get = 2
XENPMU_feature_set = 3
XENPMU_init = 4
XENPMU_finish = 5
XENPMU_lvtpc_set = 6
XENPMU_flush = 7

xen_pmu_params = Layout(
    "xen_pmu_params",
    (
        Layout(
            "version",
            ("uint32_t", "maj"),
            ("uint32_t", "min"),
        ),
        "version",
    ),
    ("uint64_t", "val"),
    ("uint32_t", "vcpu"),
    ("uint32_t", "pad"),
)

# Modes and features.
XENPMU_MODE_OFF = 0
XENPMU_MODE_SELF = 1 << 0
XENPMU_MODE_HV = 1 << 1
XENPMU_MODE_ALL = 1 << 2
XENPMU_FEATURE_INTEL_BTS = 1 << 0
XENPMU_FEATURE_IPC_ONLY = 1 << 1
XENPMU_FEATURE_ARCH_ONLY = 1 << 2

# The page shared between Xen and a vCPU.
xen_pmu_data = Layout(
    "xen_pmu_data",
    ("uint32_t", "vcpu_id"),
    ("uint32_t", "pcpu_id"),
    ("domid_t", "domain_id"),
    ("uint8_t", "pad", 6),
    (xen_pmu_arch, "pmu"),
)

NAMES = names(globals(), r"XENPMU_[a-z]\w*")
"""Operations by number."""
