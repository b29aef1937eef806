"""GNTTABOP_map_grant_ref and _unmap_grant_ref with version 1 entries, as Xen answers them."""

from __future__ import annotations

import pytest

from hypervisor.abi import grant_table as abi
from hypervisor.abi import xen
from hypervisor.abi.cpu import PageFault

HOST, DEVICE = abi.GNTMAP_host_map, abi.GNTMAP_device_map
RO, PTE = abi.GNTMAP_readonly, abi.GNTMAP_contains_pte
HOLE = 0x400000
MAPPED_RW, MAPPED_RO, GRANTED = 0x19, 0x9, 0x1
REF = 8


def untouched(op) -> bool:
    return (op.handle, op.dev_bus_addr) == (0xDEAD, 0x7777)


def entry_flags(entry: int) -> int:
    return entry & ~0x000FFFFFFFFFF000


@pytest.fixture
def granted(pair):
    """Domain 1 grants its page 0 to domain 0, writable, as reference 8."""
    pair.domu.grant(REF, pair.dom0, pair.domu.pages[0])
    return pair


class TestHostMapping:
    def test_bytes_are_shared(self, granted):
        dom0, domu = granted.dom0, granted.domu
        domu.poke(domu.va(0), b"from the granter")
        op = dom0.map(domu, REF, HOLE)
        assert (op.status, op.handle, op.dev_bus_addr) == (0, 0, domu.pages[0] << 12)
        assert dom0.peek(HOLE, 16) == b"from the granter"
        dom0.poke(HOLE, b"from the mapper!")
        assert domu.peek(domu.va(0), 16) == b"from the mapper!"
        assert domu.flags(REF) == MAPPED_RW
        assert dom0.unmap(op.handle, HOLE) == 0
        assert domu.flags(REF) == GRANTED
        with pytest.raises(PageFault):
            dom0.peek(HOLE, 1)

    def test_a_domain_maps_its_own_grant(self, pair):
        pair.dom0.grant(REF, pair.dom0, pair.dom0.pages[0])
        op = pair.dom0.map(pair.dom0, REF, HOLE)
        assert op.status == 0
        assert pair.dom0.unmap(op.handle, HOLE) == 0

    def test_an_unprivileged_domain_maps_grants_of_dom0(self, pair):
        pair.dom0.grant(REF, pair.domu, pair.dom0.pages[0])
        op = pair.domu.map(pair.dom0, REF, HOLE)
        assert (op.status, pair.dom0.flags(REF)) == (0, MAPPED_RW)
        assert pair.domu.unmap(op.handle, HOLE) == 0

    @pytest.mark.parametrize(
        ("flags", "bits"),
        [
            (HOST, 0x8010000000000067),
            (HOST | RO, 0x8010000000000065),
            (HOST | abi.GNTMAP_application_map, 0x8000000000000167),
            (HOST | 0x10000, 0x8010000000000267),
            (HOST | 0xFFFF0000, 0x8010000000000E67),
            (HOST | 0x100, 0x8010000000000067),
            (HOST | 0x20, 0x8010000000000067),
        ],
    )
    def test_what_the_entry_reads_back(self, granted, flags, bits):
        op = granted.dom0.map(granted.domu, REF, HOLE, flags)
        assert op.status == 0
        entry = granted.dom0.pte(HOLE)
        assert (entry_flags(entry), entry >> 12 & 0xFFFFFFFFFF) == (bits, granted.domu.pages[0])
        assert granted.dom0.unmap(op.handle, HOLE) == 0

    @pytest.mark.parametrize("gtf", [abi.GTF_PWT, abi.GTF_PCD, abi.GTF_PAT])
    def test_the_granters_cache_attributes_do_not_count_for_ram(self, granted, gtf):
        granted.domu.set_flags(REF, GRANTED | gtf)
        op = granted.dom0.map(granted.domu, REF, HOLE)
        assert (op.status, granted.domu.flags(REF)) == (0, MAPPED_RW | gtf)
        assert entry_flags(granted.dom0.pte(HOLE)) == 0x8010000000000067
        assert granted.dom0.unmap(op.handle, HOLE) == 0

    @pytest.mark.parametrize("flags", [HOST, HOST | RO, DEVICE])
    def test_a_part_of_a_page_cannot_be_mapped(self, granted, flags):
        """Version 1 too refuses GTF_sub_page, which means nothing there."""
        granted.domu.set_flags(REF, GRANTED | abi.GTF_sub_page)
        assert granted.dom0.map(granted.domu, REF, HOLE, flags).status == abi.GNTST_general_error
        assert granted.domu.flags(REF) == GRANTED | abi.GTF_sub_page

    def test_an_address_inside_the_page_will_do(self, granted):
        op = granted.dom0.map(granted.domu, REF, HOLE + 0x123)
        assert op.status == 0
        assert granted.dom0.unmap(op.handle, HOLE + 0xFFF) == 0

    def test_read_only_cannot_be_written(self, granted):
        op = granted.dom0.map(granted.domu, REF, HOLE, HOST | RO)
        assert (op.status, granted.domu.flags(REF)) == (0, MAPPED_RO)
        granted.dom0.peek(HOLE, 8)
        with pytest.raises(PageFault):
            granted.dom0.poke(HOLE, b"x")
        assert granted.dom0.unmap(op.handle, HOLE) == 0
        assert granted.domu.flags(REF) == GRANTED

    def test_bad_places_for_a_mapping(self, granted):
        for place in (0x7FFFFFFFF000, 0x0000800000000000, 0xFFFF7FFFFFFFF000, 0xFFFF800000000000, 0xFFFF87FFFFFFF000):
            op = granted.dom0.map(granted.domu, REF, place)
            assert (op.status, untouched(op), granted.domu.flags(REF)) == (abi.GNTST_general_error, True, GRANTED)
        frames, mfn = granted.hv.frames, granted.domu.pages[0]
        assert (frames.count[mfn], frames.type_count[mfn]) == (2, 1)

    def test_over_a_page_of_ones_own(self, granted):
        """The page that was there loses its mapping and nothing else."""
        dom0 = granted.dom0
        mine = dom0.pages[3]
        before = granted.hv.frames.count[mine]
        dom0.peek(dom0.va(3), 1)
        op = dom0.map(granted.domu, REF, dom0.va(3))
        assert (op.status, granted.hv.frames.count[mine]) == (0, before - 1)
        granted.domu.poke(granted.domu.va(0), b"!")
        assert dom0.peek(dom0.va(3), 1) == b"!"
        assert (dom0.unmap(op.handle, dom0.va(3)), dom0.pte(dom0.va(3))) == (0, 0)

    def test_over_the_page_of_the_arguments(self, granted):
        """The status of an operation that maps over its own arguments goes where the address leads afterwards."""
        dom0, domu = granted.dom0, granted.domu
        ops = [
            {"host_addr": dom0.args, "flags": HOST, "ref": REF, "dom": 1, "status": 0x55},
            {"ref": 1, "status": 0x66},
        ]
        domu.poke(domu.va(0), b"\x77" * 4096)
        left = dom0.batch(abi.GNTTABOP_map_grant_ref, abi.gnttab_map_grant_ref, ops)
        assert (left[0].status, left[0].handle, left[0].host_addr) == (0, 0, 0x7777777777777777)
        assert left[1].status == abi.GNTST_bad_domain  # what the granter's page says: domain 0x7777, flags 0x77777777
        old = granted.hv.memory.frame(dom0.scratch[0])
        assert abi.gnttab_map_grant_ref.unpack_from(old, 0).status == 0x55

    def test_arguments_in_a_mapping_that_goes(self, granted):
        """A mapper cannot have a status written into a frame that it no longer maps."""
        dom0, domu = granted.dom0, granted.domu
        handle = dom0.map(domu, REF, HOLE).handle
        data = abi.gnttab_unmap_grant_ref.pack(host_addr=HOLE, handle=handle, status=0x55)
        dom0.poke(HOLE + 0x100, data)
        assert dom0.raw(abi.GNTTABOP_unmap_grant_ref, HOLE + 0x100, 1) == -14
        assert domu.peek(domu.va(0) + 0x100, len(data)) == data
        assert domu.flags(REF) == GRANTED


class TestByPageTableEntry:
    def test_by_machine_address(self, granted):
        dom0 = granted.dom0
        place = dom0.pte_index(HOLE) << 3
        op = dom0.map(granted.domu, REF, place, HOST | PTE)
        assert (op.status, entry_flags(dom0.pte(HOLE))) == (0, 0x8010000000000067)
        dom0.peek(HOLE, 1)
        assert dom0.unmap(op.handle, HOLE) == abi.GNTST_general_error
        assert dom0.unmap(op.handle, place) == 0
        with pytest.raises(PageFault):
            dom0.peek(HOLE, 1)

    def test_bad_machine_addresses(self, granted):
        dom0 = granted.dom0
        good = dom0.pte_index(HOLE) << 3
        others = granted.domu.pte_index(HOLE) << 3
        table = bytes(granted.hv.memory.frame(dom0.hole_l1))
        for place in (good + 4, good + 1, dom0.pages[1] << 12, 0x7FFFFFF000, 1 << 63, dom0.l2 << 12, others, 0):
            op = dom0.map(granted.domu, REF, place, HOST | PTE)
            assert (op.status, untouched(op)) == (abi.GNTST_general_error, True)
        assert bytes(granted.hv.memory.frame(dom0.hole_l1)) == table


class TestRefusals:
    """A status other than okay leaves handle and dev_bus_addr as they were."""

    @pytest.mark.parametrize(
        ("entry_bits", "to", "flags"),
        [
            (abi.GTF_permit_access | abi.GTF_readonly, 0, HOST),
            (abi.GTF_permit_access, 7, HOST),
            (abi.GTF_permit_access, xen.DOMID_SELF, HOST),
            (abi.GTF_invalid, 0, HOST),
            (abi.GTF_accept_transfer, 0, HOST),
            (abi.GTF_transitive, 0, HOST),
            (abi.GTF_invalid, 0, DEVICE),
        ],
    )
    def test_unusable_entries(self, pair, entry_bits, to, flags):
        pair.domu.grant(REF, to, pair.domu.pages[0], entry_bits)
        op = pair.dom0.map(pair.domu, REF, HOLE, flags)
        assert (op.status, untouched(op), pair.domu.flags(REF)) == (abi.GNTST_general_error, True, entry_bits)

    def test_read_only_grant_read_only(self, pair):
        pair.domu.grant(REF, 0, pair.domu.pages[0], 5)
        op = pair.dom0.map(pair.domu, REF, HOLE, HOST | RO)
        assert (op.status, pair.domu.flags(REF)) == (0, 0xD)
        assert pair.dom0.unmap(op.handle, HOLE) == 0
        assert pair.domu.flags(REF) == 5

    @pytest.mark.parametrize("flags", [0, RO, PTE, RO | PTE, 0xFFFF0000])
    def test_neither_host_nor_device(self, granted, flags):
        op = granted.dom0.map(granted.domu, REF, HOLE, flags)
        assert (op.status, untouched(op)) == (abi.GNTST_bad_gntref, True)

    @pytest.mark.parametrize("ref", [512, 0xFFFF, 0xFFFFFFFF])
    def test_beyond_the_table(self, granted, ref):
        op = granted.dom0.map(granted.domu, ref, HOLE)
        assert (op.status, untouched(op)) == (abi.GNTST_bad_gntref, True)

    def test_the_last_entry_of_a_grown_table(self, granted):
        assert granted.domu.setup_table(2) == 0
        op = granted.dom0.map(granted.domu, 1023, HOLE)
        assert op.status == abi.GNTST_general_error
        granted.domu.grant(1023, 0, granted.domu.pages[0])
        op = granted.dom0.map(granted.domu, 1023, HOLE)
        assert op.status == 0
        assert granted.dom0.unmap(op.handle, HOLE) == 0

    @pytest.mark.parametrize("domid", [77, xen.DOMID_SELF, xen.DOMID_IO, xen.DOMID_XEN, xen.DOMID_INVALID])
    def test_no_such_domain(self, granted, domid):
        op = granted.dom0.map(domid, REF, HOLE)
        assert (op.status, untouched(op)) == (abi.GNTST_bad_domain, True)

    def test_bad_frames(self, pair):
        for mfn in (0xFFFFFFFF, pair.dom0.pages[0], 0, pair.hv.frames.m2p_mfn, pair.hv.memory.frames):
            pair.domu.grant(REF, 0, mfn)
            for flags in (HOST, HOST | RO, DEVICE):
                op = pair.dom0.map(pair.domu, REF, HOLE, flags)
                assert (op.status, untouched(op), pair.domu.flags(REF)) == (abi.GNTST_bad_page, True, GRANTED)

    def test_low_references_are_ordinary(self, pair):
        assert pair.dom0.map(pair.domu, 0, HOLE).status == abi.GNTST_general_error
        pair.domu.grant(7, 0, pair.domu.pages[0])
        op = pair.dom0.map(pair.domu, 7, HOLE)
        assert op.status == 0
        assert pair.dom0.unmap(op.handle, HOLE) == 0

    def test_a_page_table_read_only(self, pair):
        domu, frames = pair.domu, pair.hv.frames
        domu.grant(REF, 0, domu.l1)
        before = frames.count[domu.l1], frames.type_count[domu.l1]
        for flags in (HOST, DEVICE, HOST | DEVICE):
            assert pair.dom0.map(domu, REF, HOLE, flags).status == abi.GNTST_general_error
        assert (domu.flags(REF), frames.count[domu.l1], frames.type_count[domu.l1]) == (GRANTED, *before)
        op = pair.dom0.map(domu, REF, HOLE, HOST | RO)
        assert (op.status, domu.flags(REF)) == (0, MAPPED_RO)
        assert pair.dom0.unmap(op.handle, HOLE) == 0

    def test_shared_info_and_grant_frames_can_be_granted(self, pair):
        for mfn in (pair.domu.domain.shared_info_mfn, pair.domu.table.shared[0]):
            pair.domu.grant(REF, 0, mfn)
            op = pair.dom0.map(pair.domu, REF, HOLE)
            assert op.status == 0
            assert pair.dom0.unmap(op.handle, HOLE) == 0


class TestDeviceMapping:
    def test_gives_the_bus_address(self, granted):
        dom0, domu = granted.dom0, granted.domu
        op = dom0.map(domu, REF, 0, DEVICE)
        bus = domu.pages[0] << 12
        assert (op.status, op.dev_bus_addr, domu.flags(REF)) == (0, bus, MAPPED_RW)
        assert dom0.unmap(op.handle, 0, bus + 0x1000) == abi.GNTST_bad_dev_addr
        assert dom0.unmap(op.handle, 0, bus + 1) == abi.GNTST_bad_dev_addr
        assert dom0.unmap(op.handle, HOLE) == 0  # no host part: the address is not looked at
        assert domu.flags(REF) == MAPPED_RW
        assert dom0.unmap(op.handle, 0, bus) == 0
        assert domu.flags(REF) == GRANTED

    def test_written_frames_are_marked(self, granted):
        written, mfn = granted.hv.memory.written, granted.domu.pages[0]
        written[mfn] = 0
        for flags, marked in ((DEVICE | RO, 0), (DEVICE, 1)):
            op = granted.dom0.map(granted.domu, REF, 0, flags)
            assert granted.dom0.unmap(op.handle, 0, mfn << 12) == 0
            assert written[mfn] == marked

    def test_host_and_device(self, granted):
        dom0, domu = granted.dom0, granted.domu
        bus = domu.pages[0] << 12
        op = dom0.map(domu, REF, HOLE, HOST | DEVICE)
        assert dom0.unmap(op.handle, HOLE, bus) == 0
        assert (domu.flags(REF), granted.world.leaks()) == (GRANTED, [])
        assert dom0.unmap(op.handle, HOLE, bus) == abi.GNTST_bad_handle

    def test_a_wrong_bus_address_leaves_the_host_part(self, granted):
        dom0 = granted.dom0
        op = dom0.map(granted.domu, REF, HOLE, HOST | DEVICE)
        assert dom0.unmap(op.handle, HOLE, 0x1234000) == abi.GNTST_bad_dev_addr
        dom0.peek(HOLE, 1)
        assert dom0.unmap(op.handle, HOLE, granted.domu.pages[0] << 12) == 0

    @pytest.mark.parametrize("flags", [DEVICE, DEVICE | RO])
    def test_128_of_one_kind(self, granted, flags):
        """Each kind of use has room for 128; a full one does not hinder the others."""
        dom0, domu = granted.dom0, granted.domu
        ops = [dom0.map(domu, REF, 0, flags) for _ in range(129)]
        assert [op.status for op in ops] == [0] * 128 + [abi.GNTST_general_error]
        host = dom0.map(domu, REF, HOLE)
        assert (host.status, host.handle) == (0, 129)
        assert dom0.unmap(host.handle, HOLE) == 0
        for op in ops[:128]:
            assert dom0.unmap(op.handle, 0, op.dev_bus_addr) == 0
        assert domu.flags(REF) == GRANTED

    def test_128_hosts(self, granted):
        ops = [granted.dom0.map(granted.domu, REF, HOLE + 0x1000 * n) for n in range(129)]
        assert [op.status for op in ops] == [0] * 128 + [abi.GNTST_general_error]
        for n, op in enumerate(ops[:128]):
            assert granted.dom0.unmap(op.handle, HOLE + 0x1000 * n) == 0


class TestFlags:
    def test_writing_goes_with_the_last_writer(self, granted):
        dom0, domu = granted.dom0, granted.domu
        ro = dom0.map(domu, REF, HOLE, HOST | RO)
        assert domu.flags(REF) == MAPPED_RO
        rw = dom0.map(domu, REF, HOLE + 0x1000)
        assert domu.flags(REF) == MAPPED_RW
        assert (dom0.unmap(rw.handle, HOLE + 0x1000), domu.flags(REF)) == (0, MAPPED_RO)
        assert (dom0.unmap(ro.handle, HOLE), domu.flags(REF)) == (0, GRANTED)

    def test_a_granter_that_clears_the_flags_changes_nothing(self, granted):
        dom0, domu = granted.dom0, granted.domu
        first = dom0.map(domu, REF, HOLE)
        domu.set_flags(REF, 0)
        second = dom0.map(domu, REF, HOLE + 0x1000)
        assert (second.status, domu.flags(REF)) == (0, 0)
        dom0.poke(HOLE, b"still here")
        assert domu.peek(domu.va(0), 10) == b"still here"
        assert dom0.unmap(second.handle, HOLE + 0x1000) == 0
        assert dom0.unmap(first.handle, HOLE) == 0
        assert domu.flags(REF) == 0
        assert dom0.map(domu, REF, HOLE).status == abi.GNTST_general_error

    def test_a_mapped_entry_is_what_it_was_when_it_was_pinned(self, granted):
        """Another frame and another domain in the entry do not count while it is mapped."""
        dom0, domu = granted.dom0, granted.domu
        first = dom0.map(domu, REF, HOLE)
        domu.grant(REF, 5, domu.pages[1])
        second = dom0.map(domu, REF, HOLE + 0x1000)
        assert (second.status, second.dev_bus_addr) == (0, domu.pages[0] << 12)
        assert dom0.unmap(second.handle, HOLE + 0x1000) == 0
        assert dom0.unmap(first.handle, HOLE) == 0

    def test_only_one_domain_at_a_time(self, granted):
        third = granted.world.guest()
        op = granted.dom0.map(granted.domu, REF, HOLE)
        granted.domu.grant(REF, third, granted.domu.pages[0])
        assert third.map(granted.domu, REF, HOLE).status == abi.GNTST_general_error
        assert granted.dom0.unmap(op.handle, HOLE) == 0
        assert third.map(granted.domu, REF, HOLE).status == 0

    def test_writing_needs_a_writable_grant_even_when_pinned(self, granted):
        first = granted.dom0.map(granted.domu, REF, HOLE, HOST | RO)
        granted.domu.set_flags(REF, GRANTED | abi.GTF_readonly)
        second = granted.dom0.map(granted.domu, REF, HOLE + 0x1000)
        assert second.status == abi.GNTST_general_error
        assert granted.dom0.unmap(first.handle, HOLE) == 0


class TestHandles:
    def test_failures_use_handles_up(self, granted):
        ops = [{"host_addr": HOLE + 0x1000 * n, "flags": HOST, "ref": REF + n, "dom": 1} for n in range(3)]
        granted.domu.grant(REF + 2, 0, granted.domu.pages[2])
        left = granted.dom0.batch(abi.GNTTABOP_map_grant_ref, abi.gnttab_map_grant_ref, ops)
        assert [(op.status, op.handle) for op in left] == [(0, 0), (-1, 0), (0, 2)]

    def test_mistakes_seen_before_the_entry_use_none_up(self, granted):
        dom0 = granted.dom0
        assert dom0.map(77, REF, HOLE).status == abi.GNTST_bad_domain
        assert dom0.map(granted.domu, REF, HOLE, RO).status == abi.GNTST_bad_gntref
        assert dom0.map(granted.domu, 9999, HOLE).status == abi.GNTST_bad_gntref
        assert dom0.map(granted.domu, REF, HOLE).handle == 1

    def test_a_freed_handle_is_the_last_to_be_reused(self, granted):
        dom0, domu = granted.dom0, granted.domu
        seen = []
        for _ in range(600):
            op = dom0.map(domu, REF, 0, DEVICE)
            seen.append(op.handle)
            assert dom0.unmap(op.handle, 0, op.dev_bus_addr) == 0
        assert seen[:3] == [0, 1, 2]
        assert seen[:256] == list(range(256))
        assert seen[256:512] == list(range(256))

    def test_the_last_handle_of_a_page_waits(self, granted):
        """256 handles at once need a second page of them: the last one of the first page stays the tail."""
        dom0, domu = granted.dom0, granted.domu
        for n in range(3):
            domu.grant(REF + n, 0, domu.pages[n])
        ops = [dom0.map(domu, REF + n % 3, 0, DEVICE) for n in range(257)]
        assert [op.handle for op in ops] == [*range(255), 256, 257]
        for op in ops:
            assert dom0.unmap(op.handle, 0, op.dev_bus_addr) == 0

    def test_each_processor_has_its_own(self, world):
        dom0, domu = world.guest(vcpus=2), world.guest()
        domu.grant(REF, dom0, domu.pages[0])
        first = dom0.map(domu, REF, 0, DEVICE)
        second = dom0.map(domu, REF, 0, DEVICE, vcpu=1)
        assert (first.handle, second.handle) == (0, 256)
        assert dom0.unmap(second.handle, 0, second.dev_bus_addr) == 0
        assert dom0.unmap(first.handle, 0, first.dev_bus_addr, vcpu=1) == 0
        assert dom0.map(domu, REF, 0, DEVICE).handle == 1

    def test_out_of_handles(self, granted):
        dom0, domu = granted.dom0, granted.domu
        dom0.table.maptrack.max_frames = 1
        for n in range(3):
            domu.grant(REF + n, 0, domu.pages[n])
        ops = [dom0.map(domu, REF + n % 3, 0, DEVICE) for n in range(256)]
        assert [op.status for op in ops] == [0] * 255 + [abi.GNTST_no_space]
        assert dom0.unmap(ops[9].handle, 0, ops[9].dev_bus_addr) == 0
        assert dom0.map(domu, REF, 0, DEVICE).handle == 255

    def test_a_processor_takes_handles_of_another(self, world):
        dom0, domu = world.guest(vcpus=2), world.guest()
        dom0.table.maptrack.max_frames = 1
        domu.grant(REF, dom0, domu.pages[0])
        assert dom0.map(domu, REF, 0, DEVICE).handle == 0
        assert dom0.map(domu, REF, 0, DEVICE, vcpu=1).handle == 2  # 1 became the tail of its queue
        world.check()


class TestUnmap:
    def test_wrong_and_dead_handles(self, granted):
        dom0 = granted.dom0
        assert dom0.unmap(0, HOLE) == abi.GNTST_bad_handle
        op = dom0.map(granted.domu, REF, HOLE)
        for handle in (1, 255, 256, 0xFFFFFFFF):
            assert dom0.unmap(handle, HOLE) == abi.GNTST_bad_handle
        assert dom0.unmap(op.handle, HOLE) == 0
        assert dom0.unmap(op.handle, HOLE) == abi.GNTST_bad_handle

    def test_wrong_address(self, granted):
        dom0 = granted.dom0
        op = dom0.map(granted.domu, REF, HOLE)
        for va in (HOLE + 0x1000, dom0.va(0), 0x7FFFFFFFF000, 0xFFFF800000000000):
            assert dom0.unmap(op.handle, va) == abi.GNTST_general_error
        assert granted.domu.flags(REF) == MAPPED_RW
        assert dom0.unmap(op.handle, HOLE) == 0

    def test_address_zero_leaves_the_mapping(self, granted):
        op = granted.dom0.map(granted.domu, REF, HOLE)
        assert granted.dom0.unmap(op.handle, 0) == 0
        granted.dom0.peek(HOLE, 1)
        assert granted.domu.flags(REF) == MAPPED_RW
        assert granted.dom0.unmap(op.handle, HOLE) == 0
        assert granted.domu.flags(REF) == GRANTED

    def test_over_an_existing_mapping(self, granted):
        """The second mapping takes the place; the first cannot be undone until its entry is restored."""
        dom0, domu = granted.dom0, granted.domu
        dom0.grant(REF, dom0, dom0.pages[0])
        dom0.grant(REF + 1, dom0, dom0.pages[1])
        first = dom0.map(dom0, REF, HOLE)
        entry = dom0.pte(HOLE)
        second = dom0.map(dom0, REF + 1, HOLE)
        assert (first.status, second.status) == (0, 0)
        assert dom0.unmap(second.handle, HOLE) == 0
        assert dom0.unmap(first.handle, HOLE) == abi.GNTST_general_error
        assert dom0.flags(REF) == MAPPED_RW
        assert dom0.set_pte(HOLE, entry) == 0
        assert dom0.unmap(first.handle, HOLE) == 0
        assert (dom0.flags(REF), domu.flags(REF)) == (GRANTED, GRANTED)

    def test_the_guest_cleared_the_entry(self, granted):
        dom0 = granted.dom0
        dom0.grant(REF, dom0, dom0.pages[0])
        op = dom0.map(dom0, REF, HOLE)
        entry = dom0.pte(HOLE)
        assert dom0.set_pte(HOLE, 0) == 0
        assert (dom0.flags(REF), dom0.unmap(op.handle, HOLE)) == (MAPPED_RW, abi.GNTST_general_error)
        assert dom0.set_pte(HOLE, entry) == 0
        assert (dom0.unmap(op.handle, HOLE), dom0.flags(REF)) == (0, GRANTED)

    def test_a_foreign_frame_of_a_lost_mapping_is_free_to_go(self, granted):
        """With the entry gone nothing holds the frame, so the granter may give it up; the pin says so no more."""
        dom0, domu = granted.dom0, granted.domu
        mfn = domu.alloc()
        domu.grant(REF, dom0, mfn)
        op = dom0.map(domu, REF, HOLE)
        assert dom0.set_pte(HOLE, 0) == 0
        assert granted.hv.frames.take_allocated(mfn)
        assert dom0.map(domu, REF, HOLE).status == abi.GNTST_general_error
        assert dom0.unmap(op.handle, HOLE) == abi.GNTST_general_error
        granted.world.check()

    def test_a_batch_goes_on_after_a_failure(self, granted):
        dom0 = granted.dom0
        granted.domu.grant(REF + 1, 0, granted.domu.pages[1])
        handles = [dom0.map(granted.domu, REF + n, HOLE + 0x1000 * n).handle for n in range(2)]
        ops = [{"host_addr": HOLE + 0x1000 * n, "handle": handle} for n, handle in ((0, handles[0]), (5, 77), (1, 1))]
        left = dom0.batch(abi.GNTTABOP_unmap_grant_ref, abi.gnttab_unmap_grant_ref, ops)
        assert [op.status for op in left] == [0, abi.GNTST_bad_handle, 0]

    def test_an_alias_of_the_page_tables_does_not_outlive_the_mapping(self, granted):
        """The same level-1 table in two slots gives two addresses; both are forgotten."""
        dom0, hv = granted.dom0, granted.hv
        assert dom0.mmu_update((dom0.l2 << 9) + 7, dom0.hole_l1 << 12 | 7) == 0
        alias = 7 << 21
        op = dom0.map(granted.domu, REF, HOLE)
        dom0.peek(HOLE, 1)
        dom0.poke(alias, b"x")
        assert dom0.unmap(op.handle, HOLE) == 0
        for va in (HOLE, alias):
            with pytest.raises(PageFault):
                dom0.peek(va, 1)
        assert hv.frames.count[granted.domu.pages[0]] == 2

    def test_other_processors_forget_it_too(self, world):
        """In the same address space, and in another one, which has its own root and shares the tables below."""
        dom0, domu, hv = world.guest(vcpus=3), world.guest(), world.hv
        other_root = dom0.alloc()
        hv.memory.q[other_root << 9] = dom0.l3 << 12 | 7
        hv.mm.load_root(dom0.vcpus[2], other_root)
        domu.grant(REF, 0, domu.pages[0])
        op = dom0.map(domu, REF, HOLE)
        for vcpu in dom0.vcpus:
            assert vcpu.cpu.view(HOLE) is not None
        assert dom0.unmap(op.handle, HOLE) == 0
        for vcpu in dom0.vcpus:
            with pytest.raises(PageFault):
                vcpu.cpu.view(HOLE)


class TestReplace:
    def test_moves_an_entry(self, granted):
        dom0 = granted.dom0
        mine, va = dom0.pages[2], dom0.va(2)
        dom0.poke(va, b"mine")
        op = dom0.map(granted.domu, REF, HOLE)
        assert dom0.replace(op.handle, HOLE, va) == 0
        assert (dom0.pte(HOLE) >> 12 & 0xFFFFFFFF, entry_flags(dom0.pte(HOLE)), dom0.pte(va)) == (mine, 0x167, 0)
        assert dom0.peek(HOLE, 4) == b"mine"
        with pytest.raises(PageFault):
            dom0.peek(va, 1)
        assert granted.domu.flags(REF) == GRANTED

    def test_without_a_replacement_it_unmaps(self, granted):
        op = granted.dom0.map(granted.domu, REF, HOLE)
        assert (granted.dom0.replace(op.handle, HOLE, 0), granted.dom0.pte(HOLE)) == (0, 0)

    def test_failures(self, granted):
        dom0 = granted.dom0
        assert dom0.replace(0, HOLE, dom0.va(2)) == abi.GNTST_bad_handle
        op = dom0.map(granted.domu, REF, HOLE)
        assert dom0.replace(op.handle, HOLE, 0x7FFFFFFFF000) == abi.GNTST_general_error
        dom0.peek(HOLE, 1)
        assert dom0.unmap(op.handle, HOLE) == 0

    def test_a_failure_at_the_second_step_loses_the_moved_entry(self, granted):
        dom0, frames = granted.dom0, granted.hv.frames
        before = frames.count[dom0.pages[2]]
        op = dom0.map(granted.domu, REF, HOLE)
        assert dom0.replace(op.handle, HOLE + 0x1000, dom0.va(2)) == abi.GNTST_general_error
        assert (dom0.pte(dom0.va(2)), frames.count[dom0.pages[2]]) == (0, before - 1)
        assert dom0.unmap(op.handle, HOLE) == 0

    def test_not_for_mappings_by_machine_address(self, granted):
        dom0 = granted.dom0
        place = dom0.pte_index(HOLE) << 3
        op = dom0.map(granted.domu, REF, place, HOST | PTE)
        assert dom0.replace(op.handle, place, dom0.va(2)) == abi.GNTST_general_error
        assert dom0.pte(dom0.va(2)) != 0
        assert dom0.unmap(op.handle, place) == 0


class TestArguments:
    def test_across_pages_and_unaligned(self, granted):
        dom0 = granted.dom0
        for n in range(6):
            granted.domu.grant(REF + n, 0, granted.domu.pages[n])
        ops = [{"host_addr": HOLE + 0x1000 * n, "flags": HOST, "ref": REF + n, "dom": 1} for n in range(6)]
        for at in (dom0.args + 0x1000 - 80, dom0.args + 0x1000 - 97, dom0.args + 3):
            left = dom0.batch(abi.GNTTABOP_map_grant_ref, abi.gnttab_map_grant_ref, ops, at=at)
            assert [op.status for op in left] == [0] * 6
            assert [op.dev_bus_addr >> 12 for op in left] == granted.domu.pages[:6]
            undo = [{"host_addr": HOLE + 0x1000 * n, "handle": op.handle} for n, op in enumerate(left)]
            left = dom0.batch(abi.GNTTABOP_unmap_grant_ref, abi.gnttab_unmap_grant_ref, undo, at=at)
            assert [op.status for op in left] == [0] * 6

    def test_a_fault_in_the_middle(self, granted):
        """What lies before the unreadable page was done."""
        dom0 = granted.dom0
        last = dom0.va(dom0_pages(dom0) - 1)
        op = abi.gnttab_map_grant_ref.pack(host_addr=HOLE, flags=HOST, ref=REF, dom=1)
        dom0.poke(last + 0x1000 - 32, op)
        assert dom0.raw(abi.GNTTABOP_map_grant_ref, last + 0x1000 - 32, 2) == -14
        assert granted.domu.flags(REF) == MAPPED_RW
        assert dom0.unmap(0, HOLE) == 0

    def test_arguments_that_cannot_be_written(self, granted):
        dom0 = granted.dom0
        op = abi.gnttab_map_grant_ref.pack(host_addr=HOLE, flags=HOST, ref=REF, dom=1)
        dom0.poke(dom0.va(5), op * 2)
        assert dom0.set_pte(dom0.va(5), dom0.pages[5] << 12 | 5) == 0
        assert dom0.raw(abi.GNTTABOP_map_grant_ref, dom0.va(5), 2) == -14
        assert granted.domu.flags(REF) == MAPPED_RW
        assert dom0.unmap(0, HOLE) == 0


def dom0_pages(guest) -> int:
    return len(guest.pages) + len(guest.scratch)
