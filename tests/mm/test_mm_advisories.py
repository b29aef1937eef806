"""Xen's security advisories on memory, as tests: what once went wrong is refused or done right, and counts hold."""

from __future__ import annotations

import struct

import pytest
from mm_world import (
    EBUSY,
    EFAULT,
    EINVAL,
    EXTRA_PFN,
    RO_TABLE,
    RW,
    TABLE,
    Guest,
    P,
    World,
)

from hypervisor.abi import memory, xen
from hypervisor.abi.cpu import PageFault
from hypervisor.guest_access import translate_load
from hypervisor.mm.frame_table import PINNED


@pytest.mark.parametrize("already", [1 << 60, (1 << 60) - 1, (1 << 61) - 5])
def test_exchange_far_into_an_array(world: World, guest: Guest, already: int) -> None:
    # XSA-29, XSA-212: the array begins where the guest may write; the element that comes next lies in Xen.
    start = xen.HYPERVISOR_VIRT_START - already * 8 & 0xFFFFFFFFFFFFFFFF
    part = {"extent_start": start, "nr_extents": already + 1, "domid": xen.DOMID_SELF}
    raw = memory.xen_memory_exchange.pack(in_=part, out=part, nr_exchanged=already)
    before = world.hv.memory.frame(world.hv.frames.m2p_mfn).tobytes()
    assert guest.call(xen.HYPERVISOR_memory_op, memory.XENMEM_exchange, guest.put(raw)) == EFAULT
    assert world.hv.memory.frame(world.hv.frames.m2p_mfn).tobytes() == before
    assert memory.xen_memory_exchange.unpack_from(guest.get(len(raw))).nr_exchanged == already


@pytest.mark.parametrize("mfn", [1 << 40, (1 << 52) - 1, 1 << 52, 1 << 63, 0, 1, 255])
def test_frames_that_are_none(guest: Guest, mfn: int) -> None:
    # XSA-32, XSA-167: beyond the end of memory, and those that belong to nobody.
    for command in (
        xen.MMUEXT_PIN_L1_TABLE,
        xen.MMUEXT_PIN_L4_TABLE,
        xen.MMUEXT_UNPIN_TABLE,
        xen.MMUEXT_NEW_BASEPTR,
        xen.MMUEXT_CLEAR_PAGE,
        xen.MMUEXT_COPY_PAGE,
    ):
        assert guest.mmuext(command, mfn, mfn) == EINVAL
    assert guest.mmuext(xen.MMUEXT_MARK_SUPER, mfn) == guest.mmuext(xen.MMUEXT_UNMARK_SUPER, mfn) == -95
    if mfn < 1 << 52:
        assert guest.set_entry(mfn << 12, 0) == EINVAL
    assert guest.call(xen.HYPERVISOR_update_descriptor, mfn << 12, 0) == EINVAL


def test_a_page_is_not_freed_while_it_is_mapped(world: World, guest: Guest) -> None:
    # XSA-222
    pfn, second = guest.new_page(), guest.new_page()
    mfn = guest.mfn(pfn)
    assert guest.map(second, mfn) == 0
    guest.write_page(second, {0: 0x5EC2E7})
    assert guest.reservation(memory.XENMEM_decrease_reservation, [mfn])[0] == 1
    assert world.hv.frames.owner(mfn) == 1
    assert not world.hv.frames.heap.is_free(mfn)
    assert guest.update_va(guest.va(pfn), 0) == 0
    assert guest.get(3, second) == bytes.fromhex("e7c25e")
    assert guest.update_va(guest.va(second), 0) == 0
    assert world.hv.frames.heap.is_free(mfn)
    guest.p2m[pfn] = guest.p2m[second] = 0


def test_giving_a_pinned_table_back_leaves_it_pinned(world: World, guest: Guest) -> None:
    # XSA-252
    data = guest.mfn(guest.new_page())
    pfn = guest.new_table({0: data << 12 | P | RW})
    mfn = guest.mfn(pfn)
    assert guest.pin(1, mfn) == 0
    assert guest.update_va(guest.va(pfn), 0) == 0
    assert guest.reservation(memory.XENMEM_decrease_reservation, [mfn])[0] == 1
    assert world.hv.frames.flags[mfn] & PINNED
    assert world.hv.frames.type_count[data] == 2
    assert guest.map(pfn, mfn) == EBUSY
    assert guest.reservation(memory.XENMEM_decrease_reservation, [mfn])[0] == 1
    world.check()
    assert guest.unpin(mfn) == 0
    assert world.hv.frames.heap.is_free(mfn)
    assert world.hv.frames.type_count[data] == 1


def test_update_va_mapping_uses_the_tables_of_now(world: World, guest: Guest) -> None:
    # XSA-286: an L3 entry changes between two updates of the same address.
    va = 5 << 39
    first, second = (guest.mfn(guest.new_table({})) for _ in range(2))
    l2s = [guest.mfn(guest.new_table({0: l1 << 12 | TABLE})) for l1 in (first, second)]
    l3 = guest.mfn(guest.new_table({0: l2s[0] << 12 | TABLE}))
    assert guest.set_entry((guest.root << 12) + 5 * 8, l3 << 12 | TABLE) == 0
    data = guest.mfn(guest.new_page())
    assert guest.update_va(va, data << 12 | P) == 0
    assert world.hv.memory.q[first << 9]
    assert guest.set_entry(l3 << 12, l2s[1] << 12 | TABLE) == 0
    assert guest.update_va(va, data << 12 | P | RW) == 0
    assert world.hv.memory.q[second << 9]
    assert guest.set_entry(l3 << 12, 0) == 0
    assert guest.update_va(va, 0) == EINVAL
    assert guest.set_entry((guest.root << 12) + 5 * 8, 0) == 0


def test_ldt_pages_within_its_limit_only(world: World, guest: Guest) -> None:
    # XSA-298
    descriptors = world.hv.mm.descriptors
    table = guest.new_table({0: 0x00CFFB000000FFFF})
    assert descriptors.map_ldt_page(guest.vcpu, 0) == -1  # no LDT
    assert guest.mmuext(xen.MMUEXT_SET_LDT, guest.va(table), 512) == 0
    assert descriptors.map_ldt_page(guest.vcpu, 512 * 8) == -1
    assert descriptors.map_ldt_page(guest.vcpu, 511 * 8) == guest.mfn(table)
    assert guest.make_writable(table) == EBUSY
    assert guest.mmuext(xen.MMUEXT_SET_LDT, 0, 0) == 0
    assert descriptors.map_ldt_page(guest.vcpu, 0) == -1
    assert guest.make_writable(table) == 0


def test_no_way_to_write_is_remembered_when_a_page_becomes_a_table(world: World, guest: Guest) -> None:
    # XSA-401, XSA-408: the guest unmaps without a flush, and does so again and again before it pins.
    pfn = guest.new_page()
    va, mfn = guest.va(pfn), guest.mfn(pfn)
    for _ in range(3):
        guest.write_page(pfn, {})
        assert translate_load(guest.vcpu, va, True) == mfn << 12
        assert guest.update_va(va, mfn << 12 | P, xen.UVMF_NONE) == 0
        with pytest.raises(PageFault):
            translate_load(guest.vcpu, va, True)
        assert guest.pin(1, mfn) == 0
        with pytest.raises(PageFault):
            translate_load(guest.vcpu, va, True)
        assert guest.unpin(mfn) == 0
        assert guest.make_writable(pfn) == 0


def test_a_used_descriptor_page_is_checked_again_after_a_store(guest: Guest) -> None:
    # mmu_update may store anything into a page of data; what was a checked GDT before is none any more.
    pfn = guest.new_table({})
    gdt = guest.mfn(pfn)
    entries = guest.put(struct.pack("<Q", gdt), EXTRA_PFN)
    assert guest.call(xen.HYPERVISOR_set_gdt, entries, 16) == 0
    assert guest.call(xen.HYPERVISOR_set_gdt, 0, 0) == 0
    tss = 0x0000890000000067
    assert guest.set_entry(gdt << 12, tss) == 0
    entries = guest.put(struct.pack("<Q", gdt), EXTRA_PFN)
    assert guest.call(xen.HYPERVISOR_set_gdt, entries, 16) == EINVAL
    assert guest.set_entry(gdt << 12, 0x00CF9B000000FFFF) == 0
    entries = guest.put(struct.pack("<Q", gdt), EXTRA_PFN)
    assert guest.call(xen.HYPERVISOR_set_gdt, entries, 16) == 0
    assert guest.hv.memory.q[gdt << 9] == 0x00CFFB000000FFFF


def test_a_stolen_page_keeps_no_mapping_and_no_type(world: World, guest: Guest) -> None:
    # XSA-214, XSA-217: dom0 still maps the page that its owner would give away.
    dom0 = world.dom0
    pfn, at = guest.new_page(), dom0.new_page()
    mfn = guest.mfn(pfn)
    assert guest.update_va(guest.va(pfn), 0) == 0
    for flags in (P, P | RW):
        assert dom0.set_entry(dom0.entry_at(at), mfn << 12 | flags, 1) == 0
        assert guest.exchange([mfn], [pfn]) == (EINVAL, 0)
        assert world.hv.frames.owner(mfn) == 1
    assert dom0.make_writable(at) == 0
    assert guest.exchange([mfn], [pfn]) == (0, 1)
    new = guest.exchanged[0]
    guest.p2m[pfn] = new
    assert world.hv.frames.type_count[new] == 0
    assert guest.map(pfn, new) == 0


def test_linear_tables_do_not_chain(world: World, guest: Guest) -> None:
    # XSA-240: a table may name others of its level or be named by them, not both.
    a = guest.mfn(guest.new_table({}))
    assert guest.pin(2, a) == 0
    b = guest.mfn(guest.new_table({1: a << 12 | RO_TABLE}))
    assert guest.pin(2, b) == 0
    c = guest.mfn(guest.new_table({1: b << 12 | RO_TABLE}))
    assert guest.pin(2, c) == EINVAL
    assert guest.set_entry((a << 12) + 8, b << 12 | RO_TABLE) == EINVAL
    assert guest.set_entry((b << 12) + 16, b << 12 | RO_TABLE) == 0  # itself is no chain
    assert guest.unpin(b) == 0
    world.check()
    # Nobody uses the second as a table of that level any more: it can be one of the level below.
    assert guest.pin(2, c) == 0
    assert world.hv.frames.type[b] == 1
