"""What the judged domain holds of the other end, and lets it hold, by Xen's and the store's own books."""

from __future__ import annotations

import attrs

from hypervisor.abi.grant_table import GTF_permit_access, GTF_type_mask
from hypervisor.domain import Domain
from hypervisor.event_channel.channel import INTERDOMAIN, UNBOUND
from hypervisor.hypervisor import Hypervisor


@attrs.frozen
class Books:
    """How much of everything."""

    ports: int
    """Event channels that lead, or are open, to the other end's domain."""
    grants: int
    """Entries of the judged domain's grant table that let the other end's domain in."""
    mappings: int
    """Grants of the other end's domain that the judged domain has mapped."""

    def __str__(self) -> str:
        told = [f"{count} {name}" for name, count in attrs.asdict(self).items() if count]
        return ", ".join(told) or "nothing"


NOTHING = Books(0, 0, 0)


def look(hv: Hypervisor, domid: int, other: int) -> Books:
    """Count what domain `domid` has to do with domain `other`."""
    domain = hv.domains[domid]
    return Books(_ports(domain, other), _grants(domain, other), len(mapped_frames(hv, domid, other)))


def _ports(domain: Domain, other: int) -> int:
    found = 0
    for channel in domain.ports:
        if channel.state == UNBOUND:
            found += channel.remote_domid == other
        elif channel.state == INTERDOMAIN:
            found += channel.peer is not None and channel.peer.domain.domid == other
    return found


def _grants(domain: Domain, other: int) -> int:
    table = domain.grant_table
    # Versions 1 and 2 begin with the same word: flags, and whom they are for.
    words = [table.memory.q[slot] for slot in table.slot]
    # What the toolstack has granted in the first eight entries is dom0's.
    return sum(word & GTF_type_mask == GTF_permit_access and word >> 16 & 0xFFFF == other for word in words)


def mapped_frames(hv: Hypervisor, domid: int, other: int) -> list[int]:
    """Return the frames of domain `other` that domain `domid` has mapped by grants."""
    track = hv.domains[domid].grant_table.maptrack
    frames = []
    for handle in track.live():
        table = track.table[handle]
        if table is not None and table.domain.domid == other:
            frames.append(table.mfn[track.ref[handle]])
    return frames
