"""Control of domains (domctl.h): what the toolstack in a privileged domain calls to build and steer others.

One structure, `xen_domctl`, carries a command, the interface version that the caller was built with, the domain, and a
union with one member per command. It is a private interface: a wrong `interface_version` is refused with -EACCES.
"""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union
from hypervisor.abi.xen import xen_arch_domainconfig, xenctl_bitmap

# hvm/save.h: the machine-check state of a vCPU, which a domctl carries. Its first member is what the union in
# xen_domctl_ext_vcpucontext also calls mcg_cap.
hvm_vmce_vcpu = Layout(
    "hvm_vmce_vcpu",
    ("uint64_t", "caps"),
    ("uint64_t", "mci_ctl2_bank0"),
    ("uint64_t", "mci_ctl2_bank1"),
    ("uint64_t", "mcg_ext_ctl"),
)

# domctl.h: the version that `xen_domctl.interface_version` must be.
XEN_DOMCTL_INTERFACE_VERSION = 0x00000015

# XEN_DOMCTL_createdomain: what kind of domain, with which limits. The domain id 0 asks Xen to choose one.
_XEN_DOMCTL_CDF_hvm = 0
XEN_DOMCTL_CDF_hvm = 1 << _XEN_DOMCTL_CDF_hvm
_XEN_DOMCTL_CDF_hap = 1
XEN_DOMCTL_CDF_hap = 1 << _XEN_DOMCTL_CDF_hap
_XEN_DOMCTL_CDF_s3_integrity = 2
XEN_DOMCTL_CDF_s3_integrity = 1 << _XEN_DOMCTL_CDF_s3_integrity
_XEN_DOMCTL_CDF_oos_off = 3
XEN_DOMCTL_CDF_oos_off = 1 << _XEN_DOMCTL_CDF_oos_off
_XEN_DOMCTL_CDF_xs_domain = 4
XEN_DOMCTL_CDF_xs_domain = 1 << _XEN_DOMCTL_CDF_xs_domain
_XEN_DOMCTL_CDF_iommu = 5
XEN_DOMCTL_CDF_iommu = 1 << _XEN_DOMCTL_CDF_iommu
_XEN_DOMCTL_CDF_nested_virt = 6
XEN_DOMCTL_CDF_nested_virt = 1 << _XEN_DOMCTL_CDF_nested_virt
XEN_DOMCTL_CDF_vpmu = 1 << 7
XEN_DOMCTL_CDF_MAX = XEN_DOMCTL_CDF_vpmu
_XEN_DOMCTL_IOMMU_no_sharept = 0
XEN_DOMCTL_IOMMU_no_sharept = 1 << _XEN_DOMCTL_IOMMU_no_sharept
XEN_DOMCTL_IOMMU_MAX = XEN_DOMCTL_IOMMU_no_sharept
XEN_DOMCTL_GRANT_version_mask = 0xF

xen_domctl_createdomain = Layout(
    "xen_domctl_createdomain",
    ("uint32_t", "ssidref"),
    ("uint8_t", "handle", 16),
    ("uint32_t", "flags"),
    ("uint32_t", "iommu_opts"),
    ("uint32_t", "max_vcpus"),
    ("uint32_t", "max_evtchn_port"),
    ("int32_t", "max_grant_frames"),
    ("int32_t", "max_maptrack_frames"),
    ("uint32_t", "grant_opts"),
    ("uint32_t", "vmtrace_size"),
    ("uint32_t", "cpupool_id"),
    (xen_arch_domainconfig, "arch"),
)

# XEN_DOMCTL_getdomaininfo: flags; the shutdown reason is in the bits above.
_XEN_DOMINF_dying = 0
XEN_DOMINF_dying = 1 << _XEN_DOMINF_dying
_XEN_DOMINF_hvm_guest = 1
XEN_DOMINF_hvm_guest = 1 << _XEN_DOMINF_hvm_guest
_XEN_DOMINF_shutdown = 2
XEN_DOMINF_shutdown = 1 << _XEN_DOMINF_shutdown
_XEN_DOMINF_paused = 3
XEN_DOMINF_paused = 1 << _XEN_DOMINF_paused
_XEN_DOMINF_blocked = 4
XEN_DOMINF_blocked = 1 << _XEN_DOMINF_blocked
_XEN_DOMINF_running = 5
XEN_DOMINF_running = 1 << _XEN_DOMINF_running
_XEN_DOMINF_debugged = 6
XEN_DOMINF_debugged = 1 << _XEN_DOMINF_debugged
_XEN_DOMINF_xs_domain = 7
XEN_DOMINF_xs_domain = 1 << _XEN_DOMINF_xs_domain
_XEN_DOMINF_hap = 8
XEN_DOMINF_hap = 1 << _XEN_DOMINF_hap
XEN_DOMINF_shutdownmask = 255
XEN_DOMINF_shutdownshift = 16

XEN_INVALID_MAX_VCPU_ID = 0xFFFFFFFF

xen_domctl_getdomaininfo = Layout(
    "xen_domctl_getdomaininfo",
    ("domid_t", "domain"),
    ("uint16_t", "pad1"),
    ("uint32_t", "flags"),
    ("uint64_aligned_t", "tot_pages"),
    ("uint64_aligned_t", "max_pages"),
    ("uint64_aligned_t", "outstanding_pages"),
    ("uint64_aligned_t", "shr_pages"),
    ("uint64_aligned_t", "paged_pages"),
    ("uint64_aligned_t", "shared_info_frame"),
    ("uint64_aligned_t", "cpu_time"),
    ("uint32_t", "nr_online_vcpus"),
    ("uint32_t", "max_vcpu_id"),
    ("uint32_t", "ssidref"),
    ("uint8_t", "handle", 16),
    ("uint32_t", "cpupool"),
    ("uint8_t", "gpaddr_bits"),
    ("uint8_t", "pad2", 7),
    (xen_arch_domainconfig, "arch_config"),
)

# XEN_DOMCTL_getpageframeinfo3: what each of a list of frames is in use for.
XEN_DOMCTL_PFINFO_LTAB_SHIFT = 28
XEN_DOMCTL_PFINFO_NOTAB = 0x0 << 28
XEN_DOMCTL_PFINFO_L1TAB = 0x1 << 28
XEN_DOMCTL_PFINFO_L2TAB = 0x2 << 28
XEN_DOMCTL_PFINFO_L3TAB = 0x3 << 28
XEN_DOMCTL_PFINFO_L4TAB = 0x4 << 28
XEN_DOMCTL_PFINFO_LTABTYPE_MASK = 0x7 << 28
XEN_DOMCTL_PFINFO_LPINTAB = 0x1 << 31
XEN_DOMCTL_PFINFO_XTAB = 0xF << 28
XEN_DOMCTL_PFINFO_XALLOC = 0xE << 28
XEN_DOMCTL_PFINFO_BROKEN = 0xD << 28
XEN_DOMCTL_PFINFO_LTAB_MASK = 0xF << 28

xen_domctl_getpageframeinfo3 = Layout(
    "xen_domctl_getpageframeinfo3",
    ("uint64_aligned_t", "num"),
    ("XEN_GUEST_HANDLE(xen_pfn_t)", "array"),
)

# XEN_DOMCTL_shadow_op: paging assistance, and log-dirty for live migration.
XEN_DOMCTL_SHADOW_OP_OFF = 0
XEN_DOMCTL_SHADOW_OP_ENABLE = 32
XEN_DOMCTL_SHADOW_OP_CLEAN = 11
XEN_DOMCTL_SHADOW_OP_PEEK = 12
XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION = 30
XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION = 31
XEN_DOMCTL_SHADOW_OP_ENABLE_TEST = 1
XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY = 2
XEN_DOMCTL_SHADOW_ENABLE_REFCOUNT = 1 << 1
XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY = 1 << 2
XEN_DOMCTL_SHADOW_ENABLE_TRANSLATE = 1 << 3
XEN_DOMCTL_SHADOW_ENABLE_EXTERNAL = 1 << 4
XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL = 1 << 0

xen_domctl_shadow_op_stats = Layout(
    "xen_domctl_shadow_op_stats",
    ("uint32_t", "fault_count"),
    ("uint32_t", "dirty_count"),
)

xen_domctl_shadow_op = Layout(
    "xen_domctl_shadow_op",
    ("uint32_t", "op"),
    ("uint32_t", "mode"),
    ("uint32_t", "mb"),
    ("XEN_GUEST_HANDLE(uint8)", "dirty_bitmap"),
    ("uint64_aligned_t", "pages"),
    (xen_domctl_shadow_op_stats, "stats"),
)

# XEN_DOMCTL_max_mem: the limit of a domain's memory.
xen_domctl_max_mem = Layout("xen_domctl_max_mem", ("uint64_aligned_t", "max_memkb"))

# XEN_DOMCTL_{get,set}vcpucontext: the state of a vCPU.
xen_domctl_vcpucontext = Layout(
    "xen_domctl_vcpucontext",
    ("uint32_t", "vcpu"),
    ("XEN_GUEST_HANDLE(vcpu_guest_context_t)", "ctxt"),
)

# XEN_DOMCTL_getvcpuinfo: its scheduling state.
xen_domctl_getvcpuinfo = Layout(
    "xen_domctl_getvcpuinfo",
    ("uint32_t", "vcpu"),
    ("uint8_t", "online"),
    ("uint8_t", "blocked"),
    ("uint8_t", "running"),
    ("uint64_aligned_t", "cpu_time"),
    ("uint32_t", "cpu"),
)

# XEN_DOMCTL_{get,set}nodeaffinity: which NUMA nodes memory comes from.
xen_domctl_nodeaffinity = Layout("xen_domctl_nodeaffinity", (xenctl_bitmap, "nodemap"))

# XEN_DOMCTL_{get,set}vcpuaffinity: which pCPUs a vCPU may run on, should run on.
_XEN_VCPUAFFINITY_HARD = 0
XEN_VCPUAFFINITY_HARD = 1 << _XEN_VCPUAFFINITY_HARD
_XEN_VCPUAFFINITY_SOFT = 1
XEN_VCPUAFFINITY_SOFT = 1 << _XEN_VCPUAFFINITY_SOFT
_XEN_VCPUAFFINITY_FORCE = 2
XEN_VCPUAFFINITY_FORCE = 1 << _XEN_VCPUAFFINITY_FORCE

xen_domctl_vcpuaffinity = Layout(
    "xen_domctl_vcpuaffinity",
    ("uint32_t", "vcpu"),
    ("uint32_t", "flags"),
    (xenctl_bitmap, "cpumap_hard"),
    (xenctl_bitmap, "cpumap_soft"),
)

# XEN_DOMCTL_max_vcpus: how many vCPUs a domain has.
xen_domctl_max_vcpus = Layout("xen_domctl_max_vcpus", ("uint32_t", "max"))

# XEN_DOMCTL_scheduler_op: parameters of a domain under each scheduler. 4 was that of one since removed.
XEN_SCHEDULER_CREDIT = 5
XEN_SCHEDULER_CREDIT2 = 6
XEN_SCHEDULER_ARINC653 = 7
XEN_SCHEDULER_RTDS = 8
XEN_SCHEDULER_NULL = 9

xen_domctl_sched_credit = Layout(
    "xen_domctl_sched_credit",
    ("uint16_t", "weight"),
    ("uint16_t", "cap"),
)

xen_domctl_sched_credit2 = Layout(
    "xen_domctl_sched_credit2",
    ("uint16_t", "weight"),
    ("uint16_t", "cap"),
)

_XEN_DOMCTL_SCHEDRT_extra = 0
XEN_DOMCTL_SCHEDRT_extra = 1 << _XEN_DOMCTL_SCHEDRT_extra

xen_domctl_sched_rtds = Layout(
    "xen_domctl_sched_rtds",
    ("uint32_t", "period"),
    ("uint32_t", "budget"),
    ("uint32_t", "flags"),
)

xen_domctl_schedparam_vcpu = Layout(
    "xen_domctl_schedparam_vcpu",
    (
        Union(
            "u",
            (xen_domctl_sched_credit, "credit"),
            (xen_domctl_sched_credit2, "credit2"),
            (xen_domctl_sched_rtds, "rtds"),
        ),
        "u",
    ),
    ("uint32_t", "vcpuid"),
)

XEN_DOMCTL_SCHEDOP_putinfo = 0
XEN_DOMCTL_SCHEDOP_getinfo = 1
XEN_DOMCTL_SCHEDOP_putvcpuinfo = 2
XEN_DOMCTL_SCHEDOP_getvcpuinfo = 3

xen_domctl_scheduler_op = Layout(
    "xen_domctl_scheduler_op",
    ("uint32_t", "sched_id"),
    ("uint32_t", "cmd"),
    (
        Union(
            "u",
            (xen_domctl_sched_credit, "credit"),
            (xen_domctl_sched_credit2, "credit2"),
            (xen_domctl_sched_rtds, "rtds"),
            (
                Layout(
                    "v",
                    ("XEN_GUEST_HANDLE(xen_domctl_schedparam_vcpu_t)", "vcpus"),
                    ("uint32_t", "nr_vcpus"),
                    ("uint32_t", "padding"),
                ),
                "v",
            ),
        ),
        "u",
    ),
)

# XEN_DOMCTL_setdomainhandle: the toolstack's identifier of a domain, a UUID.
xen_domctl_setdomainhandle = Layout("xen_domctl_setdomainhandle", ("uint8_t", "handle", 16))

# XEN_DOMCTL_setdebugging: pause at breakpoints for a debugger.
xen_domctl_setdebugging = Layout("xen_domctl_setdebugging", ("uint8_t", "enable"))

# XEN_DOMCTL_irq_permission, _iomem_permission, _ioport_permission: what a driver domain may touch.
xen_domctl_irq_permission = Layout(
    "xen_domctl_irq_permission",
    ("uint32_t", "pirq"),
    ("uint8_t", "allow_access"),
    ("uint8_t", "pad", 3),
)

xen_domctl_iomem_permission = Layout(
    "xen_domctl_iomem_permission",
    ("uint64_aligned_t", "first_mfn"),
    ("uint64_aligned_t", "nr_mfns"),
    ("uint8_t", "allow_access"),
)

xen_domctl_ioport_permission = Layout(
    "xen_domctl_ioport_permission",
    ("uint32_t", "first_port"),
    ("uint32_t", "nr_ports"),
    ("uint8_t", "allow_access"),
)

# XEN_DOMCTL_hypercall_init: fill a page with hypercall stubs.
xen_domctl_hypercall_init = Layout("xen_domctl_hypercall_init", ("uint64_aligned_t", "gmfn"))

# XEN_DOMCTL_settimeoffset: the domain's wall clock against the host's, in seconds.
xen_domctl_settimeoffset = Layout("xen_domctl_settimeoffset", ("int64_aligned_t", "time_offset_seconds"))

# XEN_DOMCTL_{get,set}hvmcontext: HVM state as a stream.
xen_domctl_hvmcontext = Layout(
    "xen_domctl_hvmcontext",
    ("uint32_t", "size"),
    ("XEN_GUEST_HANDLE(uint8)", "buffer"),
)

# XEN_DOMCTL_{get,set}_address_size: 32 for a compatibility-mode PV guest, else 64.
xen_domctl_address_size = Layout("xen_domctl_address_size", ("uint32_t", "size"))

# XEN_DOMCTL_sendtrigger: press a button of the virtual machine.
XEN_DOMCTL_SENDTRIGGER_NMI = 0
XEN_DOMCTL_SENDTRIGGER_RESET = 1
XEN_DOMCTL_SENDTRIGGER_INIT = 2
XEN_DOMCTL_SENDTRIGGER_POWER = 3
XEN_DOMCTL_SENDTRIGGER_SLEEP = 4

xen_domctl_sendtrigger = Layout(
    "xen_domctl_sendtrigger",
    ("uint32_t", "trigger"),
    ("uint32_t", "vcpu"),
)

# XEN_DOMCTL_assign_device and its relatives: pass a device through.
XEN_DOMCTL_DEV_PCI = 0
XEN_DOMCTL_DEV_DT = 1
XEN_DOMCTL_DEV_RDM_RELAXED = 1

xen_domctl_assign_device = Layout(
    "xen_domctl_assign_device",
    ("uint32_t", "dev"),
    ("uint32_t", "flags"),
    (
        Union(
            "u",
            (Layout("pci", ("uint32_t", "machine_sbdf")), "pci"),
            (
                Layout(
                    "dt",
                    ("uint32_t", "size"),
                    ("XEN_GUEST_HANDLE(char)", "path"),
                ),
                "dt",
            ),
        ),
        "u",
    ),
)

xen_domctl_get_device_group = Layout(
    "xen_domctl_get_device_group",
    ("uint32_t", "machine_sbdf"),
    ("uint32_t", "max_sdevs"),
    ("uint32_t", "num_sdevs"),
    ("XEN_GUEST_HANDLE(uint32)", "sdev_array"),
)

# XEN_DOMCTL_{bind,unbind}_pt_irq: pass an interrupt through (HVM).
PT_IRQ_TYPE_PCI = 0
PT_IRQ_TYPE_ISA = 1
PT_IRQ_TYPE_MSI = 2
PT_IRQ_TYPE_MSI_TRANSLATE = 3
PT_IRQ_TYPE_SPI = 4

XEN_DOMCTL_VMSI_X86_DEST_ID_MASK = 0x0000FF
XEN_DOMCTL_VMSI_X86_RH_MASK = 0x000100
XEN_DOMCTL_VMSI_X86_DM_MASK = 0x000200
XEN_DOMCTL_VMSI_X86_DELIV_MASK = 0x007000
XEN_DOMCTL_VMSI_X86_TRIG_MASK = 0x008000
XEN_DOMCTL_VMSI_X86_UNMASKED = 0x010000

xen_domctl_bind_pt_irq = Layout(
    "xen_domctl_bind_pt_irq",
    ("uint32_t", "machine_irq"),
    ("uint32_t", "irq_type"),
    (
        Union(
            "u",
            (Layout("isa", ("uint8_t", "isa_irq")), "isa"),
            (
                Layout(
                    "pci",
                    ("uint8_t", "bus"),
                    ("uint8_t", "device"),
                    ("uint8_t", "intx"),
                ),
                "pci",
            ),
            (
                Layout(
                    "msi",
                    ("uint8_t", "gvec"),
                    ("uint32_t", "gflags"),
                    ("uint64_aligned_t", "gtable"),
                ),
                "msi",
            ),
            (Layout("spi", ("uint16_t", "spi")), "spi"),
        ),
        "u",
    ),
)

# XEN_DOMCTL_memory_mapping, _ioport_mapping: map device memory and ports into a guest.
DPCI_ADD_MAPPING = 1
DPCI_REMOVE_MAPPING = 0

xen_domctl_memory_mapping = Layout(
    "xen_domctl_memory_mapping",
    ("uint64_aligned_t", "first_gfn"),
    ("uint64_aligned_t", "first_mfn"),
    ("uint64_aligned_t", "nr_mfns"),
    ("uint32_t", "add_mapping"),
    ("uint32_t", "padding"),
)

xen_domctl_ioport_mapping = Layout(
    "xen_domctl_ioport_mapping",
    ("uint32_t", "first_gport"),
    ("uint32_t", "first_mport"),
    ("uint32_t", "nr_ports"),
    ("uint32_t", "add_mapping"),
)

# Memory types, for a command that is no domctl any more.
XEN_DOMCTL_MEM_CACHEATTR_UC = 0
XEN_DOMCTL_MEM_CACHEATTR_WC = 1
XEN_DOMCTL_MEM_CACHEATTR_WT = 4
XEN_DOMCTL_MEM_CACHEATTR_WP = 5
XEN_DOMCTL_MEM_CACHEATTR_WB = 6
XEN_DOMCTL_MEM_CACHEATTR_UCM = 7
XEN_DOMCTL_DELETE_MEM_CACHEATTR = 0xFFFFFFFF

# XEN_DOMCTL_{get,set}_ext_vcpucontext: state that vcpu_guest_context has no room for.
xen_domctl_ext_vcpucontext = Layout(
    "xen_domctl_ext_vcpucontext",
    ("uint32_t", "vcpu"),
    ("uint32_t", "size"),
    ("uint64_aligned_t", "syscall32_callback_eip"),
    ("uint64_aligned_t", "sysenter_callback_eip"),
    ("uint16_t", "syscall32_callback_cs"),
    ("uint16_t", "sysenter_callback_cs"),
    ("uint8_t", "syscall32_disables_events"),
    ("uint8_t", "sysenter_disables_events"),
    (hvm_vmce_vcpu, "vmce"),
)

# XEN_DOMCTL_set_target: let a stub domain act upon the domain that it serves.
xen_domctl_set_target = Layout("xen_domctl_set_target", ("domid_t", "target"))

# XEN_DOMCTL_{get,set}_cpu_policy: the CPUID leaves and MSRs that a guest sees.
XEN_CPUID_INPUT_UNUSED = 0xFFFFFFFF

xen_domctl_cpu_policy = Layout(
    "xen_domctl_cpu_policy",
    ("uint32_t", "nr_leaves"),
    ("uint32_t", "nr_msrs"),
    ("XEN_GUEST_HANDLE(xen_cpuid_leaf_t)", "leaves"),
    ("XEN_GUEST_HANDLE(xen_msr_entry_t)", "msrs"),
    ("uint32_t", "err_leaf"),
    ("uint32_t", "err_subleaf"),
    ("uint32_t", "err_msr"),
)

# XEN_DOMCTL_subscribe: memory events for paging (HVM).
xen_domctl_subscribe = Layout("xen_domctl_subscribe", ("uint32_t", "port"))

# XEN_DOMCTL_debug_op: single steps.
XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_OFF = 0
XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_ON = 1

xen_domctl_debug_op = Layout(
    "xen_domctl_debug_op",
    ("uint32_t", "op"),
    ("uint32_t", "vcpu"),
)

# XEN_DOMCTL_gethvmcontext_partial: one record of the HVM stream.
xen_domctl_hvmcontext_partial = Layout(
    "xen_domctl_hvmcontext_partial",
    ("uint32_t", "type"),
    ("uint32_t", "instance"),
    ("uint64_aligned_t", "bufsz"),
    ("XEN_GUEST_HANDLE(uint8)", "buffer"),
)

# XEN_DOMCTL_{get,set}tscinfo: how the guest's time-stamp counter behaves.
xen_domctl_tsc_info = Layout(
    "xen_domctl_tsc_info",
    ("uint32_t", "tsc_mode"),
    ("uint32_t", "gtsc_khz"),
    ("uint32_t", "incarnation"),
    ("uint32_t", "pad"),
    ("uint64_aligned_t", "elapsed_nsec"),
)

# XEN_DOMCTL_gdbsx_*: a debugger's memory access and pauses.
xen_domctl_gdbsx_memio = Layout(
    "xen_domctl_gdbsx_memio",
    ("uint64_aligned_t", "pgd3val"),
    ("uint64_aligned_t", "gva"),
    ("uint64_aligned_t", "uva"),
    ("uint32_t", "len"),
    ("uint8_t", "gwr"),
    ("uint32_t", "remain"),
)

xen_domctl_gdbsx_pauseunp_vcpu = Layout("xen_domctl_gdbsx_pauseunp_vcpu", ("uint32_t", "vcpu"))

xen_domctl_gdbsx_domstatus = Layout(
    "xen_domctl_gdbsx_domstatus",
    ("uint8_t", "paused"),
    ("uint32_t", "vcpu_id"),
    ("uint32_t", "vcpu_ev"),
)

# XEN_DOMCTL_vm_event_op: rings for paging, monitoring and sharing (HVM).
XEN_VM_EVENT_ENABLE = 0
XEN_VM_EVENT_DISABLE = 1
XEN_VM_EVENT_RESUME = 2
XEN_VM_EVENT_GET_VERSION = 3

XEN_DOMCTL_VM_EVENT_OP_PAGING = 1
XEN_DOMCTL_VM_EVENT_OP_MONITOR = 2
XEN_DOMCTL_VM_EVENT_OP_SHARING = 3

xen_domctl_vm_event_op = Layout(
    "xen_domctl_vm_event_op",
    ("uint32_t", "op"),
    ("uint32_t", "mode"),
    (
        Union(
            "u",
            (Layout("enable", ("uint32_t", "port")), "enable"),
            ("uint32_t", "version"),
        ),
        "u",
    ),
)

# XEN_DOMCTL_mem_sharing_op: switch memory sharing on (HVM).
XEN_DOMCTL_MEM_SHARING_CONTROL = 0

xen_domctl_mem_sharing_op = Layout(
    "xen_domctl_mem_sharing_op",
    ("uint8_t", "op"),
    (Union("u", ("uint8_t", "enable")), "u"),
)

# XEN_DOMCTL_audit_p2m: find orphan and wrong entries (debug builds).
xen_domctl_audit_p2m = Layout(
    "xen_domctl_audit_p2m",
    ("uint64_t", "orphans"),
    ("uint64_t", "m2p_bad"),
    ("uint64_t", "p2m_bad"),
)

# XEN_DOMCTL_set_virq_handler: which domain gets a per-host virtual interrupt.
xen_domctl_set_virq_handler = Layout("xen_domctl_set_virq_handler", ("uint32_t", "virq"))

# XEN_DOMCTL_{get,set}vcpuextstate: XSAVE state.
xen_domctl_vcpuextstate = Layout(
    "xen_domctl_vcpuextstate",
    ("uint32_t", "vcpu"),
    ("uint64_aligned_t", "xfeature_mask"),
    ("uint64_aligned_t", "size"),
    ("XEN_GUEST_HANDLE(uint64)", "buffer"),
)

# XEN_DOMCTL_set_access_required: pause vCPUs when no introspection listens.
xen_domctl_set_access_required = Layout("xen_domctl_set_access_required", ("uint8_t", "access_required"))

# XEN_DOMCTL_set_broken_page_p2m: a frame failed.
xen_domctl_set_broken_page_p2m = Layout("xen_domctl_set_broken_page_p2m", ("uint64_aligned_t", "pfn"))

# XEN_DOMCTL_cacheflush: clean caches for a range of guest frames (ARM).
xen_domctl_cacheflush = Layout(
    "xen_domctl_cacheflush",
    ("xen_pfn_t", "start_pfn"),
    ("xen_pfn_t", "nr_pfns"),
)

# XEN_DOMCTL_{get,set}_paging_mempool_size: memory for paging structures.
xen_domctl_paging_mempool = Layout("xen_domctl_paging_mempool", ("uint64_aligned_t", "size"))

# XEN_DOMCTL_{get,set}_vcpu_msrs: model-specific registers of a PV vCPU.
xen_domctl_vcpu_msr = Layout(
    "xen_domctl_vcpu_msr",
    ("uint32_t", "index"),
    ("uint32_t", "reserved"),
    ("uint64_aligned_t", "value"),
)

xen_domctl_vcpu_msrs = Layout(
    "xen_domctl_vcpu_msrs",
    ("uint32_t", "vcpu"),
    ("uint32_t", "msr_count"),
    ("XEN_GUEST_HANDLE(xen_domctl_vcpu_msr_t)", "msrs"),
)

# XEN_DOMCTL_setvnumainfo: virtual NUMA topology.
xen_domctl_vnuma = Layout(
    "xen_domctl_vnuma",
    ("uint32_t", "nr_vnodes"),
    ("uint32_t", "nr_vmemranges"),
    ("uint32_t", "nr_vcpus"),
    ("uint32_t", "pad"),
    ("XEN_GUEST_HANDLE(uint)", "vdistance"),
    ("XEN_GUEST_HANDLE(uint)", "vcpu_to_vnode"),
    ("XEN_GUEST_HANDLE(uint)", "vnode_to_pnode"),
    ("XEN_GUEST_HANDLE(xen_vmemrange_t)", "vmemrange"),
)

# XEN_DOMCTL_psr_cmt_op: cache monitoring.
XEN_DOMCTL_PSR_CMT_OP_DETACH = 0
XEN_DOMCTL_PSR_CMT_OP_ATTACH = 1
XEN_DOMCTL_PSR_CMT_OP_QUERY_RMID = 2

xen_domctl_psr_cmt_op = Layout(
    "xen_domctl_psr_cmt_op",
    ("uint32_t", "cmd"),
    ("uint32_t", "data"),
)

# XEN_DOMCTL_monitor_op: what to report to introspection (HVM).
XEN_DOMCTL_MONITOR_OP_ENABLE = 0
XEN_DOMCTL_MONITOR_OP_DISABLE = 1
XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES = 2
XEN_DOMCTL_MONITOR_OP_EMULATE_EACH_REP = 3
XEN_DOMCTL_MONITOR_OP_CONTROL_REGISTERS = 4
XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG = 0
XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR = 1
XEN_DOMCTL_MONITOR_EVENT_SINGLESTEP = 2
XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT = 3
XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST = 4
XEN_DOMCTL_MONITOR_EVENT_DEBUG_EXCEPTION = 5
XEN_DOMCTL_MONITOR_EVENT_CPUID = 6
XEN_DOMCTL_MONITOR_EVENT_PRIVILEGED_CALL = 7
XEN_DOMCTL_MONITOR_EVENT_INTERRUPT = 8
XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS = 9
XEN_DOMCTL_MONITOR_EVENT_EMUL_UNIMPLEMENTED = 10
XEN_DOMCTL_MONITOR_EVENT_INGUEST_PAGEFAULT = 11
XEN_DOMCTL_MONITOR_EVENT_VMEXIT = 12

xen_domctl_monitor_op = Layout(
    "xen_domctl_monitor_op",
    ("uint32_t", "op"),
    ("uint32_t", "event"),
    (
        Union(
            "u",
            (
                Layout(
                    "mov_to_cr",
                    ("uint8_t", "index"),
                    ("uint8_t", "sync"),
                    ("uint8_t", "onchangeonly"),
                    ("uint8_t", "pad1"),
                    ("uint32_t", "pad2"),
                    ("uint64_aligned_t", "bitmask"),
                ),
                "mov_to_cr",
            ),
            (
                Layout(
                    "mov_to_msr",
                    ("uint32_t", "msr"),
                    ("uint8_t", "onchangeonly"),
                ),
                "mov_to_msr",
            ),
            (
                Layout(
                    "guest_request",
                    ("uint8_t", "sync"),
                    ("uint8_t", "allow_userspace"),
                ),
                "guest_request",
            ),
            (Layout("debug_exception", ("uint8_t", "sync")), "debug_exception"),
            (Layout("vmexit", ("uint8_t", "sync")), "vmexit"),
        ),
        "u",
    ),
)

# XEN_DOMCTL_psr_alloc: cache and bandwidth allocation.
XEN_DOMCTL_PSR_SET_L3_CBM = 0
XEN_DOMCTL_PSR_GET_L3_CBM = 1
XEN_DOMCTL_PSR_SET_L3_CODE = 2
XEN_DOMCTL_PSR_SET_L3_DATA = 3
XEN_DOMCTL_PSR_GET_L3_CODE = 4
XEN_DOMCTL_PSR_GET_L3_DATA = 5
XEN_DOMCTL_PSR_SET_L2_CBM = 6
XEN_DOMCTL_PSR_GET_L2_CBM = 7
XEN_DOMCTL_PSR_SET_MBA_THRTL = 8
XEN_DOMCTL_PSR_GET_MBA_THRTL = 9

xen_domctl_psr_alloc = Layout(
    "xen_domctl_psr_alloc",
    ("uint32_t", "cmd"),
    ("uint32_t", "target"),
    ("uint64_t", "data"),
)

# XEN_DOMCTL_vuart_op: an emulated UART (ARM).
XEN_DOMCTL_VUART_OP_INIT = 0
XEN_DOMCTL_VUART_TYPE_VPL011 = 0

xen_domctl_vuart_op = Layout(
    "xen_domctl_vuart_op",
    ("uint32_t", "cmd"),
    ("uint32_t", "type"),
    ("uint64_aligned_t", "gfn"),
    ("domid_t", "console_domid"),
    ("uint8_t", "pad", 2),
    ("evtchn_port_t", "evtchn"),
)

# XEN_DOMCTL_vmtrace_op: processor trace (HVM).
xen_domctl_vmtrace_op = Layout(
    "xen_domctl_vmtrace_op",
    ("uint32_t", "cmd"),
    ("uint32_t", "vcpu"),
    ("uint64_aligned_t", "key"),
    ("uint64_aligned_t", "value"),
)

XEN_DOMCTL_vmtrace_enable = 1
XEN_DOMCTL_vmtrace_disable = 2
XEN_DOMCTL_vmtrace_reset_and_enable = 3
XEN_DOMCTL_vmtrace_output_position = 4
XEN_DOMCTL_vmtrace_get_option = 5
XEN_DOMCTL_vmtrace_set_option = 6

# The commands, with the numbers of retired ones left out. From 1000 on they are the debugger's.
XEN_DOMCTL_createdomain = 1
XEN_DOMCTL_destroydomain = 2
XEN_DOMCTL_pausedomain = 3
XEN_DOMCTL_unpausedomain = 4
XEN_DOMCTL_getdomaininfo = 5
XEN_DOMCTL_setvcpuaffinity = 9
XEN_DOMCTL_shadow_op = 10
XEN_DOMCTL_max_mem = 11
XEN_DOMCTL_setvcpucontext = 12
XEN_DOMCTL_getvcpucontext = 13
XEN_DOMCTL_getvcpuinfo = 14
XEN_DOMCTL_max_vcpus = 15
XEN_DOMCTL_scheduler_op = 16
XEN_DOMCTL_setdomainhandle = 17
XEN_DOMCTL_setdebugging = 18
XEN_DOMCTL_irq_permission = 19
XEN_DOMCTL_iomem_permission = 20
XEN_DOMCTL_ioport_permission = 21
XEN_DOMCTL_hypercall_init = 22
XEN_DOMCTL_settimeoffset = 24
XEN_DOMCTL_getvcpuaffinity = 25
XEN_DOMCTL_real_mode_area = 26
XEN_DOMCTL_resumedomain = 27
XEN_DOMCTL_sendtrigger = 28
XEN_DOMCTL_subscribe = 29
XEN_DOMCTL_gethvmcontext = 33
XEN_DOMCTL_sethvmcontext = 34
XEN_DOMCTL_set_address_size = 35
XEN_DOMCTL_get_address_size = 36
XEN_DOMCTL_assign_device = 37
XEN_DOMCTL_bind_pt_irq = 38
XEN_DOMCTL_memory_mapping = 39
XEN_DOMCTL_ioport_mapping = 40
XEN_DOMCTL_set_ext_vcpucontext = 42
XEN_DOMCTL_get_ext_vcpucontext = 43
XEN_DOMCTL_set_opt_feature = 44
XEN_DOMCTL_test_assign_device = 45
XEN_DOMCTL_set_target = 46
XEN_DOMCTL_deassign_device = 47
XEN_DOMCTL_unbind_pt_irq = 48
XEN_DOMCTL_get_device_group = 50
XEN_DOMCTL_debug_op = 54
XEN_DOMCTL_gethvmcontext_partial = 55
XEN_DOMCTL_vm_event_op = 56
XEN_DOMCTL_mem_sharing_op = 57
XEN_DOMCTL_gettscinfo = 59
XEN_DOMCTL_settscinfo = 60
XEN_DOMCTL_getpageframeinfo3 = 61
XEN_DOMCTL_setvcpuextstate = 62
XEN_DOMCTL_getvcpuextstate = 63
XEN_DOMCTL_set_access_required = 64
XEN_DOMCTL_audit_p2m = 65
XEN_DOMCTL_set_virq_handler = 66
XEN_DOMCTL_set_broken_page_p2m = 67
XEN_DOMCTL_setnodeaffinity = 68
XEN_DOMCTL_getnodeaffinity = 69
XEN_DOMCTL_cacheflush = 71
XEN_DOMCTL_get_vcpu_msrs = 72
XEN_DOMCTL_set_vcpu_msrs = 73
XEN_DOMCTL_setvnumainfo = 74
XEN_DOMCTL_psr_cmt_op = 75
XEN_DOMCTL_monitor_op = 77
XEN_DOMCTL_psr_alloc = 78
XEN_DOMCTL_soft_reset = 79
XEN_DOMCTL_vuart_op = 81
XEN_DOMCTL_get_cpu_policy = 82
XEN_DOMCTL_set_cpu_policy = 83
XEN_DOMCTL_vmtrace_op = 84
XEN_DOMCTL_get_paging_mempool_size = 85
XEN_DOMCTL_set_paging_mempool_size = 86
XEN_DOMCTL_gdbsx_guestmemio = 1000
XEN_DOMCTL_gdbsx_pausevcpu = 1001
XEN_DOMCTL_gdbsx_unpausevcpu = 1002
XEN_DOMCTL_gdbsx_domstatus = 1003

# The argument of the hypercall.
xen_domctl = Layout(
    "xen_domctl",
    ("uint32_t", "cmd"),
    ("uint32_t", "interface_version"),
    ("domid_t", "domain"),
    ("uint16_t", "_pad", 3),
    (
        Union(
            "u",
            (xen_domctl_createdomain, "createdomain"),
            (xen_domctl_getdomaininfo, "getdomaininfo"),
            (xen_domctl_getpageframeinfo3, "getpageframeinfo3"),
            (xen_domctl_nodeaffinity, "nodeaffinity"),
            (xen_domctl_vcpuaffinity, "vcpuaffinity"),
            (xen_domctl_shadow_op, "shadow_op"),
            (xen_domctl_max_mem, "max_mem"),
            (xen_domctl_vcpucontext, "vcpucontext"),
            (xen_domctl_getvcpuinfo, "getvcpuinfo"),
            (xen_domctl_max_vcpus, "max_vcpus"),
            (xen_domctl_scheduler_op, "scheduler_op"),
            (xen_domctl_setdomainhandle, "setdomainhandle"),
            (xen_domctl_setdebugging, "setdebugging"),
            (xen_domctl_irq_permission, "irq_permission"),
            (xen_domctl_iomem_permission, "iomem_permission"),
            (xen_domctl_ioport_permission, "ioport_permission"),
            (xen_domctl_hypercall_init, "hypercall_init"),
            (xen_domctl_settimeoffset, "settimeoffset"),
            (xen_domctl_tsc_info, "tsc_info"),
            (xen_domctl_hvmcontext, "hvmcontext"),
            (xen_domctl_hvmcontext_partial, "hvmcontext_partial"),
            (xen_domctl_address_size, "address_size"),
            (xen_domctl_sendtrigger, "sendtrigger"),
            (xen_domctl_get_device_group, "get_device_group"),
            (xen_domctl_assign_device, "assign_device"),
            (xen_domctl_bind_pt_irq, "bind_pt_irq"),
            (xen_domctl_memory_mapping, "memory_mapping"),
            (xen_domctl_ioport_mapping, "ioport_mapping"),
            (xen_domctl_ext_vcpucontext, "ext_vcpucontext"),
            (xen_domctl_set_target, "set_target"),
            (xen_domctl_subscribe, "subscribe"),
            (xen_domctl_debug_op, "debug_op"),
            (xen_domctl_vm_event_op, "vm_event_op"),
            (xen_domctl_mem_sharing_op, "mem_sharing_op"),
            (xen_domctl_cpu_policy, "cpu_policy"),
            (xen_domctl_vcpuextstate, "vcpuextstate"),
            (xen_domctl_vcpu_msrs, "vcpu_msrs"),
            (xen_domctl_set_access_required, "access_required"),
            (xen_domctl_audit_p2m, "audit_p2m"),
            (xen_domctl_set_virq_handler, "set_virq_handler"),
            (xen_domctl_gdbsx_memio, "gdbsx_guest_memio"),
            (xen_domctl_set_broken_page_p2m, "set_broken_page_p2m"),
            (xen_domctl_cacheflush, "cacheflush"),
            (xen_domctl_gdbsx_pauseunp_vcpu, "gdbsx_pauseunp_vcpu"),
            (xen_domctl_gdbsx_domstatus, "gdbsx_domstatus"),
            (xen_domctl_vnuma, "vnuma"),
            (xen_domctl_psr_cmt_op, "psr_cmt_op"),
            (xen_domctl_monitor_op, "monitor_op"),
            (xen_domctl_psr_alloc, "psr_alloc"),
            (xen_domctl_vuart_op, "vuart_op"),
            (xen_domctl_vmtrace_op, "vmtrace_op"),
            (xen_domctl_paging_mempool, "paging_mempool"),
            ("uint8_t", "pad", 128),
        ),
        "u",
    ),
)

# The commands are the constants from XEN_DOMCTL_createdomain on; earlier ones share the prefix but not the space.
NAMES = names(globals(), r"XEN_DOMCTL_[a-z]\w*", first="XEN_DOMCTL_createdomain")
"""Commands by number."""


def XEN_DOMCTL_GRANT_version(version: int) -> int:
    """Return the part of `grant_opts` that limits the grant table version of a new domain."""
    return version & XEN_DOMCTL_GRANT_version_mask
