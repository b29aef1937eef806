"""VLANs of a bridge (IEEE 802.1Q): which of them a port belongs to, and how its frames look there."""

from __future__ import annotations

import attrs

TPID = 0x8100
"""The type of a frame that bears a tag: two bytes of it at 12, two of priority and number at 14."""
LAST = 4094
UNTAGGED = 0
"""The VLAN of frames without a tag, and of those whose tag says a priority only."""


@attrs.frozen
class Membership:
    """VLANs of a port. With neither `access` nor `trunks` it belongs to all of them, as in Open vSwitch."""

    access: int | None = None
    """The VLAN whose frames bear no tag on this port."""
    trunks: frozenset[int] = frozenset()
    """VLANs whose frames bear their tag."""

    @property
    def is_all(self) -> bool:
        """Whether nothing has been said about this port."""
        return self.access is None and not self.trunks

    def arriving(self, tag: int | None) -> int | None:
        """Return the VLAN of a frame that comes from this port with this number in its tag; None if it may not."""
        if self.is_all:
            return tag or UNTAGGED
        if not tag:
            return self.access
        return tag if tag in self.trunks else None

    def leaving(self, vlan: int) -> int | None:
        """Return the number for the tag of a frame that goes to this port, 0 for no tag; None if it may not."""
        if self.is_all:
            return vlan
        if vlan == self.access:
            return UNTAGGED
        return vlan if vlan in self.trunks else None


ALL = Membership()


def parse_bridge(text: str) -> tuple[str, Membership]:
    """Parse a `bridge` node as the script vif-openvswitch does: `NAME[.ACCESS][:TRUNK...]`. Raises ValueError."""
    head, *trunks = text.split(":")
    name, dot, access = head.partition(".")
    if not name:
        raise ValueError(f"{text!r} names no bridge")
    number = _number(access) if dot else None
    return name, Membership(number, frozenset(_number(trunk) for trunk in trunks))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= LAST):
        raise ValueError(f"a VLAN is a number from 1 to {LAST}, not {text!r}")
    return int(text)
