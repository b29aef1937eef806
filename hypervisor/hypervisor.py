"""The hypervisor: its parts put together, the hypercall table, the host's life."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.callback import CallbackOps
from hypervisor.console_io import ConsoleIo
from hypervisor.domain import Domain
from hypervisor.domain_ops import DomainOps
from hypervisor.domctl import DomctlOps
from hypervisor.emulator.vcpu import EmulatedVCpu
from hypervisor.errors import HypercallError
from hypervisor.event_channel import EventChannelOps
from hypervisor.grant_table import GrantTableOps
from hypervisor.iommu import Iommu
from hypervisor.log import WARNING, XenLog
from hypervisor.mm import MemoryManager
from hypervisor.multicall import MulticallOps
from hypervisor.options import XenOptions
from hypervisor.other_calls import OtherCalls
from hypervisor.physdev import PhysdevOps
from hypervisor.pirq import Pirqs
from hypervisor.platform_op import PlatformOps
from hypervisor.preempt import Preemption
from hypervisor.python_vcpu import PythonVCpu
from hypervisor.sched import Policy, Scheduler
from hypervisor.sched.charges import install as install_charges
from hypervisor.sched.costs import Costs
from hypervisor.sched.schedulers import ALGORITHMS, DEFAULT
from hypervisor.sched_op import SchedOps
from hypervisor.sysctl import SysctlOps
from hypervisor.time import GuestTime, unknown_op
from hypervisor.trap_ops import TrapOps
from hypervisor.vcpu_op import VcpuOps
from hypervisor.version import VersionOps

if TYPE_CHECKING:
    from hypervisor.emulator.processor import Processor
    from hypervisor.machine.machine import Machine
    from hypervisor.mm.boot_memory import BootMemory
    from hypervisor.tape import Tape
    from hypervisor.trace import Emit
    from hypervisor.vcpu import VCpu

NR_HYPERCALLS = 64

Handler = Callable[["VCpu", int, int, int, int, int], int]
"""A hypercall: the calling vCPU and five raw 64-bit registers in, the signed result out. Never blocks.

Raises HypercallError for a guest's mistake, and `preempt.Continuation` when a long operation makes room for others."""


class Hypervisor:
    """One running Xen on one machine.

    `trace` is the emitter of a `TraceWriter`, or None; with its `tape` some records are written faster.
    `console` receives what Xen and (through console_io) dom0 print on the host's serial line. `scheduler` is one of
    `sched.schedulers.ALGORITHMS`; a `policy` says who runs instead of it. `options` is what Xen's command line says,
    `boot` where things lie in memory at first.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        scheduler: str = "",
        policy: Policy | None = None,
        costs: Costs | None = None,
        trace: Emit | None = None,
        tape: Tape | None = None,
        console: Callable[[bytes], None] | None = None,
        options: XenOptions | None = None,
        boot: BootMemory | None = None,
    ) -> None:
        self.machine = machine
        self.memory = machine.memory
        self.clock = machine.clock
        self.timers = machine.timers
        costs = costs or Costs()
        self.trace = trace
        self.tape = None if trace is None or self.clock.real or costs.has_extras else tape
        """For the records of what happens most, where time moves only when the pCPU loop and hypercalls say so."""
        self.traces_threads = False
        """Whether guests are to tell the trace of their threads (`tracepoints.THREAD`)."""
        self.console = console or (lambda data: None)
        self.options = options or XenOptions()
        self.domains: dict[int, Domain] = {}
        self._processor: Processor | None = None
        self.stopped = False
        """The hardware domain has shut the host down."""
        self.shutdown_reason = -1
        self.sleeping = False
        """The host waits for the outside; whatever makes something runnable must call `interrupt_idle`."""
        self.interrupt_idle: Callable[[], None] = lambda: None
        """Called when something becomes runnable: ends the sleep of an idle host."""

        wanted = policy.scheduler if policy is not None else scheduler or self.options.scheduler
        algorithm = ALGORITHMS.get(wanted, ALGORITHMS[DEFAULT])
        self.sched = Scheduler(self, machine.nr_pcpus, policy, costs, algorithm)
        self.now = self.sched.now
        self.xen_log = XenLog(lambda data: self.console(data), self.now, self.options)
        self.preempt = Preemption(self)
        self.pirqs = Pirqs(self)
        self.events = EventChannelOps(self)
        self.time = GuestTime(self)
        self.mm = MemoryManager(self, boot)
        self.frames = self.mm.frames
        self.grants = GrantTableOps(self)
        self.domain_ops = DomainOps(self)
        self.iommu = Iommu(self)
        self.console_io = ConsoleIo(self)
        self.domctl = DomctlOps(self)
        self.table: list[Handler] = [unknown_op] * NR_HYPERCALLS
        parts = (
            self.events,
            self.time,
            self.mm,
            self.grants,
            self.console_io,
            CallbackOps(self),
            TrapOps(self),
            SchedOps(self),
            VcpuOps(self),
            VersionOps(self, self.options.text.encode()),
            PhysdevOps(self),
            PlatformOps(self),
            self.domctl,
            SysctlOps(self),
            MulticallOps(self),
            OtherCalls(self),
        )
        for part in parts:
            for nr, handler in part.hypercalls.items():
                self.table[nr] = handler
        if self.sched.costs.has_extras:
            install_charges(self)

    # -- privilege ------------------------------------------------------------------------------------------------

    def may_control(self, caller: Domain, target: Domain) -> bool:
        """Whether `caller` may act on `target`'s behalf: itself, a privileged domain, or the one it is the stub of."""
        return caller is target or caller.is_privileged or caller.target is target

    def domain(self, domid: int) -> Domain:
        """Return a domain by its number. Raises HypercallError(ESRCH)."""
        domain = self.domains.get(domid)
        if domain is None:
            raise HypercallError(errno.ESRCH)
        return domain

    def resolve(self, vcpu: VCpu, domid: int) -> Domain:
        """Return the domain that a guest names: DOMID_SELF, or a number. Raises HypercallError(ESRCH)."""
        return vcpu.domain if domid == xen.DOMID_SELF else self.domain(domid)

    # -- vCPUs ----------------------------------------------------------------------------------------------------

    def make_vcpu(self, domain: Domain, vcpu_id: int) -> VCpu:
        """Make a vCPU of the kind that the domain's kernel needs."""
        make = EmulatedVCpu if domain.image is None else PythonVCpu
        vcpu = make(domain, vcpu_id)
        self.sched.insert(vcpu)
        return vcpu

    def processor(self) -> Processor:
        """Return the CPU emulator, which is made when the first machine-code vCPU runs.

        Raises DeviceError, with a sentence, if that cannot be.
        """
        if self._processor is None:
            # Only now, as nothing else needs it to be installed.
            from hypervisor.emulator.processor import Processor

            self._processor = Processor(self)
        return self._processor

    @property
    def processor_frames(self) -> int:
        """How many frames the CPU emulator has taken for good."""
        return 0 if self._processor is None else self._processor.segments.FRAMES

    def forget_root(self, mfn: int) -> None:
        """Take note that a frame becomes the root of page tables, or is none any more: what was known of it is void."""
        if self._processor is not None:
            self._processor.forget_root(mfn)

    def stop(self) -> None:
        """Let the pCPU loop end before anything else happens: it looks up for a timer, and so one seems to be due."""
        self.stopped = True
        self.timers.next_deadline = -1

    def switch_off(self) -> None:
        """Cut the power: no guest code runs any more, not even what Python would run of it when it clears up."""
        self.stop()
        for domain in self.domains.values():
            for vcpu in domain.online_vcpus():
                vcpu.halt()
            image, domain.image = domain.image, None
            if image is not None:
                image.unload()

    def log(self, text: str, level: int = WARNING, *, guest: bool = False) -> None:
        """Print lines on the host's console, as Xen does; `guest`: a guest has provoked them."""
        self.xen_log.printk(text, level, guest=guest)
