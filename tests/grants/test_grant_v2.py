"""Version 2 entries: conversion, status frames, parts of pages, transitive grants; and the advisories about them."""

from __future__ import annotations

import struct

import pytest

from hypervisor.abi import errno, xen
from hypervisor.abi import grant_table as abi

HOST, DEVICE, RO = abi.GNTMAP_host_map, abi.GNTMAP_device_map, abi.GNTMAP_readonly
S, D = abi.GNTCOPY_source_gref, abi.GNTCOPY_dest_gref
SELF = xen.DOMID_SELF
HOLE = 0x400000
REF = 8
READING, BOTH = abi.GTF_reading, abi.GTF_reading | abi.GTF_writing


def set_version(guest, version, *, error=0):
    """Run GNTTABOP_set_version; returns the version that Xen wrote back."""
    layout = abi.gnttab_set_version
    guest.poke(guest.args, layout.pack(version=version))
    assert guest.raw(abi.GNTTABOP_set_version, guest.args, 1) == -error
    return layout.unpack(guest.peek(guest.args, layout.size)).version


def get_version(guest):
    return guest.one(abi.GNTTABOP_get_version, abi.gnttab_get_version, dom=SELF).version


def status_frames(guest, count, *, domid=SELF, at=None):
    op = guest.one(
        abi.GNTTABOP_get_status_frames,
        abi.gnttab_get_status_frames,
        nr_frames=count,
        dom=domid,
        status=0x55,
        frame_list=guest.spare if at is None else at,
    )
    return op.status


def write(guest, ref, flags, domid, *, first=0, second=0):
    """Write a version 2 entry: the two 32-bit and 64-bit words behind the header are the type's own."""
    slot = guest.table.slot[ref]
    struct.pack_into("<HHIQ", guest.hv.memory.b, slot << 3, flags, domid, first, second)


def grant(guest, ref, to, mfn, flags=abi.GTF_permit_access):
    write(guest, ref, flags, to.domid, second=mfn)


def grant_part(guest, ref, to, mfn, start, length, flags=0):
    kind = abi.GTF_permit_access | abi.GTF_sub_page | flags
    write(guest, ref, kind, to.domid, first=start | length << 16, second=mfn)


def grant_on(guest, ref, to, owner, owners_ref, flags=0):
    domid = owner if isinstance(owner, int) else owner.domid
    write(guest, ref, abi.GTF_transitive | flags, to.domid, first=domid, second=owners_ref)


def header(guest, ref):
    return guest.hv.memory.h[guest.table.slot[ref] << 2]


def status(guest, ref):
    return guest.hv.memory.h[guest.table.status_at[ref]]


@pytest.fixture
def v2(pair):
    """Domain 1 uses version 2 and grants its page 0 to domain 0."""
    assert set_version(pair.domu, 2) == 2
    grant(pair.domu, REF, pair.dom0, pair.domu.pages[0])
    return pair


class TestConversion:
    def test_versions(self, pair):
        domu = pair.domu
        assert set_version(domu, 1) == 1
        assert set_version(domu, 0, error=errno.EINVAL) == 1
        assert set_version(domu, 3, error=errno.EINVAL) == 1
        assert (set_version(domu, 2), get_version(domu)) == (2, 2)
        assert set_version(domu, 2) == 2
        assert (set_version(domu, 1), get_version(domu)) == (1, 1)

    def test_the_count_is_ignored(self, pair):
        layout = abi.gnttab_set_version
        pair.domu.poke(pair.domu.args, layout.pack(version=1))
        for count in (0, 2):
            assert pair.domu.raw(abi.GNTTABOP_set_version, pair.domu.args, count) == 0

    def test_a_limited_domain(self, pair):
        pair.domu.table.max_version = 1
        assert set_version(pair.domu, 2, error=errno.ENOSYS) == 1

    def test_reserved_entries_are_kept(self, pair):
        domu = pair.domu
        domu.grant(0, 0, 0x66)
        domu.grant(7, 9, 0x77, 5)
        domu.grant(8, 9, 0x88)
        set_version(domu, 2)
        read = [struct.unpack_from("<HHIQ", domu.hv.memory.b, domu.table.slot[ref] << 3) for ref in (0, 7, 8)]
        assert read == [(1, 0, 0, 0x66), (5, 9, 0, 0x77), (0, 0, 0, 0)]
        write(domu, 40, 1, 0, second=5)
        set_version(domu, 1)
        assert [domu.entry(ref) for ref in (0, 7, 8, 40, 80)] == [
            (1, 0, 0x66),
            (5, 9, 0x77),
            (0, 0, 0),
            (0, 0, 0),
            (0, 0, 0),
        ]

    def test_offers_are_not_kept(self, pair):
        """Of the reserved entries only those that grant access find their way back to version 1."""
        domu = pair.domu
        set_version(domu, 2)
        for ref, flags in enumerate((abi.GTF_accept_transfer, 0, abi.GTF_readonly)):
            write(domu, ref, flags, 9, second=0x77)
        set_version(domu, 1)
        assert [domu.entry(ref) for ref in range(3)] == [(0, 0, 0)] * 3

    def test_reserved_entries_in_use(self, pair):
        """The status bits of a mapped console ring move into the status frame and back; the mapping goes on."""
        dom0, domu = pair.dom0, pair.domu
        domu.grant(1, 0, domu.pages[0])
        op = dom0.map(domu, 1, HOLE)
        set_version(domu, 2)
        assert (header(domu, 1), status(domu, 1)) == (1, BOTH)
        dom0.peek(HOLE, 1)
        pair.world.check()
        set_version(domu, 1)
        assert domu.flags(1) == 0x19
        set_version(domu, 2)
        assert dom0.unmap(op.handle, HOLE) == 0
        assert (header(domu, 1), status(domu, 1)) == (1, 0)

    @pytest.mark.parametrize("start", [1, 2])
    def test_any_other_entry_in_use_refuses(self, pair, start):
        dom0, domu = pair.dom0, pair.domu
        set_version(domu, start)
        (domu.grant if start == 1 else lambda *a: grant(domu, *a))(REF, dom0, domu.pages[0])
        op = dom0.map(domu, REF, HOLE, HOST | RO)
        assert set_version(domu, 3 - start, error=errno.EBUSY) == start
        pair.world.check()
        assert dom0.unmap(op.handle, HOLE) == 0
        assert set_version(domu, 3 - start) == 3 - start

    def test_what_version_1_cannot_say(self, pair):
        domu = pair.domu
        set_version(domu, 2)
        write(domu, 3, 1, 0, second=1 << 32)
        assert set_version(domu, 1, error=errno.ERANGE) == 2
        write(domu, 3, 3, 0)
        assert set_version(domu, 1, error=errno.ERANGE) == 2
        write(domu, 3, 0, 0, second=1 << 32)
        assert set_version(domu, 1) == 1

    def test_no_memory_for_status_frames(self, pair):
        frames = pair.hv.frames
        while frames.free_frames:
            frames.alloc(pair.dom0.domain)
        assert set_version(pair.domu, 2, error=errno.ENOMEM) == 1
        pair.world.check()

    def test_the_table_frames_may_be_mapped(self, pair):
        domu = pair.domu
        assert domu.set_pte(HOLE, domu.table.shared[0] << 12 | 7) == 0
        assert set_version(domu, 2) == 2
        assert set_version(domu, 1) == 1


class TestStatusFrames:
    def test_listed(self, v2):
        domu = v2.domu
        assert status_frames(domu, 1) == 0
        assert int.from_bytes(domu.peek(domu.spare, 8), "little") == domu.table.status_frames[0]
        assert status_frames(domu, 0) == 0
        assert status_frames(v2.dom0, 1, domid=1) == 0

    def test_refusals(self, v2):
        dom0, domu = v2.dom0, v2.domu
        assert status_frames(dom0, 1) == abi.GNTST_general_error  # version 1 has none
        assert status_frames(dom0, 0) == 0
        assert status_frames(domu, 2) == abi.GNTST_general_error
        assert status_frames(domu, 1, domid=77) == abi.GNTST_bad_domain
        assert status_frames(domu, 1, domid=0) == abi.GNTST_permission_denied
        assert status_frames(domu, 1, at=0x7FFFFFFFF000) == abi.GNTST_bad_virt_addr

    def test_one_for_eight(self, pair):
        """256 entries in a frame of version 2, 2048 status words: eight frames share one; growing adds."""
        domu = pair.domu
        assert domu.setup_table(64) == 0
        set_version(domu, 2)
        assert (len(domu.table.status_frames), domu.table.nr_entries) == (8, 16384)
        assert (domu.query_size().nr_frames, status_frames(domu, 8), status_frames(domu, 9)) == (64, 0, -1)

    def test_growing(self, v2):
        domu = v2.domu
        assert len(domu.table.status_frames) == 1
        assert domu.setup_table(8) == 0
        assert len(domu.table.status_frames) == 1
        assert domu.setup_table(9) == 0
        assert len(domu.table.status_frames) == 2
        grant(domu, 2303, v2.dom0, domu.pages[0])
        op = v2.dom0.map(domu, 2303, 0, DEVICE)
        assert (op.status, status(domu, 2303)) == (0, BOTH)
        assert v2.dom0.unmap(op.handle, 0, op.dev_bus_addr) == 0

    def test_growing_without_memory(self, v2):
        """Frames whose entries would have no status word are not added."""
        domu, frames = v2.domu, v2.hv.frames
        while frames.free_frames > 8:
            frames.alloc(v2.dom0.domain)
        assert domu.setup_table(9) == abi.GNTST_general_error
        v2.world.check()
        assert domu.query_size().nr_frames == 1

    def test_xsa_382_a_list_that_is_too_short(self, v2):
        """Only as many numbers are written as were asked for."""
        domu = v2.domu
        domu.setup_table(20)
        domu.poke(domu.spare, b"\xaa" * 32)
        assert status_frames(domu, 2) == 0
        assert domu.peek(domu.spare + 16, 16) == b"\xaa" * 16

    def test_xsa_255_mapped_status_frames_stay(self, v2):
        """While one is mapped, by whomever, version 1 is refused and the mapping stays good (also XSA-384, 486)."""
        dom0, domu = v2.dom0, v2.domu
        mfn = domu.table.status_frames[0]
        assert domu.set_pte(HOLE, mfn << 12 | 7) == 0
        assert set_version(domu, 1, error=errno.EBUSY) == 2
        op = dom0.map(domu, REF, HOLE)
        assert domu.peek(HOLE + 2 * REF, 2) == struct.pack("<H", BOTH)
        assert dom0.unmap(op.handle, HOLE) == 0
        assert domu.set_pte(HOLE, 0) == 0
        assert set_version(domu, 1) == 1
        assert domu.set_pte(HOLE, mfn << 12 | 7) != 0  # freed: it is nobody's
        v2.world.check()

    def test_xsa_26_back_and_forth(self, pair):
        """Each way many times: the frames are the same ones, none twice, none lost."""
        domu, frames = pair.domu, pair.hv.frames
        domu.setup_table(12)
        shared, free = list(domu.table.shared), frames.free_frames
        for _ in range(50):
            assert set_version(domu, 2) == 2
            pair.world.check()
            assert frames.free_frames == free - 2
            assert set_version(domu, 1) == 1
            assert (domu.table.shared, domu.table.status_frames, frames.free_frames) == (shared, [], free)

    def test_xsa_379_status_frames_are_not_put_anywhere(self, v2):
        """A PV domain cannot place grant frames in its memory map: it maps them itself, and counts tell."""
        domu, frames = v2.domu, v2.hv.frames
        mfn = domu.table.status_frames[0]
        for va in (HOLE, HOLE + 0x1000):
            assert domu.set_pte(va, mfn << 12 | 7) == 0
        assert domu.set_pte(HOLE, 0) == 0
        assert set_version(domu, 1, error=errno.EBUSY) == 2
        assert frames.count[mfn] == 2
        assert domu.set_pte(HOLE + 0x1000, 0) == 0
        assert set_version(domu, 1) == 1


class TestWholePages:
    def test_the_guests_flags_are_the_guests(self, v2):
        dom0, domu = v2.dom0, v2.domu
        ro = dom0.map(domu, REF, HOLE, HOST | RO)
        assert (header(domu, REF), status(domu, REF)) == (1, READING)
        rw = dom0.map(domu, REF, HOLE + 0x1000, HOST)
        assert (header(domu, REF), status(domu, REF)) == (1, BOTH)
        assert (dom0.unmap(rw.handle, HOLE + 0x1000), status(domu, REF)) == (0, READING)
        assert (dom0.unmap(ro.handle, HOLE), status(domu, REF)) == (0, 0)

    def test_refusals(self, v2):
        dom0, domu = v2.dom0, v2.domu
        cases = [(0, 0), (2, 0), (3, 0), (1, 5), (1 | abi.GTF_readonly, 0), (1 | abi.GTF_sub_page, 0)]
        for flags, domid in cases:
            write(domu, REF, flags, domid, second=domu.pages[0])
            assert dom0.map(domu, REF, HOLE).status == abi.GNTST_general_error
            assert status(domu, REF) == 0
        for mfn in (1 << 32 | domu.pages[0], dom0.pages[0], 1 << 63):
            grant(domu, REF, dom0, mfn)
            assert dom0.map(domu, REF, HOLE).status == abi.GNTST_bad_page
            assert status(domu, REF) == 0
        assert dom0.map(domu, 256, HOLE).status == abi.GNTST_bad_gntref

    def test_cache_attributes_do_not_count_for_ram(self, v2):
        grant(v2.domu, REF, v2.dom0, v2.domu.pages[0], 1 | abi.GTF_PCD)
        op = v2.dom0.map(v2.domu, REF, HOLE)
        assert v2.dom0.pte(HOLE) & 0xFFF == 0x67
        assert v2.dom0.unmap(op.handle, HOLE) == 0

    def test_swap(self, v2):
        domu = v2.domu
        domu.hv.memory.h[domu.table.status_at[9]] = 0x8000  # a word of the guest's own making moves as well
        layout = abi.gnttab_swap_grant_ref
        assert domu.one(abi.GNTTABOP_swap_grant_ref, layout, ref_a=REF, ref_b=9).status == 0
        assert (header(domu, REF), header(domu, 9), status(domu, REF)) == (0, 1, 0x8000)
        op = v2.dom0.map(domu, 9, HOLE)
        assert op.status == 0
        assert domu.one(abi.GNTTABOP_swap_grant_ref, layout, ref_a=REF, ref_b=9).status == abi.GNTST_eagain
        assert v2.dom0.unmap(op.handle, HOLE) == 0

    def test_transfer(self, v2):
        dom0, domu = v2.dom0, v2.domu
        write(domu, REF, abi.GTF_accept_transfer, 0, second=0x123)
        mfn = dom0.alloc()
        assert dom0.transfer(mfn, domu, REF) == 0
        assert (header(domu, REF), v2.hv.memory.q[domu.table.slot[REF] + 1]) == (0xE, mfn)
        assert v2.hv.frames.m2p[mfn] == 0x123

    def test_a_dying_granter(self, v2):
        op = v2.dom0.map(v2.domu, REF, HOLE)
        v2.hv.domain_ops.kill(v2.domu.domain)
        again = v2.dom0.map(1, REF, HOLE + 0x1000)
        assert again.status == 0
        v2.world.check()
        assert v2.dom0.unmap(op.handle, HOLE) == 0
        assert v2.dom0.unmap(again.handle, HOLE + 0x1000) == 0
        assert list(v2.hv.domains) == [0]


class TestParts:
    def test_only_the_part_can_be_copied(self, v2):
        dom0, domu = v2.dom0, v2.domu
        domu.poke(domu.va(0), bytes(range(256)) * 16)
        grant_part(domu, REF, dom0, domu.pages[0], 100, 50)
        here = (dom0.pages[0], SELF, 0)
        assert dom0.copy((REF, 1, 100), here, 50, S) == 0
        assert dom0.peek(dom0.va(0), 50) == bytes(range(100, 150))
        for start, length in ((99, 1), (100, 51), (149, 2), (0, 4096), (151, 0)):
            assert dom0.copy((REF, 1, start), here, length, S) == abi.GNTST_general_error
        assert dom0.copy((REF, 1, 150), here, 0, S) == 0
        assert dom0.copy(here, (REF, 1, 140), 10, D) == 0
        assert dom0.copy(here, (REF, 1, 141), 10, D) == abi.GNTST_general_error
        assert status(domu, REF) == 0

    def test_a_part_cannot_be_mapped(self, v2):
        grant_part(v2.domu, REF, v2.dom0, v2.domu.pages[0], 0, 4096)
        for flags in (HOST, HOST | RO, DEVICE):
            assert v2.dom0.map(v2.domu, REF, HOLE, flags).status == abi.GNTST_general_error

    def test_a_part_beyond_the_page(self, v2):
        """The page ends where it ends, whatever the entry says."""
        dom0, domu = v2.dom0, v2.domu
        grant_part(domu, REF, dom0, domu.pages[0], 4000, 60000)
        assert dom0.copy((REF, 1, 4000), (dom0.pages[0], SELF, 0), 96, S) == 0
        assert dom0.copy((REF, 1, 4000), (dom0.pages[0], SELF, 0), 97, S) == abi.GNTST_bad_copy_arg

    def test_a_mapped_entry_made_partial(self, v2):
        """XSA-500: a copy goes by what was pinned."""
        dom0, domu = v2.dom0, v2.domu
        op = dom0.map(domu, REF, HOLE, HOST | RO)
        grant_part(domu, REF, dom0, domu.pages[1], 0, 1)
        domu.poke(domu.va(0), b"whole page")
        assert dom0.copy((REF, 1, 0), (dom0.pages[0], SELF, 0), 10, S) == 0
        assert dom0.peek(dom0.va(0), 10) == b"whole page"
        assert dom0.map(domu, REF, HOLE + 0x1000, HOST | RO).status == 0
        assert dom0.unmap(op.handle, HOLE) == 0
        assert dom0.unmap(op.handle + 1, HOLE + 0x1000) == 0
        assert dom0.map(domu, REF, HOLE).status == abi.GNTST_general_error


class TestTransitive:
    """Domain 2 grants to domain 1, which passes that on to domain 0."""

    @pytest.fixture
    def chain(self, v2):
        v2.third = v2.world.guest()
        v2.third.grant(20, v2.domu, v2.third.pages[0])
        v2.third.poke(v2.third.va(0), b"from afar")
        grant_on(v2.domu, REF, v2.dom0, v2.third, 20)
        return v2

    def test_xsa_226_copies_through(self, chain):
        """Pins and status bits come and go on both hops, and the version can change afterwards."""
        dom0, domu, third = chain.dom0, chain.domu, chain.third
        before = chain.hv.frames.count[third.pages[0]]
        assert dom0.copy((REF, 1, 0), (dom0.pages[0], SELF, 0), 9, S) == 0
        assert dom0.peek(dom0.va(0), 9) == b"from afar"
        dom0.poke(dom0.va(0), b"there you are")
        assert dom0.copy((dom0.pages[0], SELF, 0), (REF, 1, 0), 13, D) == 0
        assert third.peek(third.va(0), 13) == b"there you are"
        assert (status(domu, REF), third.flags(20)) == (0, 1)
        assert (domu.table.pin[REF], third.table.pin[20], chain.hv.frames.count[third.pages[0]]) == (0, 0, before)
        assert (domu.table.transitive, domu.table.subrange) == ({}, {})
        assert set_version(domu, 1) == 1

    def test_pinned_on_both_hops_during_a_copy(self, chain):
        dom0, domu, third = chain.dom0, chain.domu, chain.third
        assert domu.table.acquire_for_copy(REF, 0, readonly=False) == 0
        assert (status(domu, REF), third.flags(20)) == (BOTH, 0x19)
        assert set_version(domu, 1, error=errno.EBUSY) == 2
        assert dom0.map(domu, REF, HOLE).status == abi.GNTST_general_error
        grant_on(domu, REF, dom0, third, 21)  # too late: the pinned one counts
        assert domu.table.acquire_for_copy(REF, 0, readonly=True) == 0
        assert third.table.pin[20] == 0x1010000
        for readonly in (True, False):
            domu.table.release_after_copy(REF, readonly=readonly)
            chain.hv.frames.put_page(third.pages[0])
        assert (status(domu, REF), third.flags(20)) == (0, 1)

    def test_both_ends_through_one_entry(self, chain):
        dom0, third = chain.dom0, chain.third
        assert dom0.copy((REF, 1, 0), (REF, 1, 100), 9, S | D) == 0
        assert third.peek(third.va(0) + 100, 9) == b"from afar"

    def test_cannot_be_mapped(self, chain):
        for flags in (HOST, HOST | RO, DEVICE):
            assert chain.dom0.map(chain.domu, REF, HOLE, flags).status == abi.GNTST_general_error

    def test_a_read_only_hop(self, chain):
        dom0, domu, third = chain.dom0, chain.domu, chain.third
        here = (dom0.pages[0], SELF, 0)
        third.set_flags(20, 1 | abi.GTF_readonly)
        assert dom0.copy((REF, 1, 0), here, 9, S) == 0
        assert dom0.copy(here, (REF, 1, 0), 9, D) == abi.GNTST_general_error
        third.set_flags(20, 1)
        grant_on(domu, REF, dom0, third, 20, abi.GTF_readonly)
        assert dom0.copy(here, (REF, 1, 0), 9, D) == abi.GNTST_general_error

    def test_a_part_behind(self, chain):
        dom0, third = chain.dom0, chain.third
        set_version(third, 2)
        grant_part(third, 20, chain.domu, third.pages[0], 5, 4)
        assert dom0.copy((REF, 1, 5), (dom0.pages[0], SELF, 0), 4, S) == 0
        assert dom0.peek(dom0.va(0), 4) == b"afar"
        assert dom0.copy((REF, 1, 4), (dom0.pages[0], SELF, 0), 5, S) == abi.GNTST_general_error

    def test_xsa_411_a_failing_inner_hop_leaves_nothing(self, chain):
        dom0, domu, third = chain.dom0, chain.domu, chain.third
        here = (dom0.pages[0], SELF, 0)

        def fails(code):
            assert dom0.copy((REF, 1, 0), here, 1, S) == code
            assert dom0.copy(here, (REF, 1, 0), 1, D) == code
            assert (status(domu, REF), domu.table.pin[REF], domu.table.transitive) == (0, 0, {})
            chain.world.check()

        third.set_flags(20, 0)
        fails(abi.GNTST_general_error)
        third.grant(20, 0, third.pages[0])  # granted to domain 0, but domain 1 is who asks
        fails(abi.GNTST_general_error)
        third.grant(20, 1, 1 << 20)
        fails(abi.GNTST_bad_page)
        grant_on(domu, REF, dom0, third, 9999)
        fails(abi.GNTST_bad_gntref)
        grant_on(domu, REF, dom0, 77, 20)
        fails(abi.GNTST_general_error)
        grant_on(domu, REF, dom0, SELF, 20)
        fails(abi.GNTST_general_error)
        grant_on(domu, REF, dom0, domu, 9)
        fails(abi.GNTST_general_error)

    def test_one_hop_only(self, chain):
        """A transitive grant of a transitive grant is refused, and so is a ring of them."""
        dom0, domu, third = chain.dom0, chain.domu, chain.third
        set_version(third, 2)
        grant_on(third, 20, domu, dom0, 30)
        dom0.grant(30, third, dom0.pages[1])
        assert dom0.copy((REF, 1, 0), (dom0.pages[0], SELF, 0), 1, S) == abi.GNTST_general_error
        grant_on(third, 20, domu, domu, REF)
        assert dom0.copy((REF, 1, 0), (dom0.pages[0], SELF, 0), 1, S) == abi.GNTST_general_error
        chain.world.check()


def test_xsa_501_versions_do_not_change_under_a_use(v2):
    """Whatever is in flight when the version changes: refused, or nothing is in flight."""
    dom0, domu = v2.dom0, v2.domu
    domu.setup_table(2)
    grant(domu, 300, dom0, domu.pages[0])
    op = dom0.map(domu, 300, 0, DEVICE)
    assert set_version(domu, 1, error=errno.EBUSY) == 2
    assert dom0.unmap(op.handle, 0, op.dev_bus_addr) == 0
    assert set_version(domu, 1) == 1
    domu.grant(1000, 0, domu.pages[0])  # an entry that version 2 has not
    op = dom0.map(domu, 1000, 0, DEVICE)
    assert set_version(domu, 2, error=errno.EBUSY) == 1
    assert dom0.unmap(op.handle, 0, op.dev_bus_addr) == 0
    assert set_version(domu, 2) == 2
    assert dom0.map(domu, 1000, 0, DEVICE).status == abi.GNTST_bad_gntref


def test_resources(v2):
    """What XENMEM_acquire_resource gets: frames of either kind, with growth."""
    table = v2.domu.table
    assert table.resource(0, 0, 2) == table.shared[:2]
    assert len(table.shared) == 2
    assert table.resource(1, 0, 1) == table.status_frames[:1]
    assert table.resource(1, 1, 1) == table.status_frames[1:2]
    assert len(table.shared) == 16
    for arguments in ((0, 60, 5), (2, 0, 1), (1, 8, 1), (1, 0, 9)):
        with pytest.raises(Exception, match="22"):
            table.resource(*arguments)
    v2.world.check()
