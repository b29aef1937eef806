"""One client of the store: its bytes in, its messages out, its watches and transactions.

A connection is told of bytes (`Server.receive`) and asked for bytes (`take`).  Replies and events are in one queue, in
the order in which they came to be.  What an unprivileged client can make the store hold is bounded (XSA-326): a
request counts as *outstanding* until its reply and every event that it caused, to whomever, has been taken; at the
limit its input is left alone.
"""

from collections import deque
from typing import final

from backends.xenstored.domains import Domain
from backends.xenstored.permissions import ALL
from backends.xenstored.transactions import Transaction
from backends.xenstored.tree import Node
from backends.xenstored.watches import Watch
from guest_kernel.xenbus.wire import HEADER_SIZE, encode, parse_all
from hypervisor.abi.io.xs_wire import XS_WATCH_EVENT


@final
class Pending:
    """A request of an unprivileged domain, while messages that it caused are waiting to be taken."""

    __slots__ = ("connection", "messages")

    def __init__(self, connection: "Connection") -> None:
        self.connection = connection
        self.messages = 0

    def delivered(self) -> None:
        """One of its messages has been taken, or will never be."""
        self.messages -= 1
        if not self.messages:
            self.connection.domain.outstanding -= 1


@final
class Connection:
    """A client.  `privileged`: it is dom0 (or acts for it), no permission and hardly a quota binds it."""

    __slots__ = (
        "_events",
        "_offset",
        "_out",
        "domain",
        "error",
        "id",
        "input",
        "label",
        "next_transaction",
        "privileged",
        "queued",
        "relative",
        "transactions",
        "unseen",
        "watches",
    )

    def __init__(self, domain: Domain, privileged: bool, label: str) -> None:
        self.domain = domain
        self.id = domain.domid
        self.privileged = privileged
        self.label = label
        self.relative = domain.home + b"/"
        #: Bytes of requests that are not complete, or not looked at yet.
        self.input = b""
        #: XENSTORE_ERROR_*: not 0 once the client has broken the protocol; nothing it sends counts any more.
        self.error = 0
        #: Bytes behind the header that broke the protocol, at which nobody has looked.
        self.unseen = 0
        self.watches: dict[tuple[bytes, bytes], Watch] = {}
        self.transactions: dict[int, Transaction] = {}
        self.next_transaction = 1
        #: Messages that wait: whole, the request they are due to, the payload if it is an event.
        self._out: deque[tuple[bytes, Pending | None, bytes | None]] = deque()
        #: Payloads of the events that wait.
        self._events: set[bytes] = set()
        #: Bytes of the first message that have been taken.
        self._offset = 0
        #: Bytes waiting to be taken.
        self.queued = 0

    def __repr__(self) -> str:
        return f"<Connection {self.label}, {self.queued} bytes queued>"

    def push(self, message: bytes, cause: Pending | None) -> None:
        """Queue a reply; `cause` is the request that it is due to, if that is one to count."""
        self._out.append((message, cause, None))
        self.queued += len(message)
        if cause is not None:
            cause.messages += 1

    def push_event(self, payload: bytes, message: bytes, cause: Pending | None) -> None:
        """Queue a watch event, unless the very same one is waiting already: it says nothing new.

        Events about domains (`@...`) are all kept.
        """
        if payload[:1] != b"@":
            if payload in self._events:
                return
            self._events.add(payload)
        self._out.append((message, cause, payload))
        self.queued += len(message)
        if cause is not None:
            cause.messages += 1

    def take(self, room: int) -> bytes:
        """Return up to `room` of the waiting bytes, which are then the caller's to deliver."""
        out = self._out
        if not out or room <= 0:
            return b""
        if self.queued <= room:
            if len(out) > 1 or self._offset:
                return self._take_all()
            message, cause, event = out.pop()
            self.queued = 0
            if event is not None:
                self._events.clear()
            if cause is not None:
                cause.delivered()
            return message
        parts = []
        left = room
        while out and left:
            message, cause, event = out[0]
            at = self._offset
            size = len(message) - at
            if size > left:
                parts.append(message[at : at + left])
                self._offset = at + left
                left = 0
                break
            parts.append(message[at:] if at else message)
            left -= size
            self._offset = 0
            out.popleft()
            if event is not None:
                self._events.discard(event)
            if cause is not None:
                cause.delivered()
        self.queued -= room - left
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take_all(self) -> bytes:
        data = b"".join([message for message, _, _ in self._out])[self._offset :]
        self.drop_output()
        return data

    def waiting(self) -> tuple[bytes, int]:
        """Return all bytes that wait, and how many of them are the rest of a message that has been taken in part."""
        data = b"".join([message for message, _, _ in self._out])[self._offset :]
        return data, len(self._out[0][0]) - self._offset if self._offset else 0

    def restore_output(self, data: bytes, torn: int) -> None:
        """Have bytes wait again that `waiting` returned: no request is outstanding because of them any more."""
        if torn:
            self._out.append((data[:torn], None, None))
        self.queued += torn
        for message in parse_all(data[torn:]):
            event = message.payload if message.type == XS_WATCH_EVENT else None
            if event is not None and event[:1] != b"@":
                self._events.add(event)
            whole = encode(*message)
            self._out.append((whole, None, event))
            self.queued += len(whole)

    def parting(self) -> bytes:
        """Return what a client on a socket still gets that has broken the protocol.

        The C daemon takes one request a turn and writes once, from the turn after on: a header in one, its payload in
        the next. It hangs up as soon as it reads the bad header. So of what it has to say to a batch of requests before
        that, it says less than half.
        """
        writes = sum(event is None for _, _, event in self._out) - 1
        size = 0
        for message, _, _ in self._out:
            for part in (HEADER_SIZE, len(message) - HEADER_SIZE):
                if writes > 0 and part:
                    writes -= 1
                    size += part
        return self.take(size - self._offset)

    def drop_output(self) -> None:
        """Forget what waits: nobody will take it any more."""
        out, self._out = self._out, deque()
        self._events.clear()
        self._offset = 0
        self.queued = 0
        for _, cause, _ in out:
            if cause is not None:
                cause.delivered()

    @property
    def memory(self) -> int:
        """Bytes that count against the domain's `memory` quota: its nodes and watches, and what waits here."""
        return self.domain.memory + self.queued

    def rights(self, node: Node) -> int:
        """Return what this client may do with a node: READ, WRITE, OWNER."""
        if self.privileged:
            return ALL
        return node.perms.bits_for(self.domain, self.domain.target, node.generation)

    def absolute(self, name: bytes) -> bytes:
        """Return the absolute path of a name; special names stay."""
        return name if name[:1] in (b"/", b"@") else self.relative + name

    @property
    def torn(self) -> bool:
        """The client has got the beginning of a message but not its end."""
        return self._offset > 0
