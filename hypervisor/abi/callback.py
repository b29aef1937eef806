"""Guest callbacks (callback.h): the addresses in the guest that Xen enters for events, faults and system calls."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout

# callback.h: which callback. sysenter_deprecated took an address without segment.
CALLBACKTYPE_event = 0
CALLBACKTYPE_failsafe = 1
CALLBACKTYPE_syscall = 2
CALLBACKTYPE_sysenter_deprecated = 3
CALLBACKTYPE_nmi = 4
CALLBACKTYPE_sysenter = 5
CALLBACKTYPE_syscall32 = 7

# Enter the callback with events masked.
_CALLBACKF_mask_events = 0
CALLBACKF_mask_events = 1 << _CALLBACKF_mask_events

# Set or clear one.
CALLBACKOP_register = 0

callback_register = Layout(
    "callback_register",
    ("uint16_t", "type"),
    ("uint16_t", "flags"),
    ("xen_callback_t", "address"),
)

CALLBACKOP_unregister = 1

callback_unregister = Layout(
    "callback_unregister",
    ("uint16_t", "type"),
    ("uint16_t", "_unused"),
)

NAMES = names(globals(), r"CALLBACKOP_\w+")
"""Operations by number."""

TYPE_NAMES = names(globals(), r"CALLBACKTYPE_\w+")
"""Callbacks by number."""
