"""Grant copies in batches: operations written straight into a page, one hypercall for a page of them."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING

from hypervisor.abi.grant_table import GNTTABOP_copy, gnttab_copy
from hypervisor.abi.xen import HYPERVISOR_grant_table_op

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel
    from guest_kernel.mm import Page

OPERATION = Struct("<QHH4xQHH4xHHh2x")
"""gnttab_copy with its two unions as 64-bit words: source, destination, len, flags, status."""
SIZE = gnttab_copy.size
STATUS = gnttab_copy.offset("status") >> 1
STRIDE = SIZE >> 1
UNDONE = 1
"""What `status` holds before Xen has written it: no GNTST_ value is positive."""

if OPERATION.size != SIZE:
    raise AssertionError("gnttab_copy is not what this module packs")


class CopyBatch:
    """A page of copy operations. `add` returns the operation's number in the batch; `run` the statuses by number."""

    CAPACITY = 4096 // SIZE

    def __init__(self, kernel: Kernel) -> None:
        self._page: Page = kernel.mm.alloc_page()
        self._mm = kernel.mm
        self._hypercall: Callable[..., int] = kernel.cpu.hypercall
        self._statuses = self._page.h
        self.count = 0

    def add(self, op: tuple[int, int, int, int, int, int, int, int]) -> int:
        """Append (source, domid, offset, destination, domid, offset, length, GNTCOPY_ flags); there must be room."""
        number = self.count
        OPERATION.pack_into(self._page.view, number * SIZE, *op, UNDONE)
        self.count = number + 1
        return number

    def run(self) -> list[int]:
        """Have Xen do all of them; returns the statuses (0 = GNTST_okay) and empties the batch."""
        count, self.count = self.count, 0
        if not count:
            return []
        rc = self._hypercall(HYPERVISOR_grant_table_op, GNTTABOP_copy, self._page.va, count)
        words = self._statuses
        if rc:
            return [UNDONE] * count
        return [words[at] for at in range(STATUS, STATUS + count * STRIDE, STRIDE)]

    def close(self) -> None:
        """Give the page back."""
        self._mm.free_page(self._page)
