"""A guest's hypercalls in words: what it asks for by its name, what its arguments point at, what it gets.

Of addresses and frames only what they are is told: where a compiler or a domain builder has put something changes with
the next one. Whatever a guest passes, words come out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

from hypervisor.abi import callback, errno, event_channel, sched, xen
from hypervisor.abi.layout import Layout
from hypervisor.errors import HypercallError
from hypervisor.event_channel.channel import FREE, IPI, RESERVED, UNBOUND, VIRQ
from hypervisor.guest_access import copy_from_guest
from hypervisor.hypervisor import Hypervisor
from hypervisor.mm.frame_table import PGT_l1_page_table, PGT_l4_page_table, PGT_seg_desc_page
from hypervisor.vcpu import VCpu
from toolstack.trace_formats.text import operation_name

_PRESENT, _WRITABLE = 1, 2
_FRAME: Final = 0x000F_FFFF_FFFF_F000
_U32: Final = 0xFFFF_FFFF
_MS: Final = 1_000_000
_UNREADABLE: Final = "what is nowhere"
_MOST: Final = 8
"""Things of a kind that are named in one line."""


@final
class Landmarks:
    """What a guest's frames and ports are called."""

    def __init__(self, hv: Hypervisor, domid: int) -> None:
        self.hv = hv
        self.domid = domid
        self.frames: dict[int, str] = {}
        """Frames that have a name of their own."""
        self.ports: dict[int, str] = {}

    def frame(self, mfn: int) -> str:
        """Return what a frame is."""
        if mfn in self.frames:
            return self.frames[mfn]
        frames = self.hv.frames
        if not frames.is_ram(mfn):
            return "what is no memory"
        owner = frames.owner(mfn)
        if owner != self.domid:
            return f"a page of domain {owner}" if owner >= 0 else "a page of nobody"
        domain = self.hv.domains.get(self.domid)
        if domain is not None and mfn in domain.grant_table.shared:
            return "its grant table"
        kind = frames.type[mfn]
        if PGT_l1_page_table <= kind <= PGT_l4_page_table:
            return f"a page table of its own (level {kind - PGT_l1_page_table + 1})"
        return "a descriptor table of its own" if kind == PGT_seg_desc_page else "a page of its own"

    def port(self, port: int) -> str:
        """Return a port with what it is for."""
        domain = self.hv.domains.get(self.domid)
        channels = () if domain is None else domain.ports
        channel = channels[port] if port < len(channels) else None
        if channel is None or channel.state in (FREE, RESERVED):
            what = "closed"
        elif channel.state == VIRQ:
            what = xen.VIRQ_NAMES.get(channel.number, f"VIRQ {channel.number}")
        elif channel.state == IPI:
            what = "IPI"
        else:
            what = self.ports.get(port, "nobody's yet" if channel.state == UNBOUND else "")
        return f"{port} ({what})" if what else str(port)


@final
class _Call:
    """One hypercall that has been made."""

    def __init__(self, landmarks: Landmarks, vcpu: VCpu, arguments: tuple[int, ...]) -> None:
        self.landmarks = landmarks
        self.vcpu = vcpu
        self.arguments = arguments

    def read(self, layout: Layout, place: int = 1, index: int = 0) -> Any:
        """Return the structure that an argument points at, or one behind it; None where there is no memory."""
        try:
            return layout.unpack_from(
                copy_from_guest(self.vcpu, self.arguments[place] + index * layout.size, layout.size)
            )
        except HypercallError:
            return None


Words = Callable[[_Call], str]


def describe(landmarks: Landmarks, vcpu: VCpu, number: int, *rest: int) -> str:
    """Return a hypercall in words; `rest` are its arguments and its result, as in a trace."""
    *arguments, result = rest
    name = operation_name(number, arguments[0])
    call = _Call(landmarks, vcpu, tuple(arguments))
    words = _WORDS.get((number, arguments[0] & _U32)) or _WORDS.get((number, None))
    if words is not None:
        name = f"{name} {words(call)}".rstrip()
    got = _GIVES.get((number, arguments[0] & _U32))
    if result == 0 and got is not None:
        return f"{name} = {got(call)}"
    return f"{name} = {_result(result)}"


def _result(result: int) -> str:
    return f"-{errno.name(-result)}" if result < 0 else str(result) if result <= 0xFFFF else hex(result)


def _mapping(call: _Call) -> str:
    entry = call.arguments[1]
    if not entry & _PRESENT:
        return "to nothing"
    how = "writable" if entry & _WRITABLE else "read-only"
    return f"to {call.landmarks.frame((entry & _FRAME) >> 12)}, {how}"


def _traps(call: _Call) -> str:
    if not call.arguments[0]:
        return "without handlers"
    vectors = []
    for index in range(256):
        entry = call.read(xen.trap_info, 0, index)
        if entry is None or not entry.address:
            break
        vectors.append(str(entry.vector))
    more = ", ..." if len(vectors) > _MOST else ""
    return f"with handlers for {', '.join(vectors[:_MOST]) or 'nothing'}{more}"


def _callback(call: _Call) -> str:
    register = call.read(callback.callback_unregister)
    return _UNREADABLE if register is None else callback.TYPE_NAMES.get(register.type, f"type {register.type}")


def _port(layout: Layout) -> Words:
    def words(call: _Call) -> str:
        found = call.read(layout)
        return _UNREADABLE if found is None else f"port {call.landmarks.port(found.port)}"

    return words


def _virq(call: _Call) -> str:
    bind = call.read(event_channel.evtchn_bind_virq)
    return _UNREADABLE if bind is None else xen.VIRQ_NAMES.get(bind.virq, f"VIRQ {bind.virq}")


def _shutdown(call: _Call) -> str:
    how = call.read(sched.sched_shutdown)
    return _UNREADABLE if how is None else sched.SHUTDOWN_NAMES.get(how.reason, f"reason {how.reason}")


def _timer(call: _Call) -> str:
    deadline = call.arguments[0]
    if not deadline:
        return "off"
    ahead = deadline - call.landmarks.hv.now()
    return (
        f"in {(ahead + _MS // 2) // _MS} ms" if 0 <= ahead < 1 << 50 else "for what is past" if ahead < 0 else "never"
    )


def _count(place: int, what: str) -> Words:
    return lambda call: f"of {call.arguments[place] & _U32} {what}"


def _first_command(call: _Call) -> str:
    operation = call.read(xen.mmuext_op, 0)
    count = call.arguments[1] & _U32
    if operation is None:
        return _UNREADABLE
    first = xen.MMUEXT_NAMES.get(operation.cmd, f"op-{operation.cmd}")
    return first if count == 1 else f"{first} and {count - 1} more"


_EVENTS: Final = xen.HYPERVISOR_event_channel_op
_SCHED: Final = xen.HYPERVISOR_sched_op
_CALLBACKS: Final = xen.HYPERVISOR_callback_op
_WORDS: Final[dict[tuple[int, int | None], Words]] = {
    (xen.HYPERVISOR_update_va_mapping, None): _mapping,
    (xen.HYPERVISOR_mmu_update, None): _count(1, "entries"),
    (xen.HYPERVISOR_mmuext_op, None): _first_command,
    (xen.HYPERVISOR_multicall, None): _count(1, "calls"),
    (xen.HYPERVISOR_set_trap_table, None): _traps,
    (xen.HYPERVISOR_set_timer_op, None): _timer,
    (xen.HYPERVISOR_console_io, None): _count(1, "bytes"),
    (xen.HYPERVISOR_vcpu_op, None): lambda call: f"of vCPU {call.arguments[1] & _U32}",
    (_CALLBACKS, callback.CALLBACKOP_register): _callback,
    (_CALLBACKS, callback.CALLBACKOP_unregister): _callback,
    (_EVENTS, event_channel.EVTCHNOP_send): _port(event_channel.evtchn_send),
    (_EVENTS, event_channel.EVTCHNOP_close): _port(event_channel.evtchn_close),
    (_EVENTS, event_channel.EVTCHNOP_unmask): _port(event_channel.evtchn_unmask),
    (_EVENTS, event_channel.EVTCHNOP_bind_virq): _virq,
    (_SCHED, sched.SCHEDOP_shutdown): _shutdown,
}
"""By hypercall and (if that matters) command, what its arguments say."""
_GIVES: Final[dict[tuple[int, int], Words]] = {
    (_EVENTS, event_channel.EVTCHNOP_bind_virq): _port(event_channel.evtchn_bind_virq),
    (_EVENTS, event_channel.EVTCHNOP_bind_ipi): _port(event_channel.evtchn_bind_ipi),
    (_EVENTS, event_channel.EVTCHNOP_alloc_unbound): _port(event_channel.evtchn_alloc_unbound),
}
"""Likewise, what a call that succeeds has written."""
