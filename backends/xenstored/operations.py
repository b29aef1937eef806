"""What each operation of io/xs_wire.h does.

`OPERATIONS` is the table; a handler takes the server, the connection, its transaction (or None) and the payload, and
returns the payload of the reply or raises `StoreError`.  Where Xen's documents leave a choice (what comes first, which
errno), the choice of the C daemon of Xen 4.17 is made.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backends.xenstored import control, newer
from backends.xenstored.connection import Connection
from backends.xenstored.domains import Domain
from backends.xenstored.errors import (
    E2BIG,
    EACCES,
    EBUSY,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOMEM,
    ENOSPC,
    EPERM,
    StoreError,
)
from backends.xenstored.nodes import check_size, create, find, remove_tree, search
from backends.xenstored.numbers import leading_number
from backends.xenstored.paths import WATCH_SPECIAL_MAX, home_of, is_valid
from backends.xenstored.permissions import NOW, OWNER, READ, STALE, WRITE, Entry, Permissions, parse_entry
from backends.xenstored.store import View, size_of
from backends.xenstored.transactions import Transaction
from backends.xenstored.tree import Node, parent_of
from hypervisor.abi.io import xs_wire
from hypervisor.abi.io.xs_wire import XENSTORE_PAYLOAD_MAX
from hypervisor.abi.xen import DOMID_SELF

if TYPE_CHECKING:
    from backends.xenstored.server import Server

_OK: Final = b"OK\0"


def _one(payload: bytes) -> bytes | None:
    """Return the only string of a payload; None if there is not exactly one, with its NUL at the end."""
    end = payload.find(b"\0")
    return payload[:end] if end == len(payload) - 1 and end >= 0 else None


def _strings(payload: bytes, count: int) -> list[bytes]:
    """Return exactly `count` strings, each with its NUL; what comes behind them is left out.  Raises EINVAL."""
    if payload.count(b"\0") != count:
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


# ---- operations on nodes


def _directory(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    _, node = find(server, connection, transaction or server.store, _one(payload), READ)
    if len(node.children) > XENSTORE_PAYLOAD_MAX:
        raise StoreError(E2BIG)
    return node.children


def _directory_part(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    name, offset = _strings(payload, 2)
    _, node = find(server, connection, transaction or server.store, name, READ)
    return list_part(node, leading_number(offset))


def _read(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    if transaction is None:
        # The hot path: the name of a node that is there needs no check but that of its length, which may have been
        # good when the node was made.
        node = server.store.get(payload[:-1]) if payload[-1:] == b"\0" else None
        if (
            node is not None
            and len(payload) <= (connection.domain.quotas or server.quotas).path_max
            and (connection.privileged or connection.rights(node) & READ)
        ):
            return node.value
    return find(server, connection, transaction or server.store, _one(payload), READ)[1].value


def _write(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    name, nul, value = payload.partition(b"\0")
    if not nul:
        raise StoreError(EINVAL)
    if transaction is None and connection.privileged:
        # The hot path, as that of `_read`: a value takes the place of another, and no right or quota is in the way.
        node = server.store.get(name)
        if node is not None and len(name) <= (connection.domain.quotas or server.quotas).path_max:
            server.store.set_value(name, node, value)
            if server.watches.by_path:
                server.fire(name, node, node, False)
            return _OK
    view: View = transaction or server.store
    path, node = search(server, connection, view, name, WRITE)
    if node is None:
        create(server, connection, view, path, value)
    else:
        if not connection.privileged:
            check_size(server, connection, view, path, size_of(value, node.children, node.perms), node.perms.owner)
        view.put(path, node, value, node.children, server.domains.current(node.perms, node.generation))
    server.changed(transaction, path, node, view.get(path) if node is None else node)
    return _OK


def _mkdir(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    name = _one(payload)
    if name is None:
        raise StoreError(ENOMEM)
    view: View = transaction or server.store
    path, node = search(server, connection, view, name, WRITE)
    if node is None:
        create(server, connection, view, path, b"")
        server.changed(transaction, path, None, view.get(path))
    return _OK


def _rm(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    name = _one(payload)
    if name is None:
        raise StoreError(ENOMEM)
    view: View = transaction or server.store
    path, node = search(server, connection, view, name, WRITE)
    if path == b"/":
        raise StoreError(EINVAL)
    if node is None:
        if view.get(parent_of(path)) is None:
            raise StoreError(ENOENT)
        return _OK
    remove_tree(server, transaction, path)
    return _OK


def _get_perms(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    return find(server, connection, transaction or server.store, _one(payload), READ)[1].perms.encode()


def _set_perms(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    # A last string without its NUL is not there at all.
    strings = payload.split(b"\0")[:-1]
    if len(strings) < 2:
        raise StoreError(EINVAL)
    name = strings[0]
    if not connection.privileged and len(strings) - 1 > server.limits(connection.domain).permissions:
        raise StoreError(ENOSPC)
    perms = _parse_permissions(server, strings[1:])
    if name[:1] == b"@":
        return _set_special(server, connection, name, perms)
    view: View = transaction or server.store
    path, node = find(server, connection, view, name, WRITE | OWNER)
    if not connection.privileged and perms.owner != node.perms.owner:
        raise StoreError(EPERM)  # XSA-352
    check_size(server, connection, view, path, size_of(node.value, node.children, perms), perms.owner)
    view.put(path, node, node.value, node.children, perms)
    server.changed(transaction, path, node, view.get(path))
    return _OK


def _parse_permissions(server: "Server", texts: list[bytes]) -> Permissions:
    entries: list[Entry] = []
    for text in texts:
        entry = parse_entry(text)
        if entry is None:
            raise StoreError(EINVAL)
        if server.know(entry.domid) is None:
            entry = Entry(entry.domid, entry.bits | STALE)
        entries.append(entry)
    if entries[0].bits & STALE:
        raise StoreError(ENOENT)
    return Permissions(tuple(entries))


def _set_special(server: "Server", connection: Connection, name: bytes, perms: Permissions) -> bytes:
    old = server.special.get(name)
    if not connection.privileged:
        bits = old.bits_for(connection.domain, connection.domain.target, NOW) if old is not None else 0
        if bits & (WRITE | OWNER) != WRITE | OWNER:
            raise StoreError(EACCES)
    if old is None:
        raise StoreError(ENOENT)
    server.special[name] = perms
    return _OK


# ---- watches


def _watch(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    depth = None
    if payload.count(b"\0") == 3 and newer.features_of(server, connection) & newer.XENSTORE_SERVER_FEATURE_WATCHDEPTH:
        name, token, levels = _strings(payload, 3)
        depth = leading_number(levels)
        if depth < 0:
            raise StoreError(EINVAL)
    else:
        name, token = _strings(payload, 2)
    path = connection.absolute(name)
    domain = connection.domain
    quotas = server.limits(domain)
    if path[:1] == b"@":
        if len(path) > WATCH_SPECIAL_MAX:
            raise StoreError(EINVAL)
    elif not is_valid(path, quotas.path_max):
        raise StoreError(EINVAL)
    if (path, token) in connection.watches:
        raise StoreError(EEXIST)
    if not connection.privileged:
        if domain.watches > quotas.watches:
            raise StoreError(E2BIG)
        if quotas.memory and connection.memory + len(path) + len(token) >= quotas.memory:
            raise StoreError(ENOMEM)
    watch = server.add_watch(connection, name, token, depth)
    server.after.append(lambda: server.send_event(watch, path))
    return _OK


def _unwatch(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    name, token = _strings(payload, 2)
    watch = connection.watches.pop((connection.absolute(name), token), None)
    if watch is None:
        raise StoreError(ENOENT)
    server.forget_watch(watch)
    return _OK


def _reset_watches(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    server.forget_watches(connection)
    server.forget_transactions(connection)
    return _OK


# ---- transactions


def _transaction_start(
    server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes
) -> bytes:
    if transaction is not None:
        raise StoreError(EBUSY)
    domain = connection.domain
    if not connection.privileged and domain.transactions > server.limits(domain).transactions:
        raise StoreError(ENOSPC)
    open_ones = connection.transactions
    number = connection.next_transaction
    while number in open_ones or not number:
        number = (number + 1) & 0xFFFFFFFF
    server.begin(connection, number)
    return b"%d\0" % number


def _transaction_end(
    server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes
) -> bytes:
    word = _one(payload)
    if word not in (b"T", b"F"):
        raise StoreError(EINVAL)
    if transaction is None:
        raise StoreError(ENOENT)
    number = next(number for number, it in connection.transactions.items() if it is transaction)
    del connection.transactions[number]
    transaction.end()
    server.open_transactions -= 1
    if word == b"T":
        server.disturb(connection)
        limit = None if connection.privileged else server.limits(connection.domain).nodes
        transaction.commit(limit, server.know, server.fire)
    return _OK


# ---- domains


def _introduce(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    strings = payload.split(b"\0")[:-1]
    if len(strings) < 3:
        raise StoreError(EINVAL)
    domid, mfn, port = (leading_number(text) for text in strings[:3])
    if not port:
        raise StoreError(EINVAL)
    server.introduce(domid & 0xFFFFFFFF, mfn, port & 0xFFFFFFFF)
    return _OK


def _the_domain(server: "Server", payload: bytes) -> Domain:
    """Return the introduced domain, not dom0, that RELEASE and RESUME name."""
    text = _one(payload)
    domid = leading_number(text) if text is not None else 0
    if not domid:
        raise StoreError(EINVAL)
    domain = server.domains.get(domid)
    if domain is None or not domain.introduced:
        raise StoreError(ENOENT)
    return domain


def _release(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    domain = _the_domain(server, payload)
    # The daemon's loop holds on to the client that comes next in its list, so if that is the domain's own it
    # dies only after the reply. Clients see it in the order of their messages.
    if domain.connection is not None and _follows(server, connection, domain.connection):
        server.after.append(lambda: server.release(domain))
    else:
        server.release(domain)
    return _OK


def _follows(server: "Server", first: Connection, second: Connection) -> bool:
    clients = iter(server.connections)
    for client in clients:
        if client is first:
            return next(clients, None) is second
    return False


def _resume(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    _the_domain(server, payload).shutdown = False
    return _OK


def _set_target(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    strings = payload.split(b"\0")[:-1]
    if len(strings) < 2:
        raise StoreError(EINVAL)
    found = [server.domains.get(leading_number(text)) for text in strings[:2]]
    domain, target = found
    if domain is None or target is None or not domain.introduced or not target.introduced:
        raise StoreError(ENOENT)
    domain.target = target
    return _OK


def _get_domain_path(
    server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes
) -> bytes:
    text = _one(payload)
    if text is None:
        raise StoreError(EINVAL)
    return home_of(leading_number(text) & 0xFFFFFFFF) + b"\0"


def _is_introduced(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    text = _one(payload)
    if text is None:
        raise StoreError(EINVAL)
    domid = leading_number(text)
    if domid == DOMID_SELF:
        return b"T\0"
    domain = server.domains.get(domid & 0xFFFFFFFF)
    return b"T\0" if domain is not None and domain.introduced else b"F\0"


def _control(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes | None:
    return control.run(server, connection, payload)


Handler = Callable[["Server", Connection, Any, bytes], bytes | None]


class Operation(NamedTuple):
    """How a request is served: by what, for dom0 only, with its tx_id or regardless of it; and its name."""

    handler: Handler
    privileged: bool
    transactional: bool
    name: str


OPERATIONS: Final[dict[int, Operation]] = {
    xs_wire.XS_CONTROL: Operation(_control, True, True, "CONTROL"),
    xs_wire.XS_DIRECTORY: Operation(_directory, False, True, "DIRECTORY"),
    xs_wire.XS_READ: Operation(_read, False, True, "READ"),
    xs_wire.XS_GET_PERMS: Operation(_get_perms, False, True, "GET_PERMS"),
    xs_wire.XS_WATCH: Operation(_watch, False, False, "WATCH"),
    xs_wire.XS_UNWATCH: Operation(_unwatch, False, False, "UNWATCH"),
    xs_wire.XS_TRANSACTION_START: Operation(_transaction_start, False, True, "TRANSACTION_START"),
    xs_wire.XS_TRANSACTION_END: Operation(_transaction_end, False, True, "TRANSACTION_END"),
    xs_wire.XS_INTRODUCE: Operation(_introduce, True, True, "INTRODUCE"),
    xs_wire.XS_RELEASE: Operation(_release, True, True, "RELEASE"),
    xs_wire.XS_GET_DOMAIN_PATH: Operation(_get_domain_path, False, True, "GET_DOMAIN_PATH"),
    xs_wire.XS_WRITE: Operation(_write, False, True, "WRITE"),
    xs_wire.XS_MKDIR: Operation(_mkdir, False, True, "MKDIR"),
    xs_wire.XS_RM: Operation(_rm, False, True, "RM"),
    xs_wire.XS_SET_PERMS: Operation(_set_perms, False, True, "SET_PERMS"),
    xs_wire.XS_IS_DOMAIN_INTRODUCED: Operation(_is_introduced, True, True, "IS_DOMAIN_INTRODUCED"),
    xs_wire.XS_RESUME: Operation(_resume, True, True, "RESUME"),
    xs_wire.XS_SET_TARGET: Operation(_set_target, True, True, "SET_TARGET"),
    xs_wire.XS_RESET_WATCHES: Operation(_reset_watches, False, True, "RESET_WATCHES"),
    xs_wire.XS_DIRECTORY_PART: Operation(_directory_part, False, True, "DIRECTORY_PART"),
    newer.XS_GET_FEATURE: Operation(newer.get_feature, False, True, "GET_FEATURE"),
    newer.XS_SET_FEATURE: Operation(newer.set_feature, True, True, "SET_FEATURE"),
    newer.XS_GET_QUOTA: Operation(newer.get_quota, True, True, "GET_QUOTA"),
    newer.XS_SET_QUOTA: Operation(newer.set_quota, True, True, "SET_QUOTA"),
}

PLAIN: Final = {xs_wire.XS_READ: _read, xs_wire.XS_WRITE: _write}
"""Requests of dom0 that outside transactions need nothing but their handler: no right, no quota, no afterwards."""
