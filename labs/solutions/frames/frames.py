"""Lab 3, solved."""

from __future__ import annotations

import struct
from typing import Any

from hypervisor.abi import memory, xen
from hypervisor.abi.cpu import Cpu, PageFault

PAGE_SIZE = 4096
VIRT_BASE = 0xFFFF_FFFF_8000_0000
INVALID_MFN = (1 << 64) - 1
PRESENT, WRITABLE = 0x1, 0x2


class XenError(Exception):
    """Xen has refused something; `errno` says why, as a positive number."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"Xen answers -{errno}")
        self.errno = errno


def check(result: int) -> int:
    """Return the result of a hypercall; raise XenError if it is an error."""
    if result < 0:
        raise XenError(-result)
    return result


def entry_at(cpu: Cpu, address: int, write: bool) -> tuple[memoryview, int]:
    """Return the page of 64-bit numbers that an address lies in, and the index there."""
    page = cpu.view(address & -PAGE_SIZE, PAGE_SIZE, write)
    return page.cast("Q"), (address % PAGE_SIZE) // 8


def mfn_of(cpu: Cpu, info: Any, pfn: int) -> int:
    """Return the machine frame of a page, by the p2m."""
    if not 0 <= pfn < info.nr_pages:
        raise IndexError(pfn)
    words, index = entry_at(cpu, info.mfn_list + 8 * pfn, True)
    return words[index]


def set_mfn(cpu: Cpu, info: Any, pfn: int, mfn: int) -> None:
    """Write an entry of the p2m."""
    words, index = entry_at(cpu, info.mfn_list + 8 * pfn, True)
    words[index] = mfn


def pfn_of(cpu: Cpu, mfn: int) -> int | None:
    """Return what the M2P says of a frame."""
    try:
        words, index = entry_at(cpu, xen.MACH2PHYS_VIRT_START + 8 * mfn, False)
    except PageFault:
        return None
    return None if words[index] == INVALID_MFN else words[index]


def owns(cpu: Cpu, info: Any, mfn: int) -> bool:
    """Return whether a frame is a page of this domain: both tables agree."""
    pfn = pfn_of(cpu, mfn)
    return pfn is not None and pfn < info.nr_pages and mfn_of(cpu, info, pfn) == mfn


def machine_address(cpu: Cpu, info: Any, va: int) -> int:
    """Return the machine address behind a virtual address of the builder's mapping."""
    return mfn_of(cpu, info, (va - VIRT_BASE) // PAGE_SIZE) * PAGE_SIZE + va % PAGE_SIZE


def reservation(cpu: Cpu, page: int) -> tuple[int, int]:
    """Return how many pages the domain has, and how many it may have."""
    struct.pack_into("<H", cpu.view(page), 0, xen.DOMID_SELF)
    current = check(cpu.hypercall(xen.HYPERVISOR_memory_op, memory.XENMEM_current_reservation, page))
    return current, check(cpu.hypercall(xen.HYPERVISOR_memory_op, memory.XENMEM_maximum_reservation, page))


def change(cpu: Cpu, page: int, command: int, numbers: list[int]) -> tuple[int, ...]:
    """Change the reservation by a list of extents; return the list as Xen left it."""
    view = cpu.view(page)
    count = len(numbers)
    struct.pack_into("<QQIIH", view, 0, page + 32, count, 0, 0, xen.DOMID_SELF)
    struct.pack_into(f"<{count}Q", view, 32, *numbers)
    if check(cpu.hypercall(xen.HYPERVISOR_memory_op, command, page)) != count:
        raise XenError(0)
    return struct.unpack_from(f"<{count}Q", view, 32)


def give_back(cpu: Cpu, page: int, info: Any, pfns: list[int]) -> None:
    """Give pages back to Xen."""
    mfns = [mfn_of(cpu, info, pfn) for pfn in pfns]
    for pfn in pfns:
        check(cpu.hypercall(xen.HYPERVISOR_update_va_mapping, VIRT_BASE + pfn * PAGE_SIZE, 0, xen.UVMF_INVLPG))
        set_mfn(cpu, info, pfn, INVALID_MFN)
    change(cpu, page, memory.XENMEM_decrease_reservation, mfns)


def take(cpu: Cpu, page: int, info: Any, pfns: list[int]) -> None:
    """Get memory for pages that have none."""
    for pfn, mfn in zip(pfns, change(cpu, page, memory.XENMEM_populate_physmap, pfns), strict=True):
        set_mfn(cpu, info, pfn, mfn)
        entry = mfn * PAGE_SIZE | PRESENT | WRITABLE
        check(cpu.hypercall(xen.HYPERVISOR_update_va_mapping, VIRT_BASE + pfn * PAGE_SIZE, entry, xen.UVMF_INVLPG))
