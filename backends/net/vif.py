"""One virtual interface of a guest, as a port of a bridge.

What it has said about itself (which frames it takes, as what, in which queue) is looked at here; the rings are those of
its queues (`queue`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.net import headroom
from backends.net.guest_port import GuestPort
from backends.net.hashing import Hashing
from backends.net.lane import Lanes
from backends.net.queue import Queue
from backends.net.vlan import TPID
from guest_kernel.errors import OutOfMemory
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.flow import spread
from hypervisor.abi.io import netif

if TYPE_CHECKING:
    from backends.net.copies import CopyBatch
    from backends.net.credit import Credit
    from backends.net.frame import Frame, FramePool
    from guest_kernel.kernel import Kernel
    from guest_kernel.net.packet import Bytes
    from guest_kernel.net.page_rows import PageRows

HEADER_AND_TAG = 18
IPV6 = 0x86DD
GSO, HASH = netif.XEN_NETIF_EXTRA_TYPE_GSO, netif.XEN_NETIF_EXTRA_TYPE_HASH
EXTRA_MORE = netif.XEN_NETIF_EXTRA_FLAG_MORE << 8

Rings = tuple[memoryview, memoryview]
"""The pages of a tx and of an rx ring."""


class Vif(GuestPort):
    """Connected, with a queue for each pair of rings."""

    def __init__(
        self, kernel: Kernel, name: str, domid: int, rings: list[Rings], pool: FramePool, copies: CopyBatch
    ) -> None:
        super().__init__(kernel, name, domid)
        self.hashing = Hashing(len(rings))
        names = [name] if len(rings) == 1 else [f"{name}-q{number}" for number in range(len(rings))]
        self.queues = [Queue(self, label, *pair, pool, copies) for label, pair in zip(names, rings, strict=True)]

    def arrange(self, rows: PageRows | None) -> None:
        """Have other rows for the guest's mapped pages, or none."""
        self.rows = rows
        for queue in self.queues:
            queue.forget()

    def wait_for_credit(self) -> None:
        """See `GuestPort.wait_for_credit`."""
        assert self.credit is not None

        def end() -> None:
            self.pause = None
            for queue in self.queues:
                self.recheck(queue)

        self.pause = self.kernel.timers.add(self.credit.next, end)

    def limit(self, credit: Credit | None) -> None:
        """Have another limit from now on, or none; what waited for the old one is looked at again."""
        self.credit = credit
        if self.pause is not None:
            self.pause.cancel()
            self.pause = None
            for queue in self.queues:
                self.recheck(queue)

    def refused(self) -> None:
        """See `Port.refused`."""
        self.counters.rx_dropped += 1

    def deliver(self, frame: Frame) -> None:
        """Queue a frame for the guest, unless too much waits already or the guest could not take it."""
        if not self.multicast.passes(frame.destination):
            return
        too_long = self.mtu is not None and frame.longest > self.mtu + HEADER_AND_TAG
        if too_long or (len(frame.pages) > 1 and not self.scatter):
            self.counters.tx_dropped += 1
            return
        if frame.flags & netif.NETTXF_csum_blank and not self._takes_blank(frame):
            frame.fill_checksum()
        extras: tuple[int, ...] = ()
        prefix = 0
        if frame.cutting is not None:
            gso = frame.cutting.offload
            if gso.gso_type not in self.gso_types:
                prefix = gso.gso_size
            else:
                extras = (GSO | gso.gso_size << 16 | gso.gso_type << 32,)
        queue, extra = self._choose(frame.headers)
        if extra:
            extras = (*(word | EXTRA_MORE for word in extras), extra)
        if self.headroom:
            extras = (*(word | EXTRA_MORE for word in extras), headroom.extra(self.headroom))
            taken = self._put_behind_room(queue, frame, extras, prefix)
        else:
            taken = queue.put(frame, extras, prefix)
        if not taken:
            self.counters.tx_dropped += 1

    def _put_behind_room(self, queue: Queue, frame: Frame, extras: tuple[int, ...], prefix: int) -> bool:
        """Do what `Queue.put` does for a guest that wants room before the data in each of its buffers."""
        count = headroom.slots_needed(frame.size, self.headroom)
        if count > headroom.MOST_SLOTS or (count > 1 and not self.scatter):
            return False
        if count == len(frame.pages) == 1:
            return queue.put(frame, extras, prefix, self.headroom)
        try:
            spread = frame.spread(PAGE_SIZE - self.headroom)
        except OutOfMemory:
            return False
        taken = queue.put(spread, extras, prefix, self.headroom)
        spread.put()
        return taken

    def _choose(self, headers: Bytes) -> tuple[Queue, int]:
        """Return the queue that a frame with these headers goes to, and a slot of extra info with its hash, or 0."""
        if self.hashing.active:
            found = self.hashing.hash(headers)
            return self.queues[self.hashing.queue(found)], 0 if found is None else HASH | found.extra << 16
        count = len(self.queues)
        return self.queues[spread(headers, count) if count > 1 else 0], 0

    def _takes_blank(self, frame: Frame) -> bool:
        """Whether the guest takes this frame without its checksum; behind a VLAN tag nobody looks for one."""
        view = frame.pages[0].view
        kind = view[12] << 8 | view[13]
        if kind == IPV6:
            return self.takes_blank_ipv6
        return self.takes_blank and kind != TPID

    def takes_whole(self, frame: Frame) -> bool:
        """Whether the guest cuts such packets itself, or need not: it must take several slots and blank checksums."""
        cutting = frame.cutting
        return (
            cutting is not None
            and (cutting.offload.gso_type in self.gso_types or cutting.offload.gso_type in self.gso_prefixed)
            and self.scatter
            and self._takes_blank(frame)
        )

    def open_lanes(self) -> Lanes | None:
        """See `Port.open_lanes`: the guest must keep buffers mapped, and have its data at their beginning."""
        if not self.writable or self.headroom:
            return None
        is_one = len(self.queues) == 1 and not self.hashing.active
        lanes = Lanes(self.queues[0], None if is_one else self._choose)
        # Nobody looks at types either: what may be blank must be so for all.
        lanes.takes_blank = self.takes_blank and self.takes_blank_ipv6
        if self.mtu is not None:
            lanes.longest = self.mtu + HEADER_AND_TAG
        if lanes.takes_blank and self.scatter:
            lanes.large = self.gso_types
        return lanes

    def close(self) -> None:
        """Drop what waits and let go of the rings."""
        if self.pause is not None:
            self.pause.cancel()
        for queue in self.queues:
            queue.close()
