"""Frames out of the responses of an rx ring: those of several slots, and those with extra info (netif.h, receive)."""

from __future__ import annotations

import attrs

from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.gso import VERSIONS
from guest_kernel.net.offload import BLANK, NONE, VALIDATED, gso
from guest_kernel.net.packet import locate
from hypervisor.abi.io import netif

MORE, EXTRA = netif.NETRXF_more_data << 32, netif.NETRXF_extra_info << 32
IS_BLANK, IS_VALIDATED = netif.NETRXF_csum_blank << 32, netif.NETRXF_data_validated << 32
CSUM = IS_BLANK | IS_VALIDATED
OFFLOADS = {0: NONE, IS_VALIDATED: VALIDATED, IS_BLANK: BLANK, CSUM: BLANK}
"""What the flags of a response say. A blank checksum is nobody's mistake, whatever the other flag says."""
PREFIX = netif.NETRXF_gso_prefix << 32
"""In the place of a frame's first slot: one without data, with the length of a segment in the place of an offset."""
OFFSET = 0xFFFF << 16
FULL = MORE >> 16 | PAGE_SIZE << 32
"""A response above its id: a page full of data, and more to come."""
MOST_SLOTS = netif.XEN_NETIF_NR_SLOTS_MIN


class UnknownExtra(Exception):
    """Extra info of a kind that was not offered."""


class Reassembly:
    """Takes responses (as 64-bit words) in the order of the ring, one call for each.

    Both `take` and `take_extra` return None while a frame goes on. With its last slot they return it: nothing of it, if
    one of its slots was bad.
    """

    def __init__(self) -> None:
        self.expects_extra = False
        """The next slot is extra info, and no response to a request."""
        self.takes_hash = False
        """The backend has been asked to tell the hash of frames."""
        self.takes_prefix = False
        """Large packets come behind a slot with the length of a segment (feature-gso-tcpv4-prefix, …)."""
        self.offload = NONE
        """Of the frame that was returned last."""
        self._pieces: list[bytes] = []
        self._prefix = 0
        """The length of a segment, if a slot with that has begun the frame."""
        self._inside = self._more = self._bad = False

    @property
    def is_between(self) -> bool:
        """Whether the next response begins a frame."""
        return not self._inside and not self._prefix

    def extras(self, answers: list[int]) -> list[int]:
        """Return which of these responses, the next ones, are extra info."""
        places = []
        expected = self.expects_extra
        for place, answer in enumerate(answers):
            if expected:
                places.append(place)
                expected = bool(answer >> 8 & netif.XEN_NETIF_EXTRA_FLAG_MORE)
            else:
                expected = bool(answer & EXTRA)
        return places

    def take_whole(self, answers: list[int], at: int) -> tuple[int, int, int] | None:
        """Take a frame of several slots that begins at `at` and is all there, if all its pages are full but the last.

        Returns the place behind it, that of its second slot of data, and its size; None if it must be taken slot by
        slot.
        """
        head = answers[at]
        if head >> 48 != PAGE_SIZE or head & (OFFSET | MORE) != MORE:
            return None
        first, offload = at + 1, OFFLOADS[head & CSUM]
        if head & EXTRA:
            info = answers[first] if first < len(answers) else 0
            size, kind = info >> 16 & 0xFFFF, info >> 32 & 0xFF
            if info & 0xFFFF != netif.XEN_NETIF_EXTRA_TYPE_GSO or not size or kind not in VERSIONS:
                return None
            first, offload = first + 1, gso(size, kind)
        end = first
        while end < len(answers) and answers[end] >> 16 == FULL:
            end += 1
        count = end - first
        if end == len(answers) or count > MOST_SLOTS - 2:
            return None
        last = answers[end]
        if last & (OFFSET | MORE | EXTRA) or not 0 < last >> 48 <= PAGE_SIZE:
            return None
        self.offload = offload
        return end + 1, first, (count + 1) * PAGE_SIZE + (last >> 48)

    def take_prefix(self, answer: int) -> bool:
        """Take the slot before a large packet; False if it is none, or none was to come."""
        size = answer >> 16 & 0xFFFF
        is_one = answer & (PREFIX | MORE | EXTRA) == PREFIX | MORE
        if not self.takes_prefix or not self.is_between or not is_one or not size:
            return False
        self._prefix = size
        return True

    def take(self, data: bytes, answer: int) -> bytes | None:
        """Take a slot of data, without any if it is bad."""
        if not self._inside:
            # Flags of a frame are those of its first slot.
            self.offload = OFFLOADS[answer & CSUM]
            self._inside = True
        self._more, self.expects_extra = bool(answer & MORE), bool(answer & EXTRA)
        if not data or len(self._pieces) >= MOST_SLOTS:
            self._bad = True
        if not self._bad:
            self._pieces.append(data)
        return self._finish()

    def take_extra(self, answer: int) -> bytes | None:
        """Take a slot of extra info. Raises UnknownExtra."""
        self.expects_extra = bool(answer >> 8 & netif.XEN_NETIF_EXTRA_FLAG_MORE)
        if answer & 0xFF == netif.XEN_NETIF_EXTRA_TYPE_HASH and self.takes_hash:
            self.offload = attrs.evolve(self.offload, hash=answer >> 32)
            return self._finish()
        if answer & 0xFF != netif.XEN_NETIF_EXTRA_TYPE_GSO:
            raise UnknownExtra
        size, kind = answer >> 16 & 0xFFFF, answer >> 32 & 0xFF
        if not size or kind not in VERSIONS or self.offload.gso_size:
            self._bad = True
        else:
            self.offload = attrs.evolve(gso(size, kind), hash=self.offload.hash)
        return self._finish()

    def _finish(self) -> bytes | None:
        if self._more or self.expects_extra:
            return None
        frame = b"" if self._bad else b"".join(self._pieces)
        if self._prefix and frame:
            frame = self._with_prefix(frame)
        self._pieces.clear()
        self._inside = self._bad = False
        self._prefix = 0
        return frame

    def _with_prefix(self, frame: bytes) -> bytes:
        """Note that a frame is a large packet: its headers say of which kind. Returns nothing of what is none."""
        place = locate(frame)
        kind = next((kind for kind, version in VERSIONS.items() if place is not None and place.version == version), 0)
        if not kind or self.offload.gso_size:
            return b""
        self.offload = attrs.evolve(gso(self._prefix, kind), hash=self.offload.hash)
        return frame
