"""Where virtual time goes, added up from the records of a trace: by domain, vCPU, thread, hypercall, cost.

What a vCPU's turn on a pCPU took is told by `deschedule`, to the nanosecond. Its parts follow from the costs of the run
(`hypervisor.sched.costs`): each hypercall has its price, the first stretch after another vCPU pays for the switch, each
stretch for itself; what time remains between two records, the code that ran there has computed. So the parts of a
turn add up to the turn, always.

The parts are leaves of stacks such as `guest1`, `vCPU 0`, `thread main`, `event_channel_op send`. What is in brackets
is no code of a guest: `[switch]`, `[stretch]`, `[computing]`, `[yielding]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from hypervisor.abi import grant_table, sched, xen
from hypervisor.abi import tracepoints as tp
from hypervisor.sched.charges import PAGE_SIZE
from hypervisor.sched.costs import Costs
from hypervisor.vcpu import VPF_BLOCKED
from toolstack.trace_formats.text import operation_name
from toolstack.xl_config import DOM0_NAME

Who = tuple[int, int]
"""(domid, vcpu_id)"""
Stack = tuple[str, ...]
"""Frames from the vCPU inwards: thread, hypercall or cost."""

SWITCH = "[switch]"
STRETCH = "[stretch]"
COMPUTING = "[computing]"
YIELDING = "[yielding]"
HANDLERS = "event handlers"
RUN_LOOP = "run loop"
CODE = "guest code"
"""What a vCPU runs of which no trace says more: a machine-code guest, or threads were not recorded."""
OVERLAPPING = frozenset((tp.EVTCHN_PENDING, tp.WAKE, tp.TIMER, tp.IRQ, tp.VCPU_UP, tp.VCPU_DOWN, tp.DOMAIN_CREATE,
                         tp.DOMAIN_SHUTDOWN, tp.DOMAIN_CRASH, tp.DOMAIN_DESTROY))  # fmt: skip
"""Kinds of records that say nothing of how far the vCPU that they name has got."""


@attrs.define
class Spent:
    """How much time, in how many pieces."""

    ns: int = 0
    count: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Add a piece."""
        self.ns += ns
        self.count += count


@attrs.define
class VCpuProfile:
    """What one vCPU did with its time. Times in ns."""

    ran: int = 0
    waited: int = 0
    """Ready to run, while others had the processors."""
    blocked: int = 0
    turns: int = 0
    stacks: dict[Stack, Spent] = attrs.field(factory=dict)
    """What its turns were made of: the parts add up to `ran`."""

    def add(self, stack: Stack, ns: int, count: int = 1) -> None:
        """Add a part of a turn."""
        self.stacks.setdefault(stack, Spent()).add(ns, count)


@attrs.define
class _Call:
    """A hypercall of the present turn."""

    frame: str
    name: str
    ns: int
    parent: str = ""
    """The name of the multicall that it was an entry of."""


@attrs.define
class _VCpu:
    """What is known of a vCPU while its records come."""

    profile: VCpuProfile = attrs.field(factory=VCpuProfile)
    thread: str = ""
    """The thread that ran last; empty as long as the guest tells of none."""
    frame: str = CODE
    """Who makes hypercalls: the thread, an event handler, the run loop."""
    began: int = -1
    """When the present turn began; -1 if it has none."""
    until: int = 0
    """Up to when its time has been accounted for."""
    priced: int = 0
    """What the hypercalls since then cost."""
    copied: int = 0
    """Bytes of grant copies since the last hypercall."""
    switching: int = 0
    """What is still to be paid for the switch."""
    yielded: bool = False
    calls: list[_Call] = attrs.field(factory=list)
    gaps: list[tuple[Stack, int]] = attrs.field(factory=list)
    """What of the turn was no hypercall, in order."""
    ready: int = -1
    """Since when it waits for a pCPU; -1 if it does not."""
    asleep: int = -1
    """Since when it is blocked; -1 if it is not."""


class Profile:
    """Takes the records of one trace in their order (`add`), then says where the time went."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._names: dict[int, str] = {0: DOM0_NAME}
        self._vcpus: dict[Who, _VCpu] = {}
        self._last: dict[int, Who] = {}
        """By pCPU: who ran there last."""
        self.end = 0
        """How far the latest record, or turn, reaches."""

    def add_all(self, records: Iterable[Sequence[Any]]) -> None:
        """Take many records."""
        for record in records:
            self.add(*record)

    def add(self, time: int, domid: int, vcpu_id: int, kind: int, *fields: Any) -> None:
        """Take a record, as it is in a trace."""
        if time > self.end:
            self.end = time
        if kind in tp.STATES:
            return
        if kind == tp.DOMAIN_NAME:
            self._names[fields[0]] = str(fields[1])
            return
        who = domid, vcpu_id
        vcpu = self._vcpus.get(who)
        if vcpu is None:
            vcpu = self._vcpus[who] = _VCpu()
        if kind == tp.SCHEDULE:
            self._schedule(vcpu, who, time, fields[0])
        elif kind == tp.DESCHEDULE:
            self._deschedule(vcpu, time, fields[1], fields[2])
        elif kind == tp.WAKE:
            if vcpu.began < 0:
                vcpu.profile.blocked += time - vcpu.asleep if 0 <= vcpu.asleep < time else 0
                vcpu.asleep, vcpu.ready = -1, max(time, vcpu.asleep)
        elif vcpu.began >= 0 and kind not in OVERLAPPING:
            self._inside(vcpu, time, kind, fields)

    # -- turns ----------------------------------------------------------------------------------------------------

    def _schedule(self, vcpu: _VCpu, who: Who, time: int, pcpu: int) -> None:
        if vcpu.ready >= 0:
            vcpu.profile.waited += max(time - vcpu.ready, 0)
        vcpu.ready = vcpu.asleep = -1
        vcpu.began = vcpu.until = time
        vcpu.switching = self._costs.switch if self._last.get(pcpu) != who else 0
        self._last[pcpu] = who

    def _deschedule(self, vcpu: _VCpu, time: int, ran: int, flags: int) -> None:
        if vcpu.began < 0:
            # The trace begins in the middle of this turn: what it was made of is unknown.
            vcpu.gaps.append(((CODE, COMPUTING), ran))
            vcpu.began = max(time - ran, 0)
        end = vcpu.began + ran
        self.end = max(self.end, end)
        self._pass_until(vcpu, end)
        self._close_turn(vcpu, ran)
        vcpu.began = -1
        if not flags:
            vcpu.ready = end
        elif flags & VPF_BLOCKED:
            vcpu.asleep = end

    def _close_turn(self, vcpu: _VCpu, ran: int) -> None:
        """Book the parts of a turn, so that they add up to what it took."""
        profile = vcpu.profile
        profile.ran += ran
        profile.turns += 1
        left = ran
        for call in vcpu.calls:
            ns = min(call.ns, left)
            left -= ns
            stack: Stack = (call.frame, call.parent, call.name) if call.parent else (call.frame, call.name)
            profile.add(stack, ns)
        for place, gap in vcpu.gaps:
            ns = min(gap, left)
            left -= ns
            profile.add(place, ns)
        if left:
            profile.add((vcpu.thread or CODE, COMPUTING), left)
        vcpu.calls.clear()
        vcpu.gaps.clear()
        vcpu.priced = 0

    # -- what is in them ------------------------------------------------------------------------------------------

    def _inside(self, vcpu: _VCpu, time: int, kind: int, fields: Sequence[Any]) -> None:
        if kind == tp.HYPERCALL:
            self._hypercall(vcpu, time, *fields)
        elif kind == tp.GNTTAB_COPY:
            vcpu.copied += fields[2]
        elif kind == tp.UPCALL:
            self._pass_until(vcpu, time)
            if vcpu.thread:
                # (Of others no record tells when their handler is over.)
                vcpu.frame = HANDLERS
        elif kind == tp.THREAD:
            self._pass_until(vcpu, time)
            vcpu.frame = vcpu.thread = f"thread {fields[0]}"

    def _hypercall(self, vcpu: _VCpu, time: int, nr: int, *rest: int) -> None:
        arguments, rc = rest[:-1], rest[-1]
        costs = self._costs
        if nr == xen.HYPERVISOR_multicall:
            self._multicall(vcpu, arguments[1] if rc == 0 else 0)
            return
        ns = costs.hypercall + costs.hypercalls.get(nr, 0)
        if nr == xen.HYPERVISOR_grant_table_op and arguments[0] == grant_table.GNTTABOP_copy:
            ns += vcpu.copied * costs.grant_copy_page // PAGE_SIZE
            vcpu.copied = 0
        self._pass_until(vcpu, time - ns)
        frame = vcpu.frame
        if nr == xen.HYPERVISOR_sched_op:
            if arguments[0] == sched.SCHEDOP_block and vcpu.thread:
                frame = RUN_LOOP
            vcpu.yielded = arguments[0] == sched.SCHEDOP_yield
        vcpu.calls.append(_Call(frame, operation_name(nr, arguments[0]), ns))
        vcpu.priced += ns

    def _multicall(self, vcpu: _VCpu, entries: int) -> None:
        """The last hypercalls were its entries: they cost their extras only, and it the entry into Xen."""
        costs = self._costs
        name = operation_name(xen.HYPERVISOR_multicall, 0)
        for call in vcpu.calls[-entries:] if entries else ():
            call.ns -= costs.hypercall
            call.parent = name
            vcpu.priced -= costs.hypercall
        ns = costs.hypercall + costs.hypercalls.get(xen.HYPERVISOR_multicall, 0)
        vcpu.calls.append(_Call(vcpu.frame, name, ns))
        vcpu.priced += ns

    def _pass_until(self, vcpu: _VCpu, time: int) -> None:
        """Say what the vCPU did since its last record, apart from its hypercalls: a stretch has ended in between."""
        gap = time - vcpu.until - vcpu.priced
        if gap <= 0:
            return
        vcpu.until += gap + vcpu.priced
        vcpu.priced = 0
        switch = min(gap, vcpu.switching)
        if switch:
            vcpu.gaps.append(((SWITCH,), switch))
            vcpu.switching -= switch
            gap -= switch
        if vcpu.thread:
            # (Of machine code, and where threads were not recorded, nobody knows where a stretch ends.)
            run = min(gap, self._costs.run)
            vcpu.gaps.append(((STRETCH,), run))
            gap -= run
        if gap:
            vcpu.gaps.append(((vcpu.thread or CODE, YIELDING if vcpu.yielded else COMPUTING), gap))
        vcpu.yielded = False

    # -- what came out --------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The trace is over: turns that were not, end with it."""
        for vcpu in self._vcpus.values():
            if vcpu.began >= 0:
                self._close_turn(vcpu, max(self.end, vcpu.until + vcpu.priced) - vcpu.began)
                vcpu.began = -1

    def vcpus(self) -> dict[Who, VCpuProfile]:
        """Return what each vCPU that ever ran did, by number of its domain and its own."""
        return {who: self._vcpus[who].profile for who in sorted(self._vcpus) if self._vcpus[who].profile.turns}

    def domain_name(self, domid: int) -> str:
        """Return what to call a domain."""
        return self._names.get(domid, f"domain {domid}")
