"""xenstored as a thread of dom0: the core on one side, rings and event channels on the other.

    guest's page ──grant 1──▶ ServerRing ──bytes──▶ Server.receive
                 ◀─────────── ServerRing ◀─bytes─── Connection.take ◀── Server.dirty
    event channel ─▶ upcall ─▶ ready queue ─▶ thread

An event puts its client at the end of the ready queue and wakes the thread.  The thread takes clients from the front:
it drains one ring (at most 1024 bytes), has everything in it answered, moves the answers and events of all clients
that got some into their rings, and signals each of them once.  Nobody is looked at without a reason, so a thousand
silent domains cost nothing, and a busy one waits its turn behind the others (XSA-206).

What a client does not take stays queued, bounded by the core.  A guest that leaves events lying for `EVENT_TIMEOUT_NS`
is given up, as the C daemon does: it would hold up the domains that caused them.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, Protocol, final

from backends.reserved_page import ReservedPage
from backends.xenstored.connection import Connection
from backends.xenstored.errors import EINVAL
from backends.xenstored.fairness import Bucket, WriteLimit
from backends.xenstored.line import Line, LineClients
from backends.xenstored.quota import Quotas
from backends.xenstored.server import DomainState, Server
from backends.xenstored.state import Loader, Place, save
from guest_kernel.errors import ThreadCancelled, XenError
from guest_kernel.kernel import Kernel
from guest_kernel.threads import Thread, WaitQueue
from guest_kernel.xenbus.ring import RingError, ServerRing
from guest_kernel.xenbus.wire import message_size
from hypervisor.abi.domctl import XEN_DOMINF_dying, XEN_DOMINF_shutdown
from hypervisor.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from hypervisor.abi.io.xs_wire import (
    XENSTORE_ERROR_COMM,
    XENSTORE_ERROR_RINGIDX,
    XENSTORE_SERVER_FEATURE_RECONNECTION,
)
from hypervisor.abi.xen import DOMID_SELF, VIRQ_DOM_EXC

TURNS: Final = 8
"""Clients that are served before the other threads of dom0 run."""
EVENT_TIMEOUT_NS: Final = 20_000_000_000
"""How long a guest may leave messages in the queue without taking a byte (C daemon: `--timeout watch-event=20`)."""


class DomainInfo(Protocol):
    """What xen_domctl_getdomaininfo says: `flags` is XEN_DOMINF_*."""

    domain: int
    flags: int


@final
class RingClient:
    """A client behind a ring: its connection, page and port."""

    __slots__ = ("connection", "credit", "disturbances", "failed", "page", "port", "ring")

    def __init__(self, connection: Connection, ring: ServerRing, now: int) -> None:
        self.connection = connection
        self.ring = ring
        #: For writes that disturb others, and how many of them have been charged.
        self.credit = Bucket(now)
        self.disturbances = 0
        #: The guest has been told that its ring is given up.
        self.failed = False
        #: Local end of the event channel.
        self.port = 0
        #: What the ring lies in; None for dom0's own, which needs no mapping.
        self.page: ReservedPage | None = None


@final
class XenStored:
    """The daemon.  `start` serves dom0's own xenbus; INTRODUCE adds domains.

    `domain_info(domid)` is XEN_DOMCTL_getdomaininfo (None: no such domain); `domain_infos()`, if given, answers for
    all domains at once.  `features`: XENSTORE_SERVER_FEATURE_* to advertise in each ring; the C daemon of 4.17
    advertises none.
    """

    def __init__(
        self,
        kernel: Kernel,
        domain_info: Callable[[int], DomainInfo | None],
        *,
        domain_infos: Callable[[], Iterable[DomainInfo]] | None = None,
        quotas: Quotas | None = None,
        features: int = 0,
    ) -> None:
        self.kernel = kernel
        self.server = self._new_server(quotas)
        self.clients: dict[Connection, RingClient] = {}
        self._domain_info = domain_info
        self._domain_infos = domain_infos
        self._features = features
        self._ready: dict[RingClient, None] = {}
        self._domains_changed = False
        self._wake = WaitQueue()
        #: Clients whose input waits until less of it is outstanding.
        self._held: dict[RingClient, None] = {}
        #: Guests that do not take what they are sent, and when they are given up; the soonest first.
        self._clogged: dict[RingClient, int] = {}
        self._guard = WaitQueue()
        self._limit = WriteLimit()
        #: Clients that have written too much, and until when they are not listened to.
        self._slowed: dict[RingClient, int] = {}
        self._slow = WaitQueue()
        #: Clients from outside of the host.
        self._line: LineClients | None = None
        self._threads: list[Thread] = []

    def _new_server(self, quotas: Quotas | None) -> Server:
        server = Server(self, quotas, trace=self.kernel.cpu.trace, log=self.kernel.console.printk)
        server.can_update = True
        return server

    def listen(self, line: Line) -> None:
        """Serve the clients on a serial line too."""

        def wake() -> None:
            self._wake.wake()

        self._line = LineClients(self.server, line, wake)

    def start(self) -> None:
        """Connect dom0's own client, listen for ends of domains, start the threads."""
        kernel = self.kernel
        interface = kernel.xenbus.dom0_interface
        assert interface is not None, "xenstored runs in the domain whose kernel makes its own ring"
        mfn, port = interface
        client = RingClient(
            self.server.connect("domain 0"), ServerRing(kernel.mm.page_at(mfn).view), kernel.monotonic_ns()
        )
        self._add(client, DOMID_SELF, port)
        kernel.events.bind_virq(VIRQ_DOM_EXC, self._on_domain_change)
        self._spawn()

    def _spawn(self) -> None:
        spawn = self.kernel.spawn
        self._threads = [
            spawn(self._serve(), "xenstored"),
            spawn(self._give_up_the_deaf(), "xenstored timeouts"),
            spawn(self._listen_again(), "xenstored write limit"),
        ]

    async def stop(self) -> bytes:
        """End the daemon as `SIGTERM` does with one that saves its state; return what is saved.

        Its clients' rings stay mapped, and their events are kept by the upcalls: nobody looks at them. Not to be
        called by its own threads.
        """
        for thread in self._threads:
            thread.cancel()
        for thread in self._threads:
            # One that was on its way to a client serves it before it hears of its end.
            with suppress(ThreadCancelled):
                await thread.join()
        self._threads.clear()
        return save(self.server, self._place_of)

    def go_on(self, state: bytes) -> None:
        """Start the daemon again from what `stop` has returned."""
        self._load(state)
        self._domains_changed = True
        self._spawn()

    # ---- upcalls

    def _on_domain_change(self) -> None:
        self._domains_changed = True
        self._wake.wake()

    def _make_handler(self, client: RingClient) -> Callable[[], None]:
        ready, wake = self._ready, self._wake.wake

        def on_event() -> None:
            ready[client] = None
            wake()

        return on_event

    # ---- the thread

    async def _serve(self) -> None:
        ready = self._ready
        while True:
            turns = TURNS
            while ready or self._domains_changed or self._has_news():
                if self._domains_changed:
                    self._domains_changed = False
                    self._check_domains()
                    continue
                if self._line is not None and self._line.has_news:
                    self._line.serve()
                    self._flush()
                if ready:
                    client = next(iter(ready))
                    del ready[client]
                    self._serve_client(client)
                turns -= 1
                if not turns:
                    # Let the rest of dom0 have its turn, and new events come in.
                    turns = TURNS
                    await self.kernel.yield_()
            await self._wake.wait()

    def _has_news(self) -> bool:
        return self._line is not None and self._line.has_news

    def _serve_client(self, client: RingClient) -> None:
        """Take what is in one ring, answer it, and let everybody who got something have it."""
        server, connection, ring = self.server, client.connection, client.ring
        if connection not in self.clients:
            return
        if ring.reconnect_requested and self._features & XENSTORE_SERVER_FEATURE_RECONNECTION:
            server.reset(connection)
            ring.reset()
            client.failed = False
        if connection.error:
            return
        # The event may mean room in the reply ring as well as requests.
        server.dirty[connection] = None
        if client not in self._slowed:
            self._listen(client)
        if not connection.error and client not in self._slowed and not server.may_read(connection):
            self._held[client] = None
        self._flush()

    def _listen(self, client: RingClient) -> None:
        """Take what is in one ring and answer it."""
        server, connection = self.server, client.connection
        if connection.input and server.may_read(connection):
            server.receive(connection, b"")
        if server.may_read(connection):
            try:
                data = client.ring.read()
            except RingError:
                server.fail(connection, XENSTORE_ERROR_RINGIDX)
            else:
                if not self._can_answer(client):
                    # The C daemon notices this when it has the answer to the first request.
                    first = message_size(data)
                    client.ring.unread(len(data) - first)
                    data = data[:first]
                server.receive(connection, data)
                if connection.input and not server.may_read(connection):
                    # It has enough outstanding. The rest stays in its ring, where it finds no room for more.
                    rest = min(len(data), len(connection.input))
                    client.ring.unread(rest)
                    connection.input = connection.input[: len(connection.input) - rest]
        disturbances = connection.domain.disturbances
        if disturbances != client.disturbances and not connection.privileged:
            now = self.kernel.monotonic_ns()
            wait = self._limit.charge(client.credit, disturbances - client.disturbances, now)
            client.disturbances = disturbances
            if wait:
                self._slowed[client] = now + wait
                self._slow.wake()

    # ---- live update

    def _update(self) -> None:
        """Carry everything over into a new server: what was to be executed instead is not to be had in here."""
        old = self.server
        update = old.update
        assert update is not None
        self._load(save(old, self._place_of, reply_to=update.connection, reply=update.reply(b"OK")))

    def _load(self, state: bytes) -> None:
        """Take a new server with this state, for the clients that there are."""
        new = self.server = self._new_server(None)
        clients = {client.connection.id: client for client in self.clients.values()}
        self.clients = {}

        def connect(server: Server, place: Place) -> Connection | None:
            if place.fd is not None:
                return self._line.readmit(server, place.fd) if self._line is not None else None
            client = clients[place.domid]
            connection = server.readmit(place.domid, place.port) if place.domid else server.connect("domain 0")
            connection.error = client.connection.error
            client.connection, client.disturbances = connection, 0
            self.clients[connection] = client
            return connection

        Loader(new, connect).load(state)
        new.go_on()
        self._ready |= dict.fromkeys(self.clients.values())
        self._flush()

    def _place_of(self, connection: Connection) -> Place | None:
        client = self.clients.get(connection)
        if client is not None:
            return Place(domid=connection.id, port=client.port)
        return None if self._line is None else self._line.place_of(connection)

    def _can_answer(self, client: RingClient) -> bool:
        """Tell whether the indices of the replies can be."""
        try:
            return client.ring.room >= 0
        except RingError:
            return False

    def _flush(self) -> None:
        """Move queued messages into rings and signal; clients that this frees go back to the ready queue."""
        dirty = self.server.dirty
        while dirty:
            connection = next(iter(dirty))
            del dirty[connection]
            client = self.clients.get(connection)
            if client is not None:
                self._deliver(client)
            elif self._line is not None:
                self._line.deliver(connection)
        if self.server.update is not None and self.server.update.started:
            self._update()
        if self._held:
            for client in list(self._held):
                if client.connection.error:
                    del self._held[client]
                elif self.server.may_read(client.connection):
                    del self._held[client]
                    self._ready[client] = None

    def _deliver(self, client: RingClient) -> None:
        connection, ring = client.connection, client.ring
        if connection.queued:
            try:
                data = connection.take(ring.room)
            except RingError:
                self.server.fail(connection, XENSTORE_ERROR_RINGIDX)
                self.server.dirty.pop(connection)
            else:
                if data:
                    ring.write(data)
                self._note_progress(client, bool(data))
        if connection.error and not client.failed:
            # The answers to what it had sent before it broke the protocol are in the ring, if they fit.
            connection.drop_output()
            if connection.unseen:
                ring.unread(connection.unseen)
            self._clogged.pop(client, None)
            client.failed = True
            ring.fail(connection.error)
        if ring.notify:
            ring.notify = False
            self._signal(client)

    def _signal(self, client: RingClient) -> None:
        if not client.port:
            return
        try:
            self.kernel.events.notify(client.port)
        except XenError:
            # The guest has closed its end. Whether it is gone, Xen will say; its ring is served all the same.
            return

    # ---- guests that do not read

    def _note_progress(self, client: RingClient, progress: bool) -> None:
        clogged = self._clogged
        if not client.connection.queued or client.connection.privileged:
            clogged.pop(client, None)
        elif progress or client not in clogged:
            clogged.pop(client, None)
            clogged[client] = self.kernel.monotonic_ns() + EVENT_TIMEOUT_NS
            self._guard.wake()

    async def _give_up_the_deaf(self) -> None:
        """Stop serving guests that have not taken a byte for too long."""
        while True:
            while self._clogged:
                client, deadline = next(iter(self._clogged.items()))
                left = deadline - self.kernel.monotonic_ns()
                if left > 0:
                    await self.kernel.sleep(left)
                    continue
                del self._clogged[client]
                self.server.fail(client.connection, XENSTORE_ERROR_COMM)
                self._flush()
                self._wake.wake()
            await self._guard.wait()

    async def _listen_again(self) -> None:
        """Put clients that have waited long enough for their writes back into the ready queue."""
        while True:
            while self._slowed:
                await self.kernel.sleep(max(1, min(self._slowed.values()) - self.kernel.monotonic_ns()))
                now = self.kernel.monotonic_ns()
                for client in [client for client, until in self._slowed.items() if until <= now]:
                    del self._slowed[client]
                    self._ready[client] = None
                    self._wake.wake()
            await self._slow.wait()

    # ---- ends of domains

    def _check_domains(self) -> None:
        """Ask Xen for the state of the known domains and let the core draw its conclusions."""
        states = None if self._domain_infos is None else {info.domain: info.flags for info in self._domain_infos()}

        def state_of(domid: int) -> DomainState | None:
            if states is None:
                info = self._domain_info(domid)
                flags = None if info is None else info.flags
            else:
                flags = states.get(domid)
            if flags is None:
                return None
            return DomainState(bool(flags & XEN_DOMINF_shutdown), bool(flags & XEN_DOMINF_dying))

        self.server.check_domains(state_of)
        self._flush()

    # ---- Transport: what the core asks for

    def exists(self, domid: int) -> bool:
        """Tell whether Xen has such a domain."""
        return self._domain_info(domid) is not None

    def attach(self, connection: Connection, mfn: int, port: int) -> bytes | None:
        """Map the domain's xenstore page and bind its event channel."""
        kernel = self.kernel
        domid = connection.id
        page = None
        try:
            page = ReservedPage(kernel, domid, GNTTAB_RESERVED_XENSTORE, mfn)
            client = RingClient(connection, ServerRing(page.view), kernel.monotonic_ns())
            client.page = page
            # What the guest has written before it was introduced is lost, as with the C daemon.
            client.ring.empty()
            client.ring.notify = False
            self._add(client, domid, port)
        except XenError:
            if page is not None:
                page.unmap()
            return EINVAL
        client.ring.advertise(self._features | connection.domain.features)
        self._signal(client)
        return None

    def rebind(self, connection: Connection, port: int) -> None:
        """Empty the ring and bind another port."""
        client = self.clients[connection]
        client.ring.empty()
        client.ring.notify = False
        events = self.kernel.events
        if client.port:
            events.unbind(client.port)
        try:
            client.port = events.bind_interdomain(connection.id, port, self._make_handler(client))
        except XenError:
            # As the C daemon: it is introduced all the same, and cannot be told anything.
            client.port = 0
        self._clogged.pop(client, None)
        self._held.pop(client, None)

    def detach(self, connection: Connection) -> None:
        """Unbind and unmap."""
        client = self.clients.pop(connection)
        self._ready.pop(client, None)
        self._held.pop(client, None)
        self._clogged.pop(client, None)
        self._slowed.pop(client, None)
        if client.port:
            self.kernel.events.unbind(client.port)
        del client.ring
        if client.page is not None:
            client.page.unmap()

    def _add(self, client: RingClient, domid: int, port: int) -> None:
        client.port = self.kernel.events.bind_interdomain(domid, port, self._make_handler(client))
        self.clients[client.connection] = client

    def status(self) -> dict[str, Any]:
        """Return numbers about the store: nodes, watches, domains introduced, the largest output queue."""
        server = self.server
        return {
            "nodes": len(server.store.tree),
            "watches": len(server.watches),
            "domains": sum(domain.introduced for domain in server.domains),
            "queued": max((client.connection.queued for client in self.clients.values()), default=0),
        }
