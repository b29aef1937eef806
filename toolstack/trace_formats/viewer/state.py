"""The state of a host as tables, and what each record of a trace changes in them.

A trace that was recorded with `--trace-state` holds the differences (`hypervisor.state_trace`); here they become
changes of rows: (table, key, row). Adding them up to a record gives the tables as they were then. The viewer does just
that, forwards and, with the rows that were there before, backwards: what a row means is decided here, once.

Xenbus states and the private indices of rings are the exception: drivers tell them in every trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from hypervisor.abi import tracepoints as tp
from hypervisor.abi import xen
from hypervisor.abi.io import xenbus
from hypervisor.event_channel.channel import FREE, PIRQ, VIRQ
from hypervisor.state_trace.rings import LAYOUTS
from toolstack.disk_spec import vdev_number
from toolstack.errors import SpecError
from toolstack.trace_formats.viewer.slots import decode_slot

TABLES: Final = (
    "ports",
    "bits",
    "upcalls",
    "grants",
    "mappings",
    "pages",
    "rings",
    "indices",
    "slots",
    "nodes",
    "devices",
    "privates",
)
"""Names of the tables; a change names one by its place here."""
(PORTS, BITS, UPCALLS, GRANTS, MAPPINGS, PAGES, RINGS, INDICES, SLOTS, NODES, DEVICES, PRIVATES) = range(len(TABLES))

Row = list[Any]
Change = tuple[int, str, Row | None]
"""Table, key, the new row; None: there is none any more."""

_USES: Final = ("free", "reserved", "unbound", "interdomain", "PIRQ", "VIRQ", "IPI")
_TYPES: Final = ("none", "l1 table", "l2 table", "l3 table", "l4 table", "descriptors", "shared", "writable")


class StateTables:
    """Turns the records of one trace into changes."""

    def __init__(self) -> None:
        self._layouts: dict[str, str] = {}
        """Ring → its layout."""

    def changes(self, record: Sequence[Any]) -> Iterator[Change]:
        """Yield what one record changes."""
        _, domid, vcpu_id, kind, *fields = record
        make = _CHANGES.get(kind)
        if make is not None:
            yield from make(self, domid, vcpu_id, *fields)

    def _port(
        self, domid: int, _vcpu: int, port: int, use: int, remote: int, number: int, vcpu: int, priority: int
    ) -> Iterator[Change]:
        key = f"{domid}/{port}"
        yield PORTS, key, None if use == FREE else [_use(use, number), remote, number, vcpu, priority]
        if use == FREE:
            yield BITS, key, None

    def _bits(self, domid: int, _vcpu: int, port: int, pending: bool, masked: bool) -> Iterator[Change]:
        yield BITS, f"{domid}/{port}", [int(pending), int(masked)]

    def _upcall(self, domid: int, vcpu_id: int, pending: int, masked: int, ready: int) -> Iterator[Change]:
        yield UPCALLS, f"{domid}/{vcpu_id}", [pending, masked, f"{ready:#x}"]

    def _grant(self, domid: int, _vcpu: int, ref: int, flags: int, to: int, frame: int, pin: int) -> Iterator[Change]:
        yield GRANTS, f"{domid}/{ref}", [flags, to, frame, pin] if flags or pin else None

    def _mapping(self, domid: int, _vcpu: int, handle: int, granter: int, ref: int, flags: int) -> Iterator[Change]:
        yield MAPPINGS, f"{domid}/{handle}", [granter, ref, flags] if flags else None

    def _pages(
        self, owner: int, _vcpu: int, mfn: int, frames: int, kind: int, type_count: int, count: int, flags: int
    ) -> Iterator[Change]:
        yield PAGES, f"{mfn}+{frames}", [owner, _TYPES[kind], type_count, count, flags]

    def _connect(
        self, domid: int, _vcpu: int, device: str, ring: str, layout: str, front: int, refs: Sequence[int]
    ) -> Iterator[Change]:
        key = f"{device}:{ring}"
        self._layouts[key] = layout
        known = LAYOUTS.get(layout)
        if known is not None:
            yield RINGS, key, [layout, domid, front, list(refs), known.slots(len(refs)), known.names]

    def _ring(self, _domid: int, _vcpu: int, device: str, ring: str, indices: Sequence[int]) -> Iterator[Change]:
        key = f"{device}:{ring}"
        yield INDICES, key, list(indices) or None
        if not indices:
            yield RINGS, key, None

    def _slot(self, domid: int, _vcpu: int, device: str, ring: str, slot: int, data: bytes) -> Iterator[Change]:
        key = f"{device}:{ring}"
        request, response = decode_slot(self._layouts.get(key, ""), data)
        yield SLOTS, f"{key}/{slot}", [data.hex(), request, response]

    def _node(self, _domid: int, _vcpu: int, path: Any, value: Any, permissions: Any) -> Iterator[Change]:
        yield NODES, _text(path), None if value is None else [_text(value), _text(permissions)]

    def _device(self, domid: int, _vcpu: int, path: str, _old: int, new: int) -> Iterator[Change]:
        whole = path if path.startswith("/") else f"/local/domain/{domid}/{path}"
        yield DEVICES, whole, [xenbus.NAMES.get(new, str(new)).removeprefix("XenbusState"), domid]

    def _push(
        self, domid: int, _vcpu: int, device: str, what: str, prod: int, _notify: bool, cons: int = 0
    ) -> Iterator[Change]:
        # A block ring has one name, and its backend says what it pushes.
        ring = "req" if what == "rsp" else what
        key = f"{device}:{ring}"
        if key in self._layouts:
            yield PRIVATES, f"{key}/back", [prod, cons]
        else:
            yield PRIVATES, f"{_backends_name(domid, device)}:{ring}/front", [prod, cons]


def _use(use: int, number: int) -> str:
    if use == VIRQ:
        return xen.VIRQ_NAMES.get(number, f"VIRQ {number}")
    return f"PIRQ {number}" if use == PIRQ else _USES[use]


def _backends_name(domid: int, device: str) -> str:
    """Return what the backend calls the device that a frontend calls `xvda` or `eth0`."""
    if device.startswith("eth"):
        return f"vif{domid}.{device[3:]}"
    try:
        return f"vbd/{domid}/{vdev_number(device)}"
    except SpecError:
        return device


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


_CHANGES: Final[dict[int, Callable[..., Iterator[Change]]]] = {
    tp.STATE_PORT: StateTables._port,
    tp.STATE_EVENT: StateTables._bits,
    tp.STATE_UPCALL: StateTables._upcall,
    tp.STATE_GRANT: StateTables._grant,
    tp.STATE_MAPPING: StateTables._mapping,
    tp.STATE_PAGES: StateTables._pages,
    tp.STATE_RING: StateTables._ring,
    tp.STATE_SLOT: StateTables._slot,
    tp.STATE_NODE: StateTables._node,
    tp.RING_CONNECT: StateTables._connect,
    tp.XENBUS_STATE: StateTables._device,
    tp.RING_PUSH: StateTables._push,
}
