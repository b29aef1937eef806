"""The state of a store as bytes, and what comes out when it is loaded: connections, watches, transactions and all."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_sessions import GUESTS, Send, Sessions
from store_world import Client, World

from backends.xenstored import state as state_module
from backends.xenstored.connection import Connection
from backends.xenstored.control import inconsistencies
from backends.xenstored.server import Server
from backends.xenstored.state import NODE_DATA, RECORD, Fds, Loader, Place, StateError, save
from guest_kernel.xenbus.wire import encode
from hypervisor.abi.io import xs_wire as xs


class Moved:
    """A world, saved and loaded again: `client(old)` is the successor of a client."""

    def __init__(self, world: World) -> None:
        places: dict[Connection, Place] = {}
        for number, connection in enumerate(world.server.connections):
            domain = connection.domain
            places[connection] = Place(domid=domain.domid, port=2) if domain.domid else Place(fd=100 + number)
        self.state = save(world.server, places.get, Fds(7, 8))
        self.world = World()
        self.world.existing = world.existing
        self.server = self.world.server
        self.server.disconnect(self.world.dom0.connection)
        self._new: dict[Place, Connection] = {}
        self._places = places

        def connect(server: Server, place: Place) -> Connection:
            new = server.readmit(place.domid, place.port) if place.fd is None else server.connect(f"socket {place.fd}")
            self._new[place] = new
            return new

        self.loader = Loader(self.server, connect)
        self.loader.load(self.state)
        self.world.dom0 = self.client(world.dom0)

    def client(self, old: Client) -> Client:
        return Client(self.server, self._new[self._places[old.connection]])


@pytest.fixture
def filled(world: World) -> World:
    guest = world.guest(1)
    guest.write("x", b"1\0\xff")
    guest.write("y/z/deep", "2")
    world.dom0.write("/a/c")
    world.dom0.write("/a/b", "v")
    world.dom0.perms("/a", "n0", "r1", "b3")
    world.dom0.perms("/a/b", "w2", "r9")
    return world


def test_the_nodes_are_the_same(filled: World) -> None:
    moved = Moved(filled)
    assert moved.world.dump() == filled.dump()
    assert moved.loader.fds == Fds(7, 8)
    moved.world.check()
    assert moved.server.domains.by_id[1].introduced
    assert moved.server.domains.by_id[1].memory == filled.server.domains.by_id[1].memory


def test_rights_of_domains_that_have_died_do_not_come_back(world: World) -> None:
    world.guest(1)
    world.dom0.write("/a", "secret")
    world.dom0.perms("/a", "n0", "r1", "r2")
    world.die(1)
    world.existing.add(1)
    world.guest(1)
    assert world.dom0.ok(xs.XS_GET_PERMS, "/a") == b"n0\0r1\0r2\0"
    moved = Moved(world)
    assert moved.world.dom0.ok(xs.XS_GET_PERMS, "/a") == b"n0\0r1\0r2\0"
    guest = Client(moved.server, moved.server.domains.by_id[1].connection or pytest.fail("not there"))
    assert guest.refused(xs.XS_READ, "/a") == "EACCES"


def test_watches_go_on(filled: World) -> None:
    client = filled.client()
    client.watch("/a", "abs")
    client.watch("rel", "r")
    client.watch("@releaseDomain", "end")
    client.ok_watch = client.exchange(xs.XS_WATCH, "/deep", "d", "1")  # type: ignore[attr-defined]
    moved = Moved(filled)
    new = moved.client(client)
    assert new.shown() == []
    moved.world.dom0.write("/a/new")
    moved.world.dom0.write("/local/domain/0/rel/x")
    moved.world.dom0.write("/deep/one")
    moved.world.dom0.write("/deep/one/two")
    moved.world.die(1)
    assert new.shown() == ["/a/new|abs", "rel/x|r", "/deep/one|d", "@releaseDomain|end"]


def test_what_waits_to_be_read_and_to_be_answered_goes_on(filled: World) -> None:
    client = filled.client()
    client.raw(encode(xs.XS_READ, 1, 0, b"/a/b\0") + encode(xs.XS_READ, 2, 0, b"/a/b\0")[:20])
    assert client.connection.take(5) == encode(xs.XS_READ, 1, 0, b"v")[:5]
    moved = Moved(filled)
    new = moved.client(client)
    new.raw(encode(xs.XS_READ, 2, 0, b"/a/b\0")[20:])
    assert new.connection.take(100) == encode(xs.XS_READ, 1, 0, b"v")[5:] + encode(xs.XS_READ, 2, 0, b"v")


class TestTransactions:
    def test_that_commit(self, filled: World) -> None:
        client = filled.client()
        tx = client.start()
        client.write("/a/new", "made", tx)
        client.rm("/a/c", tx)
        client.write("/a/b", "changed", tx)
        assert client.refused(xs.XS_READ, "/nothing", tx=tx) == "ENOENT"
        moved = Moved(filled)
        new = moved.client(client)
        moved.world.dom0.watch("/a", "w")
        assert new.list("/a", tx) == ["b", "new"]
        assert new.read("/a/new", tx) == b"made"
        assert new.refused(xs.XS_READ, "/a/c", tx=tx) == "ENOENT"
        assert moved.world.dom0.read("/a/b") == b"v"
        assert new.end(tx) == "=OK"
        assert sorted(moved.world.dom0.shown()) == ["/a/b|w", "/a/c|w", "/a/new|w"]
        assert moved.world.dom0.list("/a") == ["b", "new"]
        assert moved.world.dom0.read("/a/b") == b"changed"
        moved.world.check()

    def test_that_conflict_after_the_update(self, filled: World) -> None:
        client = filled.client()
        tx = client.start()
        assert client.read("/a/b", tx) == b"v"
        moved = Moved(filled)
        moved.world.dom0.write("/a/b", "v")
        assert moved.client(client).end(tx) == "=EAGAIN"

    @pytest.mark.parametrize("outside", ["/a/b", "/a/new", "/nothing"])
    def test_that_have_a_conflict_already(self, filled: World, outside: str) -> None:
        client = filled.client()
        tx = client.start()
        assert client.read("/a/b", tx) == b"v"
        assert client.list("/a", tx) == ["c", "b"]
        assert client.refused(xs.XS_READ, "/nothing", tx=tx) == "ENOENT"
        # Also where the same is written again: the format has no generations.
        filled.dom0.write(outside, "v")
        moved = Moved(filled)
        new = moved.client(client)
        assert new.read("/a/b", tx) == b"v"
        assert new.end(tx) == "=EAGAIN"
        moved.world.check()

    def test_ids_of_open_ones_are_not_given_again(self, filled: World) -> None:
        client = filled.client()
        first, second = client.start(), client.start()
        moved = Moved(filled)
        new = moved.client(client)
        assert new.start() not in (first, second)
        assert new.end(first) == new.end(second) == "=OK"

    def test_a_guests_transaction_is_paid_for(self, filled: World) -> None:
        guest = Client(filled.server, filled.server.domains.by_id[1].connection or pytest.fail("gone"))
        tx = guest.start()
        guest.write("x", b"5" * 500, tx)
        moved = Moved(filled)
        moved.world.check()
        assert moved.server.domains.by_id[1].transactions == 1
        assert moved.client(guest).end(tx) == "=OK"


def test_quotas_targets_and_features_stay(filled: World) -> None:
    filled.dom0.ok(xs.XS_CONTROL, "quota", "set", "nodes", "77")
    filled.dom0.answer(26, b"1\0watches\x005\0")
    assert filled.dom0.answer(24, b"7\x004\0").payload == b"OK\0"
    filled.guest(2)
    filled.dom0.ok(xs.XS_SET_TARGET, "1", "2")
    moved = Moved(filled)
    assert moved.server.quotas.nodes == 77
    domain = moved.server.domains.by_id[1]
    assert domain.quotas is not None
    assert (domain.quotas.watches, domain.quotas.nodes) == (5, 77)
    assert domain.target is moved.server.domains.by_id[2]
    assert moved.server.domains.by_id[7].features == 4


def is_carried_over(step: Send) -> bool:
    """Not of interest: domains that cannot be (the format has 16 bits for an id), and what tells of memory."""
    odd = step.kind == xs.XS_SET_PERMS and any(number in step.payload for number in (b"65536", b"4294967297", b"-1"))
    return step.kind != xs.XS_CONTROL and not odd


@pytest.mark.parametrize("seed", range(30))
def test_a_random_session_ends_the_same_after_a_move(seed: int) -> None:
    """Two worlds play the same; one is moved in the middle. What is in the store at the end is the same."""
    steps = [step for step in Sessions(seed).steps(160) if isinstance(step, Send) and is_carried_over(step)]
    stayed, moved_from = Player(), Player()
    for step in steps[:80]:
        stayed.play(step)
        moved_from.play(step)
    moved = Moved(moved_from.world)
    player = Player()
    player.world, player.slots = moved.world, moved_from.slots
    alive = moved_from.alive()
    player.clients = {name: moved.client(client) for name, client in moved_from.clients.items() if name in alive}
    for name, client in player.clients.items():
        # Numbers begin anew; here the old ones must not come to mean new transactions.
        client.connection.next_transaction = moved_from.clients[name].connection.next_transaction
    assert moved.world.dump() == stayed.world.dump()
    for step in steps[80:]:
        mine, other = player.play(step), stayed.play(step)
        if step.kind not in (xs.XS_DIRECTORY_PART, xs.XS_TRANSACTION_START):  # these tell of numbers that begin anew
            assert mine == other, step
    assert player.world.dump() == stayed.world.dump()
    player.world.check()


class Player:
    """Plays a session's requests and nothing else."""

    def __init__(self) -> None:
        self.world = World()
        self.clients = {"d0": self.world.dom0, "d1": self.world.client()}
        self.slots: dict[str, list[int]] = {}

    def alive(self) -> set[str]:
        domains = self.world.server.domains.by_id
        return {name for name in self.clients if name not in GUESTS or GUESTS[name] in domains}

    def play(self, step: Send) -> list[str]:
        domid = GUESTS.get(step.client)
        if domid is not None:
            domain = self.world.server.domains.get(domid)
            if domain is None or domain.connection is None:
                self.clients.pop(step.client, None)
                return []
            if step.client not in self.clients or self.clients[step.client].connection is not domain.connection:
                self.clients[step.client] = Client(self.world.server, domain.connection)
        client = self.clients[step.client]
        slots = self.slots.setdefault(step.client, [])
        tx = slots[step.slot] if 0 <= step.slot < len(slots) else 0 if step.slot == -1 else 999
        client.raw(encode(step.kind, 1, tx, step.payload))
        shown = client.shown()
        if step.kind == xs.XS_TRANSACTION_START and step.slot == -1:
            slots.append(int(shown[-1][1:]) if shown and shown[-1][1:].isdigit() else 999)
        return shown


@given(cut=st.integers(0, 4000), position=st.integers(0, 4000), byte=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_damaged_state_is_refused_with_a_sentence_or_loads_as_something(cut: int, position: int, byte: int) -> None:
    world = World()
    world.guest(1).write("x", b"1")
    world.dom0.write("/a/b", "v")
    client = world.client()
    client.watch("/a", "t")
    client.write("/a/c", "x", client.start())
    data = bytearray(Moved(world).state)
    data[position % len(data)] = byte
    new = World()
    loader = Loader(new.server, lambda server, place: server.connect("x"))
    with suppress(StateError):
        loader.load(bytes(data[: len(data) - cut % 100]))
        assert inconsistencies(new.server) == []


def test_records_are_laid_out_as_the_document_says(world: World) -> None:
    world.dom0.write("/n", "val")
    world.dom0.perms("/n", "b0", "r5")
    data = save(world.server, lambda connection: Place(fd=9))
    assert data[:16] == b"xenstore" + struct.pack(">II", 1, 0)
    assert data[16:32] == struct.pack("<IIii", 1, 8, -1, -1)
    node = struct.pack("<IIHHHH", 0, 0, 3, 3, 0, 2) + b"b\0" + struct.pack("<H", 0) + b"r\0" + struct.pack("<H", 5)
    node += b"/n\0val"
    node += bytes(-len(node) % 8)
    assert RECORD.pack(NODE_DATA, len(node)) + node in data
    connection = struct.pack("<IHHiiHHI", 1, 1, 0, 9, 0, 0, 0, 0)
    assert RECORD.pack(2, len(connection)) + connection in data
    assert data.endswith(bytes(8))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "too short"),
        (b"xenstone" + bytes(8), "wrong name"),
        (b"xenstore" + struct.pack(">II", 3, 0), "version"),
        (b"xenstore" + struct.pack(">II", 1, 1), "byte order"),
        (b"xenstore" + struct.pack(">II", 1, 0), "before its end"),
        (b"xenstore" + struct.pack(">II", 1, 0) + struct.pack("<II", 5, 100), "middle of a record"),
        (b"xenstore" + struct.pack(">II", 1, 0) + struct.pack("<II", 5, 0) + bytes(8), "shorter than it says"),
    ],
)
def test_what_is_no_state(data: bytes, sentence: str) -> None:
    world = World()
    with pytest.raises(StateError, match=sentence):
        Loader(world.server, lambda server, place: None).load(data)


def test_unknown_records_are_skipped(world: World) -> None:
    world.dom0.write("/x", "1")
    data = save(world.server, lambda connection: None)
    data = data[:16] + struct.pack("<II", 99, 16) + b"?" * 16 + data[16:]
    new = World()
    Loader(new.server, lambda server, place: None).load(data)
    assert new.dom0.read("/x") == b"1"
    assert state_module.NO_DOMAIN == 0x7FF4
