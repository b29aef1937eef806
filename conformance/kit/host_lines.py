"""What happens between a frontend and its backend on a host, in lines.

Domains are called by the names of their configurations; ports and handles have no names here, as they are another
number each time. A line tells what one end has done; what it does several times in a row is one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, final

from hypervisor.abi import event_channel, grant_table, xen
from hypervisor.abi import tracepoints as tp
from hypervisor.abi.io import xenbus
from hypervisor.state_trace.rings import LAYOUTS, RingWatch
from toolstack.store_trace import StoreWatch
from toolstack.trace_formats.viewer.slots import decode_slot

if TYPE_CHECKING:
    from toolstack.host import Host

_DEVICE_RINGS: Final = ("blkif", "blkif_x86_32", "netif_tx", "netif_rx", "netif_ctrl")
_MADE_BY_TOOLSTACK: Final = frozenset(
    (
        "backend",
        "backend-id",
        "bootable",
        "bridge",
        "dev",
        "device-type",
        "discard-enable",
        "domain",
        "frontend",
        "frontend-id",
        "handle",
        "hotplug-status",
        "mac",
        "mode",
        "params",
        "physical-device",
        "removable",
        "script",
        "specification",
        "trusted",
        "type",
        "uuid",
        "virtual-device",
    )
)
"""Nodes that are there before either end is."""
_CALLS: Final = frozenset(
    {xen.HYPERVISOR_event_channel_op, xen.HYPERVISOR_grant_table_op, xen.HYPERVISOR_sched_op, xen.HYPERVISOR_multicall}
)
"""After these an end may have done something: at its other calls it has not shown anything yet."""
_FRONTENDS: Final = ("req_prod", "rsp_event")
"""Indices that a frontend moves; the others are its backend's."""
_MOST_KEYS, _MOST_SLOTS = 5, 3


@final
class HostLines:
    """Hears the records of one host."""

    def __init__(self, host: Host, say: Callable[[str], None], is_over: Callable[[], bool]) -> None:
        self._host = host
        self._say = say
        self._is_over = is_over
        self._rings: RingWatch | None = None
        self._nodes: StoreWatch | None = None
        self._layouts: dict[tuple[str, str], tuple[str, int]] = {}
        """Device and ring → layout, and the frontend's domain."""
        self._names: dict[int, str] = {0: "dom0"}
        self._notified: list[int] = []
        """Domains for which a port has become pending since the last hypercall."""
        self._awake = False
        """One of the two ends has said something."""
        self._caller = 0
        self._told: list[tuple[str, str]] = []
        """Nodes that have changed, one after the other: whose, and what."""
        self._slots: dict[tuple[str, str], list[str]] = {}
        self._moved: dict[tuple[str, str], list[str]] = {}
        """The same of indices."""
        self._backends: dict[str, int] = {}
        """By device, the domain of its backend."""
        self._indices: dict[tuple[str, str], tuple[int, ...]] = {}
        self._run: tuple[str, str, int, int] | None = None
        """What is done several times: who, what (with places for number and bytes), how often, bytes in sum."""

    # -- what is heard ------------------------------------------------------------------------------------------------

    def hear(self, domid: int, _vcpu: int, kind: int, *fields: Any) -> None:
        """Take one record."""
        if kind == tp.DOMAIN_CRASH:
            self._line(self._name(domid), f"crashes: {fields[0]}")
        if self._is_over():
            return
        if kind == tp.HYPERCALL:
            self._call(domid, *fields)
        elif kind == tp.RING_CONNECT:
            self._connect(domid, *fields)
        elif kind == tp.EVTCHN_PENDING:
            self._notified.append(domid)
        elif kind in (tp.GNTTAB_MAP, tp.GNTTAB_UNMAP, tp.GNTTAB_COPY) and domid:
            self._grant(domid, kind, *fields)

    def _name(self, domid: int) -> str:
        if domid not in self._names and self._host.lifecycle is not None:
            self._names |= {live.domid: live.name for live in self._host.lifecycle.live.values()}
        return self._names.get(domid, f"domain {domid}")

    def _connect(self, domid: int, device: str, ring: str, layout: str, front: int, refs: Any) -> None:
        if layout not in _DEVICE_RINGS:
            return
        if self._rings is None:
            self._rings = RingWatch(self._host.hv, self._ring)
        self._layouts[device, ring] = layout, front
        self._backends[device] = domid
        self._rings.connect(domid, device, ring, layout, front, refs)
        self._caller = domid
        self._rings.look()
        self._slots.clear()
        self._moved.clear()
        told = ", ".join(self._moves(layout, (), self._indices.get((device, ring), ())))
        self._line(self._name(domid), f"maps ring {ring}{_of(device)}: {told}")

    def _call(self, domid: int, number: int, command: int, *_: int) -> None:
        """See what a domain has written before a call, and tell of it if it notifies the other end."""
        notified, self._notified = self._notified, []
        if number in _CALLS:
            self._look(domid)
        if number == xen.HYPERVISOR_event_channel_op and command == event_channel.EVTCHNOP_send and domid:
            for other in notified:
                if other not in (0, domid):
                    self._line(self._name(domid), f"notifies the {self._name(other)}")

    def _grant(self, domid: int, kind: int, *fields: Any) -> None:
        who, status = self._name(domid), fields[-1]
        if kind == tp.GNTTAB_MAP:
            granter, ref, flags, *_ = fields
            kind_of = "read-only" if flags & grant_table.GNTMAP_readonly else "writable"
            if status:
                self._line(who, f"cannot map reference {ref} of the {self._name(granter)} {kind_of}: {_status(status)}")
            else:
                self._again(who, f"maps {{}} of the {self._name(granter)}'s pages, {kind_of}", 0)
        elif kind == tp.GNTTAB_UNMAP:
            self._again(who, "unmaps {}", 0)
        else:
            _, _, length, _ = fields
            if status:
                self._line(who, f"cannot copy {length} bytes by a grant: {_status(status)}")
            else:
                self._again(who, "copies {sum} bytes by grants", length)

    # -- what is looked at --------------------------------------------------------------------------------------------

    def _look(self, domid: int) -> None:
        """See what a domain has written by now."""
        self._caller = domid
        if self._nodes is None and self._host.lifecycle is not None:
            self._nodes = StoreWatch(lambda: self._host.xenstored.server.store.tree, self._node)
        if self._nodes is not None:
            self._nodes.look()
            self._flush_nodes()
        if self._rings is not None:
            self._rings.look()
            self._flush_slots()

    def _node(self, _domid: int, _vcpu: int, _kind: int, path: bytes, value: bytes | None, _permissions: Any) -> None:
        parts = path.decode("utf-8", "replace").split("/")
        if parts[1:3] != ["local", "domain"] or len(parts) < 7 or value is None:
            return
        place = parts[4:]
        if place[0] == "error":
            if parts[-1] == "error":
                self._told.append((f"{self._name(int(parts[3]))} error", value.decode("utf-8", "replace")))
            return
        depth = {"device": 3, "backend": 4}.get(place[0])
        if depth is None or len(place) <= depth or place[1] in ("console", "suspend"):
            return
        key, text = "/".join(place[depth:]), value.decode("utf-8", "replace")
        if key in _MADE_BY_TOOLSTACK or (key, text) in (("state", "1"), ("online", "1")):
            return
        number = place[depth - 1]
        which = _which(place[1], number)
        if key == "state" and text.isdigit():
            text += f" ({xenbus.NAMES.get(int(text), '?').removeprefix('XenbusState')})"
        self._told.append((f"{self._name(int(parts[3]))} nodes{which}", f"{key}={text}"))

    def _flush_nodes(self) -> None:
        told, self._told = self._told, []
        # What the toolstack makes is there before.
        self._awake = self._awake or any(word.startswith("state=") for _, word in told)
        while told and self._awake:
            who = told[0][0]
            words = []
            while told and told[0][0] == who:
                words.append(told.pop(0)[1])
            name, _, what = who.partition(" ")
            more = " and others" if len(words) > _MOST_KEYS + 1 else ""
            words.sort(key=lambda word: not word.startswith("state="))
            shown = words[:_MOST_KEYS] if more else words
            verb = f"writes{what.removeprefix('nodes')}:" if what != "error" else "reports:"
            self._line(name, f"{verb} {', '.join(shown)}{more}")

    def _ring(self, _domid: int, _vcpu: int, kind: int, device: str, ring: str, *fields: Any) -> None:
        key = device, ring
        layout, front = self._layouts[key]
        if kind == tp.STATE_SLOT:
            _, data = fields
            request, response = decode_slot(layout, data)
            self._slots.setdefault(key, []).append(request if self._caller == front else response)
        else:
            (indices,) = fields
            before = self._indices.get(key, ())
            self._indices[key] = indices
            if indices and before:
                self._moved.setdefault(key, []).extend(self._moves(layout, before, indices))

    @staticmethod
    def _moves(layout: str, before: tuple[int, ...], indices: tuple[int, ...]) -> list[str]:
        names = LAYOUTS[layout].names
        return [
            f"{name}={value}"
            for place, (name, value) in enumerate(zip(names, indices, strict=False))
            if not before or before[place] != value
        ]

    def _flush_slots(self) -> None:
        told, self._slots = self._slots, {}
        moved, self._moved = self._moved, {}
        for device, ring in dict.fromkeys([*moved, *told]):
            _, front = self._layouts[device, ring]
            is_front = self._caller == front
            # Who moves an index is laid down; the other end may have moved its own since it was looked at.
            moves = moved.get((device, ring), [])
            others = [move for move in moves if move.startswith(_FRONTENDS) != is_front]
            if others:
                other = self._backends[device] if is_front else front
                self._line(self._name(other), f"ring {ring}{_of(device)}: {', '.join(others)}")
            parts = [", ".join(move for move in moves if move not in others)]
            if slots := told.get((device, ring)):
                more = f" and {len(slots) - _MOST_SLOTS} more" if len(slots) > _MOST_SLOTS else ""
                what = ("request" if is_front else "response") + ("s" if len(slots) > 1 else "")
                parts.insert(0, f"{what} {'; '.join(slots[:_MOST_SLOTS])}{more}")
            if text := " | ".join(filter(None, parts)):
                self._line(self._name(self._caller), f"ring {ring}{_of(device)}: {text}")

    # -- lines --------------------------------------------------------------------------------------------------------

    def _again(self, who: str, what: str, size: int) -> None:
        """Note what may be done several times in a row."""
        if self._run is not None and self._run[:2] == (who, what):
            self._run = who, what, self._run[2] + 1, self._run[3] + size
            return
        self._end_run()
        self._run = who, what, 1, size

    def _end_run(self) -> None:
        if self._run is not None:
            who, what, count, size = self._run
            self._run = None
            number = f"{count} page{'s' if count > 1 else ''}" if what.startswith("unmaps") else str(count)
            self._say(f"{who:8} {what.format(number, sum=size)}")

    def _line(self, who: str, text: str) -> None:
        self._end_run()
        self._say(f"{who:8} {text}")


def _status(status: int) -> str:
    return grant_table.STATUS_NAMES.get(status, str(status))


def _which(kind: str, number: str) -> str:
    """Return which of several devices one is, if it is not the first."""
    return f" {kind} {number}" if kind == "vif" and number != "0" else ""


def _of(device: str) -> str:
    """Return the same for the label of a driver, as vif2.1."""
    kind, _, number = device.partition(".")
    number = number.partition("-")[0]
    return f" of vif {number}" if kind.startswith("vif") and number not in ("", "0") else ""
