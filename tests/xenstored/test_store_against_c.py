"""Our store beside Xen's own daemon: the same random sessions, and every byte that any client gets must be the same.

`PARAVIRT_SESSIONS=1000 pytest tests/xenstored/test_store_against_c.py` tries more of them.
"""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from c_daemon import DYING, EXISTS, SHUTDOWN, BaseClient, CDaemon, RingClient, SocketClient
from fake_dom0 import FakeDom0, FakeGuest
from store_sessions import CLIENTS, GUESTS, SOCKETS, Domain, Hangup, Send, Sessions, Step
from store_world import World

from backends.xenstored.connection import Connection
from backends.xenstored.daemon import XenStored
from backends.xenstored.errors import EINVAL
from backends.xenstored.line import Pieces, piece
from backends.xenstored.numbers import leading_number
from backends.xenstored.server import DomainState
from guest_kernel.xenbus.ring import ClientRing
from guest_kernel.xenbus.wire import Message, Parser, encode, parse_all
from hypervisor.abi.domctl import XEN_DOMINF_dying, XEN_DOMINF_shutdown
from hypervisor.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from hypervisor.abi.io import xs_wire as xs
from hypervisor.abi.xen import VIRQ_DOM_EXC
from toolstack.xenstore.service import Log

COUNT = int(os.environ.get("PARAVIRT_SESSIONS", "25"))
FIRST = int(os.environ.get("PARAVIRT_FIRST_SESSION", "0"))
LENGTH = 120
DOMAINS = 6
UNKNOWN = 0x12345
ONE_NAME = (xs.XS_DIRECTORY, xs.XS_READ, xs.XS_GET_PERMS, xs.XS_MKDIR, xs.XS_RM)

Got = dict[str, list[Message] | None]
"""What each client has got; None: its connection is broken."""


def is_newer(step: Send) -> bool:
    """Whether it is what Xen 4.22 has on top: a watch with a depth."""
    return step.kind == xs.XS_WATCH and step.payload.count(b"\0") == 3


def number_of(messages: list[Message] | None) -> int | None:
    """The transaction that a reply to TRANSACTION_START names."""
    last = messages[-1] if messages else None
    if last is not None and last.type == xs.XS_TRANSACTION_START:
        return int(last.payload[:-1])
    return None


def introduces(step: Step, domid: int) -> bool:
    """Whether a request may have introduced a domain, perhaps once more."""
    return isinstance(step, Send) and step.kind == xs.XS_INTRODUCE and leading_number(step.payload) == domid


def is_left_over(step: Send) -> bool:
    """Whether the C daemon answers with an errno that some earlier request or system call has left behind.

    Its lookups set errno and its handlers return that; where a handler fails before any lookup, as for a name without
    its NUL, what is returned is as old as it may be. If it happens to be 0 there is no reply at all, and the next
    request ends the daemon (an assertion). So such requests are not compared.
    """
    if step.kind == xs.XS_SET_PERMS and step.payload[:1] == b"@":
        return step.client in GUESTS or not step.payload.startswith((b"@releaseDomain\0", b"@introduceDomain\0"))
    return step.kind in ONE_NAME and (not step.payload or step.payload.find(b"\0") != len(step.payload) - 1)


class Stores:
    """What both have in common: transactions by the order of their start."""

    def __init__(self) -> None:
        self.slots: dict[str, list[int]] = {client: [] for client in CLIENTS}

    def tx_of(self, step: Send) -> int:
        if step.slot == -1:
            return 0
        slots = self.slots[step.client]
        return slots[step.slot] if 0 <= step.slot < len(slots) else UNKNOWN

    def note(self, step: Send, messages: list[Message] | None) -> None:
        if step.kind == xs.XS_TRANSACTION_START and step.slot == -1:
            self.slots[step.client].append(number_of(messages) or UNKNOWN)


class Theirs(Stores):
    """Xen's daemon."""

    def __init__(self, daemon: CDaemon) -> None:
        super().__init__()
        self.daemon = daemon
        self.clients: dict[str, BaseClient] = {name: daemon.connect() for name in SOCKETS}

    def play(self, step: Step, alive: set[str]) -> Got:
        got: Got = {}
        if isinstance(step, Domain):
            self.daemon.set_state(step.domid, step.state)
        elif isinstance(step, Hangup):
            self.hang_up(step.client)
            self.clients[step.client] = self.daemon.connect()
            self.slots[step.client] = []
        elif step.client in self.clients and step.client in alive:
            client = self.clients[step.client]
            client.send(step.kind, step.payload, self.tx_of(step), req=7)
            got[step.client] = client.wait_for(7)
            self.note(step, got[step.client])
        return got

    def close(self) -> None:
        for name in SOCKETS:
            self.hang_up(name)

    def hang_up(self, name: str) -> None:
        client = self.clients[name]
        assert isinstance(client, SocketClient)
        client.close()

    def settle(self, step: Step, got: Got, alive: set[str]) -> Got:
        """Add what has come to everybody; guests that the store has taken in or let go come and go."""
        for name, domid in GUESTS.items():
            if introduces(step, domid):
                # A ring that is introduced anew is emptied.
                self.clients.pop(name, None)
                self.slots[name] = []
        for name, domid in GUESTS.items():
            if name in alive and name not in self.clients:
                self.clients[name] = RingClient(self.daemon, domid)
            elif name not in alive and name in self.clients:
                del self.clients[name]
                self.slots[name] = []
        # Twice: the first round makes sure that the daemon has come round, the second collects.
        for name in (*SOCKETS, *CLIENTS):
            if name not in self.clients:
                continue
            messages = self.clients[name].barrier()
            before = got.get(name, [])
            got[name] = None if messages is None or before is None else before + messages
        return got


class NoRings(World):
    """As the daemon's transport: no ring of a domain that does not exist can be mapped."""

    def attach(self, connection: Connection, mfn: int, port: int) -> bytes | None:
        return None if self.exists(connection.id) else EINVAL


class Ours(Stores):
    """Our core."""

    def __init__(self) -> None:
        super().__init__()
        self.world = NoRings()
        self.world.server.files = Log(None)
        self.states: dict[int, int] = {}
        self.world.existing = set(range(DOMAINS))
        server = self.world.server
        self.clients: dict[str, Connection] = {"d0": self.world.dom0.connection, "d1": server.connect()}

    def guest(self, domid: int) -> Connection | None:
        domain = self.world.server.domains.get(domid)
        return domain.connection if domain is not None and domain.introduced else None

    def alive(self) -> set[str]:
        return {*SOCKETS, *(name for name, domid in GUESTS.items() if self.guest(domid) is not None)}

    def play(self, step: Step, alive: set[str]) -> Got:
        server = self.world.server
        got: Got = {}
        if isinstance(step, Domain):
            if step.state:
                self.world.existing.add(step.domid)
            else:
                self.world.existing.discard(step.domid)
            self.look_at_domains(step)
        elif isinstance(step, Hangup):
            server.disconnect(self.clients[step.client])
            self.clients[step.client] = server.connect()
            self.slots[step.client] = []
        elif step.client in alive:
            connection = self.connection(step.client)
            server.receive(connection, encode(step.kind, 7, self.tx_of(step), step.payload))
            got[step.client] = self.taken(connection)
            self.note(step, got[step.client])
        return got

    def look_at_domains(self, step: Domain) -> None:
        self.states[step.domid] = step.state

        def state_of(domid: int) -> DomainState | None:
            state = self.states.get(domid, EXISTS)
            return DomainState(bool(state & SHUTDOWN), bool(state & DYING)) if state else None

        self.world.server.check_domains(state_of)

    def connection(self, name: str) -> Connection:
        if name in self.clients:
            return self.clients[name]
        connection = self.guest(GUESTS[name])
        assert connection is not None
        return connection

    def taken(self, connection: Connection) -> list[Message]:
        return list(parse_all(connection.take(1 << 30)))

    def settle(self, step: Step, got: Got, alive: set[str]) -> Got:
        for name, domid in GUESTS.items():
            if introduces(step, domid):
                self.slots[name] = []
        for name in CLIENTS:
            if name not in alive:
                self.slots[name] = []
                continue
            messages = self.taken(self.connection(name))
            before = got.get(name, [])
            got[name] = None if before is None else before + messages
        return got


class Wire:
    """The line of the clients outside, as dom0's driver shows it."""

    def __init__(self) -> None:
        self.on_news: Callable[[], None] = lambda: None
        self.input = b""
        self.pieces = Pieces()
        self.output: dict[int, bytes] = {}

    def receive(self, limit: int) -> bytes:
        data, self.input = self.input[:limit], self.input[limit:]
        return data

    def send(self, data: bytes) -> int:
        for number, part in self.pieces.receive(data):
            self.output[number] = self.output.get(number, b"") + part
        return len(data)

    def put(self, number: int, data: bytes) -> None:
        self.input += piece(number, data)
        self.on_news()


class AnyPort(FakeDom0):
    """As the shim, which binds any port of a domain that exists."""

    def bind_interdomain(self, domid: int, remote_port: int, handler: Callable[[], None]) -> int:
        return super().bind_interdomain(domid, remote_port & 0xFFF, handler)

    def ring_bell(self, domid: int) -> None:
        """Signal the daemon, whatever port it has bound."""
        for port, (end, _) in self._ports.items():
            if end[0] == domid:
                self._pending[port] = None


class OursInDom0(Ours):
    """Our daemon as it runs in dom0: rings, the line of outside clients, and what Xen says of domains."""

    def __init__(self) -> None:
        Stores.__init__(self)
        self.dom0 = AnyPort()
        for domid in range(1, DOMAINS):
            self.dom0.guest(domid)
        self.daemon = XenStored(self.dom0, self.dom0.info)  # type: ignore[arg-type]
        self.daemon.start()
        self.wire = Wire()
        self.daemon.listen(self.wire)
        self.numbers = {"d0": 1, "d1": 2}
        for number in self.numbers.values():
            self.wire.put(number, b"")
        self.dom0.run()
        self.world = World()
        self.world.server = self.daemon.server
        self.world.server.files = Log(None)
        self.rings: dict[str, tuple[FakeGuest, ClientRing, Parser]] = {}

    def play(self, step: Step, alive: set[str]) -> Got:
        got: Got = {}
        if isinstance(step, Domain):
            self.change(step)
        elif isinstance(step, Hangup):
            self.wire.put(self.numbers[step.client], b"")
            self.numbers[step.client] += 2
            self.wire.put(self.numbers[step.client], b"")
            self.dom0.run()
            self.slots[step.client] = []
        elif step.client in alive:
            request = encode(step.kind, 7, self.tx_of(step), step.payload)
            got[step.client] = self.ask(step.client, request)
            self.note(step, got[step.client])
        return got

    def change(self, step: Domain) -> None:
        if not step.state:
            self.dom0.guests.pop(step.domid, None)
        else:
            guest = self.dom0.guests.get(step.domid) or self.dom0.guest(step.domid)
            guest.flags = XEN_DOMINF_shutdown if step.state & SHUTDOWN else 0
            guest.flags |= XEN_DOMINF_dying if step.state & DYING else 0
        self.dom0.raise_event((-1, VIRQ_DOM_EXC))
        self.dom0.run()

    def ask(self, name: str, request: bytes) -> list[Message]:
        if name in SOCKETS:
            self.wire.put(self.numbers[name], request)
            self.dom0.run()
            return self.received(name)
        messages = []
        while request:
            request = request[self.ring(name)[1].write(request) :]
            self.dom0.ring_bell(GUESTS[name])
            self.dom0.run()
            messages += self.received(name)
        return messages

    def ring(self, name: str) -> tuple[FakeGuest, ClientRing, Parser]:
        guest = self.dom0.guests[GUESTS[name]]
        if name not in self.rings or self.rings[name][0] is not guest:
            self.rings[name] = (guest, ClientRing(guest.page(GNTTAB_RESERVED_XENSTORE)), Parser())
        return self.rings[name]

    def received(self, name: str) -> list[Message]:
        if name in SOCKETS:
            return list(parse_all(self.wire.output.pop(self.numbers[name], b"")))
        if GUESTS[name] not in self.dom0.guests:
            return []
        _, ring, parser = self.ring(name)
        messages = []
        while data := ring.read():
            messages += parser.receive(data)
            self.dom0.ring_bell(GUESTS[name])
            self.dom0.run()
        return messages

    def settle(self, step: Step, got: Got, alive: set[str]) -> Got:
        for name, domid in GUESTS.items():
            if introduces(step, domid):
                self.slots[name] = []
                self.rings.pop(name, None)
        for name in CLIENTS:
            if name not in alive:
                self.slots[name] = []
                self.rings.pop(name, None)
                continue
            before = got.get(name, [])
            assert before is not None
            got[name] = before + self.received(name)
        return got


def shown(got: Got) -> dict[str, list[str] | None]:
    return {
        name: None
        if messages is None
        else [f"{xs.NAMES.get(m.type, m.type)} {m.tx_id} {m.payload!r}" for m in messages]
        for name, messages in got.items()
        if messages is None or messages
    }


def describe(step: Step) -> str:
    if isinstance(step, Send):
        payload = step.payload if len(step.payload) < 100 else step.payload[:60] + b"...%d" % len(step.payload)
        return f"{step.client} {xs.NAMES.get(step.kind, step.kind)} {payload!r} slot {step.slot}"
    return repr(step)


@pytest.mark.parametrize("kind", [Ours, OursInDom0])
@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_the_same_session_gives_the_same_bytes(tmp_path: Path, seed: int, kind: type[Ours]) -> None:
    with CDaemon(tmp_path, domains=DOMAINS) as daemon, closing(Theirs(daemon)) as theirs:
        ours = kind()
        told: list[str] = []
        for step in Sessions(seed).steps(LENGTH):
            if isinstance(step, Send) and (is_left_over(step) or is_newer(step)):
                continue
            alive = ours.alive()
            expected = theirs.play(step, alive)
            got = ours.play(step, alive)
            alive = ours.alive()
            expected, got = theirs.settle(step, expected, alive), ours.settle(step, got, alive)
            told.append(describe(step))
            assert shown(got) == shown(expected), "\n".join([f"session {seed}", *told[-40:]])
        ours.world.check()
