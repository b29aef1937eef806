"""A trace for ui.perfetto.dev: the JSON trace-event format, which Perfetto and chrome://tracing read.

A process named `pCPUs` has a track for each physical CPU, with the vCPU that it ran. Each domain is a process of its
own, with a track for each vCPU (turns, and the hypercalls within) and one for each device (requests, packets, pushes,
xenbus states). An arrow leads from each notification to the upcall that it caused. Times are microseconds with three
decimals, so no nanosecond is lost.

The format is described in the document "Trace Event Format" of the Catapult project; used are its phases X, i, M, s, f.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hypervisor.abi import tracepoints as tp
from hypervisor.abi import xen
from toolstack.trace_formats.text import describe
from toolstack.trace_formats.timeline import Placed, Timeline, Who

PCPUS = 1_000_000
"""The process number of the physical CPUs: above every domid."""
INTERRUPT_TRACKS = 1_000
"""Each pCPU has a track of the interrupts that it took while it ran nobody; they are numbered from here."""
INTERRUPT_NS = 1
"""How long they are shown to last."""
DEVICE_TRACKS = 1_000
"""Tracks of devices are numbered from here: above every vCPU that is shown."""

_quote = json.JSONEncoder(ensure_ascii=False).encode


def format_perfetto(records: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """Yield the file, in pieces."""
    yield b'{"displayTimeUnit":"ns","traceEvents":[\n'
    separator = ""
    for events in _Writer().write(records):
        if events:
            yield (separator + ",\n".join(events)).encode("utf-8", "backslashreplace")
            separator = ",\n"
    yield b"\n]}\n"


def _time(nanoseconds: int) -> str:
    return f"{nanoseconds // 1000}.{nanoseconds % 1000:03}"


class _Writer:
    def __init__(self) -> None:
        self._timeline = Timeline()
        self._events: list[str] = []
        self._named: set[tuple[int, int | str]] = set()
        self._devices: dict[tuple[int, str], int] = {}
        self._turns: dict[int, tuple[int, Who]] = {}
        """By pCPU: since when who runs."""
        self._arrows: dict[Who, list[int]] = {}
        """Notifications on their way to a vCPU."""
        self._next_arrow = 1
        self._last = 0
        self._handlers: dict[int, Callable[[Placed], None]] = {
            tp.SCHEDULE: self._schedule,
            tp.DESCHEDULE: self._deschedule,
            tp.HYPERCALL: self._hypercall,
            tp.EVTCHN_PENDING: self._pending,
            tp.UPCALL: self._upcall,
            tp.RING_PUSH: self._device,
            tp.BLOCK_REQUEST: self._device,
            tp.NET_PACKET: self._device,
            tp.XENBUS_STATE: self._xenbus,
            tp.DOMAIN_NAME: self._domain_name,
        }

    def write(self, records: Iterable[Sequence[Any]]) -> Iterator[list[str]]:
        handlers, instant = self._handlers, self._instant
        for placed in self._timeline.follow(record for record in records if record[3] not in tp.STATES):
            self._last = max(self._last, placed.time)
            handlers.get(placed.kind, instant)(placed)
            if len(self._events) > 4096:
                yield self._take()
        for pcpu in sorted(self._turns):
            self._end_turn(pcpu, self._last)
        yield self._take()

    def _take(self) -> list[str]:
        events, self._events = self._events, []
        return events

    # -- tracks ---------------------------------------------------------------------------------------------------

    def _vcpu_track(self, who: Who) -> str:
        domid, vcpu_id = who
        self._name_process(domid, "Domain-0" if domid == 0 else f"domain {domid}")
        self._name_track(domid, vcpu_id, f"d{domid}v{vcpu_id}")
        return f'"pid":{domid},"tid":{vcpu_id}'

    def _pcpu_track(self, pcpu: int) -> str:
        self._name_process(PCPUS, "pCPUs")
        self._name_track(PCPUS, pcpu, f"pCPU {pcpu}")
        return f'"pid":{PCPUS},"tid":{pcpu}'

    def _device_track(self, domid: int, device: str) -> str:
        self._name_process(domid, "Domain-0" if domid == 0 else f"domain {domid}")
        number = self._devices.setdefault((domid, device), DEVICE_TRACKS + len(self._devices))
        self._name_track(domid, number, device)
        return f'"pid":{domid},"tid":{number}'

    def _name_process(self, pid: int, name: str) -> None:
        if (pid, "process") not in self._named:
            self._named.add((pid, "process"))
            self._events.append(f'{{"ph":"M","name":"process_name","pid":{pid},"args":{{"name":{_quote(name)}}}}}')

    def _name_track(self, pid: int, tid: int, name: str) -> None:
        if (pid, tid) not in self._named:
            self._named.add((pid, tid))
            self._events.append(
                f'{{"ph":"M","name":"thread_name","pid":{pid},"tid":{tid},"args":{{"name":{_quote(name)}}}}}'
            )

    # -- records --------------------------------------------------------------------------------------------------

    def _schedule(self, placed: Placed) -> None:
        self._turns[placed.pcpu] = placed.time, placed.who

    def _deschedule(self, placed: Placed) -> None:
        if placed.pcpu not in self._turns:
            # The trace begins in the middle of this turn.
            self._turns[placed.pcpu] = max(placed.time - placed.fields[1], 0), placed.who
        self._end_turn(placed.pcpu, placed.time)

    def _end_turn(self, pcpu: int, until: int) -> None:
        began, who = self._turns.pop(pcpu)
        span = f'"ph":"X","ts":{_time(began)},"dur":{_time(until - began)}'
        self._events.append(f'{{{span},{self._pcpu_track(pcpu)},"cat":"sched","name":"d{who[0]}v{who[1]}"}}')
        self._events.append(f'{{{span},{self._vcpu_track(who)},"cat":"sched","name":"pCPU {pcpu}"}}')

    def _point(self, placed: Placed, track: str, name: str, category: str, details: str) -> None:
        self._events.append(
            f'{{"ph":"i","s":"t","ts":{_time(placed.time)},{track},"cat":"{category}","name":{_quote(name)},'
            f'"args":{{"what":{_quote(details)}}}}}'
        )

    def _instant(self, placed: Placed) -> None:
        name, _ = tp.KINDS.get(placed.kind, (f"kind-{placed.kind}", ()))
        self._point(placed, self._vcpu_track(placed.who), name, "event", describe(placed.kind, placed.fields))

    def _hypercall(self, placed: Placed) -> None:
        name = xen.HYPERCALL_NAMES.get(placed.fields[0], f"hypercall-{placed.fields[0]}")
        details = describe(placed.kind, placed.fields)
        self._point(placed, self._vcpu_track(placed.who), name, "hypercall", details)

    def _device(self, placed: Placed) -> None:
        name, _ = tp.KINDS[placed.kind]
        track = self._device_track(placed.who[0], str(placed.fields[0]))
        self._point(placed, track, name, "device", describe(placed.kind, placed.fields))

    def _xenbus(self, placed: Placed) -> None:
        details = describe(placed.kind, placed.fields)
        self._point(placed, self._device_track(placed.who[0], str(placed.fields[0])), "xenbus_state", "xenbus", details)

    def _domain_name(self, placed: Placed) -> None:
        self._instant(placed)
        domid, name = placed.fields
        # (The last name that a process is given counts.)
        self._named.add((domid, "process"))
        text = _quote(f"{name} (domain {domid})")
        self._events.append(f'{{"ph":"M","name":"process_name","pid":{domid},"args":{{"name":{text}}}}}')

    # -- arrows ---------------------------------------------------------------------------------------------------

    def _pending(self, placed: Placed) -> None:
        self._instant(placed)
        sender = self._timeline.running.get(placed.pcpu)
        track = self._interrupt(placed) if sender is None else self._vcpu_track(sender)
        self._arrow("s", placed, track, self._next_arrow)
        self._arrows.setdefault(placed.who, []).append(self._next_arrow)
        self._next_arrow += 1

    def _interrupt(self, placed: Placed) -> str:
        """Show that something outside of all vCPUs (a device, a timer) notifies one; return the track.

        An arrow begins and ends in a slice: Perfetto throws others away.
        """
        number = INTERRUPT_TRACKS + placed.pcpu
        self._name_process(PCPUS, "pCPUs")
        self._name_track(PCPUS, number, f"interrupts of pCPU {placed.pcpu}")
        track = f'"pid":{PCPUS},"tid":{number}'
        span = f'"ph":"X","ts":{_time(placed.time)},"dur":{_time(INTERRUPT_NS)}'
        self._events.append(f'{{{span},{track},"cat":"evtchn","name":"notify d{placed.who[0]}v{placed.who[1]}"}}')
        return track

    def _upcall(self, placed: Placed) -> None:
        self._instant(placed)
        track = self._vcpu_track(placed.who)
        for arrow in self._arrows.pop(placed.who, ()):
            self._arrow("f", placed, track, arrow)

    def _arrow(self, phase: str, placed: Placed, track: str, number: int) -> None:
        bound = ',"bp":"e"' if phase == "f" else ""
        self._events.append(
            f'{{"ph":"{phase}","id":{number}{bound},"ts":{_time(placed.time)},{track},"cat":"evtchn","name":"notify"}}'
        )
