"""CONTROL: what `xenstore-control` asks of the daemon.

`log`, `logfile`, `memreport` and `live-update` of the C daemon concern its log files and its memory allocator; here
`log` switches nothing (the trace is always there to be had), and the others answer as that daemon does when it cannot.
"""

from typing import TYPE_CHECKING, Final

from backends.xenstored.errors import EINVAL, ENOENT, StoreError
from backends.xenstored.numbers import leading_number
from backends.xenstored.tree import child_of

if TYPE_CHECKING:
    from backends.xenstored.server import Server

_OK: Final = b"OK\0"


def run(server: "Server", payload: bytes) -> bytes:
    """Execute a control command; returns the reply's payload.  Raises StoreError."""
    if payload[-1:] != b"\0":
        raise StoreError(EINVAL)
    command, *arguments = payload[:-1].split(b"\0")
    handler = COMMANDS.get(command)
    if handler is None:
        raise StoreError(EINVAL)
    return handler[0](server, arguments)


def _check(server: "Server", arguments: list[bytes]) -> bytes:
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


def _log(server: "Server", arguments: list[bytes]) -> bytes:
    if arguments not in ([b"on"], [b"off"]):
        raise StoreError(EINVAL)
    return _OK


def _print(server: "Server", arguments: list[bytes]) -> bytes:
    if len(arguments) != 1:
        raise StoreError(EINVAL)
    if server.log is not None:
        server.log("control: " + arguments[0].decode("latin-1"))
    return _OK


def _quota(server: "Server", arguments: list[bytes]) -> bytes:
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
    rows = {
        "nodes": len(domain.nodes),
        "watches": domain.watches,
        "transactions": domain.transactions,
        "outstanding": domain.outstanding,
        "memory": domain.memory,
    }
    table = "".join(f"{name:<16}: {value:8d}\n" for name, value in rows.items())
    return f"Domain {domain.domid}:\n{table}".encode() + b"\0"


def _quota_soft(server: "Server", arguments: list[bytes]) -> bytes:
    if not arguments:
        return server.quotas.describe_soft().encode() + b"\0"
    if len(arguments) != 3 or arguments[0] != b"set" or arguments[1] != b"memory" or leading_number(arguments[2]) < 1:
        raise StoreError(EINVAL)
    server.quotas.soft_memory = leading_number(arguments[2])
    return _OK


def _unavailable(server: "Server", arguments: list[bytes]) -> bytes:
    raise StoreError(EINVAL)


def _help(server: "Server", arguments: list[bytes]) -> bytes:
    if arguments:
        raise StoreError(EINVAL)
    return b"".join([name + b"\t" + usage + b"\n" for name, (_, usage) in COMMANDS.items()]) + b"\0"


COMMANDS: Final = {
    b"check": (_check, b""),
    b"log": (_log, b"on|off"),
    b"live-update": (
        _unavailable,
        b"[-c <cmdline>] [-F] [-t <timeout>] <file>\n    Default timeout is 60 seconds.",
    ),
    b"logfile": (_unavailable, b"<file>"),
    b"memreport": (_unavailable, b"[<file>]"),
    b"print": (_print, b"<string>"),
    b"quota": (_quota, b"[set <name> <val>|<domid>]"),
    b"quota-soft": (_quota_soft, b"[set <name> <val>]"),
    b"help": (_help, b""),
}
"""Command → (handler, how to use it)."""
