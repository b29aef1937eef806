"""Batches of grant operations that are preempted, at each point and at all of them: nobody can tell afterwards."""

from __future__ import annotations

import struct

import pytest
from grant_world import World
from preemption import ALWAYS, Points, everywhere

from hypervisor.abi import domctl, xen
from hypervisor.abi import grant_table as abi

HOST, DEVICE, RO = abi.GNTMAP_host_map, abi.GNTMAP_device_map, abi.GNTMAP_readonly
HOLE = 0x400000
SELF = xen.DOMID_SELF
MANY = 70
"""More than two batches of unmaps (32), less than a page of arguments."""


def a_pair():
    world = World()
    return world, world.guest(), world.guest()


def state(world, *guests):
    """What the domains and the accounts look like."""
    world.check()
    frames = world.hv.frames
    pages = [mfn for guest in guests for mfn in guest.pages]
    return (
        [guest.table.pin[:] for guest in guests],
        [
            bytes(world.hv.memory.b[guest.table.shared[0] << 12 : (guest.table.shared[0] << 12) + 4096])
            for guest in guests
        ],
        [(frames.count[mfn], frames.type[mfn], frames.type_count[mfn]) for mfn in pages],
        [[guest.pte(HOLE + (page << 12)) for page in range(MANY)] for guest in guests],
        [guest.table.maptrack.live() for guest in guests],
    )


def maps(domu, count, flags=HOST, bad=()):
    return [
        {"host_addr": HOLE + (n << 12), "flags": flags, "ref": 8 + n, "dom": 77 if n in bad else domu.domid}
        for n in range(count)
    ]


def grant_all(dom0, domu, count):
    for n in range(count):
        domu.grant(8 + n, dom0, domu.pages[n % 24])


def test_mapping():
    def work(points):
        world, dom0, domu = a_pair()
        grant_all(dom0, domu, 6)
        points.on(world.hv)
        ops = dom0.batch(abi.GNTTABOP_map_grant_ref, abi.gnttab_map_grant_ref, maps(domu, 6, HOST | DEVICE, bad=(3,)))
        points.off()
        return [(op.status, op.handle) for op in ops], state(world, dom0, domu)

    results, _ = everywhere(work, least=5)
    assert [status for status, _ in results] == [0, 0, 0, abi.GNTST_bad_domain, 0, 0]


@pytest.mark.parametrize("replace", [False, True])
def test_unmapping(replace):
    """Every 32 operations."""

    def work(points):
        world, dom0, domu = a_pair()
        grant_all(dom0, domu, MANY)
        ops = dom0.batch(abi.GNTTABOP_map_grant_ref, abi.gnttab_map_grant_ref, maps(domu, MANY))
        handles = [op.handle for op in ops]
        handles[40] = 999
        gone = [{"host_addr": HOLE + (n << 12), "handle": handle} for n, handle in enumerate(handles)]
        points.on(world.hv)
        if replace:
            done = dom0.batch(abi.GNTTABOP_unmap_and_replace, abi.gnttab_unmap_and_replace, gone)
        else:
            done = dom0.batch(abi.GNTTABOP_unmap_grant_ref, abi.gnttab_unmap_grant_ref, gone)
        points.off()
        return [op.status for op in done], state(world, dom0, domu)

    statuses, _ = everywhere(work, least=2)
    assert statuses == [0] * 40 + [abi.GNTST_bad_handle] + [0] * 29


def test_copying():
    def work(points):
        world, dom0, domu = a_pair()
        grant_all(dom0, domu, 4)
        domu.poke(domu.va(0), bytes(range(200)))
        ops = [((8, domu.domid, n), (dom0.pages[0], SELF, 20 * n), 10, abi.GNTCOPY_source_gref) for n in range(5)]
        points.on(world.hv)
        statuses = dom0.copies(ops)
        points.off()
        return statuses, dom0.peek(dom0.va(0), 100), state(world, dom0, domu)

    statuses, data, _ = everywhere(work, least=4)
    assert statuses == [0] * 5
    assert data[80:90] == bytes(range(4, 14))


def test_swapping():
    def work(points):
        world, dom0, domu = a_pair()
        grant_all(dom0, domu, 4)
        points.on(world.hv)
        pairs = [{"ref_a": 8, "ref_b": 8 + n, "status": 0x55} for n in range(4)]
        ops = domu.batch(abi.GNTTABOP_swap_grant_ref, abi.gnttab_swap_grant_ref, pairs)
        points.off()
        return [op.status for op in ops], [domu.entry(8 + n)[2] for n in range(4)], state(world, dom0, domu)

    statuses, _, _ = everywhere(work, least=3)
    assert statuses == [0] * 4


def test_transferring():
    def work(points):
        world, dom0, domu = a_pair()
        pages = [dom0.alloc() for _ in range(3)]
        for n in range(3):
            domu.grant(8 + n, dom0, 0x100 + n, abi.GTF_accept_transfer)
        points.on(world.hv)
        moves = [{"mfn": mfn, "domid": domu.domid, "ref": 8 + n} for n, mfn in enumerate(pages)]
        ops = dom0.batch(abi.GNTTABOP_transfer, abi.gnttab_transfer, moves)
        points.off()
        owners = [world.hv.frames.owner(mfn) for mfn in pages]
        return [op.status for op in ops], owners, state(world, dom0, domu)

    statuses, owners, _ = everywhere(work, least=2)
    assert (statuses, owners) == ([0] * 3, [1] * 3)


def test_flushing():
    """Between operations, and amid the search of a long table: there the place is kept in the operation's number."""

    def work(points):
        world, dom0, domu = a_pair()
        assert domu.setup_table(64) == 0
        for ref in (8, 10000):
            domu.grant(ref, dom0, domu.pages[0])
        op = dom0.map(domu, 10000, HOLE)
        flush = {"a": (domu.pages[0] << 12).to_bytes(8, "little"), "length": 64, "op": abi.GNTTAB_CACHE_CLEAN}
        points.on(world.hv)
        dom0.batch(abi.GNTTABOP_cache_flush, abi.gnttab_cache_flush, [flush] * 2)
        points.off()
        assert dom0.unmap(op.handle, HOLE) == 0
        return state(world, dom0, domu)

    everywhere(work, least=5)


def test_the_batch_goes_on_behind_what_is_done():
    """What others do in between is seen by the operations that are still to come, and by no other."""
    world, dom0, domu = a_pair()
    grant_all(dom0, domu, 3)
    points = Points(ALWAYS)
    points.others = lambda _vcpu: domu.set_flags(9, 0)
    points.on(world.hv)
    ops = dom0.batch(abi.GNTTABOP_map_grant_ref, abi.gnttab_map_grant_ref, maps(domu, 3))
    points.off()
    assert [op.status for op in ops] == [0, abi.GNTST_general_error, 0]


def test_a_fault_after_a_preemption():
    """What was done before stays done, and the call says EFAULT."""
    world, dom0, domu = a_pair()
    grant_all(dom0, domu, 2)
    points = Points(ALWAYS)
    end = dom0.spare + 4096
    size = abi.gnttab_map_grant_ref.size
    dom0.poke(end - size, abi.gnttab_map_grant_ref.pack(**maps(domu, 1)[0], status=0x55))
    points.on(world.hv)
    assert dom0.raw(abi.GNTTABOP_map_grant_ref, end - size, 2) == -14
    points.off()
    assert struct.unpack("<h", dom0.peek(end - size + 18, 2)) == (0,)
    assert dom0.table.maptrack.live() == [0]


def test_a_mapper_that_dies():
    """The domain's handles are given up frame by frame, and its destruction can be preempted in between."""

    def work(at):
        world, dom0, domu = a_pair()
        grant_all(domu, dom0, 3)
        ops = [{"flags": DEVICE, "ref": 8 + n % 3, "dom": dom0.domid} for n in range(300)]
        for start in range(0, 300, 100):
            domu.batch(abi.GNTTABOP_map_grant_ref, abi.gnttab_map_grant_ref, ops[start : start + 100])
        assert domu.table.maptrack.frames == 2
        points = Points(at)
        points.on(world.hv)
        layout = domctl.xen_domctl
        fields = {"cmd": domctl.XEN_DOMCTL_destroydomain, "domain": domu.domid}
        version = domctl.XEN_DOMCTL_INTERFACE_VERSION
        rc, _ = dom0.call(xen.HYPERVISOR_domctl, layout=layout, interface_version=version, **fields)
        points.off()
        assert (rc, list(world.hv.domains), world.leaks()) == (0, [0], [])
        return points.stops, state(world, dom0)

    (undisturbed, expected), (disturbed, outcome) = work(None), work(ALWAYS)
    assert (undisturbed, outcome) == (0, expected)
    assert disturbed > 3


@pytest.mark.parametrize("at", [4096 - 16, 4096 - 20, 4096 - 3])
@pytest.mark.parametrize("cmd", [0, 1, 5, 7])
def test_arguments_across_two_pages(cmd, at):
    """An operation that begins on one page and ends on the next is done apart, also when each is done by itself."""
    layouts = {
        0: abi.gnttab_map_grant_ref,
        1: abi.gnttab_unmap_grant_ref,
        5: abi.gnttab_copy,
        7: abi.gnttab_unmap_and_replace,
    }
    for preempted in (False, True):
        world, dom0, _domu = a_pair()
        # Behind the first page's frame lies another than the second page's.
        dom0.set_pte(dom0.va(0), dom0.pages[7] << 12 | 0x67)
        untouched = bytes(world.hv.memory.b[dom0.pages[7] + 1 << 12 : dom0.pages[7] + 2 << 12])
        points = Points(ALWAYS if preempted else None)
        points.on(world.hv)
        ops = dom0.batch(cmd, layouts[cmd], [{"status": 0x55}] * 3, at=dom0.va(0) + at)
        points.off()
        assert [op.status for op in ops] != [0x55] * 3
        assert all(op.status <= 0 for op in ops)
        assert bytes(world.hv.memory.b[dom0.pages[7] + 1 << 12 : dom0.pages[7] + 2 << 12]) == untouched
        world.check()
