"""mmu_update and update_va_mapping: what a guest asks, what it is told, what is changed."""

import struct

import pytest
from mm_world import (
    ARGS_PFN,
    EBUSY,
    EFAULT,
    EINVAL,
    ENOSYS,
    EPERM,
    ESRCH,
    KERNEL_BIT,
    RW,
    TABLE,
    US,
    A,
    D,
    G,
    Guest,
    P,
    World,
)

from hypervisor.abi import xen

SELF = xen.DOMID_SELF


def test_done_counts_the_entries_before_the_failing_one(guest: Guest) -> None:
    pages = [guest.new_page() for _ in range(3)]
    good = [(guest.entry_at(pfn), guest.mfn(pfn) << 12 | P) for pfn in pages]
    bad = (guest.entry_at(pages[2]), guest.root << 12 | P | RW)
    assert guest.mmu_update([*good[:2], bad, good[2]]) == (EBUSY, 2)
    assert guest.entry(pages[2]) & RW
    assert guest.mmu_update(good) == (0, 3)
    assert guest.mmu_update([]) == (0, 0)


def test_bad_pointers(guest: Guest) -> None:
    done = guest.put(b"\xff" * 4)
    assert guest.call(xen.HYPERVISOR_mmu_update, 0x1000, 1, done, SELF) == EFAULT
    assert guest.get(4) == bytes(4)
    assert guest.call(xen.HYPERVISOR_mmu_update, xen.HYPERVISOR_VIRT_START, 1, 0, SELF) == EFAULT
    pfn = guest.new_page()
    where = guest.put(struct.pack("<QQ", guest.entry_at(pfn), guest.mfn(pfn) << 12 | P))
    assert guest.call(xen.HYPERVISOR_mmu_update, where, 1, 0x1000, SELF) == 0
    assert not guest.entry(pfn) & RW


def test_requests_that_run_off_mapped_memory(guest: Guest) -> None:
    first, second = guest.new_page(), guest.new_page()
    target = guest.new_page()
    update = struct.pack("<QQ", guest.entry_at(target), guest.mfn(target) << 12 | P)
    guest.hv.memory.write((guest.mfn(first) << 12) + 4096 - 32, update * 2)
    assert guest.update_va(guest.va(second), 0) == 0
    done = guest.put(b"\xff" * 4)
    assert guest.call(xen.HYPERVISOR_mmu_update, guest.va(first) + 4096 - 32, 5, done, SELF) == EFAULT
    assert guest.get(4) == b"\x02\0\0\0"
    assert guest.make_writable(second) == 0


def test_a_request_may_straddle_pages(guest: Guest) -> None:
    first, _ = guest.new_page(), guest.new_page()
    targets = [guest.new_page() for _ in range(3)]
    raw = b"".join(struct.pack("<QQ", guest.entry_at(pfn), guest.mfn(pfn) << 12 | P) for pfn in targets)
    where = guest.va(first) + 4096 - 24
    from hypervisor.guest_access import copy_to_guest

    copy_to_guest(guest.vcpu, where, raw)
    assert guest.call(xen.HYPERVISOR_mmu_update, where, 3, 0, SELF) == 0
    assert not any(guest.entry(pfn) & RW for pfn in targets)


def test_commands(guest: Guest) -> None:
    pfn = guest.new_page()
    value = guest.mfn(pfn) << 12 | P | RW
    assert guest.set_entry(guest.entry_at(pfn), value | A | D) == 0
    assert guest.set_entry(guest.entry_at(pfn) | xen.MMU_PT_UPDATE_PRESERVE_AD, value) == 0
    assert guest.entry(pfn) == value | A | D | US | KERNEL_BIT
    assert guest.set_entry(guest.entry_at(pfn) | xen.MMU_PT_UPDATE_NO_TRANSLATE, value | US) == 0
    assert guest.entry(pfn) == value | US | G
    for command in (4, 5, 6, 7):
        assert guest.mmu_update([(guest.entry_at(pfn) | command, 0)]) == (ENOSYS, 0)


def test_plain_pages_just_take_the_value(guest: Guest) -> None:
    pfn = guest.new_page()
    assert guest.set_entry((guest.mfn(pfn) << 12) + 16, 0x1234567) == 0
    assert guest.hv.memory.q[(guest.mfn(pfn) << 9) + 2] == 0x1234567
    idle = guest.new_page()
    assert guest.update_va(guest.va(idle), 0) == 0  # no type reference at all
    assert guest.set_entry(guest.mfn(idle) << 12, 99) == 0
    assert guest.hv.memory.q[guest.mfn(idle) << 9] == 99


def test_frames_that_cannot_be_written(world: World, guest: Guest) -> None:
    other = world.guest(2)
    for maddr in (
        0,
        other.mfn(40) << 12,
        other.root << 12,
        world.hv.frames.m2p_mfn << 12,
        world.hv.frames.frames << 12,
        1 << 63,
        (world.hv.frames.frames - 1) << 12,
    ):
        assert guest.mmu_update([(maddr, 1)]) == (EINVAL, 0), hex(maddr)
    assert guest.set_entry(guest.domain.shared_info_mfn << 12 | 0xC00, 0) == 0  # it is writable for its domain
    gdt = guest.new_page()
    assert guest.make_readonly(gdt) == 0
    frames = guest.put(struct.pack("<Q", guest.mfn(gdt)))
    assert guest.call(xen.HYPERVISOR_set_gdt, frames, 1) == 0
    assert guest.set_entry(guest.mfn(gdt) << 12, 0) == EINVAL


def test_foreign_domains(world: World, guest: Guest) -> None:
    dom0 = world.dom0
    pfn = dom0.new_page()
    value = guest.mfn(50) << 12 | P | RW
    assert dom0.set_entry(dom0.entry_at(pfn), value) == EBUSY
    assert dom0.set_entry(dom0.entry_at(pfn), value, 1) == 0
    world.check()
    assert dom0.set_entry(dom0.entry_at(pfn), guest.root << 12 | P | RW, 1) == EBUSY
    assert dom0.set_entry(dom0.entry_at(pfn), guest.root << 12 | P, 1) == 0
    assert dom0.set_entry(dom0.entry_at(pfn), value, 7) == ESRCH
    assert dom0.set_entry(dom0.entry_at(pfn), value, 0) == ESRCH  # its own number
    assert dom0.mmu_update([(dom0.entry_at(pfn), value)], 9 << 16 | SELF)[0] == ESRCH
    own = dom0.mfn(pfn) << 12 | P | RW
    assert dom0.set_entry(dom0.entry_at(pfn), own, xen.DOMID_IO) == EBUSY
    assert dom0.set_entry(dom0.entry_at(pfn), own) == 0
    # A guest may not.
    target = guest.new_page()
    assert guest.set_entry(guest.entry_at(target), dom0.mfn(60) << 12 | P, 0) == EPERM
    assert guest.set_entry(guest.entry_at(target), dom0.mfn(60) << 12 | P, xen.DOMID_XEN) == EPERM
    # xdom/mmu.dom0_maps_own_mfn_as_domU
    assert dom0.set_entry(dom0.entry_at(pfn), dom0.mfn(61) << 12 | P | RW, 1) == EBUSY


def test_dom0_changes_tables_of_a_guest(world: World, guest: Guest) -> None:
    dom0 = world.dom0
    page = guest.new_page()
    foreign = (1 + 1) << 16 | SELF
    # The tables are the guest's (upper half), the pages to map are the guest's too (lower half).
    both = (1 + 1) << 16 | 1
    assert dom0.set_entry(guest.entry_at(page), guest.mfn(page) << 12 | P, both) == 0
    assert guest.entry(page) == guest.mfn(page) << 12 | P | US | KERNEL_BIT
    assert dom0.set_entry(guest.entry_at(page), dom0.mfn(70) << 12 | P, foreign) == 0
    world.check()
    assert dom0.set_entry((guest.table(2) << 12) + 4088, 0, foreign) == EINVAL
    assert dom0.set_entry((guest.table(2) << 12) + 4088, 0, both) == 0
    assert guest.set_entry(world.dom0.entry_at(40), 0, (0 + 1) << 16 | SELF) == EPERM
    assert guest.set_entry(guest.entry_at(page), guest.mfn(page) << 12 | P | RW, (1 + 1) << 16 | SELF) == 0


def test_machphys(world: World, guest: Guest) -> None:
    mfn = guest.mfn(40)
    counts = world.hv.frames.count[mfn]
    assert guest.set_entry(mfn << 12 | xen.MMU_MACHPHYS_UPDATE, 0x777) == 0
    assert world.hv.frames.m2p[mfn] == 0x777
    other = world.dom0.mfn(40)
    before = world.hv.frames.count[other]
    assert guest.set_entry(other << 12 | xen.MMU_MACHPHYS_UPDATE, 0) == EINVAL
    assert guest.set_entry(1 << 62 | xen.MMU_MACHPHYS_UPDATE, 0) == EINVAL
    assert world.dom0.set_entry(mfn << 12 | xen.MMU_MACHPHYS_UPDATE, 0x778, 1) == 0
    assert world.dom0.set_entry(mfn << 12 | xen.MMU_MACHPHYS_UPDATE, 0, 2 << 16 | 1) == EPERM
    # XSA-113: no refusal keeps a reference.
    assert (world.hv.frames.count[mfn], world.hv.frames.count[other]) == (counts, before)
    assert world.hv.frames.m2p[mfn] == 0x778


def test_xsa_286_change_of_an_upper_level_is_seen(world: World, guest: Guest) -> None:
    # update_va_mapping, then mmu_update at L3, then update_va_mapping again: it edits the new tree.
    data = guest.new_page()
    l1s = [guest.mfn(guest.new_table({})) for _ in range(2)]
    l2s = [guest.mfn(guest.new_table({0: l1 << 12 | TABLE})) for l1 in l1s]
    index = (guest.va(0) >> 30 & 511) - 1
    va = (guest.va(0) & ~((1 << 39) - 1)) + (index << 30)
    maddr = (guest.table(3) << 12) + index * 8
    value = guest.mfn(data) << 12 | P | RW
    for l2, l1 in zip(l2s, l1s, strict=True):
        assert guest.set_entry(maddr, l2 << 12 | TABLE) == 0
        assert guest.update_va(va, value) == 0
        assert world.hv.memory.q[l1 << 9] == value | US | KERNEL_BIT
    world.check()


def test_update_va_mapping(guest: Guest) -> None:
    pfn = guest.new_page()
    va = guest.va(pfn)
    assert guest.update_va(va, guest.mfn(pfn) << 12 | P | RW | US | 1 << 58 | 1 << 62) == 0
    assert guest.entry(pfn) == guest.mfn(pfn) << 12 | P | RW | US | G | 1 << 58 | 1 << 62
    assert guest.update_va(va, 0xFFF0000000000FFE) == 0
    assert guest.entry(pfn) == 0xFFF0000000000FFE
    assert guest.update_va(va, 0) == 0
    for bad in (0x1000, xen.HYPERVISOR_VIRT_START, 0xFFFF810000000000, 1 << 63, 0x0000800000000000):
        assert guest.update_va(bad, 0) == EINVAL
    assert guest.update_va(va, guest.mfn(pfn) << 12 | P | RW, 3) == 0
    assert guest.update_va(va, guest.mfn(pfn) << 12 | P | RW, xen.UVMF_INVLPG | xen.UVMF_ALL) == 0
    # A bad vCPU mask is noticed after the entry was set.
    assert guest.update_va(va, guest.mfn(pfn) << 12 | P, xen.UVMF_INVLPG | 0x5550) == EFAULT
    assert not guest.entry(pfn) & RW
    mask = guest.put(struct.pack("<Q", 1))
    assert guest.update_va(va, guest.mfn(pfn) << 12 | P | RW, xen.UVMF_TLB_FLUSH | mask) == 0


def test_update_va_mapping_otherdomain(world: World, guest: Guest) -> None:
    nr = xen.HYPERVISOR_update_va_mapping_otherdomain
    dom0, pfn = world.dom0, world.dom0.new_page()
    va, value = dom0.va(pfn), guest.mfn(50) << 12 | P | RW
    assert dom0.call(nr, va, value, xen.UVMF_INVLPG, 1) == 0
    world.check()
    assert dom0.call(nr, va, value, 0, 9) == ESRCH
    assert dom0.call(nr, va, value, 0, 0) == ESRCH
    assert dom0.call(nr, va, dom0.mfn(pfn) << 12 | P | RW, 0, SELF) == 0
    assert dom0.call(nr, va, dom0.mfn(pfn) << 12 | P | RW, 0, xen.DOMID_IO) == 0
    page = guest.new_page()
    for domid in (0, xen.DOMID_IO, xen.DOMID_XEN):
        assert guest.call(nr, guest.va(page), guest.mfn(page) << 12 | P | RW, 0, domid) == EPERM


def test_the_tables_themselves_cannot_be_reached_by_linear_addresses(guest: Guest) -> None:
    # A self-map makes table entries look like L1 entries of other addresses: update_va_mapping refuses them.
    slot = 300
    assert guest.set_entry((guest.root << 12) + slot * 8, guest.root << 12 | P | US) == 0
    va = 0xFFFF000000000000 | slot << 39 | slot << 30 | slot << 21 | slot << 12
    assert guest.update_va(va, 0) == EINVAL
    assert guest.set_entry((guest.root << 12) + slot * 8, 0) == 0


@pytest.mark.parametrize("level", [2, 3, 4])
def test_table_entries(guest: Guest, level: int) -> None:
    lower = [guest.mfn(guest.new_table({})) for _ in range(2)]
    table = guest.mfn(guest.new_table({}))
    assert guest.pin(level, table) == 0
    maddr = (table << 12) + 17 * 8
    frames = guest.hv.frames
    assert guest.set_entry(maddr, lower[0] << 12 | P | RW) == 0
    stored = guest.hv.memory.q[maddr >> 3]
    assert stored == lower[0] << 12 | P | RW | US | (A if level == 4 else 0)
    assert guest.set_entry(maddr | xen.MMU_PT_UPDATE_PRESERVE_AD, lower[1] << 12 | P | RW) == 0
    assert [frames.type_count[mfn] for mfn in lower] == [0, 1]
    assert guest.set_entry(maddr, lower[1] << 12 | P) == 0  # RW changes with full validation
    assert guest.set_entry(maddr, guest.mfn(guest.new_page()) << 12 | P) == EINVAL
    assert guest.hv.memory.q[maddr >> 3] & ~(A | D) == lower[1] << 12 | P | US
    assert guest.set_entry(maddr, 0xABC0) == 0
    assert [frames.type_count[mfn] for mfn in lower] == [0, 0]


def test_continuation_form_of_the_call(guest: Guest) -> None:
    """A guest may use what Xen uses to go on after an interruption: it only tells itself what it told."""
    assert guest.call(xen.HYPERVISOR_mmu_update, 0, 0x80000000, 0, 0xFFFFFFEA) == -22
    pfn = guest.new_page()
    where = guest.put(struct.pack("<QQI", guest.entry_at(pfn), guest.mfn(pfn) << 12 | P, 41))
    assert guest.call(xen.HYPERVISOR_mmu_update, where, 0x80000001, where + 16, SELF) == 0
    assert struct.unpack("<I", guest.get(20, ARGS_PFN)[16:])[0] == 42


def test_io_memory_in_the_name_of_domid_io(world: World, guest: Guest) -> None:
    # DOMID_IO stands for what the caller may; who owns the table must be permitted too.
    vga, dom0 = 0xB8 << 12 | P | RW, world.dom0
    pfn = guest.new_page()
    at = guest.entry_at(pfn)
    tables = 2 << 16
    assert guest.set_entry(at, vga, xen.DOMID_IO) == EPERM
    assert dom0.set_entry(at, vga, xen.DOMID_IO | tables) == EPERM
    guest.domain.iomem.append(range(0xB8, 0xC0))
    assert dom0.set_entry(at, vga, xen.DOMID_IO | tables) == 0
    assert guest.set_entry(at, vga, xen.DOMID_IO) == 0
    dom0.domain.iomem.clear()
    assert dom0.set_entry(at, vga + 0x1000, xen.DOMID_IO | tables) == EPERM
    assert guest.make_writable(pfn) == 0
