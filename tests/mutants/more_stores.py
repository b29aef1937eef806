"""More faulty stores: ours, with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backends.xenstored import operations
from backends.xenstored.connection import Connection
from backends.xenstored.errors import EINVAL, StoreError
from backends.xenstored.numbers import leading_number
from backends.xenstored.permissions import parse_entry
from backends.xenstored.server import Server
from backends.xenstored.transactions import Transaction
from backends.xenstored.watches import Watch
from guest_kernel.xenbus.wire import HEADER
from hypervisor.abi.io import xs_wire as xs
from tests.mutants.stores import Patch, before, handler, method


def all_of(*patches: Patch) -> Patch:
    """Do several things."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for one in patches:
            one(monkeypatch)

    return patch


def fresh(make: Callable[[], Patch]) -> Patch:
    """Make a patch anew each time: what one store did does not show in the next."""
    return lambda monkeypatch: make()(monkeypatch)


def _parents(server: Any, connection: Any, transaction: Any, payload: bytes) -> list[bytes]:
    """Return the directories above a path that are missing, the highest first."""
    path = connection.absolute(payload.partition(b"\0")[0])
    found = []
    while (path := path.rpartition(b"/")[0]) and (transaction or server.store).get(path) is None:
        found.append(path)
    return found[::-1]


def _fills_parents(server: Any, connection: Any, transaction: Any, payload: bytes) -> None:
    for path in _parents(server, connection, transaction, payload):
        operations._write(server, connection, transaction, path + b"\0?")


def _level_by_level(server: Any, connection: Any, transaction: Any, payload: bytes) -> None:
    for path in _parents(server, connection, transaction, payload):
        operations._mkdir(server, connection, transaction, path + b"\0")


def _refuses(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    raise StoreError(EINVAL)


def _no_special(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    if payload[:1] == b"@":
        raise StoreError(EINVAL)
    return None


def _skips_what_it_does_not_know(old: Any) -> Any:
    return lambda server, texts: old(server, [text for text in texts if parse_entry(text)] or texts)


def _open_to_all(old: Any) -> Any:
    def write(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes:
        path = connection.absolute(payload.partition(b"\0")[0])
        is_new = (transaction or server.store).get(path) is None
        reply: bytes = old(server, connection, transaction, payload)
        if is_new:
            operations._set_perms(server, connection, transaction, path + b"\0b0\0")
        return reply

    return write


def _not_exactly(old: Any) -> Any:
    def fire(self: Any, path: bytes, now: Any, earlier: Any, exact: bool) -> None:
        if not exact:
            old(self, path, now, earlier, exact)

    return fire


def _counts_names(old: Any) -> Any:
    return lambda node, start: old(node, sum(len(name) + 1 for name in node.names[:start]))


def _reads_the_beginning(old: Any) -> Any:
    return lambda text: old(text[:1] + b"%d" % leading_number(text[1:]))


def _anybodys_watch(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    name, token = payload.split(b"\0")[:2]
    key = connection.absolute(name), token
    owner = next((other for other in server.connections if key in other.watches), connection)
    return operations._unwatch(server, owner, transaction, payload)


def _absolute_events(old: Any) -> Any:
    return lambda self, path: path + b"\0" + self.token + b"\0"


def _tells_everybody(old: Any) -> Any:
    def send(self: Any, watch: Any, path: bytes) -> None:
        old(self, watch, path)
        payload = watch.payload(path)
        for other in self.connections:
            if other is not watch.connection:
                other.push_event(payload, HEADER.pack(xs.XS_WATCH_EVENT, 0, 0, len(payload)) + payload, None)
                self.dirty[other] = None

    return send


def _quietly(old: Any) -> Any:
    def new(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes:
        server.__dict__["changed"] = lambda *_: None
        try:
            reply: bytes = old(server, connection, transaction, payload)
        finally:
            del server.__dict__["changed"]
        return reply

    return new


def _everybodys(old: Any) -> Any:
    def connect(self: Any, *arguments: Any) -> Any:
        connection = old(self, *arguments)
        for other in self.connections:
            connection.transactions.update(other.transactions)
        return connection

    return connect


def _at_once(old: Any) -> Any:
    def changed(self: Any, transaction: Any, path: bytes, earlier: Any, now: Any) -> None:
        old(self, transaction, path, earlier, now)
        if transaction is not None:
            self.fire(path, now, earlier, False)

    return changed


def _commits_for_the_dead(old: Any) -> Any:
    def forget(self: Any, connection: Any) -> None:
        for transaction in connection.transactions.values():
            transaction.commit(None, self.know, self.fire)
        old(self, connection)

    return forget


def _fails_for_good(old: Any) -> Any:
    def new(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes:
        try:
            reply: bytes = old(server, connection, transaction, payload)
        except StoreError:
            if transaction is not None:
                transaction.failed = True
            raise
        return reply

    return new


def _values_only(_old: Any) -> Any:
    def has_conflict(self: Any) -> bool:
        nodes = [(self.store.get(path), access.before) for path, access in self.accessed.items()]
        return any(now and before and now.value != before.value for now, before in nodes)

    return has_conflict


def _falls_over_long_events(old: Any) -> Any:
    def send(self: Any, watch: Any, path: bytes) -> None:
        if len(watch.payload(path)) > xs.XENSTORE_PAYLOAD_MAX:
            self.fail(watch.connection, xs.XENSTORE_ERROR_COMM)
        else:
            old(self, watch, path)

    return send


def _keeps_rights() -> Patch:
    rights: dict[bytes, bytes] = {}

    def rm(server: Any, connection: Any, transaction: Any, payload: bytes) -> None:
        path = connection.absolute(payload[:-1])
        node = (transaction or server.store).get(path)
        if node is not None:
            rights[path] = node.perms.encode()

    def write(old: Any) -> Any:
        def new(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes:
            reply: bytes = old(server, connection, transaction, payload)
            path = connection.absolute(payload.partition(b"\0")[0])
            if path in rights:
                operations._set_perms(server, connection, transaction, path + b"\0" + rights.pop(path))
            return reply

        return new

    return all_of(handler(xs.XS_RM, before(rm)), handler(xs.XS_WRITE, write))


MUTANTS: dict[str, tuple[str, str, Patch]] = {
    "filled-parents": (
        "directories that are made for a node have a value",
        "XENSTORE-011",
        handler(xs.XS_WRITE, before(_fills_parents)),
    ),
    "no-parts": (
        "long directories do not come in parts",
        "XENSTORE-015",
        handler(xs.XS_DIRECTORY_PART, before(_refuses)),
    ),
    "parts-by-number": (
        "the offset of DIRECTORY_PART counts names, not bytes",
        "XENSTORE-015",
        method(operations, "list_part", _counts_names),
    ),
    "relative-to-root": (
        "relative names are those of the root",
        "XENSTORE-020",
        method(
            Connection, "absolute", lambda old: lambda self, name: name if name[:1] in (b"/", b"@") else b"/" + name
        ),
    ),
    "odd-letters": (
        "permissions that are none are passed over",
        "XENSTORE-031",
        method(operations, "_parse_permissions", _skips_what_it_does_not_know),
    ),
    "numbers-to-begin-with": (
        "what stands behind the number of a permission is not looked at",
        "XENSTORE-031",
        method(operations, "parse_entry", _reads_the_beginning),
    ),
    "open-to-all": ("a new node is everybody's", "XENSTORE-032", handler(xs.XS_WRITE, _open_to_all)),
    "level-by-level": (
        "each directory that is made for a node is an event",
        "XENSTORE-043",
        handler(xs.XS_WRITE, before(_level_by_level)),
    ),
    "gone-unheard": (
        "a watch on what goes with its directory hears nothing",
        "XENSTORE-044",
        method(Server, "fire", _not_exactly),
    ),
    "absolute-events": (
        "events of relative watches have absolute paths",
        "XENSTORE-047",
        method(Watch, "payload", _absolute_events),
    ),
    "tells-everybody": ("events go to all connections", "XENSTORE-049", method(Server, "send_event", _tells_everybody)),
    "anybodys-watch": (
        "UNWATCH takes the watches of other clients, too",
        "XENSTORE-049",
        handler(xs.XS_UNWATCH, before(_anybodys_watch)),
    ),
    "quiet-permissions": ("SET_PERMS fires nothing", "XENSTORE-051", handler(xs.XS_SET_PERMS, _quietly)),
    "no-special": ("names with @ cannot be watched", "XENSTORE-052", handler(xs.XS_WATCH, before(_no_special))),
    "blind-inside": (
        "a transaction does not see what it writes",
        "XENSTORE-060",
        method(Transaction, "get", lambda old: lambda self, path: self.store.get(path)),
    ),
    "written-at-once": (
        "what a transaction writes is there for all at once",
        "XENSTORE-060",
        handler(xs.XS_WRITE, lambda old: lambda server, connection, _, payload: old(server, connection, None, payload)),
    ),
    "everybodys": (
        "a transaction is that of later connections, too",
        "XENSTORE-065",
        method(Server, "connect", _everybodys),
    ),
    "events-at-once": ("events of a transaction come at once", "XENSTORE-068", method(Server, "changed", _at_once)),
    "commits-for-the-dead": (
        "a transaction whose client goes is committed",
        "XENSTORE-069",
        method(Server, "forget_transactions", _commits_for_the_dead),
    ),
    "fails-for-good": (
        "a request that fails spoils its transaction",
        "XENSTORE-070",
        all_of(*(handler(kind, _fails_for_good) for kind in (xs.XS_READ, xs.XS_WRITE, xs.XS_MKDIR, xs.XS_RM))),
    ),
    "values-only": (
        "a node that comes or goes is no conflict",
        "XENSTORE-071",
        method(Transaction, "_has_conflict", _values_only),
    ),
    "long-events": (
        "who would get too long an event is thrown out",
        "XENSTORE-091",
        method(Server, "send_event", _falls_over_long_events),
    ),
    "keeps-rights": ("a node that is made again has its old permissions", "XENSTORE-092", fresh(_keeps_rights)),
}
"""Name → the fault, the check meant for it, what makes it."""
