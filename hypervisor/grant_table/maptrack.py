"""Maptrack: what a domain has mapped through other domains' grants, by handle.

Handles are handed out by the page, 256 at a time, up to a limit. Free ones stand in one queue per vCPU; a freed handle
goes to the tail of the queue of the vCPU that it was given to, and the last one of a queue is never handed out (it is
the tail that the others hang on in Xen). So handles are not reused lowest first, and a guest can see that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.errors import InvariantError

if TYPE_CHECKING:
    from hypervisor.grant_table.table import GrantTable

HANDLES_PER_FRAME = 256
NO_HANDLE = -1


class Maptrack:
    """Handles of one domain. `flags[h]` holds the GNTMAP_* bits of the mapping and is 0 for a free handle.

    `table[h]` is the granter's table and `ref[h]` the entry in it. They are lists, not objects per handle: the map and
    unmap loops read and write them directly, and use `free` of their vCPU as a queue.
    """

    __slots__ = ("_room", "flags", "frames", "free", "max_frames", "ref", "table", "vcpu")

    def __init__(self, max_frames: int, room: Callable[[], bool] = lambda: True) -> None:
        self.max_frames = max_frames
        self._room = room
        """Takes a page of Xen's for more handles; False if there is none."""
        self.frames = 0
        self.flags: list[int] = []
        self.ref: list[int] = []
        self.table: list[GrantTable | None] = []
        self.vcpu: list[int] = []
        """Whose queue a handle goes back to."""
        self.free: dict[int, deque[int]] = {}

    def queue(self, vcpu_id: int) -> deque[int]:
        """Return the free handles of a vCPU, the next one to use first."""
        free = self.free.get(vcpu_id)
        if free is None:
            free = self.free[vcpu_id] = deque()
        return free

    def refill(self, vcpu_id: int) -> bool:
        """Put at least one usable handle into the queue of a vCPU; False when the domain has reached its limit."""
        free = self.queue(vcpu_id)
        if self.frames >= self.max_frames or not self._room():
            return self._steal(vcpu_id, free)
        first = self.frames * HANDLES_PER_FRAME
        self.frames += 1
        self.flags += [0] * HANDLES_PER_FRAME
        self.ref += [0] * HANDLES_PER_FRAME
        self.table += [None] * HANDLES_PER_FRAME
        self.vcpu += [vcpu_id] * HANDLES_PER_FRAME
        free.extendleft(range(first + HANDLES_PER_FRAME - 1, first - 1, -1))
        return True

    def _steal(self, vcpu_id: int, free: deque[int]) -> bool:
        """Take free handles from the other vCPUs, starting with the next one; an empty queue needs a tail as well."""
        while len(free) < 2:
            for other in sorted(self.free, key=lambda other: (other < vcpu_id, other)):
                if other != vcpu_id and len(self.free[other]) > 1:
                    handle = self.free[other].popleft()
                    self.vcpu[handle] = vcpu_id
                    free.appendleft(handle)
                    break
            else:
                return False
        return True

    def get(self, vcpu_id: int) -> int:
        """Take a free handle for a vCPU, or NO_HANDLE."""
        free = self.queue(vcpu_id)
        if len(free) < 2 and not self.refill(vcpu_id):
            return NO_HANDLE
        return free.popleft()

    def record(self, handle: int, table: GrantTable, ref: int, flags: int) -> None:
        """Let a handle stand for a mapping of entry `ref` of a table."""
        self.flags[handle] = flags
        self.ref[handle] = ref
        self.table[handle] = table

    def put(self, handle: int) -> None:
        """Give a handle back."""
        self.flags[handle] = 0
        self.table[handle] = None
        self.free[self.vcpu[handle]].append(handle)

    def live(self) -> list[int]:
        """Return the handles in use, in order."""
        return [handle for handle, flags in enumerate(self.flags) if flags]

    def check(self) -> None:
        """Raise InvariantError unless every handle is either in use or in exactly one queue (XSA-228)."""
        seen: set[int] = set()
        for vcpu_id, free in self.free.items():
            for handle in free:
                if handle in seen or self.flags[handle]:
                    raise InvariantError(f"maptrack handle {handle} is free twice, or free and in use")
                if self.vcpu[handle] != vcpu_id:
                    raise InvariantError(f"maptrack handle {handle} is in the queue of another vCPU")
                seen.add(handle)
        if len(seen) + len(self.live()) != len(self.flags):
            raise InvariantError(f"{len(self.flags) - len(seen) - len(self.live())} maptrack handles are lost")
