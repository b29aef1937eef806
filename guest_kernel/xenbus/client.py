"""The kernel's xenstore client: requests of many threads, transactions and watches over one ring.

Requests are pipelined.  `submit` only queues bytes; they go into the ring, with one event for all of them, when a
thread waits for a reply (or the ring is full).  Replies are matched by req_id and may come in any order.  What arrives
is parsed in the event's upcall: it wakes the thread that waits for the reply, or queues a watch event.  No thread of
the client's own stands in between, so neither a slow callback nor a thread that waits can hold up a reply.

A round trip costs two events and two domain switches; a request that is pipelined with others costs only its bytes.
Hence the `_many` calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar, final

from guest_kernel.threads import WaitQueue
from guest_kernel.xenbus import wire
from guest_kernel.xenbus.ring import ClientRing, RingError
from guest_kernel.xenbus.watch import Callback, Watch
from hypervisor.abi.io import xs_wire as xs

T = TypeVar("T")

TRANSACT_ATTEMPTS = 100
"""How often `transact` tries before it gives up and raises EAGAIN."""


class XenstoreError(Exception):
    """The server refused a request, or the connection broke (EIO).  `name` is the errno's name, as on the wire."""

    def __init__(self, name: str, request: str, path: str = "") -> None:
        super().__init__(f"xenstore {request} {path}: {name}" if path else f"xenstore {request}: {name}")
        self.name = name
        self.request = request
        self.path = path


class Permission(NamedTuple):
    """One entry of a node's permissions: access "n", "r", "w" or "b" (both), for a domain.

    The first entry of the list names the owner, who may always do everything; its access is everybody else's.
    """

    access: str
    domid: int

    def __str__(self) -> str:
        return f"{self.access}{self.domid}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the permission that the wire form ("r5") stands for.  Raises ValueError."""
        if text[:1] not in ("n", "r", "w", "b"):
            raise ValueError(f"permission {text!r} does not begin with n, r, w or b")
        return cls(text[0], int(text[1:]))


@final
class Reply:
    """A request on its way: awaiting it gives the reply's payload or raises XenstoreError."""

    __slots__ = ("_client", "_error", "_on_reply", "_payload", "_queue", "kind", "path")

    def __init__(self, client: XenbusClient, kind: int, path: str) -> None:
        self._client = client
        self.kind = kind
        self.path = path
        self._payload: bytes | None = None
        self._error: str | None = None
        self._queue: WaitQueue | None = None
        self._on_reply: Callable[[bytes], None] | None = None

    def __await__(self) -> Generator[Any, Any, bytes]:
        if self._payload is None and self._error is None:
            self._client.flush()
        while self._payload is None and self._error is None:
            if self._queue is None:
                self._queue = WaitQueue()
            yield from self._queue.wait()
        if self._payload is None:
            assert self._error is not None
            raise XenstoreError(self._error, request_name(self.kind), self.path)
        return self._payload

    def resolve(self, kind: int, payload: bytes) -> None:
        """Take the reply."""
        if kind == xs.XS_ERROR:
            name = wire.to_text(payload.rstrip(b"\0"))
            self.fail(name if name in xs.XSD_ERRORS else f"EIO (the server answered {name[:32]!r})")
        elif kind != self.kind:
            self.fail(f"EIO (the server answered with {request_name(kind)})")
        else:
            self._payload = payload
            if self._on_reply is not None:
                self._on_reply(payload)
            self._wake()

    def then(self, function: Callable[[bytes], None]) -> None:
        """Call `function(payload)` when the request has succeeded, now if it has: for one that nobody waits for."""
        if self._payload is not None:
            function(self._payload)
        else:
            self._on_reply = function

    def fail(self, error: str) -> None:
        """End the request with an error."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._queue is not None:
            self._queue.wake_all()


def request_name(kind: int) -> str:
    """Return the name of a message type as users know it, "READ"."""
    return str(xs.NAMES.get(kind, kind)).removeprefix("XS_")


class Operations:
    """What can be done to nodes, outside a transaction or inside one.

    Paths are absolute ("/local/domain/0/...") or relative to the own domain ("device/vbd").  All calls raise
    XenstoreError with the server's errno name.
    """

    _client: XenbusClient
    _tx_id: int

    def submit(self, kind: int, payload: bytes, path: str = "") -> Reply:
        """Queue a request; await the returned object for its reply.

        Raises XenstoreError: E2BIG without asking if the payload is above 4096 bytes (the server would hang up), EIO if
        the connection is broken.
        """
        return self._client.send(kind, self._tx_id, payload, path)

    async def read_bytes(self, path: str) -> bytes:
        """Return the value of a node."""
        return await self.submit(xs.XS_READ, wire.join(path), path)

    async def read(self, path: str) -> str:
        """Return the value of a node as text."""
        return wire.to_text(await self.read_bytes(path))

    async def read_many(self, paths: Sequence[str]) -> list[str | None]:
        """Return the values of several nodes in one round trip; None for one that is missing or not readable.

        (To a guest the server does not tell the difference: see "EACCES" of a missing node.)
        """
        replies = [self.submit(xs.XS_READ, wire.join(path), path) for path in paths]
        values: list[str | None] = []
        for reply in replies:
            try:
                values.append(wire.to_text(await reply))
            except XenstoreError as error:
                if error.name not in ("ENOENT", "EACCES"):
                    raise
                values.append(None)
        return values

    async def read_or_none(self, path: str) -> str | None:
        """Return the value of a node, None if it is missing or not readable."""
        return (await self.read_many([path]))[0]

    async def exists(self, path: str) -> bool:
        """Return whether the node exists and may be read."""
        return await self.read_or_none(path) is not None

    async def write(self, path: str, value: object) -> None:
        """Set the value of a node, making it and its parents if needed.  `value` goes through `wire.to_bytes`."""
        await self.submit(xs.XS_WRITE, wire.join(path) + wire.to_bytes(value), path)

    async def write_many(self, values: Mapping[str, object]) -> None:
        """Set several nodes, in order, in one round trip.  The first error is raised after all were tried."""
        await gather([self.submit(xs.XS_WRITE, wire.join(p) + wire.to_bytes(v), p) for p, v in values.items()])

    async def mkdir(self, path: str) -> None:
        """Make a node with an empty value; nothing happens if it exists."""
        await self.submit(xs.XS_MKDIR, wire.join(path), path)

    async def rm(self, path: str) -> None:
        """Remove a node and everything below; nothing happens if it does not exist (but its parent must)."""
        await self.submit(xs.XS_RM, wire.join(path), path)

    async def directory(self, path: str) -> list[str]:
        """Return the names of the children of a node, in the server's order; in pieces if there are very many."""
        try:
            return wire.split(await self.submit(xs.XS_DIRECTORY, wire.join(path), path))
        except XenstoreError as error:
            if error.name != "E2BIG":
                raise
        return await self._directory_in_parts(path)

    async def _directory_in_parts(self, path: str) -> list[str]:
        """Collect XS_DIRECTORY_PART replies; start over when the node changes meanwhile (its generation differs)."""
        generation, collected = b"", b""
        while True:
            payload = await self.submit(xs.XS_DIRECTORY_PART, wire.join(path, str(len(collected))), path)
            current, _, part = payload.partition(b"\0")
            if generation and current != generation:
                generation, collected = b"", b""
                continue
            generation = current
            # An extra NUL after the last entry marks the end; alone it is an offset past the end.
            if part.endswith(b"\0\0") or part == b"\0" or not part:
                return wire.split((collected + part).removesuffix(b"\0")) if collected + part != b"\0" else []
            collected += part

    async def get_perms(self, path: str) -> list[Permission]:
        """Return the permissions of a node; the first entry is the owner's."""
        reply = await self.submit(xs.XS_GET_PERMS, wire.join(path), path)
        return [Permission.parse(entry) for entry in wire.split(reply)]

    async def set_perms(self, path: str, permissions: Iterable[Permission | str]) -> None:
        """Replace the permissions of a node: `set_perms(path, ["n0", "r5"])`."""
        await self.submit(xs.XS_SET_PERMS, wire.join(path, *[str(entry) for entry in permissions]), path)


async def gather(replies: Sequence[Reply]) -> list[bytes]:
    """Wait for all replies; return their payloads or raise the first error."""
    payloads: list[bytes] = []
    first: XenstoreError | None = None
    for reply in replies:
        try:
            payloads.append(await reply)
        except XenstoreError as error:
            first = first or error
    if first is not None:
        raise first
    return payloads


@final
class Transaction(Operations):
    """`async with client.transaction() as t:`: all of it becomes visible at the end, or XenstoreError EAGAIN.

    An exception in the block aborts.  EAGAIN at the end means that somebody else changed a node that was touched; use
    `XenbusClient.transact`, which tries again.
    """

    def __init__(self, client: XenbusClient) -> None:
        self._client = client
        self._tx_id = 0
        self._open = False

    async def __aenter__(self) -> Self:
        reply = self._client.send(xs.XS_TRANSACTION_START, 0, b"\0", "")
        try:
            payload = await reply
        except BaseException:
            # Interrupted, and the server will open it all the same (after an error nothing will come).
            reply.then(self._abandon)
            raise
        self._tx_id = _number(payload, "TRANSACTION_START")
        self._open = True
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is GeneratorExit:
            # The thread is being thrown away with its domain: there is nobody to wait for.
            self._open = False
        if self._open:
            try:
                await self.end(commit=kind is None)
            except XenstoreError:
                # What went wrong in the block comes first; the server has dropped the transaction either way.
                if kind is None:
                    raise

    async def end(self, *, commit: bool) -> None:
        """Commit or abort before the block ends.  Raises XenstoreError EAGAIN on a conflict."""
        self._open = False
        await self.submit(xs.XS_TRANSACTION_END, b"T\0" if commit else b"F\0")

    def _abandon(self, payload: bytes) -> None:
        self._client.send(xs.XS_TRANSACTION_END, _number(payload, "TRANSACTION_START"), b"F\0", "")
        self._client.flush()


def _number(payload: bytes, request: str) -> int:
    try:
        return int(payload.rstrip(b"\0"))
    except ValueError:
        raise XenstoreError(f"EIO (the server answered {payload[:32]!r})", request) from None


class XenbusClient(Operations):
    """The client of one domain.  `spawn(coro, name)` starts a thread; `signal()` sends the ring's event."""

    def __init__(
        self, page: memoryview, signal: Callable[[], None], spawn: Callable[[Coroutine[Any, Any, Any], str], Any]
    ) -> None:
        self._client = self
        self._tx_id = 0
        self.ring = ClientRing(page)
        self.spawn = spawn
        #: dom0 only: (machine frame, local event channel port) that the server attaches to.
        self.dom0_interface: tuple[int, int] | None = None
        #: Why the connection is unusable; None while it works.
        self.broken: str | None = None
        #: Replies that no request waited for (a misbehaving server).
        self.strays = 0
        #: Requests sent so far.
        self.requests = 0
        #: Times that requests were put into the ring because a thread waits: round trips, about.
        self.flushes = 0
        self._signal = signal
        self._parser = wire.Parser()
        self._out: list[bytes] = []
        self._out_at = 0
        self._pending: dict[int, Reply] = {}
        self._next_req_id = 1
        self._watches: dict[str, Watch] = {}
        self._next_token = 1
        self._connected = WaitQueue()
        self._resetting = not self.ring.connected

    # ---- requests

    def send(self, kind: int, tx_id: int, payload: bytes, path: str) -> Reply:
        """Queue one request of a transaction (0: of none); see `Operations.submit`."""
        if self.broken is not None:
            raise XenstoreError("EIO", f"{request_name(kind)} ({self.broken})", path)
        if len(payload) > xs.XENSTORE_PAYLOAD_MAX:
            raise XenstoreError("E2BIG", request_name(kind), path[:64])
        pending = self._pending
        req_id = self._next_req_id
        while req_id in pending:
            req_id = req_id % 0xFFFFFFFF + 1
        self._next_req_id = req_id % 0xFFFFFFFF + 1
        reply = pending[req_id] = Reply(self, kind, path)
        self._out.append(wire.HEADER.pack(kind, req_id, tx_id, len(payload)) + payload)
        self.requests += 1
        return reply

    def flush(self) -> None:
        """Put queued requests into the ring, as far as they fit; the rest follows as the server takes them."""
        if self.broken is None and self.ring.connected and self._out:
            self.flushes += 1
            try:
                self._fill()
            except RingError as error:
                self._break(str(error))
        self._notify()

    def _fill(self) -> None:
        """Move bytes from the queue of requests into the ring.  Raises RingError."""
        out = self._out
        if not out:
            return
        chunk = b"".join(out) if len(out) > 1 else out[0]
        at = self._out_at + self.ring.write(chunk, self._out_at)
        out.clear()
        if at < len(chunk):
            out.append(chunk)
            self._out_at = at
        else:
            self._out_at = 0

    def _notify(self) -> None:
        ring = self.ring
        if ring.notify:
            ring.notify = False
            self._signal()

    # ---- what arrives

    def on_event(self) -> None:
        """Take what the server has sent.  The handler of the ring's event channel; runs in upcall context."""
        ring = self.ring
        if not ring.connected:
            return
        if self._resetting:
            self._reset_done()
        if self.broken is not None:
            return
        if ring.error:
            self._break(f"the server gave the ring up, error {ring.error}")
            return
        try:
            while data := ring.read():
                for message in self._parser.receive(data):
                    self._dispatch(message)
            self._fill()
        except RingError as error:
            self._break(str(error))
        if self._parser.broken is not None:
            self._break(self._parser.broken)
        self._notify()

    def _reset_done(self) -> None:
        """Begin anew on a ring that the server has just reset."""
        self._resetting = False
        self.ring.attach()
        self._parser = wire.Parser()
        self.broken = None
        self._connected.wake_all()

    def _dispatch(self, message: wire.Message) -> None:
        if message.type == xs.XS_WATCH_EVENT:
            parts = wire.split(message.payload)
            watch = self._watches.get(parts[1]) if len(parts) >= 2 else None
            if watch is not None:
                watch.deliver(parts[0])
            else:
                self.strays += 1
            return
        reply = self._pending.pop(message.req_id, None)
        if reply is None:
            self.strays += 1
        else:
            reply.resolve(message.type, message.payload)

    def _break(self, reason: str) -> None:
        """Stop using the ring and fail what is in flight."""
        self.broken = reason
        self._drop_requests()

    def _drop_requests(self) -> None:
        self._out.clear()
        self._out_at = 0
        pending = list(self._pending.values())
        self._pending.clear()
        for reply in pending:
            reply.fail("EIO")

    async def connected(self) -> None:
        """Wait until the server serves the ring: at boot it may still be resetting it (`connection` is 1)."""
        while self._resetting:
            await self._connected.wait()

    async def reconnect(self) -> None:
        """Reset a broken connection, if the server can: requests in flight fail with EIO, watches are registered anew.

        Raises XenstoreError ENOSYS if the server does not offer it.
        """
        if not self.ring.can_reconnect:
            raise XenstoreError("ENOSYS", "reconnect")
        self._break("reconnecting")
        self._resetting = True
        self.ring.reconnect()
        self._notify()
        await self.connected()
        watches = list(self._watches.values())
        await gather([self.submit(xs.XS_WATCH, wire.join(w.path, w.token), w.path) for w in watches])

    # ---- transactions

    def transaction(self) -> Transaction:
        """Return a transaction for `async with`."""
        return Transaction(self)

    async def transact(self, function: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `await function(t)` in a transaction, again from the start as often as it conflicts (EAGAIN)."""
        for _ in range(TRANSACT_ATTEMPTS):
            transaction = Transaction(self)
            try:
                async with transaction:
                    return await function(transaction)
            except XenstoreError as error:
                if error.name != "EAGAIN":
                    raise
        raise XenstoreError("EAGAIN", f"transaction, {TRANSACT_ATTEMPTS} times")

    # ---- watches

    async def watch(self, path: str, callback: Callback | None = None, *, direct: bool = False) -> Watch:
        """Watch a node and everything below; the first event comes at once.

        Without a callback, `await watch.get()`.  With one, it is called with (path, token) in a thread of the watch's
        own, one event after the other; it may be a coroutine function.  `direct`: it is called for every single event,
        in upcall context, and must neither block nor raise.
        """
        watch, reply = self.submit_watch(path, callback, direct=direct)
        try:
            await reply
        except BaseException as error:
            self.forget_watch(watch)
            if not isinstance(error, XenstoreError):
                # Cancelled while the server registers it all the same.
                self.submit(xs.XS_UNWATCH, wire.join(path, watch.token), path)
                self.flush()
            raise
        return watch

    def submit_watch(self, path: str, callback: Callback | None, *, direct: bool = False) -> tuple[Watch, Reply]:
        """Queue the registration of a watch, to be pipelined with other requests; see `watch`."""
        token = f"{self._next_token:X}"
        reply = self.submit(xs.XS_WATCH, wire.join(path, token), path)
        self._next_token += 1
        watch = self._watches[token] = Watch(self, path, token, callback, direct)
        return watch, reply

    def forget_watch(self, watch: Watch) -> None:
        """Drop a watch that the server has refused: there is nothing to be taken back."""
        watch.active = False
        self._watches.pop(watch.token, None)

    async def unwatch(self, watch: Watch) -> None:
        """Take a watch back; users call `Watch.cancel`."""
        if self._watches.pop(watch.token, None) is not None and self.broken is None:
            await self.submit(xs.XS_UNWATCH, wire.join(watch.path, watch.token), watch.path)

    @property
    def watches(self) -> list[Watch]:
        """The registered watches, oldest first."""
        return list(self._watches.values())

    async def reset_watches(self) -> None:
        """Make the server forget all watches and transactions of this domain (a former kernel's, after kexec)."""
        self._watches.clear()
        await self.submit(xs.XS_RESET_WATCHES, b"\0")

    async def wait_until(self, path: str, condition: Callable[[str | None], bool]) -> str | None:
        """Wait until `condition(value)` holds for a node's value (None: it does not exist); return that value."""
        watch = await self.watch(path)
        try:
            while True:
                await watch.get()
                value = await self.read_or_none(path)
                if condition(value):
                    return value
        finally:
            await watch.cancel()

    # ---- domains (dom0 and the toolstack)

    async def introduce(self, domid: int, mfn: int, port: int) -> None:
        """Tell the server of a new domain: the frame of its ring and its unbound event channel port."""
        await self.submit(xs.XS_INTRODUCE, wire.join(str(domid), str(mfn), str(port)))

    async def release(self, domid: int) -> None:
        """Tell the server that a domain is gone."""
        await self.submit(xs.XS_RELEASE, wire.join(str(domid)))

    async def resume(self, domid: int) -> None:
        """Tell the server that a domain that was shut down runs again."""
        await self.submit(xs.XS_RESUME, wire.join(str(domid)))

    async def set_target(self, domid: int, target: int) -> None:
        """Give `domid` the rights of domain `target` (a device model's stub domain)."""
        await self.submit(xs.XS_SET_TARGET, wire.join(str(domid), str(target)))

    async def get_domain_path(self, domid: int) -> str:
        """Return the home of a domain, "/local/domain/5"; it need not exist."""
        return wire.split(await self.submit(xs.XS_GET_DOMAIN_PATH, wire.join(str(domid))))[0]

    async def is_domain_introduced(self, domid: int) -> bool:
        """Return whether the server serves that domain's ring."""
        return (await self.submit(xs.XS_IS_DOMAIN_INTRODUCED, wire.join(str(domid))))[:1] == b"T"

    async def control(self, *words: str) -> str:
        """Send a command to the server itself (XS_CONTROL), privileged; return its answer."""
        return wire.to_text((await self.submit(xs.XS_CONTROL, wire.join(*words))).rstrip(b"\0"))
