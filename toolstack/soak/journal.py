"""What a guest of a soak run has done, and what it was promised; kept where no fault can reach it.

A slot is a piece of a disk of `SLOT_SECTORS` sectors. Each write has a version; every sector of it says which it is, so
that what a disk holds in the end can be compared with what was acknowledged, sector by sector.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

import attrs

SECTOR: Final = 512
SLOT_SECTORS: Final = 8
SLOTS: Final = 64
STAMP: Final = Struct("<8sIIQ")
MAGIC: Final = b"soaksoak"


def content(owner: int, slot: int, version: int) -> bytes:
    """Return what a write of this version puts into a slot."""
    stamps = (STAMP.pack(MAGIC, owner, slot * SLOT_SECTORS + sector, version) for sector in range(SLOT_SECTORS))
    return b"".join(stamp + bytes([version & 0xFF]) * (SECTOR - STAMP.size) for stamp in stamps)


@attrs.define
class Slot:
    """What is known of a slot."""

    stored: int = 0
    """Version that was acknowledged and then flushed; 0: the empty disk."""
    acknowledged: int = 0
    """Version that was acknowledged last."""
    attempts: list[int] = attrs.field(factory=list)
    """Versions that were written since `stored`: any of them may be there, or a part of it."""


@attrs.define
class Journal:
    """The account of one guest."""

    owner: int
    """Its number in the run."""
    slots: list[Slot] = attrs.field(factory=lambda: [Slot() for _ in range(SLOTS)])
    reads: int = 0
    writes: int = 0
    flushes: int = 0
    pings: int = 0
    failed: int = 0
    """Requests that were answered with an error."""
    lost_pings: dict[int, int] = attrs.field(factory=dict)
    """Pings without an answer, by the number of the other guest."""
    wrong: list[str] = attrs.field(factory=list)
    """Sentences about what was read and cannot be."""
    is_up: bool = False
    """Its network is configured. A question for the address of one that is not is lost, and asked again only after a
    second (`ARP_RETRY_NS`): all pings until then would be lost with it."""
    finished: bool = False
    """It came to the end of its work."""

    def flushed(self, versions: list[int]) -> None:
        """Note that everything acknowledged when the flush was asked for (`versions`, by slot) is on the disk now."""
        for slot, version in zip(self.slots, versions, strict=True):
            slot.stored = max(slot.stored, version)
            slot.attempts = [attempt for attempt in slot.attempts if attempt > slot.stored]

    def judge(self, number: int, data: bytes, *, allow_torn: bool) -> str:
        """Return what is wrong with what a slot holds: nothing, or a sentence.

        Without `allow_torn` all its sectors must be of one version.
        """
        slot = self.slots[number]
        found = set()
        for sector in range(SLOT_SECTORS):
            piece = data[sector * SECTOR : (sector + 1) * SECTOR]
            version = _version(piece, self.owner, number * SLOT_SECTORS + sector)
            if version is None:
                return f"sector {sector} of slot {number} holds what nobody has written there"
            if version != slot.stored and version not in slot.attempts:
                return f"slot {number} holds version {version}; {slot.stored} was acknowledged and flushed"
            found.add(version)
        if len(found) > 1 and not allow_torn:
            return f"slot {number} holds pieces of versions {sorted(found)}, though no write has failed"
        return ""


def _version(piece: bytes, owner: int, sector: int) -> int | None:
    """Return the version of a sector; None if it is no version of this sector."""
    if not any(piece):
        return 0
    magic, by, at, version = STAMP.unpack_from(piece)
    if (magic, by, at) != (MAGIC, owner, sector) or piece[STAMP.size :] != bytes([version & 0xFF]) * (
        SECTOR - STAMP.size
    ):
        return None
    return int(version)


current: dict[str, Journal] = {}
"""The accounts of the run that is on, by the guests' names: programs of guests are loaded by file name."""
