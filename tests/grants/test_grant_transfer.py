"""GNTTABOP_transfer: the frame changes hands, or is lost, or stays: never two of these."""

from __future__ import annotations

import pytest

from hypervisor.abi import grant_table as abi
from hypervisor.abi import xen
from hypervisor.grant_table.host_mapping import PRESENT

REF, PFN = 8, 0x77
OFFERED = abi.GTF_accept_transfer
DONE = abi.GTF_accept_transfer | abi.GTF_transfer_committed | abi.GTF_transfer_completed
HOLE = 0x400000
NOBODY = 0xFFFFFFFFFFFFFFFF


@pytest.fixture
def offer(pair):
    """Domain 1 offers a slot to domain 0."""
    pair.domu.grant(REF, 0, PFN, OFFERED)
    return pair


def test_success(offer):
    dom0, domu, frames = offer.dom0, offer.domu, offer.hv.frames
    mfn = dom0.alloc()
    offer.hv.memory.write(mfn << 12, b"luggage")
    before = dom0.domain.tot_pages, domu.domain.tot_pages
    assert dom0.transfer(mfn, domu, REF) == 0
    assert domu.entry(REF) == (DONE, 0, mfn)
    assert (frames.owner(mfn), frames.m2p[mfn]) == (1, PFN)
    assert (dom0.domain.tot_pages, domu.domain.tot_pages) == (before[0] - 1, before[1] + 1)
    assert domu.set_pte(HOLE, mfn << 12 | 7 | PRESENT) == 0
    assert domu.peek(HOLE, 7) == b"luggage"
    assert dom0.transfer(mfn, domu, REF) == abi.GNTST_bad_page


def test_frames_that_stay(offer):
    """Mapped, granted away, a page table, Xen's, another's, none at all: still the giver's afterwards."""
    dom0, domu, frames = offer.dom0, offer.domu, offer.hv.frames
    dom0.grant(20, 1, dom0.pages[5])
    mapped = dom0.pages[0]
    for mfn in (mapped, dom0.l1, dom0.domain.shared_info_mfn, dom0.table.shared[0]):
        assert dom0.transfer(mfn, domu, REF) == abi.GNTST_bad_page
        assert frames.owner(mfn) == 0
    for mfn in (0, domu.pages[0], 1 << 40, 0xFFFFFFFFFFFFFFFF):
        assert dom0.transfer(mfn, domu, REF) == abi.GNTST_bad_page
    assert domu.entry(REF) == (OFFERED, 0, PFN)


def test_a_frame_that_another_domain_maps_stays(offer):
    dom0, domu = offer.dom0, offer.domu
    mfn = dom0.alloc()
    dom0.grant(20, 1, mfn)
    handle = domu.map(dom0, 20, HOLE).handle
    assert dom0.transfer(mfn, domu, REF) == abi.GNTST_bad_page
    assert domu.unmap(handle, HOLE) == 0
    assert dom0.transfer(mfn, domu, REF) == 0


@pytest.mark.parametrize("domid", [77, xen.DOMID_SELF, xen.DOMID_IO])
def test_a_missing_receiver_loses_the_frame(offer, domid):
    assert_lost(offer, lambda mfn: offer.dom0.transfer(mfn, domid, REF), abi.GNTST_bad_domain)


@pytest.mark.parametrize("flags", [0, 1, 3, OFFERED | abi.GTF_transfer_committed, DONE, OFFERED | 0x100])
def test_a_slot_that_is_not_offered_loses_the_frame(offer, flags):
    offer.domu.set_flags(REF, flags)
    assert_lost(offer, lambda mfn: offer.dom0.transfer(mfn, offer.domu, REF), abi.GNTST_general_error)
    assert offer.domu.entry(REF) == (flags, 0, PFN)


def test_a_slot_for_another_domain_loses_the_frame(offer):
    offer.domu.grant(REF, 9, PFN, OFFERED)
    assert_lost(offer, lambda mfn: offer.dom0.transfer(mfn, offer.domu, REF), abi.GNTST_general_error)
    assert offer.domu.entry(REF) == (OFFERED, 9, PFN)


def test_a_slot_beyond_the_table_loses_the_frame(offer):
    assert_lost(offer, lambda mfn: offer.dom0.transfer(mfn, offer.domu, 512), abi.GNTST_general_error)


def test_no_headroom_loses_the_frame(offer):
    offer.domu.domain.max_pages = offer.domu.domain.tot_pages
    assert_lost(offer, lambda mfn: offer.dom0.transfer(mfn, offer.domu, REF), abi.GNTST_general_error)
    assert offer.domu.entry(REF) == (OFFERED, 0, PFN)


def test_a_slot_is_good_for_one(offer):
    assert offer.dom0.transfer(offer.dom0.alloc(), offer.domu, REF) == 0
    assert_lost(offer, lambda mfn: offer.dom0.transfer(mfn, offer.domu, REF), abi.GNTST_general_error)


def test_to_oneself(offer):
    dom0 = offer.dom0
    dom0.grant(REF, 0, 5, OFFERED)
    mfn = dom0.alloc()
    before = dom0.domain.tot_pages
    assert dom0.transfer(mfn, dom0, REF) == 0
    assert (dom0.domain.tot_pages, dom0.entry(REF)) == (before, (DONE, 0, mfn))


def assert_lost(world, transfer, status):
    frames, dom0 = world.hv.frames, world.dom0
    mfn = dom0.alloc()
    total, free = dom0.domain.tot_pages, frames.free_frames
    assert transfer(mfn) == status
    assert (frames.owner(mfn), frames.m2p[mfn]) == (-1, NOBODY)
    assert (dom0.domain.tot_pages, frames.free_frames) == (total - 1, free + 1)
