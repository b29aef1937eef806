"""Events of a guest's memory and processors for who watches from outside (vm_event.h): paging, access, more."""

from hypervisor.abi._names import names, ring_types
from hypervisor.abi.layout import Layout, Union

# vm_event.h: version of the interface.
VM_EVENT_INTERFACE_VERSION = 0x00000007

# Flags of a request or response.
VM_EVENT_FLAG_VCPU_PAUSED = 1 << 0
VM_EVENT_FLAG_FOREIGN = 1 << 1
VM_EVENT_FLAG_EMULATE = 1 << 2
VM_EVENT_FLAG_EMULATE_NOWRITE = 1 << 3
VM_EVENT_FLAG_TOGGLE_SINGLESTEP = 1 << 4
VM_EVENT_FLAG_SET_EMUL_READ_DATA = 1 << 5
VM_EVENT_FLAG_DENY = 1 << 6
VM_EVENT_FLAG_ALTERNATE_P2M = 1 << 7
VM_EVENT_FLAG_SET_REGISTERS = 1 << 8
VM_EVENT_FLAG_SET_EMUL_INSN_DATA = 1 << 9
VM_EVENT_FLAG_GET_NEXT_INTERRUPT = 1 << 10
VM_EVENT_FLAG_FAST_SINGLESTEP = 1 << 11
VM_EVENT_FLAG_NESTED_P2M = 1 << 12
VM_EVENT_FLAG_RESET_VMTRACE = 1 << 13
VM_EVENT_FLAG_RESET_FORK_STATE = 1 << 14
VM_EVENT_FLAG_RESET_FORK_MEMORY = 1 << 15

# What has happened.
VM_EVENT_REASON_UNKNOWN = 0
VM_EVENT_REASON_MEM_ACCESS = 1
VM_EVENT_REASON_MEM_SHARING = 2
VM_EVENT_REASON_MEM_PAGING = 3
VM_EVENT_REASON_WRITE_CTRLREG = 4
VM_EVENT_REASON_MOV_TO_MSR = 5
VM_EVENT_REASON_SOFTWARE_BREAKPOINT = 6
VM_EVENT_REASON_SINGLESTEP = 7
VM_EVENT_REASON_GUEST_REQUEST = 8
VM_EVENT_REASON_DEBUG_EXCEPTION = 9
VM_EVENT_REASON_CPUID = 10
VM_EVENT_REASON_PRIVILEGED_CALL = 11
VM_EVENT_REASON_INTERRUPT = 12
VM_EVENT_REASON_DESCRIPTOR_ACCESS = 13
VM_EVENT_REASON_EMUL_UNIMPLEMENTED = 14
VM_EVENT_REASON_VMEXIT = 15

# Control registers.
VM_EVENT_X86_CR0 = 0
VM_EVENT_X86_CR3 = 1
VM_EVENT_X86_CR4 = 2
VM_EVENT_X86_XCR0 = 3

# Registers of the vCPU.
vm_event_x86_selector_reg = Layout(
    "vm_event_x86_selector_reg",
    ("uint32_t:20", "limit"),
    ("uint32_t:12", "ar"),
)


vm_event_regs_x86 = Layout(
    "vm_event_regs_x86",
    ("uint64_t", "rax"),
    ("uint64_t", "rcx"),
    ("uint64_t", "rdx"),
    ("uint64_t", "rbx"),
    ("uint64_t", "rsp"),
    ("uint64_t", "rbp"),
    ("uint64_t", "rsi"),
    ("uint64_t", "rdi"),
    ("uint64_t", "r8"),
    ("uint64_t", "r9"),
    ("uint64_t", "r10"),
    ("uint64_t", "r11"),
    ("uint64_t", "r12"),
    ("uint64_t", "r13"),
    ("uint64_t", "r14"),
    ("uint64_t", "r15"),
    ("uint64_t", "rflags"),
    ("uint64_t", "dr6"),
    ("uint64_t", "dr7"),
    ("uint64_t", "rip"),
    ("uint64_t", "cr0"),
    ("uint64_t", "cr2"),
    ("uint64_t", "cr3"),
    ("uint64_t", "cr4"),
    ("uint64_t", "sysenter_cs"),
    ("uint64_t", "sysenter_esp"),
    ("uint64_t", "sysenter_eip"),
    ("uint64_t", "msr_efer"),
    ("uint64_t", "msr_star"),
    ("uint64_t", "msr_lstar"),
    ("uint64_t", "gdtr_base"),
    ("uint64_t", "npt_base"),
    ("uint64_t", "vmtrace_pos"),
    ("uint32_t", "cs_base"),
    ("uint32_t", "ss_base"),
    ("uint32_t", "ds_base"),
    ("uint32_t", "es_base"),
    ("uint64_t", "fs_base"),
    ("uint64_t", "gs_base"),
    (vm_event_x86_selector_reg, "cs"),
    (vm_event_x86_selector_reg, "ss"),
    (vm_event_x86_selector_reg, "ds"),
    (vm_event_x86_selector_reg, "es"),
    (vm_event_x86_selector_reg, "fs"),
    (vm_event_x86_selector_reg, "gs"),
    ("uint64_t", "shadow_gs"),
    ("uint16_t", "gdtr_limit"),
    ("uint16_t", "cs_sel"),
    ("uint16_t", "ss_sel"),
    ("uint16_t", "ds_sel"),
    ("uint16_t", "es_sel"),
    ("uint16_t", "fs_sel"),
    ("uint16_t", "gs_sel"),
    ("uint16_t", "_pad"),
)


vm_event_regs_arm = Layout(
    "vm_event_regs_arm",
    ("uint64_t", "ttbr0"),
    ("uint64_t", "ttbr1"),
    ("uint64_t", "ttbcr"),
    ("uint64_t", "pc"),
    ("uint64_t", "cpsr"),
)


# An access to memory.
MEM_ACCESS_R = 1 << 0
MEM_ACCESS_W = 1 << 1
MEM_ACCESS_X = 1 << 2
MEM_ACCESS_RWX = MEM_ACCESS_R | MEM_ACCESS_W | MEM_ACCESS_X
MEM_ACCESS_RW = MEM_ACCESS_R | MEM_ACCESS_W
MEM_ACCESS_RX = MEM_ACCESS_R | MEM_ACCESS_X
MEM_ACCESS_WX = MEM_ACCESS_W | MEM_ACCESS_X
MEM_ACCESS_GLA_VALID = 1 << 3
MEM_ACCESS_FAULT_WITH_GLA = 1 << 4
MEM_ACCESS_FAULT_IN_GPT = 1 << 5

vm_event_mem_access = Layout(
    "vm_event_mem_access",
    ("uint64_t", "gfn"),
    ("uint64_t", "offset"),
    ("uint64_t", "gla"),
    ("uint32_t", "flags"),
    ("uint32_t", "_pad"),
)


# Other reasons.
vm_event_write_ctrlreg = Layout(
    "vm_event_write_ctrlreg",
    ("uint32_t", "index"),
    ("uint32_t", "_pad"),
    ("uint64_t", "new_value"),
    ("uint64_t", "old_value"),
)


vm_event_singlestep = Layout(
    "vm_event_singlestep",
    ("uint64_t", "gfn"),
)


vm_event_fast_singlestep = Layout(
    "vm_event_fast_singlestep",
    ("uint16_t", "p2midx"),
)


vm_event_debug = Layout(
    "vm_event_debug",
    ("uint64_t", "gfn"),
    ("uint64_t", "pending_dbg"),
    ("uint32_t", "insn_length"),
    ("uint8_t", "type"),
    ("uint8_t", "_pad", 3),
)


vm_event_mov_to_msr = Layout(
    "vm_event_mov_to_msr",
    ("uint64_t", "msr"),
    ("uint64_t", "new_value"),
    ("uint64_t", "old_value"),
)


# Descriptor tables.
VM_EVENT_DESC_IDTR = 1
VM_EVENT_DESC_GDTR = 2
VM_EVENT_DESC_LDTR = 3
VM_EVENT_DESC_TR = 4

vm_event_desc_access = Layout(
    "vm_event_desc_access",
    (
        Union(
            "arch",
            (
                Layout("vmx", ("uint32_t", "instr_info"), ("uint32_t", "_pad1"), ("uint64_t", "exit_qualification")),
                "vmx",
            ),
        ),
        "arch",
    ),
    ("uint8_t", "descriptor"),
    ("uint8_t", "is_write"),
    ("uint8_t", "_pad", 6),
)


vm_event_cpuid = Layout(
    "vm_event_cpuid",
    ("uint32_t", "insn_length"),
    ("uint32_t", "leaf"),
    ("uint32_t", "subleaf"),
    ("uint32_t", "_pad"),
)


vm_event_interrupt_x86 = Layout(
    "vm_event_interrupt_x86",
    ("uint32_t", "vector"),
    ("uint32_t", "type"),
    ("uint32_t", "error_code"),
    ("uint32_t", "_pad"),
    ("uint64_t", "cr2"),
)


# Paging and sharing.
MEM_PAGING_DROP_PAGE = 1 << 0
MEM_PAGING_EVICT_FAIL = 1 << 1

vm_event_paging = Layout(
    "vm_event_paging",
    ("uint64_t", "gfn"),
    ("uint32_t", "p2mt"),
    ("uint32_t", "flags"),
)


vm_event_sharing = Layout(
    "vm_event_sharing",
    ("uint64_t", "gfn"),
    ("uint32_t", "p2mt"),
    ("uint32_t", "_pad"),
)


# What the processor is to find instead of what is there.
vm_event_emul_read_data = Layout(
    "vm_event_emul_read_data",
    ("uint32_t", "size"),
    ("uint8_t", "data", vm_event_regs_x86.size - 4),
)


vm_event_emul_insn_data = Layout(
    "vm_event_emul_insn_data",
    ("uint8_t", "data", 16),
)


vm_event_vmexit = Layout(
    "vm_event_vmexit",
    (Layout("arch", (Layout("vmx", ("uint64_t", "reason"), ("uint64_t", "qualification")), "vmx")), "arch"),
)


# A request or response.
vm_event_st = Layout(
    "vm_event_st",
    ("uint32_t", "version"),
    ("uint32_t", "flags"),
    ("uint32_t", "reason"),
    ("uint32_t", "vcpu_id"),
    ("uint16_t", "altp2m_idx"),
    ("uint16_t", "_pad", 3),
    (
        Union(
            "u",
            (vm_event_paging, "mem_paging"),
            (vm_event_sharing, "mem_sharing"),
            (vm_event_mem_access, "mem_access"),
            (vm_event_write_ctrlreg, "write_ctrlreg"),
            (vm_event_mov_to_msr, "mov_to_msr"),
            (vm_event_desc_access, "desc_access"),
            (vm_event_singlestep, "singlestep"),
            (vm_event_fast_singlestep, "fast_singlestep"),
            (vm_event_debug, "software_breakpoint"),
            (vm_event_debug, "debug_exception"),
            (vm_event_cpuid, "cpuid"),
            (vm_event_vmexit, "vmexit"),
            (Union("interrupt", (vm_event_interrupt_x86, "x86")), "interrupt"),
        ),
        "u",
    ),
    (
        Union(
            "data",
            (Union("regs", (vm_event_regs_x86, "x86"), (vm_event_regs_arm, "arm")), "regs"),
            (Union("emul", (vm_event_emul_read_data, "read"), (vm_event_emul_insn_data, "insn")), "emul"),
        ),
        "data",
    ),
)


# DEFINE_RING_TYPES(vm_event, ...).
vm_event_sring_entry, vm_event_sring = ring_types("vm_event", vm_event_st, vm_event_st)

REASON_NAMES = names(globals(), r"VM_EVENT_REASON_\w+")
"""Reasons by number."""
