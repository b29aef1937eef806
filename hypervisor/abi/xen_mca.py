"""Machine checks (arch-x86/xen-mca.h): errors of the hardware, as dom0 fetches them from Xen."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union
from hypervisor.abi.xen import VIRQ_ARCH_0, __HYPERVISOR_arch_0, xenctl_bitmap

# arch-x86/xen-mca.h: number of the hypercall, version of its interface.
__HYPERVISOR_mca = __HYPERVISOR_arch_0
XEN_MCA_INTERFACE_VERSION = 0x01ECC003

# Flags of a fetch, and what comes back in them.
XEN_MC_NONURGENT = 0x0001
XEN_MC_URGENT = 0x0002
XEN_MC_ACK = 0x0004
XEN_MC_OK = 0x0
XEN_MC_FETCHFAILED = 0x1
XEN_MC_NODATA = 0x2
XEN_MC_NOMATCH = 0x4
XEN_MC_CANNOTHANDLE = 0x8
XEN_MC_NOTDELIVERED = 0x10
XEN_MC_VCPUID_INVALID = 0xFFFF

# How dom0 hears of it.
VIRQ_MCA = VIRQ_ARCH_0

# Kinds of entries; each begins with its kind and size.
MC_TYPE_GLOBAL = 0
MC_TYPE_BANK = 1
MC_TYPE_EXTENDED = 2
MC_TYPE_RECOVERY = 3

mcinfo_common = Layout(
    "mcinfo_common",
    ("uint16_t", "type"),
    ("uint16_t", "size"),
)


# The processor as a whole.
MC_FLAG_CORRECTABLE = 1 << 0
MC_FLAG_UNCORRECTABLE = 1 << 1
MC_FLAG_RECOVERABLE = 1 << 2
MC_FLAG_POLLED = 1 << 3
MC_FLAG_RESET = 1 << 4
MC_FLAG_CMCI = 1 << 5
MC_FLAG_MCE = 1 << 6

mcinfo_global = Layout(
    "mcinfo_global",
    (mcinfo_common, "common"),
    ("uint16_t", "mc_domid"),
    ("uint16_t", "mc_vcpuid"),
    ("uint32_t", "mc_socketid"),
    ("uint16_t", "mc_coreid"),
    ("uint16_t", "mc_core_threadid"),
    ("uint32_t", "mc_apicid"),
    ("uint32_t", "mc_flags"),
    ("uint64_t", "mc_gstatus"),
)


# A bank of its registers; other registers.
mcinfo_bank = Layout(
    "mcinfo_bank",
    (mcinfo_common, "common"),
    ("uint16_t", "mc_bank"),
    ("uint16_t", "mc_domid"),
    ("uint64_t", "mc_status"),
    ("uint64_t", "mc_addr"),
    ("uint64_t", "mc_misc"),
    ("uint64_t", "mc_ctrl2"),
    ("uint64_t", "mc_tsc"),
)


mcinfo_msr = Layout(
    "mcinfo_msr",
    ("uint64_t", "reg"),
    ("uint64_t", "value"),
)


mcinfo_extended = Layout(
    "mcinfo_extended",
    (mcinfo_common, "common"),
    ("uint32_t", "mc_msrs"),
    (mcinfo_msr, "mc_msr", 32),
)


# What Xen has done about it.
REC_ACTION_RECOVERED = 0x1 << 0
REC_ACTION_NONE = 0x1 << 1
REC_ACTION_NEED_RESET = 0x1 << 2
MC_ACTION_PAGE_OFFLINE = 0x1 << 0
MC_ACTION_CPU_OFFLINE = 0x1 << 1
MC_ACTION_CACHE_SHRINK = 0x1 << 2

page_offline_action = Layout(
    "page_offline_action",
    ("uint64_t", "mfn"),
    ("uint64_t", "status"),
)


cpu_offline_action = Layout(
    "cpu_offline_action",
    ("uint32_t", "mc_socketid"),
    ("uint16_t", "mc_coreid"),
    ("uint16_t", "mc_core_threadid"),
)

MAX_UNION_SIZE = 16

mcinfo_recovery = Layout(
    "mcinfo_recovery",
    (mcinfo_common, "common"),
    ("uint16_t", "mc_bank"),
    ("uint8_t", "action_flags"),
    ("uint8_t", "action_types"),
    (
        Union(
            "action_info",
            (page_offline_action, "page_retire"),
            (cpu_offline_action, "cpu_offline"),
            ("uint8_t", "pad", MAX_UNION_SIZE),
        ),
        "action_info",
    ),
)


# All that belongs to one machine check.
MCINFO_HYPERCALLSIZE = 1024
MCINFO_MAXSIZE = 768
MCINFO_FLAGS_UNCOMPLETE = 0x1

mc_info = Layout(
    "mc_info",
    ("uint32_t", "mi_nentries"),
    ("uint32_t", "flags"),
    ("uint64_t", "mi_data", (MCINFO_MAXSIZE - 1) // 8),
)


# A processor.
__MC_MSR_ARRAYSIZE = 8
MC_NCAPS = 7
MC_CAPS_STD_EDX = 0
MC_CAPS_AMD_EDX = 1
MC_CAPS_TM = 2
MC_CAPS_LINUX = 3
MC_CAPS_STD_ECX = 4
MC_CAPS_VIA = 5
MC_CAPS_AMD_ECX = 6

mcinfo_logical_cpu = Layout(
    "mcinfo_logical_cpu",
    ("uint32_t", "mc_cpunr"),
    ("uint32_t", "mc_chipid"),
    ("uint16_t", "mc_coreid"),
    ("uint16_t", "mc_threadid"),
    ("uint32_t", "mc_apicid"),
    ("uint32_t", "mc_clusterid"),
    ("uint32_t", "mc_ncores"),
    ("uint32_t", "mc_ncores_active"),
    ("uint32_t", "mc_nthreads"),
    ("int32_t", "mc_cpuid_level"),
    ("uint32_t", "mc_family"),
    ("uint32_t", "mc_vendor"),
    ("uint32_t", "mc_model"),
    ("uint32_t", "mc_step"),
    ("char", "mc_vendorid", 16),
    ("char", "mc_brandid", 64),
    ("uint32_t", "mc_cpu_caps", MC_NCAPS),
    ("uint32_t", "mc_cache_size"),
    ("uint32_t", "mc_cache_alignment"),
    ("int32_t", "mc_nmsrvals"),
    (mcinfo_msr, "mc_msrvalues", __MC_MSR_ARRAYSIZE),
)


# Operations, each with its argument.
XEN_MC_fetch = 1

xen_mc_fetch = Layout(
    "xen_mc_fetch",
    ("uint32_t", "flags"),
    ("uint32_t", "_pad0"),
    ("uint64_t", "fetch_id"),
    ("XEN_GUEST_HANDLE(mc_info_t)", "data"),
)

XEN_MC_notifydomain = 2

xen_mc_notifydomain = Layout(
    "xen_mc_notifydomain",
    ("uint16_t", "mc_domid"),
    ("uint16_t", "mc_vcpuid"),
    ("uint32_t", "flags"),
)

XEN_MC_physcpuinfo = 3

xen_mc_physcpuinfo = Layout(
    "xen_mc_physcpuinfo",
    ("uint32_t", "ncpus"),
    ("uint32_t", "_pad0"),
    ("XEN_GUEST_HANDLE(xen_mc_logical_cpu_t)", "info"),
)

XEN_MC_msrinject = 4
MC_MSRINJ_MAXMSRS = 8

xen_mc_msrinject = Layout(
    "xen_mc_msrinject",
    ("uint32_t", "mcinj_cpunr"),
    ("uint32_t", "mcinj_flags"),
    ("uint32_t", "mcinj_count"),
    ("domid_t", "mcinj_domid"),
    ("uint16_t", "_pad0"),
    (mcinfo_msr, "mcinj_msr", MC_MSRINJ_MAXMSRS),
)

MC_MSRINJ_F_INTERPOSE = 0x1
MC_MSRINJ_F_GPADDR = 0x2
XEN_MC_mceinject = 5

xen_mc_mceinject = Layout(
    "xen_mc_mceinject",
    ("unsigned int", "mceinj_cpunr"),
)

XEN_MC_inject_v2 = 6
XEN_MC_INJECT_TYPE_MASK = 0x7
XEN_MC_INJECT_TYPE_MCE = 0x0
XEN_MC_INJECT_TYPE_CMCI = 0x1
XEN_MC_INJECT_TYPE_LMCE = 0x2
XEN_MC_INJECT_CPU_BROADCAST = 0x8

xen_mc_inject_v2 = Layout(
    "xen_mc_inject_v2",
    ("uint32_t", "flags"),
    (xenctl_bitmap, "cpumap"),
)


# The argument of the hypercall.
xen_mc = Layout(
    "xen_mc",
    ("uint32_t", "cmd"),
    ("uint32_t", "interface_version"),
    (
        Union(
            "u",
            (xen_mc_fetch, "mc_fetch"),
            (xen_mc_notifydomain, "mc_notifydomain"),
            (xen_mc_physcpuinfo, "mc_physcpuinfo"),
            (xen_mc_msrinject, "mc_msrinject"),
            (xen_mc_mceinject, "mc_mceinject"),
            (xen_mc_inject_v2, "mc_inject_v2"),
        ),
        "u",
    ),
)


NAMES = names(globals(), r"XEN_MC_(?:inject_v2|[a-z]+)")
"""Operations by number."""
