"""The kernel of a Python guest: its parts, and how they come up. `Kernel.run` is the table of contents."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Coroutine
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from guest_kernel.block import BlockRegistry
from guest_kernel.console import Console, open_ring_console, open_xen_console
from guest_kernel.errors import GuestError
from guest_kernel.events import Events
from guest_kernel.grants import Grants
from guest_kernel.hypercalls import Hypercalls
from guest_kernel.mm import PAGE_SIZE, MemoryManager
from guest_kernel.power import Power
from guest_kernel.run_loop import run_threads
from guest_kernel.smp import CurrentCpu, Smp, count_vcpus
from guest_kernel.symbols import SYMBOLS
from guest_kernel.threads import Scheduler, Thread, WaitQueue, burn, reschedule
from guest_kernel.time import Clock, Sleeper, Timers
from hypervisor.abi.callback import CALLBACKOP_register, CALLBACKTYPE_event, callback_register
from hypervisor.abi.cpu import Cpu, Run
from hypervisor.abi.tracepoints import THREAD
from hypervisor.abi.version import XENVER_guest_handle
from hypervisor.abi.xen import (
    DOMID_SELF,
    SIF_INITDOMAIN,
    HYPERVISOR_callback_op,
    HYPERVISOR_xen_version,
    start_info,
)

if TYPE_CHECKING:
    from guest_kernel.hw import Hardware
    from guest_kernel.image import PythonKernelImage
    from guest_kernel.net import NetStack
    from guest_kernel.xenbus.bus import Bus
    from guest_kernel.xenbus.client import XenbusClient
    from guest_kernel.xenbus.driver import XenbusDriver

T = TypeVar("T")


class Kernel:
    """One per domain. Parts that need others come after them in `run`."""

    mm: MemoryManager
    hypercalls: Hypercalls
    scheduler: Scheduler
    events: Events
    clock: Clock
    timers: Timers
    console: Console
    grants: Grants
    block: BlockRegistry
    power: Power
    drivers: list[XenbusDriver]
    bus: Bus | None

    def __init__(self, image: PythonKernelImage, cpu: Cpu, start_info_va: int) -> None:
        self.image = image
        self._boot_cpu = cpu
        self.cpu = cpu
        """The boot vCPU; with several vCPUs the one that executes."""
        self.smp: Smp | None = None
        count = count_vcpus(cpu)
        if count > 1:
            self.cpu = CurrentCpu(cpu)
            self.smp = Smp(self, self.cpu, count)
        page = cpu.view(start_info_va & -PAGE_SIZE)
        self.start_info: Any = start_info.unpack_from(page, start_info_va % PAGE_SIZE)
        self.cmdline: str = self.start_info.cmd_line.partition(b"\0")[0].decode("utf-8", "replace")
        self.is_initial_domain = bool(self.start_info.flags & SIF_INITDOMAIN)

    def run(self) -> Run:
        """Boot; returns what the boot vCPU executes from then on: it runs threads until the domain ends."""
        self._bring_up_memory()
        self._bring_up_events()
        self._bring_up_time()
        self._bring_up_console()
        self._bring_up_drivers()
        self.power.program = self.spawn(self._main(), "main")
        for service in self.image.services:
            self.spawn(service(self), "service")
        self.events.enable(0)
        if self.smp is None:
            return run_threads(self.scheduler)
        self.smp.start(self.mm.root)
        return self.smp.run(self._boot_cpu)

    def destroy(self) -> None:
        """Drop all threads: the domain no longer exists, or the host is being switched off."""
        scheduler = self.__dict__.get("scheduler")
        if scheduler is not None:
            scheduler.destroy()

    # Coming up

    def _bring_up_memory(self) -> None:
        self.mm = MemoryManager(self.cpu, self.cpu.hypercall, self.start_info, self.image.virt_base)
        self.hypercalls = Hypercalls(self.cpu.hypercall, self.mm.alloc_page())
        # The address of an ordinary page becomes that of shared_info; the page itself is given up for it.
        place = self.mm.alloc_page()
        self.shared_info = self.mm.replace(place, self.start_info.shared_info)
        self.grants = Grants(self.hypercalls, self.mm)

    def _bring_up_events(self) -> None:
        self.power = Power(self)
        self.scheduler = Scheduler(self.power.thread_failed)
        if self.cpu.traces_threads:
            self.scheduler.note = self._note_thread
        self.events = Events(
            self.hypercalls,
            self.shared_info,
            self.mm.alloc_page,
            lambda failure: self.power.panic(failure, "an event handler failed"),
        )
        self.install_upcall(self._boot_cpu)

    def _note_thread(self, name: str) -> None:
        """Tell the simulator's probe who has the vCPU from now on."""
        if self.cpu.trace is not None:
            self.cpu.trace(THREAD, name)

    def install_upcall(self, cpu: Cpu) -> None:
        """Register the event callback of the vCPU that executes this."""
        address = SYMBOLS[f"event_callback.{cpu.vcpu_id}"]
        upcall = self.events.make_upcall(cpu.vcpu_id)
        cpu.text[address] = upcall if self.smp is None else self.smp.enter_upcall(cpu, upcall)
        self.hypercalls.operate(
            HYPERVISOR_callback_op,
            CALLBACKOP_register,
            callback_register,
            "CALLBACKOP_register",
            type=CALLBACKTYPE_event,
            address=address,
        )

    def _bring_up_time(self) -> None:
        self.clock = Clock(self.cpu.rdtsc, self.shared_info)
        self.monotonic_ns: Callable[[], int] = self.clock.monotonic_ns
        """Nanoseconds since the host was booted."""
        self.wallclock_ns: Callable[[], int] = self.clock.wallclock_ns
        """Nanoseconds since the epoch."""
        self.timers = Timers(self.hypercalls, self.events, self.monotonic_ns)
        self.timers.start()
        self._sleeper = Sleeper(self.scheduler, self.timers, self.monotonic_ns)

    def _bring_up_console(self) -> None:
        if self.is_initial_domain:
            self.console = open_xen_console(self.hypercalls, self.events, self.mm.alloc_page())
        else:
            place = self.start_info.console.domU
            page = self.mm.page_at(place.mfn)
            self.console = open_ring_console(self.hypercalls, self.events, page, place.evtchn, self.monotonic_ns)

    def _bring_up_drivers(self) -> None:
        self.block = BlockRegistry()
        self.bus = None
        self.drivers = [make(self) for make in self.image.drivers]
        if self.has_xenstore:
            self.spawn(self._serve_xenbus(), "xenbus")

    async def _serve_xenbus(self) -> None:
        from guest_kernel.xenbus.bus import Bus

        await self.xenbus.connected()
        self.bus = Bus(self, self.drivers)
        self.power.on_shutdown(self.bus.shutdown)
        await self.bus.start()
        await self.power.watch_control()

    async def _main(self) -> None:
        program = self.image.main(self)
        running = program.main()
        if not isinstance(running, Awaitable):
            name = type(program).__qualname__
            raise GuestError(f"the main of {name} is no coroutine: define it with 'async def main(self)' and no yield")
        await running
        if self.image.services:
            await self.never()  # until somebody asks for the end
        await self.power.poweroff()

    # Parts that not every guest has

    @property
    def has_xenstore(self) -> bool:
        """Whether the domain has a ring to xenstored, or is the one where xenstored runs."""
        return self.is_initial_domain or bool(self.start_info.store_evtchn)

    @cached_property
    def xenbus(self) -> XenbusClient:
        """The client of xenstored. Raises GuestError in a domain that was built without xenstore."""
        from guest_kernel.xenbus.client import XenbusClient

        info = self.start_info
        events = self.events
        if info.store_evtchn:
            page, port = self.mm.page_at(info.store_mfn), info.store_evtchn
        elif self.is_initial_domain:
            page = self.mm.alloc_page()
            port = events.alloc_unbound(DOMID_SELF, lambda: None)
        else:
            raise GuestError("this domain was built without a connection to xenstore")
        client = XenbusClient(page.view, lambda: events.notify(port), self.spawn)
        if self.is_initial_domain:
            client.dom0_interface = (page.mfn, port)
        events.adopt(port, client.on_event)
        return client

    @cached_property
    def net(self) -> NetStack:
        """The network stack."""
        from guest_kernel.net import NetStack

        return NetStack(self)

    @cached_property
    def hw(self) -> Hardware:
        """Drivers of the physical devices that this domain may use."""
        from guest_kernel.hw import Hardware

        hardware = Hardware(self)
        self.power.on_shutdown(hardware.close, late=True)
        return hardware

    @cached_property
    def rng(self) -> random.Random:
        """Random numbers of this guest's own: the same in each run, from the word `seed=` or the domain's handle."""
        for word in self.cmdline.split():
            if word.startswith("seed="):
                return random.Random(word.removeprefix("seed="))
        hypercalls = self.hypercalls
        hypercalls.check(
            hypercalls.call(HYPERVISOR_xen_version, XENVER_guest_handle, hypercalls.address), "XENVER_guest_handle"
        )
        return random.Random(bytes(hypercalls.page.view[:16]))

    # What threads use all the time

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str = "", *, panics: bool = True) -> Thread:
        """Start a thread; see `Scheduler.spawn`."""
        return self.scheduler.spawn(coro, name, panics=panics)

    async def yield_(self) -> None:
        """Let the other ready threads, and pending interrupts, go first."""
        await reschedule()

    async def cpu_burn(self, ns: int) -> None:
        """Compute for so many nanoseconds of processor time."""
        await burn(ns)

    async def never(self) -> None:
        """Wait for ever (until cancelled)."""
        await WaitQueue().wait()

    async def sleep(self, ns: int) -> None:
        """Wait for so many nanoseconds at least; 0 lets the other threads go first."""
        await self._sleeper.sleep(ns)

    async def wait_for(self, awaitable: Awaitable[T], ns: int) -> T:
        """Wait for `awaitable`, at most `ns` nanoseconds; then it is interrupted and TimeoutError raised."""
        return await self._sleeper.wait_for(awaitable, ns)
