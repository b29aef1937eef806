"""A vchan's byte rings and shapes, without domains."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_kernel.vchan.channel import Vchan
from guest_kernel.vchan.ring import CLI_LIVE, CLI_NOTIFY, GRANTS, LEFT, PAGE, RIGHT, Reader, Shape, VchanError, Writer
from hypervisor.abi.io.libxenvchan import vchan_interface


def ends(start: int, piece: int, number: int) -> tuple[Any, Reader, Writer]:
    """Both ends of one ring whose indices are at `start`."""
    words = memoryview(bytearray(PAGE)).cast("I")
    words[LEFT] = words[LEFT + 1] = start
    pieces = [memoryview(bytearray(piece)) for _ in range(number)]
    return words, Reader(words, LEFT, pieces), Writer(words, LEFT, pieces)


@given(
    st.sampled_from([0, 1000, 2**32 - 1, 2**32 - 700, 2**31]),
    st.sampled_from([(1024, 1), (256, 4), (64, 2)]),
    st.lists(st.tuples(st.binary(max_size=1500), st.integers(0, 1500))),
)
def test_bytes_come_out_as_they_went_in(start: int, memory: tuple[int, int], steps: list[tuple[bytes, int]]) -> None:
    _, reader, writer = ends(start, *memory)
    model = bytearray()
    for data, limit in steps:
        count = writer.put(memoryview(data))
        assert count == min(len(data), reader.size - len(model))
        model += data[:count]
        assert reader.ready() == len(model)
        assert reader.take(limit) == model[:limit]
        del model[:limit]
        assert writer.room() == reader.size - len(model)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_any_index_of_the_peer(own: int, other: int) -> None:
    """XSA-86: a length is within the ring, or the channel is broken; a full ring is processed."""
    words, reader, writer = ends(own, 1024, 1)
    words[LEFT + 1] = other
    if (other - own) & 0xFFFF_FFFF <= 1024:
        assert len(reader.take(1 << 20)) == (other - own) & 0xFFFF_FFFF
    else:
        with pytest.raises(VchanError, match="index"):
            reader.take(1 << 20)
    words[LEFT] = other
    if (own - other) & 0xFFFF_FFFF <= 1024:
        assert writer.room() == 1024 - ((own - other) & 0xFFFF_FFFF)
    else:
        with pytest.raises(VchanError, match="index"):
            writer.put(memoryview(b"x"))


def test_what_the_peer_writes_into_ones_own_index_changes_nothing() -> None:
    words, reader, writer = ends(0, 1024, 1)
    assert writer.put(memoryview(b"first")) == 5
    words[LEFT + 1] = 5000
    assert writer.put(memoryview(b"second")) == 6
    words[LEFT] = 77
    assert reader.take(100) == b"firstsecond"


@pytest.mark.parametrize(
    ("sizes", "orders", "pages"),
    [
        ((1, 1), (10, 11), 0),
        ((1024, 1025), (10, 11), 0),
        ((2048, 2048), (11, 12), 1),
        ((4096, 4096), (12, 12), 2),
        ((4097, 1), (13, 10), 2),
        ((1 << 20, 1 << 20), (20, 20), 512),
    ],
)
def test_the_smallest_shape(sizes: tuple[int, int], orders: tuple[int, int], pages: int) -> None:
    shape = Shape.of_sizes(*sizes)
    assert ((shape.left, shape.right), shape.pages) == (orders, pages)


@pytest.mark.parametrize("sizes", [((1 << 20) + 1, 1), (1, 1 << 21), (1 << 20, 1)])
def test_sizes_that_cannot_be(sizes: tuple[int, int]) -> None:
    """The last: 256 references do not fit in front of a ring at byte 1024."""
    with pytest.raises(ValueError, match=r"at most|reaches into"):
        Shape.of_sizes(*sizes)


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_any_shape_of_a_server(left: int, right: int) -> None:
    """What is accepted has rings and a list of grants that lie beside each other."""
    header = bytearray(PAGE)
    vchan_interface.pack_into(header, 0, left_order=left, right_order=right)
    try:
        shape = Shape.read(bytes(header))
    except VchanError:
        return
    places = [(1 << order, 2 << order) for order in (left, right) if order < 12]
    places.append((0, GRANTS + 4 * shape.pages))
    places.sort()
    assert all(a[1] <= b[0] for a, b in pairwise(places))
    assert places[-1][1] <= PAGE


NO_KERNEL: Any = SimpleNamespace()


class Late:
    """A page on which the peer acts right after it was asked to tell, as another processor may: too late to be told."""

    def __init__(self, page: memoryview, asking: int, act: Any) -> None:
        self.page, self.asking, self.act = page, asking, act

    def __getitem__(self, at: int) -> int:
        return self.page[at]

    def __setitem__(self, at: int, value: int) -> None:
        act, self.act = self.act, lambda: None
        if at == self.asking:
            act()
        self.page[at] = value


def last_words(words: Any, page: Any) -> None:
    """The peer writes, and leaves."""
    words[LEFT + 1] += 3
    page[CLI_LIVE] = 0


@pytest.mark.parametrize("leaves", [False, True])
def test_a_reader_does_not_sleep_over_what_came_while_it_asked(leaves: bool) -> None:
    page = memoryview(bytearray(PAGE))
    vchan_interface.pack_into(page, 0, cli_live=1, srv_live=1)
    words = page.cast("I")
    left, right = Shape(10, 11).pieces(page, [])
    left[0][:3] = b"abc"
    channel = Vchan(NO_KERNEL, page, (Reader(words, LEFT, left), Writer(words, RIGHT, right)), server=True)
    come = (lambda: last_words(words, page)) if leaves else (lambda: words.__setitem__(LEFT + 1, 3))
    late: Any = Late(page, CLI_NOTIFY, come)
    channel._page = late
    with pytest.raises(StopIteration) as stop:
        channel.read().send(None)
    assert stop.value.value == b"abc"


def test_a_writer_does_not_sleep_over_room_that_came_while_it_asked() -> None:
    page = memoryview(bytearray(PAGE))
    vchan_interface.pack_into(page, 0, cli_live=1, srv_live=1)
    words = page.cast("I")
    left, right = Shape(11, 10).pieces(page, [])
    channel = Vchan(NO_KERNEL, page, (Reader(words, LEFT, left), Writer(words, RIGHT, right)), server=True)
    late: Any = Late(page, CLI_NOTIFY, lambda: words.__setitem__(RIGHT, 1024))
    channel._page = late
    with pytest.raises(StopIteration):
        channel.write(bytes(2000)).send(None)
    assert words[RIGHT + 1] == 2000
