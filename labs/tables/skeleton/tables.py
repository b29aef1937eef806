"""Lab 4: page tables and pinning. Replace each `raise NotImplementedError`."""

from __future__ import annotations

import struct  # noqa: F401
from collections.abc import Callable, Sequence

from hypervisor.abi import xen  # noqa: F401
from hypervisor.abi.cpu import Cpu

PAGE_SIZE = 4096
PRESENT, WRITABLE, USER = 0x1, 0x2, 0x4
FRAME = 0x000F_FFFF_FFFF_F000
"""The bits of an entry that are a machine address."""
XEN_SLOTS = range(256, 272)
PIN = {1: 0, 2: 1, 3: 2, 4: 3}
"""MMUEXT_PIN_L1_TABLE ..., by level."""

Table = Callable[[int], memoryview]
"""The 512 entries of the page table in a machine frame, to be read."""
Alloc = Callable[[], tuple[int, int]]
"""A fresh page of zeros: its virtual address (mapped writable), its machine frame."""


class XenError(Exception):
    """Xen has refused something; `errno` says why, as a positive number."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"Xen answers -{errno}")
        self.errno = errno


def index(va: int, level: int) -> int:
    """Return which entry of a table of this level (1 to 4) is for an address."""
    raise NotImplementedError("nine bits for each level, above the twelve of the offset")


def walk(table: Table, root: int, va: int) -> int | None:
    """Return the L1 entry for an address, as the processor finds it from the L4 table in frame `root`; None if none."""
    raise NotImplementedError("four tables; an entry that is not present ends the walk")


def update(cpu: Cpu, page: int, updates: Sequence[tuple[int, int]]) -> None:
    """Set entries of page tables, (machine address of the entry, value) each, with one hypercall for all.

    At most 256. Raises XenError if Xen refuses one.
    """
    raise NotImplementedError("HYPERVISOR_mmu_update")


def protect(cpu: Cpu, va: int, mfn: int, writable: bool) -> None:
    """Map frame `mfn` at `va` (which has an L1 table), writable or read-only. Raises XenError."""
    raise NotImplementedError("HYPERVISOR_update_va_mapping; the processor must forget what it knew of the address")


def add_l1(cpu: Cpu, page: int, alloc: Alloc, table: Table, root: int, va: int, frames: Sequence[int]) -> int:
    """Map `frames`, writable, from `va` on: an address at a multiple of 2 MiB where there is an L2 table, and no L1.

    Returns the frame of the L1 table that this takes. Raises XenError.
    """
    raise NotImplementedError("fill, protect, hook in: in this order")


def pin(cpu: Cpu, page: int, mfn: int, level: int) -> None:
    """Pin a frame as a page table of a level. Raises XenError."""
    raise NotImplementedError("HYPERVISOR_mmuext_op with one operation")


def unpin(cpu: Cpu, page: int, mfn: int) -> None:
    """Unpin a page table. Raises XenError."""
    raise NotImplementedError("MMUEXT_UNPIN_TABLE")


def new_space(cpu: Cpu, page: int, alloc: Alloc, table: Table, root: int) -> int:
    """Make another address space which has all that this one has; return the frame of its L4 table, pinned.

    Only the L4 table is new: the tables below it are shared. Raises XenError.
    """
    raise NotImplementedError("copy the entries, but for those that are Xen's; protect; pin")


def switch(cpu: Cpu, page: int, root: int) -> None:
    """Have this vCPU use another L4 table. Raises XenError."""
    raise NotImplementedError("MMUEXT_NEW_BASEPTR")
