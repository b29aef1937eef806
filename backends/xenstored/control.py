"""CONTROL: what `xenstore-control` asks of the daemon.

What concerns files (`log`, `logfile`, `memreport`, the program of a live update) is done by the daemon's owner
(`server.Files`), if it has any: the one in a simulated dom0 has not, and answers as the C daemon does when it cannot.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from backends.xenstored.connection import Connection
from backends.xenstored.errors import EINVAL, ENOENT, StoreError
from backends.xenstored.numbers import leading_number
from backends.xenstored.tree import child_of

if TYPE_CHECKING:
    from backends.xenstored.server import Server

_OK: Final = b"OK\0"


Handler = Callable[["Server", Connection, list[bytes]], bytes | None]


def run(server: "Server", connection: Connection, payload: bytes) -> bytes | None:
    """Execute a control command; returns the reply's payload, None if that comes later.  Raises StoreError."""
    # What comes behind the last NUL is not there at all.
    command, *arguments = payload.split(b"\0")[:-1] or [b""]
    handler = COMMANDS.get(command)
    if handler is None:
        raise StoreError(EINVAL)
    return handler[0](server, connection, arguments)


def _check(server: "Server", connection: Connection, arguments: list[bytes]) -> bytes:
    """Look whether every name in a directory's list has its node, and every node its name."""
    if arguments:
        raise StoreError(EINVAL)
    problems = inconsistencies(server)
    if problems and server.log is not None:
        for problem in problems:
            server.log(problem)
    return _OK


def inconsistencies(server: "Server") -> list[str]:
    """Return a sentence for each thing in the store that cannot be: names without nodes, nodes without names."""
    tree = server.store.tree
    problems = []
    seen = 0
    for path, node in tree.walk():
        seen += 1
        names = node.names
        if len(set(names)) != len(names):
            problems.append(f"a name is twice in the directory {path!r}")
        problems += [f"no node for the name {name!r} in {path!r}" for name in names if child_of(path, name) not in tree]
    if seen != len(tree):
        problems.append(f"{len(tree)} nodes, but only {seen} can be reached from /")
    return problems


def _log(server: "Server", connection: Connection, arguments: list[bytes]) -> bytes:
    if arguments not in ([b"on"], [b"off"]):
        raise StoreError(EINVAL)
    if server.files is not None:
        server.files.log(arguments == [b"on"])
    return _OK


def _logfile(server: "Server", connection: Connection, arguments: list[bytes]) -> bytes:
    if len(arguments) != 1 or server.files is None:
        raise StoreError(EINVAL)
    server.files.log_to(arguments[0].decode("utf-8", "surrogateescape"))
    return _OK


def _memreport(server: "Server", connection: Connection, arguments: list[bytes]) -> bytes:
    # The C daemon's EBADF is not in the table of errors that the wire knows, and so becomes EINVAL.
    if len(arguments) > 1 or server.files is None:
        raise StoreError(EINVAL)
    name = arguments[0].decode("utf-8", "surrogateescape") if arguments else None
    if not server.files.report(name, report(server)):
        raise StoreError(EINVAL)
    return _OK


def report(server: "Server") -> str:
    """Return what is in the store, and what everybody uses of it."""
    lines = [f"nodes {len(server.store.tree)}, watches {len(server.watches)}, transactions {server.open_transactions}"]
    lines += [
        f"domain {domain.domid}: {len(domain.nodes)} nodes, {domain.watches} watches, {domain.memory_used} bytes"
        for domain in server.domains
    ]
    lines += [
        f"{client.label}: {len(client.watches)} watches, {len(client.transactions)} transactions, "
        f"{len(client.input)} bytes in, {client.queued} bytes out"
        for client in server.connections
    ]
    return "\n".join(lines) + "\n"


def _print(server: "Server", connection: Connection, arguments: list[bytes]) -> bytes:
    if len(arguments) != 1:
        raise StoreError(EINVAL)
    if server.log is not None:
        server.log("control: " + arguments[0].decode("latin-1"))
    return _OK


def _quota(server: "Server", connection: Connection, arguments: list[bytes]) -> bytes:
    if not arguments:
        return server.quotas.describe().encode() + b"\0"
    if arguments[0] == b"set":
        if len(arguments) != 3:
            raise StoreError(EINVAL)
        value = leading_number(arguments[2])
        if value < 1:
            raise StoreError(EINVAL)
        try:
            server.quotas[arguments[1].decode("latin-1")] = value
        except KeyError:
            raise StoreError(EINVAL) from None
        return _OK
    if len(arguments) != 1:
        raise StoreError(EINVAL)
    domain = server.domains.get(leading_number(arguments[0]))
    if domain is None:
        raise StoreError(ENOENT)
    # Of dom0 only its ring counts: who is connected to the socket belongs to no domain.
    rings = [client for client in server.connections if client.label == f"domain {domain.domid}"]
    rows = {
        "nodes": len(domain.nodes),
        "watches": sum(len(client.watches) for client in rings),
        "transactions": sum(len(client.transactions) for client in rings),
        "outstanding": domain.outstanding,
        "memory": domain.memory,
    }
    table = "".join(f"{name:<16}: {value:8d}\n" for name, value in rows.items())
    return f"Domain {domain.domid}:\n{table}".encode() + b"\0"


def _quota_soft(server: "Server", connection: Connection, arguments: list[bytes]) -> bytes:
    if not arguments:
        return server.quotas.describe_soft().encode() + b"\0"
    if len(arguments) != 3 or arguments[0] != b"set" or arguments[1] != b"memory" or leading_number(arguments[2]) < 1:
        raise StoreError(EINVAL)
    server.quotas.soft_memory = leading_number(arguments[2])
    return _OK


def _live_update(server: "Server", connection: Connection, arguments: list[bytes]) -> bytes | None:
    """Prepare and start a live update, in the steps of xenstore-control; any answer but "OK" is a failure."""
    # The C daemon looks at four words at most.
    step, *rest = [argument.decode("utf-8", "surrogateescape") for argument in arguments[:4]] or [""]
    if step == "-a" and not rest:
        return _abort(server)
    if step == "-f" and len(rest) == 1:
        return _begin(server, connection, rest[0])
    if step == "-c" and len(rest) == 1:
        if server.update is None or server.update.connection is not connection:
            return b"Not in live-update session.\0"
        server.update.arguments = rest[0]
        return _OK
    if step == "-s" and _are_start_options(rest):
        if server.update is None or server.update.connection is not connection:
            return b"Not in live-update session.\0"
        if not server.can_update:
            server.update = None
            return b"Error activating new binary.\0"
        if server.open_transactions and not server.update.keeps_transactions and "-F" not in rest:
            # xenstore-control tries again until its own timeout.
            return b"BUSY\0"
        server.update.started = True
        return None
    raise StoreError(EINVAL)


def _are_start_options(words: list[str]) -> bool:
    while words:
        if words[0] == "-F":
            words = words[1:]
        elif words[0] == "-t" and len(words) > 1:
            words = words[2:]
        else:
            return False
    return True


def _begin(server: "Server", connection: Connection, program: str) -> bytes:
    wrong = None if server.files is None else server.files.is_program(program)
    if wrong is not None:
        return wrong.encode() + b"\0"
    if server.update is not None:
        return b"live-update session already active.\0"
    server.begin_update(connection, program)
    if server.files is not None and server.update is not None:
        server.update.keeps_transactions = server.files.is_mine(program)
    return _OK


def _abort(server: "Server") -> bytes:
    if server.update is None:
        return b"No live-update session active.\0"
    server.update = None
    return _OK


def _help(server: "Server", connection: Connection, arguments: list[bytes]) -> bytes:
    if arguments:
        raise StoreError(EINVAL)
    return b"".join([name + b"\t" + usage + b"\n" for name, (_, usage) in COMMANDS.items()]) + b"\0"


COMMANDS: Final[dict[bytes, tuple[Handler, bytes]]] = {
    b"check": (_check, b""),
    b"log": (_log, b"on|off"),
    b"live-update": (
        _live_update,
        b"[-c <cmdline>] [-F] [-t <timeout>] <file>\n    Default timeout is 60 seconds.",
    ),
    b"logfile": (_logfile, b"<file>"),
    b"memreport": (_memreport, b"[<file>]"),
    b"print": (_print, b"<string>"),
    b"quota": (_quota, b"[set <name> <val>|<domid>]"),
    b"quota-soft": (_quota_soft, b"[set <name> <val>]"),
    b"help": (_help, b""),
}
"""Command → (handler, how to use it)."""
