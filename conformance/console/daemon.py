"""The daemon's end of a console page, by hand."""

from __future__ import annotations

from typing import Final, final

from conformance.kit.check import Failure
from guest_kernel.kernel import Kernel
from guest_kernel.mm import Page
from hypervisor.abi.io.console import xencons_interface

IN_SIZE: Final = 1024
OUT_SIZE: Final = 2048
U32: Final = 0xFFFF_FFFF
LOOK_NS: Final = 200_000
PATIENCE_NS: Final = 500_000_000
"""Virtual time after which something counts as not happening."""
SETTLE_NS: Final = 10_000_000
FILLER: Final = 0xEE
"""What lies in both rings at first."""

_OUT = xencons_interface.offset("out")
_WORD = {name: xencons_interface.offset(name) >> 2 for name in ("in_cons", "in_prod", "out_cons", "out_prod")}


@final
class Daemon:
    """xenconsoled, with a page and a port, and no terminal. All indices are what stands in the page."""

    def __init__(self, kernel: Kernel, page: Page) -> None:
        self.kernel = kernel
        self.page = page
        self.port = 0
        self.events = 0
        """How often the guest has notified."""

    def begin(self, out: int = 0, into: int = 0) -> None:
        """Make an empty page whose indices stand at `out` and `into`."""
        self.page.view[:] = bytes([FILLER]) * len(self.page.view)
        for name, value in {"in_cons": into, "in_prod": into, "out_cons": out, "out_prod": out}.items():
            self.page.i[_WORD[name]] = value & U32

    def index(self, name: str) -> int:
        """Return an index by its name in the header."""
        return int(self.page.i[_WORD[name]])

    def set(self, **indices: int) -> None:
        """Set indices, without telling anybody."""
        for name, value in indices.items():
            self.page.i[_WORD[name]] = value & U32

    def notify(self) -> None:
        """Tell the guest to look."""
        self.kernel.events.notify(self.port)

    # -- what the guest says ------------------------------------------------------------------------------------------

    @property
    def said(self) -> int:
        """How many bytes wait in the output ring."""
        return (self.index("out_prod") - self.index("out_cons")) & U32

    def peek(self) -> bytes:
        """Return what waits in the output ring. Raises Failure if that is more than there is room for."""
        if self.said > OUT_SIZE:
            raise Failure(f"The output ring claims to hold {self.said} bytes; there is room for {OUT_SIZE}.")
        at = self.index("out_cons")
        return bytes(self.page.view[_OUT + (at + n) % OUT_SIZE] for n in range(self.said))

    def take(self, limit: int = OUT_SIZE) -> bytes:
        """Take output, at most so many bytes, and tell the guest that there is room."""
        found = self.peek()[:limit]
        if found:
            self.set(out_cons=self.index("out_cons") + len(found))
            self.notify()
        return found

    async def read(self, count: int, step: int = OUT_SIZE) -> bytes:
        """Take so many bytes, `step` at a time. Raises Failure if they do not come."""
        found = b""
        for _ in range(PATIENCE_NS // LOOK_NS):
            found += self.take(min(step, count - len(found)))
            if len(found) >= count:
                return found
            await self.kernel.sleep(LOOK_NS)
        raise Failure(f"Of {count} bytes of output {len(found)} come.")

    async def settle(self) -> None:
        """Give everything that would happen the time to happen."""
        await self.kernel.sleep(SETTLE_NS)

    # -- what is typed ------------------------------------------------------------------------------------------------

    def put(self, data: bytes) -> int:
        """Put what there is room for into the input ring, without telling the guest; return how much that was."""
        at, used = self.index("in_prod"), (self.index("in_prod") - self.index("in_cons")) & U32
        count = max(0, min(len(data), IN_SIZE - used))
        for n in range(count):
            self.page.view[(at + n) % IN_SIZE] = data[n]
        self.set(in_prod=at + count)
        return count

    async def type(self, data: bytes) -> None:
        """Type everything, as fast as the guest reads. Raises Failure if it does not."""
        for _ in range(PATIENCE_NS // LOOK_NS):
            count = self.put(data)
            if count:
                self.notify()
            data = data[count:]
            if not data:
                return
            await self.kernel.sleep(LOOK_NS)
        raise Failure(f"The guest leaves the input ring full; {len(data)} bytes cannot be typed.")
