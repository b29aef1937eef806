"""Who may do what with a node.

A node has a list of entries, a letter and a domain id each.  The first one names the owner, who may always do
everything; its letter is what everybody else may do who has no entry of his own.  Among the others the first one that
names the domain decides.  Nothing is asked of the nodes above (docs/misc/xenstore.txt, "Permissions").

An entry is no good for a domain that came into being after the node was written: it meant an earlier domain with that
id (XSA-322, XSA-417).
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, final

READ: Final = 1
WRITE: Final = 2
OWNER: Final = 4
STALE: Final = 8
"""Flag of an entry that meant a domain which is gone: it is shown, copied and grants nothing."""
ALL: Final = READ | WRITE | OWNER

NOW: Final = 2**64
"""A generation later than that of any domain: for lists that belong to no node."""

_LETTERS: Final = {ord("n"): 0, ord("r"): READ, ord("w"): WRITE, ord("b"): READ | WRITE}
_NAMES: Final = {bits: chr(letter) for letter, bits in _LETTERS.items()}
# What strtoul(3) with base 0 takes, to the end of the string.
_NUMBER: Final = re.compile(rb"[ \t-\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")


class Entry(NamedTuple):
    """`bits`: READ, WRITE, both or none; and perhaps STALE."""

    domid: int
    bits: int


class Holder(Protocol):
    """Who asks: a domain id, and the generation of the store at which that domain came into being."""

    domid: int
    generation: int


@final
class Permissions:
    """The list of a node; not to be changed.  Nodes share it."""

    __slots__ = ("entries", "owner")

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self.entries = entries
        self.owner = entries[0].domid

    def encode(self) -> bytes:
        """Return the list as the wire has it: letter, decimal id, NUL, for each entry."""
        return "".join([f"{_NAMES[bits & ~STALE]}{_signed(domid)}\0" for domid, bits in self.entries]).encode()

    def owned_by(self, domid: int) -> "Permissions":
        """Return this list with another owner; the default letter stays."""
        first = self.entries[0]
        if first.domid == domid:
            return self
        return Permissions((Entry(domid, first.bits), *self.entries[1:]))

    def without(self, dead: Callable[[int], bool]) -> "Permissions":
        """Return this list with the entries of dead domains marked; dom0 takes over from a dead owner."""
        first, *others = self.entries
        owner = Entry(0, first.bits) if dead(first.domid) else first
        marked = [Entry(domid, bits | STALE) if dead(domid) else Entry(domid, bits) for domid, bits in others]
        entries = (owner, *marked)
        return self if entries == self.entries else Permissions(entries)

    def bits_for(self, holder: Holder, target: Holder | None, generation: int) -> int:
        """Return what an unprivileged domain may do with a node of this list, written at `generation`.

        `target` is the domain on whose behalf it may act as well (SET_TARGET).
        """
        mine = holder.domid if holder.generation <= generation else -1
        other = target.domid if target is not None and target.generation <= generation else -1
        owner = self.owner
        if owner in (mine, other):
            return ALL
        for domid, bits in self.entries[1:]:
            if domid in (mine, other) and not bits & STALE:
                return bits
        return self.entries[0].bits

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permissions) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def __str__(self) -> str:
        return self.encode().decode().replace("\0", " ").rstrip()


def _signed(domid: int) -> int:
    """Ids of 32 bits are shown with a sign."""
    return domid - 2**32 if domid >= 2**31 else domid


def parse_number(text: bytes) -> int | None:
    """Return what strtoul with base 0 makes of the whole of `text`, in 32 bits; None if it does not take it all."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, hexadecimal, octal, decimal = match.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    # strtoul stops at the largest 64-bit number; the id is kept in 32 bits.
    value = min(value, 2**64 - 1)
    return (-value if sign == b"-" else value) & 0xFFFFFFFF


def parse_entry(text: bytes) -> Entry | None:
    """Return the entry that a string such as `r5` means; None if it means none."""
    if not text:
        return None
    bits = _LETTERS.get(text[0])
    if bits is None:
        return None
    domid = parse_number(text[1:])
    return None if domid is None else Entry(domid, bits)


def only_owner(domid: int = 0) -> Permissions:
    """Return the list that gives nothing to anybody but the owner (and dom0)."""
    return Permissions((Entry(domid, 0),))
