"""Control of the host (sysctl.h): physical information, CPU pools, schedulers, tracing, power management.

Built as domctl is: one structure with a command, the interface version and a union with one member per command.
"""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union
from hypervisor.abi.xen import xenctl_bitmap

# sysctl.h: the version that `xen_sysctl.interface_version` must be.
XEN_SYSCTL_INTERFACE_VERSION = 0x00000015

# XEN_SYSCTL_readconsole: Xen's console ring (what `xl dmesg` shows).
xen_sysctl_readconsole = Layout(
    "xen_sysctl_readconsole",
    ("uint8_t", "clear"),
    ("uint8_t", "incremental"),
    ("uint8_t", "pad0"),
    ("uint8_t", "pad1"),
    ("uint32_t", "index"),
    ("XEN_GUEST_HANDLE(char)", "buffer"),
    ("uint32_t", "count"),
)

# XEN_SYSCTL_tbuf_op: trace buffers.
XEN_SYSCTL_TBUFOP_get_info = 0
XEN_SYSCTL_TBUFOP_set_cpu_mask = 1
XEN_SYSCTL_TBUFOP_set_evt_mask = 2
XEN_SYSCTL_TBUFOP_set_size = 3
XEN_SYSCTL_TBUFOP_enable = 4
XEN_SYSCTL_TBUFOP_disable = 5

xen_sysctl_tbuf_op = Layout(
    "xen_sysctl_tbuf_op",
    ("uint32_t", "cmd"),
    (xenctl_bitmap, "cpu_mask"),
    ("uint32_t", "evt_mask"),
    ("uint64_aligned_t", "buffer_mfn"),
    ("uint32_t", "size"),
)

# XEN_SYSCTL_physinfo: processors, memory and capabilities of the host (what `xl info` shows).
_XEN_SYSCTL_PHYSCAP_hvm = 0
XEN_SYSCTL_PHYSCAP_hvm = 1 << _XEN_SYSCTL_PHYSCAP_hvm
_XEN_SYSCTL_PHYSCAP_pv = 1
XEN_SYSCTL_PHYSCAP_pv = 1 << _XEN_SYSCTL_PHYSCAP_pv
_XEN_SYSCTL_PHYSCAP_directio = 2
XEN_SYSCTL_PHYSCAP_directio = 1 << _XEN_SYSCTL_PHYSCAP_directio
_XEN_SYSCTL_PHYSCAP_hap = 3
XEN_SYSCTL_PHYSCAP_hap = 1 << _XEN_SYSCTL_PHYSCAP_hap
_XEN_SYSCTL_PHYSCAP_shadow = 4
XEN_SYSCTL_PHYSCAP_shadow = 1 << _XEN_SYSCTL_PHYSCAP_shadow
_XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share = 5
XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share = 1 << _XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share
XEN_SYSCTL_PHYSCAP_vmtrace = 1 << 6
XEN_SYSCTL_PHYSCAP_vpmu = 1 << 7
XEN_SYSCTL_PHYSCAP_gnttab_v1 = 1 << 8
XEN_SYSCTL_PHYSCAP_gnttab_v2 = 1 << 9
XEN_SYSCTL_PHYSCAP_MAX = XEN_SYSCTL_PHYSCAP_gnttab_v2

xen_sysctl_physinfo = Layout(
    "xen_sysctl_physinfo",
    ("uint32_t", "threads_per_core"),
    ("uint32_t", "cores_per_socket"),
    ("uint32_t", "nr_cpus"),
    ("uint32_t", "max_cpu_id"),
    ("uint32_t", "nr_nodes"),
    ("uint32_t", "max_node_id"),
    ("uint32_t", "cpu_khz"),
    ("uint32_t", "capabilities"),
    ("uint32_t", "arch_capabilities"),
    ("uint32_t", "pad"),
    ("uint64_aligned_t", "total_pages"),
    ("uint64_aligned_t", "free_pages"),
    ("uint64_aligned_t", "scrub_pages"),
    ("uint64_aligned_t", "outstanding_pages"),
    ("uint64_aligned_t", "max_mfn"),
    ("uint32_t", "hw_cap", 8),
)

# XEN_SYSCTL_sched_id: the scheduler.
xen_sysctl_sched_id = Layout("xen_sysctl_sched_id", ("uint32_t", "sched_id"))

# XEN_SYSCTL_perfc_op: performance counters of a debug build.
XEN_SYSCTL_PERFCOP_reset = 1
XEN_SYSCTL_PERFCOP_query = 2

xen_sysctl_perfc_desc = Layout(
    "xen_sysctl_perfc_desc",
    ("char", "name", 80),
    ("uint32_t", "nr_vals"),
)

xen_sysctl_perfc_op = Layout(
    "xen_sysctl_perfc_op",
    ("uint32_t", "cmd"),
    ("uint32_t", "nr_counters"),
    ("uint32_t", "nr_vals"),
    ("XEN_GUEST_HANDLE(xen_sysctl_perfc_desc_t)", "desc"),
    ("XEN_GUEST_HANDLE(xen_sysctl_perfc_val_t)", "val"),
)

# XEN_SYSCTL_getdomaininfolist: what XEN_DOMCTL_getdomaininfo tells, for many domains.
xen_sysctl_getdomaininfolist = Layout(
    "xen_sysctl_getdomaininfolist",
    ("domid_t", "first_domain"),
    ("uint32_t", "max_domains"),
    ("XEN_GUEST_HANDLE(xen_domctl_getdomaininfo_t)", "buffer"),
    ("uint32_t", "num_domains"),
)

# XEN_SYSCTL_debug_keys: as if typed on Xen's console.
xen_sysctl_debug_keys = Layout(
    "xen_sysctl_debug_keys",
    ("XEN_GUEST_HANDLE(const_char)", "keys"),
    ("uint32_t", "nr_keys"),
)

# XEN_SYSCTL_getcpuinfo: idle time of each pCPU.
xen_sysctl_cpuinfo = Layout("xen_sysctl_cpuinfo", ("uint64_aligned_t", "idletime"))

xen_sysctl_getcpuinfo = Layout(
    "xen_sysctl_getcpuinfo",
    ("uint32_t", "max_cpus"),
    ("XEN_GUEST_HANDLE(xen_sysctl_cpuinfo_t)", "info"),
    ("uint32_t", "nr_cpus"),
)

# XEN_SYSCTL_availheap: free memory between two address widths.
xen_sysctl_availheap = Layout(
    "xen_sysctl_availheap",
    ("uint32_t", "min_bitwidth"),
    ("uint32_t", "max_bitwidth"),
    ("int32_t", "node"),
    ("uint64_aligned_t", "avail_bytes"),
)

# XEN_SYSCTL_get_pmstat: statistics of frequency and idle states.
pm_px_val = Layout(
    "pm_px_val",
    ("uint64_aligned_t", "freq"),
    ("uint64_aligned_t", "residency"),
    ("uint64_aligned_t", "count"),
)

pm_px_stat = Layout(
    "pm_px_stat",
    ("uint8_t", "total"),
    ("uint8_t", "usable"),
    ("uint8_t", "last"),
    ("uint8_t", "cur"),
    ("XEN_GUEST_HANDLE(uint64)", "trans_pt"),
    ("XEN_GUEST_HANDLE(pm_px_val_t)", "pt"),
)

pm_cx_stat = Layout(
    "pm_cx_stat",
    ("uint32_t", "nr"),
    ("uint32_t", "last"),
    ("uint64_aligned_t", "idle_time"),
    ("XEN_GUEST_HANDLE(uint64)", "triggers"),
    ("XEN_GUEST_HANDLE(uint64)", "residencies"),
    ("uint32_t", "nr_pc"),
    ("uint32_t", "nr_cc"),
    ("XEN_GUEST_HANDLE(uint64)", "pc"),
    ("XEN_GUEST_HANDLE(uint64)", "cc"),
)

PMSTAT_CATEGORY_MASK = 0xF0
PMSTAT_PX = 0x10
PMSTAT_CX = 0x20
PMSTAT_get_max_px = PMSTAT_PX | 0x1
PMSTAT_get_pxstat = PMSTAT_PX | 0x2
PMSTAT_reset_pxstat = PMSTAT_PX | 0x3
PMSTAT_get_max_cx = PMSTAT_CX | 0x1
PMSTAT_get_cxstat = PMSTAT_CX | 0x2
PMSTAT_reset_cxstat = PMSTAT_CX | 0x3

xen_sysctl_get_pmstat = Layout(
    "xen_sysctl_get_pmstat",
    ("uint32_t", "type"),
    ("uint32_t", "cpuid"),
    (
        Union(
            "u",
            (pm_px_stat, "getpx"),
            (pm_cx_stat, "getcx"),
        ),
        "u",
    ),
)

# XEN_SYSCTL_cpu_hotplug: take pCPUs on and off line.
XEN_SYSCTL_CPU_HOTPLUG_ONLINE = 0
XEN_SYSCTL_CPU_HOTPLUG_OFFLINE = 1
XEN_SYSCTL_CPU_HOTPLUG_SMT_ENABLE = 2
XEN_SYSCTL_CPU_HOTPLUG_SMT_DISABLE = 3

xen_sysctl_cpu_hotplug = Layout(
    "xen_sysctl_cpu_hotplug",
    ("uint32_t", "cpu"),
    ("uint32_t", "op"),
)

# XEN_SYSCTL_pm_op: frequency governors and their parameters.
xen_userspace = Layout("xen_userspace", ("uint32_t", "scaling_setspeed"))

xen_ondemand = Layout(
    "xen_ondemand",
    ("uint32_t", "sampling_rate_max"),
    ("uint32_t", "sampling_rate_min"),
    ("uint32_t", "sampling_rate"),
    ("uint32_t", "up_threshold"),
)

CPUFREQ_NAME_LEN = 16

xen_get_cpufreq_para = Layout(
    "xen_get_cpufreq_para",
    ("uint32_t", "cpu_num"),
    ("uint32_t", "freq_num"),
    ("uint32_t", "gov_num"),
    ("XEN_GUEST_HANDLE(uint32)", "affected_cpus"),
    ("XEN_GUEST_HANDLE(uint32)", "scaling_available_frequencies"),
    ("XEN_GUEST_HANDLE(char)", "scaling_available_governors"),
    ("char", "scaling_driver", 16),
    ("uint32_t", "cpuinfo_cur_freq"),
    ("uint32_t", "cpuinfo_max_freq"),
    ("uint32_t", "cpuinfo_min_freq"),
    ("uint32_t", "scaling_cur_freq"),
    ("char", "scaling_governor", 16),
    ("uint32_t", "scaling_max_freq"),
    ("uint32_t", "scaling_min_freq"),
    (
        Union(
            "u",
            (xen_userspace, "userspace"),
            (xen_ondemand, "ondemand"),
        ),
        "u",
    ),
    ("int32_t", "turbo_enabled"),
)

xen_set_cpufreq_gov = Layout("xen_set_cpufreq_gov", ("char", "scaling_governor", 16))

SCALING_MAX_FREQ = 1
SCALING_MIN_FREQ = 2
SCALING_SETSPEED = 3

SAMPLING_RATE = 4

UP_THRESHOLD = 5

xen_set_cpufreq_para = Layout(
    "xen_set_cpufreq_para",
    ("uint32_t", "ctrl_type"),
    ("uint32_t", "ctrl_value"),
)

PM_PARA_CATEGORY_MASK = 0xF0

CPUFREQ_PARA = 0x10

GET_CPUFREQ_PARA = CPUFREQ_PARA | 0x01

SET_CPUFREQ_GOV = CPUFREQ_PARA | 0x02
SET_CPUFREQ_PARA = CPUFREQ_PARA | 0x03

GET_CPUFREQ_AVGFREQ = CPUFREQ_PARA | 0x04

XEN_SYSCTL_pm_op_set_sched_opt_smt = 0x21
XEN_SYSCTL_pm_op_get_max_cstate = 0x22
XEN_SYSCTL_pm_op_set_max_cstate = 0x23
XEN_SYSCTL_pm_op_set_vcpu_migration_delay = 0x24
XEN_SYSCTL_pm_op_get_vcpu_migration_delay = 0x25
XEN_SYSCTL_pm_op_enable_turbo = 0x26
XEN_SYSCTL_pm_op_disable_turbo = 0x27
XEN_SYSCTL_CX_UNLIMITED = 0xFFFFFFFF

xen_sysctl_pm_op = Layout(
    "xen_sysctl_pm_op",
    ("uint32_t", "cmd"),
    ("uint32_t", "cpuid"),
    (
        Union(
            "u",
            (xen_get_cpufreq_para, "get_para"),
            (xen_set_cpufreq_gov, "set_gov"),
            (xen_set_cpufreq_para, "set_para"),
            ("uint64_aligned_t", "get_avgfreq"),
            ("uint32_t", "set_sched_opt_smt"),
            ("uint32_t", "get_max_cstate"),
            ("uint32_t", "set_max_cstate"),
        ),
        "u",
    ),
)

# XEN_SYSCTL_page_offline_op: take failing frames out of use.
sysctl_page_offline = 1
sysctl_page_online = 2
sysctl_query_page_offline = 3

xen_sysctl_page_offline_op = Layout(
    "xen_sysctl_page_offline_op",
    ("uint32_t", "cmd"),
    ("uint32_t", "start"),
    ("uint32_t", "end"),
    ("XEN_GUEST_HANDLE(uint32)", "status"),
)

PG_OFFLINE_STATUS_MASK = 0xFF
PG_OFFLINE_INVALID = 0x1 << 0
PG_OFFLINE_OFFLINED = 0x1 << 1
PG_OFFLINE_PENDING = 0x1 << 2
PG_OFFLINE_FAILED = 0x1 << 3
PG_OFFLINE_AGAIN = 0x1 << 4
PG_ONLINE_FAILED = PG_OFFLINE_FAILED
PG_ONLINE_ONLINED = PG_OFFLINE_OFFLINED
PG_OFFLINE_STATUS_OFFLINED = 0x1 << 1
PG_OFFLINE_STATUS_ONLINE = 0x1 << 2
PG_OFFLINE_STATUS_OFFLINE_PENDING = 0x1 << 3
PG_OFFLINE_STATUS_BROKEN = 0x1 << 4
PG_OFFLINE_MISC_MASK = 0xFF << 4
PG_OFFLINE_XENPAGE = 0x1 << 8
PG_OFFLINE_DOM0PAGE = 0x1 << 9
PG_OFFLINE_ANONYMOUS = 0x1 << 10
PG_OFFLINE_NOT_CONV_RAM = 0x1 << 11
PG_OFFLINE_OWNED = 0x1 << 12
PG_OFFLINE_BROKEN = 0x1 << 13
PG_ONLINE_BROKEN = PG_OFFLINE_BROKEN
PG_OFFLINE_OWNER_SHIFT = 16

# XEN_SYSCTL_lockprof_op: lock statistics.
XEN_SYSCTL_LOCKPROF_reset = 1
XEN_SYSCTL_LOCKPROF_query = 2

LOCKPROF_TYPE_GLOBAL = 0
LOCKPROF_TYPE_PERDOM = 1
LOCKPROF_TYPE_N = 2

xen_sysctl_lockprof_data = Layout(
    "xen_sysctl_lockprof_data",
    ("char", "name", 40),
    ("int32_t", "type"),
    ("int32_t", "idx"),
    ("uint64_aligned_t", "lock_cnt"),
    ("uint64_aligned_t", "block_cnt"),
    ("uint64_aligned_t", "lock_time"),
    ("uint64_aligned_t", "block_time"),
)

xen_sysctl_lockprof_op = Layout(
    "xen_sysctl_lockprof_op",
    ("uint32_t", "cmd"),
    ("uint32_t", "max_elem"),
    ("uint32_t", "nr_elem"),
    ("uint64_aligned_t", "time"),
    ("XEN_GUEST_HANDLE(xen_sysctl_lockprof_data_t)", "data"),
)

# XEN_SYSCTL_cputopoinfo: core, socket and node of each pCPU.
XEN_INVALID_CORE_ID = 0xFFFFFFFF
XEN_INVALID_SOCKET_ID = 0xFFFFFFFF
XEN_INVALID_NODE_ID = 0xFFFFFFFF

xen_sysctl_cputopo = Layout(
    "xen_sysctl_cputopo",
    ("uint32_t", "core"),
    ("uint32_t", "socket"),
    ("uint32_t", "node"),
)

xen_sysctl_cputopoinfo = Layout(
    "xen_sysctl_cputopoinfo",
    ("uint32_t", "num_cpus"),
    ("XEN_GUEST_HANDLE(xen_sysctl_cputopo_t)", "cputopo"),
)

# XEN_SYSCTL_numainfo: memory and distances of nodes.
XEN_INVALID_MEM_SZ = 0xFFFFFFFF
XEN_INVALID_NODE_DIST = 0xFFFFFFFF

xen_sysctl_meminfo = Layout(
    "xen_sysctl_meminfo",
    ("uint64_t", "memsize"),
    ("uint64_t", "memfree"),
)

xen_sysctl_numainfo = Layout(
    "xen_sysctl_numainfo",
    ("uint32_t", "num_nodes"),
    ("XEN_GUEST_HANDLE(xen_sysctl_meminfo_t)", "meminfo"),
    ("XEN_GUEST_HANDLE(uint32)", "distance"),
)

# XEN_SYSCTL_cpupool_op: groups of pCPUs, each with a scheduler of its own.
XEN_SYSCTL_CPUPOOL_OP_CREATE = 1
XEN_SYSCTL_CPUPOOL_OP_DESTROY = 2
XEN_SYSCTL_CPUPOOL_OP_INFO = 3
XEN_SYSCTL_CPUPOOL_OP_ADDCPU = 4
XEN_SYSCTL_CPUPOOL_OP_RMCPU = 5
XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN = 6
XEN_SYSCTL_CPUPOOL_OP_FREEINFO = 7
XEN_SYSCTL_CPUPOOL_PAR_ANY = 0xFFFFFFFF

xen_sysctl_cpupool_op = Layout(
    "xen_sysctl_cpupool_op",
    ("uint32_t", "op"),
    ("uint32_t", "cpupool_id"),
    ("uint32_t", "sched_id"),
    ("uint32_t", "domid"),
    ("uint32_t", "cpu"),
    ("uint32_t", "n_dom"),
    (xenctl_bitmap, "cpumap"),
)

# XEN_SYSCTL_scheduler_op: parameters of a CPU pool under each scheduler.
ARINC653_MAX_DOMAINS_PER_SCHEDULE = 64

xen_sysctl_arinc653_schedule = Layout(
    "xen_sysctl_arinc653_schedule",
    ("uint64_aligned_t", "major_frame"),
    ("uint8_t", "num_sched_entries"),
    (
        Layout(
            "sched_entries",
            ("uint8_t", "dom_handle", 16),
            ("uint32_t", "vcpu_id"),
            ("uint64_aligned_t", "runtime"),
        ),
        "sched_entries",
        64,
    ),
)

XEN_SYSCTL_SCHED_RATELIMIT_MAX = 500000
XEN_SYSCTL_SCHED_RATELIMIT_MIN = 100
XEN_SYSCTL_CSCHED_TSLICE_MAX = 1000
XEN_SYSCTL_CSCHED_TSLICE_MIN = 1
XEN_SYSCTL_CSCHED_MGR_DLY_MAX_US = 100 * 1000

xen_sysctl_credit_schedule = Layout(
    "xen_sysctl_credit_schedule",
    ("uint32_t", "tslice_ms"),
    ("uint32_t", "ratelimit_us"),
    ("uint32_t", "vcpu_migr_delay_us"),
)

xen_sysctl_credit2_schedule = Layout("xen_sysctl_credit2_schedule", ("uint32_t", "ratelimit_us"))

XEN_SYSCTL_SCHEDOP_putinfo = 0
XEN_SYSCTL_SCHEDOP_getinfo = 1

xen_sysctl_sched_arinc653 = Layout(
    "xen_sysctl_sched_arinc653", ("XEN_GUEST_HANDLE(xen_sysctl_arinc653_schedule_t)", "schedule")
)

xen_sysctl_scheduler_op = Layout(
    "xen_sysctl_scheduler_op",
    ("uint32_t", "cpupool_id"),
    ("uint32_t", "sched_id"),
    ("uint32_t", "cmd"),
    (
        Union(
            "u",
            (xen_sysctl_sched_arinc653, "sched_arinc653"),
            (xen_sysctl_credit_schedule, "sched_credit"),
            (xen_sysctl_credit2_schedule, "sched_credit2"),
        ),
        "u",
    ),
)

# XEN_SYSCTL_coverage_op: test coverage of the hypervisor.
XEN_GCOV_FORMAT_MAGIC = 0x58434F56

XEN_SYSCTL_COVERAGE_get_size = 0
XEN_SYSCTL_COVERAGE_read = 1
XEN_SYSCTL_COVERAGE_reset = 2

xen_sysctl_coverage_op = Layout(
    "xen_sysctl_coverage_op",
    ("uint32_t", "cmd"),
    ("uint32_t", "size"),
    ("XEN_GUEST_HANDLE(char)", "buffer"),
)

# XEN_SYSCTL_psr_cmt_op: cache monitoring.
XEN_SYSCTL_PSR_CMT_get_total_rmid = 0
XEN_SYSCTL_PSR_CMT_get_l3_upscaling_factor = 1
XEN_SYSCTL_PSR_CMT_get_l3_cache_size = 2
XEN_SYSCTL_PSR_CMT_enabled = 3
XEN_SYSCTL_PSR_CMT_get_l3_event_mask = 4

xen_sysctl_psr_cmt_op = Layout(
    "xen_sysctl_psr_cmt_op",
    ("uint32_t", "cmd"),
    ("uint32_t", "flags"),
    (
        Union(
            "u",
            ("uint64_t", "data"),
            (
                Layout(
                    "l3_cache",
                    ("uint32_t", "cpu"),
                    ("uint32_t", "rsvd"),
                ),
                "l3_cache",
            ),
        ),
        "u",
    ),
)

# XEN_SYSCTL_pcitopoinfo: the node of a PCI device.
XEN_INVALID_DEV = XEN_INVALID_NODE_ID - 1

xen_sysctl_pcitopoinfo = Layout(
    "xen_sysctl_pcitopoinfo",
    ("uint32_t", "num_devs"),
    ("XEN_GUEST_HANDLE(physdev_pci_device_t)", "devs"),
    ("XEN_GUEST_HANDLE(uint32)", "nodes"),
)

# XEN_SYSCTL_psr_alloc: what can be allocated.
XEN_SYSCTL_PSR_get_l3_info = 0
XEN_SYSCTL_PSR_get_l2_info = 1
XEN_SYSCTL_PSR_get_mba_info = 2
XEN_SYSCTL_PSR_CAT_L3_CDP = 1 << 0
XEN_SYSCTL_PSR_MBA_LINEAR = 1 << 0

xen_sysctl_psr_alloc = Layout(
    "xen_sysctl_psr_alloc",
    ("uint32_t", "cmd"),
    ("uint32_t", "target"),
    (
        Union(
            "u",
            (
                Layout(
                    "cat_info",
                    ("uint32_t", "cbm_len"),
                    ("uint32_t", "cos_max"),
                    ("uint32_t", "flags"),
                ),
                "cat_info",
            ),
            (
                Layout(
                    "mba_info",
                    ("uint32_t", "thrtl_max"),
                    ("uint32_t", "cos_max"),
                    ("uint32_t", "flags"),
                ),
                "mba_info",
            ),
        ),
        "u",
    ),
)

# XEN_SYSCTL_get_cpu_levelling_caps: how CPUID can be levelled on this processor.
XEN_SYSCTL_CPU_LEVELCAP_faulting = 1 << 0
XEN_SYSCTL_CPU_LEVELCAP_ecx = 1 << 1
XEN_SYSCTL_CPU_LEVELCAP_edx = 1 << 2
XEN_SYSCTL_CPU_LEVELCAP_extd_ecx = 1 << 3
XEN_SYSCTL_CPU_LEVELCAP_extd_edx = 1 << 4
XEN_SYSCTL_CPU_LEVELCAP_xsave_eax = 1 << 5
XEN_SYSCTL_CPU_LEVELCAP_thermal_ecx = 1 << 6
XEN_SYSCTL_CPU_LEVELCAP_l7s0_eax = 1 << 7
XEN_SYSCTL_CPU_LEVELCAP_l7s0_ebx = 1 << 8

xen_sysctl_cpu_levelling_caps = Layout("xen_sysctl_cpu_levelling_caps", ("uint32_t", "caps"))

# XEN_SYSCTL_get_cpu_featureset: features as bitmaps.
XEN_SYSCTL_cpu_featureset_raw = 0
XEN_SYSCTL_cpu_featureset_host = 1
XEN_SYSCTL_cpu_featureset_pv = 2
XEN_SYSCTL_cpu_featureset_hvm = 3
XEN_SYSCTL_cpu_featureset_pv_max = 4
XEN_SYSCTL_cpu_featureset_hvm_max = 5

xen_sysctl_cpu_featureset = Layout(
    "xen_sysctl_cpu_featureset",
    ("uint32_t", "index"),
    ("uint32_t", "nr_features"),
    ("XEN_GUEST_HANDLE(uint32)", "features"),
)

# XEN_SYSCTL_livepatch_op: patches of the running hypervisor.
LIVEPATCH_PAYLOAD_VERSION = 2

XEN_LIVEPATCH_NAME_SIZE = 128

xen_livepatch_name = Layout(
    "xen_livepatch_name",
    ("XEN_GUEST_HANDLE(char)", "name"),
    ("uint16_t", "size"),
    ("uint16_t", "pad", 3),
)

XEN_SYSCTL_LIVEPATCH_UPLOAD = 0

xen_sysctl_livepatch_upload = Layout(
    "xen_sysctl_livepatch_upload",
    (xen_livepatch_name, "name"),
    ("uint64_t", "size"),
    ("XEN_GUEST_HANDLE(uint8)", "payload"),
)

XEN_SYSCTL_LIVEPATCH_GET = 1

LIVEPATCH_STATE_CHECKED = 1
LIVEPATCH_STATE_APPLIED = 2

xen_livepatch_status = Layout(
    "xen_livepatch_status",
    ("uint32_t", "state"),
    ("int32_t", "rc"),
)

xen_sysctl_livepatch_get = Layout(
    "xen_sysctl_livepatch_get",
    (xen_livepatch_name, "name"),
    (xen_livepatch_status, "status"),
)

XEN_SYSCTL_LIVEPATCH_LIST = 2

xen_sysctl_livepatch_list = Layout(
    "xen_sysctl_livepatch_list",
    ("uint32_t", "version"),
    ("uint32_t", "idx"),
    ("uint32_t", "nr"),
    ("uint32_t", "pad"),
    ("uint32_t", "name_total_size"),
    ("uint32_t", "metadata_total_size"),
    ("XEN_GUEST_HANDLE(xen_livepatch_status_t)", "status"),
    ("XEN_GUEST_HANDLE(char)", "name"),
    ("XEN_GUEST_HANDLE(uint32)", "len"),
    ("XEN_GUEST_HANDLE(char)", "metadata"),
    ("XEN_GUEST_HANDLE(uint32)", "metadata_len"),
)

XEN_SYSCTL_LIVEPATCH_ACTION = 3

LIVEPATCH_ACTION_UNLOAD = 1
LIVEPATCH_ACTION_REVERT = 2
LIVEPATCH_ACTION_APPLY = 3
LIVEPATCH_ACTION_REPLACE = 4
LIVEPATCH_ACTION_APPLY_NODEPS = 1 << 0

xen_sysctl_livepatch_action = Layout(
    "xen_sysctl_livepatch_action",
    (xen_livepatch_name, "name"),
    ("uint32_t", "cmd"),
    ("uint32_t", "timeout"),
    ("uint32_t", "flags"),
    ("uint32_t", "pad"),
)

xen_sysctl_livepatch_op = Layout(
    "xen_sysctl_livepatch_op",
    ("uint32_t", "cmd"),
    ("uint32_t", "pad"),
    (
        Union(
            "u",
            (xen_sysctl_livepatch_upload, "upload"),
            (xen_sysctl_livepatch_list, "list"),
            (xen_sysctl_livepatch_get, "get"),
            (xen_sysctl_livepatch_action, "action"),
        ),
        "u",
    ),
)

# XEN_SYSCTL_get_cpu_policy: the host's CPUID leaves and MSRs.
XEN_SYSCTL_cpu_policy_raw = 0
XEN_SYSCTL_cpu_policy_host = 1
XEN_SYSCTL_cpu_policy_pv_max = 2
XEN_SYSCTL_cpu_policy_hvm_max = 3
XEN_SYSCTL_cpu_policy_pv_default = 4
XEN_SYSCTL_cpu_policy_hvm_default = 5

xen_sysctl_cpu_policy = Layout(
    "xen_sysctl_cpu_policy",
    ("uint32_t", "index"),
    ("uint32_t", "nr_leaves"),
    ("uint32_t", "nr_msrs"),
    ("uint32_t", "_rsvd"),
    ("XEN_GUEST_HANDLE(xen_cpuid_leaf_t)", "leaves"),
    ("XEN_GUEST_HANDLE(xen_msr_entry_t)", "msrs"),
)

# The commands.
XEN_SYSCTL_readconsole = 1
XEN_SYSCTL_tbuf_op = 2
XEN_SYSCTL_physinfo = 3
XEN_SYSCTL_sched_id = 4
XEN_SYSCTL_perfc_op = 5
XEN_SYSCTL_getdomaininfolist = 6
XEN_SYSCTL_debug_keys = 7
XEN_SYSCTL_getcpuinfo = 8
XEN_SYSCTL_availheap = 9
XEN_SYSCTL_get_pmstat = 10
XEN_SYSCTL_cpu_hotplug = 11
XEN_SYSCTL_pm_op = 12
XEN_SYSCTL_page_offline_op = 14
XEN_SYSCTL_lockprof_op = 15
XEN_SYSCTL_cputopoinfo = 16
XEN_SYSCTL_numainfo = 17
XEN_SYSCTL_cpupool_op = 18
XEN_SYSCTL_scheduler_op = 19
XEN_SYSCTL_coverage_op = 20
XEN_SYSCTL_psr_cmt_op = 21
XEN_SYSCTL_pcitopoinfo = 22
XEN_SYSCTL_psr_alloc = 23
XEN_SYSCTL_get_cpu_levelling_caps = 25
XEN_SYSCTL_get_cpu_featureset = 26
XEN_SYSCTL_livepatch_op = 27
XEN_SYSCTL_get_cpu_policy = 29

# The argument of the hypercall.
xen_sysctl = Layout(
    "xen_sysctl",
    ("uint32_t", "cmd"),
    ("uint32_t", "interface_version"),
    (
        Union(
            "u",
            (xen_sysctl_readconsole, "readconsole"),
            (xen_sysctl_tbuf_op, "tbuf_op"),
            (xen_sysctl_physinfo, "physinfo"),
            (xen_sysctl_cputopoinfo, "cputopoinfo"),
            (xen_sysctl_pcitopoinfo, "pcitopoinfo"),
            (xen_sysctl_numainfo, "numainfo"),
            (xen_sysctl_sched_id, "sched_id"),
            (xen_sysctl_perfc_op, "perfc_op"),
            (xen_sysctl_getdomaininfolist, "getdomaininfolist"),
            (xen_sysctl_debug_keys, "debug_keys"),
            (xen_sysctl_getcpuinfo, "getcpuinfo"),
            (xen_sysctl_availheap, "availheap"),
            (xen_sysctl_get_pmstat, "get_pmstat"),
            (xen_sysctl_cpu_hotplug, "cpu_hotplug"),
            (xen_sysctl_pm_op, "pm_op"),
            (xen_sysctl_page_offline_op, "page_offline"),
            (xen_sysctl_lockprof_op, "lockprof_op"),
            (xen_sysctl_cpupool_op, "cpupool_op"),
            (xen_sysctl_scheduler_op, "scheduler_op"),
            (xen_sysctl_coverage_op, "coverage_op"),
            (xen_sysctl_psr_cmt_op, "psr_cmt_op"),
            (xen_sysctl_psr_alloc, "psr_alloc"),
            (xen_sysctl_cpu_levelling_caps, "cpu_levelling_caps"),
            (xen_sysctl_cpu_featureset, "cpu_featureset"),
            (xen_sysctl_livepatch_op, "livepatch"),
            (xen_sysctl_cpu_policy, "cpu_policy"),
            ("uint8_t", "pad", 128),
        ),
        "u",
    ),
)

# The commands are the constants from XEN_SYSCTL_readconsole on; earlier ones share the prefix but not the space.
NAMES = names(globals(), r"XEN_SYSCTL_[a-z]\w*", first="XEN_SYSCTL_readconsole")
"""Commands by number."""
