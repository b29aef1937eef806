"""The leak check that every test ends with does find leaks, and the recount of event channels does find mistakes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bare_guest import HOLES, RW_PAGE
from core_world import MS, World
from leak_check import find_leaks

from hypervisor.abi import grant_table, xen
from hypervisor.errors import InvariantError
from hypervisor.event_channel.check import check_events
from hypervisor.mm.check import check as check_frames


@pytest.fixture
def pair():
    """Domains 0 and 1 of a host that no fixture checks."""
    world = World()
    return SimpleNamespace(dom0=world.guest(), domu=world.guest(vcpus=2), hv=world.hv)


@pytest.fixture
def free(pair):
    """How many frames a host like this one has free at first."""
    return World().hv.frames.free_frames


def test_a_plain_host_has_none(pair, free):
    assert find_leaks(pair.hv, free, False) == []
    assert pair.hv.domains == {}


@pytest.mark.breaks_host("a frame is taken for nobody")
def test_a_lost_frame(pair, free):
    pair.hv.frames.alloc_xen()
    assert find_leaks(pair.hv, free, False) == ["1 frames are not free though no domain is left"]


@pytest.mark.breaks_host("a reference is taken for nobody")
def test_a_held_page(pair, free):
    pair.hv.frames.get_page(pair.domu.pages[0], pair.domu.domain)
    assert "counts 3 references, 2 are in use" in find_leaks(pair.hv, free, False)[0]


def lonely(guest):
    """A frame of a guest that nothing maps."""
    return guest.hv.frames.alloc(guest.domain)


@pytest.mark.breaks_host("an account is falsified")
@pytest.mark.parametrize(
    ("array", "by", "complaint"),
    [
        ("count", 1, "counts 2 references, 1 are in use"),
        ("count", -1, "has an owner and no reference"),
        ("type_count", 1, "counts 1 uses as type 0"),
        ("flags", 0x08, "counts 1 references, 2 are in use"),
        ("owner_tag", 1, "is in the list of"),
    ],
)
def test_a_falsified_account_of_a_frame_that_nobody_uses(pair, array, by, complaint):
    getattr(pair.hv.frames, array)[lonely(pair.domu)] += by
    with pytest.raises(InvariantError, match=complaint):
        check_frames(pair.hv)


@pytest.mark.breaks_host("an entry is written past the hypervisor")
def test_a_frame_that_is_used_and_does_not_know(pair):
    """The frame's own account is in order, and that of its user is not."""
    domu = pair.domu
    mfn = lonely(domu)
    pair.hv.memory.q[domu.pte_index(HOLES)] = mfn << 12 | RW_PAGE
    with pytest.raises(InvariantError, match=f"frame {mfn:#x} counts 1 references, 2 are in use"):
        check_frames(pair.hv)
    pair.hv.frames.count[mfn] += 1
    with pytest.raises(InvariantError, match=f"frame {mfn:#x} counts 0 uses as type 0, in use are"):
        check_frames(pair.hv)


@pytest.mark.breaks_host("an entry is written past the hypervisor")
def test_a_frame_that_is_used_and_nobodys(pair):
    free, _ = next(iter(pair.hv.frames.heap.blocks()))
    pair.hv.memory.q[pair.domu.pte_index(HOLES)] = free << 12 | RW_PAGE
    with pytest.raises(InvariantError, match="belongs to nobody who is there"):
        check_frames(pair.hv)


@pytest.mark.breaks_host("a timer is armed for nobody")
def test_a_timer(pair, free):
    pair.hv.timers.add(MS, lambda: None)
    assert find_leaks(pair.hv, free, False) == ["1 timers are armed though no domain is left"]


@pytest.mark.leaves_live_host("it is what the test looks for")
def test_what_dom0_keeps_at_its_end(pair, free):
    ref, flags = 9, grant_table.GTF_permit_access
    maddr = pair.domu.domain.grant_table.shared[0] << 12
    entry = flags | 0 << 16 | pair.domu.pages[0] << 32
    pair.hv.memory.q[(maddr >> 3) + ref] = entry
    op = {"flags": grant_table.GNTMAP_device_map, "ref": ref, "dom": 1}
    layout = grant_table.gnttab_map_grant_ref
    pair.dom0.poke(pair.dom0.args, layout.pack(**op))
    command = grant_table.GNTTABOP_map_grant_ref
    assert pair.dom0.hypercall(xen.HYPERVISOR_grant_table_op, command, pair.dom0.args, 1) == 0
    pair.dom0.alloc(1)
    pair.dom0.shutdown(0)
    found = find_leaks(pair.hv, free, False)
    assert found == [
        "domain 1 outlives dom0",
        "handle 0 of domain 0 still maps grant 9 of domain 1",
        "port 1 of dom0 is there for domain 1",
    ]


@pytest.mark.breaks_host("the account of ports is spoilt by hand")
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda port: setattr(port, "peer", None), "has a peer or has none"),
        (lambda port: setattr(port.peer, "state", 1), "has a peer or has none|not each other's peers"),
        (lambda port: setattr(port.domain, "active_ports", 7), "counts 7 ports in use"),
        (lambda port: setattr(port.domain, "port_hint", 9), "overlooks its free port"),
        (lambda port: setattr(port.domain, "pollers", 1), "counts 1 polling"),
        (lambda port: port.domain.vcpus[0].virq_to_port.__setitem__(3, 1), "VIRQ 3"),
        (lambda port: port.domain.hv.sched.run_queue.append(port.vcpu), "on the run queue"),
    ],
)
def test_the_recount_of_event_channels(pair, spoil, complaint):
    remote = pair.domu.alloc(0)
    local = pair.dom0.bind(1, remote)
    check_events(pair.hv)
    spoil(pair.dom0.domain.ports[local])
    with pytest.raises(InvariantError, match=complaint):
        check_events(pair.hv)
