"""The block frontend against backends that lie: the guest gets an error, never somebody else's page or a crash."""

import errno
from collections.abc import Callable
from typing import Any

import pytest
from block_raw import RawBack

from guest_kernel.block import BlockError

Maker = Callable[..., Any]
OKAY, ERROR, EOPNOTSUPP = 0, -1, -2


def start(pair: Any, *reads: tuple[int, int]) -> list[Any]:
    """Start reads in threads of the guest; they wait for the test's backend."""
    threads = [pair.front_kernel.spawn(pair.device.read(*read), "read", panics=False) for read in reads]
    pair.world.run()
    return threads


def outcome(thread: Any) -> Any:
    assert thread.done, f"{thread} is still waiting"
    return thread.exception.errno if thread.exception is not None else thread.result


@pytest.mark.parametrize(
    ("status", "expected"),
    [(ERROR, errno.EIO), (EOPNOTSUPP, errno.EOPNOTSUPP), (1, errno.EIO), (-32768, errno.EIO), (OKAY, bytes(512))],
)
def test_statuses(make_pair: Maker, status: int, expected: Any) -> None:
    pair = make_pair()
    back = RawBack(pair)
    (thread,) = start(pair, (0, 1))
    ((op, ident, _, _, _),) = back.requests()
    back.answer(ident, op, status)
    back.push()
    assert outcome(thread) == expected
    back.unmap()
    pair.hook(pair.front, "close")
    pair.world.check_no_leaks(pair.front_kernel, pair.back_kernel)


def test_answers_in_any_order(make_pair: Maker) -> None:
    pair = make_pair()
    back = RawBack(pair)
    threads = start(pair, *[(2 * n, 1) for n in range(40)])  # apart, so that those that wait stay apart
    seen = 0
    while seen < 40:
        requests = back.requests()
        assert requests
        seen += len(requests)
        for op, ident, sector, _, segments in reversed(requests):
            back.page(segments[0][0])[:512] = bytes([sector]) * 512
            back.answer(ident, op, OKAY)
        back.push()
    assert [outcome(thread) for thread in threads] == [bytes([2 * n]) * 512 for n in range(40)]
    back.unmap()
    pair.hook(pair.front, "close")
    pair.world.check_no_leaks(pair.front_kernel, pair.back_kernel)


LIES = [
    pytest.param(lambda back, op, ident: back.answer(32, op, OKAY), id="id beyond the table"),
    pytest.param(lambda back, op, ident: back.answer(2**64 - 1, op, OKAY), id="huge id"),
    pytest.param(lambda back, op, ident: back.answer(ident + 32, op, OKAY), id="id with the right low bits"),
    pytest.param(lambda back, op, ident: back.answer(ident ^ 1, op, OKAY), id="id of a free slot"),
    pytest.param(lambda back, op, ident: back.answer(ident, op ^ 1, OKAY), id="other operation"),
    pytest.param(lambda back, op, ident: [back.answer(ident, op, OKAY) for _ in range(2)], id="answered twice"),
    pytest.param(lambda back, op, ident: setattr(back.ring, "rsp_prod_pvt", 2), id="more answers than requests"),
    pytest.param(lambda back, op, ident: setattr(back.ring, "rsp_prod_pvt", 2**31), id="garbage index"),
    pytest.param(lambda back, op, ident: setattr(back.ring, "rsp_prod_pvt", 2**32 - 1), id="index before the ring"),
]


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("persistent", [True, False])
def test_lies_break_the_ring_and_nothing_else(make_pair: Maker, lie: Any, persistent: bool) -> None:
    pair = make_pair()
    back = RawBack(pair, persistent=persistent)
    bystander = pair.front_kernel.mm.alloc_page()
    bystander.view[:4] = b"mine"
    (thread,) = start(pair, (0, 8))
    ((op, ident, _, _, _),) = back.requests()
    lie(back, op, ident)
    back.push()
    assert len(pair.front.fatals) == 1
    for _ in range(20):  # a storm on a broken ring
        back.push()
    assert len(pair.front.fatals) == 1
    # A reader whose answer was right gets it; the other waits for the device to be closed.
    (late,) = start(pair, (8, 8))
    assert not late.done
    back.unmap()
    pair.hook(pair.front, "close")
    assert outcome(thread) in (errno.EIO, bytes(4096))
    assert outcome(late) == errno.EIO
    with pytest.raises(BlockError) as caught:
        pair.guest(pair.device.read(0, 1))
    assert caught.value.errno == errno.EIO
    assert bytes(bystander.view[:4]) == b"mine"
    pair.front_kernel.mm.free_page(bystander)
    pair.world.check_no_leaks(pair.front_kernel, pair.back_kernel)


def test_req_prod_and_events_belong_to_the_frontend_alone(make_pair: Maker) -> None:
    """A backend that rewrites req_prod cannot silence notifications or move the frontend's own index."""
    pair = make_pair()
    back = RawBack(pair)
    (first,) = start(pair, (0, 1))
    ((op, ident, _, _, _),) = back.requests()
    back.ring.shared[0] = 0x12345678
    back.answer(ident, op, OKAY)
    back.push()
    assert outcome(first) == bytes(512)
    notifications = pair.world.notifications
    start(pair, (1, 1))
    assert back.ring.shared[0] == 2
    assert pair.world.notifications == notifications + 1
    back.unmap()
    pair.hook(pair.front, "close")
    pair.hook(pair.front, "remove")
    pair.world.check_no_leaks(pair.front_kernel, pair.back_kernel)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_page_that_stays_mapped_is_never_reused(make_pair: Maker, persistent: bool) -> None:
    """XSA-396: the backend answers, but keeps a page mapped; later it lets go, and only then the page is free."""
    pair = make_pair()
    back = RawBack(pair, persistent=persistent)
    guest = pair.front_kernel
    seen: set[int] = set()
    held = []
    for n in range(5):
        (thread,) = start(pair, (n, 1))
        ((op, ident, _, _, ((ref, _, _),)),) = back.requests()
        mfn = guest.grants.entries[ref][1]
        if not persistent:
            assert mfn not in seen
        seen.add(mfn)
        ((status, handle, maddr),) = pair.back_kernel.grants.map_device(1, [ref], True)
        assert status == 0
        held.append((handle, maddr))
        back.answer(ident, op, OKAY)
        back.push()
        assert outcome(thread) == bytes(512)
    back.unmap()
    pair.hook(pair.front, "close")
    assert guest.mm.used == len(seen)  # withheld, not freed
    assert {entry[1] for entry in guest.grants.entries.values()} == seen
    pair.back_kernel.grants.unmap_device(held)
    pair.hook(pair.front, "publish")  # the next connection looks whether they have come back
    pair.hook(pair.front, "close")
    pair.world.check_no_leaks(guest, pair.back_kernel)


def test_a_ring_that_stays_mapped_is_never_reused(make_pair: Maker) -> None:
    pair = make_pair()
    back = RawBack(pair)
    ring_mfn = pair.front_kernel.grants.entries[int(pair.store["frontend/ring-ref"])][1]
    pair.hook(pair.front, "close")
    assert pair.front_kernel.mm.used == 1
    assert ring_mfn not in pair.world.frames
    back.unmap()
    pair.hook(pair.front, "close")
    pair.hook(pair.front, "publish")
    pair.hook(pair.front, "close")
    pair.world.check_no_leaks(pair.front_kernel, pair.back_kernel)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sectors", None),
        ("sectors", "-5"),
        ("sectors", "many"),
        ("sectors", str(2**64)),
        ("sectors", "9" * 5000),
        ("sector-size", "4096"),
        ("sector-size", "0"),
        ("info", "x"),
    ],
)
def test_bad_nodes_are_fatal_for_the_device_alone(make_pair: Maker, key: str, value: str | None) -> None:
    pair = make_pair()
    for device, hook in [(pair.back, "probe"), (pair.back, "publish"), (pair.front, "probe"), (pair.front, "publish")]:
        pair.hook(device, hook)
    pair.hook(pair.back, "connect")
    pair.store.pop(f"backend/{key}", None)
    if value is not None:
        pair.store[f"backend/{key}"] = value
    waiting = pair.front_kernel.spawn(pair.front_kernel.block.get("xvda"), "get", panics=False)
    with pytest.raises(ValueError, match=r"the backend's \w+"):
        pair.hook(pair.front, "connect")
    pair.close()
    assert outcome(waiting) == errno.ENXIO
    pair.world.check_no_leaks(pair.front_kernel, pair.back_kernel)


def test_a_backend_that_never_answers_does_not_hold_up_closing(make_pair: Maker) -> None:
    pair = make_pair()
    back = RawBack(pair)
    (thread,) = start(pair, (0, 1))
    pair.hook(pair.front, "disconnect")
    assert pair.front.errors == ["the backend has not answered 1 requests"]
    back.unmap()
    pair.hook(pair.front, "close")
    pair.hook(pair.front, "remove")
    assert not thread.done
    thread.cancel()
    pair.world.check_no_leaks(pair.front_kernel, pair.back_kernel)
