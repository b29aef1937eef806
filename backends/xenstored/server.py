"""The store as a server: what each operation of io/xs_wire.h does.

`OPERATIONS` is the table; a handler takes the connection, its transaction (or None) and the payload, and returns the
payload of the reply or raises `StoreError`.  Where Xen's documents leave a choice (what comes first, which errno), the
choice of the C daemon of Xen 4.17 is made.

The server does no I/O.  `connect` makes a client that is dom0 itself, INTRODUCE one for a guest, through the injected
`Transport`, which maps rings and knows which domains exist.  `receive` takes a client's bytes and answers whatever is
complete; the answers wait in the connections, and `dirty` names those that have got something since it was last
emptied: a caller never has to look at all connections.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, final

from backends.xenstored import control
from backends.xenstored.connection import Connection, Pending
from backends.xenstored.domains import LARGEST_DOMID, Domain, Domains
from backends.xenstored.errors import (
    E2BIG,
    EACCES,
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    EPERM,
    StoreError,
)
from backends.xenstored.numbers import leading_number
from backends.xenstored.paths import WATCH_SPECIAL_MAX, home_of, is_valid
from backends.xenstored.permissions import ALL, OWNER, READ, STALE, WRITE, Entry, Permissions, only_owner, parse_entry
from backends.xenstored.quota import Quotas
from backends.xenstored.store import Store, View, size_of
from backends.xenstored.transactions import Transaction
from backends.xenstored.tree import Node, child_of, parent_of, without_child
from backends.xenstored.watches import Watch, WatchIndex
from guest_kernel.xenbus.wire import HEADER
from hypervisor.abi import tracepoints
from hypervisor.abi.io import xs_wire
from hypervisor.abi.io.xs_wire import XENSTORE_ERROR_PROTO, XENSTORE_PAYLOAD_MAX, XS_ERROR, XS_WATCH_EVENT

INTRODUCE_DOMAIN: Final = b"@introduceDomain"
RELEASE_DOMAIN: Final = b"@releaseDomain"
_OK: Final = b"OK\0"
_HEADER_SIZE: Final = HEADER.size
_NOW: Final = 2**64
"""A generation later than that of any domain: for lists that belong to no node."""


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


def _one(payload: bytes) -> bytes | None:
    """Return the only string of a payload; None if there is not exactly one, with its NUL at the end."""
    end = payload.find(b"\0")
    return payload[:end] if end == len(payload) - 1 and end >= 0 else None


def _strings(payload: bytes, count: int) -> list[bytes]:
    """Return exactly `count` strings, each with its NUL.  Raises EINVAL."""
    if payload[-1:] != b"\0" or payload.count(b"\0") != count:
        raise StoreError(EINVAL)
    return payload.split(b"\0")[:-1]


def list_part(node: Node, start: int) -> bytes:
    """Return a piece of a directory's list, from byte `start`: generation, whole names, a NUL more after the last."""
    generation = b"%d\0" % node.generation
    children = node.children
    if not 0 <= start < len(children):
        return generation + b"\0"
    room = XENSTORE_PAYLOAD_MAX - len(generation)
    if len(children) - start < room:
        return generation + children[start:] + b"\0"
    # A piece always leaves room for the last NUL, even if it is not the last piece.
    return generation + children[start : children.rfind(b"\0", start, start + room - 1) + 1]


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
        self._after: list[Callable[[], None]] = []

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
        self._forget_watches(connection)
        self._forget_transactions(connection)
        connection.drop_output()
        connection.input = b""
        del self.connections[connection]
        self.dirty.pop(connection, None)

    def reset(self, connection: Connection) -> None:
        """Begin anew with a client whose ring was reset: no watch, no transaction, no half message is left."""
        self._forget_watches(connection)
        self._forget_transactions(connection)
        connection.drop_output()
        connection.input = b""
        connection.error = 0

    def fail(self, connection: Connection, error: int) -> None:
        """Stop listening to a client that broke the protocol; its domain stays introduced (XSA-325).

        What it has not taken yet is the transport's to deliver or to drop (`Connection.drop_output`).
        """
        connection.error = error
        connection.input = b""
        self._forget_watches(connection)
        self._forget_transactions(connection)
        self.dirty[connection] = None

    def may_read(self, connection: Connection) -> bool:
        """Tell whether more of a client's requests may be looked at now."""
        if connection.error:
            return False
        if connection.privileged:
            return True
        quotas = self.quotas
        if quotas.outstanding and connection.domain.outstanding >= quotas.outstanding:
            return False
        return not (connection.queued and quotas.memory and self._memory(connection) > quotas.memory)

    def receive(self, connection: Connection, data: bytes) -> None:
        """Take bytes that a client sent, cut anywhere, and answer every request that is complete.

        With `data` empty it goes on where `may_read` had said no.
        """
        if connection.error:
            return
        buffer = connection.input + data if connection.input else data
        size = len(buffer)
        at = 0
        unpack = HEADER.unpack_from
        bound = not connection.privileged
        while size - at >= _HEADER_SIZE:
            if bound and not self.may_read(connection):
                break
            kind, req_id, tx_id, length = unpack(buffer, at)
            if length > XENSTORE_PAYLOAD_MAX:
                self.fail(connection, XENSTORE_ERROR_PROTO)
                return
            start = at + _HEADER_SIZE
            end = start + length
            if end > size:
                break
            at = end
            self._serve(connection, kind, req_id, tx_id, buffer[start:end])
            if connection.error:
                return
        connection.input = buffer[at:] if at else buffer

    def _serve(self, connection: Connection, kind: int, req_id: int, tx_id: int, payload: bytes) -> None:
        cause = None
        if not connection.privileged:
            cause = Pending(connection)
            connection.domain.outstanding += 1
        self._cause = cause
        try:
            operation = OPERATIONS.get(kind)
            if operation is None:
                raise StoreError(ENOSYS)
            handler, privileged, transactional, _ = operation
            if privileged and not connection.privileged:
                raise StoreError(EACCES)
            transaction = None
            if tx_id and transactional:
                transaction = connection.transactions.get(tx_id)
                if transaction is None:
                    raise StoreError(ENOENT)
            reply = handler(self, connection, transaction, payload)
            answer = kind
        except StoreError as error:
            answer, reply = XS_ERROR, error.name
        connection.push(HEADER.pack(answer, req_id, tx_id, len(reply)) + reply, cause)
        self.dirty[connection] = None
        if self.trace is not None:
            self._trace(connection, kind, payload, answer, reply)
        if self._after:
            actions, self._after = self._after, []
            for action in actions:
                action()
        self._cause = None

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
        return connection

    def release(self, domain: Domain) -> None:
        """Stop serving a domain and remove every node that it owns, with events; it is not known any more."""
        connection = domain.connection
        if connection is not None:
            self.disconnect(connection)
            self.transport.detach(connection)
            domain.connection = None
        self._remove_owned(domain)
        self.domains.forget(domain)
        if domain.introduced:
            domain.introduced = False
            self._fire_special(RELEASE_DOMAIN)

    def domain_changed(self, domid: int, *, shutdown: bool, dying: bool, gone: bool = False) -> None:
        """Take note of what Xen says of a domain (`gone`: it has no such domain any more)."""
        domain = self.domains.get(domid)
        if domain is None or not domid:
            return
        if gone or (dying and domain.introduced):
            self.release(domain)
        elif shutdown and domain.introduced and not domain.shutdown:
            domain.shutdown = True
            self._fire_special(RELEASE_DOMAIN)

    def _known(self, domid: int) -> Domain | None:
        """Return a domain that exists, known from now on."""
        domain = self.domains.get(domid)
        if domain is None and domid <= LARGEST_DOMID and self.transport.exists(domid):
            domain = Domain(domid, self.store.next_generation)
            self.domains.add(domain)
        return domain

    def _remove_owned(self, domain: Domain) -> None:
        """Remove the nodes of a domain, in the order in which a walk over the whole store would meet them.

        The root stays, and becomes dom0's.
        """
        owned = domain.nodes
        beneath: dict[bytes, dict[bytes, None]] = {}
        for path in owned:
            while path != b"/":
                above = parent_of(path)
                siblings = beneath.setdefault(above, {})
                if path in siblings:
                    break
                siblings[path] = None
                path = above
        root = self.store.get(b"/")
        if root is not None and b"/" in owned:
            self.store.put(b"/", root, root.value, root.children, root.perms.owned_by(0))
        todo = [b"/"]
        while todo:
            path = todo.pop()
            if path in owned and path != b"/":
                self._remove_tree(None, path)
                continue
            below = beneath.get(path)
            if below is None:
                continue
            if len(below) > 1:
                node = self.store.get(path)
                names = node.names if node is not None else []
                todo += [child for name in reversed(names) if (child := child_of(path, name)) in below]
            else:
                todo += below

    # ---- events

    def _send_event(self, watch: Watch, path: bytes) -> None:
        payload = watch.payload(path)
        size = len(payload)
        if size > XENSTORE_PAYLOAD_MAX:
            return  # XSA-324
        connection = watch.connection
        if not connection.privileged:
            limit = self.quotas.memory
            if limit and self._memory(connection) + size > limit:
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
            connection = watch.connection
            if connection.privileged or perms.bits_for(connection.domain, connection.domain.target, _NOW) & READ:
                self._send_event(watch, name)

    def _fire(self, path: bytes, node: Node | None, before: Node | None, exact: bool) -> None:
        """Tell the watches of a change: `node` as it is now, `before` as it was."""
        watches = self.watches
        if not watches.by_path:
            return
        for watch in watches.on(path) if exact else watches.above(path):
            connection = watch.connection
            if connection.privileged or self._may_see(connection, path, node, before):
                self._send_event(watch, path)

    def _may_see(self, connection: Connection, path: bytes, node: Node | None, before: Node | None) -> bool:
        """Tell whether a guest may know of a change: it may read the node, or could, or may read the parent."""
        if node is not None and self._bits(connection, node) & READ:
            return True
        if before is not None and self._bits(connection, before) & READ:
            return True
        parent = self.store.get(parent_of(path)) if path != b"/" else None
        return parent is not None and bool(self._bits(connection, parent) & READ)

    def _changed(
        self, transaction: Transaction | None, path: bytes, before: Node | None, after: Node | None, exact: bool = False
    ) -> None:
        """Tell the watches, now or when the transaction commits."""
        if transaction is not None:
            transaction.note_event(path, exact)
        else:
            self._fire(path, after, before, exact)

    def _disturb(self, connection: Connection) -> None:
        """Count a change that can make the open transactions of others fail."""
        if self.open_transactions and not connection.privileged:
            connection.domain.disturbances += 1

    # ---- finding nodes

    def _memory(self, connection: Connection) -> int:
        return connection.domain.memory + connection.queued

    def _bits(self, connection: Connection, node: Node) -> int:
        if connection.privileged:
            return ALL
        return node.perms.bits_for(connection.domain, connection.domain.target, node.generation)

    def _absolute(self, connection: Connection, name: bytes) -> bytes:
        """Return the absolute path of a name; special names stay."""
        return name if name[:1] in (b"/", b"@") else connection.relative + name

    def _find(self, connection: Connection, view: View, name: bytes | None, want: int) -> tuple[bytes, Node]:
        """Return the path and node that a client means.  Raises StoreError as `_search`, or ENOENT."""
        if name is None:
            raise StoreError(ENOENT)
        path, node = self._search(connection, view, name, want)
        if node is None:
            raise StoreError(ENOENT)
        return path, node

    def _search(self, connection: Connection, view: View, name: bytes, want: int) -> tuple[bytes, Node | None]:
        """Return path and node, or None for the node if there is none and the client may know that.

        Raises EINVAL for a name that cannot be, EACCES without the right: to the node or, if there is none, to the
        nearest directory above that is there.
        """
        path = name if name[:1] in (b"/", b"@") else connection.relative + name
        if not is_valid(path, self.quotas.path_max):
            raise StoreError(EINVAL)
        node = view.get(path)
        if node is not None and (connection.privileged or self._bits(connection, node) & want == want):
            return path, node
        nearest = self._nearest(view, path)
        if connection.privileged or (node is None and self._bits(connection, nearest) & want):
            return path, None
        raise StoreError(EACCES)

    def _nearest(self, view: View, path: bytes) -> Node:
        """Return the nearest directory above `path` that is there.  In a transaction every look counts."""
        while path != b"/":
            path = parent_of(path)
            node = view.get(path)
            if node is not None:
                return node
        node = view.get(b"/")
        assert node is not None, "there is always a root"
        return node

    # ---- changing nodes

    def _check_size(
        self, connection: Connection, view: View, value: bytes, children: bytes, perms: Permissions
    ) -> None:
        """Raise ENOSPC or ENOMEM if a guest may not make a node this large; a transaction is done for then."""
        if connection.privileged:
            return
        quotas = self.quotas
        size = size_of(value, children, perms)
        if size >= quotas.node_size:
            view.refused()
            raise StoreError(ENOSPC)
        if quotas.memory and self._memory(connection) + size > quotas.memory:
            view.refused()
            raise StoreError(ENOMEM)

    def _create(self, connection: Connection, view: View, path: bytes, value: bytes) -> None:
        """Make a node and what is missing above it.  All checks come before the first change."""
        missing = [path]
        above = parent_of(path)
        base = view.get(above)
        while base is None:
            missing.append(above)
            above = parent_of(above)
            base = view.get(above)
        perms = kept = self.domains.current(base.perms, base.generation)
        if not connection.privileged:
            perms = perms.owned_by(connection.id)
            self._check_creation(connection, view, missing, value, base, perms)
        # From the leaf up: the daemon writes the new node, then each directory that gets a new name.
        below = b""
        for name in missing:
            view.put(name, None, value, below, perms)
            value = b""
            below = name[name.rindex(b"/") + 1 :] + b"\0"
        view.put(above, base, base.value, base.children + below, kept)

    def _check_creation(
        self, connection: Connection, view: View, missing: list[bytes], value: bytes, base: Node, perms: Permissions
    ) -> None:
        # The daemon writes the leaf first and undoes what it wrote if a directory above is refused. All that remains
        # of this are the generations that it used.
        have = len(connection.domain.nodes)
        written = 0
        children = b""
        try:
            for number, name in enumerate(missing):
                # What a transaction makes is counted when it commits.
                if have + (number if view is self.store else 0) >= self.quotas.nodes:
                    raise StoreError(ENOSPC)
                self._check_size(connection, view, value, children, perms)
                value = b""
                children = name[name.rindex(b"/") + 1 :] + b"\0"
                written = number + 1
            self._check_size(connection, view, base.value, base.children + children, base.perms)
        except StoreError:
            for _ in range(written):
                self.store.take_generation()
            raise

    def _remove_tree(self, transaction: Transaction | None, path: bytes) -> None:
        """Remove a node and all below, children before parents, and tell the watches in that order.

        A transaction may see a directory from before and its children from after somebody else's change.  What does
        not fit together is refused where it is found (EINVAL, EIO); such a transaction cannot commit anyway.
        """
        view: View = transaction or self.store
        if view.get(parent_of(path)) is None:
            raise StoreError(EINVAL)
        #: Going down it holds a path to look at, going up a node whose children are gone.
        todo: list[tuple[bytes, bool]] = [(path, False)]
        while todo:
            at, done = todo.pop()
            node = view.get(at)
            if node is None:
                assert transaction is not None, f"{at!r} is in its parent's list"
                raise StoreError(EIO)
            if not done and node.children:
                todo.append((at, True))
                todo.extend((child_of(at, name), False) for name in reversed(node.names))
                continue
            self._changed(transaction, at, node, None, at != path)
            view.remove(at, node)
            if transaction is None and at != path:
                # The directory goes as well, so its list is not written; the daemon does, and uses a generation.
                self.store.take_generation()
                continue
            above = parent_of(at)
            parent = view.get(above)
            assert parent is not None, f"{above!r} holds {at!r}"
            names = without_child(parent.children, at[at.rindex(b"/") + 1 :])
            if names is None:
                assert transaction is not None, f"{at!r} is not in its parent's list"
                raise StoreError(EIO)
            kept = self.domains.current(parent.perms, parent.generation)
            view.put(above, parent, parent.value, names, kept)

    # ---- operations on nodes

    def _directory(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        _, node = self._find(connection, transaction or self.store, _one(payload), READ)
        if len(node.children) > XENSTORE_PAYLOAD_MAX:
            raise StoreError(E2BIG)
        return node.children

    def _directory_part(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        name, offset = _strings(payload, 2)
        _, node = self._find(connection, transaction or self.store, name, READ)
        return list_part(node, leading_number(offset))

    def _read(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        if transaction is None:
            # The hot path: the name of a node that is there needs no check.
            node = self.store.get(payload[:-1]) if payload[-1:] == b"\0" else None
            if (
                node is not None
                and payload[-1:] == b"\0"
                and (connection.privileged or self._bits(connection, node) & READ)
            ):
                return node.value
        return self._find(connection, transaction or self.store, _one(payload), READ)[1].value

    def _write(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        name, nul, value = payload.partition(b"\0")
        if not nul:
            raise StoreError(EINVAL)
        view: View = transaction or self.store
        path, node = self._search(connection, view, name, WRITE)
        if node is None:
            self._create(connection, view, path, value)
        else:
            if not connection.privileged:
                self._check_size(connection, view, value, node.children, node.perms)
            view.put(path, node, value, node.children, self.domains.current(node.perms, node.generation))
        self._changed(transaction, path, node, view.get(path) if node is None else node)
        if transaction is None and self.open_transactions:
            self._disturb(connection)
        return _OK

    def _mkdir(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        name = _one(payload)
        if name is None:
            raise StoreError(ENOMEM)
        view: View = transaction or self.store
        path, node = self._search(connection, view, name, WRITE)
        if node is None:
            self._create(connection, view, path, b"")
            self._changed(transaction, path, None, view.get(path))
            if transaction is None:
                self._disturb(connection)
        return _OK

    def _rm(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        name = _one(payload)
        if name is None:
            raise StoreError(ENOMEM)
        view: View = transaction or self.store
        path, node = self._search(connection, view, name, WRITE)
        if path == b"/":
            raise StoreError(EINVAL)
        if node is None:
            if view.get(parent_of(path)) is None:
                raise StoreError(ENOENT)
            return _OK
        self._remove_tree(transaction, path)
        if transaction is None:
            self._disturb(connection)
        return _OK

    def _get_perms(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        return self._find(connection, transaction or self.store, _one(payload), READ)[1].perms.encode()

    def _set_perms(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        # A last string without its NUL is not there at all.
        strings = payload.split(b"\0")[:-1]
        if len(strings) < 2:
            raise StoreError(EINVAL)
        name = strings[0]
        if not connection.privileged and len(strings) - 1 > self.quotas.permissions:
            raise StoreError(ENOSPC)
        perms = self._parse_permissions(strings[1:])
        if name[:1] == b"@":
            return self._set_special(connection, name, perms)
        view: View = transaction or self.store
        path, node = self._find(connection, view, name, WRITE | OWNER)
        if not connection.privileged and perms.owner != node.perms.owner:
            raise StoreError(EPERM)  # XSA-352
        self._check_size(connection, view, node.value, node.children, perms)
        view.put(path, node, node.value, node.children, perms)
        self._changed(transaction, path, node, view.get(path))
        if transaction is None:
            self._disturb(connection)
        return _OK

    def _parse_permissions(self, texts: list[bytes]) -> Permissions:
        entries: list[Entry] = []
        for text in texts:
            entry = parse_entry(text)
            if entry is None:
                raise StoreError(EINVAL)
            if self._known(entry.domid) is None:
                entry = Entry(entry.domid, entry.bits | STALE)
            entries.append(entry)
        if entries[0].bits & STALE:
            raise StoreError(ENOENT)
        return Permissions(tuple(entries))

    def _set_special(self, connection: Connection, name: bytes, perms: Permissions) -> bytes:
        old = self.special.get(name)
        if not connection.privileged:
            bits = old.bits_for(connection.domain, connection.domain.target, _NOW) if old is not None else 0
            if bits & (WRITE | OWNER) != WRITE | OWNER:
                raise StoreError(EACCES)
        if old is None:
            raise StoreError(ENOENT)
        self.special[name] = perms
        return _OK

    # ---- watches

    def _watch(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        name, token = _strings(payload, 2)
        path = self._absolute(connection, name)
        if path[:1] == b"@":
            if len(path) > WATCH_SPECIAL_MAX:
                raise StoreError(EINVAL)
        elif not is_valid(path, self.quotas.path_max):
            raise StoreError(EINVAL)
        if (path, token) in connection.watches:
            raise StoreError(EEXIST)
        domain = connection.domain
        if not connection.privileged:
            if domain.watches > self.quotas.watches:
                raise StoreError(E2BIG)
            if self.quotas.memory and self._memory(connection) + len(payload) > self.quotas.memory:
                raise StoreError(ENOMEM)
        watch = self.watches.add(connection, path, token, len(path) - len(name))
        connection.watches[path, token] = watch
        domain.watches += 1
        domain.memory += len(path) + len(token)
        self._after.append(lambda: self._send_event(watch, path))
        return _OK

    def _unwatch(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        name, token = _strings(payload, 2)
        watch = connection.watches.pop((self._absolute(connection, name), token), None)
        if watch is None:
            raise StoreError(ENOENT)
        self._forget_watch(watch)
        return _OK

    def _forget_watch(self, watch: Watch) -> None:
        self.watches.remove(watch)
        domain = watch.connection.domain
        domain.watches -= 1
        domain.memory -= len(watch.path) + len(watch.token)

    def _forget_watches(self, connection: Connection) -> None:
        for watch in connection.watches.values():
            self._forget_watch(watch)
        connection.watches.clear()

    def _reset_watches(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        self._forget_watches(connection)
        self._forget_transactions(connection)
        return _OK

    # ---- transactions

    def _transaction_start(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        if transaction is not None:
            raise StoreError(EBUSY)
        domain = connection.domain
        if not connection.privileged and domain.transactions > self.quotas.transactions:
            raise StoreError(ENOSPC)
        limit = None if connection.privileged else self.quotas.transaction_nodes
        open_ones = connection.transactions
        number = connection.next_transaction
        while number in open_ones or not number:
            number = (number + 1) & 0xFFFFFFFF
        connection.next_transaction = (number + 1) & 0xFFFFFFFF
        open_ones[number] = Transaction(self.store, domain, limit)
        self.open_transactions += 1
        return b"%d\0" % number

    def _transaction_end(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        word = _one(payload)
        if word not in (b"T", b"F"):
            raise StoreError(EINVAL)
        if transaction is None:
            raise StoreError(ENOENT)
        number = next(number for number, it in connection.transactions.items() if it is transaction)
        del connection.transactions[number]
        transaction.end()
        self.open_transactions -= 1
        if word == b"T":
            self._disturb(connection)
            transaction.commit(None if connection.privileged else self.quotas.nodes, self._fire)
        return _OK

    def _forget_transactions(self, connection: Connection) -> None:
        for transaction in connection.transactions.values():
            transaction.end()
        self.open_transactions -= len(connection.transactions)
        connection.transactions.clear()

    # ---- domains

    def _introduce(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        strings = payload.split(b"\0")[:-1]
        if len(strings) < 3:
            raise StoreError(EINVAL)
        domid, mfn, port = (leading_number(text) for text in strings[:3])
        if port <= 0:
            raise StoreError(EINVAL)
        self.introduce(domid & 0xFFFFFFFF, mfn, port)
        return _OK

    def _the_domain(self, payload: bytes) -> Domain:
        """Return the introduced domain, not dom0, that RELEASE and RESUME name."""
        text = _one(payload)
        domid = leading_number(text) if text is not None else 0
        if not domid:
            raise StoreError(EINVAL)
        domain = self.domains.get(domid)
        if domain is None or not domain.introduced:
            raise StoreError(ENOENT)
        return domain

    def _release(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        domain = self._the_domain(payload)
        # The daemon's loop holds on to the client that comes next in its list, so if that is the domain's own it
        # dies only after the reply. Clients see it in the order of their messages.
        if domain.connection is not None and self._follows(connection, domain.connection):
            self._after.append(lambda: self.release(domain))
        else:
            self.release(domain)
        return _OK

    def _follows(self, first: Connection, second: Connection) -> bool:
        clients = iter(self.connections)
        for client in clients:
            if client is first:
                return next(clients, None) is second
        return False

    def _resume(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        self._the_domain(payload).shutdown = False
        return _OK

    def _set_target(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        strings = payload.split(b"\0")[:-1]
        if len(strings) < 2:
            raise StoreError(EINVAL)
        found = [self.domains.get(leading_number(text)) for text in strings[:2]]
        domain, target = found
        if domain is None or target is None or not domain.introduced or not target.introduced:
            raise StoreError(ENOENT)
        domain.target = target
        return _OK

    def _get_domain_path(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        text = _one(payload)
        if text is None:
            raise StoreError(EINVAL)
        return home_of(leading_number(text)) + b"\0"

    def _is_introduced(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        text = _one(payload)
        if text is None:
            raise StoreError(EINVAL)
        domain = self.domains.get(leading_number(text))
        return b"T\0" if domain is not None and domain.introduced else b"F\0"

    def _control(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
        return control.run(self, payload)


Handler = Callable[[Server, Connection, Any, bytes], bytes]


class Operation(NamedTuple):
    """How a request is served: by what, for dom0 only, with its tx_id or regardless of it; and its name."""

    handler: Handler
    privileged: bool
    transactional: bool
    name: str


OPERATIONS: Final[dict[int, Operation]] = {
    xs_wire.XS_CONTROL: Operation(Server._control, True, True, "CONTROL"),
    xs_wire.XS_DIRECTORY: Operation(Server._directory, False, True, "DIRECTORY"),
    xs_wire.XS_READ: Operation(Server._read, False, True, "READ"),
    xs_wire.XS_GET_PERMS: Operation(Server._get_perms, False, True, "GET_PERMS"),
    xs_wire.XS_WATCH: Operation(Server._watch, False, False, "WATCH"),
    xs_wire.XS_UNWATCH: Operation(Server._unwatch, False, False, "UNWATCH"),
    xs_wire.XS_TRANSACTION_START: Operation(Server._transaction_start, False, True, "TRANSACTION_START"),
    xs_wire.XS_TRANSACTION_END: Operation(Server._transaction_end, False, True, "TRANSACTION_END"),
    xs_wire.XS_INTRODUCE: Operation(Server._introduce, True, True, "INTRODUCE"),
    xs_wire.XS_RELEASE: Operation(Server._release, True, True, "RELEASE"),
    xs_wire.XS_GET_DOMAIN_PATH: Operation(Server._get_domain_path, False, True, "GET_DOMAIN_PATH"),
    xs_wire.XS_WRITE: Operation(Server._write, False, True, "WRITE"),
    xs_wire.XS_MKDIR: Operation(Server._mkdir, False, True, "MKDIR"),
    xs_wire.XS_RM: Operation(Server._rm, False, True, "RM"),
    xs_wire.XS_SET_PERMS: Operation(Server._set_perms, False, True, "SET_PERMS"),
    xs_wire.XS_IS_DOMAIN_INTRODUCED: Operation(Server._is_introduced, True, True, "IS_DOMAIN_INTRODUCED"),
    xs_wire.XS_RESUME: Operation(Server._resume, True, True, "RESUME"),
    xs_wire.XS_SET_TARGET: Operation(Server._set_target, True, True, "SET_TARGET"),
    xs_wire.XS_RESET_WATCHES: Operation(Server._reset_watches, False, True, "RESET_WATCHES"),
    xs_wire.XS_DIRECTORY_PART: Operation(Server._directory_part, False, True, "DIRECTORY_PART"),
}
