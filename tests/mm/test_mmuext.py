"""mmuext_op: roots, flushes, descriptor tables, contents of frames."""

import struct

import pytest
from mm_world import EACCES, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH, Guest, World

from hypervisor.abi import errno, xen
from hypervisor.mm.frame_table import PGT_seg_desc_page, PGT_writable_page

SELF = xen.DOMID_SELF


def copy_root(guest: Guest) -> int:
    """A second root with the same upper half: its pfn."""
    words = dict(enumerate(guest.hv.memory.q[guest.root << 9 : (guest.root << 9) + 512].tolist()))
    return guest.new_table(words)


def test_new_baseptr(world: World, guest: Guest) -> None:
    pfn = copy_root(guest)
    other = guest.mfn(pfn)
    assert guest.mmuext(xen.MMUEXT_NEW_BASEPTR, guest.root) == 0
    assert guest.mmuext(xen.MMUEXT_NEW_BASEPTR, guest.mfn(guest.new_page())) == EINVAL
    assert guest.mmuext(xen.MMUEXT_NEW_BASEPTR, 1 << 50) == EINVAL
    assert guest.mmuext(xen.MMUEXT_NEW_BASEPTR, other) == 0
    assert guest.vcpu.kernel_cr3 == other
    world.check()
    assert guest.mmuext(xen.MMUEXT_NEW_BASEPTR, guest.root) == 0
    assert world.hv.frames.type_count[other] == 0
    assert guest.make_writable(pfn) == 0


def test_new_user_baseptr(world: World, guest: Guest) -> None:
    user = guest.mfn(guest.new_table({}))
    assert guest.mmuext(xen.MMUEXT_NEW_USER_BASEPTR, user) == 0
    assert guest.mmuext(xen.MMUEXT_NEW_USER_BASEPTR, user) == 0
    assert world.hv.frames.type_count[user] == 1
    assert guest.mmuext(xen.MMUEXT_NEW_USER_BASEPTR, guest.mfn(guest.new_page())) == EINVAL
    world.check()
    assert guest.mmuext(xen.MMUEXT_NEW_USER_BASEPTR, 0) == 0
    assert world.hv.frames.type_count[user] == 0


def test_root_without_what_it_maps_now(guest: Guest) -> None:
    """A guest may load an empty root; its next pointer faults, and Xen lives."""
    empty = guest.mfn(guest.new_table({}))
    assert guest.mmuext(xen.MMUEXT_NEW_BASEPTR, empty) == 0
    assert guest.call(xen.HYPERVISOR_mmuext_op, guest.va(16), 1, 0, SELF) == EFAULT
    guest.hv.mm.load_root(guest.vcpu, guest.root)


def test_batches(guest: Guest) -> None:
    ops = [struct.pack("<IIQQ", xen.MMUEXT_TLB_FLUSH_LOCAL, 0, 0, 0)] * 3
    ops.insert(2, struct.pack("<IIQQ", xen.MMUEXT_UNPIN_TABLE, 0, guest.mfn(40), 0))
    where = guest.put(b"".join(ops))
    done = where + len(b"".join(ops))
    assert guest.call(xen.HYPERVISOR_mmuext_op, where, 4, done, SELF) == EINVAL
    assert guest.get(len(b"".join(ops)) + 4)[-4:] == b"\x02\0\0\0"
    assert guest.call(xen.HYPERVISOR_mmuext_op, where, 2, done, SELF) == 0
    assert guest.get(len(b"".join(ops)) + 4)[-4:] == b"\x02\0\0\0"
    assert guest.call(xen.HYPERVISOR_mmuext_op, where, 0, done, SELF) == 0
    assert guest.call(xen.HYPERVISOR_mmuext_op, 0x1000, 1, done, SELF) == EFAULT
    assert guest.mmuext(21) == ENOSYS
    assert guest.mmuext(14) == ENOSYS


def test_who_may_name_whose_frames(world: World, guest: Guest) -> None:
    dom0 = world.dom0
    table = guest.mfn(guest.new_table({}))
    assert guest.mmuext(xen.MMUEXT_PIN_L1_TABLE, dom0.mfn(40), foreign=0) == EPERM
    assert guest.mmuext(xen.MMUEXT_PIN_L1_TABLE, table, foreign=1) == ESRCH
    assert dom0.mmuext(xen.MMUEXT_PIN_L1_TABLE, table, foreign=9) == ESRCH
    assert dom0.mmuext(xen.MMUEXT_PIN_L1_TABLE, table) == EINVAL
    assert dom0.mmuext(xen.MMUEXT_PIN_L1_TABLE, table, foreign=1) == 0
    assert dom0.mmuext(xen.MMUEXT_PIN_L1_TABLE, 0, foreign=xen.DOMID_IO) == EINVAL
    assert dom0.mmuext(xen.MMUEXT_PIN_L1_TABLE, world.hv.frames.m2p_mfn, foreign=xen.DOMID_XEN) == EINVAL
    world.check()
    assert dom0.mmuext(xen.MMUEXT_UNPIN_TABLE, table, foreign=1) == 0
    for command in (
        xen.MMUEXT_NEW_BASEPTR,
        xen.MMUEXT_NEW_USER_BASEPTR,
        xen.MMUEXT_TLB_FLUSH_LOCAL,
        xen.MMUEXT_INVLPG_ALL,
        xen.MMUEXT_SET_LDT,
        xen.MMUEXT_FLUSH_CACHE,
    ):
        assert dom0.mmuext(command, guest.root, foreign=1) == EPERM


def test_flushes(guest: Guest) -> None:
    vcpu = guest.vcpu
    va = guest.va(guest.new_page())
    mask = guest.put(struct.pack("<Q", 1), 17)
    guest.hv.memory.write(guest.mfn(40) << 12, b"x")
    for command, arg2 in (
        (xen.MMUEXT_INVLPG_LOCAL, 0),
        (xen.MMUEXT_INVLPG_ALL, 0),
        (xen.MMUEXT_INVLPG_MULTI, mask),
        (xen.MMUEXT_TLB_FLUSH_LOCAL, 0),
        (xen.MMUEXT_TLB_FLUSH_ALL, 0),
        (xen.MMUEXT_TLB_FLUSH_MULTI, mask),
    ):
        vcpu.tlb_r[va >> 12] = vcpu.tlb_w[va >> 12] = guest.mfn(40) << 12
        assert guest.mmuext(command, va, arg2) == 0
        assert va >> 12 not in vcpu.tlb_r
        assert va >> 12 not in vcpu.tlb_w
    assert guest.mmuext(xen.MMUEXT_TLB_FLUSH_MULTI, 0, 0x5550) == EINVAL
    assert guest.mmuext(xen.MMUEXT_INVLPG_LOCAL, 1 << 63) == 0


def test_caches_are_for_those_with_hardware(world: World, guest: Guest) -> None:
    assert guest.mmuext(xen.MMUEXT_FLUSH_CACHE) == EACCES
    assert guest.mmuext(xen.MMUEXT_FLUSH_CACHE_GLOBAL) == EINVAL
    assert world.dom0.mmuext(xen.MMUEXT_FLUSH_CACHE) == 0
    assert world.dom0.mmuext(xen.MMUEXT_FLUSH_CACHE_GLOBAL) == 0


@pytest.mark.parametrize("mfn", [0, 1 << 18, (1 << 52) - 512, (1 << 64) - 512])
def test_superpages_are_not_supported(guest: Guest, mfn: int) -> None:
    # XSA-167: whatever the frame number.
    assert guest.mmuext(xen.MMUEXT_MARK_SUPER, mfn) == -errno.EOPNOTSUPP
    assert guest.mmuext(xen.MMUEXT_UNMARK_SUPER, mfn) == -errno.EOPNOTSUPP


def test_clear_and_copy(world: World, guest: Guest) -> None:
    source, target = guest.new_page(), guest.new_page()
    guest.write_page(source, {0: 1, 511: 2})
    assert guest.mmuext(xen.MMUEXT_COPY_PAGE, guest.mfn(target), guest.mfn(source)) == 0
    assert guest.get(4096, target) == guest.get(4096, source)
    assert guest.mmuext(xen.MMUEXT_CLEAR_PAGE, guest.mfn(source)) == 0
    assert guest.get(4096, source) == bytes(4096)
    assert guest.mmuext(xen.MMUEXT_CLEAR_PAGE, guest.root) == EINVAL
    assert guest.mmuext(xen.MMUEXT_CLEAR_PAGE, world.dom0.mfn(40)) == EINVAL
    assert guest.mmuext(xen.MMUEXT_COPY_PAGE, guest.root, guest.mfn(source)) == EINVAL
    assert guest.mmuext(xen.MMUEXT_COPY_PAGE, guest.mfn(target), guest.root) == 0
    assert guest.mmuext(xen.MMUEXT_COPY_PAGE, guest.mfn(target), world.dom0.mfn(40)) == EINVAL
    assert guest.mmuext(xen.MMUEXT_COPY_PAGE, 1 << 60, guest.mfn(source)) == EINVAL


# -- descriptor tables ------------------------------------------------------------------------------------------------

CODE_DPL0 = 0x00CF9B000000FFFF
CODE_DPL3 = 0x00CFFB000000FFFF
TSS = 0x0000890000000067
GATE = 0x00008C00E0330000


def gdt(guest: Guest, words: dict[int, int]) -> int:
    return guest.mfn(guest.new_table(words))


def set_gdt(guest: Guest, frames: list[int], entries: int) -> int:
    return guest.call(xen.HYPERVISOR_set_gdt, guest.put(struct.pack(f"<{len(frames)}Q", *frames) + b"\0"), entries)


def test_gdt_pages_are_checked_and_raised_to_ring_3(world: World, guest: Guest) -> None:
    mfn = gdt(guest, {2: CODE_DPL0, 3: CODE_DPL3, 4: 0x1234})
    assert set_gdt(guest, [mfn], 16) == 0
    assert world.hv.memory.q[(mfn << 9) + 2 : (mfn << 9) + 5].tolist() == [CODE_DPL3, CODE_DPL3, 0x1234]
    assert world.hv.frames.type[mfn] == PGT_seg_desc_page
    world.check()
    pfn = guest.p2m.index(mfn)
    assert guest.make_writable(pfn) == -errno.EBUSY
    assert set_gdt(guest, [], 0) == 0
    assert guest.make_writable(pfn) == 0
    assert world.hv.frames.type[mfn] == PGT_writable_page


def test_bad_gdts_keep_the_old_one(world: World, guest: Guest) -> None:
    good = gdt(guest, {})
    assert set_gdt(guest, [good], 512) == 0
    bad = gdt(guest, {511: TSS})
    fine = gdt(guest, {})
    writable = guest.mfn(guest.new_page())
    for frames in ([bad], [fine, bad], [fine, guest.root], [writable], [world.dom0.mfn(40)], [1 << 50]):
        assert set_gdt(guest, frames, 512 * len(frames)) == EINVAL
        assert guest.vcpu.context.gdt_frames == [good]
        assert world.hv.frames.type_count[fine] == 0
    assert set_gdt(guest, [good], 7169) == EINVAL
    assert guest.call(xen.HYPERVISOR_set_gdt, 0x1000, 1) == EFAULT
    assert set_gdt(guest, [fine, fine], 1024) == 0
    world.check()


def test_one_frame_twice_in_a_gdt_across_vcpus_and_death(world: World, guest: Guest) -> None:
    mfn = gdt(guest, {2: CODE_DPL0})
    assert set_gdt(guest, [mfn, mfn], 600) == 0
    assert world.hv.frames.type_count[mfn] == 2
    world.check()


def test_update_descriptor(guest: Guest) -> None:
    nr = xen.HYPERVISOR_update_descriptor
    page = guest.new_page()
    maddr = guest.mfn(page) << 12 | 16
    assert guest.call(nr, maddr, CODE_DPL0) == 0
    assert struct.unpack("<Q", guest.get(24, page)[16:])[0] == CODE_DPL3
    assert guest.call(nr, maddr + 4, CODE_DPL0) == EINVAL
    assert guest.call(nr, guest.root << 12, CODE_DPL0) == EINVAL
    assert guest.call(nr, maddr, TSS) == EINVAL
    assert guest.call(nr, maddr, GATE) == 0
    assert guest.call(nr, maddr, GATE & ~0xFFFF0000 | 0xE0080000) == EINVAL
    assert guest.call(nr, 1 << 62, 0) == EINVAL
    loaded = gdt(guest, {})
    assert set_gdt(guest, [loaded], 16) == 0
    assert guest.call(nr, loaded << 12, CODE_DPL0) == 0
    assert guest.hv.memory.q[loaded << 9] == CODE_DPL3


def test_ldt(world: World, guest: Guest) -> None:
    pfn = guest.new_page()
    guest.write_page(pfn, {0: CODE_DPL0})
    assert guest.make_readonly(pfn) == 0
    va = guest.va(pfn)
    assert guest.mmuext(xen.MMUEXT_SET_LDT, va + 8, 10) == EINVAL
    assert guest.mmuext(xen.MMUEXT_SET_LDT, va, 8193) == EINVAL
    assert guest.mmuext(xen.MMUEXT_SET_LDT, xen.HYPERVISOR_VIRT_START, 1) == EINVAL
    assert guest.mmuext(xen.MMUEXT_SET_LDT, 1 << 63, 1) == EINVAL
    assert guest.mmuext(xen.MMUEXT_SET_LDT, va, 8192) == 0
    tables = world.hv.mm.descriptors
    assert tables.map_ldt_page(guest.vcpu, 8) == guest.mfn(pfn)
    assert tables.map_ldt_page(guest.vcpu, 8) == guest.mfn(pfn)
    assert tables.map_ldt_page(guest.vcpu, 4096) == -1  # the next page is writable
    assert tables.map_ldt_page(guest.vcpu, 8192 * 8) == -1
    assert world.hv.frames.type_count[guest.mfn(pfn)] == 1
    world.check()
    assert guest.make_writable(pfn) == -errno.EBUSY
    assert guest.mmuext(xen.MMUEXT_SET_LDT, 0, 0) == 0
    assert guest.make_writable(pfn) == 0


def test_a_root_change_drops_the_ldt_pages(world: World, guest: Guest) -> None:
    pfn = guest.new_page()
    assert guest.make_readonly(pfn) == 0
    assert guest.mmuext(xen.MMUEXT_SET_LDT, guest.va(pfn), 10) == 0
    assert world.hv.mm.descriptors.map_ldt_page(guest.vcpu, 0) == guest.mfn(pfn)
    assert guest.mmuext(xen.MMUEXT_NEW_BASEPTR, guest.mfn(copy_root(guest))) == 0
    assert world.hv.frames.type_count[guest.mfn(pfn)] == 0
    assert guest.vcpu.context.ldt_ents == 10
