"""What can be said of a fault: its specification, and the keys that set it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from toolstack.faults.moments import Moment, parse_moment, parse_time


@attrs.frozen(kw_only=True)
class FaultSpec:
    """One fault of a run. What its entry in the menu does not list is not looked at."""

    name: str
    domain: str = ""
    """Name of the victim; empty: the first guest."""
    at: Moment = attrs.field(factory=Moment)
    lasting: int | None = None
    """For how many ns; None: to the end."""
    probability: float = 1.0
    """Of each time that it could strike."""
    count: int | None = None
    """How often it strikes at most."""
    by: int = 0
    """By how many ns, or how often."""
    device: str = ""
    """Virtual name of a disk, or a class of devices."""
    side: str = "frontend"
    bridge: str = "xenbr0"
    sectors: int = 0
    text: str = ""
    """As it was ordered: names it in reports, and seeds its dice."""


@attrs.frozen
class Key:
    """Something that can be said of a fault."""

    name: str
    field: str
    parse: Callable[[str], Any]
    form: str
    """What a value looks like."""


def _probability(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError(text)
    return value


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12 or not int(text):
        raise ValueError(text)
    return int(text)


def _side(text: str) -> str:
    if text not in ("frontend", "backend"):
        raise ValueError(text)
    return text


def _word(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


KEYS: Final = {
    key.name: key
    for key in (
        Key("domain", "domain", _word, "the name of a guest"),
        Key(
            "at", "at", parse_moment, "a time (5ms), a record of the victim (hypercall#500) or a state (vbd-connected)"
        ),
        Key("for", "lasting", parse_time, "a time, such as 20ms"),
        Key("probability", "probability", _probability, "a number above 0 and up to 1"),
        Key("count", "count", _number, "a number from 1 on"),
        Key("by", "by", parse_time, "a time, such as 200us"),
        Key("every", "by", parse_time, "a time, such as 100us"),
        Key("vdev", "device", _word, "the virtual name of a disk, such as xvda"),
        Key("device", "device", _word, "a class of devices: vbd, vif, console or xenstore"),
        Key("side", "side", _side, "frontend or backend"),
        Key("bridge", "bridge", _word, "the name of a bridge"),
        Key("sectors", "sectors", _number, "a number of 512-byte sectors"),
        Key("writes", "sectors", _number, "a number from 1 on"),
    )
}
