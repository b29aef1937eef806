"""The pages of a new domain that are not to be zero, as its builder puts them together."""

from __future__ import annotations

from guest_kernel.mm import PAGE_SHIFT

Bytes = bytes | bytearray | memoryview
_STEP = 64 << 10
_ZEROS = bytes(_STEP)


class GuestPages:
    """What is to be written to pseudo-physical memory, and in which order. The rest stays as Xen hands it out: zero.

    Nothing is copied before the pages are there: a kernel and its ramdisk have tens of megabytes.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[int, int, memoryview | None, bool]] = []
        """Offset, size, the bytes (None for zeros), and whether something may have been written there before."""
        self._end = 0

    def write(self, offset: int, data: Bytes) -> None:
        """Write bytes at an offset into pseudo-physical memory; they must stay as they are until `fill`."""
        view = memoryview(data)
        self._add(offset, len(view), view)

    def clear(self, offset: int, size: int) -> None:
        """Make a range zero, as far as it has been written to."""
        if size > 0:
            self._add(offset, size, None)

    def _add(self, offset: int, size: int, data: memoryview | None) -> None:
        self._parts.append((offset, size, data, offset < self._end))
        if data is not None:
            self._end = max(self._end, offset + size)

    def pfns(self) -> list[int]:
        """Return the numbers of the pages that have been written to, in order."""
        pfns: set[int] = set()
        for offset, size, data, _ in self._parts:
            if data is not None and size:
                pfns.update(range(offset >> PAGE_SHIFT, (offset + size - 1 >> PAGE_SHIFT) + 1))
        return sorted(pfns)

    def fill(self, pfn: int, memory: memoryview) -> None:
        """Write what belongs into the pages from `pfn` on, which are in one piece and hold zeros."""
        start = pfn << PAGE_SHIFT
        end = start + len(memory)
        for offset, size, data, is_over_another in self._parts:
            first, last = max(offset, start), min(offset + size, end)
            if first >= last:
                continue
            target = memory[first - start : last - start]
            if data is None:
                if is_over_another:
                    target[:] = bytes(last - first)
            elif is_over_another:
                target[:] = data[first - offset : last - offset]
            else:
                _copy_but_zeros(target, data[first - offset : last - offset])


def _copy_but_zeros(target: memoryview, source: memoryview) -> None:
    """Copy to where zeros are. A kernel has megabytes of zeros; memory that is not written to need not be there."""
    for at in range(0, len(source), _STEP):
        part = source[at : at + _STEP]
        # (Most parts are something else from their first bytes on.)
        if any(part[:8]) or bytes(part) != _ZEROS:
            target[at : at + _STEP] = part
