"""Writable page tables: a kernel's own store into an L1 table, as the hypervisor does it in its place."""

from __future__ import annotations

import pytest
from mm_world import NX, PWT, RW, US, Guest, P, World

from hypervisor.abi import xen
from hypervisor.guest_access import translate_load

DATA, TABLE_PFN = 200, 201
G = 0x100


class Stage:
    """A domU with an L1 table of its own in its address space, mapped read-only too, at page TABLE_PFN."""

    def __init__(self, world: World, guest: Guest) -> None:
        self.world, self.guest, self.vcpu = world, guest, guest.vcpu
        self.tables = world.hv.mm.writable_tables
        self.l1 = guest.table(1, 0)
        assert guest.map(TABLE_PFN, self.l1, P) == 0
        self.va = guest.va(TABLE_PFN) + DATA * 8
        """Where the entry of page DATA can be read, and written if Xen helps."""
        self.mfn = guest.mfn(DATA)

    def assist(self, on: bool = True) -> None:
        cmd = xen.VMASST_CMD_enable if on else xen.VMASST_CMD_disable
        assert self.guest.call(xen.HYPERVISOR_vm_assist, cmd, xen.VMASST_TYPE_writable_pagetables) == 0

    def entry(self) -> int:
        return self.guest.entry(DATA)

    def store(self, value: int, size: int = 8, offset: int = 0) -> bool:
        done = self.tables.store(self.vcpu, self.va + offset, self.va + offset, size, value)
        self.world.check()
        return done


@pytest.fixture
def stage(world: World, guest: Guest) -> Stage:
    stage = Stage(world, guest)
    stage.assist()
    return stage


def test_only_with_the_assist_but_always_for_the_hardware_domain(world: World, guest: Guest) -> None:
    domu, dom0 = Stage(world, guest), Stage(world, world.dom0)
    assert dom0.tables.covers(dom0.vcpu, dom0.va)
    dom0.assist(False)
    assert dom0.tables.covers(dom0.vcpu, dom0.va)
    assert not domu.tables.covers(domu.vcpu, domu.va)
    domu.assist()
    assert domu.tables.covers(domu.vcpu, domu.va)
    domu.assist(False)
    assert not domu.tables.covers(domu.vcpu, domu.va)
    assert world.dom0.make_writable(TABLE_PFN) == 0


def test_only_read_only_mappings_of_l1_tables(stage: Stage) -> None:
    guest, covers = stage.guest, stage.tables.covers
    assert not covers(stage.vcpu, guest.va(DATA))  # data, writable
    assert guest.map(DATA, stage.mfn, P) == 0
    assert not covers(stage.vcpu, guest.va(DATA))  # data, read-only
    for level in (2, 3, 4):
        assert guest.map(DATA, guest.table(level), P) == 0
        assert not covers(stage.vcpu, guest.va(DATA))
    assert not covers(stage.vcpu, 0x5000)  # nothing there
    assert not covers(stage.vcpu, xen.HYPERVISOR_VIRT_START)
    # A table of another domain, which dom0 has mapped.
    dom0 = stage.world.dom0
    assert dom0.set_entry(dom0.entry_at(DATA), stage.l1 << 12 | P, 1) == 0
    assert not covers(dom0.vcpu, dom0.va(DATA))
    assert dom0.make_writable(DATA) == 0


def test_an_unused_table_is_data(stage: Stage) -> None:
    guest = stage.guest
    pfn = guest.new_table({})
    assert not stage.tables.covers(stage.vcpu, guest.va(pfn))
    assert guest.pin(1, guest.mfn(pfn)) == 0
    assert stage.tables.covers(stage.vcpu, guest.va(pfn))


def test_entries_are_taken_and_dropped(stage: Stage) -> None:
    guest, other = stage.guest, stage.guest.mfn(DATA + 9)
    assert stage.store(other << 12 | P | RW)
    assert stage.entry() == other << 12 | P | RW | US | 1 << 52
    assert translate_load(stage.vcpu, guest.va(DATA), True) == other << 12
    assert stage.store(stage.mfn << 12 | P | US | NX)
    assert stage.entry() == stage.mfn << 12 | P | US | NX | G
    assert stage.store(0xFFE)
    assert stage.entry() == 0xFFE
    assert stage.store(0)


def test_what_may_not_be_stored_leaves_the_fault(stage: Stage) -> None:
    before = stage.entry()
    dom0 = stage.world.dom0
    for bad in (
        stage.guest.root << 12 | P | RW,
        stage.l1 << 12 | P | RW,
        dom0.mfn(DATA) << 12 | P,
        0xB8 << 12 | P,
        stage.mfn << 12 | P | PWT,
    ):
        assert not stage.store(bad)
        assert stage.entry() == before
    assert stage.store(stage.guest.root << 12 | P)


def test_parts_of_an_entry(stage: Stage) -> None:
    mfn = stage.mfn
    assert stage.store(0)
    assert stage.store(mfn << 12 & 0xFFFFFFFF | RW, 4)
    assert stage.entry() == mfn << 12 & 0xFFFFFFFF | RW
    assert stage.store(NX >> 32, 4, 4)
    assert stage.store(P | RW, 1)
    assert stage.entry() == mfn << 12 | NX | P | RW | US | 1 << 52
    assert stage.store(0x80, 1, 7)
    # A part that would make the whole wrong.
    assert stage.store(stage.guest.root << 12)
    assert not stage.store(P | RW, 1)
    assert stage.store(P, 1)


@pytest.mark.parametrize(("offset", "size"), [(1, 2), (4, 8), (2, 4), (7, 8), (0, 3), (0, 16), (0, 0)])
def test_odd_stores_are_left_alone(stage: Stage, offset: int, size: int) -> None:
    before = stage.entry()
    assert not stage.store(0, size, offset)
    assert stage.entry() == before


def test_another_page_than_the_one_that_faulted(stage: Stage) -> None:
    assert not stage.tables.store(stage.vcpu, stage.va, stage.guest.va(TABLE_PFN + 1), 8, 0)
    assert stage.tables.store(stage.vcpu, stage.guest.va(TABLE_PFN), stage.va, 8, 0)


def test_compare_and_store(stage: Stage) -> None:
    def swap(expected: int, value: int, size: int = 8) -> int | None:
        found = stage.tables.compare_and_store(stage.vcpu, stage.va, stage.va, size, expected, value)
        stage.world.check()
        return found

    old = stage.entry()
    assert swap(old, 0) == old
    assert swap(old, stage.mfn << 12 | P | RW) == 0
    assert stage.entry() == 0
    assert swap(0, stage.mfn << 12 | P | RW) == 0
    assert stage.entry() == stage.mfn << 12 | P | RW | US | 1 << 52
    assert swap(0, stage.guest.root << 12 | P | RW) is None
    assert swap(stage.entry() & 0xFF, 0, 1) == P | RW | US
    assert stage.entry() == stage.mfn << 12 | 1 << 52
