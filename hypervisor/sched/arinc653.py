"""arinc653: a timetable (xen/common/sched/arinc653.c; ARINC 653 is the avionics standard for partitions).

A major frame is repeated for ever. It has windows, each of which belongs to one vCPU; nobody else runs in it, even if
that one sleeps, and what is left of the frame behind the last window belongs to nobody. dom0's vCPUs get windows of
10 ms by themselves; everybody else only by a new timetable (XEN_SYSCTL_scheduler_op), which begins at once.

Like Xen's, it uses one pCPU of its pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from hypervisor.abi import domctl, errno, sysctl
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.sched.algorithm import MS, Algorithm, Unit

if TYPE_CHECKING:
    from hypervisor.machine.timers import Timer
    from hypervisor.sched.pcpu import PCpu
    from hypervisor.sched.scheduler import Scheduler
    from hypervisor.vcpu import VCpu

DOM0_WINDOW = 10 * MS
MAX_WINDOWS = sysctl.ARINC653_MAX_DOMAINS_PER_SCHEDULE


@attrs.frozen
class Window:
    """A part of the major frame: whose it is (a domain's handle, and a vCPU's number), and how long, in ns."""

    handle: bytes
    vcpu_id: int
    runtime: int


class Arinc653(Algorithm):
    """The scheduler."""

    name = "arinc653"
    title = "ARINC 653 Scheduler"
    sched_id: ClassVar[int] = domctl.XEN_SCHEDULER_ARINC653
    hears_wakes = True

    def __init__(self, loop: Scheduler) -> None:
        super().__init__(loop)
        self.windows: list[Window] = []
        self.major_frame = 0
        self.begun = 0
        """When the first major frame of this timetable began."""
        self._timer: Timer | None = None

    def insert_unit(self, vcpu: VCpu) -> None:
        """Take a vCPU in; one of dom0 gets a window."""
        super().insert_unit(vcpu)
        vcpu.credit_end = 0  # `exhausted` is asked each time
        if vcpu.domain.domid == 0 and len(self.windows) < MAX_WINDOWS:
            self.windows.append(Window(vcpu.domain.handle, vcpu.vcpu_id, DOM0_WINDOW))
            self.major_frame += DOM0_WINDOW

    def retire(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def place(self, unit: Unit) -> None:
        """Everybody runs on the first pCPU."""
        unit.vcpu.cpus = 1 << self.pcpus[0].cpu_id if self.pcpus else 0
        unit.pcpu = self.pcpus[0] if self.pcpus else None

    # -- the timetable ----------------------------------------------------------------------------------------------

    def window_at(self, now: int) -> tuple[Window | None, int]:
        """Return whose window it is at `now`, and when that ends."""
        if not self.major_frame:
            return None, now + DOM0_WINDOW
        at = (now - self.begun) % self.major_frame
        frame = now - at
        passed = 0
        for window in self.windows:
            passed += window.runtime
            if at < passed:
                return window, frame + passed
        return None, frame + self.major_frame

    @staticmethod
    def is_of(window: Window | None, vcpu: VCpu) -> bool:
        """Whether a window belongs to a vCPU."""
        return window is not None and window.vcpu_id == vcpu.vcpu_id and window.handle == vcpu.domain.handle

    def _has_window(self, vcpu: VCpu) -> bool:
        return any(self.is_of(window, vcpu) for window in self.windows)

    # -- what happens to a vCPU -------------------------------------------------------------------------------------

    def wake(self, vcpu: VCpu, now: int) -> None:
        """Let it run if it is its window; else it waits for it."""
        if not self.is_of(self.window_at(now)[0], vcpu):
            self.loop.park(vcpu)
            self._arm(now)

    def descheduled(self, pcpu: PCpu, vcpu: VCpu, now: int) -> None:
        """The end of a window."""
        if vcpu.queued and not vcpu.parked and not self.is_of(self.window_at(now)[0], vcpu):
            self.loop.park(vcpu)
            self._arm(now)

    def _arm(self, now: int) -> None:
        """Look again when the window ends, as long as somebody waits for one."""
        if self._timer is None:
            end = self.window_at(now)[1]
            self._timer = self.loop.hv.timers.add(end, lambda: self._turn(end))

    def _turn(self, now: int) -> None:
        self._timer = None
        window, _ = self.window_at(now)
        waits = False
        for unit in self.units:
            vcpu = unit.vcpu
            if vcpu.parked:
                if self.is_of(window, vcpu):
                    self.loop.unpark(vcpu, now)
                else:
                    waits = waits or self._has_window(vcpu)
        if waits:
            self._arm(now)

    # -- decisions --------------------------------------------------------------------------------------------------

    def pick(self, pcpu: PCpu, ready: Sequence[VCpu], now: int) -> VCpu:
        """Take the one whose window it is."""
        window = self.window_at(now)[0]
        return next((vcpu for vcpu in ready if self.is_of(window, vcpu)), ready[0])

    def exhausted(self, vcpu: VCpu, now: int) -> bool:
        """Whether the window of a vCPU is over before it got to run."""
        if self.is_of(self.window_at(now)[0], vcpu):
            return False
        self._arm(now)
        return True

    def slice(self, pcpu: PCpu, vcpu: VCpu, now: int) -> int:
        """Until the end of the window."""
        return self.window_at(now)[1] - now

    # -- parameters -------------------------------------------------------------------------------------------------

    def adjust_global(self, caller: VCpu, op: Any) -> Any:
        """Get or put the timetable."""
        layout = sysctl.xen_sysctl_arinc653_schedule
        at = op.u.sched_arinc653.schedule
        if op.cmd == sysctl.XEN_SYSCTL_SCHEDOP_putinfo:
            self._put(layout.unpack(copy_from_guest(caller, at, layout.size)))
        else:
            # What is not used of it is all ones.
            table = layout.unpack(b"\xff" * layout.size)
            table.major_frame, table.num_sched_entries = self.major_frame, len(self.windows)
            for entry, window in zip(table.sched_entries, self.windows, strict=False):
                entry.dom_handle, entry.vcpu_id, entry.runtime = window.handle, window.vcpu_id, window.runtime
            copy_to_guest(caller, at, layout.pack(table))
        return op

    def _put(self, table: Any) -> None:
        count = table.num_sched_entries
        entries = table.sched_entries[:count]
        frame = _signed(table.major_frame)
        runtimes = [_signed(entry.runtime) for entry in entries]
        if frame <= 0 or not 1 <= count <= MAX_WINDOWS or min(runtimes) <= 0 or sum(runtimes) > frame:
            raise HypercallError(errno.EINVAL)
        pairs = zip(entries, runtimes, strict=True)
        self.set_timetable([Window(bytes(entry.dom_handle), entry.vcpu_id, runtime) for entry, runtime in pairs], frame)

    def set_timetable(self, windows: list[Window], frame: int) -> None:
        """Begin at once with another timetable; the windows are not longer than the frame."""
        self.windows = windows
        self.major_frame = frame
        now = self.begun = self.loop.now()
        self.retire()
        for vcpu in [vcpu for vcpu in self.loop.run_queue if vcpu.unit.algorithm is self]:
            self.loop.park(vcpu)
        for pcpu in self.pcpus:
            if pcpu.current is not None:
                self.loop.expire(pcpu, now)
        self._turn(now)


def _signed(value: int) -> int:
    """Return a 64-bit number as s_time_t has it."""
    return value - (1 << 64) if value >> 63 else value
