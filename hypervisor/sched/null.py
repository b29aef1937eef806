"""null: a pCPU of its own for every vCPU, and nothing else (xen/common/sched/null.c).

A vCPU that comes up gets a free pCPU and keeps it until it goes down: nobody takes turns, and nothing is decided. Those
for which there is none wait until one becomes free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from hypervisor.abi import domctl
from hypervisor.sched.algorithm import MS, Algorithm, Unit
from hypervisor.vcpu import VPF_DOWN

if TYPE_CHECKING:
    from hypervisor.sched.pcpu import PCpu
    from hypervisor.sched.scheduler import Scheduler
    from hypervisor.vcpu import VCpu


class Null(Algorithm):
    """The scheduler."""

    name = "null"
    title = "null Scheduler"
    sched_id: ClassVar[int] = domctl.XEN_SCHEDULER_NULL
    hears_wakes = True

    SLICE_NS = 100 * MS
    """Nobody wants to have its place: it is only how often the simulator looks."""

    def __init__(self, loop: Scheduler) -> None:
        super().__init__(loop)
        self.assigned: dict[PCpu, Unit] = {}

    def remove_pcpu(self, pcpu: PCpu) -> None:
        """Its vCPU waits for another one."""
        self.assigned.pop(pcpu, None)
        super().remove_pcpu(pcpu)

    def add_pcpu(self, pcpu: PCpu) -> None:
        """Take a pCPU in: somebody may wait for it."""
        super().add_pcpu(pcpu)
        self._serve(self.loop.now())

    def remove_unit(self, vcpu: VCpu) -> None:
        """Forget a vCPU: its pCPU is free."""
        super().remove_unit(vcpu)
        self._release(vcpu.unit, self.loop.now())

    def place(self, unit: Unit) -> None:
        """A vCPU runs where it is assigned; an affinity that forbids that pCPU moves it to a free one."""
        super().place(unit)
        pcpu = self._pcpu_of(unit)
        if pcpu is not None and not unit.vcpu.cpus >> pcpu.cpu_id & 1:
            del self.assigned[pcpu]
            pcpu = self._assign(unit)
        unit.vcpu.cpus = 0 if pcpu is None else 1 << pcpu.cpu_id

    def _pcpu_of(self, unit: Unit) -> PCpu | None:
        return next((pcpu for pcpu, other in self.assigned.items() if other is unit), None)

    def _assign(self, unit: Unit) -> PCpu | None:
        allowed = unit.hard & self.cpu_mask
        free = [pcpu for pcpu in self.pcpus if pcpu not in self.assigned and allowed >> pcpu.cpu_id & 1]
        if not free:
            return None
        liked = [pcpu for pcpu in free if unit.soft >> pcpu.cpu_id & 1]
        pcpu = unit.pcpu if unit.pcpu in free else (liked or free)[0]
        assert pcpu is not None
        self.assigned[pcpu] = unit
        unit.pcpu = pcpu
        unit.vcpu.cpus = 1 << pcpu.cpu_id
        return pcpu

    def _release(self, unit: Unit, now: int) -> None:
        pcpu = self._pcpu_of(unit)
        if pcpu is not None:
            del self.assigned[pcpu]
            unit.vcpu.cpus = 0
            self._serve(now)

    def _serve(self, now: int) -> None:
        """Give free pCPUs to those that wait, in the order in which they came into the pool."""
        for unit in self.units:
            if unit.vcpu.parked and self._assign(unit) is not None:
                self.loop.unpark(unit.vcpu, now)

    def wake(self, vcpu: VCpu, now: int) -> None:
        """Find a pCPU for a vCPU that has come up."""
        unit = vcpu.unit
        if self._pcpu_of(unit) is None and self._assign(unit) is None:
            self.loop.park(vcpu)

    def sleep(self, vcpu: VCpu, now: int) -> None:
        """One that goes down gives its pCPU back."""
        if vcpu.pause_flags & VPF_DOWN:
            self._release(vcpu.unit, now)

    def descheduled(self, pcpu: PCpu, vcpu: VCpu, now: int) -> None:
        """One that has gone down gives its pCPU back; one whose pCPU has been taken away looks for another."""
        if vcpu.pause_flags & VPF_DOWN:
            self._release(vcpu.unit, now)
        elif vcpu.queued and not vcpu.parked and self._pcpu_of(vcpu.unit) is None and self._assign(vcpu.unit) is None:
            self.loop.park(vcpu)

    def pick(self, pcpu: PCpu, ready: Sequence[VCpu], now: int) -> VCpu:
        """Take the one whose pCPU it is: there is only one."""
        return ready[0]

    def slice(self, pcpu: PCpu, vcpu: VCpu, now: int) -> int:
        """Go on."""
        return self.SLICE_NS
