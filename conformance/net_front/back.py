"""A network backend by hand: it offers what the check says, takes requests, and answers as it likes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, final

import attrs

from conformance.kit.bus_end import LOOK_NS, BackEnd
from conformance.kit.check import Failure
from guest_kernel.errors import XenError
from guest_kernel.grants import MappedGrant
from guest_kernel.kernel import Kernel
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import BackRing
from hypervisor.abi.io.xenbus import (
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitWait,
)
from hypervisor.abi.tracepoints import RING_CONNECT

BOOT_NS: Final = 400_000_000_000
"""Virtual time that a guest may take to come up. (Linux waits up to 270 seconds for an interface that does not.)"""
BOOT_LOOK_NS: Final = 10_000_000
U32: Final = 0xFFFF_FFFF
TX_ENTRY, RX_ENTRY = 12, 8
MORE, EXTRA = netif.NETTXF_more_data, netif.NETTXF_extra_info


@attrs.frozen
class Request:
    """A slot of the tx ring."""

    gref: int
    offset: int
    flags: int
    id: int
    size: int


@attrs.frozen
class Sent:
    """A frame of the guest's."""

    slots: list[Request]
    extras: list[bytes]
    """Slots of extra info, eight bytes each."""
    data: bytes

    @property
    def flags(self) -> int:
        """Those that are the frame's: of its first slot, without those of more slots."""
        return self.slots[0].flags & ~(MORE | EXTRA)


@attrs.frozen
class Buffer:
    """A page that the guest has posted."""

    id: int
    gref: int


@final
class Back(BackEnd):
    """One backend device."""

    kind, device = "vif", "0"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.is_ready: Callable[[], bool] = lambda: True
        """Whether the frontend's guest has come up."""
        self.tx: BackRing
        self.rx: BackRing
        self.grants: list[MappedGrant] = []
        self.ports: list[int] = []
        """That of the tx ring, and that of the rx ring if it is another one."""
        self.tx_events = self.rx_events = 0
        """Notifications of each event channel; both count those of the only one."""
        self.buffers: deque[Buffer] = deque()
        """Taken off the rx ring, and not used yet."""

    # -- the bus ------------------------------------------------------------------------------------------------------

    async def offer(self, **nodes: object) -> None:
        """Say what there is (copying, if nothing else is said of it), and wait for the frontend in InitWait."""
        if not self.home:
            await self.find()
        await self.say(**{"feature_rx_copy": 1, **nodes})
        await self.say(state=XenbusStateInitWait)
        for _ in range(BOOT_NS // BOOT_LOOK_NS):
            if self.is_ready():
                return
            await self.kernel.sleep(BOOT_LOOK_NS)
        raise Failure("The guest does not come up.")

    async def attach(self) -> None:
        """Map the rings of the first queue, and bind its event channels, as the frontend names them. Raises Failure."""
        await self.wait_for(XenbusStateInitialised, XenbusStateConnected)
        queues = int(await self.told("multi-queue-num-queues") or 1)
        at = "queue-0/" if queues > 1 else ""
        refs = [await self.number(f"{at}{key}") for key in ("tx-ring-ref", "rx-ring-ref")]
        self.grants = self.kernel.grants.map_refs(self.domid, refs)
        for ref, grant in zip(refs, self.grants, strict=True):
            if grant.status:
                self.grants = [one for one in self.grants if not one.status]
                raise Failure(f"The frontend's ring {ref} cannot be mapped: status {grant.status}.")
        self.tx, self.rx = BackRing(self.grants[0].view, TX_ENTRY), BackRing(self.grants[1].view, RX_ENTRY)
        self._tell_of_rings(refs)
        if await self.told(f"{at}event-channel-tx") is not None:
            self._bind(await self.number(f"{at}event-channel-tx"), self._on_tx)
            self._bind(await self.number(f"{at}event-channel-rx"), self._on_rx)
        else:
            self._bind(await self.number(f"{at}event-channel"), self._on_both)

    def _tell_of_rings(self, refs: list[int]) -> None:
        """Have a trace show the rings, as a backend's driver does."""
        trace = self.kernel.cpu.trace
        if trace is not None:
            for name, ref in zip(("tx", "rx"), refs, strict=True):
                trace(RING_CONNECT, f"vif{self.domid}.0", name, f"netif_{name}", self.domid, (ref,))

    def _bind(self, port: int, handler: Callable[[], None]) -> None:
        try:
            self.ports.append(self.kernel.events.bind_interdomain(self.domid, port, handler))
        except XenError as error:
            raise Failure(f"The frontend's event channel {port} cannot be bound: {error}.") from None

    def _on_tx(self) -> None:
        self.tx_events += 1

    def _on_rx(self) -> None:
        self.rx_events += 1

    def _on_both(self) -> None:
        self.tx_events += 1
        self.rx_events += 1

    async def number(self, key: str) -> int:
        """Return a number that the frontend must have written. Raises Failure."""
        text = await self.told(key)
        if text is None or not text.isdigit():
            raise Failure(f"The frontend is there, and its {key} is {text!r}.")
        return int(text)

    async def connect(self, **nodes: object) -> None:
        """Go through the whole handshake; `nodes` are what is offered."""
        await self.offer(**nodes)
        await self.attach()
        await self.say(state=XenbusStateConnected)
        await self.wait_for(XenbusStateConnected)

    @property
    def is_attached(self) -> bool:
        """Whether anything of the frontend is mapped or bound."""
        return bool(self.grants)

    def detach(self) -> None:
        """Unmap and unbind."""
        if self.grants:
            self.tx.release()
            self.rx.release()
            self.kernel.grants.unmap(self.grants)
        for port in self.ports:
            self.kernel.events.unbind(port)
        self.grants, self.ports = [], []

    # -- what the guest sends -----------------------------------------------------------------------------------------

    def take_slots(self) -> list[bytes]:
        """Take the requests of the tx ring that are there, and ask to be told of the next."""
        found = []
        while self.tx.final_check_for_requests():
            found.append(self.tx.copy(self.tx.req_cons))
            self.tx.req_cons = self.tx.req_cons + 1 & U32
        return found

    async def frames(self, count: int = 1) -> list[Sent]:
        """Return so many frames, or more. Raises Failure if they do not come, or not as netif.h has it."""
        slots: list[bytes] = []
        frames: list[Sent] = []
        for _ in range(self.patience_ns // LOOK_NS):
            slots += self.take_slots()
            while (end := frame_end(slots)) is not None:
                frames.append(self._parse(slots[:end]))
                del slots[:end]
            if len(frames) >= count and not slots:
                return frames
            await self.kernel.sleep(LOOK_NS)
        raise Failure(f"Of {count} frames {len(frames)} come, and {len(slots)} slots of the next one.")

    async def frame(self) -> Sent:
        """Return the only frame that comes. Raises Failure."""
        frames = await self.frames()
        if len(frames) != 1:
            raise Failure(f"Where the guest sends one frame {len(frames)} come.")
        return frames[0]

    def _parse(self, slots: list[bytes]) -> Sent:
        requests, extras, pieces = [], [], []
        is_extra = False
        for raw in slots:
            if is_extra:
                extras.append(raw[:8])
                is_extra = bool(raw[1] & netif.XEN_NETIF_EXTRA_FLAG_MORE)
                continue
            one = netif.netif_tx_request.unpack(raw)
            requests.append(Request(one.gref, one.offset, one.flags, one.id, one.size))
            is_extra = bool(one.flags & EXTRA) and len(requests) == 1
        for number, request in enumerate(requests):
            size = request.size if number else request.size - sum(other.size for other in requests[1:])
            pieces.append(self.read(request.gref, request.offset, size))
        return Sent(requests, extras, b"".join(pieces))

    def read(self, gref: int, offset: int, size: int) -> bytes:
        """Return what is in a page of the guest's, which is only read. Raises Failure."""
        if size < 0 or offset + size > 4096:
            raise Failure(f"A slot has {size} bytes at {offset}: that is not within its page.")
        (grant,) = self.kernel.grants.map_refs(self.domid, [gref], False)
        if grant.status:
            raise Failure(f"Reference {gref} of a tx request cannot be mapped: status {grant.status}.")
        data = bytes(grant.view[offset : offset + size])
        self.kernel.grants.unmap([grant])
        return data

    def put_answer(self, ident: int, status: int = netif.NETIF_RSP_OKAY) -> None:
        """Write a response into the next slot of the tx ring, without showing it."""
        at = self.tx.offset(self.tx.rsp_prod_pvt)
        self.tx.view[at : at + 4] = netif.netif_tx_response.pack(id=ident, status=status)
        self.tx.rsp_prod_pvt = self.tx.rsp_prod_pvt + 1 & U32

    def show_answers(self) -> None:
        """Show the responses of the tx ring, and notify as the protocol asks."""
        if self.tx.push_responses_and_check_notify():
            self.kernel.events.notify(self.ports[0])

    def answer(self, *frames: Sent, status: int = netif.NETIF_RSP_OKAY) -> None:
        """Answer all slots of frames."""
        for frame in frames:
            for number, request in enumerate(frame.slots):
                self.put_answer(request.id, status)
                for _ in frame.extras if not number else ():
                    self.put_answer(0, netif.NETIF_RSP_NULL)
        self.show_answers()

    def keep_serving(self) -> list[bytes]:
        """Take and answer all frames of one slot from now on, in a thread; return the list in which they will be."""
        taken: list[bytes] = []

        async def work() -> None:
            while self.ports:
                for raw in self.take_slots():
                    frame = self._parse([raw])
                    taken.append(frame.data)
                    self.answer(frame)
                await self.kernel.sleep(LOOK_NS)

        self.kernel.spawn(work(), "serves")
        return taken

    # -- what the guest receives --------------------------------------------------------------------------------------

    def take_buffers(self) -> int:
        """Take the requests of the rx ring that are there; return how many buffers there are now."""
        while self.rx.final_check_for_requests():
            one = netif.netif_rx_request.unpack(self.rx.copy(self.rx.req_cons))
            self.rx.req_cons = self.rx.req_cons + 1 & U32
            self.buffers.append(Buffer(one.id, one.gref))
        return len(self.buffers)

    async def buffer(self) -> Buffer:
        """Return the next buffer. Raises Failure if there is none."""
        for _ in range(self.patience_ns // LOOK_NS):
            if self.take_buffers():
                return self.buffers.popleft()
            await self.kernel.sleep(LOOK_NS)
        raise Failure("The frontend posts no buffers.")

    def write(self, gref: int, offset: int, data: bytes) -> None:
        """Write into a buffer. Raises Failure."""
        (grant,) = self.kernel.grants.map_refs(self.domid, [gref])
        if grant.status:
            raise Failure(f"Reference {gref} of an rx request cannot be mapped writable: status {grant.status}.")
        grant.view[offset : offset + len(data)] = data
        self.kernel.grants.unmap([grant])

    def put_response(self, ident: int, status: int, *, offset: int = 0, flags: int = 0) -> None:
        """Write a response into the next slot of the rx ring, without showing it."""
        self._put_rx(netif.netif_rx_response.pack(id=ident, offset=offset, flags=flags, status=status))

    def put_extra(self, kind: int, data: bytes = b"", *, more: bool = False) -> None:
        """Write a slot of extra info; the buffer that was posted there is used up."""
        flag = netif.XEN_NETIF_EXTRA_FLAG_MORE if more else 0
        self._put_rx(bytes((kind, flag)) + data.ljust(6, b"\0"))

    def _put_rx(self, response: bytes) -> None:
        at = self.rx.offset(self.rx.rsp_prod_pvt)
        self.rx.view[at : at + RX_ENTRY] = response
        self.rx.rsp_prod_pvt = self.rx.rsp_prod_pvt + 1 & U32

    def show_frames(self) -> None:
        """Show the responses of the rx ring, and notify as the protocol asks."""
        if self.rx.push_responses_and_check_notify():
            self.kernel.events.notify(self.ports[-1])

    async def put(
        self, *pieces: bytes, offset: int = 0, flags: int = 0, extra: tuple[int, bytes] | None = None
    ) -> None:
        """Write a frame of one or more slots into buffers, without showing it. Raises Failure."""
        for number, piece in enumerate(pieces):
            buffer = await self.buffer()
            self.write(buffer.gref, offset, piece)
            more = netif.NETRXF_more_data if number < len(pieces) - 1 else 0
            announced = netif.NETRXF_extra_info if extra and not number else 0
            own = flags if not number else 0
            self.put_response(buffer.id, len(piece), offset=offset, flags=own | more | announced)
            if extra and not number:
                await self.buffer()
                self.put_extra(*extra)

    async def give(self, *frames: bytes, flags: int = 0) -> None:
        """Give the guest frames of one slot. Raises Failure."""
        for frame in frames:
            await self.put(frame, flags=flags)
        self.show_frames()


def frame_end(slots: list[bytes]) -> int | None:
    """Return where the first frame in these slots ends; None if its end has not come. Raises Failure."""
    at, in_extra = 0, False
    while at < len(slots):
        if in_extra:
            in_extra = bool(slots[at][1] & netif.XEN_NETIF_EXTRA_FLAG_MORE)
        else:
            flags = int.from_bytes(slots[at][6:8], "little")
            in_extra = bool(flags & EXTRA) and at == 0
            more = bool(flags & MORE)
        at += 1
        if not in_extra and not more:
            return at
    return None
