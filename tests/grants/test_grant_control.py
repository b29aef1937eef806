"""The operations on whole tables, and how the hypercall itself fails."""

from __future__ import annotations

import struct

import pytest

from hypervisor.abi import errno, xen
from hypervisor.abi import grant_table as abi
from hypervisor.errors import HypercallError

SELF = xen.DOMID_SELF
HOST, DEVICE = abi.GNTMAP_host_map, abi.GNTMAP_device_map
HOLE = 0x400000
UNMAPPED = 0x7FFFFFFFF000
XENS = 0xFFFF800000000000


class TestDispatch:
    def test_unknown_operations(self, pair):
        for cmd in (3, 13, 99, 0xFFF):
            assert pair.dom0.raw(cmd, pair.dom0.args, 0) == -errno.ENOSYS
            assert pair.dom0.raw(cmd, 0, 1) == -errno.ENOSYS

    def test_counts_that_are_negative(self, pair):
        for cmd in (0, 1, 2, 5, 6, 99):
            for count in (-1, 0x80000000, 0xFFFFFFFF):
                assert pair.dom0.raw(cmd, pair.dom0.args, count) == -errno.EINVAL

    def test_upper_halves_are_ignored(self, pair):
        assert pair.dom0.raw(5 | 1 << 32, pair.dom0.args, 1 << 32) == 0

    def test_empty_batches(self, pair):
        for cmd in (0, 1, 4, 5, 7, 11, 12):
            assert pair.dom0.raw(cmd, 0, 0) == 0
            assert pair.dom0.raw(cmd, UNMAPPED, 0) == 0
            assert pair.dom0.raw(cmd, XENS, 0) == -errno.EFAULT

    def test_pointers_nowhere(self, pair):
        for cmd in (0, 1, 4, 5, 7, 11, 12):
            for va in (0, UNMAPPED, XENS, 0x800000000000, 0xFFFFFFFFFFFFF000):
                assert pair.dom0.raw(cmd, va, 1) == -errno.EFAULT
        for cmd in (2, 6, 8, 9, 10):
            assert pair.dom0.raw(cmd, UNMAPPED, 1) == -errno.EFAULT

    def test_continuations_are_xens(self, pair):
        """The upper bits of an operation's number say where cache_flush goes on; with any other they are an error."""
        for cmd in (*range(12), 13, 99):
            assert pair.dom0.raw(0x1000 | cmd, pair.dom0.args, 0) == -errno.EINVAL
        assert pair.dom0.raw(0x1000 | abi.GNTTABOP_cache_flush, pair.dom0.args, 0) == 0


class TestSize:
    def test_starts_at_one_frame(self, pair):
        for guest in (pair.dom0, pair.domu):
            op = guest.query_size()
            assert (op.status, op.nr_frames, op.max_nr_frames) == (0, 1, 64)
            assert guest.query_size(guest.domid).nr_frames == 1

    def test_grows_and_never_shrinks(self, pair):
        domu = pair.domu
        for ask, size in ((0, 1), (1, 1), (2, 2), (1, 2), (64, 64), (0, 64)):
            assert domu.setup_table(ask) == 0
            assert domu.query_size().nr_frames == size
        assert domu.setup_table(65) == abi.GNTST_general_error
        assert domu.setup_table(100000) == abi.GNTST_general_error
        assert domu.query_size().nr_frames == 64

    def test_entries_keep_their_place(self, pair):
        pair.domu.grant(8, 0, pair.domu.pages[0])
        op = pair.dom0.map(pair.domu, 8, HOLE)
        assert pair.domu.setup_table(3) == 0
        assert pair.dom0.unmap(op.handle, HOLE) == 0
        assert pair.domu.entry(8) == (1, 0, pair.domu.pages[0])

    def test_lists_the_frames(self, pair):
        domu = pair.domu
        domu.poke(domu.spare, b"\xaa" * 40)
        assert domu.setup_table(3) == 0
        data = domu.peek(domu.spare, 40)
        assert [int.from_bytes(data[8 * n : 8 * n + 8], "little") for n in range(3)] == domu.table.shared
        assert data[24:] == b"\xaa" * 16

    def test_the_frames_can_be_mapped_writable(self, pair):
        domu, frames = pair.domu, pair.hv.frames
        mfn = domu.table.shared[0]
        assert domu.set_pte(HOLE, mfn << 12 | 7) == 0
        domu.poke(HOLE + 8 * 20, abi.grant_entry_v1.pack(flags=1, domid=0, frame=domu.pages[0]))
        assert domu.entry(20) == (1, 0, domu.pages[0])
        assert (frames.count[mfn], frames.type_count[mfn]) == (2, 2)

    def test_a_privileged_domain_does_it_for_another(self, pair):
        dom0, domu = pair.dom0, pair.domu
        assert dom0.setup_table(1, domu.domid) == 0
        mfn = int.from_bytes(dom0.peek(dom0.spare, 8), "little")
        assert mfn == domu.table.shared[0]
        assert dom0.query_size(1).nr_frames == 1
        assert domu.setup_table(1, 0) == abi.GNTST_permission_denied
        op = domu.query_size(0)
        assert (op.status, op.nr_frames, op.max_nr_frames) == (abi.GNTST_permission_denied, 0x7777, 0x7777)

    @pytest.mark.parametrize("domid", [77, xen.DOMID_IO, xen.DOMID_XEN, xen.DOMID_INVALID])
    def test_no_such_domain(self, pair, domid):
        assert pair.dom0.setup_table(1, domid) == abi.GNTST_bad_domain
        op = pair.dom0.query_size(domid)
        assert (op.status, op.nr_frames, op.max_nr_frames) == (abi.GNTST_bad_domain, 0x7777, 0x7777)

    def test_a_bad_list(self, pair):
        assert pair.domu.setup_table(1, frame_list=UNMAPPED) == abi.GNTST_bad_virt_addr
        assert pair.domu.setup_table(0, frame_list=UNMAPPED) == 0

    def test_what_can_be_written_of_a_list_is(self, pair):
        domu = pair.domu
        assert domu.setup_table(3, frame_list=domu.va(1) - 8) == 0
        domu.set_pte(domu.va(0), domu.pte(domu.va(0)) & ~2)
        domu.poke(domu.va(1), bytes(16))
        assert domu.setup_table(3, frame_list=domu.va(1) - 8) == abi.GNTST_bad_virt_addr
        assert struct.unpack("<QQ", domu.peek(domu.va(1), 16)) == tuple(domu.table.shared[1:3])

    def test_one_at_a_time(self, pair):
        for cmd in (2, 6, 9):
            for count in (0, 2):
                assert pair.dom0.raw(cmd, pair.dom0.args, count) == -errno.EINVAL

    def test_memory_runs_out(self, pair):
        frames = pair.hv.frames
        free = frames.alloc_frames(pair.dom0.domain, frames.free_frames - 2)
        assert pair.domu.setup_table(8) == abi.GNTST_general_error
        assert pair.domu.query_size().nr_frames == 3
        pair.world.check()
        assert free


class TestLimits:
    def test_of_a_new_domain(self, pair):
        hv, domain = pair.hv, pair.domu.domain
        domain.grant_table.free()
        hv.grants.init_domain(domain, 3, 0, 1)
        table = domain.grant_table
        assert (table.max_frames, table.maptrack.max_frames, table.max_version) == (3, 0, 1)
        assert pair.domu.query_size().max_nr_frames == 3
        assert pair.domu.setup_table(4) == abi.GNTST_general_error
        pair.dom0.grant(8, 1, pair.dom0.pages[0])
        assert pair.domu.map(pair.dom0, 8, HOLE).status == abi.GNTST_no_space

    @pytest.mark.parametrize("limits", [(0, 1), (65, 1), (1, 1025), (1, 1, 0), (1, 1, 3)])
    def test_beyond_the_hosts(self, pair, limits):
        with pytest.raises(HypercallError) as caught:
            pair.hv.grants.init_domain(pair.domu.domain, *limits)
        assert caught.value.errno == errno.EINVAL


class TestVersion:
    def version(self, guest, domid=SELF):
        return guest.one(abi.GNTTABOP_get_version, abi.gnttab_get_version, dom=domid).version

    def test_starts_at_1(self, pair):
        assert (self.version(pair.dom0), self.version(pair.dom0, 1), self.version(pair.domu, 1)) == (1, 1, 1)

    def test_errors(self, pair):
        layout = abi.gnttab_get_version
        for guest, domid, error in ((pair.dom0, 77, errno.ESRCH), (pair.domu, 0, errno.EPERM)):
            guest.poke(guest.args, layout.pack(dom=domid, version=9))
            assert guest.raw(abi.GNTTABOP_get_version, guest.args, 1) == -error
            assert layout.unpack(guest.peek(guest.args, layout.size)).version == 9


class TestSwap:
    def swap(self, guest, first, second):
        return guest.one(abi.GNTTABOP_swap_grant_ref, abi.gnttab_swap_grant_ref, ref_a=first, ref_b=second).status

    def test_swaps(self, pair):
        domu = pair.domu
        domu.grant(8, 0, 111)
        domu.grant(300, 5, 222, 5)
        assert self.swap(domu, 8, 300) == 0
        assert (domu.entry(8), domu.entry(300)) == ((5, 5, 222), (1, 0, 111))
        assert self.swap(domu, 0, 7) == 0
        assert self.swap(domu, 8, 8) == 0

    def test_an_entry_in_use_stays(self, pair):
        dom0, domu = pair.dom0, pair.domu
        domu.grant(8, 0, domu.pages[0])
        op = dom0.map(domu, 8, 0, DEVICE)
        assert self.swap(domu, 8, 9) == abi.GNTST_eagain
        assert self.swap(domu, 9, 8) == abi.GNTST_eagain
        assert self.swap(domu, 8, 8) == 0
        assert (domu.flags(8), domu.flags(9)) == (0x19, 0)
        assert dom0.unmap(op.handle, 0, op.dev_bus_addr) == 0
        assert self.swap(domu, 8, 9) == 0


class TestCacheFlush:
    def flush(self, guest, mfn, op, offset=0, length=64):
        layout = abi.gnttab_cache_flush
        guest.poke(guest.args, layout.pack(a=(mfn << 12).to_bytes(8, "little"), offset=offset, length=length, op=op))
        return guest.raw(abi.GNTTABOP_cache_flush, guest.args, 1)

    def test_own_page(self, pair):
        mfn = pair.domu.pages[0]
        assert self.flush(pair.domu, mfn, 1) == 0
        assert self.flush(pair.domu, mfn, 3) == 0
        assert self.flush(pair.domu, mfn, 2) == -errno.EOPNOTSUPP
        assert self.flush(pair.domu, mfn, 0) == 0
        assert self.flush(pair.domu, mfn, 1, length=0) == 0

    def test_bad_arguments(self, pair):
        mfn = pair.domu.pages[0]
        for op in (8, 4, abi.GNTTAB_CACHE_SOURCE_GREF | 1):
            assert self.flush(pair.domu, mfn, op) == -errno.EINVAL
        for offset, length in ((4090, 10), (4096, 0), (0, 4097), (65535, 65535)):
            assert self.flush(pair.domu, mfn, 1, offset, length) == -errno.EINVAL
        assert self.flush(pair.domu, 0xFFFFFFFFFF, 1) == -errno.EINVAL

    def test_somebody_elses_page_only_while_mapped(self, pair):
        dom0, domu = pair.dom0, pair.domu
        domu.grant(8, 0, domu.pages[0])
        assert self.flush(dom0, domu.pages[0], 1) == -errno.EINVAL
        op = dom0.map(domu, 8, HOLE)
        assert self.flush(dom0, domu.pages[0], 1) == 0
        assert self.flush(dom0, domu.pages[1], 1) == -errno.EINVAL
        assert dom0.unmap(op.handle, HOLE) == 0
        assert self.flush(dom0, domu.pages[0], 1) == -errno.EINVAL

    def test_pages_of_nobody(self, pair):
        """XSA-232: frames of the system domains have no grant table behind them."""
        assert self.flush(pair.dom0, pair.hv.frames.m2p_mfn, 1) == -errno.EPERM
        assert self.flush(pair.dom0, 0, 1) == -errno.EINVAL

    def test_a_search_that_goes_on(self, pair):
        """The granter's entries are searched 4096 at a time, and the place is kept in the operation's number."""
        dom0, domu = pair.dom0, pair.domu
        assert domu.setup_table(32) == 0
        ref = 5000
        domu.grant(ref, 0, domu.pages[0])
        op = dom0.map(domu, ref, HOLE)
        cmd, layout = abi.GNTTABOP_cache_flush, abi.gnttab_cache_flush
        assert self.flush(dom0, domu.pages[0], 1) == 0
        assert dom0.raw(cmd | 0x1000, dom0.args, 1) == 0
        assert dom0.raw(cmd | 0x2000, dom0.args, 1) == -errno.EINVAL  # past it
        dom0.poke(dom0.args, layout.pack(a=(dom0.pages[0] << 12).to_bytes(8, "little"), offset=0, length=0, op=1))
        assert dom0.raw(cmd | 0x1000, dom0.args, 1) == -errno.EILSEQ
        assert dom0.unmap(op.handle, HOLE) == 0


def test_trace(make_world):
    """Each operation is one record when a trace is kept."""
    world = make_world()
    records = []
    world.hv.trace = lambda *record: records.append(record)
    dom0, domu = world.guest(), world.guest()
    records.clear()
    domu.grant(8, 0, domu.pages[0])
    op = dom0.map(domu, 8, 0, DEVICE)
    dom0.copy((8, 1, 0), (dom0.pages[0], SELF, 0), 16, abi.GNTCOPY_source_gref)
    dom0.unmap(op.handle, 0, op.dev_bus_addr)
    dom0.transfer(dom0.pages[0], domu, 9)
    grants = [record for record in records if 20 <= record[2] < 30]
    assert grants == [
        (0, 0, 20, 1, 8, DEVICE, 0, 0),
        (0, 0, 22, 8, dom0.pages[0], 16, 0),
        (0, 0, 21, 0, 0),
        (0, 0, 23, 1, 9, abi.GNTST_bad_page),
    ]
