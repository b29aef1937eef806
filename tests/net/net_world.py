"""A small world for network drivers: real rings, real drivers, real guest threads; everything below them is faked.

Memory is one buffer. A grant is an entry of a dictionary with a count of its mappings, an event channel a pair of
handlers, and the one hypercall is a grant copy that checks what Xen checks.
"""

from __future__ import annotations

import errno
import mmap
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any

import attrs

from backends.net import NetBack
from frontends.net import FrontDevice, NetFront
from guest_kernel.errors import GrantError, OutOfMemory
from guest_kernel.grants import MappedGrant
from guest_kernel.net import NetStack
from guest_kernel.net.offload import Offload
from guest_kernel.run_loop import run_threads
from guest_kernel.threads import Scheduler, Thread, reschedule
from hypervisor.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTTABOP_copy,
)
from hypervisor.abi.xen import DOMID_SELF, HYPERVISOR_grant_table_op

PAGE = 4096


class World:
    """All domains of a test and what lies between them."""

    def __init__(self, pages: int = 8192, seed: int = 0) -> None:
        self.memory = memoryview(mmap.mmap(-1, pages * PAGE))
        self.frames = deque(range(1, pages))
        self.rng = random.Random(seed)
        self.kernels: dict[int, FakeKernel] = {}
        self.events: deque[tuple[FakeKernel, int]] = deque()
        self.timers: list[tuple[int, int, Callable[[], Any]]] = []
        self.timer_count = 0
        self.now = 0
        self.notifications = 0
        self.copies = 0
        self.steps = 0
        self.failures: list[str] = []

    def run(self, until: int | None = None) -> None:
        """Run until nothing moves; timers fire only when nothing else can happen, and none after `until`."""
        while self.step(until):
            self.steps += 1
            assert self.steps < 200_000, "the world never comes to rest"
        assert not self.failures, self.failures

    def step(self, until: int | None = None) -> bool:
        progress = False
        while self.events:
            kernel, port = self.events.popleft()
            kernel.events.deliver(port)
            progress = True
        for kernel in list(self.kernels.values()):
            progress |= kernel.run_ready()
        if not progress and self.timers:
            self.timers.sort(key=lambda timer: timer[:2])
            when, _, action = self.timers[0]
            if until is None or when <= until:
                self.timers.pop(0)
                self.now = max(self.now, when)
                action()
                progress = True
        return progress

    def do(self, kernel: FakeKernel, coro: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in a thread of `kernel` to its end; its result or exception."""
        thread = kernel.spawn(coro, "test", panics=False)
        self.run()
        assert thread.done, f"{coro} never finished"
        if thread.exception is not None:
            raise thread.exception
        return thread.result

    def kill(self, kernel: FakeKernel) -> None:
        """A domain is destroyed: its threads stop, its mappings and ports go; what it granted stays as it is."""
        kernel.scheduler.destroy()
        kernel.grants.die()
        kernel.events.die()
        del self.kernels[kernel.domid]

    def add_timer(self, ns: int, action: Callable[[], Any]) -> tuple[int, int, Callable[[], Any]]:
        self.timer_count += 1
        timer = (self.now + ns, self.timer_count, action)
        self.timers.append(timer)
        return timer


class FakePage:
    def __init__(self, mfn: int, view: memoryview) -> None:
        self.mfn = mfn
        self.va = mfn * PAGE
        self.view = view
        self.h, self.i, self.q = view.cast("H"), view.cast("I"), view.cast("Q")


class FakeMM:
    def __init__(self, world: World, limit: int) -> None:
        self.world = world
        self.limit = limit
        self.used = 0

    def alloc_page(self) -> FakePage:
        if self.used >= self.limit:
            raise OutOfMemory("no page")
        self.used += 1
        mfn = self.world.frames.popleft()
        view = self.world.memory[mfn * PAGE : (mfn + 1) * PAGE]
        view[:] = bytes(PAGE)
        return FakePage(mfn, view)

    def alloc_pages(self, n: int) -> list[FakePage]:
        if self.used + n > self.limit:
            raise OutOfMemory("no pages")
        return [self.alloc_page() for _ in range(n)]

    def pieces(self, addresses: Sequence[int], writable: bool = True) -> list[memoryview]:
        views = [self.world.memory[va : va + PAGE] for va in addresses]
        return views if writable else [view.toreadonly() for view in views]

    def free_page(self, page: FakePage) -> None:
        for kernel in self.world.kernels.values():
            for ref, entry in kernel.grants.entries.items():
                assert entry.mfn != page.mfn, f"page {page.mfn} freed while granted as {ref}"
        self.used -= 1
        page.view[:] = b"\xdb" * PAGE
        self.world.frames.append(page.mfn)

    def free_pages_of(self, pages: list[FakePage]) -> None:
        for page in pages:
            self.free_page(page)


@attrs.define
class Entry:
    domid: int
    mfn: int
    readonly: bool
    pins: int = 0


class FakeGrants:
    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.next_ref = 8
        self.limit = 1 << 16
        self.free: list[int] = []
        self.entries: dict[int, Entry] = {}
        self.maps: dict[int, tuple[Entry, MappedGrant]] = {}
        self.next_handle = 100

    def grant_access(self, domid: int, page: Any, readonly: bool = False) -> int:
        if len(self.entries) >= self.limit:
            raise GrantError(-10, "the table is full")
        ref = self.free.pop() if self.free else self.next_ref
        self.next_ref = max(self.next_ref, ref + 1)
        self.entries[ref] = Entry(domid, page.mfn, readonly)
        return ref

    def end_access(self, ref: int) -> bool:
        if self.entries[ref].pins:
            return False
        del self.entries[ref]
        self.free.append(ref)
        return True

    def find(self, domid: int, ref: int, writable: bool) -> Entry | None:
        """The entry by which this domain may use a page of another."""
        granter = self.kernel.world.kernels.get(domid)
        entry = granter.grants.entries.get(ref) if granter is not None else None
        if entry is None or entry.domid != self.kernel.domid or (writable and entry.readonly):
            return None
        return entry

    def map_refs(self, domid: int, refs: Sequence[int], writable: bool = True) -> list[MappedGrant]:
        return [self._map(domid, ref, writable) for ref in refs]

    def _map(self, domid: int, ref: int, writable: bool) -> MappedGrant:
        entry = self.find(domid, ref, writable)
        if entry is None:
            return MappedGrant(ref, -3)
        entry.pins += 1
        self.next_handle += 1
        view = self.kernel.world.memory[entry.mfn * PAGE : (entry.mfn + 1) * PAGE]
        grant = MappedGrant(ref, 0, self.next_handle, entry.mfn * PAGE, view if writable else view.toreadonly())
        self.maps[grant.handle] = (entry, grant)
        return grant

    def unmap(self, grants: Sequence[MappedGrant]) -> None:
        for grant in grants:
            if grant.status == 0:
                entry, _ = self.maps.pop(grant.handle)
                entry.pins -= 1
                grant.status = -4

    def die(self) -> None:
        for entry, _ in self.maps.values():
            entry.pins -= 1
        self.maps.clear()


class FakeEvents:
    """Ports: [handler, pending, peer kernel, peer port]."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.ports: dict[int, list[Any]] = {}
        self.next_port = 10

    def alloc_unbound(self, domid: int, handler: Callable[[], None]) -> int:
        self.next_port += 1
        self.ports[self.next_port] = [handler, False, None, 0]
        return self.next_port

    def bind_interdomain(self, domid: int, remote_port: int, handler: Callable[[], None]) -> int:
        peer = self.kernel.world.kernels.get(domid)
        if peer is None or remote_port not in peer.events.ports:
            raise OSError(errno.EINVAL, "no such port")
        if peer.events.ports[remote_port][2] is not None:
            raise OSError(errno.EINVAL, "somebody is bound to it")
        port = self.alloc_unbound(domid, handler)
        self.ports[port][2:] = [peer, remote_port]
        peer.events.ports[remote_port][2:] = [self.kernel, port]
        self.raise_port(port)
        return port

    def notify(self, port: int) -> None:
        self.kernel.world.notifications += 1
        _, _, peer, peer_port = self.ports[port]
        if peer is not None:
            peer.events.raise_port(peer_port)

    def raise_port(self, port: int) -> None:
        entry = self.ports.get(port)
        if entry is not None and not entry[1]:
            entry[1] = True
            self.kernel.world.events.append((self.kernel, port))

    def deliver(self, port: int) -> None:
        entry = self.ports.get(port)
        if entry is not None and entry[1]:
            entry[1] = False
            entry[0]()

    def unbind(self, port: int) -> None:
        _, _, peer, peer_port = self.ports.pop(port)
        if peer is not None and peer_port in peer.events.ports:
            peer.events.ports[peer_port][2:] = [None, 0]

    def die(self) -> None:
        for port in list(self.ports):
            self.unbind(port)


class FakeCpu:
    trace = None

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel

    def hypercall(self, nr: int, command: int, va: int, count: int) -> int:
        """A grant copy."""
        assert (nr, command) == (HYPERVISOR_grant_table_op, GNTTABOP_copy)
        memory = self.kernel.world.memory
        halves, words = memory[va : va + PAGE].cast("H"), memory[va : va + PAGE].cast("Q")
        for op in range(count):
            h, q = op * 20, op * 5
            length, flags = halves[h + 16], halves[h + 17]
            source = self._side(words[q], halves[h + 4], halves[h + 5], length, flags & GNTCOPY_source_gref, False)
            dest = self._side(words[q + 2], halves[h + 12], halves[h + 13], length, flags & GNTCOPY_dest_gref, True)
            if source is None or dest is None:
                halves[h + 18] = -3 & 0xFFFF
                continue
            memory[dest : dest + length] = memory[source : source + length]
            halves[h + 18] = 0
            self.kernel.world.copies += 1
        return 0

    def _side(self, word: int, domid: int, offset: int, length: int, by_ref: int, writable: bool) -> int | None:
        if offset + length > PAGE:
            return None
        if not by_ref:
            assert domid == DOMID_SELF
            return word * PAGE + offset
        entry = self.kernel.grants.find(domid, word & 0xFFFFFFFF, writable)
        return None if entry is None else entry.mfn * PAGE + offset


class FakeKernel:
    """As much of `guest_kernel.kernel.Kernel` as network drivers and the stack use."""

    cmdline = ""

    def __init__(self, world: World, domid: int, pages: int = 2000) -> None:
        self.world = world
        self.domid = domid
        self.cpu = FakeCpu(self)
        self.mm = FakeMM(world, pages)
        self.grants = FakeGrants(self)
        self.events = FakeEvents(self)
        self.scheduler = Scheduler(self._failed)
        self.vcpu = run_threads(self.scheduler)
        self.timers = SimpleNamespace(add=lambda deadline, action: FakeTimer(world, deadline, action))
        self.nics: dict[int, FakeNic] = {}
        self.hw = SimpleNamespace(nic=lambda unit: self.nics.setdefault(unit, FakeNic(unit)))
        self.net = NetStack(self)  # type: ignore[arg-type]
        world.kernels[domid] = self

    def monotonic_ns(self) -> int:
        return self.world.now

    def _failed(self, thread: Thread, failure: BaseException) -> None:
        self.world.failures.append(f"thread {thread.name} of domain {self.domid}: {failure!r}")

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str = "", *, panics: bool = True) -> Thread:
        return self.scheduler.spawn(coro, name, panics=panics)

    def run_ready(self) -> bool:
        """Let the vCPU run until it blocks; say whether there was anything to run."""
        if not self.scheduler.ready:
            return False
        blocked = False
        while not blocked:
            blocked = next(self.vcpu) is self.scheduler.ready
            while self.world.events and self.world.events[0][0] is self:
                self.events.deliver(self.world.events.popleft()[1])
        return True

    async def yield_(self) -> None:
        await reschedule()

    async def wait_for(self, awaitable: Awaitable[Any], ns: int) -> Any:
        thread = self.scheduler.running()
        expired = TimeoutError()
        timer = self.world.add_timer(ns, lambda: thread.interrupt(expired))
        try:
            return await awaitable
        finally:
            if timer in self.world.timers:
                self.world.timers.remove(timer)
            thread.withdraw(expired)


class FakeTimer:
    def __init__(self, world: World, deadline: int, action: Callable[[], None]) -> None:
        self.world = world
        self.timer = world.add_timer(deadline - world.now, action)

    def cancel(self) -> None:
        if self.timer in self.world.timers:
            self.world.timers.remove(self.timer)


class FakeNic:
    """A network card that remembers."""

    def __init__(self, unit: int) -> None:
        self.unit = unit
        self.sent: list[bytes] = []
        self.receive: Callable[[bytes], None] = lambda frame: None

    def transmit(self, frame: bytes) -> None:
        self.sent.append(frame)

    def on_receive(self, callback: Callable[[bytes], None]) -> None:
        self.receive = callback


class FakeDevice:
    """One end of a device on a dictionary that both ends share; the test plays the bus."""

    def __init__(self, kernel: FakeKernel, driver: Any, store: dict[str, str], side: str, otherend_id: int) -> None:
        self.kernel = kernel
        self.driver = driver
        self.store = store
        self.id = "0"
        self.path = side
        self.otherend = "backend" if side == "frontend" else "frontend"
        self.otherend_id = otherend_id
        self.data: Any = None
        self.fatals: list[str] = []
        self.errors: list[tuple[str, int]] = []
        self.watches: dict[str, Callable[[], None]] = {}

    async def read(self, key: str) -> str | None:
        return self.store.get(f"{self.path}/{key}")

    async def read_otherend(self, key: str) -> str | None:
        return self.store.get(f"{self.otherend}/{key}")

    async def read_otherend_many(self, *keys: str) -> dict[str, str | None]:
        return {key: self.store.get(f"{self.otherend}/{key}") for key in keys}

    async def write(self, values: dict[str, object] | None = None, **keys: object) -> None:
        for key, value in {**(values or {}), **keys}.items():
            self.store[f"{self.path}/{key}"] = str(int(value)) if isinstance(value, bool) else str(value)

    async def watch(self, key: str, callback: Callable[[], None]) -> None:
        self.watches[key] = callback
        callback()

    async def watch_otherend(self, key: str, callback: Callable[[], None]) -> None:
        self.watches[key] = callback

    async def fatal(self, message: str, number: int = 5) -> None:
        self.fatals.append(message)

    async def error(self, message: str, number: int = 5) -> None:
        self.errors.append((message, number))

    def hook(self, name: str) -> None:
        self.kernel.world.do(self.kernel, getattr(self.driver, name)(self))


class Station:
    """A guest with a vif, connected as the bus would do it. `connect` may be left to a test's own front."""

    def __init__(self, host: Host, domid: int, *, pages: int = 2000, bridge: str = "xenbr0") -> None:
        self.host = host
        self.kernel = FakeKernel(host.world, domid, pages)
        self.mac = bytes([0, 0x16, 0x3E, 0, 0, domid])
        self.store = {"frontend/mac": self.mac.hex(":"), "backend/bridge": bridge}
        self.driver = NetFront(self.kernel)  # type: ignore[arg-type]
        self.back = FakeDevice(host.kernel, host.driver, self.store, "backend", domid)
        self.front = FakeDevice(self.kernel, self.driver, self.store, "frontend", 0)
        self.received: list[bytes] = []
        self.validated: list[bool] = []
        self.offloads: list[Offload] = []

    def connect(self, *, control: bool = True, record: bool = True) -> Station:
        self.back.hook("publish")
        if not control:
            self.store["backend/feature-ctrl-ring"] = "0"
        self.front.hook("publish")
        self.back.hook("connect")
        self.front.hook("connect")
        if record:
            self.device.received_raw = self.record
        return self

    def record(self, frame: bytes, offload: Offload) -> None:
        """Take a frame as it came."""
        self.received.append(frame)
        self.validated.append(offload.validated)
        self.offloads.append(offload)

    @property
    def device(self) -> FrontDevice:
        device = self.front.data
        assert isinstance(device, FrontDevice)
        return device

    @property
    def vif(self) -> Any:
        return self.back.data.vif

    def frame(self, to: bytes, size: int = 60, fill: int = 0) -> bytes:
        """An Ethernet frame of no protocol anybody knows."""
        body = (bytes([fill & 255]) + fill.to_bytes(4, "big")) * (size // 5 + 1)
        return (to + self.mac + b"\x88\xb5" + body)[:size]

    def warm_up(self, peer: Station) -> None:
        """Send enough to have all buffers mapped, and forget it."""
        for _ in range(4):
            self.device.transmit_many([self.frame(peer.mac)] * 64)
            peer.device.transmit_many([peer.frame(self.mac)] * 64)
            self.host.world.run()
        assert self.vif.mapped, "nothing was registered"
        assert peer.vif.writable
        self.received.clear()
        peer.received.clear()
        self.validated.clear()
        peer.validated.clear()
        self.offloads.clear()
        peer.offloads.clear()

    def close(self) -> None:
        self.back.hook("close")
        if self.kernel.domid in self.host.world.kernels:
            self.front.hook("close")


class Host:
    """A driver domain with a bridge, and guests on it."""

    def __init__(
        self, *, nics: dict[str, int] | None = None, pages: int = 4000, guests: int = 2, **options: Any
    ) -> None:
        self.world = World()
        self.kernel = FakeKernel(self.world, 0, pages)
        self.driver = NetBack(self.kernel, nics=nics or {})  # type: ignore[arg-type]
        self.guests = [Station(self, domid + 1, **options) for domid in range(guests)]
        self.bridge = self.driver.bridges["xenbr0"]

    def up(self, **options: Any) -> Host:
        for guest in self.guests:
            guest.connect(**options)
        self.world.run()
        return self

    def run(self) -> None:
        self.world.run()

    def down(self) -> None:
        """Close in order, and prove that nothing is left."""
        for guest in self.guests:
            guest.close()
        self.check_no_leaks()

    def check_no_leaks(self) -> None:
        self.run()
        assert self.driver.pool.out == 0, f"{self.driver.pool.out} pages of frames are lost"
        assert len(self.bridge.ports) == len(self.kernel.nics)
        assert self.driver._copies.count == 0
        self.driver.pool.close()
        self.driver._copies.close()
        for kernel in self.world.kernels.values():
            domid = kernel.domid
            assert not kernel.grants.maps, f"domain {domid} still maps {kernel.grants.maps}"
            assert not kernel.grants.entries, f"domain {domid} still grants {kernel.grants.entries}"
            assert not kernel.events.ports, f"domain {domid} still has ports {list(kernel.events.ports)}"
            assert kernel.mm.used == 0, f"domain {domid} still has {kernel.mm.used} pages"
