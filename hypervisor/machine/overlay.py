"""A copy-on-write disk: a base image that is only read, and a file with what has been changed.

The file of changes is laid out as

    0        header, one cluster: `overlay_header`, then the path of the base
    4096     the map: one byte for each cluster of the disk, 1 if the cluster is here, 0 if the base has it
    data     the clusters, each at its own place (so the file is as sparse as there are few changes)

A cluster has 4096 bytes. The map is kept in memory; a flush forces the data to the file first and the map after it, so
what is in the file is at each moment the disk as it was at some flush, or newer.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from hypervisor.abi.layout import Layout
from hypervisor.errors import DeviceError
from hypervisor.machine.backing import Backing, RawFile, punch_hole

CLUSTER = 4096
MAGIC = 0x59414C5245564F50
"""The first eight bytes of the file read "POVERLAY"."""
VERSION = 1

Move = Callable[[int, Sequence[memoryview], int], int]
"""`os.preadv` or `os.pwritev`."""

overlay_header = Layout(
    "overlay_header",
    ("uint64_t", "magic"),
    ("uint32_t", "version"),
    ("uint32_t", "base_path_length"),
    ("uint64_t", "size"),
)
"""`size` of the disk in bytes, which is that of its base. The path's UTF-8 follows, cut to what the cluster holds; it
is there for people: nobody opens it."""


class Overlay(Backing):
    """The image file `base` as changed by what is in the file `path`; writes go there."""

    def __init__(self, path: Path, base: Path, *, readonly: bool) -> None:
        """Open both; a disk that may be written gets a file of changes if it has none. Raises DeviceError."""
        self.path = path
        self.readonly = readonly
        self.discards = not readonly
        self._base = RawFile(base, readonly=True)
        self.size = self._base.size
        clusters = -(-self.size // CLUSTER)
        self._data = CLUSTER + -(-clusters // CLUSTER) * CLUSTER
        self._dirty: set[int] = set()
        """Which parts of the map, of `CLUSTER` bytes each, have changed since they were stored."""
        self._fd = -1
        try:
            self._open(base)
            self._map = bytearray(self._load(clusters))
        except OSError as error:
            self._abandon()
            raise DeviceError(f"overlay {path}: {os.strerror(error.errno or 0)}") from None
        except DeviceError:
            self._abandon()
            raise

    def _open(self, base: Path) -> None:
        if self.readonly:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if not os.fstat(self._fd).st_size:
            self._format(base)

    def _format(self, base: Path) -> None:
        """Make an empty file one without changes."""
        room = CLUSTER - overlay_header.size
        name = str(base.resolve()).encode(errors="replace")[:room]
        os.posix_fallocate(self._fd, 0, self._data)  # so that there is always room for the map
        os.ftruncate(self._fd, self._data + self.size)
        header = bytearray(CLUSTER)
        overlay_header.pack_into(header, 0, magic=MAGIC, version=VERSION, base_path_length=len(name), size=self.size)
        header[overlay_header.size : overlay_header.size + len(name)] = name
        os.pwrite(self._fd, header, 0)

    def _load(self, clusters: int) -> bytes:
        """Check the file and return its map."""
        raw = os.pread(self._fd, overlay_header.size, 0)
        header = overlay_header.unpack_from(raw) if len(raw) == overlay_header.size else None
        if header is None or header.magic != MAGIC:
            raise DeviceError(f"overlay {self.path}: is no file of changes of a disk")
        if header.version != VERSION:
            raise DeviceError(f"overlay {self.path}: has format {header.version}; this is for format {VERSION}")
        if header.size != self.size:
            raise DeviceError(
                f"overlay {self.path}: is about a base of {header.size} bytes, but {self._base.path} has {self.size}"
            )
        if os.fstat(self._fd).st_size < self._data + self.size:
            raise DeviceError(f"overlay {self.path}: has become too short")
        found = os.pread(self._fd, clusters, CLUSTER)
        if len(found) != clusters or found.strip(b"\0\1"):
            raise DeviceError(f"overlay {self.path}: its map is damaged")
        return found

    def _abandon(self) -> None:
        self._base.close()
        if self._fd >= 0:
            os.close(self._fd)

    # -- the disk -------------------------------------------------------------------------------------------------

    def readv(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Fill the views, each cluster from where it is."""
        status = 0
        for here, start, end in self._runs(offset, size):
            part = cut(views, start - offset, end - start)
            if here:
                status = self._transfer(os.preadv, part, start, end - start)
            else:
                status = self._base.readv(part, start, end - start)
            if status:
                break
        return status

    def writev(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Store the views; clusters that are written in part for the first time are copied from the base before."""
        end = offset + size
        partial = {at // CLUSTER for at in (offset, end) if at % CLUSTER and at < self.size}
        for cluster in sorted(partial):
            status = 0 if self._map[cluster] else self._copy_up(cluster)
            if status:
                return status
        status = self._transfer(os.pwritev, views, offset, size)
        if not status:
            self._note(offset, end)
        return status

    def flush(self) -> int:
        """Force the data to the disk, and then the map that says it is there."""
        try:
            os.fdatasync(self._fd)
            if self._dirty:
                self._store_map()
                os.fdatasync(self._fd)
                self._dirty.clear()
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def discard(self, offset: int, size: int) -> int:
        """Have zeros there: whole clusters become holes in the file of changes."""
        end = offset + size
        first = -(-offset // CLUSTER) * CLUSTER
        last = end if end == self.size else end // CLUSTER * CLUSTER
        if first >= last:
            return self.writev([memoryview(bytes(size))], offset, size)
        status = punch_hole(self._fd, self._data + first, last - first)
        if not status:
            self._note(first, last)
        for start, stop in ((offset, first), (last, end)):
            if start < stop and not status:
                status = self.writev([memoryview(bytes(stop - start))], start, stop - start)
        return status

    def close(self) -> None:
        """Flush and close both files: the next one to open them finds what was written, whether flushed or not."""
        if self._dirty:
            self.flush()
        self._abandon()

    # -- clusters -------------------------------------------------------------------------------------------------

    def _runs(self, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield (whether it is here, start, end) of each stretch of the disk that is all in one file."""
        first, end = offset // CLUSTER, -(-(offset + size) // CLUSTER)
        states = self._map[first:end]
        start = offset
        at = first
        for here, clusters in groupby(states):
            at += sum(1 for _ in clusters)
            stop = min(at * CLUSTER, offset + size)
            yield here, start, stop
            start = stop

    def _copy_up(self, cluster: int) -> int:
        """Copy a cluster of the base to the file of changes; it does not count as being there yet."""
        start = cluster * CLUSTER
        size = min(CLUSTER, self.size - start)
        view = [memoryview(bytearray(size))]
        return self._base.readv(view, start, size) or self._transfer(os.pwritev, view, start, size)

    def _transfer(self, move: Move, views: Sequence[memoryview], offset: int, size: int) -> int:
        try:
            done = move(self._fd, views, self._data + offset)
        except OSError as error:
            return error.errno or errno.EIO
        return 0 if done == size else errno.EIO

    def _note(self, offset: int, end: int) -> None:
        """These bytes are in the file of changes from now on, and the rest of their clusters is too."""
        first, last = offset // CLUSTER, (end - 1) // CLUSTER
        if 0 in self._map[first : last + 1]:
            self._map[first : last + 1] = b"\1" * (last + 1 - first)
            self._dirty.update(range(first // CLUSTER, last // CLUSTER + 1))

    def _store_map(self) -> None:
        for part in sorted(self._dirty):
            start = part * CLUSTER
            os.pwrite(self._fd, self._map[start : start + CLUSTER], CLUSTER + start)


def cut(views: Sequence[memoryview], start: int, size: int) -> list[memoryview]:
    """Return `size` bytes of the views, taken together, from `start` on."""
    parts = []
    for view in views:
        if start < len(view):
            part = view[start : start + size]
            if not part:
                break
            parts.append(part)
            size -= len(part)
        start = max(start - len(view), 0)
    return parts
