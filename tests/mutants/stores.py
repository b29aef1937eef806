"""Faulty stores: ours, with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backends.xenstored import nodes, operations, server
from backends.xenstored.errors import EINVAL, ENOENT, StoreError
from backends.xenstored.server import Server
from backends.xenstored.transactions import Transaction
from backends.xenstored.watches import WatchIndex
from hypervisor.abi.io import xs_wire as xs

Patch = Callable[[pytest.MonkeyPatch], None]
OK = b"OK\0"


def handler(kind: int, wrap: Callable[[Any], Any]) -> Patch:
    """Wrap the handler of an operation: `wrap(old)` returns `new(server, connection, transaction, payload)`."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        old = operations.OPERATIONS[kind]
        new = wrap(old.handler)
        monkeypatch.setitem(operations.OPERATIONS, kind, old._replace(handler=new))
        if kind in operations.PLAIN:
            monkeypatch.setitem(operations.PLAIN, kind, new)

    return patch


def method(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Patch:
    """Wrap a method or function."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))

    return patch


def before(action: Callable[[Any, Any, Any, bytes], bytes | None]) -> Callable[[Any], Any]:
    """Return a wrap that asks `action` first; None: go on as usual."""

    def wrap(old: Any) -> Any:
        def new(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes:
            early = action(server, connection, transaction, payload)
            return old(server, connection, transaction, payload) if early is None else early

        return new

    return wrap


def after(change: Callable[[bytes], bytes]) -> Callable[[Any], Any]:
    """Return a wrap that changes the reply."""

    def wrap(old: Any) -> Any:
        return lambda server, connection, transaction, payload: change(old(server, connection, transaction, payload))

    return wrap


def _same_value_is_no_write(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    name, _, value = payload.partition(b"\0")
    node = (transaction or server.store).get(connection.absolute(name))
    return OK if node is not None and node.value == value else None


def _event_for_existing(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    path = connection.absolute(payload[:-1])
    node = (transaction or server.store).get(path)
    if node is not None:
        server.changed(transaction, path, node, node)
    return None


def _mkdir_clears(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    return operations._write(server, connection, transaction, payload)


def _rm_missing(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    if (transaction or server.store).get(connection.absolute(payload[:-1])) is None:
        raise StoreError(ENOENT)
    return None


def _rm_leaves_children(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    return OK


def _end_always(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    if payload not in (b"T\0", b"F\0") and transaction is not None:
        operations._transaction_end(server, connection, transaction, b"F\0")
        raise StoreError(EINVAL)
    return None


def _abort_commits(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    return operations._transaction_end(server, connection, transaction, b"T\0") if payload == b"F\0" else None


def _watch_silent(old: Any) -> Any:
    def new(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes:
        reply: bytes = old(server, connection, transaction, payload)
        server.after.clear()
        return reply

    return new


def _watch_twice(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    name, token = payload.split(b"\0")[:2]
    return OK if (connection.absolute(name), token) in connection.watches else None


def _unwatch_unknown(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    name, token = payload.split(b"\0")[:2]
    return OK if (connection.absolute(name), token) not in connection.watches else None


def _unwatch_forgets_nothing(old: Any) -> Any:
    def new(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes:
        name, token = payload.split(b"\0")[:2]
        if connection.watches.pop((connection.absolute(name), token), None) is None:
            raise StoreError(ENOENT)
        return OK

    return new


def _first_permission_only(server: Any, connection: Any, transaction: Any, payload: bytes) -> bytes | None:
    parts = payload.split(b"\0")
    return (
        operations._set_perms(server, connection, transaction, b"\0".join(parts[:2]) + b"\0")
        if len(parts) > 3
        else None
    )


def _fire_reply_first(old: Any) -> Any:
    def fire(self: Any, *arguments: Any) -> None:
        self.after.append(lambda: old(self, *arguments))

    return fire


def _fires_only_exactly(old: Any) -> Any:
    return lambda self, path: self.on(path)


def _fires_siblings(old: Any) -> Any:
    def above(self: Any, path: bytes) -> Any:
        return [watch for watched in self.by_path for watch in self.on(watched) if path.startswith(watched)]

    return above


def _long_payload_is_an_error(old: Any) -> Any:
    def fail(self: Any, connection: Any, error: int) -> None:
        connection.push(server.HEADER.pack(xs.XS_ERROR, 0, 0, 6) + b"E2BIG\0", None)
        connection.input = b""
        self.dirty[connection] = None

    return fail


def _reads_not_remembered(old: Any) -> Any:
    def get(self: Any, path: bytes) -> Any:
        access = self.accessed.get(path)
        if access is not None and access.modified:
            return access.node
        return self.store.get(path)

    return get


MUTANTS: dict[str, tuple[str, str, Patch]] = {
    "numbers-lost": (
        "replies do not carry req_id",
        "XENSTORE-001",
        method(server, "_pack", lambda old: lambda kind, req, tx, size: old(kind, 0, tx, size)),
    ),
    "error-as-number": (
        "errors are numbers",
        "XENSTORE-002",
        method(StoreError, "__init__", lambda old: lambda self, name: old(self, b"2\0")),
    ),
    "small-payload": (
        "a payload of 4096 bytes is too long",
        "XENSTORE-005",
        lambda patch: patch.setattr(server, "XENSTORE_PAYLOAD_MAX", 4095),
    ),
    "oversize-survives": (
        "a header of 5000 bytes is answered",
        "XENSTORE-006",
        method(Server, "fail", _long_payload_is_an_error),
    ),
    "unknown-is-einval": (
        "an unknown operation is EINVAL",
        "XENSTORE-007",
        lambda patch: patch.setattr(server, "ENOSYS", EINVAL),
    ),
    "value-with-nul": (
        "a value is returned with a NUL",
        "XENSTORE-010",
        handler(xs.XS_READ, after(lambda reply: reply + b"\0")),
    ),
    "values-are-strings": (
        "a value ends at its first NUL",
        "XENSTORE-010",
        handler(xs.XS_READ, after(lambda reply: reply.partition(b"\0")[0])),
    ),
    "any-name": (
        "any byte may stand in a name",
        "XENSTORE-012",
        lambda patch: patch.setattr(nodes, "is_valid", lambda path, limit: True),
    ),
    "list-without-nul": (
        "the last name of a directory lacks its NUL",
        "XENSTORE-013",
        handler(xs.XS_DIRECTORY, after(lambda reply: reply.removesuffix(b"\0"))),
    ),
    "sorted-directory": (
        "DIRECTORY sorts",
        "XENSTORE-014",
        handler(
            xs.XS_DIRECTORY, after(lambda reply: b"".join(name + b"\0" for name in sorted(reply.split(b"\0")[:-1])))
        ),
    ),
    "mkdir-clears": ("MKDIR empties a node that is there", "XENSTORE-016", handler(xs.XS_MKDIR, before(_mkdir_clears))),
    "rm-does-nothing": ("RM removes nothing", "XENSTORE-017", handler(xs.XS_RM, before(_rm_leaves_children))),
    "rm-missing": ("RM of what is not there is ENOENT", "XENSTORE-017", handler(xs.XS_RM, before(_rm_missing))),
    "rm-root-ok": (
        "RM of the root is granted",
        "XENSTORE-018",
        handler(xs.XS_RM, before(lambda server, connection, transaction, payload: OK if payload == b"/\0" else None)),
    ),
    "nul-not-needed": (
        "a name without its NUL is taken",
        "XENSTORE-019",
        handler(
            xs.XS_READ,
            lambda old: (
                lambda server, connection, transaction, payload: old(
                    server, connection, transaction, payload.rstrip(b"\0") + b"\0"
                )
            ),
        ),
    ),
    "permissions-cut": (
        "only the first permission counts",
        "XENSTORE-030",
        handler(xs.XS_SET_PERMS, before(_first_permission_only)),
    ),
    "no-first-event": ("a new watch has no event", "XENSTORE-040", handler(xs.XS_WATCH, _watch_silent)),
    "watch-only-the-node": (
        "a watch hears nothing of what is below",
        "XENSTORE-041",
        method(WatchIndex, "above", _fires_only_exactly),
    ),
    "watch-by-prefix": ("/dd fires a watch on /d", "XENSTORE-041", method(WatchIndex, "above", _fires_siblings)),
    "same-value-silent": (
        "writing the same value fires nothing",
        "XENSTORE-042",
        handler(xs.XS_WRITE, before(_same_value_is_no_write)),
    ),
    "mkdir-fires": ("MKDIR of what is there fires", "XENSTORE-045", handler(xs.XS_MKDIR, before(_event_for_existing))),
    "watch-twice": ("the same watch twice is granted", "XENSTORE-046", handler(xs.XS_WATCH, before(_watch_twice))),
    "unwatch-unknown": (
        "UNWATCH of what is not watched is granted",
        "XENSTORE-048",
        handler(xs.XS_UNWATCH, before(_unwatch_unknown)),
    ),
    "unwatch-forgotten": (
        "events go on after UNWATCH",
        "XENSTORE-048",
        handler(xs.XS_UNWATCH, _unwatch_forgets_nothing),
    ),
    "reply-first": ("events come after the reply", "XENSTORE-050", method(Server, "fire", _fire_reply_first)),
    "reset-does-nothing": (
        "RESET_WATCHES leaves the watches",
        "XENSTORE-053",
        handler(xs.XS_RESET_WATCHES, before(lambda server, connection, transaction, payload: OK)),
    ),
    "abort-commits": ("an abort commits", "XENSTORE-061", handler(xs.XS_TRANSACTION_END, before(_abort_commits))),
    "no-conflicts": (
        "conflicts are not seen",
        "XENSTORE-062",
        method(Transaction, "_has_conflict", lambda old: lambda self: False),
    ),
    "all-conflict": (
        "every transaction conflicts",
        "XENSTORE-063",
        method(Transaction, "_has_conflict", lambda old: lambda self: True),
    ),
    "reads-move": (
        "a transaction reads what others write meanwhile",
        "XENSTORE-064",
        method(Transaction, "get", _reads_not_remembered),
    ),
    "bad-end-ends": (
        "a bad letter ends the transaction",
        "XENSTORE-066",
        handler(xs.XS_TRANSACTION_END, before(_end_always)),
    ),
    "nested": (
        "a transaction in a transaction is granted",
        "XENSTORE-067",
        handler(
            xs.XS_TRANSACTION_START,
            lambda old: lambda server, connection, transaction, payload: old(server, connection, None, payload),
        ),
    ),
    "path-without-nul": (
        "GET_DOMAIN_PATH lacks its NUL",
        "XENSTORE-080",
        handler(xs.XS_GET_DOMAIN_PATH, after(lambda reply: reply[:-1])),
    ),
    "everybody-introduced": (
        "every domain counts as introduced",
        "XENSTORE-081",
        handler(xs.XS_IS_DOMAIN_INTRODUCED, after(lambda reply: b"T\0")),
    ),
}
"""Name → the fault, the check meant for it, what makes it."""
