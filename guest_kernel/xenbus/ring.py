"""One end of the XENSTORE ring (io/xs_wire.h, struct xenstore_domain_interface): two byte queues in one shared page.

    byte 0     req: 1024 bytes, guest to server        byte 2064  server_features
    byte 1024  rsp: 1024 bytes, server to guest        byte 2068  connection: 1 while a reconnect is in progress
    byte 2048  req_cons  req_prod                      byte 2072  error: the server has given this ring up, and why
    byte 2056  rsp_cons  rsp_prod

The indices grow without bound and wrap at 2**32; byte x of a stream is at x mod 1024.  All are read once per call: a
difference above 1024 means that the other end is broken (or hostile), and the ring says so before a byte is touched.
A guest keeps its own two indices privately; the server takes all four from the page, as the C daemon does, so a guest
that moves the server's is heard and answered where it says.  It can only confuse itself.

Indices are stored by item assignment to a 'I' view, one 32-bit store each.  `struct.pack_into` stores byte by byte,
and the other end sees half an index.

There is no I/O here.  `read` and `write` return at once with what there was; both tell through `notify` whether the
other end has to be signalled.  There is no event index in this ring (unlike the rings of ring.h), so whoever has put
bytes always signals; whoever has taken bytes signals if the producer may have found the queue full meanwhile.
"""

from typing import Final, final

from hypervisor.abi.io.xs_wire import (
    XENSTORE_CONNECTED,
    XENSTORE_RECONNECT,
    XENSTORE_RING_SIZE,
    XENSTORE_SERVER_FEATURE_RECONNECTION,
)

_MASK: Final = XENSTORE_RING_SIZE - 1
_U32: Final = 0xFFFFFFFF
_REQ: Final = 0
_RSP: Final = XENSTORE_RING_SIZE

# Positions in the page's 'I' view.
REQ_CONS: Final = 512
REQ_PROD: Final = 513
RSP_CONS: Final = 514
RSP_PROD: Final = 515
SERVER_FEATURES: Final = 516
CONNECTION: Final = 517
ERROR: Final = 518


class RingError(Exception):
    """The other end's index cannot be: more than 1024 bytes between producer and consumer (XENSTORE_ERROR_RINGIDX)."""


class _RingEnd:
    """What both ends do.  A subclass says which queue is whose."""

    __slots__ = (
        "_cons",
        "_in",
        "_in_cons_at",
        "_in_prod_at",
        "_out",
        "_out_cons_at",
        "_out_prod_at",
        "_prod",
        "notify",
        "words",
    )

    def __init__(self, page: memoryview, out: int, into: int, indices: tuple[int, int, int, int]) -> None:
        bytes_view = page.cast("B")
        self.words = bytes_view[:4096].cast("I")
        self._out = bytes_view[out : out + XENSTORE_RING_SIZE]
        self._in = bytes_view[into : into + XENSTORE_RING_SIZE]
        self._out_cons_at, self._out_prod_at, self._in_cons_at, self._in_prod_at = indices
        #: Set when the other end has to be signalled; the owner signals and clears it.
        self.notify = False
        self.attach()

    def attach(self) -> None:
        """Take the own indices over from the page: at the start (they need not be 0) and after a reconnect."""
        self._prod = self.words[self._out_prod_at]
        self._cons = self.words[self._in_cons_at]

    @property
    def room(self) -> int:
        """Bytes that `write` would take now.  Raises RingError."""
        used = (self._prod - self.words[self._out_cons_at]) & _U32
        if used > XENSTORE_RING_SIZE:
            raise RingError(f"consumer index is {used} bytes behind")
        return XENSTORE_RING_SIZE - used

    @property
    def available(self) -> int:
        """Bytes that `read` would return now.  Raises RingError."""
        ready = (self.words[self._in_prod_at] - self._cons) & _U32
        if ready > XENSTORE_RING_SIZE:
            raise RingError(f"producer index is {ready} bytes ahead")
        return ready

    def write(self, data: bytes | bytearray | memoryview, start: int = 0) -> int:
        """Put as much of `data[start:]` as fits; return the number of bytes taken (0: the queue is full).

        Raises RingError, with nothing written.
        """
        words, prod = self.words, self._prod
        used = (prod - words[self._out_cons_at]) & _U32
        if used > XENSTORE_RING_SIZE:
            raise RingError(f"consumer index is {used} bytes behind")
        count = min(XENSTORE_RING_SIZE - used, len(data) - start)
        if count <= 0:
            return 0
        at = prod & _MASK
        first = XENSTORE_RING_SIZE - at
        if count <= first:
            self._out[at : at + count] = data[start : start + count]
        else:
            self._out[at:] = data[start : start + first]
            self._out[: count - first] = data[start + first : start + count]
        # The bytes must be there before the index says so; on x86 stores stay in order.
        self._prod = words[self._out_prod_at] = (prod + count) & _U32
        self.notify = True
        return count

    def read(self) -> bytes:
        """Take everything there is (b"": nothing).  Raises RingError, with nothing taken."""
        words, cons = self.words, self._cons
        count = (words[self._in_prod_at] - cons) & _U32
        if not count:
            return b""
        if count > XENSTORE_RING_SIZE:
            raise RingError(f"producer index is {count} bytes ahead")
        at = cons & _MASK
        if at + count <= XENSTORE_RING_SIZE:
            data = bytes(self._in[at : at + count])
        else:
            data = bytes(self._in[at:]) + bytes(self._in[: at + count - XENSTORE_RING_SIZE])
        self._cons = words[self._in_cons_at] = (cons + count) & _U32
        # The producer sleeps when it finds the queue full. It may have filled it after the index was read above and
        # before it was moved, so the question is asked again, with the old consumer index.
        if (words[self._in_prod_at] - cons) & _U32 >= XENSTORE_RING_SIZE:
            self.notify = True
        return data


@final
class ClientRing(_RingEnd):
    """The guest's end: writes `req`, reads `rsp`."""

    __slots__ = ()

    def __init__(self, page: memoryview) -> None:
        super().__init__(page, _REQ, _RSP, (REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD))

    @property
    def error(self) -> int:
        """XENSTORE_ERROR_*: not 0 once the server has stopped serving this ring.

        Only a server that advertises XENSTORE_SERVER_FEATURE_ERROR means it, but others leave the field alone (0).
        """
        return self.words[ERROR]

    @property
    def connected(self) -> bool:
        """False while a reconnect is in progress: all fields but `connection` are to be ignored."""
        return self.words[CONNECTION] == XENSTORE_CONNECTED

    @property
    def can_reconnect(self) -> bool:
        """Whether the server advertises XENSTORE_SERVER_FEATURE_RECONNECTION."""
        return bool(self.words[SERVER_FEATURES] & XENSTORE_SERVER_FEATURE_RECONNECTION)

    def reconnect(self) -> None:
        """Ask the server to reset ring, watches and transactions; wait for `connected`, then `attach`."""
        self.words[CONNECTION] = XENSTORE_RECONNECT
        self.notify = True


@final
class ServerRing(_RingEnd):
    """The server's end: reads `req`, writes `rsp`."""

    __slots__ = ()

    @property
    def room(self) -> int:
        """As of any end, by the indices in the page."""
        self._prod = self.words[RSP_PROD]
        return super().room

    def write(self, data: bytes | bytearray | memoryview, start: int = 0) -> int:
        """As of any end, by the indices in the page."""
        self._prod = self.words[RSP_PROD]
        return super().write(data, start)

    def read(self) -> bytes:
        """As of any end, by the indices in the page."""
        self._cons = self.words[REQ_CONS]
        return super().read()

    def unread(self, count: int) -> None:
        """Put the last `count` bytes of what was read back: nobody has looked at them."""
        self._cons = self.words[REQ_CONS] = (self._cons - count) & _U32

    def __init__(self, page: memoryview) -> None:
        super().__init__(page, _RSP, _REQ, (RSP_CONS, RSP_PROD, REQ_CONS, REQ_PROD))

    def advertise(self, features: int) -> None:
        """Set bits of the server feature bitmap (they are never cleared)."""
        self.words[SERVER_FEATURES] |= features

    def fail(self, error: int) -> None:
        """Tell the guest that this ring is no longer served: XENSTORE_ERROR_*."""
        self.words[ERROR] = error
        self.notify = True

    @property
    def reconnect_requested(self) -> bool:
        """The guest wants the connection reset; answer with `reset`."""
        return self.words[CONNECTION] != XENSTORE_CONNECTED

    def empty(self) -> None:
        """Empty both queues and complete a reconnect of the guest, as INTRODUCE does; an error stays."""
        words = self.words
        for index in (REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD):
            words[index] = 0
        self.attach()
        words[CONNECTION] = XENSTORE_CONNECTED
        self.notify = True

    def reset(self) -> None:
        """As `empty`, and clear the error."""
        self.words[ERROR] = 0
        self.empty()
