"""What the C daemon of Xen 4.17 was seen to do, item by item (docs/xenstore.md has the list)."""

import pytest
from store_world import World

from backends.xenstored.server import DomainState
from guest_kernel.xenbus.wire import encode
from hypervisor.abi.io import xs_wire as xs

HOME1 = "/local/domain/1"


class TestItem01EventsComeBeforeTheReply:
    @pytest.mark.parametrize(
        ("kind", "strings"),
        [(xs.XS_WRITE, ("/a",)), (xs.XS_MKDIR, ("/a/new",)), (xs.XS_RM, ("/a",)), (xs.XS_SET_PERMS, ("/a", "n0"))],
    )
    def test_of_a_change(self, world: World, kind: int, strings: tuple[str, ...]) -> None:
        world.dom0.write("/a")
        world.dom0.watch("/a", "t")
        assert world.dom0.exchange(kind, *strings) == [f"{strings[0]}|t", "=OK"]

    def test_of_a_commit(self, world: World) -> None:
        world.dom0.watch("/a", "t")
        tx = world.dom0.start()
        world.dom0.write("/a", tx=tx)
        assert world.dom0.exchange(xs.XS_TRANSACTION_END, "T", tx=tx) == ["/a|t", "=OK"]

    def test_of_an_introduction(self, world: World) -> None:
        world.dom0.watch("@introduceDomain", "i")
        assert world.dom0.exchange(xs.XS_INTRODUCE, "1", "1", "2") == ["@introduceDomain|i", "=OK"]

    def test_a_release_ends_after_the_reply_if_its_client_came_next(self, world: World) -> None:
        world.dom0.watch("@releaseDomain", "r")
        world.dom0.write("/outside")
        world.dom0.send(xs.XS_INTRODUCE, "1", "1", "2")
        world.dom0.perms("/outside", "n1")
        world.dom0.watch("/outside", "o")
        assert world.dom0.exchange(xs.XS_RELEASE, "1") == ["=OK", "/outside|o", "@releaseDomain|r"]

    def test_a_release_ends_before_the_reply_otherwise(self, world: World) -> None:
        world.client()
        world.dom0.watch("@releaseDomain", "r")
        world.dom0.send(xs.XS_INTRODUCE, "1", "1", "2")
        world.dom0.messages()
        assert world.dom0.exchange(xs.XS_RELEASE, "1") == ["@releaseDomain|r", "=OK"]

    def test_of_watch_itself_the_first_event_comes_after(self, world: World) -> None:
        assert world.dom0.exchange(xs.XS_WATCH, "/a", "t") == ["=OK", "/a|t"]


class TestItem02TheFirstEventAlwaysComes:
    @pytest.mark.parametrize("path", ["/missing", "/", "@", "@whatever", "@releaseDomain/5", "relative"])
    def test_for_dom0(self, world: World, path: str) -> None:
        world.dom0.watch(path, "t")

    @pytest.mark.parametrize("path", ["/unreadable", "/missing", "@introduceDomain", "@x."])
    def test_for_a_guest(self, world: World, path: str) -> None:
        world.dom0.write("/unreadable")
        world.guest(1).watch(path, "t")


class TestItem03AWatchIsItsPathAndToken:
    def test_however_it_is_spelled(self, world: World) -> None:
        world.dom0.watch("rel", "t")
        assert world.dom0.refused(xs.XS_WATCH, "/local/domain/0/rel", "t") == "EEXIST"
        world.dom0.watch("/local/domain/0/rel", "other")
        world.dom0.ok(xs.XS_UNWATCH, "/local/domain/0/rel", "t")
        world.dom0.ok(xs.XS_UNWATCH, "rel", "other")
        assert world.dom0.refused(xs.XS_UNWATCH, "rel", "t") == "ENOENT"

    def test_events_are_spelled_as_the_watch(self, world: World) -> None:
        guest = world.guest(1)
        guest.watch("rel", "r")
        guest.watch(f"{HOME1}/rel", "a")
        assert guest.exchange(xs.XS_WRITE, "rel/sub") == ["rel/sub|r", f"{HOME1}/rel/sub|a", "=OK"]
        assert guest.exchange(xs.XS_WRITE, f"{HOME1}/rel") == ["rel|r", f"{HOME1}/rel|a", "=OK"]


def test_item_04_parents_made_on_the_way_have_no_event_of_their_own(world: World) -> None:
    for path in ("/a", "/a/b", "/a/b/c"):
        world.dom0.watch(path, path[-1])
    assert world.dom0.exchange(xs.XS_WRITE, "/a/b/c") == ["/a/b/c|a", "/a/b/c|b", "/a/b/c|c", "=OK"]


def test_item_05_rm_tells_ancestors_once_and_each_node_below_itself(world: World) -> None:
    for path in ("/top/d/z", "/top/d/a/deep", "/top/d/m"):
        world.dom0.write(path)
    world.dom0.watch("/top", "top")
    for name in ("d", "d/z", "d/a", "d/a/deep", "d/m", "d/never"):
        world.dom0.watch(f"/top/{name}", name)
    assert world.dom0.exchange(xs.XS_RM, "/top/d") == [
        "/top/d/z|d/z",
        "/top/d/a/deep|d/a/deep",
        "/top/d/a|d/a",
        "/top/d/m|d/m",
        "/top/d|top",
        "/top/d|d",
        "=OK",
    ]


class TestItem06WhatCountsAsAChange:
    def test_nothing_new_is_none(self, world: World) -> None:
        world.dom0.write("/a/b")
        world.dom0.watch("/a", "t")
        assert world.dom0.exchange(xs.XS_MKDIR, "/a/b") == ["=OK"]
        assert world.dom0.exchange(xs.XS_RM, "/a/missing") == ["=OK"]

    def test_the_same_value_is_one(self, world: World) -> None:
        world.dom0.write("/a", "v")
        world.dom0.watch("/a", "t")
        assert world.dom0.exchange(xs.XS_WRITE, "/a", value=b"v") == ["/a|t", "=OK"]

    def test_permissions_concern_the_node_and_those_above(self, world: World) -> None:
        world.dom0.write("/a/b/c")
        for path in ("/a", "/a/b", "/a/b/c"):
            world.dom0.watch(path, "t" + path[-1])
        assert world.dom0.exchange(xs.XS_SET_PERMS, "/a/b", "r0") == ["/a/b|ta", "/a/b|tb", "=OK"]


class TestItem07ATransactionFiresWhenItCommits:
    def test_once_a_node_in_order_of_first_touch(self, world: World) -> None:
        world.dom0.write("/t/old")
        world.dom0.watch("/t", "w")
        tx = world.dom0.start()
        for name in ("z", "a", "z", "m"):
            assert world.dom0.exchange(xs.XS_WRITE, f"/t/{name}", tx=tx) == ["=OK"]
        world.dom0.write("/t/made", tx=tx)
        world.dom0.rm("/t/made", tx=tx)
        world.dom0.rm("/t/old", tx=tx)
        assert world.dom0.exchange(xs.XS_TRANSACTION_END, "T", tx=tx) == [
            "/t/z|w",
            "/t/a|w",
            "/t/m|w",
            "/t/old|w",
            "=OK",
        ]

    def test_directories_above_are_told_if_any_of_the_changes_was_theirs_too(self, world: World) -> None:
        world.dom0.write("/t/a/b")
        world.dom0.watch("/t/a", "w")
        tx = world.dom0.start()
        world.dom0.write("/t/a/b", "1", tx)
        # By itself the end of a node below what is removed concerns only watches on that node.
        world.dom0.rm("/t/a", tx=tx)
        assert world.dom0.exchange(xs.XS_TRANSACTION_END, "T", tx=tx) == ["/t/a/b|w", "/t/a|w", "=OK"]

    def test_and_not_at_all_when_dropped(self, world: World) -> None:
        world.dom0.watch("/t", "w")
        tx = world.dom0.start()
        world.dom0.write("/t/a", tx=tx)
        assert world.dom0.exchange(xs.XS_TRANSACTION_END, "F", tx=tx) == ["=OK"]
        assert world.dom0.refused(xs.XS_READ, "/t/a") == "ENOENT"


def test_item_08_watches_of_one_client_come_in_order_of_registration(world: World) -> None:
    for path, token in (("/a/b", "1"), ("/", "2"), ("/a/b", "3"), ("/a", "4")):
        world.dom0.watch(path, token)
    assert world.dom0.exchange(xs.XS_WRITE, "/a/b") == ["/a/b|1", "/a/b|2", "/a/b|3", "/a/b|4", "=OK"]


class TestItem09WhatAGuestIsToldOf:
    def test_a_node_that_it_may_read_or_whose_parent_it_may_read(self, world: World) -> None:
        dom0, guest = world.dom0, world.guest(1)
        dom0.write("/open/hidden")
        dom0.perms("/open", "r0")
        dom0.perms("/open/hidden", "n0")
        dom0.write("/closed/hidden")
        dom0.write("/closed/shown")
        dom0.perms("/closed/shown", "n0", "r1")
        guest.watch("/", "w")
        for path in ("/open/hidden", "/closed/hidden", "/closed/shown"):
            dom0.write(path)
        assert guest.shown() == ["/open/hidden|w", "/closed/shown|w"]

    def test_the_loss_of_the_right(self, world: World) -> None:
        world.dom0.write("/n")
        world.dom0.perms("/n", "n0", "r1")
        guest = world.guest(1)
        guest.watch("/n", "w")
        world.dom0.perms("/n", "n0")
        assert guest.shown() == ["/n|w"]
        world.dom0.write("/n")
        assert guest.shown() == []

    def test_a_removed_node_by_its_old_rights(self, world: World) -> None:
        world.dom0.write("/d/mine")
        world.dom0.write("/d/other")
        world.dom0.perms("/d/mine", "n0", "r1")
        guest = world.guest(1)
        guest.watch("/d", "w")
        world.dom0.rm("/d/mine")
        world.dom0.rm("/d/other")
        assert guest.shown() == ["/d/mine|w"]


class TestItem10SpecialNames:
    def test_reach_a_guest_by_permission_only(self, world: World) -> None:
        guest = world.guest(1)
        for name in ("@introduceDomain", "@releaseDomain"):
            guest.watch(name, "w")
        world.guest(2)
        world.die(2)
        assert guest.shown() == []
        world.dom0.perms("@introduceDomain", "n0", "r1")
        world.dom0.perms("@releaseDomain", "r0")
        world.guest(3)
        world.die(3)
        assert guest.shown() == ["@introduceDomain|w", "@releaseDomain|w"]

    @pytest.mark.parametrize("kind", [xs.XS_READ, xs.XS_GET_PERMS, xs.XS_WRITE, xs.XS_RM, xs.XS_DIRECTORY, xs.XS_MKDIR])
    def test_are_no_nodes(self, world: World, kind: int) -> None:
        assert world.dom0.refused(kind, "@introduceDomain") == "EINVAL"

    def test_have_permissions_that_a_guest_may_not_set(self, world: World) -> None:
        assert world.guest(1).refused(xs.XS_SET_PERMS, "@introduceDomain", "r0") == "EACCES"
        assert world.dom0.refused(xs.XS_SET_PERMS, "@other", "r0") == "ENOENT"


class TestItem11TransactionIds:
    def test_are_of_the_client(self, world: World) -> None:
        other = world.client()
        first = world.dom0.start()
        assert other.start() == first == 1
        assert world.dom0.start() == 2
        assert other.refused(xs.XS_READ, "/", tx=2) == "ENOENT"

    def test_do_not_nest(self, world: World) -> None:
        tx = world.dom0.start()
        assert world.dom0.refused(xs.XS_TRANSACTION_START, "", tx=tx) == "EBUSY"

    def test_are_looked_at_before_the_request(self, world: World) -> None:
        assert world.dom0.refused(xs.XS_READ, "//bad", tx=9) == "ENOENT"
        assert world.dom0.refused(xs.XS_RELEASE, tx=9) == "ENOENT"
        assert world.dom0.refused(99, tx=9) == "ENOSYS"
        assert world.guest(1).refused(xs.XS_RELEASE, tx=9) == "EACCES"

    def test_mean_nothing_to_watches(self, world: World) -> None:
        assert world.dom0.exchange(xs.XS_WATCH, "/a", "t", tx=9) == ["=OK", "/a|t"]
        world.dom0.ok(xs.XS_UNWATCH, "/a", "t", tx=9)

    def test_but_something_to_reset_watches(self, world: World) -> None:
        """As the daemons of 4.17.5 and 4.17.7 answer."""
        assert world.dom0.refused(xs.XS_RESET_WATCHES, "", tx=9) == "ENOENT"


class TestItem12Conflicts:
    """`outside` is what somebody else does between the first access and the end."""

    @staticmethod
    def conflict(world: World, inside: tuple[int, str], outside: tuple[int, str]) -> bool:
        tx = world.dom0.start()
        kind, path = inside
        world.dom0.send(kind, path, tx=tx)
        world.dom0.messages()
        other = world.client()
        other.send(outside[0], outside[1])
        other.messages()
        result = world.dom0.end(tx)
        assert result in ("=OK", "=EAGAIN")
        return result == "=EAGAIN"

    @pytest.fixture(autouse=True)
    def _some_nodes(self, world: World) -> None:
        world.dom0.write("/d/n", "v")

    @pytest.mark.parametrize("kind", [xs.XS_READ, xs.XS_DIRECTORY, xs.XS_GET_PERMS, xs.XS_WRITE])
    def test_any_access_counts(self, world: World, kind: int) -> None:
        assert self.conflict(world, (kind, "/d/n"), (xs.XS_WRITE, "/d/n"))

    def test_a_miss_counts(self, world: World) -> None:
        assert self.conflict(world, (xs.XS_READ, "/d/missing"), (xs.XS_WRITE, "/d/missing"))

    def test_two_siblings_conflict(self, world: World) -> None:
        assert self.conflict(world, (xs.XS_WRITE, "/d/one"), (xs.XS_WRITE, "/d/two"))

    def test_a_childs_value_is_not_its_directory(self, world: World) -> None:
        assert not self.conflict(world, (xs.XS_DIRECTORY, "/d"), (xs.XS_WRITE, "/d/n"))

    def test_a_new_child_is(self, world: World) -> None:
        assert self.conflict(world, (xs.XS_DIRECTORY, "/d"), (xs.XS_MKDIR, "/d/new"))

    def test_the_same_value_is_a_change(self, world: World) -> None:
        tx = world.dom0.start()
        assert world.dom0.read("/d/n", tx) == b"v"
        world.client().write("/d/n", "v")
        assert world.dom0.end(tx) == "=EAGAIN"

    def test_ones_own_write_outside_is_one_too(self, world: World) -> None:
        tx = world.dom0.start()
        world.dom0.read("/d/n", tx)
        world.dom0.write("/d/n", "w")
        assert world.dom0.end(tx) == "=EAGAIN"

    def test_what_was_before_the_first_access_is_seen_and_no_conflict(self, world: World) -> None:
        tx = world.dom0.start()
        world.client().write("/d/n", "new")
        assert world.dom0.read("/d/n", tx) == b"new"
        assert world.dom0.end(tx) == "=OK"

    def test_after_it_reads_repeat(self, world: World) -> None:
        tx = world.dom0.start()
        world.dom0.read("/d/n", tx)
        world.client().rm("/d/n")
        assert world.dom0.read("/d/n", tx) == b"v"
        assert world.dom0.end(tx) == "=EAGAIN"

    def test_an_empty_one_commits(self, world: World) -> None:
        tx = world.dom0.start()
        world.client().write("/d/n", "w")
        assert world.dom0.end(tx) == "=OK"


class TestItem12ViewsThatDoNotFitTogether:
    """A transaction may have seen a directory before, and its child after, somebody else's change."""

    @pytest.fixture(autouse=True)
    def _some_nodes(self, world: World) -> None:
        world.dom0.write("/d/e/n", "v")
        world.dom0.write("/d/e/m", "v")

    def test_a_listed_child_is_gone(self, world: World) -> None:
        tx = world.dom0.start()
        assert world.dom0.list("/d/e", tx) == ["n", "m"]
        world.client().rm("/d/e/n")
        assert world.dom0.refused(xs.XS_RM, "/d", tx=tx) == "EIO"
        assert world.dom0.list("/d/e", tx) == ["n", "m"]
        world.dom0.write("/d/e/n", tx=tx)
        assert world.dom0.list("/d/e", tx) == ["n", "m", "n"]
        assert world.dom0.end(tx) == "=EAGAIN"

    def test_the_directory_of_a_known_node_is_gone(self, world: World) -> None:
        tx = world.dom0.start()
        world.dom0.read("/d/e/n", tx)
        world.client().rm("/d")
        assert world.dom0.refused(xs.XS_RM, "/d/e/n", tx=tx) == "EINVAL"
        assert world.dom0.read("/d/e/n", tx) == b"v"
        world.dom0.write("/d/e/n/below", tx=tx)
        assert world.dom0.end(tx) == "=EAGAIN"

    def test_a_node_is_not_in_the_list_that_was_seen(self, world: World) -> None:
        tx = world.dom0.start()
        world.dom0.list("/d/e", tx)
        world.client().write("/d/e/new", "v")
        assert world.dom0.read("/d/e/new", tx) == b"v"
        assert world.dom0.refused(xs.XS_RM, "/d/e/new", tx=tx) == "EIO"
        assert world.dom0.refused(xs.XS_READ, "/d/e/new", tx=tx) == "ENOENT"
        assert world.dom0.end(tx) == "=EAGAIN"


class TestItem14WhatDoesNotEndATransaction:
    def test_a_failing_request(self, world: World) -> None:
        tx = world.dom0.start()
        world.dom0.write("/a", tx=tx)
        assert world.dom0.refused(xs.XS_READ, "/missing", tx=tx) == "ENOENT"
        assert world.dom0.refused(xs.XS_RM, "/", tx=tx) == "EINVAL"
        assert world.dom0.end(tx) == "=OK"
        assert world.dom0.read("/a") == b""

    @pytest.mark.parametrize("payload", [b"X\0", b"T", b"", b"T\0F\0"])
    def test_a_bad_letter(self, world: World, payload: bytes) -> None:
        tx = world.dom0.start()
        assert world.dom0.answer(xs.XS_TRANSACTION_END, payload, tx).payload == b"EINVAL\0"
        assert world.dom0.end(tx) == "=OK"

    def test_reset_watches_does(self, world: World) -> None:
        tx = world.dom0.start()
        world.dom0.ok(xs.XS_RESET_WATCHES, "")
        assert world.dom0.refused(xs.XS_TRANSACTION_END, "T", tx=tx) == "ENOENT"


class TestItem15MkdirAndRm:
    def test_of_what_is_or_is_not_there(self, world: World) -> None:
        world.dom0.write("/a")
        world.dom0.ok(xs.XS_RM, "/a/missing")
        assert world.dom0.refused(xs.XS_RM, "/missing/x") == "ENOENT"

    def test_of_the_root(self, world: World) -> None:
        world.dom0.ok(xs.XS_MKDIR, "/")
        assert world.dom0.refused(xs.XS_RM, "/") == "EINVAL"


class TestItem16Directory:
    def test_is_in_order_of_creation(self, world: World) -> None:
        for name in "cab":
            world.dom0.write(f"/d/{name}")
        world.dom0.rm("/d/c")
        world.dom0.write("/d/c")
        assert world.dom0.list("/d") == ["a", "b", "c"]

    def fill(self, world: World, size: int) -> list[str]:
        """Make the list of /d so many bytes long."""
        names = []
        while size > 101:
            names.append(f"{len(names):0100}")
            size -= 101
        names.append("x" * (size - 1))
        for name in names:
            world.dom0.write(f"/d/{name}")
        return names

    def test_has_a_largest_size(self, world: World) -> None:
        self.fill(world, 4096)
        assert len(world.dom0.ok(xs.XS_DIRECTORY, "/d")) == 4096
        world.dom0.write("/d/x2")
        assert world.dom0.refused(xs.XS_DIRECTORY, "/d") == "E2BIG"

    @pytest.mark.parametrize("size", [3, 4000, 4090, 4091, 4092, 4093, 4094, 4095, 4096, 4097, 9000])
    def test_in_parts(self, world: World, size: int) -> None:
        names = self.fill(world, size)
        got = b""
        while True:
            part = world.dom0.ok(xs.XS_DIRECTORY_PART, "/d", str(len(got)))
            generation, _, rest = part.partition(b"\0")
            assert len(part) <= 4096
            assert int(generation) == world.dom0.generation("/d")
            if rest.endswith(b"\0\0") or rest == b"\0":
                got += rest[:-1]
                break
            assert rest.endswith(b"\0")
            got += rest
        assert got.decode().split("\0")[:-1] == names

    @pytest.mark.parametrize("missing", [0, 1, 2])
    def test_a_piece_leaves_room_for_the_end_mark(self, world: World, missing: int) -> None:
        """Three digits of generation and a NUL leave 4092 bytes; names that fill them exactly are not all sent."""
        names = self.fill(world, 4092 - missing)
        part = world.dom0.ok(xs.XS_DIRECTORY_PART, "/d", "0")
        assert len(str(world.dom0.generation("/d"))) == 2
        world.server.store.next_generation = 500
        world.dom0.write("/d", "value")
        part = world.dom0.ok(xs.XS_DIRECTORY_PART, "/d", "0")
        assert part.startswith(b"500\0")
        shown = part[4:].decode().split("\0")[:-1]
        assert shown == ([*names, ""] if missing else names[:-1])

    def test_an_offset_past_the_end_is_the_end_mark(self, world: World) -> None:
        world.dom0.write("/d/a")
        generation = world.dom0.generation("/d")
        for offset in ("2", "1000", "-1"):
            assert world.dom0.ok(xs.XS_DIRECTORY_PART, "/d", offset) == b"%d\0\0" % generation
        assert world.dom0.ok(xs.XS_DIRECTORY_PART, "/d", "abc") == b"%d\0a\0\0" % generation

    def test_the_generation_is_of_the_list_and_the_own_value(self, world: World) -> None:
        world.dom0.write("/d/a")
        before = world.dom0.generation("/d")
        world.dom0.write("/d/a", "value")
        assert world.dom0.generation("/d") == before
        world.dom0.write("/d", "value")
        changed = world.dom0.generation("/d")
        assert changed > before
        world.dom0.write("/d/b")
        assert world.dom0.generation("/d") > changed


class TestItem17Names:
    @pytest.mark.parametrize("name", ["/a.b", "/a:b", "/a+b", "/a b", "/a/", "//a", "/a//b", "", "/\xe9", "/a\n"])
    def test_that_cannot_be(self, world: World, name: str) -> None:
        for kind in (xs.XS_READ, xs.XS_WRITE, xs.XS_MKDIR, xs.XS_RM, xs.XS_DIRECTORY, xs.XS_GET_PERMS):
            assert world.dom0.answer(kind, name.encode("latin-1") + b"\0").payload == b"EINVAL\0"
        assert world.dom0.answer(xs.XS_SET_PERMS, name.encode("latin-1") + b"\0n0\0").payload == b"EINVAL\0"
        assert world.dom0.answer(xs.XS_WATCH, name.encode("latin-1") + b"\0t\0").payload == b"EINVAL\0"
        assert world.dom0.answer(xs.XS_UNWATCH, name.encode("latin-1") + b"\0t\0").payload == b"ENOENT\0"

    def test_that_can(self, world: World) -> None:
        world.dom0.write("/AZaz09-_@/@")

    @pytest.mark.parametrize("prefix", ["/local/domain/5/", "", "/local/domain/-1/"])
    def test_may_be_2048_long_without_the_home(self, world: World, prefix: str) -> None:
        world.dom0.write(prefix + "p" * 2048)
        assert world.dom0.refused(xs.XS_WRITE, prefix + "p" * 2049) == "EINVAL"

    def test_may_be_2048_long_anywhere_else(self, world: World) -> None:
        world.dom0.write("/" + "p" * 2047)
        assert world.dom0.refused(xs.XS_WRITE, "/" + "p" * 2048) == "EINVAL"
        assert world.dom0.refused(xs.XS_WRITE, "/local/domain/123456/" + "p" * 2040) == "EINVAL"
        world.dom0.watch("@" + "p" * 2047, "t")
        assert world.dom0.refused(xs.XS_WATCH, "@" + "p" * 2048, "t") == "EINVAL"


class TestItem18Nuls:
    def test_of_replies(self, world: World) -> None:
        world.dom0.write("/a", "v")
        assert world.dom0.ok(xs.XS_READ, "/a") == b"v"
        assert world.dom0.ok(xs.XS_DIRECTORY, "/") == b"tool\0a\0"
        assert world.dom0.ok(xs.XS_GET_PERMS, "/a") == b"n0\0"
        assert world.dom0.ok(xs.XS_WRITE, "/a") == b"OK\0"
        assert world.dom0.ok(xs.XS_GET_DOMAIN_PATH, "5") == b"/local/domain/5\0"

    def test_of_values_are_kept(self, world: World) -> None:
        world.dom0.write("/a", b"\0x\0\0")
        assert world.dom0.read("/a") == b"\0x\0\0"

    @pytest.mark.parametrize("payload", [b"/tool", b"", b"/tool\0x\0", b"/tool\0x"])
    def test_that_are_missing_or_too_many(self, world: World, payload: bytes) -> None:
        for kinds, error in (
            ((xs.XS_READ, xs.XS_DIRECTORY, xs.XS_GET_PERMS), b"ENOENT\0"),
            ((xs.XS_MKDIR, xs.XS_RM), b"ENOMEM\0"),
            ((xs.XS_GET_DOMAIN_PATH, xs.XS_IS_DOMAIN_INTRODUCED, xs.XS_RELEASE, xs.XS_RESUME), b"EINVAL\0"),
        ):
            for kind in kinds:
                assert world.dom0.answer(kind, payload).payload == error

    @pytest.mark.parametrize("payload", [b"/tool", b"", b"/tool\0", b"/tool\0x"])
    def test_that_are_missing_where_two_strings_go(self, world: World, payload: bytes) -> None:
        for kind in (xs.XS_WATCH, xs.XS_UNWATCH, xs.XS_DIRECTORY_PART, xs.XS_INTRODUCE, xs.XS_SET_TARGET):
            assert world.dom0.answer(kind, payload).payload == b"EINVAL\0"

    def test_what_comes_behind_the_last_of_two_is_left_out(self, world: World) -> None:
        assert world.dom0.exchange(xs.XS_WATCH, "/tool", "t", value=b"rest") == ["=OK", "/tool|t"]
        assert world.dom0.answer(xs.XS_DIRECTORY_PART, b"/tool\x000\0rest").payload.endswith(b"\0xenstored\0\0")
        assert world.dom0.answer(xs.XS_UNWATCH, b"/tool\0t\0rest").payload == b"OK\0"

    def test_write_needs_one_after_the_path(self, world: World) -> None:
        assert world.dom0.answer(xs.XS_WRITE, b"/a").payload == b"EINVAL\0"
        assert world.dom0.answer(xs.XS_WRITE, b"/a\0").payload == b"OK\0"

    def test_an_entry_without_its_own_is_dropped(self, world: World) -> None:
        world.dom0.write("/a")
        assert world.dom0.answer(xs.XS_SET_PERMS, b"/a\0r1\0w2").payload == b"OK\0"
        assert world.dom0.ok(xs.XS_GET_PERMS, "/a") == b"r1\0"
        assert world.dom0.answer(xs.XS_SET_PERMS, b"/a\0w2").payload == b"EINVAL\0"


def test_item_19_an_oversize_request_ends_the_client(world: World) -> None:
    client = world.client()
    client.watch("/a", "t")
    client.start()
    client.raw(encode(xs.XS_READ, 1, 0, b"/tool\0") + xs.xsd_sockmsg.pack(type=xs.XS_READ, req_id=2, len=4097))
    assert client.connection.error == xs.XENSTORE_ERROR_PROTO
    client.raw(encode(xs.XS_READ, 3, 0, b"/tool\0"))
    assert [message.req_id for message in client.messages()] == [1]
    world.dom0.write("/a")
    assert client.messages() == []
    assert not client.connection.watches
    assert not client.connection.transactions


def test_item_19_the_largest_request_is_none(world: World) -> None:
    value = b"x" * (4096 - len("/a\0"))
    world.dom0.write("/a", value)
    assert world.dom0.read("/a") == value


class TestItem20UnknownOperations:
    @pytest.mark.parametrize("kind", [15, 16, 20, 23, 24, 99, 0xFFFF, 0xFFFFFFFF])
    def test_leave_the_client_alone(self, world: World, kind: int) -> None:
        assert world.dom0.answer(kind, b"x\0").payload == b"ENOSYS\0"
        assert world.dom0.read("/tool") == b""


class TestItem21NewNodes:
    def test_of_a_guest_are_its_own_with_the_parents_list(self, world: World) -> None:
        guest = world.guest(5)
        world.dom0.write("/shared")
        world.dom0.perms("/shared", "w0", "r6")
        guest.write("/shared/deep/node")
        assert world.dom0.ok(xs.XS_GET_PERMS, "/shared/deep/node") == b"w5\0r6\0"
        assert world.dom0.ok(xs.XS_GET_PERMS, "/shared/deep") == b"w5\0r6\0"

    def test_of_dom0_belong_to_the_parents_owner(self, world: World) -> None:
        world.guest(5)
        world.dom0.write("/local/domain/5/made/by/dom0")
        assert world.dom0.ok(xs.XS_GET_PERMS, "/local/domain/5/made/by") == b"n5\0"

    def test_the_first_matching_entry_wins(self, world: World) -> None:
        guest = world.guest(1)
        world.dom0.write("/a")
        world.dom0.perms("/a", "b0", "n1", "r1")
        assert guest.refused(xs.XS_READ, "/a") == "EACCES"
        world.dom0.perms("/a", "n1", "n1")
        assert guest.read("/a") == b""
        world.dom0.perms("/a", "r0")
        assert guest.read("/a") == b""

    def test_need_no_right_above(self, world: World) -> None:
        guest = world.guest(1)
        world.dom0.write("/closed/node")
        world.dom0.perms("/closed/node", "b0")
        guest.write("/closed/node", "v")
        assert guest.read("/closed/node") == b"v"


class TestItem22Rights:
    def test_get_perms_needs_read(self, world: World) -> None:
        guest = world.guest(1)
        world.dom0.write("/a")
        world.dom0.perms("/a", "w0")
        assert guest.refused(xs.XS_GET_PERMS, "/a") == "EACCES"

    def test_rm_needs_write_on_the_node_only(self, world: World) -> None:
        guest = world.guest(1)
        world.dom0.write("/a/b/c")
        world.dom0.perms("/a/b", "n0", "w1")
        guest.rm("/a/b")
        assert world.dom0.list("/a") == []

    def test_a_node_cannot_be_given_away(self, world: World) -> None:
        guest = world.guest(1)
        guest.write("mine")
        assert guest.refused(xs.XS_SET_PERMS, "mine", "n2") == "EPERM"
        guest.perms("mine", "b1", "r2")

    def test_the_owner_must_exist(self, world: World) -> None:
        world.dom0.write("/a")
        assert world.dom0.refused(xs.XS_SET_PERMS, "/a", "n77") == "ENOENT"
        world.dom0.perms("/a", "n0", "r77")
        assert world.dom0.ok(xs.XS_GET_PERMS, "/a") == b"n0\0r77\0"

    @pytest.mark.parametrize("entry", ["", "x3", "3", "n", "n3x", "n3 ", "N3", "n-"])
    def test_an_entry_that_is_none(self, world: World, entry: str) -> None:
        world.dom0.write("/a")
        assert world.dom0.refused(xs.XS_SET_PERMS, "/a", entry) == "EINVAL"

    @pytest.mark.parametrize("entry", ["n3", "n03", "n0x3", "n 3", "n+3", "n4294967299"])
    def test_a_number_is_what_strtoul_takes(self, world: World, entry: str) -> None:
        world.dom0.write("/a")
        world.dom0.perms("/a", entry)
        assert world.dom0.ok(xs.XS_GET_PERMS, "/a") == b"n3\0"

    def test_a_target_lends_its_rights(self, world: World) -> None:
        guest = world.guest(1)
        world.guest(2)
        world.dom0.write("/local/domain/2/secret", "v")
        assert guest.refused(xs.XS_READ, "/local/domain/2/secret") == "EACCES"
        world.dom0.ok(xs.XS_SET_TARGET, "1", "2")
        assert guest.read("/local/domain/2/secret") == b"v"
        assert world.dom0.refused(xs.XS_SET_TARGET, "1", "9") == "ENOENT"
        world.die(2)
        assert world.server.domains.by_id[1].target is None


class TestItem23WhoMayKnowThatANodeIsMissing:
    @pytest.mark.parametrize("kind", [xs.XS_READ, xs.XS_DIRECTORY, xs.XS_GET_PERMS])
    def test_who_may_read_the_nearest_directory(self, world: World, kind: int) -> None:
        guest = world.guest(1)
        world.dom0.write("/closed")
        world.dom0.write("/open")
        world.dom0.perms("/open", "r0")
        assert guest.refused(kind, "/open/x/y") == "ENOENT"
        assert guest.refused(kind, "/closed/x/y") == "EACCES"

    def test_who_may_write_there(self, world: World) -> None:
        guest = world.guest(1)
        world.dom0.write("/open")
        world.dom0.perms("/open", "r0")
        assert guest.refused(xs.XS_WRITE, "/open/x") == "EACCES"
        assert guest.refused(xs.XS_RM, "/open/x") == "EACCES"


class TestItem24Quotas:
    def test_nodes(self) -> None:
        world = World(nodes=10)
        guest = world.guest(1)
        for index in range(9):
            guest.write(f"n{index}")
        assert guest.refused(xs.XS_WRITE, "n9") == "ENOSPC"
        assert guest.refused(xs.XS_MKDIR, "a/b") == "ENOSPC"
        world.dom0.write("/local/domain/1/more")
        guest.rm("n0")
        guest.rm("n1")
        guest.write("n1")
        world.check()

    def test_nodes_of_a_transaction_are_counted_at_its_end(self) -> None:
        world = World(nodes=10)
        guest = world.guest(1)
        for index in range(7):
            guest.write(f"n{index}")
        for more, result in ((1, "=OK"), (2, "=ENOSPC")):
            tx = guest.start()
            for index in range(more):
                guest.write(f"more{more}{index}", tx=tx)
            assert guest.end(tx) == result
        world.check()

    def test_watches_let_one_more_through(self) -> None:
        world = World(watches=3)
        guest = world.guest(1)
        for index in range(4):
            guest.watch(f"w{index}", "t")
        assert guest.refused(xs.XS_WATCH, "w4", "t") == "E2BIG"
        world.check()

    def test_transactions_let_one_more_through(self) -> None:
        world = World(transactions=2)
        guest = world.guest(1)
        ids = [guest.start() for _ in range(3)]
        assert guest.refused(xs.XS_TRANSACTION_START, "") == "ENOSPC"
        assert guest.end(ids[0], "F") == "=OK"
        guest.start()
        world.check()

    def test_the_size_of_a_node_covers_value_names_and_rights(self) -> None:
        world = World(node_size=200)
        guest = world.guest(1)
        guest.write("n", b"v" * 167)
        assert guest.refused(xs.XS_WRITE, "n", value=b"v" * 168) == "ENOSPC"
        assert guest.refused(xs.XS_WRITE, "n/child") == "ENOSPC"
        assert guest.refused(xs.XS_SET_PERMS, "n", "n1", "r2") == "ENOSPC"
        world.dom0.write("/local/domain/1/n", b"v" * 3000)
        world.check()

    def test_a_directory_of_a_guest_holds_531_short_names(self, world: World) -> None:
        guest = world.guest(1)
        world.dom0.write("/local/domain/1/d")
        count = 0
        while True:
            guest.send(xs.XS_MKDIR, f"d/{count:03}"[:5])
            if guest.shown() == ["=ENOSPC"]:
                break
            count += 1
        # 24 + 8 bytes are the node's own; each name has its NUL: 503 of three digits.
        assert count == (2048 - 1 - 32) // 4

    def test_a_refusal_for_size_ends_a_transaction(self) -> None:
        world = World(node_size=200)
        guest = world.guest(1)
        tx = guest.start()
        guest.write("a", tx=tx)
        assert guest.refused(xs.XS_WRITE, "b", value=b"v" * 500, tx=tx) == "ENOSPC"
        assert guest.end(tx) == "=ENOMEM"
        assert guest.refused(xs.XS_READ, "a") == "ENOENT"
        world.check()

    def test_permissions(self) -> None:
        world = World(permissions=3)
        guest = world.guest(1)
        guest.perms("/local/domain/1", "n1", "r2", "r3")
        assert guest.refused(xs.XS_SET_PERMS, "/local/domain/1", "n1", "r2", "r3", "r4") == "ENOSPC"
        world.dom0.perms("/local/domain/1", "n1", "r2", "r3", "r4", "r5")

    def test_nodes_that_a_transaction_touches(self) -> None:
        world = World(transaction_nodes=4)
        guest = world.guest(1)
        for index in range(5):
            guest.write(f"n{index}")
        tx = guest.start()
        for index in range(4):
            guest.read(f"n{index}", tx=tx)
        assert guest.refused(xs.XS_READ, "n4", tx=tx) == "ENOSPC"
        assert guest.end(tx) == "=ENOMEM"

    def test_memory(self) -> None:
        world = World(memory=2000)
        guest = world.guest(1)
        guest.write("a", b"v" * 1000)
        assert guest.refused(xs.XS_WRITE, "b", value=b"v" * 1000) == "ENOMEM"
        assert guest.refused(xs.XS_WATCH, "b", "t" * 1000) == "ENOMEM"
        world.check()

    def test_dom0_has_none_but_the_path(self) -> None:
        world = World(nodes=1, watches=0, transactions=0, node_size=10, permissions=1, memory=10, path_max=50)
        for index in range(5):
            world.dom0.write(f"/n{index}", b"v" * 100)
            world.dom0.watch(f"/n{index}", "t")
            world.dom0.start()
        world.dom0.perms("/n0", "n0", "r1", "r2")
        assert world.dom0.refused(xs.XS_WRITE, "/" + "p" * 50) == "EINVAL"


class TestItem25EndsOfDomains:
    def test_nodes_go_wherever_they_are(self, world: World) -> None:
        guest = world.guest(1)
        world.dom0.write("/shared/x")
        world.dom0.perms("/shared", "b0")
        guest.write("/shared/a/b")
        guest.write("deep/er")
        world.dom0.watch("/shared", "s")
        world.dom0.watch(HOME1, "h")
        world.dom0.watch(f"{HOME1}/deep/er", "d")
        world.dom0.watch("@releaseDomain", "r")
        world.die(1)
        assert world.dom0.shown() == [
            f"{HOME1}/deep/er|d",
            f"{HOME1}|h",
            "/shared/a|s",
            "@releaseDomain|r",
        ]
        assert world.dom0.list("/shared") == ["x"]
        assert world.dom0.list("/local/domain") == []

    def test_in_the_order_of_the_tree(self, world: World) -> None:
        for name in ("/one/z", "/one/a", "/two"):
            world.dom0.write(name)
        world.guest(1, home=False)
        for name in ("/two", "/one/a", "/one/z"):
            world.dom0.perms(name, "n1")
        world.dom0.watch("/", "w")
        world.die(1)
        assert world.dom0.shown() == ["/one/z|w", "/one/a|w", "/two|w"]

    def test_a_shutdown_is_told_once_and_leaves_it_introduced(self, world: World) -> None:
        world.guest(1)
        world.dom0.watch("@releaseDomain", "r")
        for _ in range(2):
            world.tell(d1=DomainState(shutdown=True, dying=False))
        assert world.dom0.shown() == ["@releaseDomain|r"]
        assert world.dom0.ok(xs.XS_IS_DOMAIN_INTRODUCED, "1") == b"T\0"
        world.dom0.ok(xs.XS_RESUME, "1")
        world.tell(d1=DomainState(shutdown=True, dying=False))
        assert world.dom0.shown() == ["@releaseDomain|r"]
        world.tell(d1=DomainState(shutdown=True, dying=True))
        assert world.dom0.shown() == ["@releaseDomain|r"]
        assert world.dom0.ok(xs.XS_IS_DOMAIN_INTRODUCED, "1") == b"F\0"
        assert world.detached == [1]

    def test_shutdowns_are_told_together_and_ends_before_them(self, world: World) -> None:
        for domid in (1, 2, 3):
            world.guest(domid, home=False)
        world.dom0.watch("@releaseDomain", "r")
        # The domains that became known last come first: 3 and 2 have shut down, then 1 is found dead.
        world.existing.discard(1)
        world.tell(d2=DomainState(True, False), d3=DomainState(True, False))
        assert world.dom0.shown() == ["@releaseDomain|r"]
        world.guest(4, home=False)
        world.tell(d2=DomainState(True, False), d3=DomainState(True, False), d4=DomainState(True, False))
        assert world.dom0.shown() == ["@releaseDomain|r"]
        world.existing.discard(4)
        world.dom0.ok(xs.XS_RESUME, "2")
        world.tell(d2=DomainState(True, False), d3=DomainState(True, False))
        assert world.dom0.shown() == ["@releaseDomain|r"] * 2

    def test_a_domain_that_was_never_introduced_leaves_without_a_word(self, world: World) -> None:
        world.dom0.write("/a")
        world.dom0.perms("/a", "n7")
        world.dom0.watch("@releaseDomain", "r")
        world.tell(d7=DomainState(shutdown=True, dying=True))
        assert world.dom0.read("/a") == b""
        world.die(7)
        assert world.dom0.messages() == []
        assert world.dom0.refused(xs.XS_READ, "/a") == "ENOENT"

    def test_introduce_again_resets_the_client(self, world: World) -> None:
        guest = world.guest(1)
        guest.watch("x", "t")
        tx = guest.start()
        world.dom0.watch("@introduceDomain", "i")
        assert world.dom0.exchange(xs.XS_INTRODUCE, "1", "1000", "9") == ["=OK"]
        assert world.rebound == [(1, 9)]
        world.dom0.write("/local/domain/1/x")
        assert guest.messages() == []
        assert guest.refused(xs.XS_READ, "x", tx=tx) == "ENOENT"

    def test_the_root_survives_its_owner(self, world: World) -> None:
        world.guest(1)
        world.dom0.perms("/", "n1")
        world.die(1)
        assert world.dom0.ok(xs.XS_GET_PERMS, "/") == b"n0\0"

    @pytest.mark.parametrize(("text", "path"), [("5", "5"), ("5x", "5"), ("abc", "0"), ("", "0"), ("70000", "70000")])
    def test_get_domain_path_reads_leniently(self, world: World, text: str, path: str) -> None:
        assert world.guest(1).ok(xs.XS_GET_DOMAIN_PATH, text) == f"/local/domain/{path}\0".encode()

    def test_is_domain_introduced_too(self, world: World) -> None:
        assert world.dom0.ok(xs.XS_IS_DOMAIN_INTRODUCED, "abc") == b"T\0"
        assert world.dom0.ok(xs.XS_IS_DOMAIN_INTRODUCED, "3") == b"F\0"

    @pytest.mark.parametrize("kind", [xs.XS_RELEASE, xs.XS_RESUME])
    def test_of_the_wrong_domain(self, world: World, kind: int) -> None:
        assert world.dom0.refused(kind, "0") == "EINVAL"
        assert world.dom0.refused(kind, "x") == "EINVAL"
        assert world.dom0.refused(kind, "3") == "ENOENT"


class TestMemoryOfADomain:
    """What counts against the `memory` quota, and whose it is (`quota DOMID`)."""

    def memory(self, world: World, domid: int) -> int:
        row = world.dom0.ok(xs.XS_CONTROL, "quota", str(domid)).decode().splitlines()[5]
        return int(row.split(":")[1])

    def test_nodes_are_their_owners(self, world: World) -> None:
        guest = world.guest(1)
        before = self.memory(world, 1)
        guest.write("x", b"12345")
        home = len("x\0")
        assert self.memory(world, 1) - before == 24 + 8 + 5 + len("/local/domain/1/x") + home
        world.dom0.perms("/local/domain/1/x", "n2")
        assert self.memory(world, 1) - before == home

    def test_a_transaction_has_a_copy_of_what_it_has_read(self, world: World) -> None:
        guest = world.guest(1)
        guest.write("x", b"12345")
        before = self.memory(world, 1)
        tx = guest.start()
        guest.read("x", tx)
        number = len(str(world.server.store.next_generation - 1) + "/")
        assert self.memory(world, 1) - before == 24 + 8 + 5 + number + len("/local/domain/1/x")
        guest.write("x", b"1234567", tx)
        assert self.memory(world, 1) - before == 24 + 8 + 7 + number + len("/local/domain/1/x")
        guest.end(tx, "F")
        assert self.memory(world, 1) == before

    def test_at_the_limit_a_domain_is_not_listened_to(self, world: World) -> None:
        guest = world.guest(1)
        world.server.quotas.memory = self.memory(world, 1) + 1
        guest.send(xs.XS_READ, "x")
        assert guest.shown() == ["=ENOENT"]
        world.server.quotas.memory -= 1
        guest.send(xs.XS_READ, "x")
        assert guest.shown() == []
        world.server.quotas.memory += 1
        guest.raw(b"")
        assert guest.shown() == ["=ENOENT"]

    def test_the_limit_itself_is_too_much(self, world: World) -> None:
        guest = world.guest(1)
        guest.write("x", b"1")
        size = self.memory(world, 1)
        world.server.quotas.memory = size + 10
        assert guest.refused(xs.XS_WRITE, "x", value=b"12345678901") == "ENOMEM"
        assert guest.exchange(xs.XS_WRITE, "x", value=b"1234567890") == ["=OK"]


class TestOnlyDom0:
    @pytest.mark.parametrize(
        "kind",
        [
            xs.XS_CONTROL,
            xs.XS_INTRODUCE,
            xs.XS_RELEASE,
            xs.XS_RESUME,
            xs.XS_SET_TARGET,
            xs.XS_IS_DOMAIN_INTRODUCED,
        ],
    )
    def test_may(self, world: World, kind: int) -> None:
        assert world.guest(1).refused(kind, "1", "1", "1") == "EACCES"

    @pytest.mark.parametrize("strings", [("1", "1"), ("1", "x", "0"), ("1", "1", ""), ("1", "1", "-1")])
    def test_may_introduce_but_not_anyhow(self, world: World, strings: tuple[str, ...]) -> None:
        assert world.dom0.refused(xs.XS_INTRODUCE, *strings) == "EINVAL"

    def test_may_not_introduce_what_cannot_be_mapped(self, world: World) -> None:
        assert world.dom0.refused(xs.XS_INTRODUCE, "70000", "1", "2") == "ENOENT"
        assert world.server.domains.get(70000) is None


class TestControl:
    def test_numbers_are_unsigned(self, world: World) -> None:
        assert world.dom0.ok(xs.XS_GET_DOMAIN_PATH, "-1") == b"/local/domain/4294967295\0"
        # DOMID_SELF
        assert world.dom0.ok(xs.XS_IS_DOMAIN_INTRODUCED, "32752") == b"T\0"

    def test_shows_quotas(self, world: World) -> None:
        lines = world.dom0.ok(xs.XS_CONTROL, "quota").decode().split("\n")
        assert lines[0] == "Quota settings:"
        assert lines[1] == "nodes            :     1000 Nodes per domain"
        world.guest(1).watch("x", "token")
        shown = world.dom0.ok(xs.XS_CONTROL, "quota", "1").decode()
        assert "watches         :        1\n" in shown
        assert world.dom0.refused(xs.XS_CONTROL, "quota", "9") == "ENOENT"

    def test_sets_them(self, world: World) -> None:
        world.dom0.ok(xs.XS_CONTROL, "quota", "set", "transaction-nodes", "7")
        assert world.server.quotas.transaction_nodes == 7
        world.dom0.ok(xs.XS_CONTROL, "quota-soft", "set", "memory", "70000")
        assert "70000" in world.dom0.ok(xs.XS_CONTROL, "quota-soft").decode()
        for words in (("nosuch", "1"), ("nodes", "0"), ("nodes",)):
            assert world.dom0.refused(xs.XS_CONTROL, "quota", "set", *words) == "EINVAL"

    def test_prints_and_checks(self, world: World) -> None:
        world.dom0.ok(xs.XS_CONTROL, "print", "hello")
        world.dom0.ok(xs.XS_CONTROL, "check")
        assert world.printed == ["control: hello"]
        assert world.dom0.ok(xs.XS_CONTROL, "help").startswith(b"check\t\nlog\ton|off\n")
        for words in (("nosuch",), ("log",), ("print",), ("help", "x"), ("check", "x"), ("live-update",)):
            assert world.dom0.refused(xs.XS_CONTROL, *words) == "EINVAL"
        world.dom0.ok(xs.XS_CONTROL, "log", "on")

    def test_check_finds_what_is_wrong(self) -> None:
        world = World()
        world.dom0.write("/a/b")
        tree = world.server.store.tree
        tree.delete(b"/a/b")
        world.dom0.ok(xs.XS_CONTROL, "check")
        assert world.printed == ["no node for the name b'b' in b'/a'"]


class TestEqualEvents:
    """An event that is waiting already is not queued again: it would say nothing new."""

    def test_but_those_about_domains_are(self, world: World) -> None:
        world.dom0.watch("@introduceDomain", "i")
        world.guest(1, home=False)
        world.guest(2, home=False)
        assert world.dom0.shown() == ["@introduceDomain|i"] * 2

    def test_of_one_change(self, world: World) -> None:
        world.dom0.watch("/", "t")
        world.dom0.watch("/a", "t")
        world.dom0.watch("/a", "u")
        assert world.dom0.exchange(xs.XS_WRITE, "/a") == ["/a|t", "/a|u", "=OK"]

    def test_of_several_while_the_client_does_not_read(self, world: World) -> None:
        client = world.client()
        client.watch("/a", "t")
        for _ in range(1000):
            world.dom0.write("/a")
        assert client.shown() == ["/a|t"]
        world.dom0.write("/a")
        assert client.shown() == ["/a|t"]


def test_ids_in_permissions_have_a_sign(world: World) -> None:
    world.dom0.write("/a")
    world.dom0.perms("/a", "n0", "r4294967295")
    assert world.dom0.ok(xs.XS_GET_PERMS, "/a") == b"n0\0r-1\0"


def test_the_quota_of_nodes_in_a_transaction_may_change_while_it_is_open(world: World) -> None:
    guest = world.guest(1)
    tx = guest.start()
    guest.write("a", tx=tx)
    world.server.quotas.transaction_nodes = 2
    assert guest.refused(xs.XS_READ, "b", tx=tx) == "ENOSPC"


def test_a_domains_account_is_that_of_its_ring(world: World) -> None:
    world.dom0.watch("/a", "t")
    world.dom0.start()
    shown = world.dom0.ok(xs.XS_CONTROL, "quota", "0").decode().splitlines()
    assert [line.split(":")[1].strip() for line in shown[2:4]] == ["0", "0"]
