"""A whole host: machine, hypervisor, dom0 with drivers and daemons, and the domains that it is told to run."""

from __future__ import annotations

import gc
import time as wall
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import attrs
import trio

from backends.block import BlockBack
from backends.net import Bridge, NetBack
from backends.xenstored.daemon import XenStored
from guest_kernel.guest import Guest
from guest_kernel.image import PythonKernelImage
from guest_kernel.kernel import Kernel
from guest_kernel.xenbus.driver import XenbusDriver
from hypervisor.dom0_build import BuildError, construct_dom0
from hypervisor.errors import HypercallError, InvariantError
from hypervisor.hypervisor import Hypervisor
from hypervisor.machine.machine import Machine
from hypervisor.machine.serial import SerialCard
from hypervisor.sched.algorithm import NEVER
from hypervisor.sched.costs import CostError, Costs, costs_for_trace, load_costs
from hypervisor.sched.policy import Policy, parse_policy
from hypervisor.sched.schedulers import DEFAULT
from hypervisor.trace import Emit, TraceError
from toolstack.accounts import Accounts, usage_of
from toolstack.builder import python_kernel
from toolstack.console_log import ConsoleLog
from toolstack.control_domain import ControlDomain
from toolstack.cpupools import PoolSpec
from toolstack.domains import REASONS, DomainPlan, LiveDomain
from toolstack.errors import GuestHangError, UsageError
from toolstack.faults.injector import Injector
from toolstack.faults.spec import FaultSpec
from toolstack.hardware import HostHardware
from toolstack.leaks import find_leaks, ports_in_use
from toolstack.lifecycle import Lifecycle
from toolstack.nbd_export import ExportSpec
from toolstack.outside import Outside
from toolstack.pace import Others, Pace
from toolstack.preparation import (
    UUID_SPACE,
    NicSpec,
    Preparation,
    check_processors,
    prepare,
)
from toolstack.profiling.profile import Profile
from toolstack.quick_ear import QuickEar
from toolstack.recording import Recording
from toolstack.remote_disks import unrepeatable
from toolstack.report import ABORTED, DomainResult, HostResult
from toolstack.store_trace import StoreWatch
from toolstack.waiting import gets_no_processor, why_idle
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
        self._accounts = Accounts(self.consoles)
        self._accounts.open([DOM0_NAME])
        self.kernels: dict[int, Kernel] = {}
        """The kernels of the domains that run, by number."""
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
        self.hardware: HostHardware
        self._ear = QuickEar()
        self._unrepeatable: list[str] = []
        """Disks of which no seed repeats what they contain and when they fail."""
        self.on_notice: Callable[[str], None] = lambda sentence: None
        """Is told, in one sentence, what people may want to know of the world outside: a server that is lost."""
        self._asked_idle = False
        self._wake = trio.Event()
        self._stack = ExitStack()
        self.observer: Emit | None = None
        """Is told of each record that a trace would hold, as it happens; to be set before `run`."""
        self._recording = Recording(trace_file, seed, trace_state, self.profile)

    # -- the run --------------------------------------------------------------------------------------------------

    async def run(self, configs: Sequence[DomainConfig]) -> HostResult:
        """Switch the host on and run the domains until they have ended. Raises `UsageError`, InvariantError."""
        began = wall.monotonic_ns()
        self._accounts.open(config.name for config in configs)
        self.outside.check()
        self.injector = self._make_injector(configs)
        self._unrepeatable = [] if self.real_time else unrepeatable(configs)
        check_processors(configs, self.pcpus, self.scheduler, self.pools)
        prepared = prepare(
            configs,
            self.nics,
            self.seed,
            capture=self.capture,
            exports=self.exports,
            hang_limit=self.hang_limit,
            heartbeat=self.heartbeat,
            real_time=self.real_time,
        )
        for name in self._unrepeatable:
            self.on_notice(f"{name} is at an NBD server: what it contains and when it fails, no seed repeats")
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
            self._recording.finish()
            self._finish_dom0()
        failures = [self._recording.failure, self.outside.failure]
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

    @property
    def results(self) -> dict[str, DomainResult]:
        """How each domain fares, dom0 first."""
        return self._accounts.results

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
        hv, pace, others = self.hv, Pace(), Others()
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
                self._accounts.say(name, f"{name} crashed: its code has raised KeyboardInterrupt")
                self._blame("KeyboardInterrupt")
                continue
            if hv.stopped:
                break
            caught = self._ear.catch_up()
            if until == 0:
                await others.let_run()
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
        seconds = _seconds(until, self.hv.clock.read())
        with trio.move_on_after(seconds):
            await self._wake.wait()
        self.hv.sleeping = False

    def _idle(self) -> None:
        """In virtual time: nothing can happen any more, for there is no outside. End the host in order."""
        if self._asked_idle or self.lifecycle is None:
            if gets_no_processor(self.hv, 0):
                raise UsageError(f"the scheduler {self.scheduler!r} gives {DOM0_NAME} no processor: nothing goes on")
            raise InvariantError("the host is idle for ever, and dom0 does not end it")
        self._asked_idle = True
        for live in self.lifecycle.live.values():
            if not live.over and not live.plan.config.driver_domain:
                why = why_idle(self.hv, live.domid, self.kernels.get(live.domid))
                self._accounts.say(live.plan.config.name, f"{live.name}: {why}")
        self._type("shutdown\n")

    # -- assembly -------------------------------------------------------------------------------------------------

    def _assemble(self, prepared: Preparation) -> None:
        machine = Machine(memory_mib=self._memory(prepared.plans), pcpus=self.pcpus, real_time=self.real_time)
        recording = self._recording
        recording.observer = self.observer
        if self.injector is not None and self.injector.needs_records:
            recording.around = self.injector.observed
        recording.open(self._stack, self._about())
        self.hv = hv = Hypervisor(
            machine,
            scheduler=self.scheduler,
            policy=self.policy,
            costs=self.costs,
            trace=recording.emit,
            tape=recording.tape,
            console=self._show_host,
        )
        recording.attach(hv)
        hv.traces_threads = self.trace_threads or self.profile is not None
        if self.injector is not None:
            self.injector.attach(hv)
            self._stack.callback(self.injector.finish)
        self.hardware = HostHardware(self, prepared, self._ear)
        self._stack.callback(self.hardware.close)
        self.hardware.plug_all()
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

    def _about(self) -> dict[str, Any]:
        """Return what a trace says of the run at its beginning."""
        about = {
            "pcpus": self.pcpus,
            "time": "real" if self.real_time else "virtual",
            "schedule": self.schedule,
            "scheduler": self.scheduler,
            "costs": costs_for_trace(self.costs),
            "preempts": self.policy is not None and self.policy.preempts,
        }
        return about | ({"unrepeatable": self._unrepeatable} if self._unrepeatable else {})

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
        state, writer = self._recording.state, self._recording.writer
        if state is not None and writer is not None:
            state.add(StoreWatch(lambda: self.xenstored.server.store.tree, writer.emit))

    def leaks(self) -> list[str]:
        """Return what the guests have left behind, after a run: nothing, or there is a bug."""
        return find_leaks(self.hv, self.xenstored, self._ports_before)

    def load(self, domid: int, image: PythonKernelImage) -> None:
        """Make a new domain's processors execute an image."""

        def main(kernel: Kernel) -> Guest:
            self._note_kernel(domid, kernel)
            return image.main(kernel)  # type: ignore[return-value]

        self._name(domid, image.name)
        self._accounts.began(image.name)
        self.hv.domains[domid].image = attrs.evolve(image, main=main)

    def load_machine_code(self, domid: int, name: str) -> None:
        """Take note of a new domain whose processors execute what is in its memory."""
        self._name(domid, name)
        self._accounts.began(name)

    def _name(self, domid: int, name: str) -> None:
        self._names[domid] = name
        if self.injector is not None:
            self.injector.appeared(name)

    def _note_kernel(self, domid: int, kernel: Kernel) -> None:
        self.kernels[domid] = kernel
        self._accounts.follow(kernel)

    def account(self, live: LiveDomain, reason: str) -> None:
        """Add up what a life of a domain has used, once."""
        kernel = self.kernels.pop(live.domid, None)
        self._accounts.close(live, self.hv.domains.get(live.domid), kernel, reason)

    def failed(self, plan: DomainPlan, message: str) -> None:
        """Note that a domain could not be started."""
        self._accounts.failed(plan, message)

    def lacks(self, plan: DomainPlan, message: str) -> None:
        """Tell people what a domain has to do without."""
        self._accounts.say(plan.config.name, message)
        self.on_notice(message)

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

    def _finish_dom0(self) -> None:
        result = self.results[DOM0_NAME]
        result.reason = REASONS.get(self.hv.shutdown_reason, ABORTED)
        result.usage.add(usage_of(self.hv.domains[0]))
        self.hardware.account_disks()
        # dom0 ended before these did: it crashed.
        for live in self.lifecycle.live.values() if self.lifecycle is not None else ():
            if not live.over:
                self.account(live, ABORTED)
        self._accounts.finish()

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
        self._accounts.say(name, message)

    def _blame(self, why: str) -> None:
        """Crash the domain whose vCPU was running when an exception of the watchdog got through all of its code."""
        sched = self.hv.sched
        vcpu = sched.running
        if vcpu is None:
            raise InvariantError(f"a guest hangs, and none was running: {why}")
        sched.running = None
        self.hv.domain_ops.crash(vcpu.domain, why)
        sched.forget(vcpu)


def _kept_mib(config: DomainConfig) -> int:
    """Return how much memory the former lives of a domain may come to occupy."""
    actions = (config.on_poweroff, config.on_reboot, config.on_crash, config.on_watchdog)
    if "rename-restart" not in actions:
        return 0
    return min(KEPT_LIVES, max(1, KEPT_MIB // config.memory)) * (config.memory + 1)


def _policy(text: str) -> Policy:
    try:
        return parse_policy(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except TraceError as error:
        raise UsageError(f"schedule {text!r}: {error}") from None
    except OSError as error:
        raise UsageError(f"schedule {text!r}: cannot read the trace: {error.strerror}") from None


def _seconds(until: int, now: int) -> float:
    """Return how long to sleep, in seconds; for ever if nothing is due."""
    return float("inf") if until == NEVER else max(until - now, 0) / 1e9
