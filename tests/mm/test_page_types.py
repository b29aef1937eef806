"""Page tables: what is accepted, what is stored, what is held."""

import struct

import pytest
from mm_world import (
    EBUSY,
    EINVAL,
    EPERM,
    KERNEL_BIT,
    NX,
    PCD,
    PSE,
    PWT,
    RO_TABLE,
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
from hypervisor.mm.frame_table import (
    ERESTART,
    PARTIAL,
    PINNED,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l4_page_table,
    PGT_writable_page,
)


def test_l1_entries_gain_user_and_what_they_came_as(guest: Guest) -> None:
    data = [guest.mfn(guest.new_page()) for _ in range(3)]
    table = guest.new_table(
        {
            0: data[0] << 12 | P | RW | US,
            1: data[1] << 12 | P | RW | A,
            2: data[2] << 12 | P | NX,
            3: 0xFFF0000000000FFE,
        }
    )
    assert guest.pin(1, guest.mfn(table)) == 0
    stored = guest.hv.memory.q[guest.mfn(table) << 9 : (guest.mfn(table) << 9) + 4].tolist()
    assert stored == [
        data[0] << 12 | P | RW | US | G,
        data[1] << 12 | P | RW | A | US | KERNEL_BIT,
        data[2] << 12 | P | NX | US | KERNEL_BIT,
        0xFFF0000000000FFE,
    ]


def test_l1_holds_references_and_writable_types(world: World, guest: Guest) -> None:
    frames = world.hv.frames
    page = guest.mfn(guest.new_page())
    before = frames.count[page], frames.type_count[page]
    table = guest.mfn(guest.new_table({0: page << 12 | P | RW, 1: page << 12 | P, 7: page << 12 | P | RW}))
    assert guest.pin(1, table) == 0
    assert (frames.count[page], frames.type_count[page]) == (before[0] + 3, before[1] + 2)
    assert frames.type[page] == PGT_writable_page
    world.check()
    assert guest.unpin(table) == 0
    assert (frames.count[page], frames.type_count[page]) == before


def test_bad_l1_entry_leaves_no_trace(world: World, guest: Guest) -> None:
    frames = world.hv.frames
    page = guest.mfn(guest.new_page())
    counts = frames.count.tobytes(), frames.type_count.tobytes()
    pfn = guest.new_table({0: page << 12 | P | RW, 511: guest.root << 12 | P | RW})
    table = guest.mfn(pfn)
    assert guest.pin(1, table) == EBUSY
    assert frames.type_count[table] == 0
    assert guest.make_writable(pfn) == 0
    assert (frames.count.tobytes(), frames.type_count.tobytes()) == counts


@pytest.mark.parametrize(
    ("bits", "rc"),
    [(P | PWT, EINVAL), (P | PCD, EINVAL), (P | 0x80, EINVAL), (P | G, 0), (P | 0xE00, 0), (P | NX | 1 << 58, 0)],
)
def test_l1_flags_of_an_unprivileged_domain(guest: Guest, bits: int, rc: int) -> None:
    page = guest.mfn(guest.new_page())
    assert guest.pin(1, guest.mfn(guest.new_table({9: page << 12 | bits}))) == rc


@pytest.mark.parametrize("bits", [PSE, PWT, PCD, G])
@pytest.mark.parametrize("level", [2, 3, 4])
def test_table_flags(guest: Guest, level: int, bits: int) -> None:
    # XSA-148: PSE is refused on every path.
    lower = guest.mfn(guest.new_table({}))
    pfn = guest.new_table({3: lower << 12 | TABLE | bits})
    assert guest.pin(level, guest.mfn(pfn)) == EINVAL
    assert guest.make_writable(pfn) == 0
    guest.write_page(pfn, {3: lower << 12 | TABLE})
    assert guest.make_readonly(pfn) == 0
    assert guest.pin(level, guest.mfn(pfn)) == 0
    assert guest.set_entry((guest.mfn(pfn) << 12) + 24, lower << 12 | TABLE | bits) == EINVAL


def test_upper_levels_hold_the_lower(world: World, guest: Guest) -> None:
    frames = world.hv.frames
    l1 = guest.mfn(guest.new_table({0: guest.mfn(guest.new_page()) << 12 | P | RW}))
    l2 = guest.mfn(guest.new_table({0: l1 << 12 | TABLE, 100: l1 << 12 | TABLE}))
    l3 = guest.mfn(guest.new_table({5: l2 << 12 | P}))
    l4 = guest.mfn(guest.new_table({300: l3 << 12 | TABLE}))
    assert guest.pin(4, l4) == 0
    assert [frames.type[mfn] for mfn in (l1, l2, l3, l4)] == [1, 2, 3, 4]
    assert [frames.type_count[mfn] for mfn in (l1, l2, l3, l4)] == [2, 1, 1, 1]
    assert world.hv.memory.q[(l3 << 9) + 5] == l2 << 12 | P | US
    world.check()
    assert guest.unpin(l4) == 0
    assert [frames.type_count[mfn] for mfn in (l1, l2, l3, l4)] == [0, 0, 0, 0]


def test_a_page_table_is_never_writable(guest: Guest) -> None:
    pfn = guest.new_page()
    assert guest.pin(1, guest.mfn(pfn)) == EINVAL  # still mapped writable
    assert guest.make_readonly(pfn) == 0
    assert guest.pin(1, guest.mfn(pfn)) == 0
    assert guest.make_writable(pfn) == EBUSY
    other = guest.new_page()
    assert guest.map(other, guest.mfn(pfn), P | A) == 0


def test_wrong_levels(guest: Guest) -> None:
    l1 = guest.mfn(guest.new_table({}))
    l2 = guest.mfn(guest.new_table({0: l1 << 12 | TABLE}))
    assert guest.pin(2, l2) == 0
    assert guest.pin(1, l2) == EINVAL
    assert guest.pin(2, l1) == EINVAL
    assert guest.pin(4, guest.mfn(guest.new_table({0: l2 << 12 | TABLE}))) == EINVAL
    data = guest.mfn(guest.new_page())
    assert guest.pin(2, guest.mfn(guest.new_table({0: data << 12 | TABLE}))) == EINVAL


def test_error_of_a_bad_l1_comes_through_all_levels(guest: Guest) -> None:
    l1 = guest.mfn(guest.new_table({8: guest.root << 12 | P | RW}))
    l2 = guest.mfn(guest.new_table({0: l1 << 12 | TABLE}))
    l3 = guest.mfn(guest.new_table({0: l2 << 12 | TABLE}))
    assert guest.pin(3, l3) == EBUSY
    assert guest.set_entry((guest.table(4) << 12) + 8, l3 << 12 | TABLE) == EBUSY


def test_frames_of_others_and_of_nobody(world: World, guest: Guest) -> None:
    other = world.guest(2)
    pfn = guest.new_page()
    assert guest.map(pfn, other.mfn(20)) == EBUSY
    assert guest.map(pfn, other.mfn(20), P) == EBUSY
    assert guest.map(pfn, world.hv.frames.frames - 1) == EBUSY  # free
    assert guest.map(pfn, world.hv.frames.frames + 7) == EPERM  # no memory there
    assert guest.map(pfn, (1 << 40) - 1) == EINVAL
    assert world.dom0.map(pfn, world.hv.frames.frames + 7) == 0
    assert world.dom0.map(pfn, 0xFEE00) == EPERM
    assert world.dom0.map(pfn, world.dom0.mfn(pfn)) == 0


def test_hardware_domain_maps_io_uncached(world: World) -> None:
    dom0, pfn = world.dom0, world.dom0.new_page()
    mfn = world.hv.frames.frames + 3
    assert dom0.map(pfn, mfn, P | RW) == 0
    assert dom0.entry(pfn) == mfn << 12 | P | RW | US | PWT | PCD | KERNEL_BIT
    world.check()
    assert dom0.make_writable(pfn) == 0


def test_the_m2p_can_be_mapped_for_reading_as_xens(world: World, guest: Guest) -> None:
    # A guest reads it at its place; its frames are Xen's, and may be named as such by the control domain only.
    m2p, dom0 = world.hv.frames.m2p_mfn, world.dom0
    pfn, at = guest.new_page(), dom0.new_page()
    assert guest.map(pfn, m2p, P) == guest.map(pfn, m2p, P | RW) == EBUSY
    assert guest.set_entry(guest.entry_at(pfn), m2p << 12 | P, xen.DOMID_XEN) == EPERM
    assert dom0.map(at, m2p, P) == EBUSY
    assert dom0.set_entry(dom0.entry_at(at), m2p << 12 | P | RW, xen.DOMID_XEN) == EBUSY
    assert dom0.set_entry(dom0.entry_at(at), m2p << 12 | P, xen.DOMID_XEN) == 0
    world.check()
    assert dom0.make_writable(at) == 0


# -- linear page tables (XSA-240) -----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [2, 3, 4])
def test_self_map_read_only(world: World, guest: Guest, level: int) -> None:
    pfn = guest.new_page()
    mfn = guest.mfn(pfn)
    guest.write_page(pfn, {4: mfn << 12 | RO_TABLE})
    assert guest.make_readonly(pfn) == 0
    assert guest.pin(level, mfn) == 0
    world.check()
    assert world.hv.frames.type_count[mfn] == 1
    # XSA-182: neither writability nor cache attributes may change without validation.
    assert guest.set_entry((mfn << 12) + 32, mfn << 12 | TABLE) == EINVAL
    assert guest.set_entry((mfn << 12) + 32, mfn << 12 | RO_TABLE | PCD) == EINVAL
    assert guest.set_entry((mfn << 12) + 32, mfn << 12 | RO_TABLE | 0x200) == 0
    assert guest.set_entry((mfn << 12) + 40, mfn << 12 | TABLE) == EINVAL
    assert guest.unpin(mfn) == 0


@pytest.mark.parametrize("level", [2, 3, 4])
def test_writable_self_map_is_refused(guest: Guest, level: int) -> None:
    pfn = guest.new_page()
    guest.write_page(pfn, {4: guest.mfn(pfn) << 12 | TABLE})
    assert guest.make_readonly(pfn) == 0
    assert guest.pin(level, guest.mfn(pfn)) == EINVAL


@pytest.mark.parametrize("level", [2, 3, 4])
def test_linear_tables_make_no_chains(world: World, guest: Guest, level: int) -> None:
    frames = world.hv.frames
    first = guest.mfn(guest.new_table({}))
    assert guest.pin(level, first) == 0
    second = guest.mfn(guest.new_table({0: first << 12 | RO_TABLE, 9: first << 12 | RO_TABLE}))
    assert guest.pin(level, second) == 0
    assert frames.linear == {first: 2, second: -2}
    world.check()
    third = guest.mfn(guest.new_table({0: second << 12 | RO_TABLE}))
    assert guest.pin(level, third) == EINVAL  # it would name one that names another
    assert guest.set_entry((first << 12) + 8, second << 12 | RO_TABLE) == EINVAL  # and make a ring
    assert guest.set_entry((second << 12) + 8, first << 12 | TABLE) == EINVAL  # writable
    assert guest.set_entry((first << 12) + 8, first << 12 | RO_TABLE) == 0  # a self-map does not count
    # The first lives on as long as the second names it.
    assert guest.unpin(first) == 0
    assert frames.type_count[first] == 2
    world.check()
    assert guest.set_entry(second << 12, 0) == 0
    assert frames.linear == {first: 1, second: -1}
    assert guest.unpin(second) == 0
    assert frames.linear == {}
    assert frames.type_count[first] == 0


def test_not_yet_validated_table_is_no_linear_target(guest: Guest) -> None:
    idle = guest.mfn(guest.new_table({}))
    assert guest.pin(2, guest.mfn(guest.new_table({0: idle << 12 | RO_TABLE}))) == 0  # it became an L1
    assert guest.hv.frames.type[idle] == PGT_l1_page_table


# -- pinning --------------------------------------------------------------------------------------------------------


def test_pin_twice_and_unpin_twice(guest: Guest) -> None:
    mfn = guest.mfn(guest.new_table({}))
    for level in (1, 2, 3, 4):
        assert guest.pin(level, mfn) == 0
        assert guest.pin(level, mfn) == EINVAL
        assert guest.unpin(mfn) == 0
        assert guest.unpin(mfn) == EINVAL
    assert guest.pin(1, 0) == EINVAL
    assert guest.pin(1, guest.hv.frames.frames + 5) == EINVAL
    assert guest.pin(1, 1 << 60) == EINVAL
    assert guest.unpin(1 << 60) == EINVAL


def test_pinned_root_shows_xens_slots(world: World, guest: Guest) -> None:
    mfn = guest.mfn(guest.new_table({260: 0xDEADBEEF001, 271: 0x1234567003}))
    assert guest.pin(4, mfn) == 0
    slots = world.hv.memory.q[(mfn << 9) + 256 : (mfn << 9) + 272].tolist()
    root = world.hv.memory.q[(guest.root << 9) + 256 : (guest.root << 9) + 272].tolist()
    # The M2P comes when the root is loaded for the kernel.
    assert (slots[0], root[0] & (P | RW | US)) == (0, P | US)
    assert slots[2] == mfn << 12 | P | RW | A | D | NX
    assert slots[1] == slots[15] == 0
    assert (slots[1], *slots[3:]) == (root[1], *root[3:])
    for slot in (256, 258, 271):
        assert guest.set_entry((mfn << 12) + slot * 8, 0) == EINVAL
    assert guest.set_entry((mfn << 12) + 272 * 8, 0) == 0


def test_the_m2p_is_in_roots_of_the_kernel(world: World, guest: Guest) -> None:
    def slot(mfn: int) -> int:
        return world.hv.memory.q[(mfn << 9) + 256]

    copied = struct.unpack("<512Q", world.hv.memory.frame(guest.root).tobytes())
    words = {i: word for i, word in enumerate(copied) if word & P and not 256 <= i <= 271}
    kernel, user, both = (guest.mfn(guest.new_table(words)) for _ in range(3))
    for mfn in (kernel, user, both):
        assert guest.pin(4, mfn) == 0
    assert guest.mmuext(xen.MMUEXT_NEW_BASEPTR, kernel) == guest.mmuext(xen.MMUEXT_NEW_USER_BASEPTR, user) == 0
    assert (slot(kernel) != 0, slot(user)) == (True, 0)
    assert guest.mmuext(xen.MMUEXT_NEW_USER_BASEPTR, kernel) == 0
    assert slot(kernel)
    # With the assist m2p_strict it is there from the start, and goes when the root becomes that of user mode.
    assert guest.call(xen.HYPERVISOR_vm_assist, xen.VMASST_CMD_enable, xen.VMASST_TYPE_m2p_strict) == 0
    assert guest.unpin(both) == guest.pin(4, both) == 0
    assert slot(both)
    assert guest.mmuext(xen.MMUEXT_NEW_USER_BASEPTR, both) == 0
    assert slot(both) == 0


def test_unpinned_root_in_use_stays_validated(world: World, guest: Guest) -> None:
    assert world.hv.frames.flags[guest.root] & PINNED
    assert guest.pin(4, guest.root) == EINVAL
    assert guest.unpin(guest.root) == 0
    assert world.hv.frames.type[guest.root] == PGT_l4_page_table
    assert world.hv.frames.type_count[guest.root] == 1
    world.check()
    assert guest.pin(4, guest.root) == 0


# -- interrupted validation (XSA-45, 290, 299, 309, 310) --------------------------------------------------------------


class Budget:
    """Lets so many entries pass, then asks for a pause each time."""

    def __init__(self, entries: int) -> None:
        self.left = entries

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def tree(guest: Guest) -> tuple[int, int, list[int]]:
    """A root over one L3 over two L2 over two L1 each, with data: (root, a data page, tables)."""
    data = guest.mfn(guest.new_page())
    l1s = [guest.mfn(guest.new_table(dict.fromkeys(range(3), data << 12 | P | RW))) for _ in range(4)]
    l2s = [guest.mfn(guest.new_table({0: a << 12 | TABLE, 1: b << 12 | TABLE})) for a, b in (l1s[:2], l1s[2:])]
    l3 = guest.mfn(guest.new_table({i: l2 << 12 | TABLE for i, l2 in enumerate(l2s)}))
    root = guest.mfn(guest.new_table({1: l3 << 12 | TABLE, 2: l3 << 12 | TABLE}))
    return root, data, [*l1s, *l2s, l3, root]


@pytest.mark.parametrize("budget", range(8))
def test_interrupted_validation_resumes_to_the_same_counts(world: World, guest: Guest, budget: int) -> None:
    frames, types = world.hv.frames, world.hv.mm.types
    root, _, tables = tree(guest)
    counts = frames.count.tobytes(), frames.type_count.tobytes()
    assert guest.pin(4, root) == 0
    pinned = frames.count.tobytes(), frames.type_count.tobytes()
    assert guest.unpin(root) == 0
    assert (frames.count.tobytes(), frames.type_count.tobytes()) == counts

    interruptions = 0
    assert frames.get_page(root, guest.domain)
    ours = [(root, 0)]
    world.hv.mm.holders.append(lambda: ours)
    while True:
        types.preempt = Budget(budget)
        error = frames.take_type(root, PGT_l4_page_table)
        types.preempt = None
        ours[:] = [(root, PGT_l4_page_table if error == 0 else 0)]
        world.check()
        if error != ERESTART:
            break
        interruptions += 1
        assert interruptions < 20
    assert error == 0
    assert (frames.count.tobytes(), frames.type_count.tobytes()) == pinned

    while True:
        types.preempt = Budget(budget)
        error = frames.put_page_and_type(root)
        types.preempt = None
        if error != ERESTART:
            break
        world.check()
    ours.clear()
    assert (frames.count.tobytes(), frames.type_count.tobytes()) == counts
    assert not any(frames.flags[mfn] & PARTIAL for mfn in tables)
    assert interruptions or budget >= 4


@pytest.mark.parametrize("budget", range(6))
def test_interrupted_validation_then_a_bad_entry(world: World, guest: Guest, budget: int) -> None:
    frames, types = world.hv.frames, world.hv.mm.types
    data = guest.mfn(guest.new_page())
    good = [guest.mfn(guest.new_table({0: data << 12 | P | RW})) for _ in range(6)]
    bad = guest.mfn(guest.new_table({0: data << 12 | P | RW, 1: guest.root << 12 | P | RW}))
    words = {i: mfn << 12 | TABLE for i, mfn in enumerate([*good, bad])}
    l2 = guest.mfn(guest.new_table(words))
    counts = frames.count.tobytes(), frames.type_count.tobytes()
    assert frames.get_page(l2, guest.domain)
    error = ERESTART
    while error == ERESTART:
        types.preempt = Budget(budget)
        error = frames.take_type(l2, PGT_l2_page_table)
        types.preempt = None
    frames.put_page(l2)
    assert error == -EBUSY
    world.check()
    while frames.leftovers:
        # What could not be undone at once is undone later, by the hypercall that goes on.
        types.preempt = Budget(budget)
        if not frames.finish(frames.leftovers[-1]):
            frames.leftovers.pop()
        types.preempt = None
        world.check()
    assert (frames.count.tobytes(), frames.type_count.tobytes()) == counts


def test_domain_dies_with_partial_tables(world: World, guest: Guest) -> None:
    frames, types = world.hv.frames, world.hv.mm.types
    root, _, _ = tree(guest)
    frames.get_page(root, guest.domain)
    types.preempt = Budget(2)
    assert frames.take_type(root, PGT_l4_page_table) == ERESTART
    types.preempt = None
    frames.put_page(root)
    world.check()
    assert frames.partial
    world.kill(guest)
    assert not frames.partial
    assert guest.domain.domid not in world.hv.domains


def test_release_interrupted_then_taken_again(world: World, guest: Guest) -> None:
    frames, types = world.hv.frames, world.hv.mm.types
    l1s = [guest.mfn(guest.new_table({})) for _ in range(4)]
    l2 = guest.mfn(guest.new_table({i: l1 << 12 | TABLE for i, l1 in enumerate(l1s)}))
    assert guest.pin(2, l2) == 0
    types.preempt = Budget(1)
    assert frames.put_page_and_type(l2) == ERESTART
    types.preempt = None
    world.check()  # nothing was dropped yet: the pin still holds it
    assert frames.flags[l2] & PARTIAL
    # Somebody else wants it validated meanwhile: it is completed, and both hold it.
    assert frames.take_page_and_type(l2, guest.domain, PGT_l2_page_table) == 0
    assert frames.type_count[l2] == 2
    frames.put_page_and_type(l2)
    world.check()


def test_entries_of_a_partial_table_cannot_change(world: World, guest: Guest) -> None:
    frames, types = world.hv.frames, world.hv.mm.types
    l1s = [guest.mfn(guest.new_table({})) for _ in range(4)]
    l2 = guest.mfn(guest.new_table({i: l1 << 12 | TABLE for i, l1 in enumerate(l1s)}))
    frames.get_page(l2, guest.domain)
    types.preempt = Budget(1)
    assert frames.take_type(l2, PGT_l2_page_table) == ERESTART
    types.preempt = None
    frames.put_page(l2)
    assert guest.set_entry(l2 << 12, 0) == EINVAL
    assert guest.pin(2, l2) == 0
    assert guest.set_entry(l2 << 12, 0) == 0


def test_type_count_stays_in_step_while_an_entry_goes(world: World, guest: Guest) -> None:
    # XSA-242: an entry change that drops the last other reference to the table that it is in.
    page = guest.mfn(guest.new_page())
    l1 = guest.mfn(guest.new_table({0: page << 12 | P | RW}))
    l2 = guest.mfn(guest.new_table({0: l1 << 12 | TABLE}))
    assert guest.pin(2, l2) == 0
    assert guest.set_entry(l1 << 12, l1 << 12 | P) == 0
    assert guest.set_entry(l2 << 12, 0) == 0
    assert world.hv.frames.type_count[l1] == 0
    world.check()
