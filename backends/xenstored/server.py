"""The store as a server: its clients and their requests, the domains it serves, and whom a change is told.

What a request does is in `operations`.

The server does no I/O.  `connect` makes a client that is dom0 itself, INTRODUCE one for a guest, through the injected
`Transport`, which maps rings and knows which domains exist.  `receive` takes a client's bytes and answers whatever is
complete; the answers wait in the connections, and `dirty` names those that have got something since it was last
emptied: a caller never has to look at all connections.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, final

from backends.xenstored.connection import Connection, Pending
from backends.xenstored.domains import LARGEST_DOMID, Domain, Domains
from backends.xenstored.errors import EACCES, ENOENT, ENOMEM, ENOSYS, StoreError
from backends.xenstored.newer import XENSTORE_SERVER_FEATURE_WATCHDEPTH
from backends.xenstored.nodes import remove_owned
from backends.xenstored.operations import OPERATIONS, PLAIN
from backends.xenstored.permissions import NOW, READ, Permissions, only_owner
from backends.xenstored.quota import Quotas
from backends.xenstored.store import Store
from backends.xenstored.transactions import Transaction
from backends.xenstored.tree import Node, parent_of
from backends.xenstored.watches import Watch, WatchIndex
from guest_kernel.xenbus.wire import HEADER
from hypervisor.abi import tracepoints
from hypervisor.abi.io.xs_wire import (
    XENSTORE_ERROR_PROTO,
    XENSTORE_PAYLOAD_MAX,
    XS_ERROR,
    XS_MKDIR,
    XS_RM,
    XS_SET_PERMS,
    XS_WATCH_EVENT,
    XS_WRITE,
)

INTRODUCE_DOMAIN: Final = b"@introduceDomain"
RELEASE_DOMAIN: Final = b"@releaseDomain"
CHANGES: Final = frozenset({XS_WRITE, XS_MKDIR, XS_RM, XS_SET_PERMS})
"""Requests that can make open transactions fail."""
SMALL_REPLY: Final = 16
"""A reply up to this size is always made, whatever the memory quota says."""
_HEADER_SIZE: Final = HEADER.size
_pack: Final = HEADER.pack
_unpack: Final = HEADER.unpack_from


class DomainState(NamedTuple):
    """What Xen says of a domain: its kernel has ended; it is being taken apart."""

    shutdown: bool
    dying: bool


class Transport(Protocol):
    """What the server needs of the world.  All calls are synchronous."""

    def exists(self, domid: int) -> bool:
        """Tell whether Xen has such a domain (a dying one counts)."""
        ...

    def attach(self, connection: Connection, mfn: int, port: int) -> bytes | None:
        """Map the ring of the connection's domain, bind its event channel and serve it.

        Returns None, or the errno's name (see `errors`) if it cannot be done.
        """
        ...

    def rebind(self, connection: Connection, port: int) -> None:
        """Begin anew with a domain that is served already: empty its ring, bind `port` instead of the old one."""
        ...

    def detach(self, connection: Connection) -> None:
        """Stop serving this connection: unbind, unmap.  It has no more output."""
        ...


class Files(Protocol):
    """The log and reports of a daemon that has a file system."""

    def log(self, on: bool) -> None:
        """Write the log, or stop it."""
        ...

    def log_to(self, name: str) -> None:
        """Write the log to another file from now on."""
        ...

    def report(self, name: str | None, text: str) -> bool:
        """Append text to a file, or to the log (None); tell whether that could be done."""
        ...

    def is_mine(self, name: str) -> bool:
        """Tell whether a file is the program that is running."""
        ...

    def is_program(self, name: str) -> str | None:
        """Return what is wrong with a file that is to be executed; None if nothing is."""
        ...


@final
class Update:
    """A live update as it is being prepared by CONTROL live-update, and then asked for (`started`)."""

    def __init__(self, connection: Connection, program: str) -> None:
        self.connection = connection
        self.program = program
        self.arguments: str | None = None
        """The command line of the new daemon; None: as that of the old one."""
        self.keeps_transactions = True
        """Whether the new daemon understands transactions that are open: that of Xen 4.17 does not."""
        self.started = False
        self.header = (0, 0, 0)
        """Type, req_id and tx_id of the request that waits for its answer."""

    def reply(self, text: bytes) -> bytes:
        """Return the answer to that request."""
        payload = text + b"\0"
        return HEADER.pack(*self.header, len(payload)) + payload


@final
class Server:
    """The store with its clients."""

    def __init__(
        self,
        transport: Transport,
        quotas: Quotas | None = None,
        *,
        trace: Callable[..., None] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """`trace(kind, *fields)`: the simulator's probe; `log`: gets what `CONTROL print` says, and warnings."""
        self.transport = transport
        self.quotas = quotas or Quotas()
        self.trace = trace
        self.log = log
        self.domains = Domains()
        self.store = Store(self.domains)
        self.watches = WatchIndex()
        self.special = {INTRODUCE_DOMAIN: only_owner(), RELEASE_DOMAIN: only_owner()}
        #: Clients in the order they came; the order matters for RELEASE.
        self.connections: dict[Connection, None] = {}
        #: Clients that have got messages (or an `error`) since the owner last emptied this.
        self.dirty: dict[Connection, None] = {}
        #: Transactions of all clients.
        self.open_transactions = 0
        self._cause: Pending | None = None
        #: The live update that somebody prepares.
        self.update: Update | None = None
        #: Whether this server's owner can do one, by looking at `update` after `receive`.
        self.can_update = False
        #: XENSTORE_SERVER_FEATURE_* that can be had.
        self.features = XENSTORE_SERVER_FEATURE_WATCHDEPTH
        #: What is to be done when the request that is being served has its reply.
        #: What the daemon may do with files; None: it has none.
        self.files: Files | None = None
        self.after: list[Callable[[], None]] = []

    # ---- clients

    def connect(self, label: str = "dom0") -> Connection:
        """Return a new client that is dom0."""
        connection = Connection(self.domains.by_id[0], True, label)
        self.connections[connection] = None
        return connection

    def disconnect(self, connection: Connection) -> None:
        """Drop a client with its watches and transactions.  What it has written stays."""
        if connection not in self.connections:
            return
        self.forget_watches(connection)
        self.forget_transactions(connection)
        connection.drop_output()
        connection.input = b""
        if self.update is not None and self.update.connection is connection:
            self.update = None
        del self.connections[connection]
        self.dirty.pop(connection, None)

    def reset(self, connection: Connection) -> None:
        """Begin anew with a client whose ring was reset: no watch, no transaction, no half message is left."""
        self.forget_watches(connection)
        self.forget_transactions(connection)
        connection.drop_output()
        connection.input = b""
        connection.error = 0

    def fail(self, connection: Connection, error: int) -> None:
        """Stop listening to a client that broke the protocol; its domain stays introduced (XSA-325).

        What it has not taken yet is the transport's to deliver or to drop (`Connection.drop_output`).
        """
        connection.error = error
        connection.input = b""
        self.forget_watches(connection)
        self.forget_transactions(connection)
        self.dirty[connection] = None

    def begin_update(self, connection: Connection, program: str) -> None:
        """Have a client prepare a live update."""
        self.update = Update(connection, program)

    def go_on(self) -> None:
        """Take up again, after a live update, what all clients have sent and are to get."""
        for connection in list(self.connections):
            self.dirty[connection] = None
            self.receive(connection, b"")

    def refuse_update(self, why: str) -> None:
        """Answer the request that asked for a live update which has failed; the old daemon goes on."""
        update, self.update = self.update, None
        if update is not None:
            update.connection.push(update.reply(why.encode()), None)
            self.dirty[update.connection] = None

    def may_read(self, connection: Connection) -> bool:
        """Tell whether more of a client's requests may be looked at now."""
        if connection.error:
            return False
        if connection.privileged:
            return True
        domain = connection.domain
        quotas = domain.quotas or self.quotas
        if quotas.outstanding and domain.outstanding >= quotas.outstanding:
            return False
        return not quotas.memory or domain.memory + connection.queued < quotas.memory

    def receive(self, connection: Connection, data: bytes) -> None:
        """Take bytes that a client sent, cut anywhere, and answer every request that is complete.

        With `data` empty it goes on where `may_read` had said no.
        """
        if connection.error:
            return
        buffer = connection.input + data if connection.input else data
        size = len(buffer)
        at = 0
        bound = not connection.privileged
        plain = None if bound or self.trace is not None else PLAIN.get
        while size - at >= _HEADER_SIZE:
            if bound and not self.may_read(connection):
                break
            kind, req_id, tx_id, length = _unpack(buffer, at)
            start = at + _HEADER_SIZE
            if length > XENSTORE_PAYLOAD_MAX:
                self.fail(connection, XENSTORE_ERROR_PROTO)
                connection.unseen = size - start
                return
            end = start + length
            if end > size:
                break
            at = end
            if plain is not None and not tx_id and (handler := plain(kind)) is not None:
                # Nearly all that a toolstack asks for; the rest of `_serve` would take as long again.
                try:
                    reply = handler(self, connection, None, buffer[start:end])
                except StoreError as error:
                    kind, reply = XS_ERROR, error.name
                connection.push(_pack(kind, req_id, 0, len(reply)) + reply, None)
                self.dirty[connection] = None
                continue
            self._serve(connection, kind, req_id, tx_id, buffer[start:end])
            if connection.error:
                return
        connection.input = buffer[at:] if at else buffer

    def _serve(self, connection: Connection, kind: int, req_id: int, tx_id: int, payload: bytes) -> None:
        cause = transaction = None
        if not connection.privileged:
            self._cause = cause = Pending(connection)
            connection.domain.outstanding += 1
        began = self.store.next_generation
        try:
            operation = OPERATIONS.get(kind)
            if operation is None:
                raise StoreError(ENOSYS)
            handler, privileged, transactional, _ = operation
            if privileged and not connection.privileged:
                raise StoreError(EACCES)
            if tx_id and transactional:
                transaction = connection.transactions.get(tx_id)
                if transaction is None:
                    raise StoreError(ENOENT)
            reply = handler(self, connection, transaction, payload)
            if reply is None:
                # The owner answers, when it has done what was asked for.
                assert self.update is not None
                self.update.header = (kind, req_id, tx_id)
                return
            answer = kind
            if cause is not None and len(reply) > SMALL_REPLY:
                self._check_reply(connection, len(reply))
        except StoreError as error:
            answer, reply = XS_ERROR, error.name
        if cause is not None and transaction is None and kind in CHANGES:
            self._disturbed(connection, self.store.next_generation - began)
        connection.push(_pack(answer, req_id, tx_id, len(reply)) + reply, cause)
        self.dirty[connection] = None
        if self.trace is not None:
            self._trace(connection, kind, payload, answer, reply)
        if self.after:
            self._do_the_rest()
        self._cause = None

    def _do_the_rest(self) -> None:
        actions, self.after = self.after, []
        for action in actions:
            action()

    def _disturbed(self, connection: Connection, written: int) -> None:
        """Count the nodes that a guest's request has written, directories above and refused ones included."""
        if self.open_transactions:
            connection.domain.disturbances += written

    def _check_reply(self, connection: Connection, size: int) -> None:
        """Raise ENOMEM if a guest may not have a reply of this size waiting; what it did is done all the same."""
        limit = self.limits(connection.domain).memory
        if limit and connection.memory + _HEADER_SIZE + size >= limit:
            raise StoreError(ENOMEM)

    def _trace(self, connection: Connection, kind: int, payload: bytes, answer: int, reply: bytes) -> None:
        assert self.trace is not None
        operation = OPERATIONS.get(kind)
        result = reply[:-1].decode("latin-1") if answer == XS_ERROR else ""
        path = payload.partition(b"\0")[0].decode("latin-1")
        self.trace(tracepoints.XENSTORE_OP, connection.label, operation.name if operation else str(kind), path, result)

    # ---- domains

    def introduce(self, domid: int, mfn: int, port: int) -> Connection | None:
        """Serve a domain's ring from now on; again: reset it, its port may have changed.  Raises StoreError."""
        domain = self.domains.get(domid)
        if domain is not None and domain.introduced:
            if domain.connection is not None:
                # A kernel that starts anew in a running domain (kexec) begins with an empty ring; but a domain that
                # was given up stays so.
                error = domain.connection.error
                self.reset(domain.connection)
                domain.connection.error = error
                domain.port = port
                self.transport.rebind(domain.connection, port)
            return domain.connection
        known = domain is not None
        if domain is None:
            domain = Domain(domid, self.store.next_generation)
        connection = Connection(domain, domid == 0, f"domain {domid}")
        refused = self.transport.attach(connection, mfn, port)
        if refused is not None:
            raise StoreError(refused)
        if not known:
            self.domains.add(domain)
        domain.introduced, domain.mfn, domain.port, domain.connection = True, mfn, port, connection
        self.connections[connection] = None
        if domid:
            self._fire_special(INTRODUCE_DOMAIN)
            self._fire_about(INTRODUCE_DOMAIN, domid)
        return connection

    def readmit(self, domid: int, port: int) -> Connection:
        """Have a domain that was served before a live update; its ring is the owner's to find.  Nobody is told."""
        domain = self.domains.get(domid)
        if domain is None:
            domain = Domain(domid, self.store.next_generation)
            self.domains.add(domain)
        connection = Connection(domain, domid == 0, f"domain {domid}")
        domain.introduced, domain.port, domain.connection = True, port, connection
        self.connections[connection] = None
        return connection

    def release(self, domain: Domain) -> None:
        """Stop serving a domain and remove every node that it owns, with events; it is not known any more."""
        connection = domain.connection
        if connection is not None:
            self.disconnect(connection)
            self.transport.detach(connection)
            domain.connection = None
        remove_owned(self, domain)
        self.domains.forget(domain)
        if domain.introduced:
            domain.introduced = False
            self._fire_special(RELEASE_DOMAIN)
            self._fire_about(RELEASE_DOMAIN, domain.domid)

    def check_domains(self, state_of: Callable[[int], DomainState | None]) -> None:
        """Take note of what Xen says of all known domains; `state_of(domid)` is None for one that is gone.

        Shutdowns are told once for all of them, at the end, and not at all if an end has been told after them.
        """
        tell = False
        # As the daemon's list has them: who became known last comes first.
        for domain in self.domains.newest_first():
            if not domain.domid:
                continue
            state = state_of(domain.domid)
            if not domain.introduced:
                if state is None:
                    self.release(domain)
                continue
            if state is not None and state.shutdown and not domain.shutdown:
                domain.shutdown = True
                tell = True
                self._fire_about(RELEASE_DOMAIN, domain.domid)
            if state is None or state.dying:
                self.release(domain)
                tell = False
        if tell:
            self._fire_special(RELEASE_DOMAIN)

    def know(self, domid: int) -> Domain | None:
        """Return a domain that exists, known from now on."""
        domain = self.domains.get(domid)
        if domain is None and domid <= LARGEST_DOMID and self.transport.exists(domid):
            domain = Domain(domid, self.store.next_generation)
            self.domains.add(domain)
        return domain

    # ---- events

    def send_event(self, watch: Watch, path: bytes) -> None:
        """Queue an event for a watch's owner, if it may have one more."""
        payload = watch.payload(path)
        size = len(payload)
        if size > XENSTORE_PAYLOAD_MAX:
            return  # XSA-324
        connection = watch.connection
        if not connection.privileged:
            limit = self.limits(connection.domain).memory
            if limit and connection.memory + _HEADER_SIZE + size >= limit:
                return  # XSA-326: it does not read; better it misses an event than that all run out of memory
        connection.push_event(payload, HEADER.pack(XS_WATCH_EVENT, 0, 0, size) + payload, self._cause)
        self.dirty[connection] = None
        if self.trace is not None:
            self.trace(
                tracepoints.XENSTORE_EVENT, connection.label, path.decode("latin-1"), watch.token.decode("latin-1")
            )

    def _fire_special(self, name: bytes) -> None:
        perms = self.special[name]
        for watch in self.watches.on(name):
            if watch.depth is None and self._may_hear(watch, perms):
                self.send_event(watch, name)

    def _fire_about(self, name: bytes, domid: int) -> None:
        """Tell the watches with a depth which domain it is that has come or gone."""
        perms = self.special[name]
        one = b"%s/%d" % (name, domid)
        for watch in self.watches.on(name):
            if watch.depth and self._may_hear(watch, perms):
                self.send_event(watch, one)
        for watch in self.watches.on(one):
            if watch.depth is not None and self._may_hear(watch, perms):
                self.send_event(watch, one)

    def _may_hear(self, watch: Watch, perms: Permissions) -> bool:
        connection = watch.connection
        return connection.privileged or bool(perms.bits_for(connection.domain, connection.domain.target, NOW) & READ)

    def fire(self, path: bytes, node: Node | None, before: Node | None, exact: bool) -> None:
        """Tell the watches of a change: `node` as it is now, `before` as it was."""
        watches = self.watches
        if not watches.by_path:
            return
        for watch in watches.on(path) if exact else watches.above(path):
            connection = watch.connection
            if watch.depth is not None and not watch.reaches(path):
                continue
            if connection.privileged or self._may_see(connection, path, node, before):
                self.send_event(watch, path)

    def _may_see(self, connection: Connection, path: bytes, node: Node | None, before: Node | None) -> bool:
        """Tell whether a guest may know of a change: it may read the node, or could, or may read the parent."""
        if node is not None and connection.rights(node) & READ:
            return True
        if before is not None and connection.rights(before) & READ:
            return True
        parent = self.store.get(parent_of(path)) if path != b"/" else None
        return parent is not None and bool(connection.rights(parent) & READ)

    def changed(
        self, transaction: Transaction | None, path: bytes, before: Node | None, after: Node | None, exact: bool = False
    ) -> None:
        """Tell the watches, now or when the transaction commits."""
        if transaction is not None:
            transaction.note_event(path, exact)
        elif self.watches.by_path:
            self.fire(path, after, before, exact)

    def disturb(self, connection: Connection) -> None:
        """Count a transaction that can make the open ones of others fail."""
        if self.open_transactions and not connection.privileged:
            connection.domain.disturbances += 1

    # ---- what clients hold

    def add_watch(self, connection: Connection, name: bytes, token: bytes, depth: int | None) -> Watch:
        """Register a watch that a client may have, under a name that is good."""
        path = connection.absolute(name)
        watch = self.watches.add(connection, path, token, len(path) - len(name), depth)
        connection.watches[path, token] = watch
        connection.domain.watches += 1
        connection.domain.memory += len(path) + len(token)
        return watch

    def begin(self, connection: Connection, number: int) -> Transaction:
        """Start a transaction under a number that is free."""
        limits = None if connection.privileged else self.limits
        transaction = connection.transactions[number] = Transaction(self.store, connection.domain, limits)
        connection.next_transaction = (number + 1) & 0xFFFFFFFF
        self.open_transactions += 1
        return transaction

    def limits(self, domain: Domain) -> Quotas:
        """Return what binds a domain: quotas of its own (SET_QUOTA), or those that are everybody's."""
        return domain.quotas or self.quotas

    def forget_watch(self, watch: Watch) -> None:
        """Drop a watch that its connection's table has no more."""
        self.watches.remove(watch)
        domain = watch.connection.domain
        domain.watches -= 1
        domain.memory -= len(watch.path) + len(watch.token)

    def forget_watches(self, connection: Connection) -> None:
        """Drop all watches of a client."""
        for watch in connection.watches.values():
            self.forget_watch(watch)
        connection.watches.clear()

    def forget_transactions(self, connection: Connection) -> None:
        """Abort all transactions of a client."""
        for transaction in connection.transactions.values():
            transaction.end()
        self.open_transactions -= len(connection.transactions)
        connection.transactions.clear()
