"""The client against the real server core, over a real ring."""

from typing import Any

import pytest
from xenbus_world import World

from guest_kernel.threads import WaitQueue
from guest_kernel.xenbus.client import Permission, XenstoreError
from guest_kernel.xenbus.watch import QUEUE_LIMIT
from hypervisor.abi.io import xs_wire as xs


@pytest.fixture(params=[0, 1, 2])
def world(request: pytest.FixtureRequest) -> Any:
    made = World(request.param)
    made.boot(0)
    made.boot(5)
    yield made
    made.run()
    made.assert_quiet()


def test_nodes(world: World) -> None:
    async def work() -> None:
        await xb.write("data/a", "1")
        await xb.write("data/bytes", b"\xff\0\xfe")
        assert await xb.read("data/a") == "1"
        assert await xb.read_bytes("data/bytes") == b"\xff\0\xfe"
        await xb.mkdir("data/dir")
        assert await xb.directory("data") == ["a", "bytes", "dir"]
        assert await xb.directory("data/a") == []
        assert await xb.exists("data/dir")
        await xb.rm("data/a")
        assert not await xb.exists("data/a")
        assert await xb.read_or_none("data/a") is None
        assert await xb.read_many(["data/a", "data/bytes", "data/nope"]) == [None, "\udcff\0\udcfe", None]
        await xb.write_many({"data/x": 1, "data/y": True, "data/z": "zz"})
        assert await xb.read_many(["data/x", "data/y", "data/z"]) == ["1", "1", "zz"]

    xb = world.domains[5].xenbus
    world.call(world.domains[5], work())
    assert world.read("/local/domain/5/data/z") == "zz"


def test_errors_carry_their_names(world: World) -> None:
    async def work() -> None:
        with pytest.raises(XenstoreError, match="READ data/nope: ENOENT") as caught:
            await xb.read("data/nope")
        assert caught.value.name == "ENOENT"
        with pytest.raises(XenstoreError) as caught:
            await xb.write("bad path", "")
        assert caught.value.name == "EINVAL"
        with pytest.raises(XenstoreError) as caught:
            await xb.introduce(7, 1, 1)
        assert caught.value.name == "EACCES"
        with pytest.raises(XenstoreError) as caught:
            await xb.write("data/big", bytes(4096))
        assert caught.value.name == "E2BIG"
        assert await xb.read("domid") == "5"

    xb = world.domains[5].xenbus
    world.call(world.domains[5], work())


def test_requests_larger_than_the_ring_of_many_threads(world: World) -> None:
    kernel = world.domains[0]
    xb = kernel.xenbus
    results: dict[int, bytes] = {}

    async def work(number: int) -> None:
        value = bytes([65 + number]) * (4000 - 300 * number)
        await xb.write(f"/test/{number}", value)
        results[number] = await xb.read_bytes(f"/test/{number}")

    for number in range(8):
        kernel.spawn(work(number))
    world.run()
    assert results == {number: bytes([65 + number]) * (4000 - 300 * number) for number in range(8)}


def test_many_requests_cost_one_round_trip(world: World) -> None:
    kernel = world.domains[0]
    xb = kernel.xenbus
    signals = 0
    plain = world.signal_server

    def signal(domid: int) -> None:
        nonlocal signals
        signals += 1
        plain(domid)

    world.signal_server = signal  # type: ignore[method-assign]
    world.call(kernel, xb.write_many({f"/many/{number}": number for number in range(20)}))
    assert xb.requests == 20
    assert xb.flushes == 1
    assert signals == 1


def test_directory_longer_than_a_payload(world: World) -> None:
    names = [f"child-{number:04}-{'x' * 20}" for number in range(400)]
    for name in names:
        world.write(f"/long/{name}", "")
    assert world.call(world.domains[0], world.domains[0].xenbus.directory("/long")) == names


def test_directory_in_parts_that_changes_meanwhile(world: World) -> None:
    kernel = world.domains[0]
    xb = kernel.xenbus
    names = [f"child-{number:04}-{'x' * 20}" for number in range(400)]
    for name in names:
        world.write(f"/long/{name}", "")
    plain = xb.submit
    parts = 0

    def submit(kind: int, payload: bytes, path: str = "") -> Any:
        nonlocal parts
        if kind == xs.XS_DIRECTORY_PART:
            parts += 1
            if parts == 2:
                world.write("/long/late", "")
        return plain(kind, payload, path)

    xb.submit = submit  # type: ignore[method-assign]
    assert world.call(kernel, xb.directory("/long")) == [*names, "late"]


def test_permissions(world: World) -> None:
    async def work() -> None:
        await xb.set_perms("data", ["n5", Permission("r", 0), "b7"])
        assert await xb.get_perms("data") == [Permission("n", 5), Permission("r", 0), Permission("b", 7)]

    world.boot(7)
    xb = world.domains[5].xenbus
    world.write("/local/domain/5/data", "")
    world.call(world.domains[5], work())
    for text in ("x5", "", "r", "rr5"):
        with pytest.raises(ValueError, match=r"perm|int"):
            Permission.parse(text)


def test_transaction(world: World) -> None:
    async def work() -> None:
        async with xb.transaction() as t:
            await t.write("data/a", "1")
            assert world.read("/local/domain/5/data/a") is None
            assert await t.read("data/a") == "1"
        assert await xb.read("data/a") == "1"
        with pytest.raises(KeyError):
            await fails()
        assert await xb.read("data/a") == "1"

    async def fails() -> None:
        async with xb.transaction() as t:
            await t.write("data/a", "2")
            raise KeyError

    xb = world.domains[5].xenbus
    world.call(world.domains[5], work())


def test_transact_tries_again_when_somebody_interferes(world: World) -> None:
    attempts = 0

    async def body(t: Any) -> str:
        nonlocal attempts
        attempts += 1
        value = await t.read("data/counter")
        if attempts < 4:
            world.write("/local/domain/5/data/counter", str(100 * attempts))
        await t.write("data/counter", str(int(value) + 1))
        return "done"

    world.write("/local/domain/5/data/counter", "0")
    kernel = world.domains[5]
    assert world.call(kernel, kernel.xenbus.transact(body)) == "done"
    assert attempts == 4
    assert world.read("/local/domain/5/data/counter") == "301"

    async def always(t: Any) -> None:
        await t.read("data/counter")
        world.write("/local/domain/5/data/counter", "0")

    with pytest.raises(XenstoreError, match="EAGAIN"):
        world.call(kernel, kernel.xenbus.transact(always))


def test_interrupted_transaction_start_leaves_nothing_open(world: World) -> None:
    kernel = world.domains[5]

    async def work() -> None:
        async with kernel.xenbus.transaction():
            raise AssertionError("never gets here")

    thread = kernel.spawn(work())
    world.step_thread(kernel)
    thread.cancel()
    world.run()
    assert thread.done
    assert not world.transport.connections[5].transactions


def test_watch_reports_the_spelling_of_registration(world: World) -> None:
    async def work() -> None:
        watch = await xb.watch("data")
        assert await watch.get() == ("data", watch.token)
        world.write("/local/domain/5/data/sub/x", "")
        assert await watch.get() == ("data/sub/x", watch.token)
        await watch.cancel()
        await watch.cancel()
        world.write("/local/domain/5/data/sub/x", "")
        await xb.read("domid")
        assert not world.transport.connections[5].watches

    xb = world.domains[5].xenbus
    world.call(world.domains[5], work())
    assert xb.watches == []
    assert xb.strays == 0


def test_slow_callback_blocks_neither_replies_nor_other_watches(world: World) -> None:
    kernel = world.domains[5]
    xb = kernel.xenbus
    seen: list[str] = []
    others: list[str] = []
    gate = WaitQueue()

    async def slow(path: str, token: str) -> None:
        seen.append(path)
        await gate.wait()

    async def work() -> None:
        watch = await xb.watch("data", slow)
        other = await xb.watch("other", lambda path, token: others.append(path))
        for number in range(5):
            await xb.write(f"data/{number}", "")
            await xb.write("other", str(number))
        assert await xb.read("domid") == "5"
        while len(seen) < 6:
            gate.wake_all()
            await kernel.yield_()
        await watch.cancel()
        await other.cancel()
        gate.wake_all()

    world.call(kernel, work())
    assert seen == ["data", "data/0", "data/1", "data/2", "data/3", "data/4"]
    assert others[0] == "other"
    assert 2 <= len(others) <= 6


def test_flood_of_events_is_bounded(world: World) -> None:
    """XSA-349: somebody writes faster than the watcher reads; equal events merge, very many become one."""
    kernel = world.domains[0]
    xb = kernel.xenbus
    watch = world.call(kernel, xb.watch("/flood"))
    for number in range(2000):
        world.write("/flood/state", str(number))
    world.run()
    assert list(watch._events) == ["/flood", "/flood/state"]
    for number in range(3 * QUEUE_LIMIT):
        world.write(f"/flood/{number}", "")
    world.run()
    assert len(watch._events) <= QUEUE_LIMIT
    assert "/flood" in watch._events
    world.call(kernel, watch.cancel())


def test_refused_watch_is_forgotten(world: World) -> None:
    kernel = world.domains[5]
    with pytest.raises(XenstoreError, match="EINVAL"):
        world.call(kernel, kernel.xenbus.watch("//"))
    assert kernel.xenbus.watches == []


def test_interrupted_watch_is_taken_back(world: World) -> None:
    kernel = world.domains[5]
    thread = kernel.spawn(kernel.xenbus.watch("data"))
    world.step_thread(kernel)
    thread.cancel()
    world.run()
    assert not world.transport.connections[5].watches


def test_wait_until(world: World) -> None:
    kernel = world.domains[5]
    thread = kernel.spawn(kernel.xenbus.wait_until("data/go", lambda value: value == "now"))
    world.run()
    assert not thread.done
    world.write("/local/domain/5/data/go", "soon")
    world.run()
    assert not thread.done
    world.write("/local/domain/5/data/go", "now")
    world.run()
    assert thread.result == "now"
    assert kernel.xenbus.watches == []


def test_domain_operations(world: World) -> None:
    async def work() -> None:
        assert await xb.get_domain_path(5) == "/local/domain/5"
        assert await xb.is_domain_introduced(5)
        assert not await xb.is_domain_introduced(77)
        watch = await xb.watch("@releaseDomain")
        await watch.get()
        await xb.release(5)
        assert await watch.get() == ("@releaseDomain", watch.token)
        await watch.cancel()
        assert not await xb.is_domain_introduced(5)

    xb = world.domains[0].xenbus
    world.call(world.domains[0], work())
    world.domains.pop(5)
    world.server_work.pop(5, None)


def test_reset_watches(world: World) -> None:
    kernel = world.domains[5]
    world.call(kernel, kernel.xenbus.watch("data"))
    world.call(kernel, kernel.xenbus.reset_watches())
    assert kernel.xenbus.watches == []
    assert not world.transport.connections[5].watches


def test_reconnect_registers_watches_anew() -> None:
    world = World()
    kernel = world.boot(0)
    xb = kernel.xenbus
    events: list[str] = []
    watch = world.call(kernel, xb.watch("/w", lambda path, token: events.append(path)))
    world.run()
    with pytest.raises(XenstoreError, match="ENOSYS"):
        world.call(kernel, xb.reconnect())
    ring = world.rings[0]
    ring.advertise(xs.XENSTORE_SERVER_FEATURE_RECONNECTION)
    stuck = kernel.scheduler.spawn(xb.read("/w"), "stuck", panics=False)
    world.step_thread(kernel)
    ring.fail(xs.XENSTORE_ERROR_RINGIDX)
    kernel.xenbus.on_event()
    assert xb.broken is not None
    world.server_work.clear()
    while kernel.scheduler.ready:
        world.step_thread(kernel)
    assert isinstance(stuck.exception, XenstoreError)
    assert stuck.exception.name == "EIO"
    with pytest.raises(XenstoreError, match="EIO"):
        world.call(kernel, xb.read("/w"))
    world.call(kernel, xb.reconnect())
    events.clear()
    world.write("/w", "x")
    world.run()
    assert "/w" in events
    world.call(kernel, watch.cancel())
    world.assert_quiet()


@pytest.mark.parametrize("index", [512, 515])
def test_broken_indices_end_the_connection(index: int) -> None:
    world = World()
    kernel = world.boot(0)
    thread = kernel.scheduler.spawn(kernel.xenbus.read("/"), "reader", panics=False)
    world.step_thread(kernel)
    kernel.page.cast("I")[index] = 0x80000000
    kernel.xenbus.on_event()
    if index == 512:
        # The consumer index matters when there is something to send.
        kernel.scheduler.spawn(kernel.xenbus.read("/"), "another", panics=False)
    while kernel.scheduler.ready:
        world.step_thread(kernel)
    assert isinstance(thread.exception, XenstoreError)
    assert thread.exception.name == "EIO"


def test_ring_that_is_being_reset_at_boot() -> None:
    """A domain may find `connection` = 1 and has to ignore everything else until the server clears it."""
    world = World()
    kernel = world.boot(0)
    page = kernel.page
    words = page.cast("I")
    words[512:516] = memoryview(b"\xff" * 16).cast("I")
    words[517] = 1
    xb = type(kernel.xenbus)(page, lambda: world.signal_server(0), kernel.scheduler.spawn)
    kernel.xenbus = xb
    world.rings[0] = type(world.rings[0])(page)

    async def work() -> str:
        await xb.connected()
        return await xb.read("/tool")

    world.write("/tool", "yes")
    thread = kernel.scheduler.spawn(work(), "work", panics=False)
    world.run()
    assert not thread.done
    world.signal_server(0)
    world.run()
    assert thread.result == "yes"


def test_misbehaving_server_is_survived() -> None:
    """Replies nobody asked for, of another type, of no known error, events of no known token."""
    world = World()
    kernel = world.boot(0)
    xb = kernel.xenbus
    thread = kernel.scheduler.spawn(xb.read("/"), "reader", panics=False)
    world.step_thread(kernel)
    world.server_work.clear()
    from guest_kernel.xenbus import wire

    ring = world.rings[0]
    ring.write(wire.encode(xs.XS_READ, 4711, 0, b"x"))
    ring.write(wire.encode(xs.XS_WATCH_EVENT, 0, 0, b"path\0token\0"))
    ring.write(wire.encode(xs.XS_WATCH_EVENT, 0, 0, b"path"))
    ring.write(wire.encode(xs.XS_MKDIR, 1, 0, b"OK\0"))
    xb.on_event()
    assert xb.strays == 3
    while kernel.scheduler.ready:
        world.step_thread(kernel)
    assert isinstance(thread.exception, XenstoreError)
    assert "answered with MKDIR" in thread.exception.name
    ring.write(b"\xff" * 16)
    xb.on_event()
    assert xb.broken is not None
    assert "4294967295 bytes" in xb.broken
