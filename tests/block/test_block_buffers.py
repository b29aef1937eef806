"""Transfers to and from pages of the caller's: granted as they are, taken back, lost to a backend that keeps them."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import pytest

from guest_kernel.block import FLUSH, READ, WRITE, BlockBuffer, Transfer

Maker = Callable[..., Any]
MODES = [
    pytest.param({}, id="persistent"),
    pytest.param({"back": {"persistent": False}}, id="backend-not-persistent"),
    pytest.param({"front": {"persistent": False}}, id="frontend-not-persistent"),
    pytest.param({"back": {"max_persistent_grants": 7}}, id="few-persistent"),
    pytest.param({"guest_pages": 9000}, id="large-guest"),
]


class Ends(Transfer):
    """Counts how often it has ended."""

    def __init__(self) -> None:
        super().__init__(0)
        self.times = 0

    def complete(self) -> None:
        self.times += 1


def make_buffer(pair: Any, pages: int) -> BlockBuffer:
    return BlockBuffer(pair.front_kernel.mm.alloc_pages(pages))


def free_buffer(pair: Any, buffer: BlockBuffer) -> None:
    buffer.release()
    for page in buffer.kept():
        pair.front_kernel.mm.free_page(page)


def fill(buffer: BlockBuffer, data: bytes) -> None:
    for n, page in enumerate(buffer.pages):
        part = data[n * 4096 : (n + 1) * 4096]
        page.view[: len(part)] = part


def content(buffer: BlockBuffer, size: int) -> bytes:
    return b"".join(bytes(page.view) for page in buffer.pages)[:size]


def perform(pair: Any, *operations: tuple[Any, ...]) -> list[Ends]:
    """Submit operations, start them all at once, and run until nothing moves."""
    ends = []
    for operation in operations:
        end = Ends()
        pair.device.submit(end, *operation)
        ends.append(end)
    pair.device.restart()
    pair.world.run()
    return ends


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("count", [1, 8, 9, 88, 89, 500, 2048])
def test_write_from_a_buffer_and_read_into_another(make_pair: Maker, options: dict[str, Any], count: int) -> None:
    pair = make_pair(**options).up()
    data = random.Random(count).randbytes(count * 512)
    source, target = make_buffer(pair, -(-count // 8)), make_buffer(pair, -(-count // 8))
    fill(source, data)
    (end,) = perform(pair, (WRITE, 64, count, source))
    assert (end.times, end.left, end.error) == (1, 0, 0)
    assert pair.disk.image[64 * 512 : (64 + count) * 512] == data
    (end,) = perform(pair, (READ, 64, count, target))
    assert (end.times, end.error) == (1, 0)
    assert content(target, len(data)) == data
    free_buffer(pair, source)
    free_buffer(pair, target)
    pair.down()


@pytest.mark.parametrize("options", MODES)
def test_parts_of_a_buffer_and_many_operations_at_once(make_pair: Maker, options: dict[str, Any]) -> None:
    pair = make_pair(shuffled=True, **options).up()
    rng = random.Random(1)
    buffer = make_buffer(pair, 64)
    data = rng.randbytes(64 * 4096)
    fill(buffer, data)
    order = list(range(64))
    rng.shuffle(order)
    ends = perform(pair, *((WRITE, 8 * n, 8, buffer, n) for n in order))
    assert [end.times for end in ends] == [1] * 64
    assert pair.disk.image[: len(data)] == data
    for page in buffer.pages:
        page.view[:] = bytes(4096)
    perform(pair, *((READ, 8 * n, 8, buffer, n) for n in order), (FLUSH, 0, 0))
    assert content(buffer, len(data)) == data
    assert pair.guest(pair.device.read(0, 512)) == data, "and the ordinary way works beside it"
    free_buffer(pair, buffer)
    pair.down()


def test_the_grants_end_with_the_connection(make_pair: Maker) -> None:
    pair = make_pair().up()
    buffer = make_buffer(pair, 16)
    perform(pair, (WRITE, 0, 128, buffer))
    assert len(pair.front_kernel.grants.entries) > 16
    pair.close()
    assert not pair.front_kernel.grants.entries
    assert not buffer.lost
    free_buffer(pair, buffer)
    pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_page_that_the_backend_keeps_is_lost_and_not_reused(make_pair: Maker, persistent: bool) -> None:
    """XSA-396, for pages of the caller's: the frontend keeps the page until the backend lets go of it."""
    pair = make_pair(front={"persistent": persistent}).up()
    guest = pair.front_kernel
    buffer = make_buffer(pair, 4)
    perform(pair, (WRITE, 0, 32, buffer))
    pair.device.submit(Ends(), READ, 0, 8, buffer, 1)  # while this is under way its page is granted in any case
    pair.device.restart()
    page = buffer.pages[1]
    (ref,) = [ref for ref, entry in guest.grants.entries.items() if entry[1] == page.mfn]
    ((status, handle, maddr),) = pair.back_kernel.grants.map_device(1, [ref], True)
    assert status == 0
    pair.world.run()
    pair.close()
    assert buffer.lost == {1}
    free_buffer(pair, buffer)
    assert guest.mm.used == 1, "withheld, not freed"
    pair.back_kernel.grants.unmap_device([(handle, maddr)])
    pair.connect()  # the next connection looks whether it has come back
    pair.down()


def test_a_buffer_that_has_lost_a_page_is_of_no_use(make_pair: Maker) -> None:
    pair = make_pair().up()
    buffer = make_buffer(pair, 4)
    buffer.lose(2)
    (end,) = perform(pair, (READ, 0, 8, buffer))
    assert (end.times, end.error) == (1, errno.EIO)
    assert buffer.kept() == [buffer.pages[n] for n in (0, 1, 3)]
    buffer.lost.clear()
    free_buffer(pair, buffer)
    pair.down()


def test_errors_come_once_for_all_parts(make_pair: Maker) -> None:
    pair = make_pair(sectors=256).up()
    buffer = make_buffer(pair, 64)
    (end,) = perform(pair, (READ, 200, 512, buffer))
    assert (end.times, end.left) == (1, 0)
    assert end.error == errno.EIO
    free_buffer(pair, buffer)
    pair.down()
