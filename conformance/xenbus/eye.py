"""What the store sees of a device: every state that either end has ever said, and what stood beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import attrs

from backends.xenstored.connection import Connection
from backends.xenstored.server import Server
from guest_kernel.xenbus import wire
from hypervisor.abi.io import xs_wire as xs


@attrs.frozen
class Sight:
    """A directory at a moment."""

    state: str | None
    """None: there is no such directory."""
    keys: frozenset[str]


@final
class Eye:
    """Looks at the two directories of a device after each turn of the store's.

    A turn is what the store does for one client before it listens to another: what happens within one, no other client
    can have seen. Besides, it can make transactions of a domain fail as if somebody had been in their way, and have a
    toolstack come just before any turn of the judged domain's.
    """

    def __init__(self, server: Server, judged: str, peer: str, domid: int) -> None:
        self._server = server
        self._receive = server.receive
        self._places = judged.encode(), peer.encode()
        self._domid = domid
        self.conflicts = 0
        """How many more transactions of the judged domain are to fail with EAGAIN."""
        self.conflicted: dict[tuple[int, int], None] = {}
        self.turns = 0
        """How many turns the judged domain has had."""
        self._before: dict[int, Callable[[], None]] = {}
        self._own = server.connect("the check")
        self.on_change: Callable[[Sight], None] = lambda sight: None
        """Called when the judged end's directory has changed."""
        self.judged: list[Sight] = [self._look(self._places[0])]
        """What the judged end's directory was, change by change."""
        self.peer: list[Sight] = [self._look(self._places[1])]
        # The instance's own name hides the method; `close` takes it away again.
        server.__dict__["receive"] = self._watch

    def close(self) -> None:
        """Look no longer."""
        self._server.__dict__.pop("receive", None)
        self._server.disconnect(self._own)

    def forget(self) -> None:
        """Remember only what is there now."""
        del self.judged[:-1], self.peer[:-1]

    @property
    def states(self) -> list[str | None]:
        """The states that the judged end has said, without repetitions in a row."""
        found = [sight.state for sight in self.judged]
        return [state for before, state in zip([object(), *found], found, strict=False) if state != before]

    def before_turn(self, number: int, action: Callable[[], None]) -> None:
        """Have something done just before a turn of the judged domain; 0 is the next one."""
        self._before = {self.turns + number: action}

    @property
    def turn_is_due(self) -> bool:
        """Whether what was to be done before a turn has not been done yet."""
        return bool(self._before)

    def write(self, path: str, value: object) -> None:
        """Write a node as dom0, at once."""
        self._as_dom0(xs.XS_WRITE, wire.join(path) + wire.to_bytes(value))

    def remove(self, path: str) -> None:
        """Remove a node as dom0, at once."""
        self._as_dom0(xs.XS_RM, wire.join(path))

    def _as_dom0(self, kind: int, payload: bytes) -> None:
        self._receive(self._own, wire.encode(kind, 0, 0, payload))
        self._own.drop_output()

    def _watch(self, connection: Connection, data: bytes) -> None:
        if connection.id == self._domid:
            if self.conflicts:
                self._spoil(connection)
            action = self._before.pop(self.turns, None)
            self.turns += 1
            if action is not None:
                action()
        self._receive(connection, data)
        changed = len(self.judged)
        for seen, place in zip((self.judged, self.peer), self._places, strict=True):
            now = self._look(place)
            if now != seen[-1]:
                seen.append(now)
        if len(self.judged) != changed:
            self.on_change(self.judged[-1])

    def _spoil(self, connection: Connection) -> None:
        for number, transaction in connection.transactions.items():
            if self.conflicts and not transaction.lost:
                transaction.lost = True
                self.conflicts -= 1
                self.conflicted[connection.id, number] = None

    def _look(self, place: bytes) -> Sight:
        tree = self._server.store.tree
        directory = tree.get(place)
        if directory is None:
            return Sight(None, frozenset())
        state = tree.get(place + b"/state")
        keys = frozenset(name.decode("latin-1") for name in directory.names)
        return Sight("" if state is None else state.value.decode("latin-1"), keys)
