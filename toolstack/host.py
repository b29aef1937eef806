"""A whole host: machine, hypervisor, dom0 with drivers and daemons, and the domains that it is told to run."""

from __future__ import annotations

import errno
import gc
import os
import time as wall
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID, uuid5

import attrs
import trio

from backends.block import BlockBack
from backends.net import Bridge, NetBack
from backends.xenstored.daemon import XenStored
from guest_kernel.guest import Guest
from guest_kernel.image import PythonKernelImage
from guest_kernel.kernel import Kernel
from guest_kernel.net.addresses import mac_from_text
from guest_kernel.xenbus.driver import XenbusDriver
from hypervisor.abi.device import nic_irq, socket_irq
from hypervisor.dom0_build import BuildError, construct_dom0
from hypervisor.domain import Domain
from hypervisor.errors import HypercallError, InvariantError
from hypervisor.hypervisor import Hypervisor
from hypervisor.machine.backing import Backing, NoMedium, RemoteBacking
from hypervisor.machine.disk import DiskController
from hypervisor.machine.machine import Machine
from hypervisor.machine.nic import NetworkCard
from hypervisor.machine.serial import SerialCard
from hypervisor.machine.socket_card import SocketCard
from hypervisor.sched.algorithm import NEVER
from hypervisor.sched.costs import CostError, Costs, costs_for_trace, load_costs
from hypervisor.sched.policy import Policy, parse_policy
from hypervisor.sched.schedulers import DEFAULT
from hypervisor.state_trace import StateTrace
from hypervisor.trace import Emit, TraceError, TraceWriter
from toolstack.builder import python_kernel
from toolstack.console_log import ConsoleLog
from toolstack.control_domain import ControlDomain
from toolstack.cpupools import PoolSpec
from toolstack.disk_spec import DiskSpec
from toolstack.errors import GuestHangError, ToolstackError, UsageError
from toolstack.faults.injector import Injector
from toolstack.faults.spec import FaultSpec
from toolstack.leaks import find_leaks, ports_in_use
from toolstack.lifecycle import CRASH, NOT_STARTED, REASONS, DomainPlan, Lifecycle, LiveDomain
from toolstack.nbd_export import ExportDoor, ExportSpec
from toolstack.outside import Outside
from toolstack.pace import Pace
from toolstack.preparation import (
    MAX_DISKS,
    SECTOR,
    UUID_SPACE,
    ImageError,
    ImageKey,
    NicSpec,
    Preparation,
    check_processors,
    forget_image,
    open_image,
    prepare,
)
from toolstack.profiling.profile import Profile
from toolstack.quick_ear import QuickEar, follow
from toolstack.report import ABORTED, DomainResult, HostResult, Usage
from toolstack.store_trace import StoreWatch
from toolstack.tap import TapWire
from toolstack.vif_spec import VifSpec, generate_mac
from toolstack.watchdog import DEFAULT_LIMIT, Watchdog
from toolstack.xl_config import DOM0_NAME, DomainConfig, default_dom0_config

XEN_MEMORY_MIB = 16
"""What Xen itself takes of a host, when nobody says how large that is."""
OVERHEAD_KIB_PER_DOMAIN = 256
GC_THRESHOLDS = (50_000, 20, 100)
"""How rarely Python is to look for cycles: what a host allocates lives as long as its domains do, and with a thousand
of them looking again and again at all of it would be a third of the work."""
KEPT_LIVES = 16
"""Lives of a domain that is preserved and restarted (rename-restart) for which a host of automatic size has room."""
KEPT_MIB = 4096
"""... as long as that is not more than this: Xen's books of the memory are not free."""


class Host:
    """One host, to be switched on once.

    `outside` is what its serial lines are connected to (default: nothing but the logs). `consoles` shows what the
    domains print (None: nobody looks). `hang_limit` is after how many seconds of wall-clock time a guest that does not
    yield is ended; `heartbeat` is called as long as that can be done (see `Watchdog`). `run` is to be awaited under
    trio; everything else may be called from other trio tasks meanwhile.
    """

    def __init__(
        self,
        *,
        memory_mib: int | None = None,
        pcpus: int = 1,
        time: str = "virtual",
        seed: int = 0,
        scheduler: str = "",
        pools: Sequence[PoolSpec] = (),
        schedule: str = "",
        policy: Policy | None = None,
        costs: str = "",
        nics: Sequence[NicSpec] = (),
        capture: Path | None = None,
        exports: Sequence[ExportSpec] = (),
        trace_file: Path | None = None,
        trace_state: bool = False,
        trace_threads: bool = False,
        profile: bool = False,
        consoles: ConsoleLog | None = None,
        faults: Sequence[FaultSpec] = (),
        dom0: DomainConfig | None = None,
        outside: Outside | None = None,
        hang_limit: float = DEFAULT_LIMIT,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self.memory_mib = memory_mib
        self.pcpus = pcpus
        self.real_time = time == "real"
        self.seed = seed
        self.schedule = schedule
        self.nics = list(nics)
        if not self.real_time and any(nic.tap for nic in self.nics):
            raise UsageError("a TAP interface leads to a network in real time: --nic BRIDGE=tap:NAME needs --time real")
        self.capture = capture
        self.exports = list(exports)
        """Disks that are served to clients outside."""
        self.trace_file = trace_file
        self.trace_state = trace_state
        self.trace_threads = trace_threads
        if profile and self.real_time:
            raise UsageError("a profile is of virtual time: --profile does not go with --time real")
        self.consoles = consoles or ConsoleLog(lambda line: None)
        self.outside = outside or Outside()
        self.outside.consoles = self.consoles
        self.dom0 = dom0 or default_dom0_config()
        self.hang_limit = hang_limit
        self.heartbeat = heartbeat
        try:
            self.costs = load_costs(costs) if costs else Costs()
        except CostError as error:
            raise UsageError(str(error)) from None
        self.policy = _policy(schedule) if schedule else policy
        if scheduler and self.policy is not None:
            raise UsageError(f"--schedule {schedule} says who runs, so that --scheduler {scheduler} has no say")
        self.scheduler = self.policy.scheduler if self.policy is not None else scheduler or DEFAULT
        self._names = {0: DOM0_NAME}
        self.profile = Profile(self.costs) if profile else None
        """Where virtual time goes, if that is to be added up; complete when `run` has returned."""
        self.pools = list(pools)
        if self.pools and self.policy is not None:
            raise UsageError(f"--schedule {schedule} says who runs, so that a cpupool's scheduler has no say")
        self.hv: Hypervisor
        self.lifecycle: Lifecycle | None = None
        self.xenstored: XenStored
        self._ports_before = 0
        self.results: dict[str, DomainResult] = {DOM0_NAME: DomainResult(DOM0_NAME)}
        self.kernels: dict[int, Kernel] = {}
        """The kernels of the domains that run, by number."""
        self._net_backs: list[NetBack] = []
        """All network backends that there have been: they keep the accounts of traffic."""
        self.is_on = False
        """Whether everything has been checked, and there is a host to be shut down."""
        self.hears_interrupts = False
        """Whether Ctrl-C calls `interrupt`, and does not raise KeyboardInterrupt wherever the program is."""
        self.faults = list(faults)
        """What is to break in the run."""
        self.injector: Injector | None = None
        self.interrupts = 0
        """How often a person has asked for the end."""
        self._obeyed = 0
        self._token: trio.lowlevel.TrioToken | None = None
        self._accounted: set[int] = set()
        self._disks: dict[int, DiskController] = {}
        """The disk controllers that are plugged in, by unit, and whose they are."""
        self._disk_owners: dict[int, tuple[str, DiskSpec]] = {}
        self._spare_disks: dict[DiskSpec, int] = {}
        """Controllers that driver domains have and nobody uses: by the domain, the image, whether it is written to."""
        self._socket_cards: dict[int, SocketCard] = {}
        self._ear = QuickEar()
        self._asked_idle = False
        self._wake = trio.Event()
        self._stack = ExitStack()
        self.observer: Emit | None = None
        """Is told of each record that a trace would hold, as it happens; to be set before `run`."""
        self._trace: TraceWriter | None = None
        self._state_trace: StateTrace | None = None

    # -- the run --------------------------------------------------------------------------------------------------

    async def run(self, configs: Sequence[DomainConfig]) -> HostResult:
        """Switch the host on and run the domains until they have ended. Raises `UsageError`, InvariantError."""
        began = wall.monotonic_ns()
        self.results |= {config.name: DomainResult(config.name) for config in configs}
        self.outside.check()
        self.injector = self._make_injector(configs)
        check_processors(configs, self.pcpus, self.scheduler, self.pools)
        prepared = prepare(
            configs,
            self.nics,
            self.seed,
            capture=self.capture,
            exports=self.exports,
            hang_limit=self.hang_limit,
            heartbeat=self.heartbeat,
        )
        self.is_on = True
        with self._stack:
            self._stack.callback(prepared.close)
            self._stack.callback(self._ear.close)
            self._stack.callback(gc.set_threshold, *gc.get_threshold())
            gc.set_threshold(*GC_THRESHOLDS)
            self._assemble(prepared)
            self._stack.callback(self.card.unplug_all)
            self._stack.callback(self.hv.switch_off)
            with Watchdog(
                lambda: self.hv.sched.progress,
                self._running_name,
                self._on_hang,
                limit=self.hang_limit,
                heartbeat=self.heartbeat,
            ):
                await self._live()
            self._token = None
            if self._state_trace is not None:
                self._state_trace.finish()
            if self.profile is not None:
                self.profile.finish()
            self._finish_dom0()
        failures = [self._trace_failure(), self.outside.failure]
        failures += [wire.failure for _, wire in prepared.wires]
        failures += [capture.failure for _, capture in prepared.captures]
        return HostResult(
            domains=list(self.results.values()),
            virtual_ns=self.hv.clock.now,
            wall_ns=wall.monotonic_ns() - began,
            real_time=self.real_time,
            interrupted=self.interrupts > 0,
            unfinished=[failure for failure in failures if failure],
            faults=[] if self.injector is None else self.injector.reports,
        )

    def interrupt(self) -> None:
        """Ask for the end, as a person at the keyboard: the guests shut down; asked again, they are destroyed.

        Safe in a signal handler: it is done between two stretches of guest code.
        """
        self.interrupts += 1
        if self._token is not None:
            self._token.run_sync_soon(self.wake, idempotent=True)

    # -- looking on ---------------------------------------------------------------------------------------------------

    def dom0_drivers(self) -> list[XenbusDriver]:
        """Return the drivers of dom0: they keep books of the devices that they serve."""
        kernel = self.kernels.get(0)
        return [] if kernel is None else list(kernel.drivers)

    def names(self) -> Mapping[int, str]:
        """Return the names of all domains that there have been, by their numbers."""
        return self._names

    def guests_that_run(self) -> tuple[int, int]:
        """Return how many of the configured guests run, and how many there are."""
        live = [] if self.lifecycle is None else self.lifecycle.live.values()
        return sum(not domain.over for domain in live), len(self.results) - 1

    # -- the run, continued -------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have a sleeping host look at itself again: something outside has changed."""
        self._wake.set()

    def _obey_interrupts(self) -> None:
        while self._obeyed < self.interrupts and self.lifecycle is not None:
            self._obeyed += 1
            self._type("shutdown\n" if self._obeyed == 1 else "destroy\n")

    def _type(self, text: str) -> None:
        """Type on the host's serial console."""
        self.hv.console_io.feed(text.encode())

    async def _live(self) -> None:
        """Run until dom0 has shut the host down, with those outside who listen to it and talk to it."""
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            self.outside.start(nursery, self)
            try:
                await self._drain()
            except (Exception, KeyboardInterrupt) as error:
                failure = error  # to be raised as it is, not as one of a group
            await self.outside.finish()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _drain(self) -> None:
        """Run the pCPUs until dom0 has shut the host down."""
        hv, pace = self.hv, Pace()
        self._token = trio.lowlevel.current_trio_token()
        while not hv.stopped:
            if self._obeyed < self.interrupts:
                self._obey_interrupts()
            try:
                until = hv.sched.drain(pace.start())
                pace.stop()
            except GuestHangError as error:
                self._blame(str(error))
                continue
            except KeyboardInterrupt:
                if not self.hears_interrupts or hv.sched.running is None:
                    raise
                # No person has caused this one: a guest has raised it.
                name = self._name_of(hv.sched.running.domain.domid)
                self.results[name].message = f"{name} crashed: its code has raised KeyboardInterrupt"
                self._blame("KeyboardInterrupt")
                continue
            if hv.stopped:
                break
            caught = self._ear.catch_up()
            if until == 0:
                await trio.lowlevel.checkpoint()
            elif caught or self._ear.hear(until - hv.clock.read() if hv.clock.real else NEVER):
                continue
            elif hv.clock.real:
                await self._sleep_until(until)
            elif self.outside.may_speak:
                await self._sleep_until(NEVER)
            else:
                self._idle()

    async def _sleep_until(self, until: int) -> None:
        """Wait for the next timer (in real time), or for something to become runnable from outside."""
        self._wake = trio.Event()
        self.hv.interrupt_idle = self._wake.set
        self.hv.sleeping = True
        seconds = trio_seconds(until, self.hv.clock.read())
        with trio.move_on_after(seconds):
            await self._wake.wait()
        self.hv.sleeping = False

    def _idle(self) -> None:
        """In virtual time: nothing can happen any more, for there is no outside. End the host in order."""
        if self._asked_idle or self.lifecycle is None:
            if self._gets_no_processor(0):
                raise UsageError(f"the scheduler {self.scheduler!r} gives {DOM0_NAME} no processor: nothing goes on")
            raise InvariantError("the host is idle for ever, and dom0 does not end it")
        self._asked_idle = True
        for live in self.lifecycle.live.values():
            if not live.over and not live.plan.config.driver_domain:
                self.results[live.plan.config.name].message = f"{live.name}: {self._why_idle(live.domid)}"
        self._type("shutdown\n")

    def _why_idle(self, domid: int) -> str:
        """Say what a guest waits for in vain: a processor, or a device that it does not have, if that is known."""
        if self._gets_no_processor(domid):
            return f"its scheduler, {self.hv.sched.algorithm_of(self.hv.domains[domid]).name}, gives it no processor"
        kernel = self.kernels.get(domid)
        if kernel is not None and kernel.block.wanted:
            return _waits_for("disk", kernel.block.wanted, kernel.block.devices)
        net = None if kernel is None else kernel.__dict__.get("net")
        if net is not None and net.wanted:
            return _waits_for("interface", net.wanted, net.interfaces)
        if kernel is not None and kernel.console.readers:
            return "it waits for a line of input on its console, and nobody types one"
        return "everything in this guest waits for something that cannot happen any more"

    def _gets_no_processor(self, domid: int) -> bool:
        """Whether a domain wants to run and its scheduler will not let it."""
        domain = self.hv.domains.get(domid)
        return domain is not None and any(vcpu.parked for vcpu in domain.online_vcpus())

    # -- assembly -------------------------------------------------------------------------------------------------

    def _assemble(self, prepared: Preparation) -> None:
        self._prepared = prepared
        machine = Machine(memory_mib=self._memory(prepared.plans), pcpus=self.pcpus, real_time=self.real_time)
        trace = self._open_trace()
        tape = None if trace is None or self._observes else trace.tape
        emit = self._observed(None if trace is None else trace.emit)
        self.hv = hv = Hypervisor(
            machine,
            scheduler=self.scheduler,
            policy=self.policy,
            costs=self.costs,
            trace=emit,
            tape=tape,
            console=self._show_host,
        )
        if trace is not None:
            trace.now = hv.now
        hv.traces_threads = self.trace_threads or self.profile is not None
        if self._state_trace is not None:
            self._state_trace.attach(hv)
        if self.injector is not None:
            self.injector.attach(hv)
            self._stack.callback(self.injector.finish)
        for plan in prepared.plans:
            for unit, spec in zip(plan.disk_units, plan.config.disks, strict=True):
                backing = prepared.disks[unit] = self._faulty(plan.config.name, spec, prepared.disks[unit])
                self._plug(unit, backing, plan.config.name, spec)
        for unit, (_, wire) in enumerate(prepared.wires):
            mac = mac_from_text(generate_mac(self.seed, DOM0_NAME, unit))
            card = NetworkCard(machine, unit, wire, mac, hv.iommu.context)
            card.now = hv.now
            hv.iommu.on_release[nic_irq(unit)] = card.reset
            if isinstance(wire, TapWire):
                self.outside.tasks.append(wire.follow)
        for _, capture in prepared.captures:
            capture.now = lambda: machine.clock.wallclock_base + hv.now()
        for unit, door in enumerate(prepared.exports):
            self._plug_socket_card(unit, door)
        self.card = SerialCard(machine, self.outside.panel)
        self.card.rouse = self.wake
        self._build_dom0(prepared)

    def _memory(self, plans: Iterable[DomainPlan]) -> int:
        """Return the size of the host in MiB. Raises `UsageError` if that is too small for its domains."""
        plans = list(plans)
        domains = sum(plan.config.memory for plan in plans)
        overhead = XEN_MEMORY_MIB + (OVERHEAD_KIB_PER_DOMAIN * len(plans) >> 10)
        needed = self.dom0.memory + domains + overhead
        if self.memory_mib is None:
            needed += sum(_kept_mib(plan.config) for plan in plans)
            # Xen keeps books of every frame: 1/512 of memory is the M2P alone.
            return needed + (needed >> 7) + 2
        if self.memory_mib < needed:
            raise UsageError(
                f"too little memory: the host has {self.memory_mib} MiB, and dom0 ({self.dom0.memory} MiB), "
                f"the guests ({domains} MiB) and Xen ({overhead} MiB) want {needed} MiB"
            )
        return self.memory_mib

    def _open_trace(self) -> TraceWriter | None:
        if self.trace_file is None:
            return None
        try:
            file: BinaryIO = self.trace_file.open("wb")
        except OSError as error:
            raise UsageError(f"cannot write the trace {str(self.trace_file)!r}: {error.strerror}") from None
        about: dict[str, Any] = {
            "pcpus": self.pcpus,
            "time": "real" if self.real_time else "virtual",
            "schedule": self.schedule,
        }
        about["scheduler"] = self.scheduler
        about["costs"] = costs_for_trace(self.costs)
        about["preempts"] = self.policy is not None and self.policy.preempts
        self._trace = self._stack.enter_context(TraceWriter(file, seed=self.seed, about=about))
        return self._trace

    @property
    def _observes(self) -> bool:
        """Whether somebody looks at each record as it is made."""
        watching = self.injector is not None and self.injector.needs_records
        return self.trace_state or self.profile is not None or watching or self.observer is not None

    def _observed(self, emit: Emit | None) -> Emit | None:
        """Return an emitter that tells all who want to know of each record; None if nobody does."""
        if emit is not None and self.trace_state:
            self._state_trace = StateTrace(emit)
            emit = self._state_trace.emit
        if self.profile is not None:
            emit = self._profiled(emit)
        if self.observer is not None:
            emit = _told(self.observer, emit)
        if self.injector is not None and self.injector.needs_records:
            emit = self.injector.observed(emit)
        return emit

    def _profiled(self, emit: Emit | None) -> Emit:
        """Return an emitter of records that go to the profile, and to the trace if there is one."""
        assert self.profile is not None
        add = self.profile.add

        def both(domid: int, vcpu_id: int, kind: int, *fields: Any) -> None:
            add(self.hv.now(), domid, vcpu_id, kind, *fields)
            if emit is not None:
                emit(domid, vcpu_id, kind, *fields)

        return both

    def _trace_failure(self) -> str:
        """Say why the trace could not be written to its end; the empty string if it was."""
        if self._trace is None or self._trace.failure is None:
            return ""
        return f"cannot write the trace {str(self.trace_file)!r} to its end: {self._trace.failure.strerror}"

    def _build_dom0(self, prepared: Preparation) -> None:
        hv, config = self.hv, self.dom0
        uuid = uuid5(UUID_SPACE, f"{self.seed}/{DOM0_NAME}")
        image = PythonKernelImage(
            name=DOM0_NAME,
            main=partial(self._control_domain, prepared.plans, uuid),
            drivers=[
                BlockBack,
                partial(NetBack, bridges=tuple(prepared.bridges), nics=prepared.nics(), watches=prepared.watches()),
            ],
        )
        try:
            domain = hv.domain_ops.create(0, max_vcpus=config.maxvcpus, is_privileged=True, handle=uuid.bytes)
            domain.image = image
            for vcpu_id in range(config.maxvcpus):
                hv.domain_ops.add_vcpu(domain, vcpu_id)
            kernel = python_kernel(image)
            construct_dom0(hv, domain, kernel, config.cmdline, None, config.memory << 8)
        except BuildError as error:
            raise UsageError(str(error)) from None
        except HypercallError:
            raise UsageError(f"too little memory: {self.memory_mib} MiB are not enough for Xen and dom0") from None
        self.results[DOM0_NAME].domid = 0
        self.results[DOM0_NAME].lives = 1
        hv.domain_ops.unpause(domain)

    def _control_domain(self, plans: Sequence[DomainPlan], uuid: UUID, kernel: Kernel) -> ControlDomain:
        self._note_kernel(0, kernel)
        return ControlDomain(kernel=kernel, config=self.dom0, uuid=uuid, pools=self.pools, plans=plans, host=self)

    # -- consoles -------------------------------------------------------------------------------------------------

    def _show_host(self, data: bytes) -> None:
        self.consoles.feed_host(DOM0_NAME, data)

    # -- what the simulator does for the toolstack (`lifecycle.Platform`) -----------------------------------------

    def started(self, lifecycle: Lifecycle, xenstored: XenStored) -> None:
        """Take note of the toolstack and the store in dom0."""
        self.lifecycle = lifecycle
        self.xenstored = xenstored
        self._ports_before = ports_in_use(self.hv)
        if self.injector is not None:
            self.injector.dom0_is_up()
        if self._state_trace is not None and self._trace is not None:
            self._state_trace.add(StoreWatch(lambda: self.xenstored.server.store.tree, self._trace.emit))

    def leaks(self) -> list[str]:
        """Return what the guests have left behind, after a run: nothing, or there is a bug."""
        return find_leaks(self.hv, self.xenstored, self._ports_before)

    def load(self, domid: int, image: PythonKernelImage) -> None:
        """Make a new domain's processors execute an image."""

        def main(kernel: Kernel) -> Guest:
            self._note_kernel(domid, kernel)
            return image.main(kernel)  # type: ignore[return-value]

        self._name(domid, image.name)
        self.results[image.name].message = ""  # what was wrong with a former life is over
        self.hv.domains[domid].image = attrs.evolve(image, main=main)

    def load_machine_code(self, domid: int, name: str) -> None:
        """Take note of a new domain whose processors execute what is in its memory."""
        self._name(domid, name)
        self.results[name].message = ""

    def _name(self, domid: int, name: str) -> None:
        self._names[domid] = name
        if self.injector is not None:
            self.injector.appeared(name)

    def _note_kernel(self, domid: int, kernel: Kernel) -> None:
        self.kernels[domid] = kernel
        self._net_backs += [driver for driver in kernel.drivers if isinstance(driver, NetBack)]

    def account(self, live: LiveDomain, reason: str) -> None:
        """Add up what a life of a domain has used, once."""
        if live.domid in self._accounted:
            return
        self._accounted.add(live.domid)
        result = self.results[live.plan.config.name]
        result.domid = live.domid
        result.lives += 1
        result.reason = reason
        domain = self.hv.domains.get(live.domid)
        if domain is not None:
            result.usage.add(usage_of(domain))
            if domain.crash_reason and live.is_machine_code and not result.message:
                # The last line on its console need not say anything of that.
                result.message = f"{live.name} crashed: {domain.crash_reason}"
        result.usage.add(self._traffic(live.domid))
        kernel = self.kernels.pop(live.domid, None)
        if reason == CRASH and kernel is not None and kernel.power.cause:
            result.message = result.message or f"{live.name} crashed: {kernel.power.cause}"
        self.consoles.finish(live.name)

    def failed(self, plan: DomainPlan, message: str) -> None:
        """Note that a domain could not be started."""
        result = self.results[plan.config.name]
        result.reason = result.reason or NOT_STARTED
        result.message = message

    def plug_disk(self, owner: str, disk: DiskSpec) -> int:
        """See `Platform.plug_disk`."""
        unit = next((unit for unit in range(MAX_DISKS) if unit not in self._disks), None)
        if unit is None:
            raise ToolstackError(f"the machine has room for {MAX_DISKS} disks")
        try:
            backing = open_image(owner, disk, self._prepared.users)
        except ImageError as error:
            raise ToolstackError(str(error)) from None
        spare = self._spare_disks.pop(_place(disk), None)
        if spare is not None:
            # The files may have changed since: what was known of them does not count any more.
            self._exchange(spare, backing)
            self._disk_owners[spare] = owner, disk
            return spare
        backing = self._faulty(owner, disk, backing)
        self._prepared.disks.append(backing)
        self._plug(unit, backing, owner, disk)
        return unit

    def _plug(self, unit: int, backing: Backing, owner: str, disk: DiskSpec) -> None:
        controller = DiskController(self.hv.machine, unit, backing, iommu=self.hv.iommu.context)
        controller.now = self.hv.now
        self._disks[unit] = controller
        self._disk_owners[unit] = owner, disk
        self._listen_to(controller)

    def _faulty(self, owner: str, disk: DiskSpec, backing: Backing) -> Backing:
        """Return what stands before a disk whose faults have been ordered."""
        if self.injector is None or isinstance(backing, RemoteBacking):
            return backing
        return self.injector.disk(owner, disk.vdev, backing)

    def _make_injector(self, configs: Sequence[DomainConfig]) -> Injector | None:
        """Return what brings the faults. Raises `UsageError`."""
        if not self.faults:
            return None

        def bridge_of(name: str) -> Bridge | None:
            backs = (driver for driver in self.dom0_drivers() if isinstance(driver, NetBack))
            return next((back.bridges[name] for back in backs if name in back.bridges), None)

        def name_of(domid: int) -> str:
            return self._names.get(domid, "")

        guests = [config.name for config in configs]
        return Injector(self.faults, self.seed, guests, name_of, lambda text: self._type(text + "\n"), bridge_of)

    def _listen_to(self, controller: DiskController) -> None:
        """Hear the answers of a disk's server, if it has one."""
        remote = controller.remote
        if remote is None:
            return
        remote.backing.give_up = lambda: self.interrupts > 1
        if self.real_time:
            self._ear.add(remote)
            self.outside.follow(partial(follow, remote), self)

    def _stop_listening(self, controller: DiskController) -> None:
        remote = controller.remote
        if remote is not None and self.real_time:
            self._ear.remove(remote)
            trio.lowlevel.notify_closing(remote.fileno())

    def unplug_disk(self, unit: int, *, keep: bool) -> None:
        """See `Platform.unplug_disk`."""
        self._account_disk(unit)
        owner, disk = self._disk_owners.pop(unit)
        forget_image(owner, disk, self._prepared.users)
        if keep:
            # Whoever takes the image next finds everything in it.
            self._disks[unit].backing.flush()
            self._spare_disks[_place(disk)] = unit
            return
        controller = self._disks.pop(unit)
        self._prepared.disks.remove(controller.backing)
        self._stop_listening(controller)
        controller.unplug()

    def _plug_socket_card(self, unit: int, door: ExportDoor) -> None:
        card = SocketCard(self.hv.machine, unit, door.listener, reach=self.hv.iommu.reach)
        self.hv.iommu.on_release[socket_irq(unit)] = card.reset
        self._socket_cards[unit] = card
        self._ear.add(card)
        self._stack.callback(card.unplug)
        self.outside.tasks.append(partial(follow, card))
        self.outside.listeners += 1

    def unplug_socket_card(self, unit: int) -> None:
        """See `Platform.unplug_socket_card`."""
        card = self._socket_cards.pop(unit)
        self._ear.remove(card)
        trio.lowlevel.notify_closing(card.fileno())
        card.unplug()
        self._prepared.exports[unit].close()
        self.outside.listeners -= 1

    def resize_disk(self, unit: int, size: int) -> None:
        """See `Platform.resize_disk`."""
        controller = self._disks[unit]
        _, disk = self._disk_owners[unit]
        has = controller.sectors * controller.sector_size
        unit_size = controller.backing.physical_sector_size
        if not size or size % unit_size:
            raise ToolstackError(f"a disk has whole sectors of {unit_size} bytes, so it cannot have {size} bytes")
        if size < has:
            raise ToolstackError(f"{disk.vdev} has {has} bytes already; to make it smaller would cut off what is there")
        if not disk.writable:
            raise ToolstackError(f"{disk.vdev} is read-only, so its image cannot become larger")
        status = controller.resize(size // controller.sector_size)
        if status == errno.EOPNOTSUPP:
            kind = "at an NBD server" if disk.nbd is not None else f"of the format {disk.format!r}"
            raise ToolstackError(f"{disk.vdev} is {kind}, so it keeps its size")
        if status:
            raise ToolstackError(f"{disk.target}: {os.strerror(status)}")

    def check_medium(self, unit: int, target: str) -> None:
        """See `Platform.check_medium`."""
        owner, disk = self._disk_owners[unit]
        users = {key: dict(others) for key, others in self._prepared.users.items()}
        forget_image(owner, disk, users)
        self._open(owner, attrs.evolve(disk, target=target), users).close()

    def change_medium(self, unit: int, target: str) -> None:
        """See `Platform.change_medium`."""
        owner, disk = self._disk_owners[unit]
        self._account_disk(unit)
        forget_image(owner, disk, self._prepared.users)
        self._disk_owners[unit] = owner, attrs.evolve(disk, target="")
        try:
            medium = self._open(owner, attrs.evolve(disk, target=target), self._prepared.users)
        except ToolstackError:
            self._exchange(unit, NoMedium())
            raise
        self._disk_owners[unit] = owner, attrs.evolve(disk, target=target)
        self._exchange(unit, medium)

    @staticmethod
    def _open(owner: str, disk: DiskSpec, users: dict[ImageKey, dict[str, DiskSpec]]) -> Backing:
        try:
            backing = open_image(owner, disk, users)
        except ImageError as error:
            raise ToolstackError(str(error)) from None
        if backing.sector_size > disk.sector_size:
            backing.close()
            has = backing.sector_size
            raise ToolstackError(f"{disk.target} has sectors of {has} bytes, and {disk.vdev} of {disk.sector_size}")
        return backing

    def _exchange(self, unit: int, backing: Backing) -> None:
        """Put another medium into a controller."""
        controller = self._disks[unit]
        self._prepared.disks[self._prepared.disks.index(controller.backing)] = backing
        self._stop_listening(controller)
        controller.exchange(backing)
        self._listen_to(controller)

    def _account_disk(self, unit: int) -> None:
        """Add what a disk has moved since it was asked last to the account of its domain."""
        disk = self._disks[unit]
        nbytes = disk.read_bytes + disk.written_bytes
        disk.read_bytes = disk.written_bytes = 0
        self.results[self._disk_owners[unit][0]].usage.add(Usage(blocks=nbytes // SECTOR, block_bytes=nbytes))

    def plug_vif(self, owner: str, devid: int, vif: VifSpec) -> str:
        """See `Platform.plug_vif`."""
        if vif.bridge not in self._prepared.bridges:
            has = ", ".join(self._prepared.bridges)
            raise ToolstackError(f"this host has no bridge {vif.bridge!r}; there is {has}")
        macs = self._prepared.macs
        if vif.mac in macs:
            raise ToolstackError(f"the MAC address {vif.mac} is already taken")
        mac = vif.mac or generate_mac(self.seed, owner, devid, macs)
        macs.add(mac)
        return mac

    def unplug_vif(self, mac: str) -> None:
        """See `Platform.unplug_vif`."""
        self._prepared.macs.discard(mac)

    def _finish_dom0(self) -> None:
        result = self.results[DOM0_NAME]
        result.reason = REASONS.get(self.hv.shutdown_reason, ABORTED)
        result.usage.add(usage_of(self.hv.domains[0]))
        for unit in self._disk_owners:
            self._account_disk(unit)
        # dom0 ended before these did: it crashed.
        for live in self.lifecycle.live.values() if self.lifecycle is not None else ():
            if not live.over:
                self.account(live, ABORTED)
        for other in self.results.values():
            other.reason = other.reason or NOT_STARTED
        self.consoles.finish_all()
        for crashed in self.results.values():
            if crashed.reason == CRASH and not crashed.message:
                why = self.consoles.last.get(crashed.name)
                crashed.message = f"{crashed.name} crashed{f': {why}' if why else ''}"

    def _traffic(self, domid: int) -> Usage:
        """Return what went over a domain's network interfaces, by the books of the backends that served them."""
        usage = Usage()
        for back in self._net_backs:
            for counters in back.traffic_of(domid):
                usage.packets += counters.tx_packets + counters.rx_packets
                usage.packet_bytes += counters.tx_bytes + counters.rx_bytes
                usage.dropped += counters.tx_dropped + counters.rx_dropped
        return usage

    # -- guests that hang -----------------------------------------------------------------------------------------

    def _running_name(self) -> str | None:
        # Dom0 is not judged: building a very large domain takes it long, and what it runs is no user's code.
        # Machine code cannot keep the processor: it loses it at the end of its time slice.
        vcpu = self.hv.sched.running
        if vcpu is None or vcpu.domain.domid == 0 or vcpu.domain.image is None:
            return None
        return self._name_of(vcpu.domain.domid)

    def _name_of(self, domid: int) -> str:
        return self._names.get(domid, f"d{domid}")

    def _on_hang(self, name: str, where: str) -> None:
        message = f"{name} has not yielded for {self.hang_limit:g} s of wall-clock time, at {where}"
        self.results[name].message = message

    def _blame(self, why: str) -> None:
        """Crash the domain whose vCPU was running when an exception of the watchdog got through all of its code."""
        sched = self.hv.sched
        vcpu = sched.running
        if vcpu is None:
            raise InvariantError(f"a guest hangs, and none was running: {why}")
        sched.running = None
        self.hv.domain_ops.crash(vcpu.domain, why)
        sched.forget(vcpu)


def _told(observer: Emit, emit: Emit | None) -> Emit:
    """Return an emitter of records that go to an observer, and to the trace if there is one."""
    if emit is None:
        return observer

    def both(*record: Any) -> None:
        observer(*record)
        emit(*record)

    return both


def _kept_mib(config: DomainConfig) -> int:
    """Return how much memory the former lives of a domain may come to occupy."""
    actions = (config.on_poweroff, config.on_reboot, config.on_crash, config.on_watchdog)
    if "rename-restart" not in actions:
        return 0
    return min(KEPT_LIVES, max(1, KEPT_MIB // config.memory)) * (config.memory + 1)


def _waits_for(what: str, wanted: Iterable[str], there: Iterable[str]) -> str:
    """Return `it waits for the disk 'xvdb', which it does not have (it has xvda)`."""
    names = ", ".join(repr(name) for name in sorted(wanted))
    has = ", ".join(sorted(there)) or "none"
    return f"it waits for the {what} {names}, which it does not have (it has {has})"


def _policy(text: str) -> Policy:
    try:
        return parse_policy(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except TraceError as error:
        raise UsageError(f"schedule {text!r}: {error}") from None
    except OSError as error:
        raise UsageError(f"schedule {text!r}: cannot read the trace: {error.strerror}") from None


def _place(disk: DiskSpec) -> DiskSpec:
    """Return what makes two disks the same piece of hardware: everything but how a guest sees it."""
    return attrs.evolve(disk, vdev="", removable=False, discard=False)


def trio_seconds(until: int, now: int) -> float:
    """Return how long to sleep, in seconds; for ever if nothing is due."""
    return float("inf") if until == NEVER else max(until - now, 0) / 1e9


def usage_of(domain: Domain) -> Usage:
    """Return what a domain has used so far, by Xen's books."""
    vcpus = domain.online_vcpus()
    grants = domain.grant_table.stats
    return Usage(
        cpu_ns=sum(vcpu.time_running for vcpu in vcpus),
        hypercalls=sum(vcpu.hypercalls for vcpu in vcpus),
        events=domain.events_sent,
        grants_mapped=grants.maps,
        grants_copied=grants.copies,
    )
