"""What passes between one guest and Xen (and dom0, by its console and store), told in lines.

    guest    set_trap_table with handlers for 13, 14 = 0
    guest    lets events in; Xen knows: event callback, failsafe callback, traps 13, 14, a mapping of shared_info
    Xen      enters the event callback: port 1 (xenstore) is pending
    guest    has cleared port 1 (xenstore)
    dom0     xenstore ring: XS_WATCH_EVENT 'control/shutdown' 't'

Times, addresses and frames are not told, as they are others for each compiler. What goes round and round is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, final

from conformance.guest_abi.calls import Landmarks, describe
from conformance.guest_abi.messages import Messages
from conformance.guest_abi.recorder import OUT_SIZE, U32, Recorder
from hypervisor.abi import sched, xen
from hypervisor.abi import tracepoints as tp
from hypervisor.abi.io import xs_wire
from hypervisor.abi.io.console import xencons_interface
from hypervisor.event_channel.channel import FREE, RESERVED
from hypervisor.vcpu import VCpu

_MOST_LINES: Final = 4000
_MOST_TEXT: Final = 60
_LONGEST_ROUND: Final = 12
"""Lines that a round may have to be recognised."""
_ROUNDS: Final = 3
"""How often something happens in a row before it is told only once."""
_ERROR_AT: Final = xs_wire.xenstore_domain_interface.offset("error") >> 2
_ERRORS: Final = {
    xs_wire.XENSTORE_ERROR_COMM: "XENSTORE_ERROR_COMM",
    xs_wire.XENSTORE_ERROR_RINGIDX: "XENSTORE_ERROR_RINGIDX",
    xs_wire.XENSTORE_ERROR_PROTO: "XENSTORE_ERROR_PROTO",
}
_EXCEPTIONS: Final = {0: "#DE", 1: "#DB", 3: "#BP", 6: "#UD", 7: "#NM", 8: "#DF", 13: "#GP", 14: "#PF", 17: "#AC"}


@final
class GuestLines:
    """Hears the records of a host with one guest. `at_home` is to be called when its console and store are known."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lines: list[str] = []
        self._landmarks: Landmarks | None = None
        self._requests: Messages | None = None
        self._replies: Messages | None = None
        self._store_mfn = 0
        self._store_error = 0
        self._printed = self._typed = 0
        """The console's out_prod and in_cons, as far as they are told."""
        self._is_ready = False
        self._end = ""
        """Why it ends, if that is not told yet."""
        self._is_over = False
        self._pending: set[int] = set()
        """Ports of which the last upcalls told, and that the guest has not cleared."""

    @property
    def lines(self) -> list[str]:
        """What has happened; rounds told once."""
        return fold(self._lines)

    def say(self, who: str, text: str) -> None:
        """Add a line."""
        if len(self._lines) < _MOST_LINES:
            self._lines.append(f"{who:8} {text}")

    def remark(self, text: str) -> None:
        """Add a line of somebody's who looks on."""
        if len(self._lines) < _MOST_LINES:
            self._lines.append(f"({text})")

    def at_home(self, console: tuple[int, int], store: tuple[int, int]) -> None:
        """Take note of the frames and ports of the guest's console and store."""
        hv = self._recorder.hv
        assert hv is not None
        self._landmarks = marks = Landmarks(hv, self._recorder.domid)
        domain = hv.domains[self._recorder.domid]
        for (mfn, port), name in ((console, "console"), (store, "xenstore")):
            if mfn:
                marks.frames[mfn] = f"its {name} ring"
                marks.ports[port] = name
        marks.frames[domain.shared_info_mfn] = "shared_info"
        self._store_mfn = store[0]
        if self._store_mfn:
            self._requests = Messages(hv.memory, self._store_mfn, is_requests=True)
            self._replies = Messages(hv.memory, self._store_mfn, is_requests=False)

    # -- what is heard ------------------------------------------------------------------------------------------------

    def hear(self, domid: int, vcpu_id: int, kind: int, *fields: Any) -> None:
        """Take one record, after the recorder."""
        if self._is_over:
            return
        if kind == tp.HYPERCALL and self._landmarks is not None:
            if not self._end:
                self._look_at_store()
            if domid == self._recorder.domid:
                self._call(vcpu_id, fields)
            if self._end:
                self._tell_end()
        elif kind == tp.CONSOLE and fields[0] == self._recorder.domid:
            self.say("dom0", f"xenconsoled takes {len(fields[1])} bytes")
        elif domid == self._recorder.domid:
            take = _TAKE.get(kind)
            if take is not None:
                take(self, vcpu_id, fields)

    def _call(self, vcpu_id: int, fields: Sequence[Any]) -> None:
        marks = self._landmarks
        assert marks is not None
        self._look_at_console(marks)
        domain = marks.hv.domains.get(marks.domid)
        vcpu = None if domain is None else domain.vcpus[vcpu_id]
        if vcpu is None:
            return
        who = self._who(vcpu_id)
        self._look_at_ports(who, vcpu)
        if fields[0] == xen.HYPERVISOR_iret:
            self.say(who, "iret" + (f", though {self._is_pending(self._pending)}" if self._pending else ""))
        else:
            self.say(who, describe(marks, vcpu, *fields))
        first = self._recorder.at_first
        if first is not None and not self._is_ready:
            self._is_ready = True
            known = {"event callback": first.event_callback, "failsafe callback": first.failsafe_callback}
            words = [name for name, there in known.items() if there]
            if first.traps:
                words.append(f"traps {', '.join(map(str, sorted(first.traps)[:8]))}")
            if first.shared_info:
                words.append("a mapping of shared_info")
            self.say(who, f"lets events in for the first time; Xen knows: {', '.join(words) or 'nothing'}")

    def _who(self, vcpu_id: int) -> str:
        return "guest" if not vcpu_id else f"guest/{vcpu_id}"

    def _upcall(self, vcpu_id: int, _fields: Sequence[Any]) -> None:
        if self._landmarks is None:
            return
        self._look_at_console(self._landmarks)
        waiting = self._waiting()
        self._pending |= waiting
        self.say("Xen", f"enters the event callback: {self._is_pending(waiting) if waiting else 'no port is pending'}")

    def _shutdown(self, _vcpu_id: int, fields: Sequence[Any]) -> None:
        self._end = sched.SHUTDOWN_NAMES.get(fields[0], str(fields[0]))
        if fields[0] == sched.SHUTDOWN_crash:
            self._tell_end()

    def _tell_end(self) -> None:
        """Say that the guest has ended: behind the hypercall, if that is how it ends. Then nobody listens any more."""
        self.say("Xen", f"ends the guest: {self._end}")
        self.stop()

    def stop(self) -> None:
        """Tell nothing more: what follows is clearing away."""
        self._is_over = True

    def _crash(self, _vcpu_id: int, fields: Sequence[Any]) -> None:
        words = str(fields[0]).split()
        if words[2:4] == ["unhandled", "exception"] and words[4].isdigit():
            vector = int(words[4])
            self.say("Xen", f"finds no handler for exception {vector} ({_EXCEPTIONS.get(vector, '?')})")
        else:
            self.say("Xen", f"crashes the guest: {fields[0]}")

    # -- what is looked at --------------------------------------------------------------------------------------------

    def _waiting(self) -> set[int]:
        """Return the ports that are pending and not masked."""
        marks = self._landmarks
        domain = None if marks is None else marks.hv.domains.get(marks.domid)
        if domain is None:
            return set()
        ops = domain.port_ops
        bound = [channel for channel in domain.ports if channel.state not in (FREE, RESERVED)]
        return {channel.port for channel in bound if ops.is_pending(channel) and not ops.is_masked(channel)}

    def _look_at_ports(self, who: str, vcpu: VCpu) -> None:
        """See which ports the guest has cleared."""
        if not self._pending:
            return
        domain = vcpu.domain
        ops = domain.port_ops
        cleared = {port for port in self._pending if not ops.is_pending(domain.ports[port])}
        if cleared:
            self._pending -= cleared
            self.say(who, f"has cleared {self._ports(cleared)}")

    def _ports(self, ports: set[int]) -> str:
        assert self._landmarks is not None
        return ("port " if len(ports) == 1 else "ports ") + ", ".join(map(self._landmarks.port, sorted(ports)))

    def _is_pending(self, ports: set[int]) -> str:
        return f"{self._ports(ports)} {'is' if len(ports) == 1 else 'are'} pending"

    def _look_at_console(self, marks: Landmarks) -> None:
        """See what the guest has printed, and taken of what was typed."""
        mfn = self._recorder.console_mfn
        if not mfn:
            return
        words = marks.hv.memory.i
        base = mfn << 10
        produced, taken = words[base + _OUT_PROD], words[base + _IN_CONS]
        count = (produced - self._printed) & U32
        if count:
            self.say("guest", f"prints {self._text(marks, mfn, count)}")
        if taken != self._typed:
            self.say("guest", f"takes {(taken - self._typed) & U32} bytes that were typed")
        self._printed, self._typed = produced, taken

    def _text(self, marks: Landmarks, mfn: int, count: int) -> str:
        """Return what was printed last."""
        if count > OUT_SIZE:
            return f"{count} bytes into a ring of {OUT_SIZE}"
        if count > _MOST_TEXT:
            return f"{count} bytes"
        data, base = marks.hv.memory.b, (mfn << 12) + _OUT
        text = bytes(data[base + (at & OUT_SIZE - 1)] for at in range(self._printed, self._printed + count))
        return repr(text.decode("utf-8", "backslashreplace"))

    def _look_at_store(self) -> None:
        """See what has been said over the store's ring."""
        if self._requests is None or self._replies is None:
            return
        for who, messages in (("guest", self._requests), ("dom0", self._replies)):
            for message in messages.new():
                self.say(who, f"xenstore ring: {message}")
        assert self._recorder.hv is not None
        error = self._recorder.hv.memory.i[(self._store_mfn << 10) + _ERROR_AT]
        if error != self._store_error:
            self._store_error = error
            self.say("dom0", f"xenstored gives the ring up: {_ERRORS.get(error, error)}")


_OUT: Final = xencons_interface.offset("out")
_OUT_PROD, _IN_CONS = (xencons_interface.offset(name) >> 2 for name in ("out_prod", "in_cons"))
_TAKE: Final[dict[int, Callable[[GuestLines, int, Sequence[Any]], None]]] = {
    tp.UPCALL: GuestLines._upcall,
    tp.DOMAIN_SHUTDOWN: GuestLines._shutdown,
    tp.DOMAIN_CRASH: GuestLines._crash,
}


def fold(lines: Sequence[str]) -> list[str]:
    """Return lines with what goes round and round told once; how often is not told, as it is a matter of speed."""
    found: list[str] = []
    at = 0
    while at < len(lines):
        size = _round(lines, at)
        if not size:
            found.append(lines[at])
            at += 1
            continue
        around = list(lines[at : at + size])
        found += [*around, "... again and again" if size == 1 else f"... these {size} lines again and again"]
        while lines[at : at + size] == around:
            at += size
    return found


def _round(lines: Sequence[str], at: int) -> int:
    """Return how many lines there are in a round that begins here and is gone again and again; 0 if none is."""
    for size in range(1, _LONGEST_ROUND + 1):
        around = lines[at : at + size]
        if all(lines[at + size * turn : at + size * (turn + 1)] == around for turn in range(1, _ROUNDS)):
            return size if len(around) == size else 0
    return 0
