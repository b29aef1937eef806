"""What more faulty network backends are made of: the table of them all is in `net_backends`."""

from __future__ import annotations

from typing import Any

import pytest

from backends.net.driver import QUEUE_NODES, NetBack
from backends.net.frame import Frame
from backends.net.queue import Queue
from backends.net.slots import HostileFrontend
from guest_kernel.errors import XenError
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import REQ_PROD

PAGE_SIZE = 4096
SHORTEST = 60
"""What a card makes of a shorter frame."""
HEADERS = 34
"""Of Ethernet and IPv4."""
IN_32_BITS = 0xFFFF_FFFF // 8
"""So many entries of eight bytes have a length that fits."""


class Through:
    """Something, with other things in the place of some of its attributes."""

    def __init__(self, real: Any, **instead: Any) -> None:
        self._real = real
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


# -- the bus ----------------------------------------------------------------------------------------------------------


def keeps_the_good_ring(old: Any) -> Any:
    """Give up on two rings of which one is bad, and leave the other one mapped."""

    async def connect(self: Any, device: Any) -> None:
        kernel = self.kernel
        self.kernel = Through(kernel, grants=Through(kernel.grants, unmap=lambda grants: None))
        try:
            await old(self, device)
        finally:
            self.kernel = kernel

    return connect


def needs_no_channel(old: Any) -> Any:
    """Serve a queue without an event channel where there should be one."""

    def bind(self: Any, device: Any, queue: Any, nodes: Any, directory: str) -> None:
        try:
            old(self, device, queue, nodes, directory)
        except (ValueError, XenError):
            return

    return bind


def one_queue_in_a_directory(found: dict[str, str | None]) -> dict[str, str | None]:
    """Look for the nodes of the only queue in queue-0, where they are not."""
    return dict.fromkeys(QUEUE_NODES) if found.get("multi-queue-num-queues") == "1" else {}


# -- what a guest sends -----------------------------------------------------------------------------------------------


def pads(old: Any) -> Any:
    """Carry no frame that is shorter than a wire's."""

    def forward(self: Any, frame: Any, source: Any) -> None:
        frame.size = max(frame.size, SHORTEST)
        old(self, frame, source)

    return forward


def last_come_first(old: Any) -> Any:
    """Put a frame before those that wait."""

    def put(self: Any, *arguments: Any) -> bool:
        is_taken = bool(old(self, *arguments))
        if is_taken and len(self._queue) > 1:
            self._queue.appendleft(self._queue.pop())
        return is_taken

    return put


def headers_of_the_first_slot(self: Any) -> None:
    """Take all headers out of the first slot's page, however little of it belongs to the frame."""
    if len(self.slots) > 1 and 0 < self.lengths[0] < HEADERS:
        self.lengths[0] = HEADERS


def falls_over(what: str) -> Any:
    """Note slots down in an array which has an end that is not looked at."""

    def make(old: Any) -> Any:
        def packet(self: Any, at: int) -> Any:
            try:
                return old(self, at)
            except HostileFrontend as reason:
                if what in str(reason):
                    raise IndexError(f"{reason}: there is no place for them") from reason
                raise

        return packet

    return make


def masks_offsets(old: Any) -> Any:
    def request(self: Any, at: int) -> Any:
        ref, offset, *more = old(self, at)
        return (ref, offset % PAGE_SIZE, *more)

    return request


def clears_behind(old: Any) -> Any:
    """Clear a frame's page from its end on, in the guest, if that lets us."""

    def start(self: Any, packet: Any) -> None:
        old(self, packet)
        ref, offset, _, _, size = packet.slots[0]
        (grant,) = self.kernel.grants.map_refs(self.vif.domid, [ref])
        if grant.status:
            return
        end = min(offset + size, PAGE_SIZE)
        grant.view[end:PAGE_SIZE] = bytes(PAGE_SIZE - end)
        grant.view.release()
        self.kernel.grants.unmap([grant])

    return start


def skips_the_first(old: Any) -> Any:
    """Go on behind a ring's first slot where a batch goes around its end."""

    def copy(words: Any, base: int, stride: int, size: int, start: int, count: int) -> bytes:
        room = size - start % size
        if count <= room:
            return bytes(old(words, base, stride, size, start, count))
        return bytes(old(words, base, stride, size, start, room) + old(words, base, stride, size, 1, count - room))

    return copy


# -- what a guest receives --------------------------------------------------------------------------------------------


def stalled_for_ever(old: Any) -> Any:
    """Do not look again at a ring that had no buffers when the first frame came."""

    def flush(self: Any) -> None:
        if self._queue and not self._rx.shared[REQ_PROD]:
            self.stalled = True
        if not getattr(self, "stalled", False):
            old(self)

    return flush


def looks_at_the_first_status(old: Any) -> Any:
    """Answer all slots of a frame but the first as if nothing could happen to them."""

    def answer(self: Any, sent: Any) -> None:
        for _, _, numbers in sent:
            numbers[1:] = [-1] * (len(numbers) - 1)
        old(self, sent)

    return answer


# -- notifications ----------------------------------------------------------------------------------------------------


def waits_for_the_rest(old: Any) -> Any:
    """While the rest of a frame is missing, ask for no event."""
    return lambda self, produced: self.tx.req_cons == produced and old(self, produced)


def counts_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look once for each event, also for those that nobody has looked at yet, and rest where there is no work."""
    init, poll = NetBack.__init__, Queue.poll_tx

    def make(self: Any, kernel: Any, **options: Any) -> None:
        init(self, kernel, **options)

        async def pause() -> None:
            storms = [queue for device in self._devices.values() for queue in device.data.vif.queues]
            # Two such events belong to connecting.
            if any(getattr(queue, "idle", 0) > 2 for queue in storms):
                await kernel.sleep(10_000_000)
            await kernel.yield_()

        self.kernel = Through(kernel, yield_=pause)

    def count(self: Any) -> None:
        before = self.tx.req_cons
        poll(self)
        self.idle = getattr(self, "idle", 0) + 1 if self.tx.req_cons == before else 0

    def event(self: Any, queue: Any) -> None:
        self._ready.append(queue)
        self._work.wake()

    monkeypatch.setattr(NetBack, "__init__", make)
    monkeypatch.setattr(NetBack, "_event", event)
    monkeypatch.setattr(Queue, "poll_tx", count)


# -- checksums and large packets --------------------------------------------------------------------------------------


def believes_headers(old: Any) -> Any:
    """Look for the transport's checksum where the headers have it, if there are headers or not."""

    def fill(self: Any) -> None:
        data = self.raw()
        if self.flags & netif.NETTXF_csum_blank:
            place = 14 + 4 * (data[14] & 15) + 6
            data[place : place + 2] = bytes((data[place], data[place + 1]))
        old(self)

    return fill


def cuts_no_page(old: Any) -> Any:
    """Send on what is in one page as it is."""

    def begin(self: Frame, offload: Any) -> bool:
        return len(self.pages) == 1 or bool(old(self, offload))

    return begin


# -- the control ring -------------------------------------------------------------------------------------------------


def counts_in_32_bits(old: Any) -> Any:
    """Look at the length of a list in bytes, of which there are 32 bits."""
    return lambda self, kind, queue, gref, count: old(self, kind, queue, gref, count & IN_32_BITS)


def ends_with_its_ring(old: Any) -> Any:
    """Serve nobody any more once a control ring cannot be."""

    def serve(self: Any, control: Any) -> None:
        old(self, control)
        if control.broken:
            self._devices.clear()

    return serve


def forgets_the_others(old: Any) -> Any:
    """Give up for a control ring that is none, and leave the rings mapped that came before it."""

    def connect(self: Any, device: Any, nodes: Any) -> None:
        try:
            old(self, device, nodes)
        except (ValueError, XenError):
            device.data = None
            raise

    return connect
