"""The daemon's end of a PV console (io/console.h, struct xencons_interface): two byte queues in one shared page.

    byte 0     in: 1024 bytes, to the guest        byte 3072  in_cons  in_prod
    byte 1024  out: 2048 bytes, from the guest     byte 3080  out_cons out_prod

Indices grow without bound and wrap at 2**32.  The daemon's own two (in_prod, out_cons) are kept privately: what the
guest makes of them in the page is its own trouble.  The guest's two are read once per call; more bytes than the
queue has room for means nonsense, and nothing is taken or put (as xenconsoled does).
"""

from typing import Final, final

from hypervisor.abi.io.console import xencons_interface

IN_SIZE: Final = 1024
OUT_SIZE: Final = 2048
_OUT: Final = xencons_interface.offset("out")
_IN_CONS: Final = xencons_interface.offset("in_cons") >> 2
_IN_PROD: Final = xencons_interface.offset("in_prod") >> 2
_OUT_CONS: Final = xencons_interface.offset("out_cons") >> 2
_OUT_PROD: Final = xencons_interface.offset("out_prod") >> 2
_U32: Final = 0xFFFFFFFF


@final
class ConsoleRing:
    """One console, over the page as a byte view."""

    __slots__ = ("_in", "_in_prod", "_out", "_out_cons", "_words", "notify")

    def __init__(self, page: memoryview) -> None:
        self._words = page[:4096].cast("I")
        self._in = page[:IN_SIZE]
        self._out = page[_OUT : _OUT + OUT_SIZE]
        self._in_prod = self._words[_IN_PROD]
        self._out_cons = self._words[_OUT_CONS]
        #: The guest has to be signalled: there are bytes for it, or there is room again.
        self.notify = False

    @property
    def sane(self) -> bool:
        """Whether the guest's indices can be."""
        words = self._words
        out = (words[_OUT_PROD] - self._out_cons) & _U32
        into = (self._in_prod - words[_IN_CONS]) & _U32
        return out <= OUT_SIZE and into <= IN_SIZE

    def read(self) -> bytes:
        """Take all output there is (b"": none, or the index is nonsense)."""
        cons = self._out_cons
        count = (self._words[_OUT_PROD] - cons) & _U32
        if not 0 < count <= OUT_SIZE:
            return b""
        at = cons & (OUT_SIZE - 1)
        out = self._out
        if at + count <= OUT_SIZE:
            data = bytes(out[at : at + count])
        else:
            data = bytes(out[at:]) + bytes(out[: at + count - OUT_SIZE])
        # The guest may reuse the bytes as soon as it sees this.
        self._out_cons = self._words[_OUT_CONS] = (cons + count) & _U32
        self.notify = True
        return data

    @property
    def room(self) -> int:
        """Bytes of input that the guest has room for; 0 if its index is nonsense."""
        used = (self._in_prod - self._words[_IN_CONS]) & _U32
        return IN_SIZE - used if used <= IN_SIZE else 0

    def write(self, data: bytes) -> int:
        """Put as much input as there is room for; return the number of bytes taken."""
        count = min(self.room, len(data))
        if not count:
            return 0
        at = self._in_prod & (IN_SIZE - 1)
        first = min(count, IN_SIZE - at)
        self._in[at : at + first] = data[:first]
        if first < count:
            self._in[: count - first] = data[first:count]
        self._in_prod = self._words[_IN_PROD] = (self._in_prod + count) & _U32
        self.notify = True
        return count
