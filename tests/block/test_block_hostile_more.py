"""Hostile peers of the block drivers, at the places that the two larger files do not reach."""

import errno
from collections.abc import Callable
from typing import Any

import pytest
from block_raw import RawBack, RawFront
from test_block_indirect import IndirectFront

from guest_kernel.block import BlockError

Maker = Callable[..., Any]
READ, WRITE = 0, 1
OKAY, ERROR = 0, -1


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("position", range(24))
def test_a_bad_grant_at_each_place_of_an_indirect_page(make_pair: Maker, persistent: bool, position: int) -> None:
    """XSA-365: the request fails and transfers nothing; those beside it do what they should."""
    pair = make_pair()
    front = IndirectFront(pair, persistent=persistent)
    refs = [front.grant(fill=bytes([n + 1]) * 4096) for n in range(24)]
    segments = [(ref, 0, 7) for ref in refs]
    good, bad = front.table(segments), front.table([*segments[:position], (99999, 0, 7), *segments[position + 1 :]])
    before = bytes(pair.disk.image[24 * 4096 : 48 * 4096])
    front.put_indirect(WRITE, 1, 0, good, 24)
    front.put_indirect(WRITE, 2, 192, bad, 24)
    front.put(WRITE, 3, 1000, [(refs[0], 0, 7)])
    assert sorted(front.push()) == [(1, WRITE, OKAY), (2, WRITE, ERROR), (3, WRITE, OKAY)]
    assert pair.disk.image[: 24 * 4096] == b"".join(bytes([n + 1]) * 4096 for n in range(24))
    assert pair.disk.image[24 * 4096 : 48 * 4096] == before
    assert front.indirect(READ, 0, segments) == OKAY
    front.down()


@pytest.mark.parametrize("persistent", [True, False])
def test_neighbours_in_memory_that_are_no_neighbours_in_the_request(make_pair: Maker, persistent: bool) -> None:
    """XSA-229: whatever is transferred in one piece, no byte outside of the segments is touched or written out."""
    pair = make_pair()
    front = RawFront(pair, persistent=persistent)
    pair.disk.image[:] = bytes(index // 512 % 251 + 1 for index in range(len(pair.disk.image)))
    refs = [front.grant(fill=b"\xee" * 4096) for _ in range(4)]
    strangers = [front.kernel.mm.alloc_page() for _ in range(2)]
    for first, last in [(0, 7), (0, 3), (4, 7), (2, 5)]:
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 2], [1, 3, 0]):
            for page in front.pages[:4]:
                page.view[:] = b"\xee" * 4096
            assert front.one(READ, 16, [(refs[n], first, last) for n in order]) == OKAY
            size = (last - first + 1) * 512
            for place, n in enumerate(order):
                at = 16 * 512 + place * size
                expected = bytearray(b"\xee" * 4096)
                expected[first * 512 : first * 512 + size] = pair.disk.image[at : at + size]
                assert bytes(front.pages[n].view) == expected
            assert [bytes(page.view) for page in strangers] == [bytes(4096)] * 2
    for page in strangers:
        front.kernel.mm.free_page(page)
    front.down()


def test_a_storm_of_events_from_the_backend(make_pair: Maker) -> None:
    """XSA-391: a thousand events without an answer cost the guest no hypercall and no event of its own."""
    pair = make_pair()
    back = RawBack(pair)
    thread = pair.front_kernel.spawn(pair.device.read(0, 1), "read", panics=False)
    pair.world.run()
    ((op, ident, _, _, _),) = back.requests()
    sent, called = pair.world.notifications, pair.front_kernel.grants.hypercalls
    for _ in range(1000):
        back.kernel.events.notify(back.port)
        pair.world.run()
    assert not thread.done
    assert pair.world.notifications == sent + 1000
    assert pair.front_kernel.grants.hypercalls == called
    back.answer(ident, op, OKAY)
    back.push()
    assert thread.result == bytes(512)
    back.unmap()
    pair.hook(pair.front, "close")
    pair.world.check_no_leaks(pair.front_kernel, pair.back_kernel)


def test_a_disk_that_is_removed_before_it_has_reconnected(make_pair: Maker) -> None:
    """XSA-465: the rings are gone, the new ones are not there yet, and the device is taken away."""
    pair = make_pair().up()
    device = pair.device
    waiting = pair.front_kernel.spawn(device.read(0, 1), "read", panics=False)
    pair.hook(pair.back, "close")
    pair.hook(pair.front, "close")
    pair.hook(pair.front, "remove")
    pair.world.run()
    assert waiting.done
    with pytest.raises(BlockError) as caught:
        pair.guest(device.read(0, 1))
    assert caught.value.errno == errno.ENXIO
    pair.world.check_no_leaks(pair.front_kernel, pair.back_kernel)
