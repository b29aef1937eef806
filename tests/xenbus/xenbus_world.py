"""Several domains around one xenstored core: real client, ring, bus and server, without a hypervisor.

Each domain has a scheduler of its own and a page that it shares with the server.  `run` makes one small move after the
other (a thread's step, an upcall, the server's turn with one ring), in an order that a `random.Random` picks, until
nothing is left to do.
"""

import random
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from backends.xenstored.connection import Connection
from backends.xenstored.server import Server
from guest_kernel.threads import Scheduler, Thread, WaitQueue, reschedule
from guest_kernel.xenbus import wire
from guest_kernel.xenbus.bus import Bus
from guest_kernel.xenbus.client import XenbusClient
from guest_kernel.xenbus.driver import XenbusDriver
from guest_kernel.xenbus.ring import ServerRing
from hypervisor.abi.io import xs_wire as xs


class Livelock(AssertionError):
    """The domains go on for ever."""


class FakeKernel:
    """What the bus needs of a kernel."""

    def __init__(self, world: "World", domid: int) -> None:
        self.world = world
        self.domid = domid
        self.scheduler = Scheduler(self.on_failure)
        self.log: list[str] = []
        self.console = SimpleNamespace(printk=self.log.append)
        self.cpu = SimpleNamespace(trace=None)
        self.page = memoryview(bytearray(4096))
        self.upcall = False
        self.xenbus = XenbusClient(self.page, lambda: world.signal_server(domid), self.scheduler.spawn)
        self.drivers: list[type[XenbusDriver]] = []
        self.bus: Bus | None = None

    def on_failure(self, thread: Thread, failure: BaseException) -> None:
        self.world.failures.append((self.domid, thread.name, failure))

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str = "") -> Thread:
        return self.scheduler.spawn(coro, name)

    async def wait_for(self, awaitable: Any, ns: int) -> Any:
        thread = self.scheduler.running()
        expired = TimeoutError()
        timer = self.world.add_timer(ns, lambda: thread.interrupt(expired))
        try:
            return await awaitable
        finally:
            self.world.timers.pop(timer, None)
            thread.withdraw(expired)

    async def yield_(self) -> None:
        await reschedule()

    def start_bus(self, *drivers: Any) -> Bus:
        self.bus = Bus(self, drivers)  # type: ignore[arg-type]
        self.spawn(self.bus.start(), "bus")
        return self.bus


class Transport:
    """The server's view of the world."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.connections: dict[int, Connection] = {}

    def exists(self, domid: int) -> bool:
        return domid in self.world.domains

    def attach(self, connection: Connection, mfn: int, port: int) -> bytes | None:
        self.connections[connection.id] = connection
        return None

    def rebind(self, connection: Connection, port: int) -> None:
        return None

    def detach(self, connection: Connection) -> None:
        self.connections.pop(connection.id, None)


class World:
    def __init__(self, seed: int = 0, *, in_order: bool = False) -> None:
        self.rng = random.Random(seed)
        self.in_order = in_order
        self.domains: dict[int, FakeKernel] = {}
        self.rings: dict[int, ServerRing] = {}
        self.server_work: dict[int, None] = {}
        self.failures: list[tuple[int, str, BaseException]] = []
        self.timers: dict[int, tuple[int, Callable[[], None]]] = {}
        self.now = 0
        self.moves = 0
        self._timer_ids = 0
        self.transport = Transport(self)
        self.server = Server(self.transport)
        self.tool = self.server.connect("toolstack")
        self._req_id = 0

    # ---- domains

    def boot(self, domid: int) -> FakeKernel:
        kernel = self.domains[domid] = FakeKernel(self, domid)
        self.rings[domid] = ServerRing(kernel.page)
        if domid == 0:
            self.transport.connections[0] = self.server.connect("dom0")
        else:
            self.write(f"/local/domain/{domid}", "")
            self.set_perms(f"/local/domain/{domid}", f"n{domid}")
            self.write(f"/local/domain/{domid}/domid", str(domid))
            self.server.introduce(domid, 1, 1)
        return kernel

    def kill(self, domid: int) -> None:
        kernel = self.domains.pop(domid)
        kernel.scheduler.destroy()
        self.rings.pop(domid)
        self.server_work.pop(domid, None)
        self.request(xs.XS_RELEASE, str(domid))

    # ---- the toolstack, all at once

    def request(self, kind: int, *strings: str, value: bytes = b"", tx: int = 0) -> bytes:
        self._req_id += 1
        self.server.receive(self.tool, wire.encode(kind, self._req_id, tx, wire.join(*strings) + value))
        (reply,) = wire.parse_all(self.tool.take(1 << 20))
        if reply.type == xs.XS_ERROR:
            raise LookupError(reply.payload.rstrip(b"\0").decode())
        return reply.payload

    def write(self, path: str, value: str, tx: int = 0) -> None:
        self.request(xs.XS_WRITE, path, value=value.encode(), tx=tx)

    def read(self, path: str) -> str | None:
        try:
            return self.request(xs.XS_READ, path).decode()
        except LookupError:
            return None

    def rm(self, path: str) -> None:
        if self.exists(path):
            self.request(xs.XS_RM, path)

    def exists(self, path: str) -> bool:
        return self.read(path) is not None

    def set_perms(self, path: str, *perms: str, tx: int = 0) -> None:
        self.request(xs.XS_SET_PERMS, path, *perms, tx=tx)

    def transaction(self, work: Callable[[int], None]) -> None:
        tx = int(self.request(xs.XS_TRANSACTION_START, "").rstrip(b"\0"))
        work(tx)
        self.request(xs.XS_TRANSACTION_END, "T", tx=tx)

    def plug(
        self, kind: str, number: str, front: int, back: int, *, atomic: bool = True, reverse: bool = False
    ) -> None:
        """Write both ends of a device, as libxl does."""
        fe, be = paths(kind, number, front, back)
        halves = [
            (be, back, front, {"frontend": fe, "frontend-id": front, "online": 1, "state": 1}),
            (fe, front, back, {"backend": be, "backend-id": back, "state": 1}),
        ]
        if reverse:
            halves.reverse()

        def work(tx: int) -> None:
            for directory, owner, reader, nodes in halves:
                self.write(directory, "", tx)
                self.set_perms(directory, f"n{owner}", f"r{reader}", tx=tx)
                for key, value in nodes.items():
                    self.write(f"{directory}/{key}", str(value), tx)

        if atomic:
            self.transaction(work)
        else:
            work(0)

    def unplug(self, kind: str, number: str, front: int, back: int) -> None:
        """Ask the backend to let the device go, as libxl does."""
        _, be = paths(kind, number, front, back)
        if not self.exists(be):
            return

        def work(tx: int) -> None:
            self.write(f"{be}/online", "0", tx)
            self.write(f"{be}/state", "5", tx)

        self.transaction(work)

    # ---- moves

    def signal_server(self, domid: int) -> None:
        self.server_work[domid] = None

    def add_timer(self, ns: int, function: Callable[[], None]) -> int:
        self._timer_ids += 1
        self.timers[self._timer_ids] = (self.now + ns, function)
        return self._timer_ids

    def deliver(self) -> None:
        """Move the server's output into rings, as far as it fits."""
        for connection in list(self.server.dirty):
            if connection is not self.tool and self.push(connection):
                del self.server.dirty[connection]

    def push(self, connection: Connection) -> bool:
        ring = self.rings.get(connection.id)
        if ring is None:
            return True
        data = connection.take(ring.room)
        if data:
            assert ring.write(data) == len(data)
            self.domains[connection.id].upcall = True
            ring.notify = False
        return not connection.queued

    def serve(self, domid: int) -> None:
        connection = self.transport.connections[domid]
        ring = self.rings[domid]
        if ring.reconnect_requested:
            self.server.reset(connection)
            ring.reset()
        while data := ring.read():
            self.server.receive(connection, data)
        self.server.receive(connection, b"")
        if ring.notify:
            ring.notify = False
            self.domains[domid].upcall = True
        self.deliver()

    def step_thread(self, kernel: FakeKernel) -> None:
        scheduler = kernel.scheduler
        thread = scheduler.ready.popleft()
        if thread.raising is not None:
            trap = scheduler.step(thread)
        else:
            scheduler.current = thread
            try:
                trap = thread.send(thread.value)
            except StopIteration as stop:
                thread.finish(stop.value)
                return
            except Exception as failure:
                thread.fail(failure)
                return
        if type(trap) is WaitQueue and thread.pending is None:
            trap.waiters.append(thread)
            thread.queue = trap
        elif trap is not None:
            assert scheduler.trapped(thread, trap) is None

    def choices(self) -> list[tuple[Callable[..., None], Any]]:
        self.deliver()
        found: list[tuple[Callable[..., None], Any]] = [(self.serve, domid) for domid in self.server_work]
        for kernel in self.domains.values():
            if kernel.upcall:
                found.append((self.upcall, kernel))
            if kernel.scheduler.ready:
                found.append((self.step_thread, kernel))
        return found

    def upcall(self, kernel: FakeKernel) -> None:
        kernel.upcall = False
        kernel.xenbus.on_event()

    def move(self) -> bool:
        choices = self.choices()
        if not choices:
            return False
        self.moves += 1
        action, argument = choices[0] if self.in_order else self.rng.choice(choices)
        if action == self.serve:
            del self.server_work[argument]
        action(argument)
        return True

    def run(self, limit: int = 200_000, *, until: Callable[[], bool] | None = None) -> None:
        """Move until nothing is left to do (or `until` holds); timers run when nothing else can."""
        for _ in range(limit):
            if until is not None and until():
                return
            if not self.move():
                if not self.timers:
                    assert until is None, "it never happened"
                    break
                timer = min(self.timers, key=lambda key: (self.timers[key][0], key))
                self.now, function = self.timers.pop(timer)
                function()
        else:
            raise Livelock(f"not done after {limit} moves")
        assert not self.failures, self.failures

    def call(self, kernel: FakeKernel, coro: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine as a thread of a domain to its end; return its result."""
        thread = kernel.scheduler.spawn(coro, "call", panics=False)
        self.run(until=lambda: thread.done)
        if thread.exception is not None:
            raise thread.exception
        return thread.result

    # ---- what is left

    def assert_quiet(self) -> None:
        """No request, transaction or thread is under way."""
        for domid, kernel in self.domains.items():
            assert not kernel.scheduler.threads, (domid, kernel.scheduler.threads)
            assert not kernel.xenbus._pending
            assert not self.transport.connections[domid].transactions
            assert kernel.xenbus.broken is None


def paths(kind: str, number: str, front: int, back: int) -> tuple[str, str]:
    """Return the directories of both ends of a device."""
    return (
        f"/local/domain/{front}/device/{kind}/{number}",
        f"/local/domain/{back}/backend/{kind}/{front}/{number}",
    )
