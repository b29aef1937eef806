"""What is left of a domain that died: nothing, unless somebody still maps a page of it."""

import struct

import pytest
from mm_world import EBUSY, EINVAL, EXTRA_PFN, RO_TABLE, RW, TABLE, US, A, Guest, P, World
from preemption import Points

from hypervisor.abi import domctl, memory, vcpu, xen
from hypervisor.errors import HypercallError


def test_everything_comes_back(world: World) -> None:
    free = world.hv.frames.free_frames
    xen_frames = world.hv.frames.xen_frames
    guest = world.guest()
    data = guest.mfn(guest.new_page())
    l1 = guest.mfn(guest.new_table({0: data << 12 | P | RW}))
    l2 = guest.mfn(guest.new_table({0: l1 << 12 | TABLE, 1: l1 << 12 | TABLE}))
    linear = guest.mfn(guest.new_table({0: l2 << 12 | RO_TABLE}))
    user = guest.mfn(guest.new_table({}))
    for level, mfn in ((1, l1), (2, l2), (2, linear), (4, user)):
        assert guest.pin(level, mfn) == 0
    assert guest.mmuext(xen.MMUEXT_NEW_USER_BASEPTR, user) == 0
    gdt = guest.mfn(guest.new_table({}))
    assert guest.call(xen.HYPERVISOR_set_gdt, guest.put(struct.pack("<Q", gdt)), 16) == 0
    info = guest.put(vcpu.vcpu_register_vcpu_info.pack(mfn=data, offset=64))
    assert guest.call(xen.HYPERVISOR_vcpu_op, vcpu.VCPUOP_register_vcpu_info, 0, info) == 0
    assert guest.set_entry((guest.root << 12) + 300 * 8, guest.root << 12 | P | US) == 0
    world.check()
    world.kill(guest)
    world.check()
    assert 1 not in world.hv.domains
    assert (world.hv.frames.free_frames, world.hv.frames.xen_frames) == (free, xen_frames)


def test_pages_read_zero_to_the_next_owner(world: World) -> None:
    guest = world.guest()
    for pfn in range(40, 1000):
        guest.write_page(pfn, {0: 0x5EC2E7, 511: 1})
    world.kill(guest)
    after = world.hv.domain_ops.create(2, max_vcpus=1)
    for mfn, count in world.hv.frames.alloc_frames(after, world.hv.frames.free_frames):
        assert not any(world.hv.memory.b[mfn << 12 : (mfn + count) << 12].tobytes().strip(b"\0"))


def test_a_page_lives_as_long_as_it_is_mapped(world: World, guest: Guest) -> None:
    dom0 = world.dom0
    pfn, second = dom0.new_page(), dom0.new_page()
    page = guest.mfn(50)
    guest.write_page(50, {0: 7})
    assert dom0.set_entry(dom0.entry_at(pfn), page << 12 | P | RW | A, 1) == 0
    world.kill(guest)
    world.check()
    assert guest.domain.is_dying == 2
    assert world.hv.domains[1] is guest.domain
    assert guest.domain.tot_pages == 1
    assert dom0.get(1, pfn) == b"\x07"
    # It may still be mapped once more, and its domain gets no more memory.
    assert dom0.set_entry(dom0.entry_at(second), page << 12 | P, 1) == 0
    assert dom0.reservation(memory.XENMEM_populate_physmap, [1], domid=1)[0] == 0
    assert dom0.make_writable(pfn) == 0
    assert 1 in world.hv.domains
    assert dom0.make_writable(second) == 0
    assert 1 not in world.hv.domains
    assert world.hv.frames.owner(page) == -1


def test_a_dead_domains_number_can_be_used_again(world: World, guest: Guest) -> None:
    frame = guest.mfn(50)
    world.kill(guest)
    again = world.guest(1)
    world.check()
    assert again.domain.tot_pages == len(again.p2m)
    assert world.hv.frames.owner(frame) in (1, -1)


def test_page_table_of_the_dead_is_no_table_any_more(world: World, guest: Guest) -> None:
    dom0 = world.dom0
    root = guest.root
    pfn = dom0.new_page()
    assert dom0.set_entry(dom0.entry_at(pfn), root << 12 | P, 1) == 0
    world.kill(guest)
    world.check()
    assert world.hv.frames.type_count[root] == 0
    assert dom0.set_entry(dom0.entry_at(pfn), root << 12 | P | RW, 1) == 0
    world.check()
    assert dom0.make_writable(pfn) == 0


def test_mapper_dies_first(world: World, guest: Guest) -> None:
    stub = world.guest(2)
    stub.domain.target = guest.domain
    pfn = stub.new_page()
    assert stub.set_entry(stub.entry_at(pfn), guest.mfn(50) << 12 | P | RW, 1) == 0
    assert stub.set_entry(stub.entry_at(pfn), world.dom0.mfn(50) << 12 | P | RW, 1) == EBUSY
    world.check()
    world.kill(stub)
    assert world.hv.frames.count[guest.mfn(50)] == 2
    world.check()


def test_shared_info_mapped_by_another(world: World, guest: Guest) -> None:
    dom0 = world.dom0
    pfn = dom0.new_page()
    shared = guest.domain.shared_info_mfn
    assert dom0.set_entry(dom0.entry_at(pfn), shared << 12 | P | RW, 1) == 0
    # 0x10 (PCD): Xen's own pages keep their cache attributes (EACCES), for dom0 too.
    assert dom0.set_entry(dom0.entry_at(pfn), shared << 12 | P | RW | 0x10, 1) == -13
    world.kill(guest)
    assert 1 in world.hv.domains
    world.check()
    assert dom0.set_entry(dom0.entry_at(pfn), shared << 12 | P, 1) == 0
    assert dom0.set_entry(dom0.entry_at(dom0.new_page()), shared << 12 | P | RW, 1) == 0
    assert dom0.make_writable(pfn + 1) == 0
    assert dom0.make_writable(pfn) == 0
    assert 1 not in world.hv.domains


def test_guests_frames_are_given_back_in_pieces(world: World) -> None:
    """Frames from all over the heap, with holes, end as the same free memory."""
    free = sorted(world.hv.frames.heap.blocks())
    guest = world.guest()
    pfns = list(range(100, 900, 3))
    for pfn in pfns:
        assert guest.update_va(guest.va(pfn), 0) == 0
    for at in range(0, len(pfns), 100):
        mfns = [guest.mfn(pfn) for pfn in pfns[at : at + 100]]
        assert guest.reservation(memory.XENMEM_decrease_reservation, mfns)[0] == len(mfns)
    rc, _ = guest.reservation(memory.XENMEM_populate_physmap, pfns)
    assert rc == len(pfns)
    world.check()
    world.kill(guest)
    world.check()
    assert sorted(world.hv.frames.heap.blocks()) == free


def test_hypercall_page(world: World, guest: Guest) -> None:
    mm = world.hv.mm
    pfn = guest.new_page()
    mm.write_hypercall_page(guest.domain, guest.mfn(pfn))
    page = guest.get(4096, pfn)
    entries = [page[at : at + 32] for at in range(0, 4096, 32)]
    assert entries[29] == bytes.fromhex("514153b81d0000000f05415b59c3").ljust(32, b"\xcc")
    assert entries[23] == bytes.fromhex("51415350b8170000000f05").ljust(32, b"\xcc")
    assert entries[127] == bytes.fromhex("514153b87f0000000f05415b59c3").ljust(32, b"\xcc")
    assert world.hv.frames.type_count[guest.mfn(pfn)] == 1


def test_registered_vcpu_info_stays_writable_memory(world: World, guest: Guest) -> None:
    pfn = guest.new_page()
    arg = guest.put(vcpu.vcpu_register_vcpu_info.pack(mfn=guest.mfn(pfn), offset=0))
    assert guest.call(xen.HYPERVISOR_vcpu_op, vcpu.VCPUOP_register_vcpu_info, 0, arg) == 0
    assert guest.make_readonly(pfn) == 0
    assert guest.pin(1, guest.mfn(pfn)) == EINVAL
    world.check()


def test_nothing_holds_a_dying_domain_that_nobody_would_undo(world: World, guest: Guest) -> None:
    dom0 = world.dom0
    table = guest.mfn(guest.new_table({}))
    at = dom0.new_page()
    assert dom0.set_entry(dom0.entry_at(at), table << 12 | P, 1) == 0
    world.kill(guest)
    assert guest.domain.is_dying == 2
    # A pin counts, but does not last; a root is not taken any more.
    assert dom0.mmuext(xen.MMUEXT_PIN_L4_TABLE, table, foreign=1) == 0
    assert dom0.mmuext(xen.MMUEXT_UNPIN_TABLE, table, foreign=1) == EINVAL
    with pytest.raises(HypercallError):
        world.hv.mm.load_root(guest.vcpu, table)
    world.check()
    assert dom0.make_writable(at) == 0
    assert 1 not in world.hv.domains


def test_an_exchange_with_a_dying_domain(world: World, guest: Guest) -> None:
    # Its controller trades pages of a domain that is being destroyed: it loses what it gives, and gets nothing.
    pfns = [guest.new_page() for _ in range(3)]
    mfns = [guest.mfn(pfn) for pfn in pfns]
    for pfn in pfns:
        assert guest.update_va(guest.va(pfn), 0) == 0
    dom0 = world.dom0
    points = Points(2)
    seen = []

    def others(_: object) -> None:
        where = dom0.put(struct.pack("<6Q", *mfns, *pfns), EXTRA_PFN)
        parts = [{"extent_start": where + offset, "nr_extents": 3, "domid": 1} for offset in (0, 24)]
        raw = memory.xen_memory_exchange.pack(in_=parts[0], out=parts[1])
        pages = guest.domain.tot_pages
        rc = dom0.call(xen.HYPERVISOR_memory_op, memory.XENMEM_exchange, dom0.put(raw))
        done = memory.xen_memory_exchange.unpack_from(dom0.get(len(raw))).nr_exchanged
        seen.append((rc, done, pages - guest.domain.tot_pages))
        world.check()

    points.others = others
    points.on(world.hv)
    op = domctl.xen_domctl.pack(
        cmd=domctl.XEN_DOMCTL_destroydomain, interface_version=domctl.XEN_DOMCTL_INTERFACE_VERSION, domain=1
    )
    assert dom0.call(xen.HYPERVISOR_domctl, dom0.put(op, 21)) == 0
    points.off()
    assert seen == [(0, 0, 1)]
    assert 1 not in world.hv.domains
