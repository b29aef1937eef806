"""The control ring of a vif: what frontends ask of it, in order and out of order."""

from __future__ import annotations

import pytest
from net_raw import RawFront
from net_world import Host

from hypervisor.abi.io import netif

ADD, DEL, SIZE = (
    netif.XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING,
    netif.XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING,
    netif.XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE,
)
SUCCESS, NOT_SUPPORTED, INVALID = (
    netif.XEN_NETIF_CTRL_STATUS_SUCCESS,
    netif.XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED,
    netif.XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER,
)


@pytest.fixture
def front() -> RawFront:
    return RawFront(Host(guests=1).guests[0], control=True, rx=0)


def down(front: RawFront) -> None:
    front.down()
    front.host.check_no_leaks()


def mapped(front: RawFront) -> set[int]:
    control = front.guest.back.data.control
    assert set(control.writable) <= set(control.mapped)
    return set(control.mapped)


def test_add_and_delete(front: RawFront) -> None:
    _, limit = front.ask(SIZE, 0, 0, 0)
    assert limit == 1024
    readable, writable = front.grant(), front.grant(readonly=False)
    _, add = front.grefs((readable, 1), (writable, 0))
    assert front.ask(ADD, 0, add, 2) == (SUCCESS, 0)
    assert mapped(front) == {readable, writable}
    assert set(front.guest.vif.writable) == {writable}
    assert front.kernel.grants.entries[readable].pins == 1
    page, delete = front.grefs((readable, 0), (777, 0), (readable, 0))
    assert front.ask(DEL, 0, delete, 3) == (SUCCESS, 1)
    assert [page.h[n] for n in (3, 7, 11)] == [SUCCESS, INVALID, INVALID]
    assert mapped(front) == {writable}
    assert front.kernel.grants.entries[readable].pins == 0
    down(front)


def test_a_list_is_added_whole_or_not_at_all(front: RawFront) -> None:
    for bad in range(4):
        refs = [front.grant() for _ in range(4)]
        refs[bad] = 31337
        _, add = front.grefs(*((ref, 1) for ref in refs))
        assert front.ask(ADD, 0, add, 4) == (INVALID, 0)
    assert not mapped(front)
    _, add = front.grefs((front.grant(), 1), (front.grant(), 0))
    assert front.ask(ADD, 0, add, 2) == (INVALID, 0), "a read-only grant was mapped for writing"
    assert not mapped(front)
    down(front)


def test_a_page_is_registered_once(front: RawFront) -> None:
    ref = front.grant()
    _, twice = front.grefs((ref, 1), (ref, 1))
    assert front.ask(ADD, 0, twice, 2) == (INVALID, 0)
    assert front.ask(ADD, 0, twice, 1) == (SUCCESS, 0)
    assert front.ask(ADD, 0, twice, 1) == (INVALID, 0)
    assert front.kernel.grants.entries[ref].pins == 1
    down(front)


@pytest.mark.parametrize(("queue", "count"), [(1, 1), (0xFFFFFFFF, 1), (0, 0), (0, 513), (0, 0xFFFFFFFF)])
@pytest.mark.parametrize("kind", [ADD, DEL])
def test_bad_parameters(front: RawFront, kind: int, queue: int, count: int) -> None:
    _, add = front.grefs((front.grant(), 1))
    assert front.ask(kind, queue, add, count) == (INVALID, 0)
    assert front.ask(kind, 0, 0xFFFFFF, 1) == (INVALID, 0)
    assert front.ask(SIZE, 1, 0, 0) == (INVALID, 0)
    assert not mapped(front)
    down(front)


@pytest.mark.parametrize("kind", [0, 11, 12, 0xFFFF])
def test_requests_that_nobody_has_defined(front: RawFront, kind: int) -> None:
    assert front.ask(kind, 0, 0, 0) == (NOT_SUPPORTED, 0)
    down(front)


def test_the_number_of_mappings_is_bounded(front: RawFront) -> None:
    refs = [front.grant() for _ in range(1025)]
    for start in (0, 512):
        _, add = front.grefs(*((ref, 1) for ref in refs[start : start + 512]))
        assert front.ask(ADD, 0, add, 512) == (SUCCESS, 0)
    _, add = front.grefs((refs[1024], 1))
    assert front.ask(ADD, 0, add, 1) == (INVALID, 0)
    assert len(mapped(front)) == 1024
    down(front)


def test_a_list_cannot_change_while_it_is_checked(front: RawFront) -> None:
    """The list is copied before it is looked at: mapping happens to what was checked."""
    refs = [front.grant(), front.grant()]
    page, add = front.grefs(*((ref, 1) for ref in refs))
    grants = front.host.kernel.grants
    real = grants._map

    def mapping(domid: int, ref: int, writable: bool) -> object:
        if ref in refs:
            page.i[0] = page.i[2] = 0xFFFFFFFF
        return real(domid, ref, writable)

    grants._map = mapping  # type: ignore[method-assign, assignment]
    assert front.ask(ADD, 0, add, 2) == (SUCCESS, 0)
    assert mapped(front) == set(refs)
    down(front)


def test_an_overflow_ends_the_control_ring_only(front: RawFront) -> None:
    front.ctrl.shared[0] = 1000
    for _ in range(3):
        front.kernel.events.notify(front.ctrl_port)
        front.host.run()
    assert not front.guest.back.fatals
    frame = front.guest.frame(b"\xff" * 6)
    front.put(front.grant(frame), 0, 0, 4, 60)
    assert front.push() == [(4, 0)]
    down(front)


def test_a_ring_full_of_requests_takes_turns_with_others() -> None:
    host = Host()
    front = RawFront(host.guests[0], control=True, rx=0)
    other = host.guests[1].connect()
    refs = [front.grant() for _ in range(512)]
    _, lists = front.grefs(*((ref, 1) for ref in refs))
    ring = front.ctrl
    for number in range(ring.size):
        kind = (ADD, DEL)[number & 1]
        netif.xen_netif_ctrl_request.codec.pack_into(ring.view, ring.offset(number), number, kind, 0, lists, 512)
    ring.req_prod_pvt = ring.size
    ring.push_requests()
    front.kernel.events.notify(front.ctrl_port)
    other.device.transmit(other.frame(b"\xff" * 6))
    order = []
    host.driver._serve = lambda vif, tx, real=host.driver._serve: (order.append(vif.name), real(vif, tx=tx))  # type: ignore[method-assign, assignment]
    control = front.guest.back.data.control
    control._handle = lambda kind, data, real=control._handle: (order.append("control"), real(kind, data))[1]
    host.run()
    assert order.count("control") == ring.size
    assert "vif2.0" in order[:4]
    other.close()
    down(front)


def test_closing_unmaps(front: RawFront) -> None:
    _, add = front.grefs(*((front.grant(), 1) for _ in range(10)))
    assert front.ask(ADD, 0, add, 10) == (SUCCESS, 0)
    down(front)


def test_a_foreign_frontend_without_control_ring() -> None:
    front = RawFront(Host(guests=1).guests[0], rx=0)
    front.put(front.grant(bytes(60)), 0, 0, 4, 60)
    assert front.push() == [(4, 0)]
    down(front)
