"""What a guest sends, as words copied out of its tx ring; and the packets of several slots that they make up."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.offload import Offload, gso
from guest_kernel.net.ring_words import TX_BASE, TX_SLOT, TX_WORDS, copy_bytes
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import BackRing

if TYPE_CHECKING:
    from backends.net.frame import Frame

MORE, EXTRA = netif.NETTXF_more_data, netif.NETTXF_extra_info
EXTRA_MORE = netif.XEN_NETIF_EXTRA_FLAG_MORE
LARGE_MARK = (MORE | EXTRA | netif.NETTXF_csum_blank) << 16
MAX_SLOTS = netif.XEN_NETIF_NR_SLOTS_MIN
FATAL_SLOTS = 20
"""A frame of more slots than this is no mistake but an attack: the vif is closed (Linux's fatal_skb_slots)."""
MULTICAST_ORDERS = (netif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD, netif.XEN_NETIF_EXTRA_TYPE_MCAST_DEL)
GSO = netif.XEN_NETIF_EXTRA_TYPE_GSO
FRAME_INFOS = (GSO, netif.XEN_NETIF_EXTRA_TYPE_HASH)
"""What may be said of a frame. (The hash that a guest has worked out is of no use here: frames go by addresses.)"""
MAX_EXTRAS = netif.XEN_NETIF_EXTRA_TYPE_MAX - 1
"""One of each type."""

Request = tuple[int, int, int, int, int]
"""A tx request: gref, offset, flags, id, size."""


class HostileFrontend(Exception):
    """The frontend broke the protocol in a way that no answer on the ring can mend."""


class LargePacket(NamedTuple):
    """A packet to be cut, of which nothing but lengths has been looked at."""

    refs: tuple[int, ...]
    """Its pages."""
    size: int
    offload: Offload
    slots: int
    """With that of extra info."""

    def extras(self, more: int) -> tuple[int, ...]:
        """Return extra info for its receiver, as words; `more`: another one that goes with it, or 0."""
        word = GSO | self.offload.gso_size << 16 | self.offload.gso_type << 32
        return (word | EXTRA_MORE << 8, more) if more else (word,)


class TxSlots:
    """A private copy of the requests that are new in a tx ring; nobody can change what was checked (XSA-155).

    Of slot n: `refs[n]` is the grant reference, `marks[n]` offset | flags << 16, `sizes[n]` id | size << 16.
    """

    def __init__(self, ring: BackRing, words: memoryview, count: int) -> None:
        self.count = count
        self._bytes = copy_bytes(words, TX_BASE, TX_WORDS, ring.size, ring.req_cons, count)
        self._words = memoryview(self._bytes).cast("I")

    @cached_property
    def refs(self) -> list[int]:
        """Of each slot, the grant reference."""
        return self._words[0::TX_WORDS].tolist()

    @cached_property
    def marks(self) -> list[int]:
        """Of each slot, offset | flags << 16."""
        return self._words[1::TX_WORDS].tolist()

    @cached_property
    def sizes(self) -> list[int]:
        """Of each slot, id | size << 16."""
        return self._words[2::TX_WORDS].tolist()

    def has_extra(self, at: int) -> bool:
        """Whether extra info follows slot `at`, if that is the first one of a frame."""
        return bool(self._words[at * TX_WORDS + 1] & EXTRA << 16)

    def key(self, at: int) -> bytes:
        """Return all that a large packet that begins in slot `at` consists of, if one does: it tells its own size."""
        slots = 1 - (-(self._words[at * TX_WORDS + 2] >> 16) // PAGE_SIZE)
        return self._bytes[at * TX_SLOT : (at + slots) * TX_SLOT]

    def rest(self, at: int) -> bytes:
        """Return all slots from `at` on, as they were in the ring."""
        return self._bytes[at * TX_SLOT :]

    def request(self, at: int) -> Request:
        """Return slot `at` as a request."""
        mark, size = self.marks[at], self.sizes[at]
        return self.refs[at], mark & 0xFFFF, mark >> 16, size & 0xFFFF, size >> 16

    def large(self, at: int) -> LargePacket | None:
        """Return the packet that begins in slot `at` if it is to be cut, and fills all its pages but the last one.

        Anything else is for `packet`.
        """
        marks, sizes, refs = self.marks, self.sizes, self.refs
        if marks[at] & LARGE_MARK != LARGE_MARK or marks[at] & 0xFFFF or at + 3 > self.count:
            return None
        info = refs[at + 1]
        end = at + 2
        while end < self.count and marks[end] == MORE << 16:
            end += 1
        if info & 0xFFFF != GSO or end == self.count or marks[end]:
            return None
        size, last = sizes[at] >> 16, sizes[end] >> 16
        middle = [word >> 16 for word in sizes[at + 2 : end]]
        full = (len(middle) + 1) * PAGE_SIZE
        if middle.count(PAGE_SIZE) != len(middle) or size != full + last or not 0 < last <= PAGE_SIZE:
            return None
        return LargePacket(
            (refs[at], *refs[at + 2 : end + 1]), size, gso(info >> 16, marks[at + 1] & 0xFF), end + 1 - at
        )

    def packet(self, at: int) -> Packet | None:
        """Return the packet that begins in slot `at`; None if its end has not come yet. Raises HostileFrontend."""
        first = self.request(at)
        extras = 0
        infos: list[tuple[int, int]] = []
        more = first[2] & EXTRA
        while more:
            extras += 1
            if extras > MAX_EXTRAS:
                raise HostileFrontend("endless extra info slots")
            if at + extras >= self.count:
                return None
            # An extra slot begins with two bytes, type and flags.
            word = self.refs[at + extras]
            more = word >> 8 & EXTRA_MORE
            infos.append((word & 0xFF, word >> 16 | self.marks[at + extras] << 16))
        slots = [first]
        place = at + extras
        while slots[-1][2] & MORE:
            place += 1
            if len(slots) >= FATAL_SLOTS:
                raise HostileFrontend(f"a frame of more than {FATAL_SLOTS} slots")
            if place >= self.count:
                return None
            slots.append(self.request(place))
        return Packet(slots, infos)


class Packet:
    """One frame that a guest sends: its slots, and where its copies stand in the batch."""

    __slots__ = ("extras", "first_copy", "frame", "infos", "last_copy", "lengths", "size", "slots", "status")

    def __init__(self, slots: list[Request], infos: list[tuple[int, int]]) -> None:
        self.slots = slots
        self.extras = len(infos)
        """Extra info slots: each is answered with NETIF_RSP_NULL."""
        self.infos = infos
        """What they say: type, and the six bytes behind it as a number, first byte lowest."""
        self.size = slots[0][4]
        self.lengths = [slot[4] for slot in slots]
        """Bytes in each slot. The first slot tells the size of the whole, so its own length is what is left of it."""
        self.lengths[0] -= sum(self.lengths[1:])
        self.frame: Frame | None = None
        self.first_copy = self.last_copy = 0
        self.status = netif.NETIF_RSP_OKAY

    @property
    def is_order(self) -> bool:
        """Whether this is no frame at all, but changes the list of multicast addresses (netif.h)."""
        return bool(self.infos) and len(self.slots) == 1 and all(kind in MULTICAST_ORDERS for kind, _ in self.infos)

    @property
    def offload(self) -> Offload | None:
        """What is to be done with the frame, if the guest says so in extra info (flags of slots are not counted)."""
        for kind, info in self.infos:
            if kind == GSO:
                return gso(info & 0xFFFF, info >> 16 & 0xFF)
        return None

    def is_possible(self, smallest: int, page: int) -> bool:
        """Whether sizes and offsets fit together and into pages of `page` bytes, and extra info is what a frame has.

        A slot without data may say what it likes about a page that nobody looks at (XSA-448).
        """
        return (
            len(self.slots) <= MAX_SLOTS
            and all(kind in FRAME_INFOS for kind, _ in self.infos)
            and len({kind for kind, _ in self.infos}) == self.extras
            and self.size >= smallest
            and all(
                length == 0 or (length > 0 and slot[1] + length <= page)
                for slot, length in zip(self.slots, self.lengths, strict=True)
            )
        )
