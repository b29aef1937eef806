"""Machine memory: one flat buffer of 4 KiB frames, shared by every domain of the host.

Machine frame number = offset >> 12. The buffer is anonymous memory of the process, lazily touched and never moved, so a
host of many gigabytes costs only what its guests write, and a CPU emulator can later run on it without a copy.
"""

import ctypes
import mmap
import sys

MAP_NORESERVE = 0x4000
"""Linux's mmap flag: set no swap space aside for memory that may never be touched."""

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = PAGE_SIZE - 1


class Memory:
    """All frames of the host, seen through flat views.

    `b`, `h`, `i`, `q` are views of unsigned 8, 16, 32 and 64-bit little-endian words over all of machine memory; their
    indices are the machine address, shifted right by 0, 1, 2 or 3. `written` has one byte per frame: 1 = somebody other
    than the owning guest's own code (the hypervisor, a backend through a grant, a device) has written to it since the
    mark was last cleared. The stale-code check of a CPU emulator hangs on that mark: it makes a 2 of it once it has
    dropped its translations of the frame's code. As long as there is no emulator (`watched`), who is in a hurry need
    not mark anything.
    """

    __slots__ = ("_map", "_marks", "b", "frames", "h", "i", "q", "watched", "written")

    def __init__(self, frames: int) -> None:
        if sys.byteorder != "little":
            raise RuntimeError("paravirt needs a little-endian machine: guests share its memory as x86 does")
        if frames <= 0:
            raise ValueError(f"a machine needs at least one frame of memory, not {frames}")
        self.frames = frames
        self._map = mmap.mmap(-1, frames << PAGE_SHIFT, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        self.b = memoryview(self._map)
        self.h = self.b.cast("H")
        self.i = self.b.cast("I")
        self.q = self.b.cast("Q")
        self._marks = mmap.mmap(-1, max(frames, PAGE_SIZE))
        self.written = memoryview(self._marks)
        self.watched = False
        """Whether somebody looks at `written`: from then on, what is marked is not forgotten."""

    def frame(self, mfn: int) -> memoryview:
        """Return the 4096 bytes of one frame as a writable view."""
        return self.b[mfn << PAGE_SHIFT : (mfn + 1) << PAGE_SHIFT]

    def write(self, maddr: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes at a machine address and mark the frames: the one way to write what a guest did not."""
        size = len(data)
        if not size:
            return
        self.b[maddr : maddr + size] = data
        first, last = maddr >> PAGE_SHIFT, (maddr + size - 1) >> PAGE_SHIFT
        self.written[first] = 1
        if last != first:
            for mfn in range(first + 1, last + 1):
                self.written[mfn] = 1

    def mark(self, mfn: int) -> None:
        """Mark a frame that was written through a view (device DMA, grant copy)."""
        self.written[mfn] = 1

    def address(self) -> tuple[int, int]:
        """Return the addresses of all frames, and of their marks, in this process: for a CPU that runs on them.

        That watches memory from now on.
        """
        self.watched = True
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map)), ctypes.addressof(
            ctypes.c_char.from_buffer(self._marks)
        )

    def discard(self, mfn: int, count: int) -> None:
        """Give frames back to the process's own host: they read as zero afterwards and cost nothing."""
        self.written[mfn : mfn + count] = b"\1" * count
        self._map.madvise(mmap.MADV_DONTNEED, mfn << PAGE_SHIFT, count << PAGE_SHIFT)
