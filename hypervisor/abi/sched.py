"""Scheduling (sched.h): a vCPU gives up the processor, waits for event channels, or ends its domain."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout

# sched.h: operations. yield and block take no argument; the others the structure of their name.
SCHEDOP_yield = 0
SCHEDOP_block = 1
SCHEDOP_shutdown = 2
SCHEDOP_poll = 3
SCHEDOP_remote_shutdown = 4
SCHEDOP_shutdown_code = 5
SCHEDOP_watchdog = 6
SCHEDOP_pin_override = 7

# The reason why the calling domain ends (SCHEDOP_shutdown), or is to be said to have (SCHEDOP_shutdown_code).
sched_shutdown = Layout("sched_shutdown", ("unsigned int", "reason"))

# Wait until one of the ports is pending, or a point in system time (0: for ever), without an upcall.
sched_poll = Layout(
    "sched_poll",
    ("XEN_GUEST_HANDLE(evtchn_port_t)", "ports"),
    ("unsigned int", "nr_ports"),
    ("uint64_t", "timeout"),
)

# End another domain.
sched_remote_shutdown = Layout(
    "sched_remote_shutdown",
    ("domid_t", "domain_id"),
    ("unsigned int", "reason"),
)

# Arm or disarm a watchdog: the domain is shut down when it is not re-armed in `timeout` seconds.
sched_watchdog = Layout(
    "sched_watchdog",
    ("uint32_t", "id"),
    ("uint32_t", "timeout"),
)

# Pin the calling vCPU to a pCPU for a while (dom0, for firmware calls).
sched_pin_override = Layout("sched_pin_override", ("int32_t", "pcpu"))

# sched.h, "sched_shutdown_reason": the toolstack reads it and obeys on_poweroff, on_reboot, on_crash.
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
