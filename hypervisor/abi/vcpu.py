"""Per-vCPU operations (vcpu.h): bring-up, runstate accounting, timers, and where vcpu_info lives."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union

# vcpu.h: give a vCPU its initial context, bring it up and down, ask whether it is up.
VCPUOP_initialise = 0
VCPUOP_up = 1
VCPUOP_down = 2
VCPUOP_is_up = 3

# How long a vCPU has run, waited, blocked and been offline. The bit marks an update in progress.
VCPUOP_get_runstate_info = 4

XEN_RUNSTATE_UPDATE = 1 << 63

vcpu_runstate_info = Layout(
    "vcpu_runstate_info",
    ("int", "state"),
    ("uint64_t", "state_entry_time"),
    ("uint64_t", "time", 4),
)

# Run states.
RUNSTATE_running = 0
RUNSTATE_runnable = 1
RUNSTATE_blocked = 2
RUNSTATE_offline = 3

# Have Xen keep that account in the guest's memory.
VCPUOP_register_runstate_memory_area = 5

vcpu_register_runstate_memory_area = Layout(
    "vcpu_register_runstate_memory_area",
    (
        Union(
            "addr",
            ("XEN_GUEST_HANDLE(vcpu_runstate_info_t)", "h"),
            ("struct vcpu_runstate_info *", "v"),
            ("uint64_t", "p"),
        ),
        "addr",
    ),
)

# The periodic timer: VIRQ_TIMER every so often.
VCPUOP_set_periodic_timer = 6
VCPUOP_stop_periodic_timer = 7

vcpu_set_periodic_timer = Layout("vcpu_set_periodic_timer", ("uint64_t", "period_ns"))

# The one-shot timer: VIRQ_TIMER at a point in system time.
VCPUOP_set_singleshot_timer = 8
VCPUOP_stop_singleshot_timer = 9

vcpu_set_singleshot_timer = Layout(
    "vcpu_set_singleshot_timer",
    ("uint64_t", "timeout_abs_ns"),
    ("uint32_t", "flags"),
)

# Refuse (-ETIME) a point that has passed.
_VCPU_SSHOTTMR_future = 0
VCPU_SSHOTTMR_future = 1 << _VCPU_SSHOTTMR_future

# Move vcpu_info out of shared_info, once.
VCPUOP_register_vcpu_info = 10

vcpu_register_vcpu_info = Layout(
    "vcpu_register_vcpu_info",
    ("uint64_t", "mfn"),
    ("uint32_t", "offset"),
    ("uint32_t", "rsvd"),
)

# Inject an NMI; then: the physical ids of the processor beneath (dom0 pinned to it).
VCPUOP_send_nmi = 11

VCPUOP_get_physid = 12

vcpu_get_physid = Layout("vcpu_get_physid", ("uint64_t", "phys_id"))

# A second, user-readable copy of vcpu_time_info.
VCPUOP_register_vcpu_time_memory_area = 13

vcpu_register_time_memory_area = Layout(
    "vcpu_register_time_memory_area",
    (
        Union(
            "addr",
            ("XEN_GUEST_HANDLE(vcpu_time_info_t)", "h"),
            ("struct vcpu_time_info *", "v"),
            ("uint64_t", "p"),
        ),
        "addr",
    ),
)

NAMES = names(globals(), r"VCPUOP_\w+")
"""Operations by number."""

RUNSTATE_NAMES = names(globals(), r"RUNSTATE_\w+")
"""Run states by number."""


def xen_vcpu_physid_to_x86_apicid(physid: int) -> int:
    """Return the APIC id in the answer to VCPUOP_get_physid."""
    return physid & 0xFFFFFFFF


def xen_vcpu_physid_to_x86_acpiid(physid: int) -> int:
    """Return the ACPI id in the answer to VCPUOP_get_physid."""
    return physid >> 32
