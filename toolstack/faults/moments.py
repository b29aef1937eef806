"""When a fault begins: after so much time, at the N-th record of a kind, or when a device reaches a state."""

from __future__ import annotations

import re
from typing import Final

import attrs

from hypervisor.abi import tracepoints as tp
from hypervisor.abi.io import xenbus
from hypervisor.abi.xen import DOMID_SELF

UNITS: Final = {"ns": 1, "us": 1000, "ms": 1_000_000, "s": 1_000_000_000}
_TIME: Final = re.compile(r"(\d{1,12})(ns|us|ms|s)?")
_COUNTED: Final = re.compile(r"([a-z_]+)#(\d{1,9})")
_STATE: Final = re.compile(r"([a-z0-9]+)-([a-z]+)")
KIND_OF: Final = {name: kind for kind, (name, _) in tp.KINDS.items() if kind not in tp.STATES | {tp.FAULT}}
STATES: Final = {
    name.removeprefix("XenbusState").lower(): value
    for name, value in vars(xenbus).items()
    if name.startswith("XenbusState") and isinstance(value, int)
}
NOBODY: Final = DOMID_SELF


def parse_time(text: str) -> int:
    """Return nanoseconds of `5ms`, `20us`, `1s`, `300ns`. Raises ValueError."""
    found = _TIME.fullmatch(text)
    if found is None or (found[2] is None and int(found[1])):
        raise ValueError(text)
    return int(found[1]) * UNITS[found[2] or "ns"]


@attrs.frozen
class Moment:
    """A moment of a run; by default its beginning."""

    time: int = 0
    """ns since power-on, if neither of the others is set."""
    kind: int = 0
    """A kind of trace records: those of the victim are counted..."""
    number: int = 0
    """... up to this one."""
    device: str = ""
    """A class of devices: the victim's first one to be..."""
    state: int = 0
    """... in this xenbus state."""

    @property
    def is_time(self) -> bool:
        """Whether a clock tells it; otherwise what happens does."""
        return not self.kind and not self.device

    def is_this(self, victim: int, domid: int, kind: int, fields: tuple[object, ...]) -> bool:
        """Whether a record is (one more of) what is waited for."""
        if self.kind:
            return kind == self.kind and domid == victim
        if kind != tp.XENBUS_STATE or fields[2] != self.state:
            return False
        parts = str(fields[0]).split("/")
        if self.device not in parts:
            return False
        # A frontend tells of itself; of one in machine code the backend's directory has the number.
        own = domid == victim and "device" in parts
        return own or ("backend" in parts and parts[-2] == str(victim))


def parse_moment(text: str) -> Moment:
    """Parse `5ms`, `hypercall#500` or `vbd-connected`. Raises ValueError."""
    counted = _COUNTED.fullmatch(text)
    if counted is not None and counted[1] in KIND_OF and int(counted[2]):
        return Moment(kind=KIND_OF[counted[1]], number=int(counted[2]))
    state = _STATE.fullmatch(text)
    if state is not None and state[2] in STATES:
        return Moment(device=state[1], state=STATES[state[2]])
    return Moment(time=parse_time(text))
