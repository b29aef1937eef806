"""The store alone, as a process: `paravirt xenstored`.

There is no Xen below it, so nothing can be asked about domains. All ids that a domain can have count as existing
domains, unless it is told which ones do. INTRODUCE and RELEASE do all that they do to the store (nodes, permissions,
`@introduceDomain`, `@releaseDomain`), but there is no ring to be served.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, final

import trio

from backends.xenstored.connection import Connection
from backends.xenstored.domains import LARGEST_DOMID
from backends.xenstored.errors import EINVAL
from backends.xenstored.quota import Quotas
from backends.xenstored.server import Server
from hypervisor.trace import TraceWriter
from toolstack.errors import UsageError, did_you_mean
from toolstack.xenstore import address
from toolstack.xenstore.sockets import SocketServer

ROUNDS: Final = 64
"""Wake-ups that are served before trio is asked what else there is."""


@final
class NoXen:
    """A transport for a store without rings. `existing`: the domains that exist; None: all that can."""

    def __init__(self, existing: Collection[int] | None = None) -> None:
        self.existing = None if existing is None else frozenset(existing)

    def exists(self, domid: int) -> bool:
        """Tell whether there is such a domain."""
        return 0 <= domid <= LARGEST_DOMID if self.existing is None else domid in self.existing

    def attach(self, connection: Connection, mfn: int, port: int) -> bytes | None:
        """Accept a domain that exists, without a ring."""
        return None if self.exists(connection.id) else EINVAL

    def rebind(self, connection: Connection, port: int) -> None:
        """Begin anew: there is nothing to be done."""

    def detach(self, connection: Connection) -> None:
        """Stop serving a domain: there is nothing to be done."""


def parse_quotas(texts: Collection[str], quotas: Quotas | None = None) -> Quotas:
    """Return the limits that `NAME=VALUE` texts say. Raises `UsageError`."""
    quotas = quotas or Quotas()
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not value.isascii() or not value.isdigit():
            raise UsageError(f"quota {text!r} is not NAME=NUMBER")
        try:
            quotas[name] = int(value)
        except KeyError:
            raise UsageError(f"there is no quota {name!r}{did_you_mean(name, Quotas.names())}") from None
    return quotas


@final
class Service:
    """One store on one socket, until SIGTERM or Ctrl-C."""

    def __init__(
        self,
        path: Path,
        *,
        quotas: Quotas | None = None,
        trace_file: Path | None = None,
        transport: NoXen | None = None,
    ) -> None:
        self.path = path
        self.trace_file = trace_file
        self.server = Server(transport or NoXen(), quotas)

    async def run(self, started: trio.Event | None = None) -> None:
        """Serve. Raises `UsageError` if the socket or the trace cannot be had."""
        with ExitStack() as stack:
            self.server.trace = self._open_trace(stack)
            listener = address.listen(self.path)
            stack.callback(address.remove, self.path, address.identity(self.path))
            sockets = SocketServer(self.server, listener)
            stack.callback(sockets.close)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve, sockets)
                    if started is not None:
                        started.set()
                    async for _ in signals:
                        nursery.cancel_scope.cancel()
                        break

    def _open_trace(self, stack: ExitStack) -> Trace | None:
        if self.trace_file is None:
            return None
        return stack.enter_context(trace_to(self.trace_file))


async def serve(sockets: SocketServer) -> None:
    """Serve a store's sockets for ever."""
    poll = sockets.poll
    while True:
        await trio.lowlevel.wait_readable(sockets)
        for _ in range(ROUNDS):
            if not poll():
                break


class Trace:
    """The server's probe when there is no host: records are dom0's, times are those of the clock."""

    def __init__(self, writer: TraceWriter) -> None:
        self._writer = writer
        began = time.monotonic_ns()
        writer.now = lambda: time.monotonic_ns() - began

    def __call__(self, kind: int, *fields: object) -> None:
        """Write one record."""
        self._writer.emit(0, 0, kind, *fields)


@contextmanager
def trace_to(path: Path) -> Iterator[Trace]:
    """Record what the store does in a file. Raises `UsageError` if that cannot be written."""
    try:
        file = path.open("wb")
    except OSError as error:
        raise UsageError(f"cannot write the trace {str(path)!r}: {error.strerror}") from None
    with TraceWriter(file, seed=0, about={"pcpus": 1, "time": "real", "schedule": "fifo", "preempts": False}) as writer:
        yield Trace(writer)
    if writer.failure is not None:
        raise UsageError(f"cannot write the trace {str(path)!r} to its end: {writer.failure.strerror}")
