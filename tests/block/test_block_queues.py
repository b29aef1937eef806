"""A frontend with several rings: how many, which of them a request takes, and what happens when one of them fails."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from block_scene import RANDOM_TRAFFIC, Scene

from guest_kernel.block import READ, WRITE, BlockBuffer, BlockError, Transfer
from guest_kernel.errors import OutOfMemory

Maker = Callable[..., Any]


def nodes(pair: Any) -> dict[str, str]:
    return {key.removeprefix("frontend/"): value for key, value in pair.store.items() if key.startswith("frontend/")}


def queues(pair: Any) -> list[Any]:
    found: list[Any] = pair.front.data.rings.queues
    return found


def start(pair: Any, vcpu: int, coro: Any) -> Any:
    """Run a thread on a vCPU until it waits."""
    pair.front_kernel.cpu.vcpu_id = vcpu
    thread = pair.front_kernel.spawn(coro, f"on vCPU {vcpu}", panics=False)
    pair.front_kernel.run_ready()
    pair.front_kernel.cpu.vcpu_id = 0
    return thread


@pytest.mark.parametrize(
    ("vcpus", "offered", "wanted", "count"),
    [
        (1, "4", None, 1),
        (2, "4", None, 2),
        (4, "4", None, 4),
        (8, "4", None, 4),
        (4, "3", None, 3),
        (4, "1", None, 1),
        (4, "0", None, 1),
        (4, None, None, 1),
        (4, "4294967295", 2, 2),
        (2, "4", 4, 2),
        (4, "4", 0, 1),
    ],
)
def test_as_many_as_there_are_vcpus_and_both_ends_want(
    make_pair: Maker, vcpus: int, offered: str | None, wanted: int | None, count: int
) -> None:
    pair = make_pair(vcpus=vcpus, front={} if wanted is None else {"max_queues": wanted})
    pair.probe()
    pair.hook(pair.back, "publish")
    pair.store.pop("backend/multi-queue-max-queues")
    if offered is not None:
        pair.store["backend/multi-queue-max-queues"] = offered
    pair.hook(pair.front, "publish")
    pair.hook(pair.back, "connect")
    pair.hook(pair.front, "connect")
    assert len(queues(pair)) == len(pair.back.data.queues) == count
    found = nodes(pair)
    if count == 1:
        assert "multi-queue-num-queues" not in found
        assert not any(key.startswith("queue-") for key in found)
        assert {"ring-ref", "event-channel"} <= set(found)
    else:
        assert found["multi-queue-num-queues"] == str(count)
        assert {key for key in found if "ring-ref" in key} == {f"queue-{n}/ring-ref" for n in range(count)}
        assert {key for key in found if "event" in key} == {f"queue-{n}/event-channel" for n in range(count)}
        assert pair.front_kernel.events.vcpus == {queue.port: n for n, queue in enumerate(queues(pair))}
    pair.guest(pair.device.write(7, b"abcd" * 128))
    assert pair.guest(pair.device.read(7, 1)) == b"abcd" * 128
    pair.down()


def test_the_command_line_asks_for_fewer(make_pair: Maker) -> None:
    pair = make_pair(vcpus=4)
    pair.front_kernel.cmdline = "xen_blkfront.max_queues=2 xen_blkfront.max_ring_page_order=1"
    pair.up()
    assert [queue.ring.size for queue in queues(pair)] == [64, 64]
    assert {key for key in nodes(pair) if "ring-ref" in key} == {
        f"queue-{q}/ring-ref{n}" for q in (0, 1) for n in (0, 1)
    }
    assert pair.guest(pair.device.read(7, 1)) == bytes(512)
    pair.down()


@pytest.mark.parametrize("garbage", ["", "-1", "two", "4294967296"])
def test_an_offer_that_is_no_number(make_pair: Maker, garbage: str) -> None:
    pair = make_pair(vcpus=4)
    pair.probe()
    pair.hook(pair.back, "publish")
    pair.store["backend/multi-queue-max-queues"] = garbage
    with pytest.raises(ValueError, match="multi-queue-max-queues is"):
        pair.hook(pair.front, "publish")
    pair.hook(pair.front, "close")
    pair.hook(pair.back, "close")
    pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)


def test_a_request_takes_the_ring_of_its_vcpu(make_pair: Maker) -> None:
    pair = make_pair(vcpus=6).up()
    pair.disk.stuck = True
    threads = [start(pair, vcpu, pair.device.read(10 * vcpu, 1)) for vcpu in (0, 1, 2, 3, 4, 5, 3)]
    assert [queue.in_flight for queue in queues(pair)] == [2, 2, 1, 2]
    pair.world.run()
    pair.disk.stuck = False
    pair.world.run()
    assert all(thread.result == bytes(512) for thread in threads)
    pair.down()


def test_whichever_ring_has_room_takes_what_waits(make_pair: Maker) -> None:
    pair = make_pair(vcpus=4).up()
    pair.disk.stuck = True
    threads = [start(pair, 2, pair.device.read(2 * n, 1)) for n in range(40)]
    assert [queue.in_flight for queue in queues(pair)] == [0, 0, 32, 0]
    threads.append(start(pair, 1, pair.device.read(1000, 1)))
    assert [queue.in_flight for queue in queues(pair)] == [0, 9, 32, 0]
    assert not pair.device.pending
    pair.world.run()
    pair.disk.stuck = False
    pair.world.run()
    assert all(thread.result == bytes(512) for thread in threads)
    pair.down()


BEFORE_AND_AFTER = [
    ((4, 0), (1, 0)),
    ((1, 0), (4, 0)),
    ((4, 2), (4, 0)),
    ((1, 2), (1, 0)),
    ((1, 2), (4, 0)),
    ((2, 1), (1, 1)),
    ((4, 0), (2, 2)),
    ((1, 0), (1, 3)),
]


@pytest.mark.parametrize(("before", "after"), BEFORE_AND_AFTER)
def test_another_backend_takes_other_rings(make_pair: Maker, before: tuple[int, int], after: tuple[int, int]) -> None:
    """What the first one was told is still in the store: the second one must not believe it."""
    pair = make_pair(vcpus=4, front={"max_ring_page_order": 4})
    pair.probe()
    for turn, (count, order) in enumerate((before, after, before)):
        pair.hook(pair.back, "publish")
        pair.store["backend/multi-queue-max-queues"] = str(count)
        pair.store["backend/max-ring-page-order"] = str(order)
        pair.hook(pair.front, "publish")
        pair.hook(pair.back, "connect")
        pair.hook(pair.front, "connect")
        assert [queue.ring.size for queue in queues(pair)] == [32 << order] * count
        assert [queue.server.ring.size for queue in pair.back.data.queues] == [32 << order] * count
        for vcpu in range(4):
            thread = start(pair, vcpu, pair.device.write(10 * turn + vcpu, bytes([turn + vcpu]) * 512))
            pair.world.run()
            assert thread.done
            assert thread.exception is None
        pair.close()
        pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)


def test_what_all_rings_had_is_issued_again(make_pair: Maker) -> None:
    pair = make_pair(vcpus=4).up()
    data = random.Random(1).randbytes(len(pair.disk.image))
    pair.disk.image[:] = data
    pair.disk.stuck = True
    threads = [start(pair, n % 4, pair.device.read(20 * n, 8)) for n in range(150)]
    pair.world.run()
    assert [queue.in_flight for queue in queues(pair)] == [32] * 4
    pair.hook(pair.front, "close")
    pair.disk.stuck = False
    pair.hook(pair.back, "close")
    pair.connect()
    pair.world.run()
    assert [thread.result for thread in threads] == [data[20 * n * 512 : (20 * n + 8) * 512] for n in range(150)]
    pair.down()


@pytest.mark.parametrize("bad", range(4))
def test_garbage_in_one_ring_ends_the_connection(make_pair: Maker, bad: int) -> None:
    pair = make_pair(vcpus=4).up()
    pair.disk.stuck = True
    threads = [start(pair, n % 4, pair.device.read(20 * n, 9)) for n in range(140)]
    pair.world.run()
    queues(pair)[bad].ring.shared[2] += 1000
    pair.back_kernel.events.notify(pair.back.data.queues[bad].port)
    pair.world.run()
    assert len(pair.front.fatals) == 1
    pair.hook(pair.front, "close")
    assert {thread.exception.errno for thread in threads} == {errno.EIO}
    with pytest.raises(BlockError):
        pair.guest(pair.device.read(0, 1))
    pair.disk.stuck = False
    pair.hook(pair.back, "close")
    pair.connect()
    assert pair.guest(pair.device.read(0, 1)) == bytes(512)
    pair.down()


def test_closing_waits_for_every_ring(make_pair: Maker) -> None:
    pair = make_pair(vcpus=3).up()
    pair.disk.stuck = True
    threads = [start(pair, vcpu, pair.device.read(20 * vcpu, 9)) for vcpu in range(3)]
    for _ in range(10):
        pair.world.step()
    closing = pair.front_kernel.spawn(pair.front.driver.disconnect(pair.front), "disconnect")
    for _ in range(3):
        pair.front_kernel.run_ready()
    assert not closing.done
    pair.disk.stuck = False
    pair.world.run()
    assert closing.done
    assert not pair.front.errors
    assert all(thread.result == bytes(9 * 512) for thread in threads)
    pair.close()
    pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)


@pytest.mark.parametrize("left", range(9))
def test_memory_for_some_of_the_rings_only(make_pair: Maker, left: int) -> None:
    """Nothing is left of those that were made."""
    pair = make_pair(vcpus=4, front={"max_ring_page_order": 1})
    pair.probe()
    pair.hook(pair.back, "publish")
    mm = pair.front_kernel.mm
    limit, mm.limit = mm.limit, left
    if left < 8:
        with pytest.raises(OutOfMemory):
            pair.hook(pair.front, "publish")
        assert pair.front.data.rings is None
    else:
        pair.hook(pair.front, "publish")
    pair.hook(pair.front, "close")
    pair.hook(pair.back, "close")
    pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)
    mm.limit = limit
    pair.connect()
    pair.down()


@pytest.mark.parametrize("persistent", [True, False])
def test_a_buffer_goes_through_any_ring(make_pair: Maker, persistent: bool) -> None:
    """Its pages are granted once, and given back once."""
    pair = make_pair(vcpus=4, front={"persistent": persistent}).up()
    guest = pair.front_kernel
    buffer = BlockBuffer(guest.mm.alloc_pages(16))
    data = random.Random(3).randbytes(16 * 4096)

    async def transfer(op: int, sector: int, count: int, first: int) -> None:
        whole = Transfer(0)
        pair.device.submit(whole, op, sector, count, buffer, first)
        pair.device.restart()
        if whole.left:
            await whole.waiters.wait()
        assert whole.error == 0

    granted = set()
    for vcpu in (3, 0, 1, 2):
        for n, page in enumerate(buffer.pages):
            page.view[:] = data[n * 4096 : (n + 1) * 4096]
        start(pair, vcpu, transfer(WRITE, 0, 128, 0))
        pair.world.run()
        for n in range(16):
            buffer.pages[n].view[:] = bytes(4096)
            start(pair, (vcpu + n) % 4, transfer(READ, 8 * (15 - n), 8, n))
        pair.world.run()
        assert b"".join(bytes(page.view) for page in reversed(buffer.pages)) == data
        granted |= {ref for ref, entry in guest.grants.entries.items() if entry[1] in {p.mfn for p in buffer.pages}}
    assert len(granted) == (16 if persistent else 0)
    pair.close()
    assert not buffer.lost
    buffer.release()
    guest.mm.free_pages_of(buffer.kept())
    pair.world.check_no_leaks(pair.back_kernel, guest)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("order", [0, 3])
def test_the_pages_of_all_slots_have_a_bound(make_pair: Maker, order: int, persistent: bool) -> None:
    """However many rings there are, and however large: an eighth of the guest's memory, and then requests wait."""
    pair = make_pair(
        vcpus=4,
        guest_pages=4096,
        world_pages=9000,
        sectors=1 << 16,
        front={"max_ring_page_order": order, "persistent": persistent},
    ).up()
    used = pair.front_kernel.mm.used
    data = random.Random(2).randbytes(len(pair.disk.image))
    pair.disk.image[:] = data
    pair.disk.stuck = True
    threads = [start(pair, n % 4, pair.device.read(100 * n, 88)) for n in range(600)]
    most = pair.front_kernel.mm.used - used
    assert 512 - 11 < most <= 512
    pair.world.run()
    pair.disk.stuck = False
    pair.world.run()
    assert [thread.result for thread in threads] == [data[100 * n * 512 : (100 * n + 88) * 512] for n in range(600)]
    assert pair.front_kernel.mm.used - used <= 512
    # With nothing else under way a ring takes over the pages of another one.
    for turn in range(2 * pair.queue.ring.size):
        for vcpu in range(4):
            thread = start(pair, vcpu, pair.device.read(turn, 88 - turn % 7))
            pair.world.run()
            assert thread.result == data[turn * 512 : (turn + 88 - turn % 7) * 512]
    threads = [start(pair, n % 4, pair.device.read(8 * n, 8)) for n in range(300)]
    pair.world.run()
    assert [thread.result for thread in threads] == [data[4096 * n : 4096 * n + 4096] for n in range(300)]
    assert pair.front_kernel.mm.used - used <= 512
    pair.down()


@pytest.mark.parametrize("persistent", [True, False])
def test_without_memory_a_ring_takes_the_pages_of_another(make_pair: Maker, persistent: bool) -> None:
    pair = make_pair(vcpus=2, front={"persistent": persistent}).up()
    data = random.Random(6).randbytes(len(pair.disk.image))
    pair.disk.image[:] = data
    for count in (8, 80):
        pair.guest(pair.device.read(0, count))
    mm = pair.front_kernel.mm
    mm.limit = mm.used
    for turn in range(20):
        thread = start(pair, turn % 2, pair.device.read(turn, 80 + turn % 9))
        pair.world.run()
        assert thread.result == data[turn * 512 : (turn + 80 + turn % 9) * 512]
    pair.down()


def test_a_request_larger_than_the_bound_goes_alone(make_pair: Maker) -> None:
    pair = make_pair(
        vcpus=2, guest_pages=2000, world_pages=9000, sectors=1 << 16, front={"max_indirect_segments": 1024},
        back={"max_indirect_segments": 1024},
    ).up()  # fmt: skip
    data = random.Random(4).randbytes(len(pair.disk.image))
    pair.disk.image[:] = data
    threads = [start(pair, n % 2, pair.device.read(8192 * (n % 4), 8192)) for n in range(6)]
    pair.world.run()
    assert [thread.result for thread in threads] == [
        data[8192 * (n % 4) * 512 : (8192 * (n % 4) + 8192) * 512] for n in range(6)
    ]
    pair.down()


@pytest.mark.parametrize("seed", range(8))
def test_any_mixture_from_all_vcpus(make_pair: Maker, seed: int) -> None:
    rng = random.Random(seed)
    pair = make_pair(
        vcpus=rng.choice([2, 3, 4, 7]),
        shuffled=True,
        seed=seed,
        front={"max_ring_page_order": rng.choice([0, 0, 1]), "persistent": rng.random() < 0.7},
        back={"persistent": rng.random() < 0.7, "max_persistent_grants": rng.choice([7, 1056])},
    ).up()
    model = bytearray(rng.randbytes(len(pair.disk.image)))
    pair.disk.image[:] = model
    kernel = pair.front_kernel

    async def worker(first: int, room: int) -> None:
        for _ in range(15):
            count = rng.choice([1, 3, 8, 30, 88, 100])
            at = first + rng.randrange(room - count)
            kernel.cpu.vcpu_id = rng.randrange(kernel.smp.count)
            if rng.random() < 0.6:
                data = rng.randbytes(count * 512)
                await pair.device.write(at, data)
                model[at * 512 : (at + count) * 512] = data
            else:
                assert await pair.device.read(at, count) == model[at * 512 : (at + count) * 512]
            if rng.random() < 0.1:
                await pair.device.flush()

    async def main() -> None:
        for thread in [kernel.spawn(worker(n * 128, 128)) for n in range(32)]:
            await thread.join()

    pair.guest(main())
    assert pair.disk.image == model
    pair.down()


@pytest.mark.parametrize("options", [{"pcpus": 4}, {"schedule": "random:11"}], ids=str)
def test_guests_with_several_vcpus(tmp_path: Path, options: dict[str, Any]) -> None:
    scene = Scene(tmp_path)
    body = RANDOM_TRAFFIC.format(seed=7).replace(
        "count = rng", "await self.kernel.cpu_burn(200000)\n        count = rng"
    )
    body = body.replace("disk.queue.pool", "disk.queue.queues[3].pool")
    body += """
word = await self.kernel.xenbus.read("device/vbd/51712/multi-queue-num-queues")
self.print([queue.name for queue in disk.queue.queues], word)
assert all(queue.ring.rsp_cons for queue in disk.queue.queues), "some vCPU has not used its ring"
"""
    guest = scene.guest("guest", body, scene.image("a.img"), vcpus=4)
    result = scene.run(guest, **options)
    assert result.exit_code == 0, scene.text
    assert "['xvda/0', 'xvda/1', 'xvda/2', 'xvda/3'] 4" in scene.text
