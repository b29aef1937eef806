"""The end of a domain: what it granted lives on while it is mapped, what it mapped is released."""

from __future__ import annotations

import pytest

from hypervisor.abi import grant_table as abi
from hypervisor.abi import xen
from hypervisor.abi.cpu import PageFault
from hypervisor.mm.frame_table import XEN_HEAP

HOST, DEVICE, RO = abi.GNTMAP_host_map, abi.GNTMAP_device_map, abi.GNTMAP_readonly
HOLE = 0x400000
REF = 8


@pytest.fixture
def mapped(pair):
    """Domain 0 has page 0 of domain 1 mapped, and domain 1 is destroyed."""
    pair.domu.grant(REF, 0, pair.domu.pages[0])
    pair.domu.grant(REF + 1, 0, pair.domu.pages[1])
    pair.domu.poke(pair.domu.va(0), b"last words")
    pair.handle = pair.dom0.map(pair.domu, REF, HOLE).handle
    pair.hv.domain_ops.kill(pair.domu.domain)
    return pair


class TestGranter:
    def test_its_page_stays_readable_while_mapped(self, mapped):
        dom0, hv = mapped.dom0, mapped.hv
        assert 1 in hv.domains
        assert dom0.peek(HOLE, 10) == b"last words"
        mapped.world.check()
        assert dom0.unmap(mapped.handle, HOLE) == 0
        assert 1 not in hv.domains
        assert hv.frames.owner(mapped.domu.pages[0]) == -1
        with pytest.raises(PageFault):
            dom0.peek(HOLE, 1)

    def test_it_can_be_mapped_again(self, mapped):
        dom0 = mapped.dom0
        again = dom0.map(1, REF, HOLE + 0x1000)
        assert (again.status, dom0.peek(HOLE + 0x1000, 10)) == (0, b"last words")
        device = dom0.map(1, REF, 0, DEVICE)
        assert device.status == 0
        gone = dom0.map(1, REF + 1, HOLE + 0x2000)  # nobody had this one mapped: its page is free already
        assert gone.status == abi.GNTST_bad_page
        mapped.world.check()
        assert dom0.unmap(mapped.handle, HOLE) == 0
        assert dom0.unmap(again.handle, HOLE + 0x1000) == 0
        assert 1 in mapped.hv.domains
        assert dom0.unmap(device.handle, 0, device.dev_bus_addr) == 0
        assert 1 not in mapped.hv.domains

    def test_copies_are_over(self, mapped):
        dom0 = mapped.dom0
        here = (dom0.pages[0], xen.DOMID_SELF, 0)
        assert dom0.copy((REF, 1, 0), here, 4, abi.GNTCOPY_source_gref) == abi.GNTST_bad_domain
        assert dom0.copy(here, (REF, 1, 0), 4, abi.GNTCOPY_dest_gref) == abi.GNTST_bad_domain
        # Nobody held the page of the other one, so that it is gone.
        assert dom0.copy((REF + 1, 1, 0), here, 4, abi.GNTCOPY_source_gref) == abi.GNTST_bad_page
        assert dom0.copy((512, 1, 0), here, 4, abi.GNTCOPY_source_gref) == abi.GNTST_bad_gntref
        assert dom0.unmap(mapped.handle, HOLE) == 0

    def test_its_table_grows_no_more(self, mapped):
        assert mapped.dom0.setup_table(2, 1) == abi.GNTST_general_error
        assert mapped.dom0.unmap(mapped.handle, HOLE) == 0

    def test_all_memory_comes_back(self, pair):
        """From creation to the last unmap the host's free memory is a closed account."""
        hv, dom0 = pair.hv, pair.dom0
        free = hv.frames.free_frames
        third = pair.world.guest()
        assert third.setup_table(5) == 0
        third.grant(2000, 0, third.pages[0])
        both = dom0.map(third, 2000, HOLE, HOST | DEVICE)
        assert dom0.setup_table(1, third.domid) == 0
        hv.domain_ops.kill(third.domain)
        assert dom0.unmap(both.handle, HOLE, both.dev_bus_addr) == 0
        assert third.domid not in hv.domains
        assert hv.frames.free_frames == free

    def test_a_mapped_table_frame_outlives_the_domain(self, pair):
        """A toolstack that still maps a dead domain's table keeps that one frame, and no more."""
        dom0, domu, hv = pair.dom0, pair.domu, pair.hv
        mfn = domu.table.shared[0]
        entry = mfn << 12 | 7
        dom0.poke(dom0.spare, (dom0.pte_index(HOLE) << 3).to_bytes(8, "little") + entry.to_bytes(8, "little"))
        mmu_update = xen.__dict__["__HYPERVISOR_mmu_update"]
        assert dom0.hypercall(mmu_update, dom0.spare, 1, 0, domu.domid) == 0
        hv.domain_ops.kill(domu.domain)
        assert hv.frames.flags[mfn] & XEN_HEAP
        dom0.peek(HOLE, 1)
        pair.world.check()
        assert dom0.set_pte(HOLE, 0) == 0
        assert 1 not in hv.domains

    def test_without_memory_left(self, pair):
        """Dying takes no memory: with no frame free its grants can still be mapped and unmapped."""
        dom0, domu, hv = pair.dom0, pair.domu, pair.hv
        domu.grant(REF, 0, domu.pages[0])
        op = dom0.map(domu, REF, HOLE)
        while hv.frames.free_frames:
            assert hv.frames.alloc(dom0.domain) > 0
        hv.domain_ops.kill(domu.domain)
        second = dom0.map(domu, REF, HOLE + 0x1000)
        assert second.status == 0
        pair.world.check()
        assert dom0.unmap(op.handle, HOLE) == 0
        assert dom0.unmap(second.handle, HOLE + 0x1000) == 0
        assert 1 not in hv.domains

    def test_a_handle_without_granter(self, pair):
        """A mapper that made its page table entry vanish cannot unmap when the granter is gone: it ends itself."""
        dom0, domu, hv = pair.dom0, pair.domu, pair.hv
        dom0.grant(REF, 1, dom0.pages[0])
        third = pair.world.guest()
        third.grant(REF, 1, third.pages[0])
        handle = domu.map(third, REF, HOLE).handle
        assert domu.set_pte(HOLE, 0) == 0
        hv.domain_ops.kill(third.domain)
        assert third.domid not in hv.domains
        pair.world.check()
        assert domu.unmap(handle, HOLE) == abi.GNTST_bad_domain
        assert domu.domain.shutting_down
        hv.domain_ops.kill(domu.domain)
        assert list(hv.domains) == [0]


class TestMapper:
    @pytest.mark.parametrize("flags", [HOST, HOST | RO, DEVICE, DEVICE | RO, HOST | DEVICE, HOST | DEVICE | RO])
    def test_its_mappings_go(self, pair, flags):
        dom0, domu, frames = pair.dom0, pair.domu, pair.hv.frames
        dom0.grant(REF, 1, dom0.pages[0])
        mfn = dom0.pages[0]
        before = frames.count[mfn], frames.type_count[mfn]
        op = domu.map(dom0, REF, HOLE, flags)
        assert op.status == 0
        pair.hv.domain_ops.kill(domu.domain)
        assert dom0.flags(REF) == 1
        assert (frames.count[mfn], frames.type_count[mfn]) == before
        assert (pair.world.leaks(), list(pair.hv.domains)) == ([], [0])

    def test_half_unmapped(self, pair):
        dom0, domu, frames = pair.dom0, pair.domu, pair.hv.frames
        dom0.grant(REF, 1, dom0.pages[0])
        before = frames.count[dom0.pages[0]]
        op = domu.map(dom0, REF, HOLE, HOST | DEVICE)
        assert domu.unmap(op.handle, HOLE) == 0
        pair.hv.domain_ops.kill(domu.domain)
        assert (dom0.flags(REF), frames.count[dom0.pages[0]]) == (1, before)

    def test_with_an_entry_it_had_cleared(self, pair):
        dom0, domu, frames = pair.dom0, pair.domu, pair.hv.frames
        dom0.grant(REF, 1, dom0.pages[0])
        before = frames.count[dom0.pages[0]]
        domu.map(dom0, REF, HOLE)
        assert domu.set_pte(HOLE, 0) == 0
        assert frames.count[dom0.pages[0]] == before
        pair.hv.domain_ops.kill(domu.domain)
        assert (dom0.flags(REF), frames.count[dom0.pages[0]]) == (1, before)

    def test_two_domains_that_map_each_other(self, pair):
        second, third = pair.domu, pair.world.guest()
        second.grant(REF, third, second.pages[0])
        third.grant(REF, second, third.pages[0])
        assert second.map(third, REF, HOLE).status == 0
        assert third.map(second, REF, HOLE).status == 0
        pair.hv.domain_ops.kill(second.domain)
        pair.world.check()
        assert sorted(pair.hv.domains) == [0, 1, 2]
        pair.hv.domain_ops.kill(third.domain)
        assert list(pair.hv.domains) == [0]
        assert pair.world.leaks() == []
