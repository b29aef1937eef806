"""Lab 3: machine memory and pseudo-physical memory. Replace each `raise NotImplementedError`."""

from __future__ import annotations

import struct  # noqa: F401
from typing import Any

from hypervisor.abi import memory, xen  # noqa: F401
from hypervisor.abi.cpu import Cpu, PageFault  # noqa: F401

PAGE_SIZE = 4096
VIRT_BASE = 0xFFFF_FFFF_8000_0000
INVALID_MFN = (1 << 64) - 1
PRESENT, WRITABLE = 0x1, 0x2


class XenError(Exception):
    """Xen has refused something; `errno` says why, as a positive number."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"Xen answers -{errno}")
        self.errno = errno


def mfn_of(cpu: Cpu, info: Any, pfn: int) -> int:
    """Return the machine frame of a page, by the p2m. Raises IndexError for a pfn that the domain does not have.

    The list goes over several pages if the domain is larger than 2 MiB; `cpu.view` gives you one page at a time.
    """
    raise NotImplementedError("entry pfn of the list at info.mfn_list")


def set_mfn(cpu: Cpu, info: Any, pfn: int, mfn: int) -> None:
    """Write an entry of the p2m."""
    raise NotImplementedError("it is your own memory")


def pfn_of(cpu: Cpu, mfn: int) -> int | None:
    """Return what the M2P says of a frame: a pfn (of whomever), or None if there is no such entry or it is invalid."""
    raise NotImplementedError(
        "entry mfn of the table at MACH2PHYS_VIRT_START; the table is read-only, and ends somewhere"
    )


def owns(cpu: Cpu, info: Any, mfn: int) -> bool:
    """Return whether a frame is a page of this domain: both tables agree."""
    raise NotImplementedError("a foreign frame has a pfn, too")


def machine_address(cpu: Cpu, info: Any, va: int) -> int:
    """Return the machine address behind a virtual address of the builder's mapping."""
    raise NotImplementedError("the page by the p2m, and the offset in it")


def reservation(cpu: Cpu, page: int) -> tuple[int, int]:
    """Return how many pages the domain has, and how many it may have.

    XENMEM_current_reservation and XENMEM_maximum_reservation take the address of a xen_memory_domain (one u16, the
    domain).
    """
    raise NotImplementedError("two hypercalls; DOMID_SELF is this domain")


def give_back(cpu: Cpu, page: int, info: Any, pfns: list[int]) -> None:
    """Give pages back to Xen: unmap each, take it out of the p2m, and tell Xen, in one call for all.

    Raises XenError if Xen refuses, or does not take all of them (then with errno 0).
    """
    raise NotImplementedError("update_va_mapping with 0 for each; then XENMEM_decrease_reservation with the mfns")


def take(cpu: Cpu, page: int, info: Any, pfns: list[int]) -> None:
    """Get memory for pages that have none: from Xen, into the p2m, and mapped where the builder had mapped them.

    Raises XenError as give_back does.
    """
    raise NotImplementedError("XENMEM_populate_physmap with the pfns; the list has the mfns afterwards")
