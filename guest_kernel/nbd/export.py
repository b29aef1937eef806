"""The server of one disk: accepts clients, and ends with the disk or the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from guest_kernel.block import BlockError
from guest_kernel.errors import OutOfMemory
from guest_kernel.hw import NoDeviceError, PhysicalSocketCard
from guest_kernel.hw.socket_card import ACCEPT, CLOSE, LISTENER
from guest_kernel.nbd import wire
from guest_kernel.nbd.buffers import Buffer, BufferPool
from guest_kernel.nbd.connection import Connection
from guest_kernel.nbd.negotiation import ExportInfo
from guest_kernel.threads import WaitQueue

if TYPE_CHECKING:
    from guest_kernel.block import BlockDevice
    from guest_kernel.kernel import Kernel

PREFERRED_SIZE = 4096
PATIENCE_NS = 1_000_000_000
"""How long a guest that shuts down waits for clients to take their answers."""


@final
class NbdExport:
    """The disk `name` for whoever connects to a socket card. `serve` is a service of a kernel image."""

    disk: BlockDevice
    card: PhysicalSocketCard

    def __init__(self, kernel: Kernel, name: str, unit: int) -> None:
        self.kernel = kernel
        self.name = name
        self._unit = unit
        self.pool = BufferPool(kernel.mm)
        self.own_buffers: list[Buffer] = []
        """Those that connections had for themselves, for others that want one."""
        self._zeros: Buffer | None = None
        self._gone = False
        """Whether the disk has been unplugged."""
        self._connections: dict[Connection, None] = {}
        self._accepted: list[int] = []
        self._news = WaitQueue()
        self._closing = False
        self._alone = WaitQueue()
        self._said = False
        """Whether people know that memory is short."""

    async def serve(self) -> None:
        """Serve clients for as long as the guest runs."""
        kernel = self.kernel
        try:
            self.card = kernel.hw.socket_card(self._unit)
        except NoDeviceError as error:
            kernel.console.write(f"nbd: {self.name} is not exported: {error}\n")
            return
        kernel.power.on_shutdown(self.close)
        self._accept()
        while not self._closing:
            self.disk = await self._find_disk()
            self._gone = False
            kernel.spawn(self._watch(), "nbd unplug")
            await self._serve_disk()

    async def _find_disk(self) -> BlockDevice:
        """Return the disk, waiting until it is there. One that its driver has given up may still come some day."""
        block = self.kernel.block
        async with block.changes.follow() as changes:
            try:
                return await block.get(self.name)
            except BlockError as error:
                self.kernel.console.write(f"nbd: {error}; clients wait\n")
            while self.name not in block.devices:
                await changes.get()
            return block.devices[self.name]

    async def _serve_disk(self) -> None:
        """Accept clients until the disk is unplugged."""
        disk, registry = self.disk, self.kernel.block
        while registry.devices.get(self.name) is disk:
            while self._accepted:
                self._begin(self._accepted.pop(0))
            await self._news.wait()
        for connection in self._connections:
            connection.leave()
        self._gone = True
        if not self._connections:
            self._free()

    async def _watch(self) -> None:
        """Tell the server that its disk has been unplugged."""
        await self.kernel.block.gone(self.name)
        self._news.wake()

    def _accept(self) -> None:
        self.card.submit(ACCEPT, 0, b"", self._come)
        self.card.kick()

    def _come(self, number: int) -> None:
        """Somebody has connected. Called in upcall context."""
        if number >= 0:
            self._accepted.append(number)
            self.card.submit(ACCEPT, 0, b"", self._come)
            self.card.kick()
            self._news.wake()

    def _begin(self, number: int) -> None:
        if self._closing:
            return
        try:
            connection = Connection(self, number)
        except OutOfMemory as error:
            self.lacks_memory(error)
            self.card.submit(CLOSE, number, b"", lambda status: None)
            self.card.kick()
            return
        self._connections[connection] = None
        self.kernel.spawn(connection.run(), f"nbd client {number}")

    def lacks_memory(self, error: OutOfMemory) -> None:
        """A client was hung up on since there is no memory for it. It is said once: there may be many."""
        if not self._said:
            self._said = True
            self.kernel.console.write(f"nbd: there is no memory for clients of {self.name}: {error}\n")

    def left(self, connection: Connection) -> None:
        """A connection has ended."""
        del self._connections[connection]
        self.pool.wanted.pop(connection, None)
        if not self._connections:
            if self._gone:
                self._free()
            self._alone.wake_all()

    def _free(self) -> None:
        """The disk has gone, and nobody is connected any more: give the memory back.

        Not before: a backend may keep pages mapped for as long as it is connected, and these would be lost. So they
        serve the next client.
        """
        self.pool.close()
        self.pool = BufferPool(self.kernel.mm)
        while self.own_buffers:
            self.pool.free(self.own_buffers.pop())
        zeros, self._zeros = self._zeros, None
        if zeros is not None:
            self.pool.free(zeros)

    async def close(self) -> None:
        """Hang up on everybody, when they have got their answers; wait for that a second at most."""
        self._closing = True
        # Who comes now waits for the next life of this guest, if it has one.
        self.card.submit(CLOSE, LISTENER, b"", lambda status: None)
        self.card.kick()
        for connection in list(self._connections):
            connection.leave()
        if self._connections:
            try:
                await self.kernel.wait_for(self._alone.wait(), PATIENCE_NS)
            except TimeoutError:
                self.kernel.console.write(
                    f"nbd: {len(self._connections)} clients of {self.name} did not take their answers\n"
                )

    def zeros(self) -> Buffer:
        """Return a buffer full of zeros, which nobody may write to. Raises OutOfMemory."""
        if self._zeros is None or self._zeros.block.lost:
            self._zeros = self.pool.make(self.pool.largest, [])
        return self._zeros

    def info(self) -> ExportInfo:
        """Return what clients are told of the disk, as it is now."""
        disk = self.disk
        flags = wire.HAS_FLAGS
        if disk.readonly:
            flags |= wire.READ_ONLY | wire.CAN_MULTI_CONN
        else:
            flags |= wire.SEND_WRITE_ZEROES | wire.SEND_FAST_ZERO
            if disk.can_flush:
                # A flush is one of the whole disk, so it covers what other connections have written.
                flags |= wire.SEND_FLUSH | wire.SEND_FUA | wire.CAN_MULTI_CONN
            if disk.can_discard:
                flags |= wire.SEND_TRIM
        return ExportInfo(
            name=self.name,
            description=f"{self.name} of {self.kernel.image.name}, through its split driver",
            size=disk.size,
            flags=flags,
            block_sizes=(disk.block_size, PREFERRED_SIZE, wire.MAX_PAYLOAD),
        )
