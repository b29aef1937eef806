"""The state of the daemon as bytes, for a live update: docs/designs/xenstore-migration.md of Xen.

A stream is a header and records, each a type, a length and a body that is padded to 8 bytes. `save` writes those of
GLOBAL_DATA, CONNECTION_DATA (each followed by its WATCH_DATA), NODE_DATA, TRANSACTION_DATA (each followed by the
NODE_DATA of what it has touched), GLOBAL_QUOTA_DATA and END; `load` makes a server of them. What a connection is at
its other end, a file descriptor or a ring, is the owner's business: `Place` says it.

The format knows no generations, and so not which of the nodes that a transaction has read have been changed since. A
transaction that is going to be refused at its end has one node more, with a name that no node can have (`DOOMED`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs

from backends.xenstored.connection import Connection
from backends.xenstored.domains import Domain
from backends.xenstored.paths import is_valid
from backends.xenstored.permissions import READ, STALE, WRITE, Entry, Permissions, only_owner
from backends.xenstored.quota import HARD_LIMITS, Quotas
from backends.xenstored.transactions import Access, Transaction
from backends.xenstored.tree import Node, child_of, parent_of, without_child

if TYPE_CHECKING:
    from backends.xenstored.server import Server

IDENT: Final = b"xenstore"
VERSION: Final = 1
VERSION_WITH_DEPTH: Final = 2
PREAMBLE: Final = struct.Struct(">8sII")
RECORD: Final = struct.Struct("<II")
GLOBAL: Final = struct.Struct("<ii")
CONNECTION: Final = struct.Struct("<IHH8sHHI")
RING: Final = struct.Struct("<HHI")
SOCKET: Final = struct.Struct("<i4x")
WATCH: Final = struct.Struct("<IHH")
WATCH_EXTENDED: Final = struct.Struct("<IHHHH")
TRANSACTION: Final = struct.Struct("<II")
NODE: Final = struct.Struct("<IIHHHH")
PERMISSION: Final = struct.Struct("<BBH")
QUOTA: Final = struct.Struct("<HH")
DOMAIN: Final = struct.Struct("<HHI")

END, GLOBAL_DATA, CONNECTION_DATA, WATCH_DATA, TRANSACTION_DATA, NODE_DATA, GLOBAL_QUOTA_DATA = range(7)
DOMAIN_DATA, WATCH_DATA_EXTENDED = 7, 8
TYPE_RING, TYPE_SOCKET = 0, 1
TA_READ, TA_WRITTEN = 1, 2
PERMISSION_STALE: Final = 1
DOOMED: Final = b"@doomed"
"""Name of a node that marks a transaction: read, it has a conflict already; removed, it has failed."""
NO_DOMAIN: Final = 0x7FF4
"""DOMID_INVALID (xen.h)."""
NO_FD: Final = -1
_LETTERS: Final = {0: ord("n"), READ: ord("r"), WRITE: ord("w"), READ | WRITE: ord("b")}
_BITS: Final = {letter: bits for bits, letter in _LETTERS.items()}


class StateError(Exception):
    """A stream is not what `load` understands; the message is a sentence."""


class Place(NamedTuple):
    """Where a connection's other end is: a ring (`domid` and the local port), or a file descriptor."""

    domid: int = 0
    port: int = 0
    fd: int | None = None
    pending: bytes = b""
    """Bytes that the owner has taken from the connection but not delivered yet; the rest of a message first."""


class Fds(NamedTuple):
    """File descriptors of the daemon: of the socket it listens on and of the event channels; -1: none."""

    listener: int = NO_FD
    events: int = NO_FD


# ---- writing


def _record(kind: int, body: bytes) -> bytes:
    padded = body + bytes(-len(body) % 8)
    return RECORD.pack(kind, len(padded)) + padded


def save(
    server: Server,
    place_of: Callable[[Connection], Place | None],
    fds: Fds = Fds(),  # noqa: B008  # a tuple
    reply_to: Connection | None = None,
    reply: bytes = b"",
    rings: Sequence[Place] = (),
) -> bytes:
    """Return the state of a server. `place_of(connection)` is None for one that does not survive.

    `reply` is a message for the connection `reply_to` that has not been queued; `rings` are connections of domains that
    are not clients here.
    """
    numbers: dict[Connection, int] = {}
    watches = (watch for client in server.connections for watch in client.watches.values())
    newer = any(domain.features for domain in server.domains) or any(watch.depth is not None for watch in watches)
    parts = [
        PREAMBLE.pack(IDENT, VERSION_WITH_DEPTH if newer else VERSION, 0),
        _record(GLOBAL_DATA, GLOBAL.pack(*fds)),
        _quotas(server),
        *(_domain(domain) for domain in server.domains if domain.features or domain.quotas is not None),
        *(_ring(1 + at, place) for at, place in enumerate(rings)),
    ]
    for connection in server.connections:
        place = place_of(connection)
        if place is None:
            continue
        number = numbers[connection] = len(rings) + len(numbers) + 1
        parts.append(_connection(number, connection, place, reply if connection is reply_to else b""))
        parts += [_watch(number, connection, *key) for key in connection.watches]
    for name, perms in server.special.items():
        parts.append(_node(name, b"", perms))
    parts += [_node(path, node.value, _living(server, node)) for path, node in server.store.tree.snapshot().walk()]
    for connection, number in numbers.items():
        for tx_id, transaction in connection.transactions.items():
            parts += _transaction(server, number, tx_id, transaction)
    parts.append(_record(END, b""))
    return b"".join(parts)


def _living(server: Server, node: Node) -> Permissions:
    return server.domains.living(node.perms, node.generation)


def _quotas(server: Server) -> bytes:
    return _record(GLOBAL_QUOTA_DATA, QUOTA.pack(len(HARD_LIMITS), 0) + _values(server.quotas))


def _values(quotas: Quotas) -> bytes:
    values = [quotas.limit(name) for name in HARD_LIMITS]
    names = b"".join([name.encode() + b"\0" for name in HARD_LIMITS])
    return struct.pack(f"<{len(values)}I", *values) + names


def _domain(domain: Domain) -> bytes:
    count = 0 if domain.quotas is None else len(HARD_LIMITS)
    values = b"" if domain.quotas is None else _values(domain.quotas)
    return _record(DOMAIN_DATA, DOMAIN.pack(domain.domid, count, domain.features) + values)


def _ring(number: int, place: Place) -> bytes:
    spec = RING.pack(place.domid, NO_DOMAIN, place.port)
    return _record(CONNECTION_DATA, CONNECTION.pack(number, TYPE_RING, 0, spec, 0, 0, 0))


def _connection(number: int, connection: Connection, place: Place, reply: bytes) -> bytes:
    if place.fd is None:
        target = connection.domain.target
        spec = RING.pack(place.domid, NO_DOMAIN if target is None else target.domid, place.port)
        kind = TYPE_RING
    else:
        spec, kind = SOCKET.pack(place.fd), TYPE_SOCKET
    waiting, torn = connection.waiting()
    # What the owner holds is the rest of a message, and perhaps whole ones behind it: all of it counts as one.
    partial = len(place.pending) + torn
    output = place.pending + waiting + reply
    head = CONNECTION.pack(number, kind, 0, spec, len(connection.input), min(partial, 0xFFFF), len(output))
    return _record(CONNECTION_DATA, head + connection.input + output)


def _watch(number: int, connection: Connection, path: bytes, token: bytes) -> bytes:
    watch = connection.watches[path, token]
    name = path[watch.skip :] + b"\0"
    token += b"\0"
    if watch.depth is None:
        return _record(WATCH_DATA, WATCH.pack(number, len(name), len(token)) + name + token)
    head = WATCH_EXTENDED.pack(number, len(name), len(token), min(watch.depth, 0xFFFE), 0)
    return _record(WATCH_DATA_EXTENDED, head + name + token)


def _node(
    path: bytes, value: bytes, perms: Permissions | None, number: int = 0, tx_id: int = 0, access: int = 0
) -> bytes:
    entries = () if perms is None else perms.entries
    head = NODE.pack(number, tx_id, len(path) + 1, len(value), access, len(entries))
    packed = [
        PERMISSION.pack(_LETTERS[bits & ~STALE], PERMISSION_STALE if bits & STALE else 0, domid & 0xFFFF)
        for domid, bits in entries
    ]
    return _record(NODE_DATA, head + b"".join(packed) + path + b"\0" + value)


def _transaction(server: Server, number: int, tx_id: int, transaction: Transaction) -> Iterator[bytes]:
    yield _record(TRANSACTION_DATA, TRANSACTION.pack(number, tx_id))
    for path, access in transaction.accessed.items():
        node = access.node
        if node is None:
            # Removed, or looked for in vain.
            yield _node(path, b"", None, number, tx_id, 0 if access.modified and access.before else TA_READ)
        else:
            flags = TA_READ | (TA_WRITTEN if access.modified else 0)
            yield _node(path, node.value, _living(server, node), number, tx_id, flags)
    if transaction.doomed:
        yield _node(DOOMED, b"", None, number, tx_id, 0 if transaction.failed else TA_READ)


# ---- reading


class Reader:
    """Takes structures off a record's body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def unpack(self, shape: struct.Struct) -> tuple[int, ...]:
        """Return the fields of a structure. Raises StateError."""
        return shape.unpack(self.take(shape.size))

    def take(self, size: int) -> bytes:
        """Return so many bytes. Raises StateError."""
        data = self._body[self._at : self._at + size]
        if len(data) < size:
            raise StateError("a record of the state is shorter than it says")
        self._at += size
        return data

    def rest(self) -> bytes:
        """Return what has not been taken."""
        return self._body[self._at :]

    def string(self, size: int) -> bytes:
        """Return a string whose NUL counts. Raises StateError."""
        data = self.take(size)
        if data[-1:] != b"\0":
            raise StateError("a string in the state has no end")
        return data[:-1]


class _Seen(NamedTuple):
    """A node of a transaction."""

    path: bytes
    value: bytes
    perms: Permissions | None
    access: int


class Loader:
    """Makes a server of a stream.

    `connect(server, place)` returns the connection for a socket or ring: by `Server.connect` or `Server.readmit`, and
    None if there is nobody any more.
    """

    def __init__(self, server: Server, connect: Callable[[Server, Place], Connection | None]) -> None:
        self.server = server
        self.fds = Fds()
        self._connect = connect
        self._numbers: dict[int, Connection | None] = {}
        self._targets: list[tuple[Connection, int]] = []
        self._nodes: dict[bytes, tuple[bytes, Permissions, list[bytes]]] = {}
        self._transactions: dict[tuple[int, int], list[_Seen]] = {}
        self._watches: list[tuple[Connection, bytes, bytes, int | None]] = []

    def load(self, data: bytes) -> None:
        """Put everything in place. Raises StateError; the server is of no use then."""
        for kind, body in _records(data):
            handler = self._handlers.get(kind)
            if handler is not None:
                handler(self, Reader(body))
        self._finish()

    def _global(self, reader: Reader) -> None:
        self.fds = Fds(*reader.unpack(GLOBAL))

    def _quota(self, reader: Reader) -> None:
        count, more = reader.unpack(QUOTA)
        self._set_quotas(self.server.quotas, reader, count + more)

    def _set_quotas(self, quotas: Quotas, reader: Reader, count: int) -> None:
        values = reader.unpack(struct.Struct(f"<{count}I"))
        for name, value in zip(reader.rest().split(b"\0"), values, strict=False):
            if name.decode("latin-1") in HARD_LIMITS:
                quotas.set_limit(name.decode("latin-1"), value)

    def _domain(self, reader: Reader) -> None:
        domid, count, features = reader.unpack(DOMAIN)
        domain = self.server.know(domid)
        if domain is not None:
            domain.features = features
        if domain is not None and count:
            domain.quotas = attrs.evolve(self.server.quotas)
            self._set_quotas(domain.quotas, reader, count)

    def _connection(self, reader: Reader) -> None:
        number, kind, _ = reader.unpack(struct.Struct("<IHH"))
        spec = reader.take(8)
        size_in, torn, size_out = reader.unpack(struct.Struct("<HHI"))
        target = NO_DOMAIN
        if kind == TYPE_RING:
            domid, target, port = RING.unpack(spec)
            place = Place(domid=domid, port=port)
        elif kind == TYPE_SOCKET:
            place = Place(fd=SOCKET.unpack(spec)[0])
        else:
            raise StateError(f"the state has a connection of an unknown kind ({kind})")
        connection = self._connect(self.server, place)
        self._numbers[number] = connection
        if connection is None:
            return
        connection.input = reader.take(size_in)
        try:
            connection.restore_output(reader.take(size_out), torn)
        except ValueError as error:
            raise StateError(f"what waits for a connection in the state is no messages: {error}") from None
        if target != NO_DOMAIN:
            self._targets.append((connection, target))

    def _watch(self, reader: Reader) -> None:
        number, path, token = reader.unpack(WATCH)
        self._note_watch(number, reader.string(path), reader.string(token), None)

    def _watch_extended(self, reader: Reader) -> None:
        number, path, token, depth, _ = reader.unpack(WATCH_EXTENDED)
        self._note_watch(number, reader.string(path), reader.string(token), None if depth == 0xFFFF else depth)

    def _note_watch(self, number: int, path: bytes, token: bytes, depth: int | None) -> None:
        connection = self._of(number)
        if connection is not None:
            self._watches.append((connection, path, token, depth))

    def _of(self, number: int) -> Connection | None:
        if number not in self._numbers:
            raise StateError(f"the state speaks of a connection {number} that is not there")
        return self._numbers[number]

    def _transaction(self, reader: Reader) -> None:
        number, tx_id = reader.unpack(TRANSACTION)
        self._of(number)
        self._transactions[number, tx_id] = []

    def _node(self, reader: Reader) -> None:
        number, tx_id, path_size, value_size, access, count = reader.unpack(NODE)
        entries = [self._entry(reader) for _ in range(count)]
        path = reader.string(path_size)
        value = reader.take(value_size)
        perms = Permissions(tuple(entries)) if entries else None
        if path[:1] != b"@" and not is_valid(path, 0xFFFF):
            raise StateError(f"the state has a node {path!r}, which no node can be called")
        if number:
            if (number, tx_id) not in self._transactions:
                raise StateError(f"the state speaks of a transaction {tx_id} that is not there")
            self._transactions[number, tx_id].append(_Seen(path, value, perms, access))
            return
        if perms is None:
            raise StateError(f"the node {path!r} in the state has no owner")
        if path[:1] == b"@":
            if path in self.server.special:
                self.server.special[path] = perms
            return
        if path in self._nodes:
            raise StateError(f"the state has the node {path!r} twice")
        if path != b"/":
            if parent_of(path) not in self._nodes:
                raise StateError(f"the state has the node {path!r} before its parent")
            self._nodes[parent_of(path)][2].append(path[path.rindex(b"/") + 1 :] + b"\0")
        self._nodes[path] = (value, perms, [])

    def _entry(self, reader: Reader) -> Entry:
        letter, flags, domid = reader.unpack(PERMISSION)
        if letter not in _BITS:
            raise StateError(f"the state has a permission {letter} that is none of n, r, w, b")
        stale = bool(flags & PERMISSION_STALE) or self.server.know(domid) is None
        return Entry(domid, _BITS[letter] | (STALE if stale else 0))

    _handlers: Final = {
        GLOBAL_DATA: _global,
        CONNECTION_DATA: _connection,
        WATCH_DATA: _watch,
        WATCH_DATA_EXTENDED: _watch_extended,
        TRANSACTION_DATA: _transaction,
        NODE_DATA: _node,
        GLOBAL_QUOTA_DATA: _quota,
        DOMAIN_DATA: _domain,
    }

    # ---- the end

    def _finish(self) -> None:
        server = self.server
        store = server.store
        self._nodes.setdefault(b"/", (b"", only_owner(), []))
        for path, node in list(store.tree.walk()):
            store.remove(path, node)
        for path, (value, perms, names) in self._nodes.items():
            if perms.entries[0].bits & STALE:
                # Its owner is gone; dom0 takes over.
                first, *others = perms.entries
                perms = Permissions((Entry(0, first.bits & ~STALE), *others))
            store.put(path, None, value, b"".join(names), perms)
        for connection, domid in self._targets:
            connection.domain.target = server.know(domid)
        for connection, name, token, depth in self._watches:
            server.add_watch(connection, name, token, depth)
        for (number, tx_id), seen in self._transactions.items():
            connection_ = self._numbers[number]
            if connection_ is not None:
                self._restore(server.begin(connection_, tx_id), seen)

    def _restore(self, transaction: Transaction, nodes: list[_Seen]) -> None:
        store = self.server.store
        lists: dict[bytes, bytes] = {}
        for mark in [seen for seen in nodes if seen.path[:1] == b"@"]:
            nodes.remove(mark)
            transaction.lost = transaction.lost or bool(mark.access & TA_READ)
            transaction.failed = transaction.failed or not mark.access & TA_READ
        for seen in nodes:
            committed = store.get(seen.path)
            access = transaction.accessed[seen.path] = Access(committed)
            if seen.perms is None and seen.access & TA_READ and committed is not None:
                access.seen = Access(None).seen
                access.node = access.before = None
            elif seen.perms is None:
                access.node = None
                access.modified = not seen.access & TA_READ and committed is not None
            else:
                children = b"" if committed is None else committed.children
                changed = committed is None or (committed.value, committed.perms) != (seen.value, seen.perms)
                if not seen.access & TA_WRITTEN and changed:
                    # Somebody has changed it since.
                    access.seen = 0
                access.modified = bool(seen.access & TA_WRITTEN)
                if changed or access.modified:
                    generation = store.take_generation()
                    access.node = Node(seen.value, children, seen.perms, generation)
                access.event = access.modified and changed
        for seen in nodes:
            self._note_name(transaction, seen, lists)
        for path, children in lists.items():
            access = transaction.accessed[path]
            node = access.node
            if node is not None and node.children != children:
                access.node = Node(node.value, children, node.perms, node.generation)
        for access in transaction.accessed.values():
            # It was written with nothing new, and not for the sake of its list: to write the same is a change.
            unchanged = access.modified and not access.event and access.node is not None and access.before is not None
            if unchanged and access.node is not None and access.before is not None:
                access.event = access.node.children == access.before.children
        transaction.recount()

    def _note_name(self, transaction: Transaction, seen: _Seen, lists: dict[bytes, bytes]) -> None:
        """Put a name into, or take it from, the list of the directory above, as the transaction sees it."""
        access = transaction.accessed[seen.path]
        above = parent_of(seen.path) if seen.path != b"/" else None
        parent = transaction.accessed.get(above) if above is not None else None
        if not access.modified or above is None or parent is None or parent.node is None:
            return
        children = lists.get(above, parent.node.children)
        name = seen.path[seen.path.rindex(b"/") + 1 :]
        if access.node is None:
            access.event = True
            shorter = without_child(children, name)
            lists[above] = children if shorter is None else shorter
        elif access.before is None:
            lists[above] = children + name + b"\0"
            assert child_of(above, name) == seen.path


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each record up to END. Raises StateError."""
    if len(data) < PREAMBLE.size:
        raise StateError("the state is too short")
    ident, version, flags = PREAMBLE.unpack_from(data)
    if ident != IDENT or version not in (VERSION, VERSION_WITH_DEPTH) or flags:
        raise StateError("this is no state of a store that can be read here: wrong name, version or byte order")
    at = PREAMBLE.size
    while True:
        if len(data) - at < RECORD.size:
            raise StateError("the state ends before its end record")
        kind, size = RECORD.unpack_from(data, at)
        at += RECORD.size
        if kind == END:
            return
        if len(data) - at < size:
            raise StateError("the state ends in the middle of a record")
        yield kind, data[at : at + size]
        at += size
