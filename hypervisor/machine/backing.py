"""What a simulated disk keeps its sectors on: an image file, or memory."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import final

from hypervisor.errors import DeviceError
from hypervisor.machine.memory import MAP_NORESERVE, PAGE_SIZE

ZEROED_AT_ONCE = 1 << 20
"""Bytes that are overwritten with one call."""
COPIED_AT_ONCE = 1 << 20
"""Bytes of a disk in memory that is to have another size."""
LARGEST_SECTOR = 4096
"""What fits into a page."""

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
"""Not in Python's own library: posix_fallocate can only add storage."""
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch_hole(fd: int, offset: int, size: int) -> int:
    """Give back a part of a file, which reads as zero then; 0 or an errno (EOPNOTSUPP where files have no holes)."""
    if _fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size):
        return ctypes.get_errno() or errno.EIO
    return 0


def _stored(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Go through the parts of a file that take storage, from `start` to `end`. Raises OSError."""
    while start < end:
        try:
            first = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # there is a hole up to the end of the file
            if error.errno != errno.EINVAL:
                raise
            yield start, end  # a block device, which has no holes
            return
        last = min(os.lseek(fd, first, os.SEEK_HOLE), end)
        if first < last:
            yield first, last
        start = max(last, first)


class Backing(ABC):
    """`size` bytes of storage, read and written at byte offsets. Errors come back as positive errno numbers."""

    size: int
    readonly: bool
    sector_size = 512
    """Transfers are whole sectors of so many bytes, a power of two from 512 to 4096."""
    physical_sector_size = 512
    """What the storage reads and writes at one go, a power of two: smaller writes cost it a read as well."""
    discards = False
    """Whether it can give storage back that is not needed (`discard`)."""
    discards_securely = False
    """Whether it can promise that nobody finds again what was there (`discard_securely`)."""
    joins = False
    """Whether transfers that are neighbours cost less as one: where each costs a system call."""
    flat: memoryview | None = None
    """All bytes, where they are memory as good as any other: then nobody needs to be asked to move some. It is another
    view after each `resize`."""
    delay_ns = 0
    """How much longer commands take than on other disks, also in real time."""

    @abstractmethod
    def readv(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Fill the views, `size` bytes altogether, from `offset` on; 0 or an errno."""

    @abstractmethod
    def writev(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Store the views, `size` bytes altogether, from `offset` on; 0 or an errno."""

    @abstractmethod
    def flush(self) -> int:
        """Make what was written survive the loss of this process; 0 or an errno."""

    def discard(self, offset: int, size: int) -> int:
        """Give storage back, without changing the size: what is there reads as zero afterwards; 0 or an errno."""
        return errno.EOPNOTSUPP

    def discard_securely(self, offset: int, size: int) -> int:
        """The same, and what was there cannot be found any more, in no copy of it, on return; 0 or an errno."""
        return errno.EOPNOTSUPP

    def resize(self, size: int) -> int:
        """Have another size, a number of sectors in bytes; what is new reads as zero. 0 or an errno."""
        return errno.EOPNOTSUPP

    def close(self) -> None:
        """Let go of the storage."""
        return


@final
class Pending:
    """A request that is under way at a remote backing. It may have been sent in several parts."""

    __slots__ = ("data", "left", "status")

    def __init__(self, data: bytearray | None = None) -> None:
        self.data = data
        """What a read brings."""
        self.left = 0
        """Parts that have not been answered."""
        self.status = 0
        """The first errno, or 0."""


class RemoteBacking(Backing):
    """Storage somewhere else: it is asked now and answers later, many requests at a time.

    Requests that touch the same bytes are carried out in their order, as far as one of them changes something; others
    in any.
    """

    READ, WRITE, FLUSH, DISCARD = range(4)

    give_up: Callable[[], bool] = staticmethod(lambda: False)
    """Asked from time to time during `wait`: whether nobody wants to wait any more."""
    report: Callable[[str], None] = staticmethod(lambda sentence: None)
    """Told in one sentence when the storage cannot be reached, and when it can again."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether something is under way."""

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that is readable when `poll` has something to do."""

    @abstractmethod
    def start(self, op: int, offset: int, size: int, data: bytes = b"") -> Pending:
        """Begin READ, WRITE (of `data`), FLUSH or DISCARD."""

    @abstractmethod
    def poll(self) -> bool:
        """Take what has been answered, without waiting; return whether there was something."""

    @abstractmethod
    def wait(self, requests: Sequence[Pending]) -> None:
        """Wait, and do nothing else, until these have been answered: with EIO if that takes too long."""

    @abstractmethod
    def check_patience(self) -> float:
        """Fail all that is under way if there has been no answer for too long; return seconds until that is so."""

    def readv(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Read, and wait for it."""
        pending = self.start(self.READ, offset, size)
        self.wait((pending,))
        if not pending.status:
            scatter(pending, views)
        return pending.status

    def writev(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Write, and wait for it."""
        return self._complete(self.start(self.WRITE, offset, size, b"".join(views)))

    def flush(self) -> int:
        """Flush, and wait for it."""
        return self._complete(self.start(self.FLUSH, 0, 0))

    def discard(self, offset: int, size: int) -> int:
        """Discard, and wait for it."""
        return self._complete(self.start(self.DISCARD, offset, size))

    def _complete(self, pending: Pending) -> int:
        self.wait((pending,))
        return pending.status


def scatter(pending: Pending, views: Sequence[memoryview]) -> None:
    """Put what a read has brought where it is wanted."""
    assert pending.data is not None
    data, start = memoryview(pending.data), 0
    for view in views:
        end = start + len(view)
        view[:] = data[start:end]
        start = end


class RawFile(Backing):
    """An image file, sector for sector. Data goes straight between the file and the views.

    With `overwrites` the person who owns the storage vouches for it: what is written to a place of the file replaces
    what was there, down to the medium (no snapshots, no reflinks, no file system that writes elsewhere). Then nothing
    is given back, by whichever discard, before there are zeros in its place: that is a secure one.
    """

    joins = True

    def __init__(self, path: Path, *, readonly: bool, overwrites: bool = False) -> None:
        """Raises DeviceError."""
        self.path = path
        self.readonly = readonly
        try:
            self._fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(f"disk image {path}: {os.strerror(error.errno or 0)}") from None
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
            os.close(self._fd)
            raise DeviceError(f"disk image {path}: is neither a file nor a block device")
        self.size = os.lseek(self._fd, 0, os.SEEK_END)
        self.discards = not readonly
        self.discards_securely = overwrites and not readonly

    def readv(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Fill the views from the file. A file that has become shorter is an I/O error, as on a real disk."""
        try:
            done = os.preadv(self._fd, views, offset)
        except OSError as error:
            return error.errno or errno.EIO
        return 0 if done == size else errno.EIO

    def writev(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Write the views to the file."""
        try:
            # (Most often it is one view, and that is a tenth less work without a vector.)
            done = os.pwrite(self._fd, views[0], offset) if len(views) == 1 else os.pwritev(self._fd, views, offset)
        except OSError as error:
            return error.errno or errno.EIO
        return 0 if done == size else errno.EIO

    def flush(self) -> int:
        """Force the file to its disk."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def discard(self, offset: int, size: int) -> int:
        """Punch a hole into the file (fallocate(2)); EOPNOTSUPP where the file system has none."""
        return self.discard_securely(offset, size) if self.discards_securely else punch_hole(self._fd, offset, size)

    def discard_securely(self, offset: int, size: int) -> int:
        """Overwrite what is there, wait until that is on the medium, and punch a hole then."""
        if not self.discards_securely:
            return errno.EOPNOTSUPP
        try:
            for start, end in _stored(self._fd, offset, offset + size):
                for at in range(start, end, ZEROED_AT_ONCE):
                    count = min(ZEROED_AT_ONCE, end - at)
                    if os.pwrite(self._fd, bytes(count), at) != count:
                        return errno.EIO
            os.fdatasync(self._fd)
        except OSError as error:
            return error.errno or errno.EIO
        status = punch_hole(self._fd, offset, size)
        # There are zeros in any case; that their storage comes back is not what was asked for.
        return 0 if status == errno.EOPNOTSUPP else status

    def resize(self, size: int) -> int:
        """Make the file longer or shorter; a block device stays as it is (EINVAL)."""
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            return error.errno or errno.EIO
        self.size = size
        return 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class NoMedium(Backing):
    """What is in an empty drive."""

    size = 0
    readonly = True

    def readv(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Fail."""
        return errno.ENOMEDIUM

    def writev(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Fail."""
        return errno.ENOMEDIUM

    def flush(self) -> int:
        """Do nothing: there is nothing to be kept."""
        return 0


class MemoryDisk(Backing):
    """A disk that is gone with the host. It takes memory only where it has been written to."""

    def __init__(self, size: int, *, readonly: bool = False) -> None:
        """Raises OSError if there is no room for it among the addresses of the process."""
        self.size = size
        self.readonly = readonly
        self.discards = self.discards_securely = not readonly
        self._use(size)

    def _use(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        self.flat = self._bytes = memoryview(self._map)

    def readv(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Fill the views."""
        data = self._bytes
        if len(views) == 1:
            views[0][:] = data[offset : offset + size]
            return 0
        for view in views:
            end = offset + len(view)
            view[:] = data[offset:end]
            offset = end
        return 0

    def writev(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Store the views."""
        data = self._bytes
        if len(views) == 1:
            data[offset : offset + size] = views[0]
            return 0
        for view in views:
            end = offset + len(view)
            data[offset:end] = view
            offset = end
        return 0

    def discard(self, offset: int, size: int) -> int:
        """Forget what is there, and give back the memory of whole pages."""
        end = offset + size
        first, last = -(-offset // PAGE_SIZE) * PAGE_SIZE, end // PAGE_SIZE * PAGE_SIZE
        if first >= last:
            self._bytes[offset:end] = bytes(size)
            return 0
        self._bytes[offset:first] = bytes(first - offset)
        self._bytes[last:end] = bytes(end - last)
        self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        return 0

    def discard_securely(self, offset: int, size: int) -> int:
        """Overwrite what is there before the memory is given back."""
        for at in range(offset, offset + size, ZEROED_AT_ONCE):
            count = min(ZEROED_AT_ONCE, offset + size - at)
            self._bytes[at : at + count] = bytes(count)
            self.discard(at, count)
        return 0

    def resize(self, size: int) -> int:
        """Take more memory, or less."""
        before = self._bytes
        try:
            self._use(size)
        except OSError as error:
            return error.errno or errno.ENOMEM
        for at in range(0, min(self.size, size), COPIED_AT_ONCE):
            part = before[at : min(at + COPIED_AT_ONCE, self.size, size)]
            # Pages that nobody has written to stay where they are: nowhere.
            if part.tobytes().strip(b"\0"):
                self._bytes[at : at + len(part)] = part
        self.size = size
        return 0

    def flush(self) -> int:
        """Do nothing: there is nothing that outlives the process."""
        return 0

    def close(self) -> None:
        """Give the memory back."""
        self._bytes.release()
        self._map.close()
