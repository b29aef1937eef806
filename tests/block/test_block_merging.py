"""What has to wait is merged with its neighbours on the disk, and nobody who asked can tell."""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from block_raw import RawBack

from frontends.block.merging import WINDOW
from frontends.block.pool import retry_withheld
from guest_kernel.block import FLUSH, READ, WRITE, BlockBuffer, BlockError, Transfer

Maker = Callable[..., Any]


def start(pair: Any, *coros: Any) -> list[Any]:
    """Begin operations in threads of their own while the disk does not answer; then let it."""
    pair.disk.stuck = True
    threads = [pair.front_kernel.spawn(coro, f"operation {n}", panics=False) for n, coro in enumerate(coros)]
    pair.world.run()
    pair.disk.stuck = False
    return threads


def fill_ring(pair: Any) -> list[Any]:
    """Return reads that leave no slot free, each far from all others."""
    return [pair.device.read(2048 + 2 * n, 1) for n in range(pair.queue.ring.size)]


def finish(pair: Any, threads: list[Any]) -> list[Any]:
    pair.world.run()
    assert all(thread.done for thread in threads)
    return [thread.exception or thread.result for thread in threads]


def image(pair: Any, seed: int = 0) -> bytes:
    data = random.Random(seed).randbytes(len(pair.disk.image))
    pair.disk.image[:] = data
    return data


def commands(pair: Any) -> list[tuple[int, int, int]]:
    """What the disk has done after the first ring full of requests: (operation, sector, count)."""
    return list(pair.disk.log[pair.queue.ring.size :])


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("order", [range(40), range(39, -1, -1)], ids=["ascending", "descending"])
def test_reads_that_wait_become_one(make_pair: Maker, order: range, persistent: bool) -> None:
    pair = make_pair(front={"persistent": persistent}).up()
    data = image(pair)
    threads = start(pair, *fill_ring(pair), *[pair.device.read(100 + 2 * n, 2) for n in order])
    results = finish(pair, threads)[32:]
    assert results == [data[(100 + 2 * n) * 512 : (102 + 2 * n) * 512] for n in order]
    assert all(type(result) is bytes for result in results)
    assert [(op, count) for op, _, count in commands(pair)] == [(READ, 80)]
    assert pair.device.merged == 39
    assert (pair.device.reads, pair.device.sectors_read) == (72, 32 + 80)
    pair.down()


@pytest.mark.parametrize("persistent", [True, False])
def test_writes_that_wait_become_one(make_pair: Maker, persistent: bool) -> None:
    pair = make_pair(front={"persistent": persistent}).up()
    data = random.Random(1).randbytes(60 * 512)
    sizes = [1, 8, 3, 20, 7, 21]
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    writes = [
        pair.device.write(7 + at, data[at * 512 : (at + size) * 512]) for at, size in zip(starts, sizes, strict=True)
    ]
    finish(pair, start(pair, *fill_ring(pair), *writes))
    assert bytes(pair.disk.image[7 * 512 : 67 * 512]) == data
    assert not any(pair.disk.image[: 7 * 512])
    assert not any(pair.disk.image[67 * 512 :])
    assert commands(pair) == [(WRITE, 7, 60)]
    pair.down()


@pytest.mark.parametrize(("options", "limit"), [({}, 88), ({"front": {"max_indirect_segments": 32}}, 256)])
def test_up_to_what_the_backend_takes(make_pair: Maker, options: dict[str, Any], limit: int) -> None:
    pair = make_pair(**options).up()
    data = image(pair)
    threads = start(pair, *fill_ring(pair), *[pair.device.read(8 * n, 8) for n in range(100)])
    assert b"".join(finish(pair, threads)[32:]) == data[: 800 * 512]
    sizes = [count for _, _, count in commands(pair)]
    assert sum(sizes) == 800
    assert sizes == [limit] * (800 // limit) + [800 % limit]
    pair.down()


def test_what_does_not_belong_together_stays_apart(make_pair: Maker) -> None:
    """Neither gaps, overlaps, other operations, nor requests with pages of their own."""
    pair = make_pair().up()
    device = pair.device
    buffer = BlockBuffer(pair.front_kernel.mm.alloc_pages(1))
    transfer = Transfer(0)

    async def lent() -> None:
        device.submit(transfer, READ, 508, 8, buffer)
        device.restart()

    operations = [
        device.read(500, 8),
        device.write(508, b"w" * 512),
        lent(),
        device.read(509, 1),
        device.read(499, 2),
        device.read(1508, 8),
        device.discard(508, 8),
        device.flush(),
    ]
    finish(pair, start(pair, *fill_ring(pair), *operations))
    sizes = [(sector, count) for op, sector, count in commands(pair) if op != FLUSH]
    assert sorted(sizes) == [(499, 2), (500, 8), (508, 1), (508, 8), (508, 8), (509, 1), (1508, 8)]
    assert (transfer.left, transfer.error, device.merged) == (0, 0, 0)
    buffer.release()
    pair.front_kernel.mm.free_pages_of(buffer.kept())
    pair.down()


def test_streams_do_not_keep_each_other_apart(make_pair: Maker) -> None:
    pair = make_pair().up()
    data = image(pair)
    places = [1000 * stream + 8 * n for n in range(10) for stream in range(4)]
    threads = start(pair, *fill_ring(pair), *[pair.device.read(place, 8) for place in places])
    assert finish(pair, threads)[32:] == [data[place * 512 : (place + 8) * 512] for place in places]
    assert sorted(commands(pair)) == [(READ, 1000 * stream, 80) for stream in range(4)]
    pair.down()


def test_it_looks_past_a_few_others_only(make_pair: Maker) -> None:
    """What a request costs does not grow with the queue."""
    pair = make_pair().up()
    others = [pair.device.read(3000 + 2 * n, 1) for n in range(WINDOW)]
    finish(pair, start(pair, *fill_ring(pair), pair.device.read(0, 1), *others, pair.device.read(1, 1)))
    assert pair.device.merged == 0
    pair.down()


@pytest.mark.parametrize("op", [READ, WRITE])
def test_only_those_at_fault_fail(make_pair: Maker, op: int) -> None:
    pair = make_pair().up()
    data = image(pair)
    pair.disk.bad_sectors.update((3, 17))
    do = [pair.device.read(n, 1) if op == READ else pair.device.write(n, bytes([n]) * 512) for n in range(20)]
    results = finish(pair, start(pair, *fill_ring(pair), *do))[32:]
    for n, result in enumerate(results):
        if n in (3, 17):
            assert isinstance(result, BlockError)
            assert result.errno == errno.EIO
            assert f" of 1 sectors at {n}" in str(result)
        elif op == READ:
            assert result == data[n * 512 : (n + 1) * 512]
        else:
            assert bytes(pair.disk.image[n * 512 : (n + 1) * 512]) == bytes([n]) * 512
    assert commands(pair)[0] == (op, 0, 20)
    assert sorted(commands(pair)[1:]) == [(op, n, 1) for n in range(20)]
    assert pair.device.errors == 2
    pair.down()


def test_another_backend_gets_them_anew(make_pair: Maker) -> None:
    """Merged requests in flight when the backend goes are taken apart, and merged to what the next one takes."""
    pair = make_pair(front={"max_indirect_segments": 32}).up()
    data = image(pair)
    pair.disk.stuck = True
    slots = pair.queue.ring.size
    threads = [pair.front_kernel.spawn(coro) for coro in fill_ring(pair)]
    threads += [pair.front_kernel.spawn(pair.device.read(8 * n, 8)) for n in range(40)]
    pair.world.run()
    pair.disk.stuck = False
    for _ in range(2):  # the ring, of which the answers are the first merged requests
        assert pair.queue.in_flight
        pair.world.step()
    pair.disk.stuck = True
    pair.world.run()
    assert pair.device.merged
    pair.hook(pair.front, "close")
    pair.disk.stuck = False
    pair.hook(pair.back, "close")
    pair.hook(pair.back, "publish")
    pair.store["backend/feature-max-indirect-segments"] = "0"
    pair.hook(pair.front, "publish")
    pair.hook(pair.back, "connect")
    pair.disk.log.clear()
    pair.hook(pair.front, "connect")
    results = finish(pair, threads)[slots:]
    assert b"".join(results) == data[: 320 * 512]
    assert max(count for _, _, count in pair.disk.log) == 88
    pair.down()


def test_unplugged_while_merged(make_pair: Maker) -> None:
    pair = make_pair().up()
    threads = start(pair, *fill_ring(pair), *[pair.device.read(n, 1) for n in range(20)])
    pair.disk.stuck = True
    pair.world.step()
    pair.hook(pair.front, "close")
    pair.hook(pair.front, "remove")
    pair.disk.stuck = False
    results = finish(pair, threads)
    assert {type(result) for result in results[32:]} == {BlockError}
    assert {result.errno for result in results[32:]} == {errno.ENXIO}
    pair.hook(pair.back, "close")
    retry_withheld(pair.front_kernel, pair.front_driver._withheld)
    pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)


def test_a_backend_that_answers_with_garbage(make_pair: Maker) -> None:
    """A merged request that is answered as something else fails like any other."""
    pair = make_pair()
    back = RawBack(pair)
    front = pair.front_kernel
    threads = [front.spawn(pair.device.read(2 * n, 1), panics=False) for n in range(32)]
    threads += [front.spawn(pair.device.read(1000 + n, 1), panics=False) for n in range(10)]
    pair.world.run()
    for op, ident, *_ in back.requests():
        back.answer(ident, op, 0)
    back.push()
    ((op, ident, sector, count, segments),) = back.requests()
    assert (op, sector, count) == (READ, 1000, 2)
    assert [(first, last) for _, first, last in segments] == [(0, 7), (0, 1)]
    back.answer(ident, WRITE, 0)
    back.push()
    assert pair.front.fatals
    back.unmap()
    pair.hook(pair.front, "close")
    assert [thread.exception.errno for thread in threads[32:]] == [errno.EIO] * 10
    assert all(thread.exception is None for thread in threads[:32])
    pair.world.check_no_leaks(pair.front_kernel, pair.back_kernel)


@pytest.mark.parametrize("left", [0, 1, 3, 12])
def test_without_memory_for_more_requests_they_wait(make_pair: Maker, left: int) -> None:
    """As long as something is in flight there is memory, when that is done."""
    pair = make_pair().up()
    data = image(pair)
    pair.guest(pair.device.read(0, 80))
    mm = pair.front_kernel.mm
    limit, mm.limit = mm.limit, mm.used + left
    threads = start(
        pair, *[pair.device.read(16 * n, 9) for n in range(50)], *[pair.device.read(n, 1) for n in range(9)]
    )
    results = finish(pair, threads)
    assert results[:50] == [data[16 * n * 512 : (16 * n + 9) * 512] for n in range(50)]
    assert results[50:] == [data[n * 512 : (n + 1) * 512] for n in range(9)]
    mm.limit = limit
    pair.down()


@pytest.mark.parametrize("seed", range(10))
def test_any_mixture(make_pair: Maker, seed: int) -> None:
    """Against a model: overlapping operations do not run at the same time, everything else does."""
    rng = random.Random(seed)
    pair = make_pair(
        shuffled=True,
        seed=seed,
        front={"max_indirect_segments": rng.choice([0, 0, 16, 32]), "persistent": rng.random() < 0.7},
        back={"persistent": rng.random() < 0.7},
    ).up()
    model = bytearray(image(pair, seed))
    pair.disk.bad_sectors.add(2222)
    failed = []

    async def one(sector: int, count: int, write: bool) -> None:
        fails = sector <= 2222 < sector + count
        place = slice(sector * 512, (sector + count) * 512)
        try:
            if write:
                data = random.Random(sector).randbytes(count * 512)
                await pair.device.write(sector, data)
                model[place] = data
            else:
                assert await pair.device.read(sector, count) == model[place]
        except BlockError as failure:
            failed.append((failure.errno, fails))
            model[place] = pair.disk.image[place]
        else:
            assert not fails

    async def main() -> None:
        for _ in range(5):
            cuts = [0, *sorted(rng.sample(range(1, 4096), 200)), 4096]
            ranges = [(start, end - start) for start, end in itertools.pairwise(cuts)]
            if rng.random() < 0.5:
                rng.shuffle(ranges)
            threads = [pair.front_kernel.spawn(one(*each, rng.random() < 0.5), "one") for each in ranges]
            for thread in threads:
                await thread.join()

    pair.guest(main())
    assert pair.device.merged
    assert pair.disk.image == model
    assert failed == [(errno.EIO, True)] * 5
    pair.down()
