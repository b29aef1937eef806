"""A trace as xentrace writes it, for xenalyze and xentrace_format: trace.h, and the record formats of Xen 4.17.

The file is a sequence of windows. Each begins with a record TRC_TRACE_CPU_CHANGE (the pCPU, and the bytes that follow),
then come records of that pCPU. A record is a word with the event, the number of data words and a flag, a 64-bit time
stamp (one tick is a nanosecond), and up to seven data words. `xenalyze --cpu-hz 1G` reads the times
right.

What guest code notes about itself (rings, xenbus, xenstore) has no place there and is left out. An idle pCPU runs the
idle domain's vCPU of its number, as in Xen.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hypervisor.abi import sched, trace, vcpu, xen
from hypervisor.abi import tracepoints as tp
from hypervisor.vcpu import VPF_BLOCKED
from toolstack.trace_formats.timeline import Placed, Timeline, Who

WINDOW_BYTES = 1 << 15
"""How much is gathered of all pCPUs before their windows are written."""

U32 = 0xFFFFFFFF
TSC_AT_BOOT = 1
"""The time stamp of time 0: xenalyze takes a time stamp of 0 for none."""


ARGUMENTS: dict[int, tuple[int, ...]] = {
    xen.HYPERVISOR_mmu_update: (1,),
    xen.HYPERVISOR_multicall: (1,),
    xen.HYPERVISOR_grant_table_op: (0, 2),
    xen.HYPERVISOR_vcpu_op: (0, 1),
    xen.HYPERVISOR_mmuext_op: (1,),
    xen.HYPERVISOR_sched_op: (0,),
}
"""Which arguments TRC_PV_HYPERCALL_V2 tells of a hypercall; none of the others."""

_HEADER = struct.Struct("<IQ")
_WINDOW = struct.Struct("<III")
_WORDS = [struct.Struct(f"<{count}I") for count in range(trace.TRACE_EXTRA_MAX + 1)]


def record(event: int, time: int, *data: int) -> bytes:
    """Return one record with a time stamp."""
    head = event | len(data) << trace.TRACE_EXTRA_SHIFT | trace.TRC_HD_CYCLE_FLAG
    return _HEADER.pack(head, time) + _WORDS[len(data)].pack(*[word & U32 for word in data])


def format_xentrace(records: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """Yield the file, in pieces."""
    return _Writer().write(records)


class _Writer:
    def __init__(self) -> None:
        self._timeline = Timeline()
        self._buffers: dict[int, bytearray] = {}
        self._size = 0
        self._states: dict[Who, int] = {}
        self._since: dict[Who, int] = {}
        self._leaving: dict[int, tuple[Placed, int]] = {}
        """By pCPU: whose turn has ended, and the vCPU's state after it, while nobody knows yet who comes next."""
        self._granters: dict[tuple[int, int], int] = {}
        self._handlers: dict[int, Callable[[Placed], None]] = {
            tp.HYPERCALL: self._hypercall,
            tp.SCHEDULE: self._schedule,
            tp.DESCHEDULE: self._deschedule,
            tp.WAKE: self._wake,
            tp.IRQ: self._irq,
            tp.DOMAIN_CREATE: self._create,
            tp.DOMAIN_SHUTDOWN: self._shutdown,
            tp.DOMAIN_DESTROY: self._destroy,
            tp.GNTTAB_MAP: self._map,
            tp.GNTTAB_UNMAP: self._unmap,
            tp.GNTTAB_TRANSFER: self._transfer,
        }

    def write(self, records: Iterable[Sequence[Any]]) -> Iterator[bytes]:
        handlers = self._handlers
        for placed in self._timeline.follow(records):
            handler = handlers.get(placed.kind)
            if handler is not None:
                if placed.pcpu in self._leaving and placed.kind != tp.SCHEDULE:
                    self._goes_idle(placed.pcpu)
                handler(placed)
                if self._size >= WINDOW_BYTES:
                    yield self._flush()
        yield self._flush()

    def _flush(self) -> bytes:
        """Return a window for each pCPU that has records, in the order of their numbers."""
        for pcpu in sorted(self._leaving):
            self._goes_idle(pcpu)
        out = bytearray()
        for pcpu in sorted(self._buffers):
            data = self._buffers[pcpu]
            out += _WINDOW.pack(trace.TRC_TRACE_CPU_CHANGE | 2 << trace.TRACE_EXTRA_SHIFT, pcpu, len(data)) + data
        self._buffers.clear()
        self._size = 0
        return bytes(out)

    def _emit(self, placed: Placed, event: int, *data: int) -> None:
        data_bytes = record(event, placed.time + TSC_AT_BOOT, *data)
        self._buffers.setdefault(placed.pcpu, bytearray()).extend(data_bytes)
        self._size += len(data_bytes)

    # -- scheduling -----------------------------------------------------------------------------------------------

    def _becomes(self, placed: Placed, who: Who, state: int) -> None:
        """Tell that a vCPU changes its runstate."""
        old = self._states.get(who, vcpu.RUNSTATE_offline)
        self._states[who] = state
        self._since[who] = placed.time
        event = trace.TRC_SCHED_RUNSTATE_CHANGE | old << 8 | state << 4
        self._emit(placed, event, who[0] << 16 | who[1])

    def _switch(self, placed: Placed, prev: Who, state: int, after: Who) -> None:
        """Tell that the pCPU turns from one vCPU, which is in `state` now, to another."""
        time = placed.time
        waited = time - self._since.get(after, time)
        self._emit(placed, trace.TRC_SCHED_SWITCH_INFPREV, *prev, time - self._since.get(prev, time))
        self._emit(placed, trace.TRC_SCHED_SWITCH_INFNEXT, *after, waited, 0)
        self._emit(placed, trace.TRC_SCHED_SWITCH, *prev, *after)
        self._becomes(placed, prev, state)
        self._becomes(placed, after, vcpu.RUNSTATE_running)

    def _goes_idle(self, pcpu: int) -> None:
        """Nobody came after the vCPU that has left the pCPU."""
        left, state = self._leaving.pop(pcpu)
        self._switch(left, left.who, state, (xen.DOMID_IDLE, pcpu))

    def _settle(self, who: Who, *, but: int | None = None) -> None:
        """Something happens to a vCPU elsewhere: whether it has left is not open any more."""
        for pcpu in [pcpu for pcpu, (left, _) in self._leaving.items() if left.who == who and pcpu != but]:
            self._goes_idle(pcpu)

    def _schedule(self, placed: Placed) -> None:
        self._settle(placed.who, but=placed.pcpu)
        idle = xen.DOMID_IDLE, placed.pcpu
        leaving = self._leaving.get(placed.pcpu)
        if leaving is not None and leaving[0].time < placed.time:
            self._goes_idle(placed.pcpu)
            leaving = None
        if self._states.get(idle) is None:
            # The trace begins here; until now the pCPU had nothing to do.
            self._states[idle] = vcpu.RUNSTATE_running if leaving is None else vcpu.RUNSTATE_runnable
        if leaving is None:
            prev, state = idle, vcpu.RUNSTATE_runnable
        else:
            prev, state = leaving[0].who, leaving[1]
            del self._leaving[placed.pcpu]
        if prev == placed.who:
            # Its slice was over, and it was the next again.
            self._emit(
                placed, trace.TRC_SCHED_SWITCH_INFCONT, *prev, placed.time - self._since.get(prev, placed.time), 0
            )
            self._emit(placed, trace.TRC_SCHED_CONTINUE_RUNNING, prev[0] << 16 | prev[1])
            return
        if self._states.get(placed.who) != vcpu.RUNSTATE_runnable:
            # It was on its way before the trace began.
            self._becomes(placed, placed.who, vcpu.RUNSTATE_runnable)
        self._switch(placed, prev, state, placed.who)

    def _deschedule(self, placed: Placed) -> None:
        flags = placed.fields[2]
        if not flags:
            state = vcpu.RUNSTATE_runnable
        elif flags & VPF_BLOCKED:
            state = vcpu.RUNSTATE_blocked
            self._emit(placed, trace.TRC_SCHED_BLOCK, *placed.who)
        else:
            state = vcpu.RUNSTATE_offline
            self._emit(placed, trace.TRC_SCHED_SLEEP, *placed.who)
        self._leaving[placed.pcpu] = placed, state

    def _wake(self, placed: Placed) -> None:
        self._settle(placed.who)
        if self._states.get(placed.who) != vcpu.RUNSTATE_running:
            self._becomes(placed, placed.who, vcpu.RUNSTATE_runnable)
        self._emit(placed, trace.TRC_SCHED_WAKE, *placed.who)

    # -- guests and their calls -----------------------------------------------------------------------------------

    def _hypercall(self, placed: Placed) -> None:
        nr, *arguments = placed.fields
        if self._timeline.running.get(placed.pcpu) != placed.who:
            # The pCPU has not been seen to turn to it: the trace begins in the middle of its turn.
            return
        if nr == xen.HYPERVISOR_sched_op and arguments[0] == sched.SCHEDOP_yield:
            self._emit(placed, trace.TRC_SCHED_YIELD, *placed.who)
        word, data = nr & ~trace.TRC_PV_HYPERCALL_V2_ARG_MASK & U32, []
        for index in ARGUMENTS.get(nr, ()):
            word |= 1 << 20 + 2 * index
            data.append(arguments[index])
        self._emit(placed, trace.TRC_PV_HYPERCALL_V2, word, *data)

    def _irq(self, placed: Placed) -> None:
        self._emit(placed, trace.TRC_HW_IRQ_HANDLED, placed.fields[0], placed.time, placed.time)

    def _create(self, placed: Placed) -> None:
        self._emit(placed, trace.TRC_SCHED_DOM_ADD, placed.who[0])
        self._emit(placed, trace.TRC_DOM0_DOM_ADD, placed.who[0])

    def _destroy(self, placed: Placed) -> None:
        self._emit(placed, trace.TRC_SCHED_DOM_REM, placed.who[0])
        self._emit(placed, trace.TRC_DOM0_DOM_REM, placed.who[0])

    def _shutdown(self, placed: Placed) -> None:
        self._emit(placed, trace.TRC_SCHED_SHUTDOWN, *placed.who, placed.fields[0])

    # -- grants ---------------------------------------------------------------------------------------------------

    def _map(self, placed: Placed) -> None:
        granter, _, _, handle, status = placed.fields
        if status == 0:
            self._granters[placed.who[0], handle] = granter
            self._emit(placed, trace.TRC_MEM_PAGE_GRANT_MAP, granter)

    def _unmap(self, placed: Placed) -> None:
        handle, status = placed.fields
        granter = self._granters.pop((placed.who[0], handle), None) if status == 0 else None
        if granter is not None:
            self._emit(placed, trace.TRC_MEM_PAGE_GRANT_UNMAP, granter)

    def _transfer(self, placed: Placed) -> None:
        domid, _, status = placed.fields
        if status == 0:
            self._emit(placed, trace.TRC_MEM_PAGE_GRANT_TRANSFER, domid)
