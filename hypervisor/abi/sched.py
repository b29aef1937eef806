"""Scheduling (sched.h): a vCPU gives up the processor, waits for event channels, or ends its domain."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout

SCHEDOP_yield = 0

SCHEDOP_block = 1

SCHEDOP_shutdown = 2

SCHEDOP_poll = 3

SCHEDOP_remote_shutdown = 4

SCHEDOP_shutdown_code = 5

SCHEDOP_watchdog = 6

SCHEDOP_pin_override = 7

sched_shutdown = Layout("sched_shutdown", ("unsigned int", "reason"))

sched_poll = Layout(
    "sched_poll", ("XEN_GUEST_HANDLE(evtchn_port_t)", "ports"), ("unsigned int", "nr_ports"), ("uint64_t", "timeout")
)

sched_remote_shutdown = Layout("sched_remote_shutdown", ("domid_t", "domain_id"), ("unsigned int", "reason"))

sched_watchdog = Layout("sched_watchdog", ("uint32_t", "id"), ("uint32_t", "timeout"))

sched_pin_override = Layout("sched_pin_override", ("int32_t", "pcpu"))

SHUTDOWN_poweroff = 0
SHUTDOWN_reboot = 1
SHUTDOWN_suspend = 2
SHUTDOWN_crash = 3
SHUTDOWN_watchdog = 4

SHUTDOWN_soft_reset = 5
SHUTDOWN_MAX = 5

NAMES = names(globals(), r"SCHEDOP_\w+")
"""Operations by number."""

SHUTDOWN_NAMES = names(globals(), r"SHUTDOWN_(?!MAX)\w+")
"""Reasons for a shutdown by number."""
