"""Which physical CPU a record happened on, and what ran there.

The stream does not say it of each record: it has `schedule` and `deschedule` with the number of the pCPU, and
everything in between is told in the order in which it happened. A hypercall, an upcall and what guest code notes about
itself belong to the pCPU that runs that vCPU; a wake-up, an event or a timer is about its target, and happens on the
pCPU that acted last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from hypervisor.abi import tracepoints as tp

Who = tuple[int, int]
"""(domid, vcpu_id)"""

ABOUT_A_TARGET = frozenset((tp.EVTCHN_PENDING, tp.WAKE, tp.TIMER, tp.IRQ, tp.VCPU_UP, tp.VCPU_DOWN,
                            tp.DOMAIN_CREATE, tp.DOMAIN_CRASH, tp.DOMAIN_DESTROY))  # fmt: skip
"""Kinds of records that name whom something is done to, not who does it."""

CHANGES = frozenset((tp.SCHEDULE, tp.DESCHEDULE, tp.WAKE))
"""Kinds of records that change the runstate of a vCPU."""


@attrs.frozen
class Placed:
    """A record and where it happened. `time` never goes back on one pCPU, nor for one vCPU."""

    time: int
    pcpu: int
    who: Who
    kind: int
    fields: Sequence[Any]


class Timeline:
    """Follows a stream: after each record, `running` says which vCPU every pCPU runs."""

    def __init__(self) -> None:
        self.running: dict[int, Who] = {}
        self.where: dict[Who, int] = {}
        self._acting = 0
        """The pCPU that acted last."""
        self._reached: dict[int, int] = {}
        """By pCPU: the time of its last record."""
        self._began: dict[int, int] = {}
        """By pCPU: when the turn that it is at began."""
        self._seen: dict[Who, tuple[int, int]] = {}
        """By vCPU: when it last changed its state, and on which pCPU."""

    def follow(self, records: Iterable[Sequence[Any]]) -> Iterator[Placed]:
        """Yield the records, placed. Before a record is yielded `running` is as it was when that happened."""
        for time, domid, vcpu_id, kind, *fields in records:
            who = (domid, vcpu_id)
            pcpu = self._place(time, who, kind, fields)
            moment = self._moment(time, pcpu, who, kind, fields)
            yield Placed(moment, pcpu, who, kind, fields)
            if kind == tp.SCHEDULE:
                self.running[pcpu] = who
                self.where[who] = pcpu
                self._began[pcpu] = moment
            elif kind == tp.DESCHEDULE:
                self.running.pop(pcpu, None)
                self.where.pop(who, None)
            elif kind == tp.DOMAIN_DESTROY:
                self._forget(domid)

    def _place(self, time: int, who: Who, kind: int, fields: Sequence[Any]) -> int:
        if kind in (tp.SCHEDULE, tp.DESCHEDULE):
            self._acting = fields[0]
        elif kind not in ABOUT_A_TARGET:
            self._acting = self.where.get(who, self._acting)
        elif self._reached.get(self._acting, 0) > time:
            # A timer or a device, while the pCPU that acted last is ahead of it: on one that has not got so far.
            behind = [pcpu for pcpu, reached in self._reached.items() if reached <= time]
            if behind:
                return min(behind)
        return self._acting

    def _moment(self, time: int, pcpu: int, who: Who, kind: int, fields: Sequence[Any]) -> int:
        if kind == tp.DESCHEDULE:
            # What its last stretch cost was charged when that was over, after the moment that the record shows.
            time = max(time, self._began.get(pcpu, 0) + fields[1])
        time = max(time, self._reached.get(pcpu, 0))
        if kind in CHANGES:
            before, place = self._seen.get(who, (-1, pcpu))
            # What is done to a vCPU on two pCPUs has an order, even if the two have clocks of their own.
            time = max(time, before + (place != pcpu))
            self._seen[who] = time, pcpu
        self._reached[pcpu] = time
        return time

    def _forget(self, domid: int) -> None:
        for who in [who for who in self._seen if who[0] == domid]:
            del self._seen[who]
            self.running.pop(self.where.pop(who, -1), None)
