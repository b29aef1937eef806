"""More than one vCPU: each runs the same loop over the same ready threads.

Code between two waits is atomic for all vCPUs of a host (one executes at a time), so threads share everything without
locks and may continue on another vCPU than the one on which they waited. What several vCPUs give is more of the
processor: while a thread computes on one, the others run the rest. A vCPU with nothing to do blocks; one that goes on
computing while threads are ready interrupts it (an IPI is an event channel to oneself).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from guest_kernel.errors import XenError
from guest_kernel.run_loop import run_threads
from guest_kernel.symbols import MAX_VCPUS, SYMBOLS
from hypervisor.abi.cpu import Cpu, Probe, Run
from hypervisor.abi.errno import ENOENT
from hypervisor.abi.sched import SCHEDOP_block
from hypervisor.abi.vcpu import VCPUOP_initialise, VCPUOP_is_up, VCPUOP_up
from hypervisor.abi.xen import (
    FLAT_KERNEL_CS,
    FLAT_KERNEL_SS,
    HYPERVISOR_sched_op,
    HYPERVISOR_vcpu_op,
    VGCF_in_kernel,
    vcpu_guest_context,
)

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel

_RFLAGS = 0x202


def count_vcpus(cpu: Cpu) -> int:
    """Return how many vCPUs the domain has, by asking for each until one is missing."""
    for vcpu_id in range(1, MAX_VCPUS):
        result = cpu.hypercall(HYPERVISOR_vcpu_op, VCPUOP_is_up, vcpu_id, 0)
        if result == -ENOENT:
            return vcpu_id
        if result < 0:
            raise XenError(-result, f"VCPUOP_is_up of vCPU {vcpu_id}")
    return MAX_VCPUS


class CurrentCpu:
    """The vCPU that executes at the moment, for a kernel that has several: as `hypervisor.abi.cpu.Cpu`."""

    def __init__(self, boot: Cpu) -> None:
        self.active = boot
        self._probe = None if boot.trace is None else CurrentProbe(self)
        self.text: dict[int, Callable[..., Any]] = boot.text

    @property
    def vcpu_id(self) -> int:
        """The number of the vCPU."""
        return self.active.vcpu_id

    @vcpu_id.setter
    def vcpu_id(self, value: int) -> None:
        raise AttributeError("the vCPU that executes has the number that it has")

    @property
    def trace(self) -> Probe | None:
        """The simulator's probe."""
        return self._probe

    @trace.setter
    def trace(self, value: Probe | None) -> None:
        raise AttributeError("the probe belongs to the simulator")

    @property
    def traces_threads(self) -> bool:
        """Whether the probe wants to hear of threads."""
        return self.active.traces_threads

    @traces_threads.setter
    def traces_threads(self, value: bool) -> None:
        raise AttributeError("the probe belongs to the simulator")

    def hypercall(self, nr: int, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0, a5: int = 0, /) -> int:
        """Enter Xen from the vCPU that executes."""
        return self.active.hypercall(nr, a1, a2, a3, a4, a5)

    def view(self, address: int, size: int = 4096, /, write: bool = True) -> memoryview:
        """Return memory at a virtual address: all vCPUs share their page tables."""
        return self.active.view(address, size, write)

    def rdtsc(self) -> int:
        """Return the time-stamp counter of the vCPU that executes."""
        return self.active.rdtsc()

    def inl(self, port: int) -> int:
        """Read an I/O port."""
        return self.active.inl(port)

    def outl(self, port: int, value: int) -> None:
        """Write an I/O port."""
        self.active.outl(port, value)


class CurrentProbe:
    """The probe of the vCPU that executes (`hypervisor.abi.cpu.Probe`)."""

    def __init__(self, current: CurrentCpu) -> None:
        self._current = current

    def __call__(self, kind: int, *fields: Any) -> None:
        """Write a record."""
        self._active()(kind, *fields)

    def bind(self, kind: int, *fields: Any) -> Callable[..., None]:
        """Return a function that writes records of one shape, each for the vCPU that then executes."""
        return self._dispatch(lambda: self._active().bind(kind, *fields))

    def bind_each(self, kind: int, *fields: Any) -> Callable[[Sequence[int]], None]:
        """Return a function that writes many records of one shape, for the vCPU that then executes."""
        return self._dispatch(lambda: self._active().bind_each(kind, *fields))

    def _dispatch(self, bind: Callable[[], Callable[..., None]]) -> Callable[..., None]:
        """Return a function that calls what has been bound for the vCPU that then executes."""
        bound: dict[int, Callable[..., None]] = {}

        def write(*values: Any) -> None:
            vcpu_id = self._current.active.vcpu_id
            if vcpu_id not in bound:
                bound[vcpu_id] = bind()
            bound[vcpu_id](*values)

        return write

    def _active(self) -> Probe:
        probe = self._current.active.trace
        assert probe is not None, "all vCPUs have a probe, or none has"
        return probe


class Smp:
    """The vCPUs of a domain that has several."""

    def __init__(self, kernel: Kernel, current: CurrentCpu, count: int) -> None:
        self._kernel = kernel
        self._current = current
        self.count = count
        self._idle: list[int] = []
        """vCPUs that are blocked, the one that blocked last at the end."""
        self._ipi: dict[int, int] = {}

    def run(self, cpu: Cpu) -> Run:
        """Run threads on `cpu` for ever."""
        kernel, current, idle = self._kernel, self._current, self._idle
        ready = kernel.scheduler.ready
        vcpu_id = cpu.vcpu_id
        code = run_threads(kernel.scheduler)
        current.active = cpu
        try:
            for work in code:
                if work is ready:
                    # (Who is woken has to get to know that it is not idle any more, so it blocks by itself.)
                    cpu.hypercall(HYPERVISOR_sched_op, SCHEDOP_block)
                    idle.append(vcpu_id)
                    yield 0
                else:
                    if ready and idle:
                        self._kick()
                    yield work
                current.active = cpu
                if vcpu_id in idle:
                    idle.remove(vcpu_id)
        finally:
            code.close()

    def _kick(self) -> None:
        """Interrupt one idle vCPU: there is work for it. The one that blocked last has the warmest cache."""
        self._kernel.events.notify(self._ipi[self._idle.pop()])

    def enter_upcall(self, cpu: Cpu, upcall: Callable[[], None]) -> Callable[[], None]:
        """Return `upcall` as code of `cpu`."""
        current = self._current

        def entered() -> None:
            current.active = cpu
            upcall()

        return entered

    def start(self, root: int) -> None:
        """Bring the other vCPUs up, on the page tables whose root is the machine frame `root`. Raises XenError."""
        kernel = self._kernel
        kernel.cpu.text[SYMBOLS["secondary_startup"]] = self._secondary
        self._ipi[0] = kernel.events.bind_ipi(0, _interrupted)
        pages = kernel.mm.alloc_pages(-(-vcpu_guest_context.size // 4096))
        mapping = kernel.mm.map_machine([page.mfn for page in pages])
        for vcpu_id in range(1, self.count):
            context = vcpu_guest_context.pack(
                flags=VGCF_in_kernel,
                user_regs={
                    "rip": SYMBOLS["secondary_startup"],
                    "cs": FLAT_KERNEL_CS,
                    "ss": FLAT_KERNEL_SS,
                    "rflags": _RFLAGS,
                },
                kernel_ss=FLAT_KERNEL_SS,
                event_callback_eip=SYMBOLS[f"event_callback.{vcpu_id}"],
                ctrlreg=(0, 0, 0, root << 12),
            )
            for number, view in enumerate(mapping):
                part = context[number * 4096 : (number + 1) * 4096]
                view[: len(part)] = part
            kernel.hypercalls.vcpu(VCPUOP_initialise, vcpu_id, mapping.va, "VCPUOP_initialise")
            kernel.hypercalls.vcpu(VCPUOP_up, vcpu_id, 0, "VCPUOP_up")
        kernel.mm.unmap_foreign(mapping)
        kernel.mm.free_pages_of(pages)

    def _secondary(self, cpu: Cpu) -> Run:
        """Run a secondary vCPU: what lies at `secondary_startup`."""
        kernel = self._kernel
        self._current.active = cpu
        vcpu_id = cpu.vcpu_id
        kernel.install_upcall(cpu)
        kernel.timers.start(vcpu_id)
        self._ipi[vcpu_id] = kernel.events.bind_ipi(vcpu_id, _interrupted)
        kernel.events.enable(vcpu_id)
        yield from self.run(cpu)


def _interrupted() -> None:
    """Handle an IPI: being awake is all that it is for."""
