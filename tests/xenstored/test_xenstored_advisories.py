"""Xen's security advisories about xenstored, one by one.  Those about rings are in test_xenstored_ring.py."""

import pytest
from store_world import World

from guest_kernel.xenbus.wire import encode
from hypervisor.abi.io import xs_wire as xs

HOME = "/local/domain/1"


def test_xsa_72_a_reply_that_would_be_too_large(world: World) -> None:
    for number in range(50):
        world.dom0.write(f"/d/{number:0100}")
    assert world.dom0.refused(xs.XS_DIRECTORY, "/d") == "E2BIG"
    assert len(world.dom0.ok(xs.XS_DIRECTORY_PART, "/d", "0")) <= 4096


class TestXsa115WatchesTellNothingForbidden:
    def test_no_event_without_the_right_to_read(self, world: World) -> None:
        guest = world.guest(1)
        guest.watch("/", "all")
        world.dom0.write("/secret/key", "v")
        world.dom0.rm("/secret")
        assert guest.messages() == []

    def test_nor_at_commit(self, world: World) -> None:
        guest = world.guest(1)
        guest.watch("/", "all")
        tx = world.dom0.start()
        world.dom0.write("/secret/key", "v", tx=tx)
        world.dom0.write(f"{HOME}/known", "v", tx=tx)
        assert world.dom0.end(tx) == "=OK"
        assert guest.shown() == [f"{HOME}/known|all"]

    def test_nor_of_domains(self, world: World) -> None:
        guest = world.guest(1)
        guest.watch("@introduceDomain", "i")
        guest.watch("@releaseDomain", "r")
        world.guest(2)
        world.die(2)
        assert guest.messages() == []


def test_xsa_272_the_node_quota_counts_every_node() -> None:
    world = World(nodes=50)
    guest = world.guest(1)
    made = 0
    while guest.exchange(xs.XS_MKDIR, f"a{made}/b/c") == ["=OK"]:
        made += 1
    assert made == 49 // 3
    assert len(world.server.domains.by_id[1].nodes) == 1 + 3 * made
    world.check()


class TestXsa322AnEarlierDomainOfTheSameId:
    def test_leaves_no_rights_to_the_next(self, world: World) -> None:
        world.dom0.write("/acl", "v")
        world.guest(1)
        world.dom0.perms("/acl", "n0", "b1")
        world.die(1)
        world.existing.add(1)
        guest = world.guest(1)
        assert guest.refused(xs.XS_READ, "/acl") == "EACCES"
        assert world.dom0.ok(xs.XS_GET_PERMS, "/acl") == b"n0\0b1\0"

    def test_nor_through_a_node_that_is_written_again(self, world: World) -> None:
        world.dom0.write("/acl")
        world.guest(1)
        world.dom0.perms("/acl", "n0", "b1")
        world.die(1)
        world.existing.add(1)
        guest = world.guest(1)
        world.dom0.write("/acl", "new")
        world.dom0.write("/acl/below", "new")
        for path in ("/acl", "/acl/below"):
            assert guest.refused(xs.XS_READ, path) == "EACCES"
            assert world.dom0.ok(xs.XS_GET_PERMS, path) == b"n0\0b1\0"
        world.dom0.perms("/acl", "n0", "b1")
        assert guest.read("/acl") == b"new"

    def test_nor_nodes(self, world: World) -> None:
        guest = world.guest(1)
        guest.write("private", "v")
        world.die(1)
        world.existing.add(1)
        guest = world.guest(1)
        assert guest.refused(xs.XS_READ, "private") == "ENOENT"

    def test_xsa_417_not_even_before_the_next_is_introduced(self, world: World) -> None:
        """An entry for an id that no domain has yet is no invitation to the one that will."""
        world.existing.discard(1)
        world.dom0.write("/acl")
        world.dom0.perms("/acl", "n0", "b1")
        world.existing.add(1)
        guest = world.guest(1)
        assert guest.refused(xs.XS_READ, "/acl") == "EACCES"
        world.dom0.write("/acl/below")
        assert guest.refused(xs.XS_READ, "/acl/below") == "EACCES"

    def test_xsa_483_nor_its_usage(self) -> None:
        world = World(nodes=10, watches=2, transactions=1)
        for _ in range(3):
            guest = world.guest(1)
            for number in range(9):
                guest.write(f"n{number}")
            for number in range(3):
                guest.watch(f"n{number}", "t")
            guest.start()
            guest.start()
            world.die(1)
            world.check()
            world.existing.add(1)


@pytest.mark.parametrize("length", [2047, 2048, 2049])
def test_xsa_323_what_can_be_written_can_be_read_and_listed(length: int) -> None:
    world = World(node_size=5000)
    guest = world.guest(1)
    name = "p" * length
    if guest.exchange(xs.XS_WRITE, name, value=b"v") == ["=OK"]:
        assert guest.read(f"{HOME}/{name}") == guest.read(name) == b"v"
        assert world.dom0.read(f"{HOME}/{name}") == b"v"
        part = guest.ok(xs.XS_DIRECTORY_PART, HOME, "0")
        assert name.encode() in part
    else:
        assert length > 2048
        assert guest.refused(xs.XS_READ, f"{HOME}/{name}") == "EINVAL"


def test_xsa_324_an_event_too_long_to_send_is_dropped(world: World) -> None:
    token = "t" * 4090
    assert world.dom0.exchange(xs.XS_WATCH, "/a", token) == ["=OK", f"/a|{token}"]
    world.dom0.send(xs.XS_WRITE, "/a/longer/than/that")
    assert world.dom0.shown() == ["=OK"]
    assert world.dom0.exchange(xs.XS_WRITE, "/a") == [f"/a|{token}", "=OK"]


def test_xsa_330_reset_watches_leaves_nothing(world: World) -> None:
    guest = world.guest(1)
    memory = world.server.domains.by_id[1].memory
    for _ in range(5):
        for number in range(100):
            guest.watch(f"w{number}", "t")
        guest.ok(xs.XS_RESET_WATCHES, "")
        assert len(world.server.watches) == 0
        assert world.server.watches.by_path == {}
        assert world.server.domains.by_id[1].memory == memory
    world.dom0.write(f"{HOME}/w1")
    assert guest.messages() == []


def test_xsa_349_events_that_nobody_reads_do_not_pile_up(world: World) -> None:
    world.dom0.watch("/state", "t")
    writer = world.client()
    for number in range(1000):
        writer.write("/state", str(number))
    assert world.dom0.shown() == ["/state|t"]


def test_xsa_352_only_dom0_gives_nodes_away(world: World) -> None:
    guest = world.guest(1)
    guest.write("mine")
    for entry in ("n0", "b2"):
        assert guest.refused(xs.XS_SET_PERMS, "mine", entry) == "EPERM"
    world.dom0.perms(f"{HOME}/mine", "n2")
    world.check()


@pytest.mark.parametrize(
    ("kind", "strings"),
    [
        (xs.XS_SET_PERMS, ("/", "b1")),
        (xs.XS_RM, ("/",)),
        (xs.XS_DIRECTORY, ("/",)),
        (xs.XS_WRITE, ("/",)),
        (xs.XS_READ, ("/",)),
        (xs.XS_GET_PERMS, ("/",)),
        (xs.XS_MKDIR, ("/new",)),
    ],
)
def test_xsa_353_the_root_has_permissions_too(world: World, kind: int, strings: tuple[str, ...]) -> None:
    assert world.guest(1).refused(kind, *strings) == "EACCES"


class TestXsa414And415ACreationThatFails:
    @pytest.mark.parametrize("room", range(6))
    @pytest.mark.parametrize("inside", [False, True])
    def test_for_the_number_of_nodes_leaves_the_store_as_it_was(self, room: int, inside: bool) -> None:
        world = World(nodes=1 + room)
        guest = world.guest(1)
        before = world.dump()
        tx = guest.start() if inside else 0
        made = guest.exchange(xs.XS_WRITE, "a/b/c/d/e", value=b"v", tx=tx) == ["=OK"]
        if inside:
            made = guest.end(tx) == "=OK" and made
        assert made == (room >= 5 + inside)
        if not made:
            assert world.dump() == before
        world.check()

    @pytest.mark.parametrize("depth", range(5))
    @pytest.mark.parametrize("inside", [False, True])
    def test_for_the_size_of_a_node_too(self, depth: int, inside: bool) -> None:
        world = World(node_size=100)
        guest = world.guest(1)
        names = ["a", "b", "c", "d", "e"]
        names[depth] = "n" * 90
        before = world.dump()
        tx = guest.start() if inside else 0
        assert guest.refused(xs.XS_WRITE, "/".join(names), tx=tx) == "ENOSPC"
        if inside:
            assert guest.end(tx) == "=ENOMEM"
        assert world.dump() == before
        world.check()


def test_xsa_416_many_requests_that_nobody_reads_the_answers_of(world: World) -> None:
    guest = world.guest(1)
    guest.write("big", b"v" * 2000)
    for _ in range(200):
        guest.send(xs.XS_READ, "big")
    assert guest.connection.queued <= 20 * (2000 + 16)
    assert guest.connection.domain.outstanding == 20
    answered = 0
    while messages := guest.messages():
        answered += len(messages)
        guest.raw(b"")
    assert answered == 200
    assert guest.connection.domain.outstanding == 0
    assert guest.connection.input == b""


class TestXsa418DeepTrees:
    def test_are_made_and_removed(self, world: World) -> None:
        path = "/d" * 900
        world.dom0.write(path, "v")
        world.dom0.watch("/", "t")
        assert world.dom0.exchange(xs.XS_RM, "/d") == ["/d|t", "=OK"]
        assert len(world.server.store.tree) == 3

    def test_die_with_their_owner(self, world: World) -> None:
        guest = world.guest(1)
        guest.write("/".join("d" * 900))
        world.die(1)
        assert world.dom0.list("/local/domain") == []

    @pytest.mark.parametrize("commit", [True, False])
    def test_xsa_421_made_and_removed_in_one_transaction(self, world: World, commit: bool) -> None:
        before = world.dump()
        world.dom0.watch("/", "t")
        tx = world.dom0.start()
        world.dom0.write("/a/b/c", tx=tx)
        world.dom0.rm("/a/b/c", tx=tx)
        world.dom0.rm("/a", tx=tx)
        assert world.dom0.exchange(xs.XS_TRANSACTION_END, "T" if commit else "F", tx=tx) == ["=OK"]
        assert world.dump() == before


def test_xsa_419_nodes_of_dead_domains_do_not_pile_up(world: World) -> None:
    world.dom0.write("/shared")
    world.dom0.perms("/shared", "b0")
    sizes = set()
    for domid in range(1, 8):
        guest = world.guest(domid)
        for number in range(20):
            guest.write(f"/shared/of{domid}/n{number}")
        world.die(domid)
        sizes.add(len(world.server.store.tree))
        assert world.dom0.list("/shared") == []
    assert len(sizes) == 1
    assert world.server.domains.by_id[0].memory < 1000


@pytest.mark.parametrize("length", [4097, 2**16, 2**30, 2**31, 2**32 - 16, 2**32 - 1])
def test_xsa_420_a_length_that_cannot_be(world: World, length: int) -> None:
    client = world.client()
    client.raw(xs.xsd_sockmsg.pack(type=xs.XS_READ, len=length) + b"x" * 100)
    assert client.connection.error == xs.XENSTORE_ERROR_PROTO
    assert client.connection.input == b""
    assert world.dom0.read("/tool") == b""


@pytest.mark.parametrize("path", ["/local/domain/", "/local/domain//x", "/local/domain/x/", "/local/domain/1/"])
def test_xsa_481_a_path_that_ends_where_an_id_should_be(world: World, path: str) -> None:
    for kind in (xs.XS_READ, xs.XS_WRITE, xs.XS_RM, xs.XS_MKDIR):
        assert world.dom0.refused(kind, path) == "EINVAL"


def test_xsa_484_reset_watches_inside_a_transaction(world: World) -> None:
    tx = world.dom0.start()
    world.dom0.write("/a", tx=tx)
    world.dom0.ok(xs.XS_RESET_WATCHES, "", tx=tx)
    assert world.dom0.refused(xs.XS_TRANSACTION_END, "T", tx=tx) == "ENOENT"
    assert world.dom0.refused(xs.XS_READ, "/a") == "ENOENT"
    again = world.dom0.start()
    world.dom0.write("/a", tx=again)
    assert world.dom0.end(again) == "=OK"


class TestXsa326BoundedMemory:
    def test_a_guest_that_floods_another_with_events_is_held_itself(self, world: World) -> None:
        world.dom0.write("/shared")
        world.dom0.perms("/shared", "b0")
        deaf, busy = world.guest(1), world.guest(2)
        deaf.watch("/shared", "t" * 500)
        for number in range(100):
            busy.send(xs.XS_WRITE, f"/shared/n{number}")
            busy.messages()
        assert len(world.dom0.list("/shared")) == 20
        assert busy.connection.domain.outstanding == 20
        assert len(deaf.messages()) == 20
        busy.raw(b"")
        assert busy.connection.domain.outstanding == 20
        assert len(world.dom0.list("/shared")) == 40

    def test_its_requests_are_let_go_when_the_other_dies(self, world: World) -> None:
        world.dom0.write("/shared")
        world.dom0.perms("/shared", "b0")
        deaf, busy = world.guest(1), world.guest(2)
        deaf.watch("/shared", "t")
        for number in range(30):
            busy.send(xs.XS_WRITE, f"/shared/n{number}")
            busy.messages()
        world.die(1)
        assert busy.connection.domain.outstanding == 0

    def test_dom0_cannot_fill_memory_with_events_for_a_guest(self, world: World) -> None:
        guest = world.guest(1)
        guest.watch(HOME, "t" * 2000)
        for number in range(3000):
            world.dom0.write(f"{HOME}/n")
            world.dom0.write(f"/local/domain/1/x{number}")
            world.dom0.rm(f"/local/domain/1/x{number}")
        assert guest.connection.queued <= world.server.quotas.memory
        assert len(guest.messages()) > 1000
        guest.write("n")


def test_a_client_that_goes_leaves_nothing(world: World) -> None:
    client = world.client()
    client.watch("/a", "t")
    client.start()
    client.raw(encode(xs.XS_READ, 1, 0, b"/tool\0")[:7])
    world.server.disconnect(client.connection)
    world.server.disconnect(client.connection)
    assert len(world.server.watches) == 0
    assert world.server.open_transactions == 0
    world.dom0.write("/a")


def test_a_transaction_that_gives_a_node_to_a_domain_which_dies_before_its_end(world: World) -> None:
    world.guest(1)
    tx = world.dom0.start()
    world.dom0.write("/given", "x", tx)
    world.dom0.perms("/given", "n1", tx=tx)
    world.server.release(world.server.domains.by_id[1])
    assert world.dom0.end(tx) == "=OK"
    world.check()
    # The next domain 1 has nothing to do with it.
    guest = world.guest(1, home=False)
    assert world.dom0.ok(xs.XS_GET_PERMS, "/given") == b"n0\0"
    assert guest.refused(xs.XS_READ, "/given") == "EACCES"
    world.check()
    world.dom0.rm("/given")


def test_xsa_206_each_node_that_is_written_counts(world: World) -> None:
    """As the C daemon's write limit: directories that get a name too, and all that an RM removes."""
    guest = world.guest(1)
    domain = world.server.domains.by_id[1]
    guest.write("before")
    assert domain.disturbances == 0
    tx = world.dom0.start()
    guest.write("before", "1")
    assert domain.disturbances == 1
    guest.write("a/b")
    assert domain.disturbances == 4
    guest.rm("a")
    assert domain.disturbances > 6
    count = domain.disturbances
    guest.read("before")
    inside = guest.start()
    guest.write("before", "2", inside)
    assert domain.disturbances == count
    guest.end(inside)
    assert domain.disturbances == count + 1
    world.dom0.end(tx, "F")
