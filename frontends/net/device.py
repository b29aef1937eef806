"""A virtual Ethernet device of a guest: queues, each a pair of rings, and what is said about them."""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from frontends.net.control import ControlRing
from frontends.net.pages import Granted, GrantedPages
from frontends.net.queue import FrontQueue
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.device import NetDevice, completed
from guest_kernel.net.errors import NetError
from guest_kernel.net.flow import spread
from guest_kernel.net.gso import segments
from guest_kernel.net.offload import NONE, VALIDATED, Offload
from guest_kernel.net.packet import Bytes, is_ipv6
from hypervisor.abi.io import netif

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel


async def _nobody_asked(wanted: bool) -> None:
    raise ValueError("the device is not on a bus")


class FrontDevice(NetDevice):
    """One virtual interface: opened, connected, closed."""

    def __init__(self, kernel: Kernel, name: str, mac: bytes, backend: int) -> None:
        super().__init__(name, mac)
        self.kernel = kernel
        self.backend = backend
        self.connected = False
        self.scatter = True
        """The backend takes frames of several slots (feature-sg)."""
        self.gso_types: frozenset[int] = frozenset()
        """Kinds of packets that the backend cuts into segments (feature-gso-tcpv4, -tcpv6); the others we cut."""
        self.gso_prefix = False
        """Large packets are to come behind a slot with the length of a segment, not with extra info."""
        self.ipv6_checksum_offload = False
        """The backend takes IPv6 packets without a checksum (feature-ipv6-csum-offload)."""
        self.multicast_control = False
        """The backend keeps a list of multicast addresses (feature-multicast-control)."""
        self.request_multicast: Callable[[bool], Awaitable[None]] = _nobody_asked
        self.broken = ""
        self.on_broken: Callable[[str], None] = lambda why: None
        self.checksum_offload = True
        self.control: ControlRing | None = None
        self.pages = GrantedPages(kernel, backend)
        """All that the backend may use."""
        self.queues: list[FrontQueue] = []

    def open(self, *, control: bool = False, split: bool = False, queues: int = 1) -> None:
        """Make rings, event channels, and the first buffers; `control`: a control ring too.

        `split`: see `FrontQueue.open`. Raises OutOfMemory, GrantError, XenError; `close` gives back what has been taken
        by then.
        """
        # Its pages come first: those of buffers are to be neighbours.
        if control:
            self.control = ControlRing(self.kernel, self.backend, self.pages)
        for number in range(queues):
            queue = FrontQueue(self, self.name if queues == 1 else f"{self.name}-q{number}")
            # From here on there is something to close.
            self.queues.append(queue)
            queue.open(split=split)

    def connect(self) -> None:
        """Start: the backend is there."""
        self.connected = True
        for queue in self.queues:
            queue.start()

    # -- sending --------------------------------------------------------------------------------------------------

    def _queue_of(self, frame: Bytes) -> FrontQueue:
        """Return the queue that a frame goes to: all frames of a flow to the same."""
        queues = self.queues
        return queues[0] if len(queues) == 1 else queues[spread(frame, len(queues))]

    def transmit(self, frame: Bytes, offload: Offload = NONE) -> bool:
        """Put a frame on a tx ring and tell the backend if it wants to know.

        What the backend does not take undone is done here. A packet that cannot be cut counts as dropped, as a frame
        for which there is no room does; so does the part of it, in segments, that had no room.
        """
        if not self.connected or not self.carrier:
            self.counters.tx_dropped += 1
            return False
        pieces, how = self._ready(frame, offload)
        queue = self._queue_of(frame)
        sent = self._put(queue, pieces, how)
        if sent:
            queue.tx.push()
        if not sent or sent < len(pieces):
            self.counters.tx_dropped += max(1, len(pieces) - sent)
            return False
        return True

    def _put(self, queue: FrontQueue, pieces: Sequence[Bytes], offload: Offload) -> int:
        """Put frames on a tx ring without showing them; returns how many had room."""
        sent = 0
        for piece in pieces:
            if not queue.tx.put(piece, offload):
                break
            sent += 1
            self.counters.tx_bytes += len(piece)
        self.counters.tx_packets += sent
        return sent

    def _takes(self, offload: Offload) -> bool:
        """Whether the backend takes any frame with this left undone."""
        if offload.gso_size and (offload.gso_type not in self.gso_types or not self.scatter):
            return False
        return not offload.blank or self.ipv6_checksum_offload

    def _ready(self, frame: Bytes, offload: Offload) -> tuple[Sequence[Bytes], Offload]:
        """Return a frame as this backend takes it: in one piece or in segments, with or without its checksum."""
        if offload is NONE or self._takes(offload):
            return [frame], offload
        if offload.gso_size and (offload.gso_type not in self.gso_types or not self.scatter):
            return segments(frame, offload), VALIDATED
        if is_ipv6(frame):
            return [completed(frame)], VALIDATED
        return [frame], offload

    def transmit_many(self, frames: Sequence[Bytes], offload: Offload = NONE) -> int:
        """Send the first of these frames, as many as there is room for, with at most one notification of each queue.

        Returns how many; the others are still the caller's. `offload`: of all of them; what the backend does not take
        undone is done here, as in `transmit`.
        """
        if not self.connected or not self.carrier:
            return 0
        taken = offload is NONE or self._takes(offload)
        if len(self.queues) == 1 and taken:
            return self.queues[0].tx.put_many(frames, offload)
        sent = 0
        used: dict[FrontQueue, None] = {}
        for frame in frames:
            pieces, how = ([frame], offload) if taken else self._ready(frame, offload)
            queue = self._queue_of(frame)
            if not queue.tx.has_room(pieces, how):
                break
            put = self._put(queue, pieces, how)
            if pieces and not put:
                break
            self.counters.tx_dropped += len(pieces) - put if pieces else 1
            used[queue] = None
            sent += 1
        for queue in used:
            queue.tx.push()
        return sent

    def tx_room(self) -> int:
        """Return how many one-slot frames can be sent now, whichever queue they are for."""
        return min(queue.tx.free_slots() for queue in self.queues) if self.connected and self.carrier else 0

    async def wait_for_room(self, slots: int = 1) -> None:
        """Wait until a frame of so many slots can be sent on any queue, or the device is disconnected."""
        while self.connected:
            full = [queue for queue in self.queues if queue.tx.free_slots() < slots or not self.carrier]
            if not full:
                return
            await full[0].tx.room.wait()

    def set_carrier(self, is_up: bool) -> None:
        """The backend says whether the link is up; who waits for room waits for that, too."""
        if is_up == self.carrier:
            return
        self.carrier = is_up
        for queue in self.queues:
            queue.tx.room.wake_all()
        self.carrier_changed(is_up)

    def disconnect(self) -> None:
        """Send nothing more; who waits for room goes on (and loses its frame)."""
        self.connected = False
        for queue in self.queues:
            queue.tx.room.wake_all()

    def order_multicast(self, address: bytes, *, wanted: bool) -> bool:
        """Put a multicast address on the backend's list, or take it off; False if that cannot be sent.

        A list that is full (64 addresses in Linux's backend and ours) counts as a frame dropped.
        """
        if not self.multicast_control or not self.connected:
            return False
        kind = netif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD if wanted else netif.XEN_NETIF_EXTRA_TYPE_MCAST_DEL
        return self.queues[0].tx.put_order(kind, address)

    async def order_hashing(self, types: int, key: bytes = b"", mapping: Sequence[int] = ()) -> None:
        """Have the backend choose queues by a Toeplitz hash, and tell the hash of each frame (`Offload.hash`).

        `types`: XEN_NETIF_CTRL_HASH_TYPE_... bits, over what; 0 ends it. `key`: up to 40 bytes. `mapping`: numbers of
        queues by the remainder of the hash; without it the remainder is the queue. Raises NetError if the backend
        refuses.
        """
        if self.control is None:
            raise NetError(f"the backend of {self.name} has no control ring")
        for queue in self.queues:
            queue.rx.reassembly.takes_hash = True
        page = self.control.page_ref
        numbers = array("I", mapping).tobytes()
        toeplitz, none = netif.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ, netif.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE
        orders = [
            (netif.XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, (toeplitz,), b""),
            (netif.XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, (page, len(key)), key),
            (netif.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, (len(mapping),), b""),
            (netif.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, (page, len(mapping)), numbers),
            (netif.XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, (types,), b""),
        ]
        if not types:
            orders = [(netif.XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, (none,), b"")]
        for kind, data, content in orders:
            if len(content) > PAGE_SIZE:
                raise NetError(f"{len(content)} bytes are too many for one page of {self.name}'s control ring")
            if status := await self.control.ask(kind, *data, page=content):
                raise NetError(f"the backend of {self.name} refuses to hash so: request {kind}, status {status}")

    # -- receiving ------------------------------------------------------------------------------------------------

    def hand_over_alike(self, frames: list[bytes], offloads: Offload | list[Offload]) -> None:
        """Do what `hand_over` does, fast if all frames are alike (one `offloads` for all) and need nothing done."""
        if not isinstance(offloads, Offload):
            self.hand_over(frames, offloads)
        elif offloads.blank:
            self.hand_over(frames, [offloads] * len(frames))
        elif self.received_many is not None:
            self.received_many(frames, [offloads.validated] * len(frames))
        elif self.received_raw is not None:
            raw = self.received_raw
            for frame in frames:
                raw(frame, offloads)
        else:
            received, validated = self.received, offloads.validated
            for frame in frames:
                received(frame, validated)

    def give_up(self, why: str) -> bool:
        """Use the device no more, as its backend does not keep to the protocol; returns False."""
        self.broken = why
        self.disconnect()
        self.on_broken(why)
        return False

    def close(self) -> list[Granted]:
        """Take everything back; returns the grants (with their pages) that the backend still uses (XSA-396)."""
        self.disconnect()
        for queue in self.queues:
            queue.close()
        self.queues.clear()
        if self.control is not None:
            self.control.close()
            self.control = None
        return self.pages.take_back()
