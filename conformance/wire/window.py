"""The memory that a subject in another process can reach: what its domain has mapped, and no page more.

The process is given a memfd. A frame of machine memory that it may use is moved into a page of that file, contents and
all, and the file's page is mapped in the frame's place: this process finds the frame at the address that it always had,
and the other one at the page. When the mapping ends the frame becomes plain memory again, and the file has a hole
there. So the process meets what a page table would let it meet: the present contents of a page as long as it has that
mapped, and nothing of it afterwards. And who reads or writes a hole fills it, which is seen (`touched`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections import deque
from typing import Any, Final, final

from hypervisor.machine.backing import punch_hole
from hypervisor.machine.memory import MAP_NORESERVE, PAGE_SHIFT, PAGE_SIZE, Memory

MAP_FIXED: Final = 0x10
PAGES: Final = 4096
"""Of the window: 16 MiB."""

_mmap = ctypes.CDLL(None, use_errno=True).mmap
"""Python's own mmap chooses the address itself."""
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_FAILED: Final = ctypes.c_void_p(-1).value


class WindowFull(Exception):
    """All pages of the window are in use."""


@final
class Window:
    """A memfd through which another process sees frames of machine memory."""

    def __init__(self, pages: int = PAGES) -> None:
        self.pages = pages
        self.fd = os.memfd_create("paravirt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, pages << PAGE_SHIFT)
        # A file that the other process makes shorter would kill this one at its next look (SIGBUS).
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        # (A page that has been given up is used again as late as can be: what still looks there is to find nothing.)
        self._free = deque(range(pages))
        self._open: dict[int, list[int]] = {}
        """By frame: its page, and how many mappings there are."""
        self._memory: Memory | None = None
        self._base = 0

    def attach(self, memory: Memory) -> None:
        """Say of which machine memory frames will be shown."""
        self._memory = memory
        self._base, _ = memory.address()

    def show(self, mfn: int) -> int:
        """Let the process see a frame; return the page of the window. Raises WindowFull."""
        shown = self._open.get(mfn)
        if shown is not None:
            shown[1] += 1
            return shown[0]
        if not self._free:
            raise WindowFull
        page = self._free.popleft()
        memory = self._memory
        assert memory is not None
        contents = bytes(memory.frame(mfn))
        self._map(mfn, mmap.MAP_SHARED, self.fd, page << PAGE_SHIFT)
        memory.frame(mfn)[:] = contents
        self._open[mfn] = [page, 1]
        return page

    def hide(self, mfn: int) -> None:
        """Take back what one `show` has given."""
        shown = self._open[mfn]
        shown[1] -= 1
        if shown[1]:
            return
        page, _ = self._open.pop(mfn)
        memory = self._memory
        assert memory is not None
        contents = bytes(memory.frame(mfn))
        self._map(mfn, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        memory.frame(mfn)[:] = contents
        # The process may have written there: the marks are what others go by.
        memory.mark(mfn)
        failure = punch_hole(self.fd, page << PAGE_SHIFT, PAGE_SIZE)
        if failure:
            raise OSError(failure, os.strerror(failure))
        self._free.append(page)

    def touched(self) -> list[int]:
        """Return the pages in which the process has looked, or written, though nothing is shown there."""
        used = {page for page, _ in self._open.values()}
        found: list[int] = []
        at = 0
        while True:
            try:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return found
                raise
            end = os.lseek(self.fd, at, os.SEEK_HOLE)
            found += [page for page in range(at >> PAGE_SHIFT, -(-end >> PAGE_SHIFT)) if page not in used]
            # (The process may be punching holes meanwhile.)
            at = max(end, at + PAGE_SIZE)

    def hide_all(self) -> None:
        """Take everything back: the domain is gone."""
        for mfn in list(self._open):
            self._open[mfn][1] = 1
            self.hide(mfn)

    def close(self) -> None:
        """Take everything back, and give the memory of the window up."""
        self.hide_all()
        os.close(self.fd)

    def _map(self, mfn: int, flags: int, fd: int, offset: int) -> None:
        """Put other memory in the place of a frame."""
        at: Any = self._base + (mfn << PAGE_SHIFT)
        if _mmap(at, PAGE_SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags | MAP_FIXED, fd, offset) in (None, _FAILED):
            number = ctypes.get_errno()
            raise OSError(number, f"a frame of machine memory: {os.strerror(number)}")
