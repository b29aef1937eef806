"""Connect, lose the other end, come back: requests survive, resources do not."""

import errno
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from guest_kernel.block import BlockError

Maker = Callable[..., Any]
MODES = [{}, {"back": {"persistent": False}}]


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("seed", range(5))
def test_requests_survive_a_reconnect(make_pair: Maker, options: dict[str, Any], seed: int) -> None:
    """The backend goes away without answering; each request is issued again to the next one."""
    pair = make_pair(shuffled=True, seed=seed, sectors=64 * 200, **options).up()
    rng = random.Random(seed)
    data = {n: rng.randbytes(512 * rng.choice([1, 8, 88, 150])) for n in range(60)}

    async def write(n: int) -> None:
        await pair.device.write(n * 200, data[n])
        got = await pair.device.read(n * 200, len(data[n]) // 512)
        assert got == data[n]

    threads = [pair.front_kernel.spawn(write(n), f"write {n}") for n in range(60)]
    for _ in range(4):
        for _ in range(rng.randrange(30)):
            pair.world.step()
        # The frontend is told first that its backend is gone; what the disk has in hand finishes late.
        pair.hook(pair.back, "close")
        pair.hook(pair.front, "close")
        pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)
        pair.connect()
    pair.world.run()
    for thread in threads:
        assert thread.done, thread
        assert thread.exception is None
    for n, content in data.items():
        assert pair.disk.image[n * 200 * 512 :][: len(content)] == content
    pair.down()


def test_requests_are_issued_again_in_their_order(make_pair: Maker) -> None:
    pair = make_pair().up()
    pair.disk.stuck = True
    for n in range(50):  # 32 in the ring, 18 waiting
        pair.front_kernel.spawn(pair.device.write(n, bytes([n]) * 512), "write", panics=False)
    pair.world.run()
    assert pair.queue.in_flight == 32
    pair.hook(pair.front, "close")  # the backend still has everything mapped
    assert [request.sector for request in pair.device.pending] == list(range(50))
    assert pair.front_kernel.mm.used == 33
    pair.disk.stuck = False
    pair.hook(pair.back, "close")
    pair.connect()
    pair.world.run()
    assert bytes(pair.disk.image[: 50 * 512]) == b"".join(bytes([n]) * 512 for n in range(50))
    pair.down()


STATES = ["probed", "published", "ring published", "backend connected", "connected", "busy", "disconnected"]


def bring_to(pair: Any, state: str) -> Any:
    thread = None
    steps = [
        ("probed", lambda: pair.probe()),
        ("published", lambda: pair.hook(pair.back, "publish")),
        ("ring published", lambda: pair.hook(pair.front, "publish")),
        ("backend connected", lambda: pair.hook(pair.back, "connect")),
        ("connected", lambda: pair.hook(pair.front, "connect")),
    ]
    for name, step in steps:
        step()
        if name == state:
            return None
    pair.disk.stuck = state == "busy"
    thread = pair.front_kernel.spawn(pair.device.read(0, 500), "read", panics=False)
    pair.world.run()
    if state == "disconnected":
        pair.hook(pair.front, "disconnect")
    return thread


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("state", STATES)
def test_the_frontend_is_killed(make_pair: Maker, options: dict[str, Any], state: str) -> None:
    pair = make_pair(**options)
    bring_to(pair, state)
    pair.world.kill(pair.front_kernel)
    thread = pair.back_kernel.spawn(pair.back_driver.close(pair.back), "close")
    pair.world.run()
    if state == "busy":
        # Its pages are the disk's until the DMA has ended.
        assert not thread.done
        assert pair.back_kernel.grants.maps
        pair.disk.stuck = False
        pair.world.run()
    assert thread.done
    assert not pair.back_kernel.grants.maps
    assert not pair.back_kernel.events.ports
    assert pair.back_kernel.mm.used == 0
    assert not pair.back_kernel.scheduler.threads


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("state", STATES)
def test_the_backend_is_killed(make_pair: Maker, options: dict[str, Any], state: str) -> None:
    pair = make_pair(**options)
    thread = bring_to(pair, state)
    pair.world.kill(pair.back_kernel)
    pair.world.disks.clear()
    pair.hook(pair.front, "close")
    pair.world.check_no_leaks(pair.front_kernel)
    if state == "busy":
        assert not thread.done
        pair.hook(pair.front, "remove")
        assert thread.exception.errno == errno.ENXIO
        with pytest.raises(BlockError) as caught:
            pair.guest(pair.front.data.block.read(0, 1))
        assert caught.value.errno == errno.ENXIO


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("state", STATES)
def test_closing_in_any_state_and_twice(make_pair: Maker, options: dict[str, Any], state: str) -> None:
    pair = make_pair(**options)
    bring_to(pair, state)
    pair.disk.stuck = False
    for device, _ in itertools.product([pair.back, pair.front], range(2)):
        pair.hook(device, "close")
    pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)
    for device in (pair.back, pair.front):
        pair.hook(device, "remove")


def test_hundreds_of_reconnects_leave_nothing(make_pair: Maker) -> None:
    """XSA-350, and a leak check that a slow leak does not pass."""
    pair = make_pair()
    pair.probe()
    for n in range(300):
        pair.connect()
        if n % 3:
            pair.guest(pair.device.write(n, bytes([n & 255]) * 512))
        if n % 2:
            pair.close()
        else:
            pair.hook(pair.back, "close")
            pair.hook(pair.front, "close")
        pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)
        assert not pair.back_kernel.scheduler.threads
        assert not pair.front_kernel.scheduler.threads


def test_unplugging_wakes_everybody(make_pair: Maker) -> None:
    pair = make_pair().up()
    pair.disk.stuck = True
    threads = [pair.front_kernel.spawn(pair.device.read(n, 1), "read", panics=False) for n in range(50)]
    pair.world.run()
    pair.disk.stuck = False
    device = pair.device
    pair.hook(pair.front, "close")  # nobody answered in time
    pair.hook(pair.front, "remove")
    assert all(thread.exception.errno == errno.ENXIO for thread in threads)
    assert "xvda" not in pair.front_kernel.block.devices
    with pytest.raises(BlockError, match="xvda"):
        pair.guest(device.flush())
    pair.hook(pair.back, "close")
    pair.hook(pair.back, "remove")


def test_a_disk_is_waited_for_and_found_by_name(make_pair: Maker) -> None:
    pair = make_pair()
    waiting = [pair.front_kernel.spawn(pair.front_kernel.block.get("xvda"), "get") for _ in range(3)]
    other = pair.front_kernel.spawn(pair.front_kernel.block.get("xvdb"), "get")
    pair.world.run()
    assert not any(thread.done for thread in waiting)
    pair.up()
    assert all(thread.result is pair.device for thread in waiting)
    assert not other.done
    assert repr(pair.device) == "<BlockDevice xvda, 4096 sectors, connected>"
    other.cancel()
    pair.down()


def test_requests_made_while_the_backend_is_away_wait_for_it(make_pair: Maker) -> None:
    pair = make_pair().up()
    pair.close()
    thread = pair.front_kernel.spawn(pair.device.write(5, b"later".ljust(512)), "write")
    pair.world.run()
    assert not thread.done
    pair.connect()
    pair.world.run()
    assert thread.done
    assert pair.disk.image[5 * 512 :][:5] == b"later"
    pair.down()


@pytest.mark.parametrize("state", [5, 6])
def test_a_backend_that_closes_by_itself_fails_what_it_did_not_answer(make_pair: Maker, state: int) -> None:
    pair = make_pair().up()
    pair.disk.stuck = True
    threads = [pair.front_kernel.spawn(pair.device.read(n, 1), "read", panics=False) for n in range(40)]
    pair.world.run()
    pair.front.otherend_state = state
    if state == 5:
        pair.hook(pair.front, "disconnect")
    pair.hook(pair.front, "close")
    assert all(thread.exception.errno == errno.EIO for thread in threads)
    with pytest.raises(BlockError) as caught:
        pair.guest(pair.device.read(0, 1))
    assert caught.value.errno == errno.EIO
    pair.disk.stuck = False
    pair.hook(pair.back, "close")
    pair.front.otherend_state = 4
    pair.connect()
    assert pair.guest(pair.device.read(0, 1)) == bytes(512)
    pair.down()


def test_a_guest_that_shuts_down_does_not_frighten_its_threads(make_pair: Maker) -> None:
    """The frontend closes by itself: who waits for the disk goes on waiting, and is not told of an error."""
    pair = make_pair().up()
    pair.disk.stuck = True
    thread = pair.front_kernel.spawn(pair.device.read(0, 1), "read")
    pair.world.run()
    pair.hook(pair.front, "disconnect")  # nobody answers in time
    pair.front.otherend_state = 6
    pair.hook(pair.front, "close")
    pair.world.run()
    assert not thread.done
    pair.disk.stuck = False
    pair.hook(pair.back, "close")
    thread.cancel()


def test_physical_device_must_be_a_pair_of_hexadecimal_numbers(make_pair: Maker) -> None:
    for place in ("8", "8:", "sda", "8:xyz", ":1"):
        pair = make_pair()
        pair.store["backend/physical-device"] = place
        pair.probe()
        with pytest.raises(ValueError, match="MAJOR:MINOR"):
            pair.hook(pair.back, "publish")


@pytest.mark.parametrize(
    ("kind", "removable", "info"), [("disk", "0", 0), ("cdrom", "1", 3), ("cdrom", "0", 1), ("disk", "1", 2)]
)
def test_info_tells_the_kind_of_disk(make_pair: Maker, kind: str, removable: str, info: int) -> None:
    pair = make_pair()
    pair.store |= {"backend/device-type": kind, "backend/removable": removable}
    pair.up()
    assert pair.store["backend/info"] == str(info)
    assert pair.device.info == info
    assert pair.store["backend/sectors"] == "4096"
    assert pair.store["backend/sector-size"] == "512"
    pair.down()
