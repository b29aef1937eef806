"""Guest pointers: translated as the processor would, remembered, and forgotten in time."""

import pytest
from mm_world import NX, RW, US, A, D, Guest, P, World

from hypervisor.abi import xen
from hypervisor.abi.cpu import PageFault
from hypervisor.errors import HypercallError
from hypervisor.guest_access import (
    copy_from_guest,
    copy_to_guest,
    flush_all,
    flush_va,
    read_u8,
    read_u16,
    read_u32,
    read_u64,
    translate,
    translate_load,
    write_u8,
    write_u16,
    write_u32,
    write_u64,
)


def faults(guest: Guest, va: int, *, write: bool) -> bool:
    try:
        translate(guest.vcpu, va, write)
    except HypercallError as error:
        return error.errno == 14
    return False


def test_words_of_every_size_at_every_alignment(guest: Guest) -> None:
    pfn = guest.new_page()
    guest.new_page()
    for offset in (*range(9), *range(4088, 4100)):
        va = guest.va(pfn) + offset
        write_u64(guest.vcpu, va, 0x1122334455667788)
        assert read_u64(guest.vcpu, va) == 0x1122334455667788
        assert read_u32(guest.vcpu, va + 1) == 0x44556677
        write_u32(guest.vcpu, va + 1, -2)
        write_u16(guest.vcpu, va + 5, 0xABCDE)
        write_u8(guest.vcpu, va + 7, 0x1FF)
        assert copy_from_guest(guest.vcpu, va, 8) == bytes.fromhex("88feffffffdebcff")
        assert read_u16(guest.vcpu, va + 5) == 0xBCDE
        assert read_u8(guest.vcpu, va + 7) == 0xFF


def test_copies_cross_pages_that_are_not_neighbours(guest: Guest) -> None:
    first, second = guest.new_page(), guest.new_page()
    far = guest.new_page() + 100
    assert guest.map(second, guest.mfn(far)) == 0
    data = bytes(range(256)) * 20
    copy_to_guest(guest.vcpu, guest.va(first) + 100, data)
    assert copy_from_guest(guest.vcpu, guest.va(first) + 100, len(data)) == data
    memory = guest.hv.memory
    assert memory.frame(guest.mfn(far))[:100] == data[3996:4096]
    assert copy_from_guest(guest.vcpu, 0, 0) == b""
    copy_to_guest(guest.vcpu, 0, b"")


def test_writes_mark_the_frame(guest: Guest) -> None:
    pfn = guest.new_page()
    written = guest.hv.memory.written
    for write in (
        lambda va: write_u32(guest.vcpu, va, 1),
        lambda va: write_u64(guest.vcpu, va, 1),
        lambda va: copy_to_guest(guest.vcpu, va, b"x"),
    ):
        written[guest.mfn(pfn)] = 0
        write(guest.va(pfn))
        assert written[guest.mfn(pfn)] == 1
    written[guest.mfn(pfn)] = 0
    read_u64(guest.vcpu, guest.va(pfn))
    assert written[guest.mfn(pfn)] == 0


def test_bytes_before_the_fault_are_written(guest: Guest) -> None:
    first, second = guest.new_page(), guest.new_page()
    assert guest.update_va(guest.va(second), 0) == 0
    with pytest.raises(HypercallError):
        copy_to_guest(guest.vcpu, guest.va(first) + 4090, b"0123456789")
    assert copy_from_guest(guest.vcpu, guest.va(first) + 4090, 6) == b"012345"
    assert guest.make_writable(second) == 0


def test_xens_addresses_and_holes_fault(guest: Guest) -> None:
    for va in (
        0,
        0x1000,
        xen.HYPERVISOR_VIRT_START,
        xen.HYPERVISOR_VIRT_END - 8,
        xen.HYPERVISOR_VIRT_END,
        0x0000800000000000,
        0xFFFF7FFFFFFFFFFF,
        guest.va(len(guest.p2m)),
        (1 << 64) - 8,
    ):
        assert faults(guest, va, write=False), hex(va)
        assert faults(guest, va, write=True), hex(va)
    assert not guest.vcpu.tlb_r.keys() & {0, 1, xen.HYPERVISOR_VIRT_START >> 12}


def test_negative_pointers_mean_high_addresses(guest: Guest) -> None:
    va = guest.va(guest.new_page())
    write_u64(guest.vcpu, va, 77)
    assert read_u64(guest.vcpu, va - (1 << 64)) == 77


def test_the_guest_may_load_from_the_m2p(world: World, guest: Guest) -> None:
    mfn = guest.mfn(33)
    va = xen.MACH2PHYS_VIRT_START + mfn * 8
    assert world.hv.memory.q[translate_load(guest.vcpu, va, False) >> 3] == 33
    with pytest.raises(PageFault) as fault:
        translate_load(guest.vcpu, va, True)
    assert fault.value.address == va
    assert fault.value.write
    assert faults(guest, va, write=False)
    for slot in (257, 258, 259, 260, 261, 271):
        with pytest.raises(PageFault):
            translate_load(guest.vcpu, 0xFFFF000000000000 | slot << 39, False)


def test_permissions_count_at_every_level(world: World, guest: Guest) -> None:
    pfn = guest.new_page()
    va = guest.va(pfn)
    entries = [
        ((guest.table(2) << 12) + (va >> 21 & 511) * 8, guest.table(1)),
        ((guest.table(3) << 12) + (va >> 30 & 511) * 8, guest.table(2)),
        ((guest.root << 12) + (va >> 39 & 511) * 8, guest.table(3)),
    ]
    for maddr, lower in entries:
        assert not faults(guest, va, write=True)
        # Behind Xen's back, for the check of the walk itself; arguments of a hypercall could not be written.
        world.hv.memory.q[maddr >> 3] = lower << 12 | P | US
        flush_all(guest.domain)
        assert not faults(guest, va, write=False)
        assert faults(guest, va, write=True)
        world.hv.memory.q[maddr >> 3] = lower << 12 | P | RW
        assert not faults(guest, va, write=False)  # still remembered
        flush_va(guest.domain, va)
        assert faults(guest, va, write=False)
        world.hv.memory.q[maddr >> 3] = lower << 12 | P | RW | US


def test_accessed_and_dirty_bits(guest: Guest) -> None:
    pfn = guest.new_page()
    va = guest.va(pfn)
    assert guest.update_va(va, guest.mfn(pfn) << 12 | P | RW | NX) == 0
    assert guest.entry(pfn) & (A | D) == 0
    read_u32(guest.vcpu, va)
    assert guest.entry(pfn) & (A | D) == A
    write_u32(guest.vcpu, va, 1)
    assert guest.entry(pfn) & (A | D) == A | D


def test_a_fault_sets_no_bits(guest: Guest) -> None:
    pfn = guest.new_page()
    assert guest.map(pfn, guest.mfn(pfn), P) == 0
    assert faults(guest, guest.va(pfn), write=True)
    assert guest.entry(pfn) & (A | D) == 0


def test_every_change_is_seen_at_once(world: World, guest: Guest) -> None:
    pfn = guest.new_page()
    va = guest.va(pfn)
    assert not faults(guest, va, write=True)
    assert not faults(guest, va, write=False)
    for flags in (xen.UVMF_NONE, xen.UVMF_INVLPG, xen.UVMF_TLB_FLUSH | xen.UVMF_ALL):
        assert guest.update_va(va, guest.mfn(pfn) << 12 | P, flags) == 0
        assert faults(guest, va, write=True)
        assert guest.update_va(va, 0, flags) == 0
        assert faults(guest, va, write=False)
        assert guest.update_va(va, guest.mfn(pfn) << 12 | P | RW, flags) == 0
        assert not faults(guest, va, write=True)
    assert guest.set_entry(guest.entry_at(pfn), 0) == 0
    assert faults(guest, va, write=False)
    assert guest.set_entry(guest.entry_at(pfn), guest.mfn(pfn) << 12 | P | RW) == 0
    assert not faults(guest, va, write=True)
    maddr = (guest.table(2) << 12) + (va >> 21 & 511) * 8
    old = world.hv.memory.q[maddr >> 3]
    other = guest.mfn(guest.new_table({pfn & 511: guest.mfn(pfn + 200) << 12 | P | RW}))
    done, rc = guest.mmu_update([(maddr, other << 12 | P | RW | US), (maddr, old)])
    assert (done, rc) == (0, 2)
    world.check()


def test_an_alias_through_a_shared_table_is_forgotten_too(world: World, guest: Guest) -> None:
    # One L1 table hangs at two places; a change through one address must be seen through the other.
    pfn = guest.new_page()
    maddr = (guest.table(2) << 12) + 100 * 8
    assert guest.set_entry(maddr, guest.table(1) << 12 | P | RW | US) == 0
    base = guest.va(0) & ~0x3FFFFFFF
    alias = base + (100 << 21) + pfn * 4096
    assert not faults(guest, alias, write=True)
    assert guest.update_va(guest.va(pfn), guest.mfn(pfn) << 12 | P, xen.UVMF_INVLPG) == 0
    assert faults(guest, alias, write=True)
    world.check()


def test_second_vcpu_forgets_too(world: World) -> None:
    guest = world.guest(vcpus=2)
    other = guest.domain.vcpu(1)
    assert other is not None
    world.hv.mm.load_root(other, guest.root)
    va = guest.va(guest.new_page())
    translate(other, va, True)
    assert guest.update_va(va, 0, xen.UVMF_INVLPG | xen.UVMF_LOCAL) == 0
    with pytest.raises(HypercallError):
        translate(other, va, True)
