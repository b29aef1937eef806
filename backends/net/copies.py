"""Grant copies in batches: operations written straight into a page, one hypercall for a page of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from guest_kernel.grants import COPY_BATCH, COPY_OPERATION
from hypervisor.abi.grant_table import GNTTABOP_copy, gnttab_copy
from hypervisor.abi.xen import HYPERVISOR_grant_table_op

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel
    from guest_kernel.mm import Page

SIZE = gnttab_copy.size
STATUS = gnttab_copy.offset("status") >> 1
STRIDE = SIZE >> 1
UNDONE = 1
"""What `status` holds before Xen has written it: no GNTST_ value is positive."""


class CopyBatch:
    """A page of copy operations. `add` returns the operation's number in the batch; `run` the statuses by number."""

    CAPACITY = COPY_BATCH

    def __init__(self, kernel: Kernel) -> None:
        self._page: Page = kernel.mm.alloc_page()
        self._mm = kernel.mm
        self._hypercall: Callable[..., int] = kernel.cpu.hypercall
        self._statuses = self._page.h
        self.count = 0

    def add(self, op: tuple[int, int, int, int, int, int, int, int]) -> int:
        """Append (source, domid, offset, destination, domid, offset, length, GNTCOPY_ flags); there must be room."""
        number = self.count
        COPY_OPERATION.pack_into(self._page.view, number * SIZE, *op, UNDONE)
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
