"""Security advisories about grant tables, as checks: the refusal, and that the account is as before.

Rows that other files cover by their rule: XSA-230 and 500 in test_grant_copy, 232 in test_grant_control; those about
version 2 (26, 226, 255, 379, 382, 384, 411, 501) in test_grant_v2.
"""

from __future__ import annotations

import random
import time

import pytest

from hypervisor.abi import errno
from hypervisor.abi import grant_table as abi
from hypervisor.grant_table.check import check_grants

HOST, DEVICE, RO, PTE = abi.GNTMAP_host_map, abi.GNTMAP_device_map, abi.GNTMAP_readonly, abi.GNTMAP_contains_pte
HOLE = 0x400000
REF = 8


@pytest.fixture
def granted(pair):
    pair.domu.grant(REF, 0, pair.domu.pages[0])
    return pair


def references(pair, mfn):
    return pair.hv.frames.count[mfn], pair.hv.frames.type_count[mfn]


def swap(guest, first, second):
    return guest.one(abi.GNTTABOP_swap_grant_ref, abi.gnttab_swap_grant_ref, ref_a=first, ref_b=second).status


def test_xsa_18_swap_checks_its_range(granted):
    """References beyond the table are refused and leave both entries alone."""
    domu = granted.domu
    for first, second in ((REF, 512), (512, REF), (0xFFFFFFFF, 0), (512, 512)):
        assert swap(domu, first, second) == abi.GNTST_bad_gntref
    assert domu.entry(REF) == (1, 0, domu.pages[0])


def test_xsa_134_swap_in_a_table_that_was_never_set_up(world):
    """A domain that has not touched its table has one frame of version 1 entries, so there is something to check."""
    guest = world.guest()
    assert swap(guest, 1, 2) == abi.GNTST_okay
    assert swap(guest, 1, 512) == abi.GNTST_bad_gntref


@pytest.mark.parametrize("flags", [HOST, HOST | RO, DEVICE, DEVICE | RO])
def test_xsa_218_two_unmaps_of_one_handle(granted, flags):
    """In one batch: exactly one succeeds, and the status bits go only with the last use."""
    dom0, domu = granted.dom0, granted.domu
    other = dom0.map(domu, REF, HOLE + 0x1000, HOST | RO)
    op = dom0.map(domu, REF, HOLE, flags)
    undo = {"host_addr": HOLE if flags & HOST else 0, "dev_bus_addr": op.dev_bus_addr, "handle": op.handle}
    left = dom0.batch(abi.GNTTABOP_unmap_grant_ref, abi.gnttab_unmap_grant_ref, [undo, undo, undo])
    assert [result.status for result in left] == [0, abi.GNTST_bad_handle, abi.GNTST_bad_handle]
    assert domu.flags(REF) == 0x9
    assert dom0.unmap(other.handle, HOLE + 0x1000) == 0
    assert domu.flags(REF) == 1


@pytest.mark.parametrize("order", ["host first", "device first"])
def test_xsa_224_parts_unmapped_one_by_one(granted, order):
    """Each part holds its own references: the page cannot become a page table while one is left."""
    dom0, domu = granted.dom0, granted.domu
    mfn = domu.alloc()
    domu.grant(REF, 0, mfn)
    before = references(granted, mfn)
    op = dom0.map(domu, REF, HOLE, HOST | DEVICE)
    assert references(granted, mfn) == (before[0] + 2, before[1] + 2)
    parts = [(HOLE, 0), (0, op.dev_bus_addr)]
    if order == "device first":
        parts.reverse()
    for va, bus in parts:
        assert domu.pin_l1(mfn) == -errno.EINVAL
        assert dom0.unmap(op.handle, va, bus) == 0
    assert references(granted, mfn) == before
    assert domu.pin_l1(mfn) == 0


def test_a_granted_page_cannot_become_a_page_table_while_written(granted):
    dom0, domu = granted.dom0, granted.domu
    mfn = domu.alloc()
    domu.grant(REF, 0, mfn)
    for flags in (HOST, DEVICE):
        op = dom0.map(domu, REF, HOLE, flags)
        assert domu.pin_l1(mfn) == -errno.EINVAL
        assert dom0.unmap(op.handle, HOLE if flags == HOST else 0, op.dev_bus_addr) == 0
    op = dom0.map(domu, REF, HOLE, HOST | RO)
    assert domu.pin_l1(mfn) == 0
    assert dom0.unmap(op.handle, HOLE) == 0


def test_xsa_227_misaligned_page_table_entry(granted):
    """No byte of the page table changes, at any misalignment."""
    dom0 = granted.dom0
    place = dom0.pte_index(HOLE) << 3
    table = bytes(granted.hv.memory.frame(dom0.hole_l1))
    for offset in range(1, 8):
        assert dom0.map(granted.domu, REF, place + offset, HOST | PTE).status == abi.GNTST_general_error
        op = dom0.map(granted.domu, REF, place, HOST | PTE)
        assert dom0.unmap(op.handle, place + offset) == abi.GNTST_general_error
        assert dom0.unmap(op.handle, place) == 0
    assert bytes(granted.hv.memory.frame(dom0.hole_l1)) == table


def test_xsa_228_handles_of_many_processors(world):
    """However mapping and unmapping is spread over processors, handles are unique and none is lost."""
    dom0, domu = world.guest(vcpus=4), world.guest()
    for n in range(16):
        domu.grant(REF + n, 0, domu.pages[n])
    choose = random.Random(228)
    live: dict[int, int] = {}
    for _ in range(3000):
        vcpu = choose.randrange(4)
        if live and choose.random() < 0.49:
            handle = choose.choice(list(live))
            assert dom0.unmap(handle, 0, live.pop(handle), vcpu=vcpu) == 0
            continue
        op = dom0.map(domu, REF + choose.randrange(16), 0, DEVICE, vcpu=vcpu)
        if op.status == 0:
            assert op.handle not in live
            live[op.handle] = op.dev_bus_addr
    world.check()
    for handle, bus in live.items():
        assert dom0.unmap(handle, 0, bus) == 0
    maptrack = dom0.table.maptrack
    assert sum(len(free) for free in maptrack.free.values()) == len(maptrack.flags)


def test_xsa_234_a_mapping_made_read_only_meanwhile(granted):
    """The entry holds a different reference now, so the unmap is refused; counts stay equal."""
    dom0 = granted.dom0
    dom0.grant(REF, 0, dom0.pages[0])
    mfn = dom0.pages[0]
    before = references(granted, mfn)
    op = dom0.map(dom0, REF, HOLE)
    entry = dom0.pte(HOLE)
    assert dom0.set_pte(HOLE, entry & ~2) == 0
    assert dom0.unmap(op.handle, HOLE) == abi.GNTST_general_error
    assert references(granted, mfn) == (before[0] + 1, before[1])
    assert dom0.set_pte(HOLE, entry) == 0
    assert dom0.unmap(op.handle, HOLE) == 0
    assert references(granted, mfn) == before


def test_xsa_236_a_pinned_entry_has_a_held_frame(granted):
    """At each step of a copy at which a reference is dropped, no pin is left that would need it."""
    dom0, domu, frames = granted.dom0, granted.domu, granted.hv.frames
    granted.hv.grants.copying.plain = True
    seen = []
    base = type(frames)

    class Watched(base):  # type: ignore[valid-type, misc]
        __slots__ = ()

        def put_page(self, mfn):
            if mfn == domu.pages[0]:
                seen.append(domu.table.pin[REF])
            base.put_page(self, mfn)

    frames.__class__ = Watched
    here = (dom0.pages[0], 0x7FF0, 0)
    assert dom0.copy((REF, 1, 0), here, 4, abi.GNTCOPY_source_gref) == 0
    assert dom0.copy(here, (REF, 1, 0), 4, abi.GNTCOPY_dest_gref) == 0
    assert seen == [0, 0]


def test_xsa_295_a_granter_that_rewrites_its_entry(granted):
    """Each operation takes one look; whatever the granter makes of it, the outcome is clean and bounded."""
    dom0, domu = granted.dom0, granted.domu
    for n in range(200):
        domu.grant(REF, 0 if n % 3 else 5, domu.pages[n % 4], (n * 7) & 0x1FF)
        op = dom0.map(domu, REF, HOLE)
        assert op.status in (abi.GNTST_okay, abi.GNTST_general_error)
        if op.status == abi.GNTST_okay:
            domu.set_flags(REF, (n * 13) & 0xFFFF)
            assert dom0.unmap(op.handle, HOLE) == 0
        check_grants(granted.hv)


def test_xsa_316_statuses_are_never_positive(granted):
    """Every field of a map operation with hostile values."""
    dom0, choose = granted.dom0, random.Random(316)
    words = [0, 1, REF, 511, 512, 0x7FF0, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]
    for _ in range(400):
        op = dom0.one(
            abi.GNTTABOP_map_grant_ref,
            abi.gnttab_map_grant_ref,
            host_addr=choose.choice([0, HOLE, 1 << 47, 0xFFFF800000000000, 0xFFFFFFFFFFFFFFFF]),
            flags=choose.choice(words) ^ choose.randrange(64),
            ref=choose.choice(words),
            dom=choose.choice([0, 1, 2, 0x7FF0, 0x7FF2, 0xFFFF]),
            status=0x55,
        )
        assert -13 <= op.status <= 0
        if op.status == 0:
            assert dom0.unmap(op.handle, op.host_addr, op.dev_bus_addr) in (0, abi.GNTST_general_error)
    check_grants(granted.hv)


@pytest.mark.parametrize("plain", [False, True])
def test_xsa_318_every_status_of_a_long_batch_is_written(granted, plain):
    """Over many pages of arguments, first and last included."""
    dom0 = granted.dom0
    granted.hv.grants.copying.plain = plain
    here = (dom0.pages[0], 0x7FF0, 0)
    ops = [((REF if n % 5 else 99, 1, 0), here, 8, abi.GNTCOPY_source_gref) for n in range(300)]
    assert dom0.copies(ops) == [0 if n % 5 else abi.GNTST_general_error for n in range(300)]


def test_xsa_380_unmapping_does_not_search(granted):
    """The cost of an unmap does not grow with the number of mappings there are (10^4 here, bounded generously)."""
    dom0, domu = granted.dom0, granted.domu
    assert domu.setup_table(20) == 0
    for ref in range(REF, 10000):
        domu.grant(ref, 0, domu.pages[ref % 20])
    ops = [{"flags": DEVICE, "ref": ref, "dom": 1} for ref in range(REF, 10000)]
    undo = []
    for start in range(0, len(ops), 200):
        for op in dom0.batch(abi.GNTTABOP_map_grant_ref, abi.gnttab_map_grant_ref, ops[start : start + 200]):
            assert op.status == 0
            undo.append({"dev_bus_addr": op.dev_bus_addr, "handle": op.handle})
    begin = time.perf_counter()
    for start in range(0, len(undo), 200):
        left = dom0.batch(abi.GNTTABOP_unmap_grant_ref, abi.gnttab_unmap_grant_ref, undo[start : start + 200])
        assert not any(op.status for op in left)
    assert time.perf_counter() - begin < 5
    assert granted.world.leaks() == []


def test_xsa_394_three_partial_unmaps_drop_once(granted):
    """Neither part, then one, then the other: the handle ends with the last part, and each count falls once."""
    dom0, domu = granted.dom0, granted.domu
    before = references(granted, domu.pages[0])
    op = dom0.map(domu, REF, HOLE, HOST | DEVICE)
    handles = len(dom0.table.maptrack.live())
    for va, bus in ((0, 0), (0, op.dev_bus_addr), (0, 0), (0, op.dev_bus_addr)):
        assert dom0.unmap(op.handle, va, bus) == 0
        assert len(dom0.table.maptrack.live()) == handles
    assert dom0.unmap(op.handle, HOLE) == 0
    assert dom0.unmap(op.handle, HOLE) == abi.GNTST_bad_handle
    assert references(granted, domu.pages[0]) == before
