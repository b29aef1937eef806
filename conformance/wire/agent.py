"""What does in a domain what a process outside asks for: the process is the domain's driver, this its hands.

One message is one step of the domain: while the process thinks, the host's time stands still, and with each message it
goes on a little, so that the domain's peers can act between any two. Whatever the process asks is a hypercall, or a
request to xenstore, of its domain: it can do what that may, and is answered as that would be.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, final

import attrs

from conformance.kit.check import Failure
from conformance.kit.place import Place
from conformance.kit.split_host import Occupant
from conformance.wire import protocol as wire
from conformance.wire.connection import Connection
from conformance.wire.protocol import Malformed, Message, News, Type
from conformance.wire.window import Window, WindowFull
from guest_kernel.errors import GrantError, OutOfMemory, XenError
from guest_kernel.grants import CopyOp, MappedGrant
from guest_kernel.kernel import Kernel
from guest_kernel.mm import Page
from guest_kernel.threads import WaitQueue
from guest_kernel.xenbus.client import XenstoreError
from guest_kernel.xenbus.watch import Watch
from hypervisor.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_no_space,
)
from hypervisor.abi.io import xs_wire as xs
from hypervisor.abi.xen import DOMID_SELF
from toolstack.host import Host

STEP_NS: Final = 1000
"""Virtual time that goes by with each message."""
JOB_LOOK_NS: Final = 200_000
ENDLESS_NS: Final = 1 << 62
MAX_LINE: Final = 1024
"""Bytes of a line for the console."""
MAX_BATCH: Final = 512
"""Grants in one message."""
MAX_NEWS: Final = 512
"""What one answer to `wait` may tell; the rest waits for the next."""
MAX_WATCHES: Final = 100
"""The store allows 128 to a domain, which has some of its own."""
MAX_EVENTS: Final = 1024
"""Events of watches that may wait. What comes then makes the process look at the whole again, which says the same."""

STORE_REQUESTS: Final = frozenset(
    (
        xs.XS_DIRECTORY,
        xs.XS_DIRECTORY_PART,
        xs.XS_READ,
        xs.XS_WRITE,
        xs.XS_MKDIR,
        xs.XS_RM,
        xs.XS_GET_PERMS,
        xs.XS_SET_PERMS,
        xs.XS_GET_DOMAIN_PATH,
        xs.XS_TRANSACTION_START,
        xs.XS_TRANSACTION_END,
    )
)
"""What is passed on as it is. (XS_WATCH and XS_UNWATCH are seen to here: the domain has watches of its own, too.)"""

Answer = tuple[int, bytes]
OnDone = Callable[[int, int, bytes], None]
"""Takes the number of a job, its status, and what it has brought."""
OnFrame = Callable[[bytes], None]


@attrs.define
class Mapping:
    """A grant that the process has mapped."""

    grant: MappedGrant
    mfn: int


@final
class Agent:
    """The process's domain, as it sees that."""

    def __init__(self, kernel: Kernel, connection: Connection, window: Window, *, hears_jobs: bool = False) -> None:
        self.kernel = kernel
        self.connection = connection
        self.window = window
        self.mappings: dict[int, Mapping] = {}
        """By handle."""
        self.pages: dict[int, Page] = {}
        """Own pages, by page of the window."""
        self.refs: dict[int, int] = {}
        """Own grants: the page of the window, by reference."""
        self.ports: set[int] = set()
        self.watches: dict[tuple[str, str], Watch] = {}
        self._events: dict[int, None] = {}
        self._fired: dict[tuple[str, str], None] = {}
        self.jobs: deque[bytes] = deque()
        """Jobs of a frontend's guest that the process has not heard of."""
        self.on_done: OnDone = lambda number, status, data: None
        self.on_frame: OnFrame = lambda frame: None
        self.kept = 0, 0
        """How many mappings and ports there were when the domain ended."""
        self.hears_jobs = hears_jobs
        self._news = WaitQueue()
        self._operations: dict[int, Callable[[bytes], Awaitable[Answer]]] = {
            Type.wait: self._wait,
            Type.store: self._store,
            Type.map: self._map,
            Type.unmap: self._unmap,
            Type.copy: self._copy,
            Type.alloc: self._alloc,
            Type.free: self._free,
            Type.grant: self._grant,
            Type.end_access: self._end_access,
            Type.alloc_unbound: self._alloc_unbound,
            Type.bind_interdomain: self._bind_interdomain,
            Type.close: self._close,
            Type.send: self._send,
            Type.time: self._time,
            Type.log: self._log,
            Type.done: self._done,
            Type.frame: self._frame,
        }

    async def serve(self) -> None:
        """Do what the process asks, until the domain is ended. Raises Failure for what is wrong with the process."""
        try:
            await self.kernel.xenbus.connected()
            while True:
                message = self.connection.receive()
                await self.kernel.sleep(STEP_NS)
                self.connection.reply(message, *await self._answer(message))
        finally:
            self.kept = len(self.mappings), len(self.ports)
            self.window.hide_all()

    def post(self, job: bytes) -> None:
        """Give the process a job. (The caller is in another domain: this one must look by itself.)"""
        self.jobs.append(job)

    async def _answer(self, message: Message) -> Answer:
        operation = self._operations.get(message.type)
        if operation is None:
            return -errno.ENOSYS, b""
        try:
            return await operation(message.payload)
        except Malformed:
            return -errno.EINVAL, b""
        except (OutOfMemory, WindowFull):
            return -errno.ENOMEM, b""
        except XenError as error:
            return -(error.errno or errno.EIO), b""
        except XenstoreError as error:
            return -getattr(errno, error.name.partition(" ")[0], errno.EIO), b""

    # -- what happens -------------------------------------------------------------------------------------------------

    async def _wait(self, payload: bytes) -> Answer:
        (ns,) = wire.exactly(wire.WAIT, payload)
        end = None if ns >= ENDLESS_NS else self.kernel.monotonic_ns() + ns
        while not self._has_news():
            left = ENDLESS_NS if end is None else end - self.kernel.monotonic_ns()
            if left <= 0:
                break
            await self._something(min(left, JOB_LOOK_NS) if self.hears_jobs else left)
        return 0, self._take_news()

    async def _something(self, ns: int) -> None:
        """Wait for news, so long at most."""
        if ns == ENDLESS_NS:
            await self._news.wait()
        else:
            with suppress(TimeoutError):
                await self.kernel.wait_for(self._news.wait(), ns)

    def _has_news(self) -> bool:
        return bool(self._events or self._fired or self.jobs)

    def _take_news(self) -> bytes:
        told: list[tuple[int, bytes]] = [(News.event, wire.U32.pack(port)) for port in self._events]
        self._events.clear()
        room = wire.MAX_PAYLOAD // 2
        while self._fired and len(told) < MAX_NEWS and sum(len(data) for _, data in told) < room:
            path, token = next(iter(self._fired))
            del self._fired[path, token]
            told.append((News.watch, f"{path}\0{token}\0".encode()))
        while self.jobs and len(told) < MAX_NEWS and sum(len(data) for _, data in told) + len(self.jobs[0]) < room:
            told.append((News.job, self.jobs.popleft()))
        if not told and self.jobs:
            # It is large, and has an answer of its own.
            told.append((News.job, self.jobs.popleft()))
        return b"".join(wire.NEWS.pack(kind, len(data)) + data for kind, data in told)

    def _listener(self, port: int) -> None:
        self._events[port] = None
        self._news.wake_all()

    # -- xenstore -----------------------------------------------------------------------------------------------------

    async def _store(self, payload: bytes) -> Answer:
        (kind, tx_id), rest = wire.unpack(wire.STORE, payload)
        if kind == xs.XS_WATCH:
            return await self._watch(*_path_and_token(rest))
        if kind == xs.XS_UNWATCH:
            watch = self.watches.pop(_path_and_token(rest), None)
            if watch is None:
                return -errno.ENOENT, b""
            await watch.cancel()
            return 0, b"OK\0"
        if kind not in STORE_REQUESTS:
            return -errno.ENOSYS, b""
        return 0, await self.kernel.xenbus.send(kind, tx_id, rest, "")

    async def _watch(self, path: str, token: str) -> Answer:
        key = path, token
        if key in self.watches:
            return -errno.EEXIST, b""
        if len(self.watches) >= MAX_WATCHES:
            return -errno.E2BIG, b""

        def fires(changed: str, _: str) -> None:
            if len(self._fired) >= MAX_EVENTS:
                changed = path
            self._fired[changed, token] = None
            self._news.wake_all()

        self.watches[key] = await self.kernel.xenbus.watch(path, fires, direct=True)
        return 0, b"OK\0"

    # -- other domains' pages -----------------------------------------------------------------------------------------

    async def _map(self, payload: bytes) -> Answer:
        (domid, flags, count), rest = wire.unpack(wire.MAP, payload)
        refs = wire.numbers(rest)
        if len(refs) != count or count > MAX_BATCH or flags & ~wire.MAP_READONLY:
            raise Malformed
        grants = self.kernel.grants.map_refs(domid, refs, not flags & wire.MAP_READONLY)
        return 0, b"".join(wire.MAPPED.pack(*self._shown(grant)) for grant in grants)

    def _shown(self, grant: MappedGrant) -> tuple[int, int, int]:
        """Show a mapped grant to the process; return status, handle, page."""
        if grant.status:
            return grant.status, 0, 0
        mfn = self.kernel.mm.virt_to_mfn(grant.va)
        try:
            page = self.window.show(mfn)
        except WindowFull:
            self.kernel.grants.unmap([grant])
            return GNTST_no_space, 0, 0
        self.mappings[grant.handle] = Mapping(grant, mfn)
        return 0, grant.handle, page

    async def _unmap(self, payload: bytes) -> Answer:
        handles = wire.numbers(payload)
        if len(handles) > MAX_BATCH:
            raise Malformed
        statuses = []
        for handle in handles:
            mapping = self.mappings.pop(handle, None)
            if mapping is not None:
                self.window.hide(mapping.mfn)
                self.kernel.grants.unmap([mapping.grant])
            statuses.append(GNTST_bad_handle if mapping is None else 0)
        return 0, b"".join(map(wire.STATUS.pack, statuses))

    async def _copy(self, payload: bytes) -> Answer:
        if len(payload) % wire.COPY.size or len(payload) > MAX_BATCH * wire.COPY.size:
            raise Malformed
        wanted = [self._copy_operation(*fields) for fields in wire.COPY.iter_unpack(payload)]
        done = iter(self.kernel.grants.copy([operation for operation in wanted if operation is not None]))
        statuses = [GNTST_bad_page if operation is None else next(done) for operation in wanted]
        return 0, b"".join(map(wire.STATUS.pack, statuses))

    def _copy_operation(
        self, source: int, dest: int, source_domid: int, dest_domid: int, source_offset: int, dest_offset: int,
        length: int, flags: int, _: int,
    ) -> CopyOp | None:  # fmt: skip
        """Return what Xen is to copy; None if it names a page that is not the domain's own."""
        if flags & ~(wire.COPY_SOURCE_GREF | wire.COPY_DEST_GREF):
            raise Malformed
        if flags & wire.COPY_SOURCE_GREF:
            come_from = source, source_domid
        elif source in self.pages:
            come_from = self.pages[source].mfn, DOMID_SELF
        else:
            return None
        if flags & wire.COPY_DEST_GREF:
            go_to = dest, dest_domid
        elif dest in self.pages:
            go_to = self.pages[dest].mfn, DOMID_SELF
        else:
            return None
        xen_flags = (GNTCOPY_source_gref if flags & wire.COPY_SOURCE_GREF else 0) | (
            GNTCOPY_dest_gref if flags & wire.COPY_DEST_GREF else 0
        )
        return *come_from, source_offset, *go_to, dest_offset, length, xen_flags

    # -- own pages ----------------------------------------------------------------------------------------------------

    async def _alloc(self, payload: bytes) -> Answer:
        (count,) = wire.exactly(wire.U32, payload)
        if count > MAX_BATCH:
            raise Malformed
        made: list[int] = []
        for page in self.kernel.mm.alloc_pages(count):
            try:
                number = self.window.show(page.mfn)
            except WindowFull:
                self.kernel.mm.free_page(page)
                continue
            self.pages[number] = page
            made.append(number)
        if len(made) < count:
            for number in made:
                self._give_back(number)
            raise WindowFull
        return 0, b"".join(map(wire.U32.pack, made))

    async def _free(self, payload: bytes) -> Answer:
        (number,) = wire.exactly(wire.U32, payload)
        if number not in self.pages:
            return -errno.EINVAL, b""
        if number in self.refs.values():
            return -errno.EBUSY, b""
        self._give_back(number)
        return 0, b""

    def _give_back(self, number: int) -> None:
        page = self.pages.pop(number)
        self.window.hide(page.mfn)
        self.kernel.mm.free_page(page)

    async def _grant(self, payload: bytes) -> Answer:
        domid, flags, number = wire.exactly(wire.GRANT, payload)
        page = self.pages.get(number)
        if page is None or flags & ~wire.GRANT_READONLY:
            return -errno.EINVAL, b""
        try:
            ref = self.kernel.grants.grant_access(domid, page, bool(flags & wire.GRANT_READONLY))
        except GrantError:
            return -errno.ENOSPC, b""
        self.refs[ref] = number
        return 0, wire.U32.pack(ref)

    async def _end_access(self, payload: bytes) -> Answer:
        (ref,) = wire.exactly(wire.U32, payload)
        if ref not in self.refs:
            return -errno.EINVAL, b""
        if not self.kernel.grants.end_access(ref):
            return -errno.EBUSY, b""
        del self.refs[ref]
        return 0, b""

    # -- event channels -----------------------------------------------------------------------------------------------

    async def _alloc_unbound(self, payload: bytes) -> Answer:
        (domid,) = wire.exactly(wire.U32, payload)
        _check_domid(domid)
        return self._bound(lambda handler: self.kernel.events.alloc_unbound(domid, handler))

    async def _bind_interdomain(self, payload: bytes) -> Answer:
        domid, port = wire.exactly(wire.BIND, payload)
        _check_domid(domid)
        return self._bound(lambda handler: self.kernel.events.bind_interdomain(domid, port, handler))

    def _bound(self, bind: Callable[[Callable[[], None]], int]) -> Answer:
        port = bind(lambda: self._listener(port))
        self.ports.add(port)
        return 0, wire.U32.pack(port)

    async def _close(self, payload: bytes) -> Answer:
        (port,) = wire.exactly(wire.U32, payload)
        if port not in self.ports:
            return -errno.EINVAL, b""
        self.ports.remove(port)
        self._events.pop(port, None)
        self.kernel.events.unbind(port)
        return 0, b""

    async def _send(self, payload: bytes) -> Answer:
        (port,) = wire.exactly(wire.U32, payload)
        if port not in self.ports:
            return -errno.EINVAL, b""
        self.kernel.events.notify(port)
        return 0, b""

    # -- the rest -----------------------------------------------------------------------------------------------------

    async def _time(self, payload: bytes) -> Answer:
        if payload:
            raise Malformed
        return 0, wire.U64.pack(self.kernel.monotonic_ns())

    async def _log(self, payload: bytes) -> Answer:
        if len(payload) > MAX_LINE:
            raise Malformed
        self.kernel.console.write(payload.decode("utf-8", "replace").rstrip("\n") + "\n")
        return 0, b""

    async def _done(self, payload: bytes) -> Answer:
        (number, status), data = wire.unpack(wire.DONE, payload)
        self.on_done(number, status, data)
        return 0, b""

    async def _frame(self, payload: bytes) -> Answer:
        if not self.hears_jobs or len(payload) > wire.MAX_FRAME:
            raise Malformed
        self.on_frame(payload)
        return 0, b""


def _check_domid(domid: int) -> None:
    """Raise Malformed if this cannot be a domain's number."""
    if domid > 0xFFFF:
        raise Malformed


def _path_and_token(payload: bytes) -> tuple[str, str]:
    """Return the path and the token of a watch. Raises Malformed."""
    parts = payload.split(b"\0")
    if len(parts) != 3 or parts[2]:
        raise Malformed
    try:
        return parts[0].decode("ascii"), parts[1].decode("ascii")
    except UnicodeDecodeError:
        raise Malformed from None


@final
class Seat(Occupant):
    """Where a check's process sits: what the program of its domain finds, and what came of it."""

    settings = f'memory = 16\nkernel = "{Path(__file__).with_name("agent_guest.py")}"'

    def __init__(self, connection: Connection, window: Window, *, hears_jobs: bool = False) -> None:
        self.connection = connection
        self.window = window
        self.failure: Failure | None = None
        self.agent: Agent | None = None
        self.on_done: OnDone = lambda number, status, data: None
        self.on_frame: OnFrame = lambda frame: None
        self.is_open = True
        """The process is listened to."""
        self.beside: Callable[[Kernel], Coroutine[Any, Any, None]] | None = None
        """What its domain does besides."""
        self.thinks = connection.silence
        self._hears_jobs = hears_jobs
        self._host: Host | None = None

    def attend(self, host: Host) -> None:
        """Take note of the host."""
        self._host = host

    def end(self) -> None:
        """Have the host shut down in order."""
        if self._host is not None:
            self._host.interrupt()

    def settle(self, host: Host) -> None:
        """Show the process memory of this host."""
        self.window.attach(host.hv.memory)

    @contextmanager
    def present(self) -> Iterator[None]:
        """Have the domain's program find this seat."""
        with place.taken_by(self):
            yield

    def left_behind(self) -> str:
        """Return what a backend still had of a frontend: by then all frontends are gone."""
        mappings, ports = (0, 0) if self.agent is None or self._hears_jobs else self.agent.kept
        if not mappings and not ports:
            return ""
        return f"{mappings} mapped pages and {ports} event channels of a frontend that is gone"

    def judge(self) -> None:
        """Raise Failure for what was wrong with the process, whatever else its check has found."""
        if self.failure is not None:
            raise self.failure
        touched = self.window.touched()
        if touched:
            raise Failure(
                f"The process reads or writes page {touched[0]} of its window, where nothing is mapped (now)."
            )

    async def live(self, kernel: Kernel) -> None:
        """Be the domain's program."""
        agent = Agent(kernel, self.connection, self.window, hears_jobs=self._hears_jobs)
        agent.on_done, agent.on_frame = self.on_done, self.on_frame
        self.agent = agent
        if self.beside is not None:
            kernel.spawn(self.beside(kernel), "beside the agent")
        try:
            while not self.is_open:
                await kernel.sleep(JOB_LOOK_NS)
            await agent.serve()
        except Failure as failure:
            self.failure = failure


place: Final[Place[Seat]] = Place()
"""Where the domain's program finds its seat."""
