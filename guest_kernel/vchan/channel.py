"""Both ends of a vchan: shared memory, an event channel, and where they find each other in xenstore.

The server has everything first: it grants the pages to the client's domain, makes the port, and writes `ring-ref` and
`event-channel` below a path of its own home that only the client may read. The client maps, binds, says that it is
there. From then on there are no hypercalls but events, and those only when the other end has asked for them.

That the other end has *left* stands in the shared page. That its domain has *died* does not: Xen keeps the pages and
the port, and is silent. The client sees it by the server's nodes, which go with the server's domain. For the server the
client makes a node of its own, `data/vchan/SERVER-PORT`, that the server watches; libxenvchan's own clients have none,
and a server does not hear of the death of their domain.
"""

from __future__ import annotations

from typing import final

from guest_kernel.errors import XenError
from guest_kernel.grants import MappedGrant
from guest_kernel.kernel import Kernel
from guest_kernel.mm import Page
from guest_kernel.threads import WaitQueue
from guest_kernel.vchan.ring import (
    CLI_LIVE,
    CLI_NOTIFY,
    GRANTS,
    HAS_LEFT,
    IS_THERE,
    LEFT,
    NOT_YET,
    PAGE,
    RIGHT,
    SRV_LIVE,
    SRV_NOTIFY,
    Reader,
    Shape,
    VchanError,
    Writer,
)
from guest_kernel.xenbus.client import Transaction
from guest_kernel.xenbus.driver import frontend_number
from guest_kernel.xenbus.watch import Watch
from hypervisor.abi.grant_table import GNTST_okay
from hypervisor.abi.io.libxenvchan import VCHAN_NOTIFY_READ, VCHAN_NOTIFY_WRITE, vchan_interface

CLOSE_NS = 1_000_000_000
"""How long a server that closes waits for the client to unmap the pages. Those that stay mapped are never reused."""


@final
class Vchan:
    """One end of a channel; `listen` and `connect` make it. Any number of threads may use it.

    What is written by several threads at once is mixed, at places where a write had to wait.
    """

    def __init__(self, kernel: Kernel, page: memoryview, rings: tuple[Reader, Writer], *, server: bool) -> None:
        self._kernel = kernel
        self._page = page
        self._reader, self._writer = rings
        self._peer_live, self._own_live = (CLI_LIVE, SRV_LIVE) if server else (SRV_LIVE, CLI_LIVE)
        # A bit in cli_notify makes the *client* tell the server, and the other way round.
        self._asked, self._asking = (SRV_NOTIFY, CLI_NOTIFY) if server else (CLI_NOTIFY, SRV_NOTIFY)
        self.port = -1
        self._changed = WaitQueue()
        self._closed = False
        self._died = False
        self._watch: Watch | None = None
        self._node = ""
        """The own node that shows that this domain lives; removed when the channel is closed."""
        self._granted: list[tuple[Page, int]] = []
        self._mapped: list[MappedGrant] = []

    # ---- streams

    async def read(self, limit: int = 1 << 20) -> bytes:
        """Return at least one byte and at most `limit`; wait for them. Nothing (b"") means that the peer has left.

        Raises VchanError: the channel was closed here, or the peer broke it.
        """
        while True:
            self._check()
            was_open = self.is_open  # Looked at first: the last bytes are written before the peer leaves.
            data = self._reader.take(limit)
            if data:
                self._tell(VCHAN_NOTIFY_READ)
            if data or not limit or not was_open:
                return data
            self._page[self._asking] |= VCHAN_NOTIFY_WRITE
            if not self._reader.ready() and self.is_open:  # What came before the asking is not told.
                await self._changed.wait()

    async def read_exactly(self, size: int) -> bytes:
        """Return `size` bytes. Raises VchanError as `read` does, and if the peer leaves before."""
        parts = bytearray()
        while len(parts) < size:
            data = await self.read(size - len(parts))
            if not data:
                raise VchanError(f"the peer has left after {len(parts)} of {size} bytes")
            parts += data
        return bytes(parts)

    async def write(self, data: bytes) -> None:
        """Write everything; wait for room. Raises VchanError: closed here, broken by the peer, or the peer has left."""
        rest = memoryview(data)
        while rest:
            self._check()
            if not self.is_open:
                raise VchanError(f"the peer has left; {len(rest)} bytes were not written")
            count = self._writer.put(rest)
            if count:
                rest = rest[count:]
                self._tell(VCHAN_NOTIFY_WRITE)
            else:
                self._page[self._asking] |= VCHAN_NOTIFY_READ
                if not self._writer.room() and self.is_open:
                    await self._changed.wait()

    async def connected(self) -> None:
        """Wait until the peer has come (a client's is there from the start). Raises VchanError if it has left again."""
        while True:
            self._check()
            if not self.is_open:
                raise VchanError("the peer has left")
            if self._page[self._peer_live] != NOT_YET:
                return
            await self._changed.wait()

    @property
    def is_open(self) -> bool:
        """Whether the peer is there, or may still come. What it has written before it left can be read."""
        return not (self._closed or self._died) and self._page[self._peer_live] != HAS_LEFT

    def _check(self) -> None:
        if self._closed:
            raise VchanError("the channel is closed")

    def _tell(self, bit: int) -> None:
        """Notify the peer if it has asked to be told; it must ask anew for the next time."""
        if self._page[self._asked] & bit:
            self._page[self._asked] &= ~bit & 0xFF
            self._kernel.events.notify(self.port)

    def on_event(self) -> None:
        """Something has changed: let all who wait look. The port's handler."""
        self._changed.wake_all()

    # ---- the peer's domain

    async def _watch_peer(self, path: str) -> None:
        """Watch a node that goes when the peer's domain dies (or when it closes)."""
        first: str | None = None

        async def look(_path: str, _token: str) -> None:
            nonlocal first
            value = await self._kernel.xenbus.read_or_none(path)
            if first is None:
                first = value
            elif value != first:
                self._died = True
                self._changed.wake_all()

        self._watch = await self._kernel.xenbus.watch(path, look)

    # ---- the end

    async def close(self) -> None:
        """Leave: the peer reads what was written and then the end. Everything is given back. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._changed.wake_all()
        if self._page[self._own_live] == IS_THERE:  # A client that never came does not spoil it for the next one.
            self._page[self._own_live] = HAS_LEFT
        self._page, self._reader, self._writer = _NOTHING, _NO_READER, _NO_WRITER
        kernel = self._kernel
        kernel.grants.unmap(self._mapped)
        if self.port >= 0:
            kernel.events.notify(self.port)
        if self._watch is not None:
            await self._watch.cancel()
        if self._node and await kernel.xenbus.exists(self._node):
            await kernel.xenbus.rm(self._node)
        await self._take_back()
        if self.port >= 0:
            kernel.events.unbind(self.port)

    async def _take_back(self) -> None:
        """End the grants: at once, or when the client has unmapped and says so."""
        deadline = self._kernel.monotonic_ns() + CLOSE_NS
        while self._end_grants() and (left := deadline - self._kernel.monotonic_ns()) > 0:
            try:
                await self._kernel.wait_for(_wait(self._changed), left)
            except TimeoutError:
                break
        self._end_grants()

    def _end_grants(self) -> bool:
        """Free the pages that nobody maps; return whether some are still mapped."""
        kept = []
        for page, ref in self._granted:
            if self._kernel.grants.end_access(ref):
                self._kernel.mm.free_page(page)
            else:
                kept.append((page, ref))
        self._granted = kept
        return bool(kept)

    @property
    def kept(self) -> int:
        """How many pages could not be taken back from a client that does not unmap them (XSA-396)."""
        return len(self._granted) if self._closed else 0


_NOTHING = memoryview(bytearray(vchan_interface.size))
_NO_READER = Reader(_NOTHING.cast("I"), LEFT, [memoryview(bytes(1))])
_NO_WRITER = Writer(_NOTHING.cast("I"), RIGHT, [memoryview(bytearray(1))])


async def _wait(queue: WaitQueue) -> None:
    await queue.wait()


async def listen(kernel: Kernel, client: int, path: str, *, read_size: int = PAGE, write_size: int = PAGE) -> Vchan:
    """Offer a channel to domain `client` at a path of the own home, such as "data/vchan/chat". Does not wait for it.

    Raises OutOfMemory, GrantError, XenError, XenstoreError; then nothing is left. ValueError: a ring above 1 MiB.
    """
    shape = Shape.of_sizes(read_size, write_size)
    granted: list[tuple[Page, int]] = []
    try:
        for _ in range(1 + shape.pages):
            page = kernel.mm.alloc_page()  # Zeros: the client can read all of it.
            try:
                granted.append((page, kernel.grants.grant_access(client, page)))
            except BaseException:
                kernel.mm.free_page(page)
                raise
    except BaseException:
        for page, ref in granted:
            kernel.grants.end_access(ref)
            kernel.mm.free_page(page)
        raise
    shared, refs = granted[0][0].view, [ref for _, ref in granted]
    vchan_interface.pack_into(
        shared,
        0,
        left_order=shape.left,
        right_order=shape.right,
        cli_live=NOT_YET,
        srv_live=IS_THERE,
        cli_notify=VCHAN_NOTIFY_WRITE,
    )
    shared[GRANTS : GRANTS + 4 * shape.pages].cast("I")[:] = memoryview(
        b"".join(ref.to_bytes(4, "little") for ref in refs[1:])
    ).cast("I")
    left, right = shape.pieces(shared, [page.view for page, _ in granted[1:]])
    words = shared.cast("I")
    channel = Vchan(kernel, shared, (Reader(words, LEFT, left), Writer(words, RIGHT, right)), server=True)
    channel._granted = granted
    try:
        channel.port = kernel.events.alloc_unbound(client, channel.on_event)
        own = int(await kernel.xenbus.read("domid"))
        await channel._watch_peer(f"/local/domain/{client}/{_client_node(own, channel.port)}")
        channel._node = path
        values = {"": "", "/ring-ref": refs[0], "/event-channel": channel.port}
        await _publish(kernel, path, own, client, values)
    except BaseException:
        await channel.close()
        raise
    return channel


async def connect(kernel: Kernel, server: int, path: str) -> Vchan:
    """Connect to what domain `server` offers at an absolute path; wait until it does.

    Raises VchanError: what it offers cannot be used. OutOfMemory, XenstoreError as well; then nothing is left.
    """
    nodes = {key: f"{path}/{key}" for key in ("ring-ref", "event-channel")}
    await kernel.xenbus.wait_until(nodes["ring-ref"], lambda value: value is not None)
    found = dict(zip(nodes, await kernel.xenbus.read_many(list(nodes.values())), strict=True))
    try:
        ref, remote = (frontend_number(found, key) for key in nodes)
    except ValueError as error:
        raise VchanError(str(error).replace("frontend", "server")) from None
    mapped = _map(kernel, server, [ref])
    try:
        shared = mapped[0].view
        header = bytes(shared[:PAGE])  # A copy: the server may change what was checked.
        shape = Shape.read(header)
        grants = memoryview(header)[GRANTS : GRANTS + 4 * shape.pages].cast("I").tolist()
        mapped += _map(kernel, server, grants)
    except BaseException:
        kernel.grants.unmap(mapped)
        raise
    left, right = shape.pieces(shared, [grant.view for grant in mapped[1:]])
    words = shared.cast("I")
    channel = Vchan(kernel, shared, (Reader(words, RIGHT, right), Writer(words, LEFT, left)), server=False)
    channel._mapped = mapped
    try:
        await channel._watch_peer(nodes["ring-ref"])
        channel.port = kernel.events.bind_interdomain(server, remote, channel.on_event)
        own = int(await kernel.xenbus.read("domid"))
        channel._node = _client_node(server, remote)
        await _publish(kernel, channel._node, own, server, {"": ""})
        if not channel.is_open:
            raise VchanError("the server has left")
        shared[CLI_LIVE] = IS_THERE
        shared[SRV_NOTIFY] = VCHAN_NOTIFY_WRITE
        kernel.events.notify(channel.port)
    except XenError as error:
        await channel.close()
        raise VchanError(f"the server's port {remote} cannot be bound: {error}") from None
    except BaseException:
        await channel.close()
        raise
    return channel


def _map(kernel: Kernel, domid: int, refs: list[int]) -> list[MappedGrant]:
    """Map all of these grants. Raises VchanError; then none is mapped."""
    mapped = kernel.grants.map_refs(domid, refs)
    bad = [grant for grant in mapped if grant.status != GNTST_okay]
    if bad:
        kernel.grants.unmap(mapped)
        raise VchanError(f"the server's reference {bad[0].ref} cannot be mapped: grant status {bad[0].status}")
    return mapped


def _client_node(server: int, port: int) -> str:
    return f"data/vchan/{server}-{port}"


async def _publish(kernel: Kernel, path: str, own: int, reader: int, values: dict[str, object]) -> None:
    """Write nodes below `path` that one other domain may read, at once."""

    async def write(transaction: Transaction) -> None:
        if await transaction.exists(path):
            await transaction.rm(path)
        for key, value in values.items():
            await transaction.write(path + key, value)
            if not key:
                await transaction.set_perms(path, [f"n{own}", f"r{reader}"])

    await kernel.xenbus.transact(write)
