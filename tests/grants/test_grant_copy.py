"""GNTTABOP_copy with version 1 entries."""

from __future__ import annotations

import struct

import pytest

from hypervisor.abi import grant_table as abi
from hypervisor.abi import xen
from hypervisor.grant_table.copying import CODEC, STATUS

SELF = xen.DOMID_SELF
S, D = abi.GNTCOPY_source_gref, abi.GNTCOPY_dest_gref
SRC, DST, RO = 8, 9, 5
HOLE = 0x400000


@pytest.fixture
def two(pair):
    """Domain 1 grants page 0 read-only and page 1 writable to domain 0."""
    domu = pair.domu
    domu.grant(SRC, 0, domu.pages[0], RO)
    domu.grant(DST, 0, domu.pages[1])
    domu.poke(domu.va(0), bytes(range(256)) * 16)
    return pair


def test_the_codec_is_the_structure():
    ends = {"u": 0x1122334455667788, "domid": 0x99AA, "offset": 0xBBCC}
    data = bytearray(abi.gnttab_copy.size)
    for side in ("source", "dest"):
        for name, size in (("u", 8), ("domid", 2), ("offset", 2)):
            at = abi.gnttab_copy.offset(f"{side}.{name}")
            data[at : at + size] = ends[name].to_bytes(size, "little")
    struct.pack_into("<HHh", data, abi.gnttab_copy.offset("len"), 1, 2, 3)
    assert CODEC.unpack_from(data) == (*ends.values(), *ends.values(), 1, 2)
    assert struct.unpack_from("<h", data, STATUS) == (3,)


class TestBetween:
    def test_two_grants(self, two):
        assert two.dom0.copy((SRC, 1, 0), (DST, 1, 0), 4096, S | D) == 0
        assert two.domu.peek(two.domu.va(1), 4096) == bytes(range(256)) * 16
        assert (two.domu.flags(SRC), two.domu.flags(DST)) == (RO, 1)

    def test_grant_and_own_frame(self, two):
        dom0, domu = two.dom0, two.domu
        assert dom0.copy((SRC, 1, 3), (dom0.pages[0], SELF, 100), 5, S) == 0
        assert dom0.peek(dom0.va(0) + 98, 9) == b"\0\0\3\4\5\6\7\0\0"
        dom0.poke(dom0.va(0), b"answer")
        assert dom0.copy((dom0.pages[0], SELF, 0), (DST, 1, 4090), 6, D) == 0
        assert domu.peek(domu.va(1) + 4090, 6) == b"answer"

    def test_two_own_frames(self, two):
        dom0 = two.dom0
        dom0.poke(dom0.va(0), b"abc")
        assert dom0.copy((dom0.pages[0], SELF, 0), (dom0.pages[1], SELF, 1), 3, 0) == 0
        assert dom0.peek(dom0.va(1), 5) == b"\0abc\0"

    def test_grants_of_the_caller_itself(self, two):
        dom0 = two.dom0
        dom0.grant(SRC, 0, dom0.pages[0], RO)
        dom0.grant(DST, 0, dom0.pages[1])
        dom0.poke(dom0.va(0), b"own")
        assert dom0.copy((SRC, SELF, 0), (DST, 0, 0), 3, S | D) == 0
        assert dom0.peek(dom0.va(1), 3) == b"own"
        assert dom0.copy((SRC, 0, 0), (DST, SELF, 8), 3, S | D) == 0
        assert dom0.peek(dom0.va(1), 12) == b"own\0\0\0\0\0own\0"

    def test_an_unprivileged_domain_copies_too(self, two):
        two.dom0.grant(SRC, 1, two.dom0.pages[0])
        two.dom0.poke(two.dom0.va(0), b"from above")
        assert two.domu.copy((SRC, 0, 0), (two.domu.pages[3], SELF, 0), 10, S) == 0
        assert two.domu.peek(two.domu.va(3), 10) == b"from above"

    @pytest.mark.parametrize("plain", [False, True])
    def test_within_one_page(self, two, plain):
        """One entry as both ends: Xen copies upwards, by eight bytes and then one by one, whatever it writes over."""
        domu = two.domu
        two.hv.grants.copying.plain = plain
        for source, dest, length, outcome in (
            (0, 2, 8, b"0101234567ABCDEFGHIJKLMN"),
            (0, 4, 19, b"0123012345674567CDEFCDEN"),
            (0, 1, 3, b"0000456789ABCDEFGHIJKLMN"),
            (0, 9, 15, b"012345678012345678012345"),
            (4, 0, 20, b"456789ABCDEFGHIJKLMNKLMN"),
        ):
            domu.poke(domu.va(1), b"0123456789ABCDEFGHIJKLMN")
            assert two.dom0.copy((DST, 1, source), (DST, 1, dest), length, S | D) == 0
            assert (domu.peek(domu.va(1), 24), domu.flags(DST)) == (outcome, 1)

    def test_two_domains_through_a_third(self, two):
        third = two.world.guest()
        third.grant(DST, 0, third.pages[0])
        assert two.dom0.copy((SRC, 1, 0), (DST, 2, 0), 256, S | D) == 0
        assert third.peek(third.va(0), 256) == bytes(range(256))

    def test_the_destination_is_marked_written(self, two):
        written, mfns = two.hv.memory.written, two.domu.pages
        written[mfns[0]] = written[mfns[1]] = 0
        assert two.dom0.copy((SRC, 1, 0), (DST, 1, 0), 1, S | D) == 0
        assert (written[mfns[0]], written[mfns[1]]) == (0, 1)

    def test_the_granters_status_bits_are_xens(self, two):
        """Bits that the granter set itself go, as after any use; a read leaves GTF_writing alone."""
        domu = two.domu
        domu.set_flags(SRC, RO | 0x18)
        domu.set_flags(DST, 1 | 0x18)
        assert two.dom0.copy((SRC, 1, 0), (DST, 1, 0), 1, S | D) == 0
        assert (domu.flags(SRC), domu.flags(DST)) == (RO | 0x10, 1)


class TestBounds:
    @pytest.mark.parametrize(
        ("source", "dest", "length", "status"),
        [
            (0, 0, 0, 0),
            (4096, 0, 0, 0),
            (0, 4096, 0, 0),
            (4095, 4095, 1, 0),
            (0, 0, 4097, -10),
            (4096, 0, 1, -10),
            (0, 4096, 1, -10),
            (4090, 0, 7, -10),
            (0, 4090, 7, -10),
            (65535, 0, 0, -10),
            (65535, 0, 65535, -10),
        ],
    )
    def test_offset_and_length(self, two, source, dest, length, status):
        assert two.dom0.copy((SRC, 1, source), (DST, 1, dest), length, S | D) == status

    def test_nothing_is_copied_out_of_bounds(self, two):
        dom0 = two.dom0
        assert dom0.copy((SRC, 1, 4090), (DST, 1, 0), 7, S | D) == abi.GNTST_bad_copy_arg
        assert two.domu.peek(two.domu.va(1), 16) == bytes(16)


class TestRefusals:
    def test_frames_are_the_callers_only(self, two):
        dom0, domu = two.dom0, two.domu
        mine = dom0.pages[0]
        assert dom0.copy((mine, 0, 0), (DST, 1, 0), 1, D) == abi.GNTST_permission_denied
        assert dom0.copy((SRC, 1, 0), (mine, 0, 0), 1, S) == abi.GNTST_permission_denied
        assert dom0.copy((domu.pages[0], 1, 0), (mine, SELF, 0), 1, 0) == abi.GNTST_permission_denied
        assert dom0.copy((domu.pages[0], SELF, 0), (mine, SELF, 0), 1, 0) == abi.GNTST_bad_page
        assert dom0.copy((mine, SELF, 0), (mine, 77, 0), 1, 0) == abi.GNTST_bad_domain

    @pytest.mark.parametrize("domid", [77, xen.DOMID_IO, xen.DOMID_XEN])
    def test_no_such_domain(self, two, domid):
        assert two.dom0.copy((SRC, domid, 0), (DST, 1, 0), 1, S | D) == abi.GNTST_bad_domain
        assert two.dom0.copy((SRC, 1, 0), (DST, domid, 0), 1, S | D) == abi.GNTST_bad_domain

    def test_references(self, two):
        dom0, domu = two.dom0, two.domu
        assert dom0.copy((50, 1, 0), (DST, 1, 0), 1, S | D) == abi.GNTST_general_error
        assert dom0.copy((SRC, 1, 0), (50, 1, 0), 1, S | D) == abi.GNTST_general_error
        assert dom0.copy((512, 1, 0), (DST, 1, 0), 1, S | D) == abi.GNTST_bad_gntref
        assert dom0.copy((SRC, 1, 0), (0xFFFFFFFF, 1, 0), 1, S | D) == abi.GNTST_bad_gntref
        assert dom0.copy((SRC, 1, 0), (SRC, 1, 0), 1, S | D) == abi.GNTST_general_error
        domu.grant(50, 3, domu.pages[2])
        assert dom0.copy((50, 1, 0), (DST, 1, 0), 1, S | D) == abi.GNTST_general_error
        assert (domu.flags(SRC), domu.flags(DST)) == (RO, 1)

    def test_upper_half_of_a_reference_is_ignored(self, two):
        assert two.dom0.copy((SRC | 1 << 32, 1, 0), (DST | 7 << 40, 1, 0), 1, S | D) == 0

    def test_bad_frames(self, two):
        dom0, domu = two.dom0, two.domu
        for mfn in (0, 1 << 20, 0xFFFFFFFFFFFFFFFF, two.hv.frames.m2p_mfn):
            assert dom0.copy((mfn, SELF, 0), (DST, 1, 0), 1, D) == abi.GNTST_bad_page
            assert dom0.copy((SRC, 1, 0), (mfn, SELF, 0), 1, S) == abi.GNTST_bad_page
        domu.grant(50, 0, 0xFFFFFF)
        assert dom0.copy((50, 1, 0), (DST, 1, 0), 1, S | D) == abi.GNTST_bad_page
        assert domu.flags(50) == 1

    def test_page_tables_are_read_only(self, two):
        dom0, domu = two.dom0, two.domu
        assert dom0.copy((dom0.l1, SELF, 8), (dom0.pages[0], SELF, 0), 8, 0) == 0
        assert int.from_bytes(dom0.peek(dom0.va(0), 8), "little") == dom0.pte(dom0.va(0))
        assert dom0.copy((dom0.pages[0], SELF, 0), (dom0.l1, SELF, 0), 8, 0) == abi.GNTST_general_error
        domu.grant(50, 0, domu.l1)
        assert dom0.copy((SRC, 1, 0), (50, 1, 0), 8, S | D) == abi.GNTST_general_error
        assert domu.flags(50) == 1

    def test_flags_that_mean_nothing(self, two):
        assert two.dom0.copy((SRC, 1, 0), (DST, 1, 0), 1, S | D | 4 | 0x8000) == 0

    def test_sub_page_means_nothing_in_version_1(self, two):
        two.domu.set_flags(SRC, RO | abi.GTF_sub_page)
        assert two.dom0.copy((SRC, 1, 100), (DST, 1, 0), 100, S | D) == 0


class TestBatches:
    def test_goes_on_after_a_failure(self, two):
        good = ((SRC, 1, 0), (DST, 1, 0), 4, S | D)
        bad = ((50, 1, 0), (DST, 1, 0), 4, S | D)
        assert two.dom0.copies([good, bad, good]) == [0, -1, 0]

    def test_an_earlier_copy_may_rewrite_the_next_arguments(self, two):
        """Arguments are read when their turn comes, as one copy after another on real Xen."""
        dom0 = two.dom0
        dom0.poke(dom0.va(0), (50).to_bytes(8, "little"))
        second = ((SRC, 1, 0), (DST, 1, 0), 1, S | D)
        aimed = ((dom0.pages[0], SELF, 0), (dom0.scratch[0], SELF, abi.gnttab_copy.size), 8, 0)
        assert dom0.copies([aimed, second]) == [0, abi.GNTST_general_error]

    def test_across_pages(self, two):
        dom0 = two.dom0
        op = struct.pack("<QHH4xQHH4xHHh2x", SRC, 1, 0, DST, 1, 0, 1, S | D, 0x55)
        for at in (dom0.args + 4096 - 100, dom0.args + 4096 - 99, dom0.args + 4):
            dom0.poke(at, op * 5)
            assert dom0.raw(abi.GNTTABOP_copy, at, 5) == 0
            data = dom0.peek(at, len(op) * 5)
            assert [struct.unpack_from("<h", data, len(op) * n + STATUS)[0] for n in range(5)] == [0] * 5

    def test_statistics(self, two):
        two.dom0.copies([((SRC, 1, 0), (DST, 1, 0), 4, S | D), ((50, 1, 0), (DST, 1, 0), 4, S | D)])
        assert two.dom0.table.stats.copies == 1


class TestWhileMapped:
    def test_a_copy_keeps_the_bits_of_a_mapping(self, two):
        """XSA-230: a copy through an entry that is mapped too must not clear its status bits."""
        dom0, domu = two.dom0, two.domu
        op = dom0.map(domu, DST, 0, abi.GNTMAP_device_map)
        assert dom0.copy((DST, 1, 0), (DST, 1, 100), 4, S | D) == 0
        assert domu.flags(DST) == 0x19
        assert dom0.unmap(op.handle, 0, op.dev_bus_addr) == 0
        assert domu.flags(DST) == 1

    def test_writing_while_mapped_for_reading(self, two):
        dom0, domu = two.dom0, two.domu
        op = dom0.map(domu, DST, HOLE, abi.GNTMAP_host_map | abi.GNTMAP_readonly)
        assert dom0.copy((SRC, 1, 0), (DST, 1, 0), 4, S | D) == 0
        assert domu.flags(DST) == 0x9
        assert dom0.unmap(op.handle, HOLE) == 0

    def test_a_pinned_entry_is_used_as_pinned(self, two):
        """XSA-500: what the granter writes into a mapped entry does not lead a copy elsewhere."""
        dom0, domu = two.dom0, two.domu
        op = dom0.map(domu, DST, HOLE, abi.GNTMAP_host_map | abi.GNTMAP_readonly)
        domu.grant(DST, 0, domu.pages[7], 1 | abi.GTF_sub_page)
        domu.poke(domu.va(1), b"pinned")
        assert dom0.copy((DST, 1, 0), (dom0.pages[0], SELF, 0), 6, S) == 0
        assert dom0.peek(dom0.va(0), 6) == b"pinned"
        # The first writer has the entry looked at again: it must still say the same.
        assert dom0.copy((SRC, 1, 0), (DST, 1, 0), 4, S | D) == abi.GNTST_general_error
        domu.grant(DST, 0, 0x7FFFFF)
        assert dom0.copy((SRC, 1, 0), (DST, 1, 0), 4, S | D) == abi.GNTST_bad_page
        domu.grant(DST, 0, domu.pages[1], 1 | abi.GTF_readonly)
        assert dom0.copy((SRC, 1, 0), (DST, 1, 0), 4, S | D) == abi.GNTST_general_error
        assert domu.flags(DST) == 1 | abi.GTF_readonly
        domu.grant(DST, 0, domu.pages[1])
        assert dom0.copy((SRC, 1, 0), (DST, 1, 0), 4, S | D) == 0
        assert domu.peek(domu.va(1), 4) == bytes(range(4))
        assert domu.peek(domu.va(7), 4) == bytes(4)
        assert dom0.unmap(op.handle, HOLE) == 0

    def test_a_full_counter_refuses(self, two):
        dom0, domu = two.dom0, two.domu
        ops = [dom0.map(domu, SRC, HOLE + 0x1000 * n, abi.GNTMAP_host_map | abi.GNTMAP_readonly) for n in range(128)]
        assert dom0.copy((SRC, 1, 0), (DST, 1, 0), 1, S | D) == abi.GNTST_general_error
        for n, op in enumerate(ops):
            assert dom0.unmap(op.handle, HOLE + 0x1000 * n) == 0
        assert dom0.copy((SRC, 1, 0), (DST, 1, 0), 1, S | D) == 0
