"""The base of the interface: hypercall numbers, VIRQs, page-table operations, shared_info and start_info.

From xen.h, arch-x86/xen.h and arch-x86/xen-x86_64.h. A guest enters Xen with a hypercall number in rax and up to
five arguments, and shares two structures with it: `shared_info`, one page per domain with a `vcpu_info` for each of
the first 32 vCPUs and the pending and mask bits of 2-level event channels, and `start_info`, which the domain builder
fills and whose address the boot vCPU finds in rsi.

Names with two leading underscores are awkward inside of Python classes, where ``__HYPERVISOR_sched_op`` is mangled to
``_Class__HYPERVISOR_sched_op``; each such number therefore has a twin without them, ``HYPERVISOR_sched_op``.
"""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union

# xen-compat.h: the version of the interface that these headers describe. Older callers see some names with older
# meanings; this package knows the newest one only.
__XEN_LATEST_INTERFACE_VERSION__ = 0x00040E00

__XEN_INTERFACE_VERSION__ = __XEN_LATEST_INTERFACE_VERSION__

# arch-x86/xen-x86_64.h: the flat segments that Xen keeps in every guest's GDT. A 64-bit PV kernel runs in ring 3, so
# kernel and user selectors are the same.
FLAT_RING3_CS32 = 0xE023
FLAT_RING3_CS64 = 0xE033
FLAT_RING3_DS32 = 0xE02B
FLAT_RING3_DS64 = 0x0000
FLAT_RING3_SS32 = 0xE02B
FLAT_RING3_SS64 = 0xE02B
FLAT_KERNEL_DS64 = FLAT_RING3_DS64
FLAT_KERNEL_DS32 = FLAT_RING3_DS32
FLAT_KERNEL_DS = FLAT_KERNEL_DS64
FLAT_KERNEL_CS64 = FLAT_RING3_CS64
FLAT_KERNEL_CS32 = FLAT_RING3_CS32
FLAT_KERNEL_CS = FLAT_KERNEL_CS64
FLAT_KERNEL_SS64 = FLAT_RING3_SS64
FLAT_KERNEL_SS32 = FLAT_RING3_SS32
FLAT_KERNEL_SS = FLAT_KERNEL_SS64
FLAT_USER_DS64 = FLAT_RING3_DS64
FLAT_USER_DS32 = FLAT_RING3_DS32
FLAT_USER_DS = FLAT_USER_DS64
FLAT_USER_CS64 = FLAT_RING3_CS64
FLAT_USER_CS32 = FLAT_RING3_CS32
FLAT_USER_CS = FLAT_USER_CS64
FLAT_USER_SS64 = FLAT_RING3_SS64
FLAT_USER_SS32 = FLAT_RING3_SS32
FLAT_USER_SS = FLAT_USER_SS64

# The slots of the top-level page table that belong to Xen (256..271), and the read-only machine-to-physical table at
# their beginning: one 64-bit pseudo-physical frame number per machine frame.
__HYPERVISOR_VIRT_START = 0xFFFF800000000000
__HYPERVISOR_VIRT_END = 0xFFFF880000000000

__MACH2PHYS_VIRT_START = 0xFFFF800000000000
__MACH2PHYS_VIRT_END = 0xFFFF804000000000

HYPERVISOR_VIRT_START = __HYPERVISOR_VIRT_START
HYPERVISOR_VIRT_END = __HYPERVISOR_VIRT_END

MACH2PHYS_VIRT_START = __MACH2PHYS_VIRT_START
MACH2PHYS_VIRT_END = __MACH2PHYS_VIRT_END
MACH2PHYS_NR_ENTRIES = (MACH2PHYS_VIRT_END - MACH2PHYS_VIRT_START) >> 3

# HYPERVISOR_set_segment_base: which base to set.
SEGBASE_FS = 0
SEGBASE_GS_USER = 1
SEGBASE_GS_KERNEL = 2
SEGBASE_GS_USER_SEL = 3

# Flag of vcpu_guest_context and of iret_context: return to the guest as SYSRET does, clobbering rcx and r11.
_VGCF_in_syscall = 8
VGCF_in_syscall = 1 << _VGCF_in_syscall
VGCF_IN_SYSCALL = VGCF_in_syscall

# HYPERVISOR_iret: what a PV kernel leaves on its stack to return to user mode (or to itself), unmasking events on the
# way.
iret_context = Layout(
    "iret_context",
    ("uint64_t", "rax"),
    ("uint64_t", "r11"),
    ("uint64_t", "rcx"),
    ("uint64_t", "flags"),
    ("uint64_t", "rip"),
    ("uint64_t", "cs"),
    ("uint64_t", "rflags"),
    ("uint64_t", "rsp"),
    ("uint64_t", "ss"),
)

# The registers of a vCPU. The header gives each a union of its names by width; here they have the 64-bit names.
cpu_user_regs = Layout(
    "cpu_user_regs",
    ("uint64_t", "r15"),
    ("uint64_t", "r14"),
    ("uint64_t", "r13"),
    ("uint64_t", "r12"),
    ("uint64_t", "rbp"),
    ("uint64_t", "rbx"),
    ("uint64_t", "r11"),
    ("uint64_t", "r10"),
    ("uint64_t", "r9"),
    ("uint64_t", "r8"),
    ("uint64_t", "rax"),
    ("uint64_t", "rcx"),
    ("uint64_t", "rdx"),
    ("uint64_t", "rsi"),
    ("uint64_t", "rdi"),
    ("uint32_t", "error_code"),
    ("uint32_t", "entry_vector"),
    ("uint64_t", "rip"),
    ("uint16_t", "cs"),
    ("uint16_t", "_pad0", 1),
    ("uint8_t", "saved_upcall_mask"),
    ("uint8_t", "_pad1", 3),
    ("uint64_t", "rflags"),
    ("uint64_t", "rsp"),
    ("uint16_t", "ss"),
    ("uint16_t", "_pad2", 3),
    ("uint16_t", "es"),
    ("uint16_t", "_pad3", 3),
    ("uint16_t", "ds"),
    ("uint16_t", "_pad4", 3),
    ("uint16_t", "fs"),
    ("uint16_t", "_pad5", 3),
    ("uint16_t", "gs"),
    ("uint16_t", "_pad6", 3),
)

# The processor-specific part of vcpu_info: cr2 is where Xen leaves the address of a page fault.
arch_vcpu_info = Layout(
    "arch_vcpu_info",
    ("unsigned long", "cr2"),
    ("unsigned long", "pad"),
)

# printf conversions for the header's C types.
PRI_xen_pfn = "lx"

PRIu_xen_pfn = "lu"

# arch-x86/xen.h: x86 has PV guests, and vcpu_info has an upcall mask.
XEN_HAVE_PV_GUEST_ENTRY = 1
XEN_HAVE_PV_UPCALL_MASK = 1

# set_gdt and update_descriptor: a guest owns the GDT up to here, Xen's own segments follow.
FIRST_RESERVED_GDT_PAGE = 14
FIRST_RESERVED_GDT_BYTE = FIRST_RESERVED_GDT_PAGE * 4096
FIRST_RESERVED_GDT_ENTRY = FIRST_RESERVED_GDT_BYTE // 8

# How many vCPUs have their vcpu_info in shared_info; the others must register one (VCPUOP_register_vcpu_info).
XEN_LEGACY_MAX_VCPUS = 32

# printf conversion.
PRI_xen_ulong = "lx"

# HYPERVISOR_set_trap_table: one entry of the virtual interrupt descriptor table; flags bits 0..1 are the privilege
# level that may raise the vector, bit 2 masks events on entry.
trap_info = Layout(
    "trap_info",
    ("uint8_t", "vector"),
    ("uint8_t", "flags"),
    ("uint16_t", "cs"),
    ("unsigned long", "address"),
)

# Flags of vcpu_guest_context.
VGCF_I387_VALID = 1 << 0
VGCF_IN_KERNEL = 1 << 2
_VGCF_i387_valid = 0
VGCF_i387_valid = 1 << _VGCF_i387_valid
_VGCF_in_kernel = 2
VGCF_in_kernel = 1 << _VGCF_in_kernel
_VGCF_failsafe_disables_events = 3
VGCF_failsafe_disables_events = 1 << _VGCF_failsafe_disables_events
_VGCF_syscall_disables_events = 4
VGCF_syscall_disables_events = 1 << _VGCF_syscall_disables_events
_VGCF_online = 5
VGCF_online = 1 << _VGCF_online

# The initial or saved state of a vCPU, as VCPUOP_initialise and XEN_DOMCTL_setvcpucontext take it.
vcpu_guest_context = Layout(
    "vcpu_guest_context",
    (Layout("fpu_ctxt", ("char", "x", 512)), "fpu_ctxt"),
    ("unsigned long", "flags"),
    (cpu_user_regs, "user_regs"),
    (trap_info, "trap_ctxt", 256),
    ("unsigned long", "ldt_base"),
    ("unsigned long", "ldt_ents"),
    ("unsigned long", "gdt_frames", 16),
    ("unsigned long", "gdt_ents"),
    ("unsigned long", "kernel_ss"),
    ("unsigned long", "kernel_sp"),
    ("unsigned long", "ctrlreg", 8),
    ("unsigned long", "debugreg", 8),
    ("unsigned long", "event_callback_eip"),
    ("unsigned long", "failsafe_callback_eip"),
    ("unsigned long", "syscall_callback_eip"),
    ("unsigned long", "vm_assist"),
    ("uint64_t", "fs_base"),
    ("uint64_t", "gs_base_kernel"),
    ("uint64_t", "gs_base_user"),
)

# The processor-specific part of shared_info: where the guest publishes its p2m list for those who save or inspect it.
arch_shared_info = Layout(
    "arch_shared_info",
    ("unsigned long", "max_pfn"),
    ("xen_pfn_t", "pfn_to_mfn_frame_list_list"),
    ("unsigned long", "nmi_reason"),
    ("unsigned long", "p2m_cr3"),
    ("unsigned long", "p2m_vaddr"),
    ("unsigned long", "p2m_generation"),
)

# Devices that Xen emulates for HVM guests; PV guests have none or just the PIT.
_XEN_X86_EMU_LAPIC = 0
XEN_X86_EMU_LAPIC = 1 << _XEN_X86_EMU_LAPIC
_XEN_X86_EMU_HPET = 1
XEN_X86_EMU_HPET = 1 << _XEN_X86_EMU_HPET
_XEN_X86_EMU_PM = 2
XEN_X86_EMU_PM = 1 << _XEN_X86_EMU_PM
_XEN_X86_EMU_RTC = 3
XEN_X86_EMU_RTC = 1 << _XEN_X86_EMU_RTC
_XEN_X86_EMU_IOAPIC = 4
XEN_X86_EMU_IOAPIC = 1 << _XEN_X86_EMU_IOAPIC
_XEN_X86_EMU_PIC = 5
XEN_X86_EMU_PIC = 1 << _XEN_X86_EMU_PIC
_XEN_X86_EMU_VGA = 6
XEN_X86_EMU_VGA = 1 << _XEN_X86_EMU_VGA
_XEN_X86_EMU_IOMMU = 7
XEN_X86_EMU_IOMMU = 1 << _XEN_X86_EMU_IOMMU
_XEN_X86_EMU_PIT = 8
XEN_X86_EMU_PIT = 1 << _XEN_X86_EMU_PIT
_XEN_X86_EMU_USE_PIRQ = 9
XEN_X86_EMU_USE_PIRQ = 1 << _XEN_X86_EMU_USE_PIRQ
_XEN_X86_EMU_VPCI = 10
XEN_X86_EMU_VPCI = 1 << _XEN_X86_EMU_VPCI
XEN_X86_EMU_ALL = (
    XEN_X86_EMU_LAPIC
    | XEN_X86_EMU_HPET
    | XEN_X86_EMU_PM
    | XEN_X86_EMU_RTC
    | XEN_X86_EMU_IOAPIC
    | XEN_X86_EMU_PIC
    | XEN_X86_EMU_VGA
    | XEN_X86_EMU_IOMMU
    | XEN_X86_EMU_PIT
    | XEN_X86_EMU_USE_PIRQ
    | XEN_X86_EMU_VPCI
)
XEN_X86_MSR_RELAXED = 1 << 0

# The processor-specific part of XEN_DOMCTL_createdomain.
xen_arch_domainconfig = Layout(
    "xen_arch_domainconfig",
    ("uint32_t", "emulation_flags"),
    ("uint32_t", "misc_flags"),
)

# The highest flag, for checks.
XEN_X86_MISC_FLAGS_MAX = XEN_X86_MSR_RELAXED

# CPU policies (XEN_DOMCTL_{get,set}_cpu_policy): a CPUID leaf, a model-specific register.
XEN_CPUID_NO_SUBLEAF = 0xFFFFFFFF

xen_cpuid_leaf = Layout(
    "xen_cpuid_leaf",
    ("uint32_t", "leaf"),
    ("uint32_t", "subleaf"),
    ("uint32_t", "a"),
    ("uint32_t", "b"),
    ("uint32_t", "c"),
    ("uint32_t", "d"),
)

xen_msr_entry = Layout(
    "xen_msr_entry",
    ("uint32_t", "idx"),
    ("uint32_t", "flags"),
    ("uint64_t", "val"),
)

# The instruction bytes (ud2a, "xen") that make Xen emulate the cpuid after them for a PV guest.
XEN_EMULATE_PREFIX = ".byte 0x0f,0x0b,0x78,0x65,0x6e ; "

XEN_CPUID = ".byte 0x0f,0x0b,0x78,0x65,0x6e ; cpuid"

# I/O port of the debug console.
XEN_HVM_DEBUGCONS_IOPORT = 0xE9

# xen.h, "hypercalls": the numbers that go into rax. 11 was never given out again; 48..55 are for the architecture.
__HYPERVISOR_set_trap_table = 0
__HYPERVISOR_mmu_update = 1
__HYPERVISOR_set_gdt = 2
__HYPERVISOR_stack_switch = 3
__HYPERVISOR_set_callbacks = 4
__HYPERVISOR_fpu_taskswitch = 5
__HYPERVISOR_sched_op_compat = 6
__HYPERVISOR_platform_op = 7
__HYPERVISOR_set_debugreg = 8
__HYPERVISOR_get_debugreg = 9
__HYPERVISOR_update_descriptor = 10
__HYPERVISOR_memory_op = 12
__HYPERVISOR_multicall = 13
__HYPERVISOR_update_va_mapping = 14
__HYPERVISOR_set_timer_op = 15
__HYPERVISOR_event_channel_op_compat = 16
__HYPERVISOR_xen_version = 17
__HYPERVISOR_console_io = 18
__HYPERVISOR_physdev_op_compat = 19
__HYPERVISOR_grant_table_op = 20
__HYPERVISOR_vm_assist = 21
__HYPERVISOR_update_va_mapping_otherdomain = 22
__HYPERVISOR_iret = 23
__HYPERVISOR_vcpu_op = 24
__HYPERVISOR_set_segment_base = 25
__HYPERVISOR_mmuext_op = 26
__HYPERVISOR_xsm_op = 27
__HYPERVISOR_nmi_op = 28
__HYPERVISOR_sched_op = 29
__HYPERVISOR_callback_op = 30
__HYPERVISOR_xenoprof_op = 31
__HYPERVISOR_event_channel_op = 32
__HYPERVISOR_physdev_op = 33
__HYPERVISOR_hvm_op = 34
__HYPERVISOR_sysctl = 35
__HYPERVISOR_domctl = 36
__HYPERVISOR_kexec_op = 37
__HYPERVISOR_tmem_op = 38
__HYPERVISOR_argo_op = 39
__HYPERVISOR_xenpmu_op = 40
__HYPERVISOR_dm_op = 41
__HYPERVISOR_hypfs_op = 42
__HYPERVISOR_arch_0 = 48
__HYPERVISOR_arch_1 = 49
__HYPERVISOR_arch_2 = 50
__HYPERVISOR_arch_3 = 51
__HYPERVISOR_arch_4 = 52
__HYPERVISOR_arch_5 = 53
__HYPERVISOR_arch_6 = 54
__HYPERVISOR_arch_7 = 55

# xen.h, "virq": virtual interrupts. VIRQ_TIMER, _DEBUG, _XENOPROF and _XENPMU are per vCPU and VIRQ_ARGO is per domain;
# the others are one per host and go to the domain that is set as their handler.
VIRQ_TIMER = 0
VIRQ_DEBUG = 1
VIRQ_CONSOLE = 2
VIRQ_DOM_EXC = 3
VIRQ_TBUF = 4
VIRQ_DEBUGGER = 6
VIRQ_XENOPROF = 7
VIRQ_CON_RING = 8
VIRQ_PCPU_STATE = 9
VIRQ_MEM_EVENT = 10
VIRQ_ARGO = 11
VIRQ_ENOMEM = 12
VIRQ_XENPMU = 13
VIRQ_ARCH_0 = 16
VIRQ_ARCH_1 = 17
VIRQ_ARCH_2 = 18
VIRQ_ARCH_3 = 19
VIRQ_ARCH_4 = 20
VIRQ_ARCH_5 = 21
VIRQ_ARCH_6 = 22
VIRQ_ARCH_7 = 23

# Size of the name space.
NR_VIRQS = 24

# HYPERVISOR_mmu_update: the low two bits of `ptr` say what is updated.
MMU_NORMAL_PT_UPDATE = 0
MMU_MACHPHYS_UPDATE = 1
MMU_PT_UPDATE_PRESERVE_AD = 2
MMU_PT_UPDATE_NO_TRANSLATE = 3

# HYPERVISOR_mmuext_op: commands. Pinning keeps a page validated as a page table; the flushes take a vCPU mask or mean
# all.
MMUEXT_PIN_L1_TABLE = 0
MMUEXT_PIN_L2_TABLE = 1
MMUEXT_PIN_L3_TABLE = 2
MMUEXT_PIN_L4_TABLE = 3
MMUEXT_UNPIN_TABLE = 4
MMUEXT_NEW_BASEPTR = 5
MMUEXT_TLB_FLUSH_LOCAL = 6
MMUEXT_INVLPG_LOCAL = 7
MMUEXT_TLB_FLUSH_MULTI = 8
MMUEXT_INVLPG_MULTI = 9
MMUEXT_TLB_FLUSH_ALL = 10
MMUEXT_INVLPG_ALL = 11
MMUEXT_FLUSH_CACHE = 12
MMUEXT_SET_LDT = 13
MMUEXT_NEW_USER_BASEPTR = 15
MMUEXT_CLEAR_PAGE = 16
MMUEXT_COPY_PAGE = 17
MMUEXT_FLUSH_CACHE_GLOBAL = 18
MMUEXT_MARK_SUPER = 19
MMUEXT_UNMARK_SUPER = 20

# `arg1` and `arg2` by command: a frame, a linear address, a count, a mask or a source frame.
mmuext_op = Layout(
    "mmuext_op",
    ("unsigned int", "cmd"),
    (
        Union(
            "arg1",
            ("xen_pfn_t", "mfn"),
            ("unsigned long", "linear_addr"),
        ),
        "arg1",
    ),
    (
        Union(
            "arg2",
            ("unsigned int", "nr_ents"),
            ("XEN_GUEST_HANDLE(const_void)", "vcpumask"),
            ("xen_pfn_t", "src_mfn"),
        ),
        "arg2",
    ),
)

# HYPERVISOR_update_va_mapping: which TLB entries to flush, and (with UVMF_MULTI) a pointer to a vCPU mask in the
# remaining bits.
UVMF_NONE = 0 << 0
UVMF_TLB_FLUSH = 1 << 0
UVMF_INVLPG = 2 << 0
UVMF_FLUSHTYPE_MASK = 3 << 0
UVMF_MULTI = 0 << 2
UVMF_LOCAL = 0 << 2
UVMF_ALL = 1 << 2

# HYPERVISOR_console_io: sub-commands.
CONSOLEIO_write = 0
CONSOLEIO_read = 1

# HYPERVISOR_vm_assist: commands, then the assists that a guest may switch.
VMASST_CMD_enable = 0
VMASST_CMD_disable = 1

VMASST_TYPE_4gb_segments = 0
VMASST_TYPE_4gb_segments_notify = 1
VMASST_TYPE_writable_pagetables = 2
VMASST_TYPE_pae_extended_cr3 = 3
VMASST_TYPE_architectural_iopl = 4
VMASST_TYPE_runstate_update_flag = 5
VMASST_TYPE_m2p_strict = 32

# Domain ids. From DOMID_FIRST_RESERVED on they are no domains: self, the owner of I/O memory, of Xen's own shared
# pages, of copy-on-write pages, nobody, the idle domain.
DOMID_FIRST_RESERVED = 0x7FF0
DOMID_SELF = 0x7FF0
DOMID_IO = 0x7FF1
DOMID_XEN = 0x7FF2
DOMID_COW = 0x7FF3
DOMID_INVALID = 0x7FF4
DOMID_IDLE = 0x7FFF
DOMID_MASK = 0x7FFF

# HYPERVISOR_mmu_update: the machine address of an entry (command in the low bits) and its new value.
mmu_update = Layout(
    "mmu_update",
    ("uint64_t", "ptr"),
    ("uint64_t", "val"),
)

# HYPERVISOR_multicall: one of a list of calls that enter Xen together.
multicall_entry = Layout(
    "multicall_entry",
    ("xen_ulong_t", "op"),
    ("xen_ulong_t", "result"),
    ("xen_ulong_t", "args", 6),
)

# Time for one vCPU: system time at a TSC reading and the scale to extrapolate from it. `version` is odd while Xen
# writes.
vcpu_time_info = Layout(
    "vcpu_time_info",
    ("uint32_t", "version"),
    ("uint32_t", "pad0"),
    ("uint64_t", "tsc_timestamp"),
    ("uint64_t", "system_time"),
    ("uint32_t", "tsc_to_system_mul"),
    ("int8_t", "tsc_shift"),
    ("uint8_t", "flags"),
    ("uint8_t", "pad1", 2),
)

# vcpu_time_info.flags.
XEN_PVCLOCK_TSC_STABLE_BIT = 1 << 0
XEN_PVCLOCK_GUEST_STOPPED = 1 << 1

# What Xen and a vCPU share about upcalls: pending, masked, and one selector bit per word of pending bits.
vcpu_info = Layout(
    "vcpu_info",
    ("uint8_t", "evtchn_upcall_pending"),
    ("uint8_t", "evtchn_upcall_mask"),
    ("xen_ulong_t", "evtchn_pending_sel"),
    (arch_vcpu_info, "arch"),
    (vcpu_time_info, "time"),
)

# The page that Xen shares with a domain: vCPUs, 2-level event bitmaps, wall clock.
shared_info = Layout(
    "shared_info",
    (vcpu_info, "vcpu_info", XEN_LEGACY_MAX_VCPUS),
    ("xen_ulong_t", "evtchn_pending", 64),
    ("xen_ulong_t", "evtchn_mask", 64),
    ("uint32_t", "wc_version"),
    ("uint32_t", "wc_sec"),
    ("uint32_t", "wc_nsec"),
    ("uint32_t", "wc_sec_hi"),
    (arch_shared_info, "arch"),
)

# start_info: the kernel's command line, its terminator included.
MAX_GUEST_CMDLINE = 1024

# What the domain builder tells the boot vCPU. For dom0 the console union holds `dom0`, for others `domU`.
start_info = Layout(
    "start_info",
    ("char", "magic", 32),
    ("unsigned long", "nr_pages"),
    ("unsigned long", "shared_info"),
    ("uint32_t", "flags"),
    ("xen_pfn_t", "store_mfn"),
    ("uint32_t", "store_evtchn"),
    (
        Union(
            "console",
            (
                Layout(
                    "domU",
                    ("xen_pfn_t", "mfn"),
                    ("uint32_t", "evtchn"),
                ),
                "domU",
            ),
            (
                Layout(
                    "dom0",
                    ("uint32_t", "info_off"),
                    ("uint32_t", "info_size"),
                ),
                "dom0",
            ),
        ),
        "console",
    ),
    ("unsigned long", "pt_base"),
    ("unsigned long", "nr_pt_frames"),
    ("unsigned long", "mfn_list"),
    ("unsigned long", "mod_start"),
    ("unsigned long", "mod_len"),
    ("int8_t", "cmd_line", MAX_GUEST_CMDLINE),
    ("unsigned long", "first_p2m_pfn"),
    ("unsigned long", "nr_p2m_frames"),
)

# start_info.flags.
SIF_PRIVILEGED = 1 << 0
SIF_INITDOMAIN = 1 << 1
SIF_MULTIBOOT_MOD = 1 << 2
SIF_MOD_START_PFN = 1 << 3
SIF_VIRT_P2M_4TOOLS = 1 << 4
SIF_PM_MASK = 0xFF << 8

# The list of modules that start_info.mod_start points to when SIF_MULTIBOOT_MOD is set.
xen_multiboot_mod_list = Layout(
    "xen_multiboot_mod_list",
    ("uint32_t", "mod_start"),
    ("uint32_t", "mod_end"),
    ("uint32_t", "cmdline"),
    ("uint32_t", "pad"),
)

# Video state that dom0 inherits from the boot loader.
XEN_VGATYPE_TEXT_MODE_3 = 0x03
XEN_VGATYPE_VESA_LFB = 0x23
XEN_VGATYPE_EFI_LFB = 0x70

dom0_vga_console_info = Layout(
    "dom0_vga_console_info",
    ("uint8_t", "video_type"),
    (
        Union(
            "u",
            (
                Layout(
                    "text_mode_3",
                    ("uint16_t", "font_height"),
                    ("uint16_t", "cursor_x"),
                    ("uint16_t", "cursor_y"),
                    ("uint16_t", "rows"),
                    ("uint16_t", "columns"),
                ),
                "text_mode_3",
            ),
            (
                Layout(
                    "vesa_lfb",
                    ("uint16_t", "width"),
                    ("uint16_t", "height"),
                    ("uint16_t", "bytes_per_line"),
                    ("uint16_t", "bits_per_pixel"),
                    ("uint32_t", "lfb_base"),
                    ("uint32_t", "lfb_size"),
                    ("uint8_t", "red_pos"),
                    ("uint8_t", "red_size"),
                    ("uint8_t", "green_pos"),
                    ("uint8_t", "green_size"),
                    ("uint8_t", "blue_pos"),
                    ("uint8_t", "blue_size"),
                    ("uint8_t", "rsvd_pos"),
                    ("uint8_t", "rsvd_size"),
                    ("uint32_t", "gbl_caps"),
                    ("uint16_t", "mode_attrs"),
                    ("uint16_t", "pad"),
                    ("uint32_t", "ext_lfb_base"),
                ),
                "vesa_lfb",
            ),
        ),
        "u",
    ),
)

# An identifier of 16 bytes, big-endian as in RFC 4122.
xen_uuid_t = Layout("xen_uuid_t", ("uint8_t", "a", 16))

# Bitmaps in domctl and sysctl: the caller's buffer and its length in bits.
xenctl_bitmap = Layout(
    "xenctl_bitmap",
    ("XEN_GUEST_HANDLE(uint8)", "bitmap"),
    ("uint32_t", "nr_bits"),
)

# The same numbers under names that classes do not mangle.
HYPERVISOR_set_trap_table = __HYPERVISOR_set_trap_table
HYPERVISOR_mmu_update = __HYPERVISOR_mmu_update
HYPERVISOR_set_gdt = __HYPERVISOR_set_gdt
HYPERVISOR_stack_switch = __HYPERVISOR_stack_switch
HYPERVISOR_set_callbacks = __HYPERVISOR_set_callbacks
HYPERVISOR_fpu_taskswitch = __HYPERVISOR_fpu_taskswitch
HYPERVISOR_sched_op_compat = __HYPERVISOR_sched_op_compat
HYPERVISOR_platform_op = __HYPERVISOR_platform_op
HYPERVISOR_set_debugreg = __HYPERVISOR_set_debugreg
HYPERVISOR_get_debugreg = __HYPERVISOR_get_debugreg
HYPERVISOR_update_descriptor = __HYPERVISOR_update_descriptor
HYPERVISOR_memory_op = __HYPERVISOR_memory_op
HYPERVISOR_multicall = __HYPERVISOR_multicall
HYPERVISOR_update_va_mapping = __HYPERVISOR_update_va_mapping
HYPERVISOR_set_timer_op = __HYPERVISOR_set_timer_op
HYPERVISOR_event_channel_op_compat = __HYPERVISOR_event_channel_op_compat
HYPERVISOR_xen_version = __HYPERVISOR_xen_version
HYPERVISOR_console_io = __HYPERVISOR_console_io
HYPERVISOR_physdev_op_compat = __HYPERVISOR_physdev_op_compat
HYPERVISOR_grant_table_op = __HYPERVISOR_grant_table_op
HYPERVISOR_vm_assist = __HYPERVISOR_vm_assist
HYPERVISOR_update_va_mapping_otherdomain = __HYPERVISOR_update_va_mapping_otherdomain
HYPERVISOR_iret = __HYPERVISOR_iret
HYPERVISOR_vcpu_op = __HYPERVISOR_vcpu_op
HYPERVISOR_set_segment_base = __HYPERVISOR_set_segment_base
HYPERVISOR_mmuext_op = __HYPERVISOR_mmuext_op
HYPERVISOR_xsm_op = __HYPERVISOR_xsm_op
HYPERVISOR_nmi_op = __HYPERVISOR_nmi_op
HYPERVISOR_sched_op = __HYPERVISOR_sched_op
HYPERVISOR_callback_op = __HYPERVISOR_callback_op
HYPERVISOR_xenoprof_op = __HYPERVISOR_xenoprof_op
HYPERVISOR_event_channel_op = __HYPERVISOR_event_channel_op
HYPERVISOR_physdev_op = __HYPERVISOR_physdev_op
HYPERVISOR_hvm_op = __HYPERVISOR_hvm_op
HYPERVISOR_sysctl = __HYPERVISOR_sysctl
HYPERVISOR_domctl = __HYPERVISOR_domctl
HYPERVISOR_kexec_op = __HYPERVISOR_kexec_op
HYPERVISOR_tmem_op = __HYPERVISOR_tmem_op
HYPERVISOR_argo_op = __HYPERVISOR_argo_op
HYPERVISOR_xenpmu_op = __HYPERVISOR_xenpmu_op
HYPERVISOR_dm_op = __HYPERVISOR_dm_op
HYPERVISOR_hypfs_op = __HYPERVISOR_hypfs_op
HYPERVISOR_arch_0 = __HYPERVISOR_arch_0
HYPERVISOR_arch_1 = __HYPERVISOR_arch_1
HYPERVISOR_arch_2 = __HYPERVISOR_arch_2
HYPERVISOR_arch_3 = __HYPERVISOR_arch_3
HYPERVISOR_arch_4 = __HYPERVISOR_arch_4
HYPERVISOR_arch_5 = __HYPERVISOR_arch_5
HYPERVISOR_arch_6 = __HYPERVISOR_arch_6
HYPERVISOR_arch_7 = __HYPERVISOR_arch_7

HYPERCALL_NAMES = names(globals(), r"__HYPERVISOR_([a-z]\w*)")
"""Hypercalls by number, without the prefix: ``HYPERCALL_NAMES[32] == "event_channel_op"``."""

VIRQ_NAMES = names(globals(), r"VIRQ_\w+")
"""Virtual interrupts by number."""

MMUEXT_NAMES = names(globals(), r"MMUEXT_\w+")
"""Extended page-table operations by number."""

MMU_NAMES = names(globals(), r"MMU_\w+")
"""Kinds of page-table update (the low two bits of `mmu_update.ptr`) by number."""


def xen_pfn_to_cr3(pfn: int) -> int:
    """Return the cr3 value of a page table in frame `pfn` (on x86-64 a plain shift, unlike on 32-bit x86)."""
    return pfn << 12


def xen_cr3_to_pfn(cr3: int) -> int:
    """Return the frame of the page table that a cr3 value names."""
    return cr3 >> 12
