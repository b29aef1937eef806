"""memory_op: reservations, exchange, and what domains are told about memory."""

import struct
from itertools import pairwise

import pytest
from mm_world import ARGS_PFN, EACCES, EBUSY, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH, EXTRA_PFN, RW, A, Guest, P, World

from hypervisor.abi import errno, memory, xen
from hypervisor.mm.frame_table import INVALID_M2P_ENTRY, PINNED
from hypervisor.vnuma import VirtualTopology

INCREASE, DECREASE, POPULATE = (
    memory.XENMEM_increase_reservation,
    memory.XENMEM_decrease_reservation,
    memory.XENMEM_populate_physmap,
)
SELF = xen.DOMID_SELF
XEN = xen.HYPERVISOR_VIRT_START
"""An address that no guest may name."""


def memory_op(guest: Guest, op: int, raw: bytes) -> int:
    return guest.call(xen.HYPERVISOR_memory_op, op, guest.put(raw))


def unmapped_page(guest: Guest) -> int:
    """A page of the guest's that is mapped nowhere any more: its pfn."""
    pfn = guest.new_page()
    assert guest.update_va(guest.va(pfn), 0) == 0
    return pfn


# -- decrease, populate, increase ------------------------------------------------------------------------------------


def test_give_back_and_get_again(world: World, guest: Guest) -> None:
    pfn = unmapped_page(guest)
    mfn, before = guest.mfn(pfn), guest.domain.tot_pages
    world.hv.memory.write(mfn << 12, b"secret")
    assert guest.reservation(DECREASE, [mfn])[0] == 1
    assert guest.domain.tot_pages == before - 1
    assert world.hv.frames.m2p[mfn] == INVALID_M2P_ENTRY
    assert guest.map(pfn, mfn) == EBUSY  # a freed frame
    rc, [new] = guest.reservation(POPULATE, [pfn])
    assert rc == 1
    assert world.hv.frames.m2p[new] == pfn
    assert guest.domain.tot_pages == before
    assert guest.map(pfn, new) == 0
    assert guest.get(4096, pfn) == bytes(4096)


def test_a_mapped_page_goes_with_its_last_mapping(world: World, guest: Guest) -> None:
    pfn = guest.new_page()
    mfn, before = guest.mfn(pfn), guest.domain.tot_pages
    guest.write_page(pfn, {0: 42})
    assert guest.reservation(DECREASE, [mfn])[0] == 1
    assert guest.reservation(DECREASE, [mfn])[0] == 1  # nothing more happens
    assert guest.domain.tot_pages == before
    assert world.hv.frames.m2p[mfn] == pfn
    assert guest.get(1, pfn) == b"\x2a"
    world.check()
    assert guest.update_va(guest.va(pfn), 0) == 0
    assert guest.domain.tot_pages == before - 1
    assert guest.reservation(DECREASE, [mfn])[0] == 0


def test_xsa_252_a_pinned_table_stays_pinned(world: World, guest: Guest) -> None:
    frames = world.hv.frames
    pfn = guest.new_table({0: guest.mfn(40) << 12 | P})
    mfn = guest.mfn(pfn)
    assert guest.pin(1, mfn) == 0
    assert guest.update_va(guest.va(pfn), 0) == 0
    assert guest.reservation(DECREASE, [mfn])[0] == 1
    assert frames.flags[mfn] & PINNED
    assert (frames.type[mfn], frames.type_count[mfn], frames.count[mfn]) == (1, 1, 1)
    world.check()
    before = guest.domain.tot_pages
    assert guest.unpin(mfn) == 0
    assert guest.domain.tot_pages == before - 1


def test_the_root_in_use_can_be_given_back_and_works_on(world: World, guest: Guest) -> None:
    assert guest.reservation(DECREASE, [guest.root])[0] == 1
    assert guest.unpin(guest.root) == 0
    world.check()
    assert guest.get(4096, 40) == bytes(4096)


def test_counts_say_how_far_it_got(world: World, guest: Guest) -> None:
    gone = [guest.mfn(unmapped_page(guest)) for _ in range(3)]
    assert guest.reservation(DECREASE, [gone[0], gone[1], world.dom0.mfn(40), gone[2]])[0] == 2
    assert guest.reservation(DECREASE, [1 << 60])[0] == 0
    assert guest.reservation(DECREASE, [world.hv.frames.m2p_mfn])[0] == 0
    rc, new = guest.reservation(POPULATE, [500, 501, 502, 503])
    assert rc == 2  # max_pages
    assert [world.hv.frames.m2p[mfn] for mfn in new[:2]] == [500, 501]
    assert new[2:] == [502, 503]


def test_whatever_is_wrong_nothing_is_done(world: World, guest: Guest) -> None:
    for op in (INCREASE, DECREASE, POPULATE):
        assert guest.reservation(op, [])[0] == 0
        assert guest.reservation(op, [guest.mfn(40)], domid=9)[0] == 0
        assert guest.reservation(op, [guest.mfn(40)], domid=0)[0] == 0
        assert guest.reservation(op, [0], order=10)[0] == 0  # XSA-31, 158: more than 2 MiB at once
        assert guest.reservation(op, [0], order=64)[0] == 0
        assert guest.call(xen.HYPERVISOR_memory_op, op, 0x1000) == 0
        bad_list = memory.xen_memory_reservation.pack(extent_start=0x1000, nr_extents=1, domid=SELF)
        assert memory_op(guest, op, bad_list) == 0
        huge = memory.xen_memory_reservation.pack(extent_start=guest.va(EXTRA_PFN), nr_extents=1 << 40, domid=SELF)
        assert memory_op(guest, op, huge) == 0
        assert guest.call(xen.HYPERVISOR_memory_op, op | 5 << 6, 0x1000) == 5
    world.check()


def test_continuation_starts_where_it_is_told(guest: Guest) -> None:
    gone = [guest.mfn(unmapped_page(guest)) for _ in range(3)]
    guest.reservation(DECREASE, gone)
    where = guest.put(struct.pack("<3Q", 500, 501, 502), EXTRA_PFN)
    raw = memory.xen_memory_reservation.pack(extent_start=where, nr_extents=3, domid=SELF)
    before = guest.domain.tot_pages
    assert guest.call(xen.HYPERVISOR_memory_op, POPULATE | 2 << 6, guest.put(raw)) == 3
    assert guest.domain.tot_pages == before + 1
    assert guest.call(xen.HYPERVISOR_memory_op, POPULATE | 7 << 6, guest.put(raw)) == 7
    # The other operations have no such form.
    assert guest.call(xen.HYPERVISOR_memory_op, memory.XENMEM_maximum_ram_page | 1 << 6, 0) == EINVAL


def test_large_extents(world: World) -> None:
    dom0 = world.dom0
    rc, [mfn] = dom0.reservation(POPULATE, [0x10000], order=9)
    assert rc == 1
    assert mfn % 512 == 0
    assert world.hv.frames.m2p[mfn : mfn + 512].tolist() == list(range(0x10000, 0x10200))
    world.check()
    assert dom0.reservation(DECREASE, [mfn], order=9)[0] == 1
    rc, [mfn] = dom0.reservation(POPULATE, [0x10000], order=10)
    assert rc == 1
    assert dom0.reservation(DECREASE, [mfn, mfn], order=10)[0] == 1
    assert dom0.reservation(POPULATE, [0], order=13)[0] == 0  # more than there is
    rc, [mfn] = dom0.reservation(INCREASE, [0], order=3)
    assert rc == 1
    assert dom0.reservation(DECREASE, [mfn], order=3)[0] == 1


def test_dom0_populates_a_domain_under_construction(world: World) -> None:
    dom0 = world.dom0
    domain = world.hv.domain_ops.create(3, max_vcpus=1)
    domain.max_pages = 520
    rc, mfns = dom0.reservation(POPULATE, list(range(400)), domid=3)
    assert (rc, domain.tot_pages) == (400, 400)
    assert [world.hv.frames.m2p[mfn] for mfn in mfns] == list(range(400))
    assert {world.hv.frames.owner(mfn) for mfn in mfns} == {3}
    rc, _ = dom0.reservation(POPULATE, list(range(400, 800)), domid=3)
    assert (rc, domain.tot_pages) == (120, 520)
    # XSA-385: the limit is not a number to overflow.
    domain.max_pages = 0xFFFFFFFF
    assert dom0.reservation(POPULATE, [0], order=18, domid=3)[0] == 0
    assert dom0.reservation(POPULATE, [0], domid=3, flags=memory.XENMEMF_populate_on_demand)[0] == 1
    assert domain.tot_pages == 520


def test_populate_into_a_readonly_list_stops_before_it_is_told(world: World, guest: Guest) -> None:
    gone = [guest.mfn(unmapped_page(guest)) for _ in range(4)]
    guest.reservation(DECREASE, gone)
    before = guest.domain.tot_pages
    where = guest.put(struct.pack("<4Q", 1, 2, 3, 4), EXTRA_PFN)
    assert guest.make_readonly(EXTRA_PFN) == 0
    raw = memory.xen_memory_reservation.pack(extent_start=where, nr_extents=4, domid=SELF)
    assert memory_op(guest, POPULATE, raw) == 0
    assert guest.domain.tot_pages == before + 1  # it got the page that it was not told of
    world.check()


def test_xsa_231_numa_nodes(world: World, guest: Guest) -> None:
    for node in range(256):
        flags = (node + 1 & 0xFF) << 8
        pfn = unmapped_page(world.dom0)
        assert world.dom0.reservation(DECREASE, [world.dom0.mfn(pfn)])[0] == 1
        expected = 1 if node < 64 or node == 255 else 0
        rc, [new] = world.dom0.reservation(POPULATE, [pfn], flags=flags)
        assert rc == expected, node
        if not rc:
            rc, [new] = world.dom0.reservation(POPULATE, [pfn])
        world.dom0.p2m[pfn] = new
        assert world.dom0.make_writable(pfn) == 0
        world.dom0.next_pfn = pfn
        if node < 255:
            exact = flags | memory.XENMEMF_exact_node_request
            assert guest.reservation(INCREASE, [0], flags=exact)[0] == 0
    world.check()


def test_claims(world: World, guest: Guest) -> None:
    dom0 = world.dom0
    domain = world.hv.domain_ops.create(3, max_vcpus=1)
    domain.max_pages = 1 << 20
    free = world.hv.frames.free_frames

    def claim(caller: Guest, pages: int, domid: int = 3, **fields: int) -> int:
        raw = memory.xen_memory_reservation.pack(nr_extents=pages, domid=domid, **fields)
        return memory_op(caller, memory.XENMEM_claim_pages, raw)

    assert claim(guest, 10) == EPERM
    assert claim(dom0, 10, 9) == EINVAL
    assert claim(dom0, 10, extent_order=1) == EINVAL
    assert claim(dom0, 10, extent_start=8) == EINVAL
    assert claim(dom0, free + 1) == -errno.ENOMEM
    assert claim(dom0, free - 10) == 0
    assert claim(dom0, 20) == EINVAL  # one at a time
    # Nobody else gets what is promised, not by exchange either.
    spare = dom0.mfn(unmapped_page(dom0))
    assert dom0.exchange([spare] * 16, [0x40000], 0, 4) == (EINVAL, 0)
    many = [dom0.mfn(unmapped_page(dom0)) for _ in range(16)]
    assert dom0.exchange(many, [0x40000], 0, 4) == (-errno.ENOMEM, 0)
    world.check()
    assert dom0.reservation(POPULATE, [0x20000 + i for i in range(40)])[0] < 11
    rc, _ = dom0.reservation(POPULATE, list(range(300)), domid=3)
    assert rc == 300
    assert claim(dom0, 0) == 0
    assert dom0.reservation(POPULATE, [0x30000 + i for i in range(40)])[0] == 40


# -- exchange -------------------------------------------------------------------------------------------------------


def test_exchange(world: World, guest: Guest) -> None:
    pfn = unmapped_page(guest)
    old = guest.mfn(pfn)
    world.hv.memory.write(old << 12, b"old contents")
    before = guest.domain.tot_pages
    assert guest.exchange([old], [pfn]) == (0, 1)
    [new] = guest.exchanged
    assert new != old
    assert world.hv.frames.m2p[new] == pfn
    assert world.hv.frames.owner(old) == -1
    assert guest.domain.tot_pages == before
    assert world.hv.memory.frame(new) == bytes(4096)


def test_exchange_single_pages_for_an_extent_and_back(world: World, guest: Guest) -> None:
    pfns = [unmapped_page(guest) for _ in range(16)]
    mfns = [guest.mfn(pfn) for pfn in pfns]
    mfns[3], mfns[11] = mfns[11], mfns[3]
    assert guest.exchange(mfns, [0x900, 0xA00], 0, 3) == (0, 16)
    first, second = guest.exchanged
    assert first % 8 == second % 8 == 0
    assert world.hv.frames.m2p[second : second + 8].tolist() == list(range(0xA00, 0xA08))
    world.check()
    assert guest.exchange([first, second], pfns, 3, 0) == (0, 2)
    assert [world.hv.frames.m2p[mfn] for mfn in guest.exchanged] == pfns
    assert guest.domain.tot_pages == len(guest.p2m)


def test_a_page_in_use_is_not_exchanged(world: World, guest: Guest) -> None:
    free = [guest.mfn(unmapped_page(guest)) for _ in range(2)]
    mapped = guest.mfn(guest.new_page())
    assert guest.exchange([mapped], [1]) == (EINVAL, 0)
    assert guest.exchange([guest.root], [1]) == (EINVAL, 0)
    assert guest.exchange([world.dom0.mfn(40)], [1]) == (EINVAL, 0)
    assert guest.exchange([guest.domain.shared_info_mfn], [1]) == (EINVAL, 0)
    assert guest.exchange([1 << 55], [1]) == (EINVAL, 0)
    # XSA-159: a chunk that fails halfway is undone.
    assert guest.exchange([free[0], mapped], [7], 0, 1) == (EINVAL, 0)
    world.check()
    assert world.hv.frames.owner(free[0]) == 1
    assert guest.exchange([free[0], mapped, free[1]], [7, 8, 9]) == (EINVAL, 1)


def test_exchange_arguments(world: World, guest: Guest) -> None:
    mfn = guest.mfn(unmapped_page(guest))
    size = memory.xen_memory_exchange.size

    def exchange(given: dict[str, int], wanted: dict[str, int], done: int = 0) -> int:
        start = guest.put(struct.pack("<2Q", mfn, 77), EXTRA_PFN)
        base = {"extent_start": start, "nr_extents": 1, "domid": SELF}
        parts = {"in_": base | given, "out": base | {"extent_start": start + 8} | wanted}
        return memory_op(guest, memory.XENMEM_exchange, memory.xen_memory_exchange.pack(nr_exchanged=done, **parts))

    assert exchange({}, {"nr_extents": 2}) == EINVAL
    assert exchange({}, {"extent_order": 1}) == EINVAL
    assert exchange({}, {"domid": 1}) == EINVAL
    assert exchange({"extent_order": 10}, {"extent_order": 10}) == EPERM
    assert exchange({"extent_start": 0x1000}, {}) == EFAULT
    assert exchange({"domid": 9}, {"domid": 9}) == ESRCH
    assert exchange({"domid": 0}, {"domid": 0}) == EPERM
    assert exchange({}, {}, done=1) == 0
    assert exchange({}, {}, done=2) == EINVAL
    assert guest.call(xen.HYPERVISOR_memory_op, memory.XENMEM_exchange, 0x1000) == EFAULT
    assert memory.xen_memory_exchange.unpack_from(guest.get(size)).nr_exchanged == 2
    assert world.hv.frames.owner(mfn) == 1


@pytest.mark.parametrize("done", [1 << 60, (1 << 60) - 1, 1 << 59])
def test_xsa_212_far_ends_of_arrays(world: World, guest: Guest, done: int) -> None:
    before = world.hv.memory.b.tobytes()
    start = guest.put(struct.pack("<2Q", guest.mfn(unmapped_page(guest)), 77), EXTRA_PFN)
    part = {"extent_start": start, "nr_extents": done + 1, "domid": SELF}
    raw = memory.xen_memory_exchange.pack(nr_exchanged=done, in_=part, out=part)
    arg = guest.put(raw)
    before = world.hv.memory.b.tobytes()
    assert guest.call(xen.HYPERVISOR_memory_op, memory.XENMEM_exchange, arg) == EFAULT
    assert world.hv.memory.b.tobytes() == before


def test_exchange_that_cannot_tell_still_keeps_the_books(world: World, guest: Guest) -> None:
    mfn = guest.mfn(unmapped_page(guest))
    where = guest.put(struct.pack("<2Q", mfn, 77), EXTRA_PFN)
    assert guest.make_readonly(EXTRA_PFN) == 0
    part = {"extent_start": where, "nr_extents": 1, "domid": SELF}
    raw = memory.xen_memory_exchange.pack(in_=part, out=part | {"extent_start": where + 8})
    assert memory_op(guest, memory.XENMEM_exchange, raw) == EFAULT
    assert guest.domain.tot_pages == len(guest.p2m)
    world.check()


# -- telling ----------------------------------------------------------------------------------------------------------


def test_reservations(world: World, guest: Guest) -> None:
    ask = struct.pack("<H", SELF)
    assert memory_op(guest, memory.XENMEM_current_reservation, ask) == len(guest.p2m)
    assert memory_op(guest, memory.XENMEM_maximum_reservation, ask) == len(guest.p2m)
    assert memory_op(world.dom0, memory.XENMEM_maximum_reservation, ask) == 0xFFFFFFFF
    assert memory_op(world.dom0, memory.XENMEM_current_reservation, struct.pack("<H", 1)) == len(guest.p2m)
    for op in (memory.XENMEM_current_reservation, memory.XENMEM_maximum_reservation, memory.XENMEM_maximum_gpfn):
        assert memory_op(guest, op, struct.pack("<H", 9)) == ESRCH
        assert memory_op(guest, op, struct.pack("<H", 0)) == EPERM
        assert guest.call(xen.HYPERVISOR_memory_op, op, 0x1000) == EFAULT
        assert guest.call(xen.HYPERVISOR_memory_op, op | 64, 0) == EINVAL
    assert memory_op(guest, memory.XENMEM_maximum_gpfn, ask) == 0
    offset = xen.shared_info.offset("arch.max_pfn")
    world.hv.memory.write((guest.domain.shared_info_mfn << 12) + offset, struct.pack("<Q", 500))
    assert memory_op(guest, memory.XENMEM_maximum_gpfn, ask) == 499
    # The guest may write anything there; results are signed.
    world.hv.memory.write((guest.domain.shared_info_mfn << 12) + offset, struct.pack("<Q", 2**64 - 1))
    assert memory_op(guest, memory.XENMEM_maximum_gpfn, ask) == -2
    assert guest.call(xen.HYPERVISOR_memory_op, memory.XENMEM_maximum_ram_page, 0) == world.hv.frames.frames


def test_machphys(world: World, guest: Guest) -> None:
    layout = memory.xen_machphys_mfn_list
    for room, expected in ((8, 1), (1, 1), (0, 0)):
        raw = layout.pack(max_extents=room, extent_start=guest.va(EXTRA_PFN))
        assert memory_op(guest, memory.XENMEM_machphys_mfn_list, raw) == 0
        assert layout.unpack_from(guest.get(layout.size)).nr_extents == expected
    assert struct.unpack("<Q", guest.get(8, EXTRA_PFN))[0] == world.hv.frames.m2p_mfn
    raw = layout.pack(max_extents=8, extent_start=0x1000)
    assert memory_op(guest, memory.XENMEM_machphys_mfn_list, raw) == EFAULT
    mapping = memory.xen_machphys_mapping
    for who, known in ((guest, (1 << 35) - 1), (world.dom0, world.hv.frames.frames - 1)):
        assert memory_op(who, memory.XENMEM_machphys_mapping, bytes(mapping.size)) == 0
        told = mapping.unpack_from(who.get(mapping.size))
        assert (told.v_start, told.v_end, told.max_mfn) == (0xFFFF800000000000, 0xFFFF804000000000, known)


def test_memory_maps(world: World, guest: Guest) -> None:
    ask = memory.xen_memory_map.pack(nr_entries=2, buffer=guest.va(EXTRA_PFN))
    assert memory_op(guest, memory.XENMEM_memory_map, ask) == ENOSYS
    entries = struct.pack("<QQIQQI", 0, 0xA0000, 1, 0xA0000, 0x60000, 2)
    where = guest.put(entries, EXTRA_PFN)

    def set_map(caller: Guest, count: int, domid: int = SELF) -> int:
        raw = memory.xen_foreign_memory_map.pack(domid=domid, map={"nr_entries": count, "buffer": where})
        return memory_op(caller, memory.XENMEM_set_memory_map, raw)

    assert set_map(guest, 1025) == EINVAL
    assert set_map(guest, 1, 9) == ESRCH
    assert set_map(guest, 1, 0) == EPERM
    assert set_map(guest, 2) == 0
    guest.put(bytes(40), EXTRA_PFN)
    ask = memory.xen_memory_map.pack(nr_entries=9, buffer=guest.va(EXTRA_PFN))
    assert memory_op(guest, memory.XENMEM_memory_map, ask) == 0
    assert struct.unpack("<I", guest.get(4))[0] == 2
    assert guest.get(40, EXTRA_PFN) == entries
    assert memory_op(guest, memory.XENMEM_machine_memory_map, ask) == EPERM
    assert memory_op(world.dom0, memory.XENMEM_machine_memory_map, memory.xen_memory_map.pack(nr_entries=1)) == 0
    count = struct.unpack("<I", world.dom0.get(4))[0]
    ask = memory.xen_memory_map.pack(nr_entries=count, buffer=world.dom0.va(EXTRA_PFN))
    assert memory_op(world.dom0, memory.XENMEM_machine_memory_map, ask) == EINVAL
    ask = memory.xen_memory_map.pack(nr_entries=count + 1, buffer=world.dom0.va(EXTRA_PFN))
    assert memory_op(world.dom0, memory.XENMEM_machine_memory_map, ask) == 0
    regions = list(struct.iter_unpack("<QQI", world.dom0.get(20 * count, EXTRA_PFN)))
    assert regions == sorted(regions)
    assert all(start + size <= following for (start, size, _), (following, _, _) in pairwise(regions))
    ram = [(start, start + size) for start, size, kind in regions if kind == 1]
    assert ram == [(0, 0x9FC00), (0x100000, world.hv.frames.frames << 12)]
    # What the firmware does not tell of, but the hardware domain cannot use: the interrupt controllers.
    assert (0xFEC00000, 0x1000, 2) in regions
    assert (0xFEE00000, 0x100000, 2) in regions
    assert count == 9
    ask = memory.xen_memory_map.pack(nr_entries=count + 1, buffer=XEN)
    assert memory_op(world.dom0, memory.XENMEM_machine_memory_map, ask) == EFAULT
    ask = memory.xen_memory_map.pack(nr_entries=7, buffer=XEN)
    assert memory_op(world.dom0, memory.XENMEM_machine_memory_map, ask) == EINVAL


def test_physmaps_are_not_for_pv(world: World, guest: Guest) -> None:
    pack = memory.xen_add_to_physmap.pack
    for space in (memory.XENMAPSPACE_shared_info, memory.XENMAPSPACE_grant_table):
        assert memory_op(guest, memory.XENMEM_add_to_physmap, pack(domid=SELF, space=space)) == EACCES
    assert memory_op(guest, memory.XENMEM_add_to_physmap, pack(domid=9)) == ESRCH
    foreign = pack(domid=SELF, space=memory.XENMAPSPACE_gmfn_foreign)
    assert memory_op(guest, memory.XENMEM_add_to_physmap, foreign) == ENOSYS
    assert guest.call(xen.HYPERVISOR_memory_op, memory.XENMEM_add_to_physmap, 0x1000) == EFAULT
    batch = memory.xen_add_to_physmap_batch.pack
    assert memory_op(guest, memory.XENMEM_add_to_physmap_batch, batch(domid=SELF)) == EACCES
    ranged = batch(domid=SELF, space=memory.XENMAPSPACE_gmfn_range)
    assert memory_op(guest, memory.XENMEM_add_to_physmap_batch, ranged) == -errno.EOPNOTSUPP
    remove = memory.xen_remove_from_physmap.pack
    assert memory_op(guest, memory.XENMEM_remove_from_physmap, remove(domid=SELF)) == EACCES
    assert memory_op(guest, memory.XENMEM_remove_from_physmap, remove(domid=9)) == ESRCH


def test_unknown_operations(guest: Guest) -> None:
    for op in (8, 29, 40, 63, memory.XENMEM_paging_op, memory.XENMEM_sharing_op):
        assert guest.call(xen.HYPERVISOR_memory_op, op, 0x1000) == ENOSYS


def test_upper_bits_of_a_command(world: World, guest: Guest) -> None:
    # What cannot be continued refuses them: common code as invalid, that of x86 by not knowing the operation.
    domid = memory.xen_memory_domain.pack(domid=SELF)
    for op in (memory.XENMEM_current_reservation, memory.XENMEM_exchange, memory.XENMEM_get_vnumainfo):
        assert memory_op(guest, op | 1 << 6, domid) == EINVAL
    for op in (memory.XENMEM_memory_map, memory.XENMEM_machphys_mapping, memory.XENMEM_set_pod_target):
        assert memory_op(guest, op | 1 << 6, domid) == ENOSYS
    assert memory_op(world.dom0, memory.XENMEM_machine_memory_map | 1 << 40, domid) == ENOSYS
    # An operation that goes on says how far it had got, whatever is wrong.
    for op in (memory.XENMEM_increase_reservation, memory.XENMEM_decrease_reservation, memory.XENMEM_populate_physmap):
        assert guest.call(xen.HYPERVISOR_memory_op, op | 77 << 6, XEN) == 77


def test_operations_for_other_kinds_of_guests(world: World, guest: Guest) -> None:
    target = memory.xen_pod_target.pack
    for op in (memory.XENMEM_set_pod_target, memory.XENMEM_get_pod_target):
        assert guest.call(xen.HYPERVISOR_memory_op, op, XEN) == EFAULT
        assert memory_op(guest, op, target(domid=SELF)) == EINVAL
        assert memory_op(guest, op, target(domid=9)) == ESRCH
    access = memory.xen_mem_access_op.pack
    assert guest.call(xen.HYPERVISOR_memory_op, memory.XENMEM_access_op, XEN) == EFAULT
    assert memory_op(guest, memory.XENMEM_access_op, access(domid=SELF)) == ESRCH
    assert memory_op(guest, memory.XENMEM_access_op, access(domid=1)) == EPERM
    assert memory_op(guest, memory.XENMEM_access_op, access(domid=0)) == EINVAL
    topology = memory.xen_vnuma_topology_info.pack
    assert memory_op(guest, memory.XENMEM_get_vnumainfo, topology(domid=SELF, pad=1)) == EINVAL
    assert memory_op(guest, memory.XENMEM_get_vnumainfo, topology(domid=9)) == ESRCH
    assert memory_op(guest, memory.XENMEM_get_vnumainfo, topology(domid=0)) == EPERM
    assert memory_op(guest, memory.XENMEM_get_vnumainfo, topology(domid=SELF)) == -errno.EOPNOTSUPP
    assert guest.call(xen.HYPERVISOR_memory_op, memory.XENMEM_get_sharing_freed_pages, XEN) == 0
    assert guest.call(xen.HYPERVISOR_memory_op, memory.XENMEM_machphys_compat_mfn_list, XEN) == -errno.EOPNOTSUPP
    devices = memory.xen_reserved_device_memory_map.pack
    assert memory_op(world.dom0, memory.XENMEM_reserved_device_memory_map, devices(nr_entries=4)) == 0
    assert memory.xen_reserved_device_memory_map.unpack_from(world.dom0.get(32)).nr_entries == 0
    assert memory_op(guest, memory.XENMEM_reserved_device_memory_map, devices(flags=2)) == EINVAL
    assert memory_op(guest, memory.XENMEM_reserved_device_memory_map, devices(buffer=XEN)) == EFAULT


def test_memory_below_an_address(world: World, guest: Guest) -> None:
    guest.domain.max_pages += 20
    frames = world.hv.frames
    # Below 2 MiB: what lies between I/O memory and the M2P.
    rc, mfns = guest.reservation(memory.XENMEM_populate_physmap, [7, 8], flags=21)
    assert rc == 2
    assert all(256 <= mfn < 512 for mfn in mfns)
    # Below 1 MiB there is nothing to be had, and a page has 12 bits.
    assert guest.reservation(memory.XENMEM_populate_physmap, [9], flags=20)[0] == 0
    assert guest.reservation(memory.XENMEM_populate_physmap, [9], flags=12)[0] == 0
    # As many bits as the machine has, or more, are no restriction.
    assert guest.reservation(memory.XENMEM_increase_reservation, [0], flags=25)[0] == 1
    free = frames.free_frames
    pfn = guest.new_page()
    given = guest.mfn(pfn)
    assert guest.update_va(guest.va(pfn), 0) == 0
    assert guest.exchange([given], [pfn], flags=20) == (-errno.ENOMEM, 0)
    assert frames.free_frames == free
    assert guest.exchange([given], [pfn], flags=21) == (0, 1)
    assert 256 <= guest.exchanged[0] < 512


def test_numa_nodes(world: World, guest: Guest) -> None:
    # XSA-231: this machine has node 0 only, of 64 that could be.
    guest.domain.max_pages += 1000
    exact = memory.XENMEMF_exact_node_request
    for node in range(256):
        flags = ((node + 1) & 0xFF) << 8
        assert guest.reservation(memory.XENMEM_populate_physmap, [1], flags=flags)[0] == 1
        assert guest.reservation(memory.XENMEM_populate_physmap, [1], flags=flags | exact)[0] == (node == 255)
        rc, _ = world.dom0.reservation(memory.XENMEM_populate_physmap, [1], flags=flags)
        assert rc == (node < 64 or node == 255)
        rc, _ = world.dom0.reservation(memory.XENMEM_populate_physmap, [1], flags=flags | exact)
        assert rc == (node in (0, 255))


def test_populate_on_demand_is_nothing(world: World, guest: Guest) -> None:
    on_demand = memory.XENMEMF_populate_on_demand
    pages = guest.domain.tot_pages
    assert guest.reservation(memory.XENMEM_populate_physmap, [1, 2], flags=on_demand)[0] == 0
    rc, extents = world.dom0.reservation(memory.XENMEM_populate_physmap, [1, 2], flags=on_demand, order=20, domid=1)
    assert (rc, extents, guest.domain.tot_pages) == (2, [1, 2], pages)
    assert world.dom0.reservation(memory.XENMEM_populate_physmap, [1], flags=on_demand, order=21, domid=1)[0] == 0


def test_order_limits() -> None:
    world = World(64)
    guest = world.guest()
    guest.domain.max_pages += 1 << 13

    def largest(caller: Guest) -> int:
        orders = [n for n in range(13) if caller.reservation(memory.XENMEM_increase_reservation, [0], order=n)[0]]
        return max(orders)

    assert largest(guest) == 9
    guest.domain.ioports.append(range(0x60, 0x61))
    assert guest.reservation(memory.XENMEM_increase_reservation, [0], order=10)[0] == 1
    assert guest.reservation(memory.XENMEM_decrease_reservation, [0], order=13)[0] == 0
    assert world.dom0.reservation(memory.XENMEM_increase_reservation, [0], order=11)[0] == 1


def test_acquire_resource(world: World, guest: Guest) -> None:
    dom0 = world.dom0
    pack = memory.xen_mem_acquire_resource.pack
    grants = {"type": memory.XENMEM_resource_grant_table, "domid": 1}

    def acquire(caller: Guest, **fields: int) -> int:
        return memory_op(caller, memory.XENMEM_acquire_resource, pack(**(grants | fields)))

    assert acquire(dom0, nr_frames=0) == 0
    size = memory.xen_mem_acquire_resource.size
    limit = memory.xen_mem_acquire_resource.unpack_from(dom0.get(size, ARGS_PFN)).nr_frames
    assert limit == guest.domain.grant_table.max_frames
    where = dom0.va(EXTRA_PFN)
    assert acquire(dom0, nr_frames=1, frame_list=where) == 0
    [mfn] = struct.unpack("<Q", dom0.get(8, EXTRA_PFN))
    assert mfn == guest.domain.grant_table.shared[0]
    pfn = dom0.new_page()
    assert dom0.set_entry(dom0.entry_at(pfn), mfn << 12 | P | RW | A, 1) == 0
    world.check()
    assert acquire(dom0, nr_frames=1, frame=limit, frame_list=where) == EINVAL
    assert acquire(dom0, nr_frames=1) == EINVAL
    assert acquire(dom0, nr_frames=1, pad=1) == EINVAL
    assert acquire(dom0, nr_frames=1, frame=1 << 32) == EINVAL
    assert acquire(dom0, nr_frames=1, frame_list=where, type=9) == -errno.EOPNOTSUPP
    assert acquire(dom0, nr_frames=1, frame_list=where, type=memory.XENMEM_resource_ioreq_server) == EINVAL
    assert acquire(dom0, domid=9) == ESRCH
    assert acquire(dom0, domid=0) == EPERM
    assert acquire(guest, domid=0) == EPERM
    # The mapping outlives the domain, and then so does the domain's number.
    world.kill(guest)
    assert 1 in world.hv.domains
    assert dom0.make_writable(pfn) == 0
    assert 1 not in world.hv.domains


def test_a_new_frame_is_no_page_yet(world: World, guest: Guest) -> None:
    # Neither a frame that was never used nor one of Xen's has a place in the guest's memory.
    guest.domain.max_pages += 1
    rc, mfns = guest.reservation(INCREASE, [0])
    assert (rc, world.hv.frames.m2p[mfns[0]]) == (1, INVALID_M2P_ENTRY)
    assert world.hv.frames.m2p[guest.domain.shared_info_mfn] == INVALID_M2P_ENTRY


def test_a_lent_frame_given_back_is_not_freed(world: World, guest: Guest) -> None:
    shared, frames = guest.domain.shared_info_mfn, world.hv.frames
    kept, new = guest.new_page(), guest.new_page()
    assert guest.map(kept, shared) == 0
    assert guest.reservation(DECREASE, [shared])[0] == 1
    assert not frames.heap.is_free(shared)
    assert guest.map(new, shared) == 0  # while it is mapped, it can be
    assert guest.make_writable(new) == guest.make_writable(kept) == 0
    assert guest.map(new, shared) == EBUSY
    assert guest.reservation(DECREASE, [shared])[0] == 0
    assert frames.owner(shared) == 1
    world.check()


def test_memory_for_a_virtual_node(world: World, guest: Guest) -> None:
    guest.domain.max_pages += 20
    vnode, exact = memory.XENMEMF_vnode, memory.XENMEMF_exact_node_request

    def get(node: int, flags: int) -> int:
        return guest.reservation(memory.XENMEM_populate_physmap, [1], flags=(node + 1) << 8 | flags)[0]

    assert get(3, vnode) == get(3, vnode | exact) == 1  # it has no topology
    guest.domain.virtual_topology = VirtualTopology(2, bytes(16), bytes(4), b"", host_nodes=(0, 5))
    assert [get(node, vnode) for node in range(4)] == [1, 1, 0, 0]
    assert [get(node, vnode | exact) for node in range(4)] == [1, 0, 0, 0]
