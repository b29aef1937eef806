"""Where a Python kernel lies in its domain's address space, and at which addresses the processor enters it."""

from __future__ import annotations

from collections.abc import Mapping

VIRT_BASE = 0xFFFF_FFFF_8000_0000
ENTRY_OFFSET = 0x1000
TEXT_OFFSET = 0x1100
MAX_VCPUS = 32
"""vCPUs whose vcpu_info has a place in shared_info (XEN_LEGACY_MAX_VCPUS)."""


def _symbols() -> Mapping[str, int]:
    """Return the addresses at which the processor enters the kernel."""
    names = ["failsafe_callback", "secondary_startup"]
    names += [f"event_callback.{vcpu_id}" for vcpu_id in range(MAX_VCPUS)]
    symbols = {name: VIRT_BASE + TEXT_OFFSET + 16 * index for index, name in enumerate(names)}
    return {"startup": VIRT_BASE + ENTRY_OFFSET, **symbols}


SYMBOLS = _symbols()
"""The kernel's symbol table: name → guest virtual address of the code."""
