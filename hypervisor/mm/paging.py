"""A domain's paging assistance, as far as a PV domain has it: the pool of frames for shadows, and log-dirty mode.

There are no shadows of page tables here. The pool is kept all the same: it is memory of the host that a domain costs
while its dirty pages are logged, and what may fail for want of memory fails here too. Sizes: mm/shadow/common.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.mm.log_dirty import LogDirty

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.mm.frame_table import FrameTable

POOL_FRAMES_PER_VCPU = 128
"""What Xen deems enough to carry any one instruction out, rounded up."""
POOL_FRAMES_PER_MIB_SHIFT = 8
"""One more for each MiB of the domain."""


class Interrupted:
    """An operation that has given the processor back: who does it, which it is, and how many pages are done."""

    __slots__ = ("caller", "op", "pages")

    def __init__(self, caller: Domain, op: int, pages: int) -> None:
        self.caller = caller
        self.op = op
        self.pages = pages


class Paging:
    """The state of one domain."""

    __slots__ = ("_domain", "_frames", "enabled", "interrupted", "log", "pool")

    def __init__(self, frames: FrameTable, domain: Domain) -> None:
        self._frames = frames
        self._domain = domain
        self.enabled = False
        """Shadow mode is on (PG_SH_enable)."""
        self.log: LogDirty | None = None
        """Log-dirty mode is on."""
        self.pool: list[int] = []
        self.interrupted: Interrupted | None = None

    @property
    def least_pool(self) -> int:
        """Return how many frames the pool needs."""
        return self._domain.max_vcpus * POOL_FRAMES_PER_VCPU + (self._domain.tot_pages >> POOL_FRAMES_PER_MIB_SHIFT)

    @property
    def pool_mib(self) -> int:
        """Return the size of the pool in MiB, rounded up."""
        return len(self.pool) + 255 >> 8

    def target(self, frames: int) -> int:
        """Return what size the pool gets if somebody wants so many frames: 0, or not less than it needs."""
        return max(frames, self.least_pool) if frames else 0

    def step(self, target: int) -> bool:
        """Bring the pool one frame nearer to a size. False when there is no memory."""
        if len(self.pool) < target:
            mfn = self._frames.alloc_xen()
            if mfn < 0:
                return False
            self.pool.append(mfn)
        elif len(self.pool) > target:
            self._frames.free_xen(self.pool.pop())
        return True

    def fill(self, frames: int) -> bool:
        """Give the pool at least a size, all at once; False, and no pool, when there is no memory."""
        target = self.target(frames)
        while len(self.pool) != target:
            if not self.step(target):
                self.empty()
                return False
        return True

    def empty(self) -> None:
        """Give the whole pool back."""
        while self.pool:
            self._frames.free_xen(self.pool.pop())

    def start_log(self) -> None:
        """Begin to log what becomes dirty: nothing is yet."""
        self.log = LogDirty(self._frames, self._domain)

    def switch_off(self) -> None:
        """End shadow mode, and log-dirty mode with it."""
        self.enabled, self.log, self.interrupted = False, None, None
        self.empty()
