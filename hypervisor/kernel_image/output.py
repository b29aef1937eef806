"""Where a kernel is unpacked to: memory that is taken as it is written to, and never moved.

Nobody knows beforehand how large a kernel is. A buffer that grows, or parts that are joined in the end, would take ten
thousand pages of the system twice, which costs more than the copying. And a third of a usual kernel are zeros: they are
left out, since memory that has not been written to reads as zero.
"""

from __future__ import annotations

import mmap

from hypervisor.machine.memory import MAP_NORESERVE

CHUNK = 32 << 10
"""How many bytes are unpacked at a time: few enough for the processor's cache, and for zeros to be a whole one."""
_ZEROS = bytes(CHUNK)


class Output:
    """Up to `limit` bytes, which are appended a chunk at a time."""

    def __init__(self, limit: int) -> None:
        memory = mmap.mmap(-1, limit, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        self._view = memoryview(memory)
        self.size = 0

    @property
    def room(self) -> int:
        """Return how many bytes can still be appended."""
        return len(self._view) - self.size

    def append(self, chunk: bytes) -> None:
        """Append at most `CHUNK` bytes."""
        end = self.size + len(chunk)
        if chunk != _ZEROS:
            self._view[self.size : end] = chunk
        self.size = end

    def contents(self) -> memoryview:
        """Return what has been appended, without a copy."""
        return self._view[: self.size].toreadonly()
