"""A small world for block drivers: real rings, real drivers, real guest threads; everything below them is faked.

Memory is one buffer. A grant is an entry of a dictionary with pins, an event channel a pair of handlers, a disk a
bytearray whose DMA fails the test when it touches a frame that its backend has not mapped at that moment.
"""

import errno
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from struct import Struct
from types import SimpleNamespace
from typing import Any

from guest_kernel.block import DISCARD, FLUSH, READ, SECURE_DISCARD, BlockRegistry
from guest_kernel.errors import OutOfMemory
from guest_kernel.run_loop import run_threads
from guest_kernel.threads import Scheduler, Thread
from hypervisor.abi.grant_table import GNTCOPY_source_gref, GTF_readonly
from hypervisor.abi.xen import DOMID_SELF

PAGE = 4096
SECTOR = 512


class World:
    """All domains of a test and what lies between them."""

    def __init__(self, pages: int = 2048, seed: int = 0) -> None:
        self.memory = memoryview(bytearray(pages * PAGE))
        self.frames = deque(range(1, pages))
        self.rng = random.Random(seed)
        self.kernels: dict[int, FakeKernel] = {}
        self.disks: list[FakeDisk] = []
        self.events: deque[tuple[FakeKernel, int]] = deque()
        self.timers: list[tuple[int, int, Callable[[], Any]]] = []
        self.now = 0
        self.notifications = 0
        self.failures: list[str] = []

    def run(self) -> None:
        """Run until nothing moves; timers fire only when nothing else can happen."""
        while self.step():
            pass
        assert not self.failures, self.failures

    def step(self) -> bool:
        """Deliver events, run ready threads, complete DMA; say whether something happened."""
        progress = False
        while self.events:
            kernel, port = self.events.popleft()
            kernel.events.deliver(port)
            progress = True
        for kernel in list(self.kernels.values()):
            progress |= kernel.run_ready()
        if not progress:
            for disk in self.disks:
                progress |= disk.complete()
        if not progress and self.timers:
            self.timers.sort(key=lambda timer: timer[:2])
            when, _, action = self.timers.pop(0)
            self.now = when
            action()
            progress = True
        return progress

    def spawn(self, kernel: "FakeKernel", coro: Coroutine[Any, Any, Any]) -> Thread:
        return kernel.spawn(coro, "test")

    def do(self, kernel: "FakeKernel", coro: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in a thread of `kernel` to its end; its result or exception."""
        thread = kernel.spawn(coro, "test", panics=False)
        self.run()
        assert thread.done, f"{coro} never finished"
        if thread.exception is not None:
            raise thread.exception
        return thread.result

    def kill(self, kernel: "FakeKernel") -> None:
        """A domain is destroyed: its threads stop, its mappings and ports go; what it granted stays as it is."""
        kernel.scheduler.destroy()
        kernel.grants.die()
        kernel.events.die()
        del self.kernels[kernel.domid]

    def check_no_leaks(self, *kernels: "FakeKernel") -> None:
        for kernel in kernels:
            assert not kernel.grants.maps, f"domain {kernel.domid} still maps {kernel.grants.maps}"
            assert not kernel.grants.entries, f"domain {kernel.domid} still grants {kernel.grants.entries}"
            assert not kernel.events.ports, f"domain {kernel.domid} still has ports {list(kernel.events.ports)}"
            assert kernel.mm.used == 0, f"domain {kernel.domid} still has {kernel.mm.used} pages"


class FakePage:
    def __init__(self, mfn: int, view: memoryview) -> None:
        self.mfn = mfn
        self.view = view


class FakeMM:
    def __init__(self, world: World, limit: int) -> None:
        self.world = world
        self.limit = self.nr_pages = limit
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

    def runs(self, pages: list[FakePage], size: int) -> tuple[memoryview, ...]:
        """Like the kernel's, with every second pair of neighbours as one."""
        views: list[memoryview] = []
        first = 0
        while size > 0:
            mfn, pair = pages[first].mfn, [page.mfn for page in pages[first : first + 2]]
            length = min(size, 2 * PAGE if pair == [mfn, mfn + 1] else PAGE)
            views.append(self.world.memory[mfn * PAGE : mfn * PAGE + length])
            first += -(-length // PAGE)
            size -= length
        return tuple(views)

    def free_page(self, page: FakePage) -> None:
        self.free_pages_of([page])

    def free_pages_of(self, pages: list[FakePage]) -> None:
        freed = {page.mfn for page in pages}
        for kernel in self.world.kernels.values():
            for ref, entry in kernel.grants.entries.items():
                assert entry[1] not in freed, f"page {entry[1]} freed while granted as {ref}"
        for page in pages:
            self.used -= 1
            page.view[:] = b"\xdb" * PAGE
            self.world.frames.append(page.mfn)


class FakeGrants:
    """Entries: ref -> [domid, mfn, flags, pins]. Maps: handle -> (granter, ref, mfn, writable)."""

    def __init__(self, kernel: "FakeKernel") -> None:
        self.kernel = kernel
        self.next_ref = 8
        self.free: list[int] = []
        self.entries: dict[int, list[int]] = {}
        self.maps: dict[int, tuple[FakeGrants, int, int, bool]] = {}
        self.next_handle = 100
        self.hypercalls = 0

    def take_ref(self) -> int:
        if self.free:
            return self.free.pop()
        self.next_ref += 1
        return self.next_ref - 1

    def grant_raw(self, ref: int, domid: int, mfn: int, flags: int) -> None:
        assert ref not in self.entries
        self.entries[ref] = [domid, mfn, flags, 0]

    def grant_access(self, domid: int, page: Any, readonly: bool = False) -> int:
        ref = self.take_ref()
        self.grant_raw(ref, domid, page.mfn, 1 | GTF_readonly if readonly else 1)
        return ref

    def revoke(self, ref: int) -> bool:
        entry = self.entries.get(ref)
        if entry is None:
            return True
        if entry[3]:
            return False
        del self.entries[ref]
        return True

    def end_access(self, ref: int) -> bool:
        if not self.revoke(ref):
            return False
        self.free.append(ref)
        return True

    def _map_one(self, domid: int, ref: int, writable: bool) -> tuple[int, int, int]:
        granter = self.kernel.world.kernels.get(domid)
        entry = granter.grants.entries.get(ref) if granter is not None else None
        if granter is None or entry is None or entry[0] != self.kernel.domid or (writable and entry[2] & GTF_readonly):
            return -1, 0, 0
        entry[3] += 1
        self.next_handle += 1
        self.maps[self.next_handle] = (granter.grants, ref, entry[1], writable)
        return 0, self.next_handle, entry[1] * PAGE

    def map_device(self, domid: int, refs: list[int], writable: bool = True) -> list[tuple[int, int, int]]:
        self.hypercalls += 1
        return [self._map_one(domid, ref, writable) for ref in refs]

    def unmap_device(self, mappings: list[tuple[int, int]]) -> list[int]:
        self.hypercalls += 1
        for handle, maddr in mappings:
            granter, ref, mfn, _ = self.maps.pop(handle)
            assert mfn * PAGE == maddr
            granter.entries[ref][3] -= 1
        return [0] * len(mappings)

    def map_refs(self, domid: int, refs: list[int], writable: bool = True) -> list[Any]:
        mapped = []
        for status, handle, maddr in self.map_device(domid, refs, writable):
            view = self.kernel.world.memory[maddr : maddr + PAGE] if status == 0 else memoryview(b"")
            mapped.append(SimpleNamespace(status=status, handle=handle, maddr=maddr, view=view))
        return mapped

    def copy(self, operations: list[tuple[int, int, int, int, int, int, int, int]]) -> list[int]:
        self.hypercalls += 1
        return [self._copy_one(*operation) for operation in operations]

    def _copy_one(self, ref: int, domid: int, at: int, mfn: int, own: int, offset: int, length: int, flags: int) -> int:
        assert (flags, own) == (GNTCOPY_source_gref, DOMID_SELF)
        assert at + length <= PAGE
        assert offset + length <= PAGE
        granter = self.kernel.world.kernels.get(domid)
        entry = granter.grants.entries.get(ref) if granter is not None else None
        if entry is None or entry[0] != self.kernel.domid:
            return -1
        memory = self.kernel.world.memory
        source, target = entry[1] * PAGE + at, mfn * PAGE + offset
        memory[target : target + length] = memory[source : source + length]
        return 0

    def unmap(self, grants: list[Any]) -> None:
        for grant in grants:
            if grant.status == 0:
                self.unmap_device([(grant.handle, grant.maddr)])
                grant.status = -4

    def die(self) -> None:
        for granter, ref, _, _ in self.maps.values():
            granter.entries[ref][3] -= 1
        self.maps.clear()


class FakeEvents:
    """Ports: [handler, masked, pending, peer kernel, peer port]. Handlers run on the vCPU that a port was moved to."""

    def __init__(self, kernel: "FakeKernel") -> None:
        self.kernel = kernel
        self.ports: dict[int, list[Any]] = {}
        self.next_port = 10
        self.vcpus: dict[int, int] = {}

    def move(self, port: int, vcpu: int) -> None:
        assert port in self.ports
        assert self.kernel.smp is not None
        assert vcpu < self.kernel.smp.count
        self.vcpus[port] = vcpu

    def alloc_unbound(self, domid: int, handler: Callable[[], None]) -> int:
        self.next_port += 1
        self.ports[self.next_port] = [handler, False, False, None, 0]
        return self.next_port

    def bind_interdomain(self, domid: int, remote_port: int, handler: Callable[[], None]) -> int:
        peer = self.kernel.world.kernels[domid]
        if remote_port not in peer.events.ports:
            raise OSError(errno.EINVAL, "no such port")
        port = self.alloc_unbound(domid, handler)
        self.ports[port][3:] = [peer, remote_port]
        peer.events.ports[remote_port][3:] = [self.kernel, port]
        self.raise_port(port)
        return port

    def notify(self, port: int) -> None:
        self.kernel.world.notifications += 1
        _, _, _, peer, peer_port = self.ports[port]
        if peer is not None:
            peer.events.raise_port(peer_port)

    def raise_port(self, port: int) -> None:
        entry = self.ports.get(port)
        if entry is not None and not entry[2]:
            entry[2] = True
            self.kernel.world.events.append((self.kernel, port))

    def deliver(self, port: int) -> None:
        entry = self.ports.get(port)
        if entry is not None and entry[2] and not entry[1]:
            entry[2] = False
            before, self.kernel.cpu.vcpu_id = self.kernel.cpu.vcpu_id, self.vcpus.get(port, 0)
            entry[0]()
            self.kernel.cpu.vcpu_id = before

    def mask(self, port: int) -> None:
        self.ports[port][1] = True

    def unmask(self, port: int) -> None:
        self.ports[port][1] = False

    def unbind(self, port: int) -> None:
        _, _, _, peer, peer_port = self.ports.pop(port)
        self.vcpus.pop(port, None)
        if peer is not None and peer_port in peer.events.ports:
            peer.events.ports[peer_port][3:] = [None, 0]

    def die(self) -> None:
        for port in list(self.ports):
            self.unbind(port)


class FakeKernel:
    """As much of `guest_kernel.kernel.Kernel` as a block driver uses."""

    def __init__(self, world: World, domid: int, pages: int = 1000, vcpus: int = 1) -> None:
        self.world = world
        self.domid = domid
        self.cpu = SimpleNamespace(trace=None, vcpu_id=0)
        self.smp = SimpleNamespace(count=vcpus) if vcpus > 1 else None
        self.mm = FakeMM(world, pages)
        self.grants = FakeGrants(self)
        self.events = FakeEvents(self)
        self.block = BlockRegistry()
        self.scheduler = Scheduler(self._failed)
        self.vcpu = run_threads(self.scheduler)
        self.cmdline = ""
        self.disks: dict[int, FakeDisk] = {}
        self.hw = SimpleNamespace(disk=lambda unit: self.disks[unit])
        world.kernels[domid] = self

    def _failed(self, thread: Thread, failure: BaseException) -> None:
        self.world.failures.append(f"thread {thread.name} of domain {self.domid}: {failure!r}")

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str = "", *, panics: bool = True) -> Thread:
        return self.scheduler.spawn(coro, name, panics=panics)

    def run_ready(self) -> bool:
        """Let the vCPU run until it blocks; say whether there was anything to run."""
        if not self.scheduler.ready:
            return False
        while next(self.vcpu) is not self.scheduler.ready:
            pass
        return True

    async def wait_for(self, awaitable: Awaitable[Any], ns: int) -> Any:
        thread = self.scheduler.current
        assert thread is not None
        expired = TimeoutError()
        timer = (self.world.now + ns, len(self.world.timers), lambda: thread.interrupt(expired))
        self.world.timers.append(timer)
        try:
            return await awaitable
        finally:
            if timer in self.world.timers:
                self.world.timers.remove(timer)
            thread.withdraw(expired)


class Known:
    """The end of a command of `submit_all`: the disk may tell of it in two ways."""

    def __init__(self, pending: Any, owner: Any) -> None:
        self.pending = pending
        self.owner = owner

    def __call__(self, status: int) -> None:
        self.pending.done(status)


class FakeDisk:
    """A disk of a domain's hardware. Commands complete later, all together or in random order and groups."""

    def __init__(
        self,
        kernel: FakeKernel,
        sectors: int,
        *,
        readonly: bool = False,
        shuffled: bool = False,
        sector_size: int = SECTOR,
        secure: bool = False,
    ) -> None:
        self.kernel = kernel
        self.world = kernel.world
        self.sector_size = self.physical_sector_size = sector_size
        self.image = bytearray(sectors * sector_size)
        self.sectors = sectors
        self.readonly = readonly
        self.discards = not readonly
        self.discards_securely = secure
        self.shuffled = shuffled
        self.stuck = False
        self.bad_sectors: set[int] = set()
        self.queued: list[tuple[int, int, list[tuple[int, int]], Callable[[int], None]]] = []
        self.started: list[tuple[int, int, list[tuple[int, int]], Callable[[int], None]]] = []
        self.log: list[tuple[int, int, int]] = []
        self.kicks = 0
        self.on_change: Callable[[], None] | None = None
        self.after: list[Callable[[], None]] = []
        kernel.disks[len(kernel.disks)] = self
        self.world.disks.append(self)

    def submit(self, op: int, sector: int, segments: bytes, done: Callable[[int], None], sectors: int = 0) -> None:
        assert (op in (DISCARD, SECURE_DISCARD)) == bool(sectors)
        assert op != SECURE_DISCARD or self.discards_securely
        parts = [(0, sectors * self.sector_size)] if sectors else list(Struct("<QQ").iter_unpack(segments))
        self.queued.append((op, sector, parts, done))

    def submit_one(self, op: int, sector: int, segments: bytes, pending: Any, owner: Any) -> None:
        self.submit_all([(op, sector, segments, pending)], owner)

    def submit_all(self, commands: list[tuple[int, int, bytes, Any]], owner: Any) -> None:
        for op, sector, segments, pending in commands:
            self.queued.append((op, sector, list(Struct("<QQ").iter_unpack(segments)), Known(pending, owner)))

    def afterwards(self, callback: Callable[[], None]) -> None:
        self.after.append(callback)

    def watch(self, callback: Callable[[], None] | None) -> None:
        self.on_change = callback

    def resize(self, sectors: int) -> None:
        self.image = self.image.ljust(sectors * self.sector_size, b"\0")[: sectors * self.sector_size]
        self.sectors = sectors
        assert self.on_change is not None
        self.on_change()

    def kick(self) -> None:
        self.kicks += 1
        self.started += self.queued
        self.queued.clear()

    def complete(self) -> bool:
        if self.stuck or not self.started:
            return False
        batch, self.started = self.started, []
        if self.shuffled:
            self.world.rng.shuffle(batch)
            cut = self.world.rng.randint(1, len(batch))
            self.started = batch[cut:]
            batch = batch[:cut]
        known = [done for *_, done in batch if isinstance(done, Known)]
        if len(known) == len(batch) and len({done.owner for done in known}) == 1 and self.world.rng.randrange(2):
            ends = [(done, self.perform(op, sector, segments)) for op, sector, segments, done in batch]
            for done, status in ends:
                if status:
                    done(status)
            well = [done.pending for done, status in ends if not status]
            if len(well) == 1:
                known[0].owner.finished_one(well[0])
            else:
                known[0].owner.finished(well)
        else:
            for op, sector, segments, done in batch:
                done(self.perform(op, sector, segments))
        callbacks, self.after = self.after, []
        for callback in callbacks:
            callback()
        return True

    def perform(self, op: int, sector: int, segments: list[tuple[int, int]]) -> int:
        self.log.append((op, sector, sum(size for _, size in segments) // self.sector_size))
        if op == FLUSH:
            return 0
        at = sector * self.sector_size
        if op in (DISCARD, SECURE_DISCARD):
            ((_, size),) = segments
            if not self.bad_sectors.isdisjoint(range(sector, sector + size // self.sector_size)):
                return -errno.EIO
            assert at + size <= len(self.image), "a discard beyond the end of the disk"
            self.image[at : at + size] = bytes(size)
            return 0
        mapped = {mfn for _, _, mfn, writable in self.kernel.grants.maps.values() if writable or op != READ}
        for maddr, size in segments:
            for frame in range(maddr // PAGE, (maddr + size - 1) // PAGE + 1):
                assert frame in mapped, f"DMA to frame {frame}, which is not mapped"
            if not self.bad_sectors.isdisjoint(range(at // self.sector_size, (at + size) // self.sector_size)):
                return -errno.EIO
            assert at + size <= len(self.image), "DMA beyond the end of the disk"
            if op == READ:
                self.world.memory[maddr : maddr + size] = self.image[at : at + size]
            else:
                self.image[at : at + size] = self.world.memory[maddr : maddr + size]
            at += size
        return 0


class FakeDevice:
    """One end of a device on a dictionary that both ends share; the test plays the bus."""

    def __init__(self, kernel: FakeKernel, driver: Any, store: dict[str, str], side: str, otherend_id: int) -> None:
        self.kernel = kernel
        self.driver = driver
        self.store = store
        self.side = side
        self.type = "vbd"
        self.id = "51712"
        self.path = side
        self.otherend = "backend" if side == "frontend" else "frontend"
        self.otherend_id = otherend_id
        self.otherend_state = 4  # Connected
        self.data: Any = None
        self.fatals: list[str] = []
        self.errors: list[str] = []
        self.announced: list[dict[str, object]] = []

    async def read(self, key: str) -> str | None:
        return self.store.get(f"{self.path}/{key}")

    async def read_many(self, *keys: str) -> dict[str, str | None]:
        return {key: self.store.get(f"{self.path}/{key}") for key in keys}

    async def read_otherend_many(self, *keys: str) -> dict[str, str | None]:
        return {key: self.store.get(f"{self.otherend}/{key}") for key in keys}

    async def write(self, values: dict[str, object] | None = None, **keys: object) -> None:
        for key, value in {**(values or {}), **keys}.items():
            self.store[f"{self.path}/{key}"] = str(int(value)) if isinstance(value, bool) else str(value)

    def announce(self, values: dict[str, object]) -> None:
        self.announced.append(values)
        self.store.update({f"{self.path}/{key}": str(value) for key, value in values.items()})

    async def wait_for(self, key: str) -> str:
        return self.store[f"{self.path}/{key}"]

    async def watch_otherend(self, key: str, callback: Callable[[], None]) -> None:
        return None

    async def fatal(self, message: str, number: int = 5) -> None:
        self.fatals.append(message)

    async def error(self, message: str, number: int = 5) -> None:
        self.errors.append(message)
