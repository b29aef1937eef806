"""Pictures of rings, grants and event channels, as SVG: notebooks show them inline."""

from __future__ import annotations

from html import escape
from typing import Any, final

from hypervisor.abi.event_channel import (
    EVTCHNOP_status,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
    evtchn_status,
)
from hypervisor.abi.grant_table import GTF_permit_access, GTF_reading, GTF_readonly, GTF_writing, grant_entry_v1
from hypervisor.abi.io.ring import MASK32, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, ring_size
from hypervisor.abi.xen import DOMID_SELF, HYPERVISOR_event_channel_op
from labs.stage.host import ARGUMENTS, Puppet

ROW, WIDTH = 24, 760
FREE, REQUEST, TAKEN, RESPONSE = "#f3f4f6", "#93c5fd", "#fcd34d", "#86efac"
INK, PALE = "#1f2937", "#9ca3af"


@final
class Picture:
    """A picture that a notebook shows."""

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self._parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """Draw a rectangle."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{PALE}"/>'
        )

    def text(self, x: float, y: float, words: object, *, colour: str = INK, anchor: str = "start") -> None:
        """Write words, with their base line at `y`."""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}">{escape(str(words))}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Draw a line."""
        self._parts.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{INK}" stroke-width="1.5"/>')

    def _repr_svg_(self) -> str:
        width, height = self._size
        style = 'font-family="monospace" font-size="13" style="white-space: pre"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {style}>'
        return head + "".join(self._parts) + "</svg>"


# -- the ring ---------------------------------------------------------------------------------------------------------


def slot_states(view: memoryview, entry_size: int, taken: int, consumed: int) -> list[str]:
    """Return what is in each slot: "free", "request", "taken" or "response".

    `taken` is how far the backend has taken requests, `consumed` how far the frontend has consumed responses: both are
    private to their ends, and in no shared page.
    """
    size, words = ring_size(entry_size, len(view)), view.cast("I")
    states = ["free"] * size
    for name, start, end in (
        ("response", consumed, words[RSP_PROD]),
        ("taken", words[RSP_PROD], taken),
        ("request", taken, words[REQ_PROD]),
    ):
        for at in range(min((end - start) & MASK32, size)):
            states[(start + at) % size] = name
    return states


def draw_ring(view: memoryview, entry_size: int, taken: int = 0, consumed: int = 0) -> Picture:
    """Draw a ring: its slots and its four shared indices. See `slot_states`."""
    states, words = slot_states(view, entry_size, taken, consumed), view.cast("I")
    colours = {"free": FREE, "request": REQUEST, "taken": TAKEN, "response": RESPONSE}
    picture = Picture(WIDTH, 120)
    side = min(40.0, (WIDTH - 20) / len(states))
    for slot, state in enumerate(states):
        picture.box(10 + slot * side, 10, side, 36, colours[state])
        picture.text(10 + (slot + 0.5) * side, 33, slot, anchor="middle")
    names = {"req_prod": REQ_PROD, "req_event": REQ_EVENT, "rsp_prod": RSP_PROD, "rsp_event": RSP_EVENT}
    picture.text(10, 70, "   ".join(f"{name} {words[at]}" for name, at in names.items()))
    x = 10.0
    for name, colour in colours.items():
        picture.box(x, 84, 16, 16, colour)
        picture.text(x + 22, 97, {"taken": "taken by the backend"}.get(name, name))
        x += 190 if name == "taken" else 110
    return picture


# -- event channels ---------------------------------------------------------------------------------------------------


def ports_of(puppet: Puppet, most: int = 64) -> dict[int, Any]:
    """Return what Xen says of the ports of a domain that are in use (EVTCHNOP_status)."""
    found = {}
    view = puppet.cpu.view(puppet.page(ARGUMENTS))
    for port in range(1, most):
        evtchn_status.pack_into(view, 0, dom=DOMID_SELF, port=port)
        result = puppet.cpu.hypercall(HYPERVISOR_event_channel_op, EVTCHNOP_status, puppet.page(ARGUMENTS))
        status = evtchn_status.unpack_from(view)
        if result == 0 and status.status:
            found[port] = status
    return found


def _bound_to(status: Any) -> str:
    if status.status == EVTCHNSTAT_unbound:
        return f"waits for domain {status.u.unbound.dom}"
    if status.status == EVTCHNSTAT_interdomain:
        return f"domain {status.u.interdomain.dom}, port {status.u.interdomain.port}"
    if status.status == EVTCHNSTAT_virq:
        return f"VIRQ {status.u.virq}"
    return "itself (IPI)" if status.status == EVTCHNSTAT_ipi else f"PIRQ {status.u.pirq}"


def draw_events(left: Puppet, right: Puppet) -> Picture:
    """Draw the ports of two domains, their bits, and which are bound to each other."""
    columns = [(left, ports_of(left)), (right, ports_of(right))]
    picture = Picture(WIDTH, 50 + ROW * max(1, *(len(ports) for _, ports in columns)))
    places: dict[tuple[int, int], float] = {}
    for side, (puppet, ports) in enumerate(columns):
        x = 10 + side * 430
        picture.text(x, 18, f"{puppet.name} (domain {puppet.domid})")
        picture.text(x, 34, "port  P M  bound to", colour=PALE)
        for row, (port, status) in enumerate(ports.items()):
            y = 54 + row * ROW
            bits = f"{int(puppet.is_pending(port))} {int(puppet.is_masked(port))}"
            picture.box(x - 6, y - 16, 320, ROW - 2, RESPONSE if puppet.is_pending(port) else FREE)
            picture.text(x, y, f"{port:>4}  {bits}  {_bound_to(status)}")
            places[puppet.domid, port] = y - 5
    for port, status in columns[0][1].items():
        if status.status == EVTCHNSTAT_interdomain:
            other = places.get((status.u.interdomain.dom, status.u.interdomain.port))
            if other is not None:
                picture.line(324, places[left.domid, port], 434, other)
    return picture


# -- grants -----------------------------------------------------------------------------------------------------------


def entries_of(puppet: Puppet, most: int = 32) -> dict[int, Any]:
    """Return the entries of a domain's grant table that permit access, by reference, as they are in memory."""
    hv = puppet.stage.hv
    frames = hv.domains[puppet.domid].grant_table.shared
    found = {}
    for ref in range(most if frames else 0):
        entry = grant_entry_v1.unpack_from(hv.memory.b, (frames[0] << 12) + ref * grant_entry_v1.size)
        if entry.flags & 3 == GTF_permit_access:
            found[ref] = entry
    return found


def draw_grants(puppet: Puppet) -> Picture:
    """Draw what a domain grants, and what of it is in use."""
    entries = entries_of(puppet)
    picture = Picture(WIDTH, 50 + ROW * max(1, len(entries)))
    picture.text(10, 18, f"grant table of {puppet.name} (domain {puppet.domid})")
    picture.text(10, 34, "ref   to domain   frame      access      in use", colour=PALE)
    for row, (ref, entry) in enumerate(entries.items()):
        y = 54 + row * ROW
        used = entry.flags & (GTF_reading | GTF_writing)
        words = {0: "", GTF_reading: "read", GTF_reading | GTF_writing: "read, written"}.get(used, "written")
        access = "read" if entry.flags & GTF_readonly else "read, write"
        picture.box(4, y - 16, 560, ROW - 2, RESPONSE if used else FREE)
        picture.text(10, y, f"{ref:<5} {entry.domid:<11} {entry.frame:#08x}   {access:<11} {words}")
    return picture
