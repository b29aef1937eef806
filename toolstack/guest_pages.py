"""The pages of a new domain that are not to be zero, as its builder puts them together."""

from __future__ import annotations

from guest_kernel.mm import PAGE_SIZE

Bytes = bytes | bytearray | memoryview


class GuestPages:
    """Contents by pseudo-physical frame number. What has never been written stays as Xen hands it out: zero."""

    def __init__(self) -> None:
        self.contents: dict[int, Bytes] = {}

    def write(self, offset: int, data: Bytes) -> None:
        """Write bytes at an offset into pseudo-physical memory."""
        view = memoryview(data)
        done = 0
        while done < len(view):
            pfn, inside = divmod(offset + done, PAGE_SIZE)
            length = min(PAGE_SIZE - inside, len(view) - done)
            part = view[done : done + length]
            if length == PAGE_SIZE:
                self.contents[pfn] = part
            else:
                self._own(pfn)[inside : inside + length] = part
            done += length

    def clear(self, offset: int, size: int) -> None:
        """Make a range zero: of pages that have been written so far."""
        for pfn in range(offset // PAGE_SIZE, -(-(offset + size) // PAGE_SIZE)):
            if pfn in self.contents:
                start, end = max(offset - pfn * PAGE_SIZE, 0), min(offset + size - pfn * PAGE_SIZE, PAGE_SIZE)
                self._own(pfn)[start:end] = bytes(end - start)

    def _own(self, pfn: int) -> bytearray:
        """Return a page that can be written piecemeal."""
        page = self.contents.get(pfn)
        if not isinstance(page, bytearray):
            page = self.contents[pfn] = bytearray(PAGE_SIZE) if page is None else bytearray(page)
        return page
