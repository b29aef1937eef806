"""What Xen 4.22 has on top: watches with a depth, features and quotas of single domains."""

import pytest
from store_world import World

from hypervisor.abi.io import xs_wire as xs

GET_FEATURE, SET_FEATURE, GET_QUOTA, SET_QUOTA = 23, 24, 25, 26


class TestDepth:
    @pytest.mark.parametrize(
        ("depth", "seen"),
        [("0", ["/a|t"]), ("1", ["/a|t", "/a/b|t"]), ("2", ["/a|t", "/a/b|t", "/a/b/c|t"])],
    )
    def test_limits_the_levels_below(self, world: World, depth: str, seen: list[str]) -> None:
        client = world.client()
        assert client.exchange(xs.XS_WATCH, "/a", "t", depth) == ["=OK", "/a|t"]
        for path in ("/a", "/a/b", "/a/b/c", "/a/b/c/d/e", "/ab"):
            world.dom0.write(path)
        # The last one with a level too many is told of none.
        assert client.shown() == seen

    def test_from_the_root(self, world: World) -> None:
        client = world.client()
        client.exchange(xs.XS_WATCH, "/", "t", "1")
        world.dom0.write("/a")
        world.dom0.write("/a/b")
        assert client.shown() == ["/a|t"]

    @pytest.mark.parametrize("depth", ["-1", "-5"])
    def test_is_not_negative(self, world: World, depth: str) -> None:
        assert world.dom0.refused(xs.XS_WATCH, "/a", "t", depth) == "EINVAL"

    def test_is_for_guests_that_may(self, world: World) -> None:
        assert world.dom0.answer(SET_FEATURE, b"1\x004\0").payload == b"OK\0"
        one, two = world.guest(1), world.guest(2)
        assert one.exchange(xs.XS_WATCH, "x", "t", "0") == ["=OK", "x|t"]
        assert two.refused(xs.XS_WATCH, "x", "t", "0") == "EINVAL"
        one.write("x/y")
        assert one.shown() == []

    def test_special_events_say_whose_they_are(self, world: World) -> None:
        plain, deep, single = world.client(), world.client(), world.client()
        plain.watch("@releaseDomain", "p")
        deep.exchange(xs.XS_WATCH, "@releaseDomain", "d", "1")
        single.exchange(xs.XS_WATCH, "@releaseDomain/2", "s", "0")
        plain.watch("@releaseDomain/2", "as in 4.17: never")
        for domid in (1, 2):
            world.guest(domid, home=False)
            world.die(domid)
        assert plain.shown() == ["@releaseDomain|p"] * 2
        assert deep.shown() == ["@releaseDomain/1|d", "@releaseDomain/2|d"]
        assert single.shown() == ["@releaseDomain/2|s"]

    def test_a_watch_is_still_its_path_and_token(self, world: World) -> None:
        world.dom0.exchange(xs.XS_WATCH, "/a", "t", "0")
        assert world.dom0.refused(xs.XS_WATCH, "/a", "t") == "EEXIST"
        assert world.dom0.ok(xs.XS_UNWATCH, "/a", "t") == b"OK\0"


class TestFeatures:
    def test_of_who_asks(self, world: World) -> None:
        assert world.dom0.answer(GET_FEATURE, b"").payload == b"4\0"
        assert world.guest(1).answer(GET_FEATURE, b"").payload == b"0\0"
        assert world.guest(2).answer(GET_FEATURE, b"1\0").payload == b"EACCES\0"

    def test_of_domains(self, world: World) -> None:
        assert world.dom0.answer(SET_FEATURE, b"1\x004\0").payload == b"OK\0"
        assert world.dom0.answer(GET_FEATURE, b"1\0").payload == b"4\0"
        guest = world.guest(1)
        assert guest.answer(GET_FEATURE, b"").payload == b"4\0"
        assert world.dom0.answer(SET_FEATURE, b"1\x000\0").payload == b"EBUSY\0"
        assert world.dom0.answer(SET_FEATURE, b"2\x0064\0").payload == b"EINVAL\0"
        assert world.dom0.answer(SET_FEATURE, b"77\x004\0").payload == b"ENOENT\0"
        assert guest.answer(SET_FEATURE, b"2\x004\0").payload == b"EACCES\0"


class TestQuotas:
    def test_names(self, world: World) -> None:
        names = world.dom0.answer(GET_QUOTA, b"").payload
        assert {b"nodes", b"watches", b"transactions", b"node-size", b"permissions"} <= set(names[:-1].split())

    def test_of_everybody(self, world: World) -> None:
        assert world.dom0.answer(GET_QUOTA, b"nodes\0").payload == b"1000\0"
        assert world.dom0.answer(SET_QUOTA, b"nodes\x0010\0").payload == b"OK\0"
        assert world.dom0.answer(GET_QUOTA, b"1\0nodes\0").payload == b"10\0"

    def test_of_one_domain(self, world: World) -> None:
        one, two = world.guest(1), world.guest(2)
        assert world.dom0.answer(SET_QUOTA, b"1\0watches\x002\0").payload == b"OK\0"
        for guest, last in ((one, "E2BIG"), (two, "OK")):
            for number in range(3):
                guest.watch(f"w{number}", "t")
            assert guest.exchange(xs.XS_WATCH, "w3", "t")[0] == f"={last}"
        assert world.dom0.answer(GET_QUOTA, b"2\0watches\0").payload == b"128\0"

    def test_none(self, world: World) -> None:
        guest = world.guest(1)
        world.dom0.answer(SET_QUOTA, b"1\0permissions\x000\0")
        assert world.dom0.answer(GET_QUOTA, b"1\0permissions\0").payload == b"0\0"
        guest.write("x")
        guest.perms("x", "n1", *(f"r{domid}" for domid in range(2, 9)))

    def test_errors(self, world: World) -> None:
        for payload, error in (
            (b"nothing\0", b"EINVAL\0"),
            (b"77\0nodes\0", b"ENOENT\0"),
            (b"x\0nodes\0", b"EINVAL\0"),
        ):
            assert world.dom0.answer(GET_QUOTA, payload).payload == error
        assert world.dom0.answer(SET_QUOTA, b"nodes\0-1\0").payload == b"EINVAL\0"
        assert world.guest(1).answer(GET_QUOTA, b"nodes\0").payload == b"EACCES\0"


@pytest.mark.parametrize("kind", [GET_FEATURE, SET_FEATURE, GET_QUOTA, SET_QUOTA])
@pytest.mark.parametrize("payload", [b"\0", b"x", b"/a\0b\0c\0d\0", b"1\0\0"])
def test_what_is_not_well_formed_is_unknown_as_in_4_17(world: World, kind: int, payload: bytes) -> None:
    assert world.dom0.answer(kind, payload).payload == b"ENOSYS\0"
