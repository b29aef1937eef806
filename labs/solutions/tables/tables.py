"""Lab 4, solved."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from hypervisor.abi import xen
from hypervisor.abi.cpu import Cpu

PAGE_SIZE = 4096
PRESENT, WRITABLE, USER = 0x1, 0x2, 0x4
FRAME = 0x000F_FFFF_FFFF_F000
XEN_SLOTS = range(256, 272)
PIN = {1: 0, 2: 1, 3: 2, 4: 3}

Table = Callable[[int], memoryview]
Alloc = Callable[[], tuple[int, int]]


class XenError(Exception):
    """Xen has refused something; `errno` says why, as a positive number."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"Xen answers -{errno}")
        self.errno = errno


def check(result: int) -> None:
    """Raise XenError for an error."""
    if result < 0:
        raise XenError(-result)


def index(va: int, level: int) -> int:
    """Return which entry of a table of this level is for an address."""
    return va >> (12 + 9 * (level - 1)) & 511


def walk(table: Table, root: int, va: int) -> int | None:
    """Return the L1 entry for an address."""
    mfn = root
    for level in (4, 3, 2, 1):
        entry = table(mfn)[index(va, level)]
        if not entry & PRESENT:
            return None
        mfn = (entry & FRAME) >> 12
    return entry


def update(cpu: Cpu, page: int, updates: Sequence[tuple[int, int]]) -> None:
    """Set entries of page tables."""
    view = cpu.view(page)
    for number, (address, value) in enumerate(updates):
        struct.pack_into("<QQ", view, 16 * number, address | xen.MMU_NORMAL_PT_UPDATE, value)
    check(cpu.hypercall(xen.HYPERVISOR_mmu_update, page, len(updates), 0, xen.DOMID_SELF))


def protect(cpu: Cpu, va: int, mfn: int, writable: bool) -> None:
    """Map frame `mfn` at `va`, writable or read-only."""
    entry = mfn << 12 | PRESENT | (WRITABLE if writable else 0)
    check(cpu.hypercall(xen.HYPERVISOR_update_va_mapping, va, entry, xen.UVMF_INVLPG))


def add_l1(cpu: Cpu, page: int, alloc: Alloc, table: Table, root: int, va: int, frames: Sequence[int]) -> int:
    """Map `frames` from `va` on with a new L1 table; return its frame."""
    new_va, new = alloc()
    entries = cpu.view(new_va).cast("Q")
    for number, mfn in enumerate(frames):
        entries[number] = mfn << 12 | PRESENT | WRITABLE
    protect(cpu, new_va, new, writable=False)
    mfn = root
    for level in (4, 3):
        mfn = (table(mfn)[index(va, level)] & FRAME) >> 12
    update(cpu, page, [(mfn << 12 | index(va, 2) << 3, new << 12 | PRESENT | WRITABLE | USER)])
    return new


def extended(cpu: Cpu, page: int, command: int, mfn: int) -> None:
    """Make one mmuext_op."""
    struct.pack_into("<I4xQQ", cpu.view(page), 0, command, mfn, 0)
    check(cpu.hypercall(xen.HYPERVISOR_mmuext_op, page, 1, 0, xen.DOMID_SELF))


def pin(cpu: Cpu, page: int, mfn: int, level: int) -> None:
    """Pin a frame as a page table of a level."""
    extended(cpu, page, PIN[level], mfn)


def unpin(cpu: Cpu, page: int, mfn: int) -> None:
    """Unpin a page table."""
    extended(cpu, page, xen.MMUEXT_UNPIN_TABLE, mfn)


def new_space(cpu: Cpu, page: int, alloc: Alloc, table: Table, root: int) -> int:
    """Make another address space which has all that this one has; return the frame of its L4 table, pinned."""
    va, new = alloc()
    entries = cpu.view(va).cast("Q")
    for slot, entry in enumerate(table(root)):
        entries[slot] = 0 if slot in XEN_SLOTS else entry
    protect(cpu, va, new, writable=False)
    pin(cpu, page, new, 4)
    return new


def switch(cpu: Cpu, page: int, root: int) -> None:
    """Have this vCPU use another L4 table."""
    extended(cpu, page, xen.MMUEXT_NEW_BASEPTR, root)
