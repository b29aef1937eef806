"""What is written out for the usual case does what the general form does, in the usual case and in all others."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mm_world import ARGS_PFN, EXTRA_PFN, NX, PCD, RW, US, Guest, P, World

from hypervisor.abi import xen
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest

PAGES = 128
PLAY = range(40, 48)
OPS = 512
"""Where in the page of arguments lists of operations are; single requests are in front of them."""
PAGE = st.sampled_from(PLAY)
FLAGS = st.sampled_from((0, P, P | RW, P | RW, P | RW | US, P | US, P | RW | PCD, P | NX, P | RW | NX | 0x200))
NAMED = st.sampled_from(("own", "own", "own", "own", "other", "table", "root", "shared", "io", "none", "far"))
ENTRY = st.tuples(NAMED, PAGE, FLAGS)
COMMAND = st.sampled_from((0, 0, 0, 0, 2, 3, 1))
WHERE = st.sampled_from(("l1", "l1", "l1", "l1", "l2", "data", "other", "far"))
UPDATE = st.tuples(WHERE, PAGE, ENTRY, COMMAND)
ROOT = st.sampled_from(("first", "second", "second", "third", "none", "table", "far", "other"))
FIRST, SECOND = st.sampled_from((5, 5, 5, 15, 7)), st.sampled_from((15, 15, 5))
STEP = st.one_of(
    st.tuples(st.just("single"), UPDATE),
    st.tuples(st.just("single"), UPDATE),
    st.tuples(st.just("batch"), st.lists(UPDATE, min_size=1, max_size=12)),
    st.tuples(
        st.just("switch"), st.tuples(ROOT, ROOT, st.sampled_from((5, 5, 5, 15, 7)), st.sampled_from((15, 15, 5)))
    ),
    st.tuples(st.just("touch"), st.tuples(PAGE, st.booleans())),
    st.tuples(st.just("assist"), st.booleans()),
)
SPARE = range(48, 120)
"""Pages that are mapped elsewhere in runs, and from where they are."""
RUN = st.tuples(
    st.integers(SPARE.start, SPARE.stop - 4),
    st.integers(200, 230),
    st.integers(4, 60),
    st.sampled_from(("own", "own", "other", "shared", "far", "io")),
    st.sampled_from((0, 0, P | RW, P | RW, P | RW | US, P | RW | NX, P, P | RW | PCD)),
    st.sampled_from((1, 1, 1, 1, 0, 2)),
    st.sampled_from((None, None, None, 3, 20)),
)
"""The first page, its place in the table, how many, whose, flags, steps between frames, which one is left out."""
RUNS = st.tuples(st.just("run"), RUN)


class Twin:
    """A world with two domains, of which the first does something; with short ways, or without."""

    def __init__(self, *, general: bool, machine_code: bool) -> None:
        self.world = World(16)
        self.hv = hv = self.world.hv
        if general:
            mm = hv.mm
            mm.mmu_update._replace = lambda index, new, tag: -1
            mm.mmu_update._replace_run = lambda words, position, tag: (0, [])
            hv.table[xen.HYPERVISOR_mmu_update] = mm.mmu_update._mmu_update
            hv.table[xen.HYPERVISOR_mmuext_op] = mm.mmuext._mmuext_op
        self.guest = guest = Guest(hv, 1, pages=PAGES, machine_code=machine_code)
        self.other = Guest(hv, 2, pages=PAGES)
        kernel = {slot: hv.memory.q[(guest.root << 9) + slot] for slot in (272, 511)}
        self.roots = {"first": guest.root, "none": 0, "table": guest.table(1), "far": 1 << 40, "other": self.other.root}
        for name in ("second", "third"):
            pfn = guest.new_table(kernel)
            assert guest.pin(4, guest.mfn(pfn)) == 0
            self.roots[name] = guest.mfn(pfn)

    def frame(self, named: str, pfn: int) -> int:
        guest = self.guest
        return {
            "own": guest.mfn(pfn),
            "other": self.other.mfn(pfn),
            "table": guest.table(1),
            "root": guest.root,
            "shared": guest.domain.shared_info_mfn,
            "io": 0xA0 + pfn,
            "none": 0,
            "far": (1 << 39) + pfn,
        }[named]

    def request(self, where: str, pfn: int, entry: tuple[str, int, int], command: int) -> tuple[int, int]:
        guest = self.guest
        table = {
            "l1": guest.table(1),
            "l2": guest.table(2),
            "data": guest.mfn(44),
            "other": self.other.table(1),
            "far": 1 << 38,
        }[where]
        named, target, flags = entry
        return (table << 12) + (pfn & 511) * 8 + command, self.frame(named, target) << 12 | flags if flags else 0

    def single(self, update: tuple[str, int, tuple[str, int, int], int]) -> int:
        at = self.guest.put(struct.pack("<QQ", *self.request(*update)), ARGS_PFN)
        return self.guest.call(xen.HYPERVISOR_mmu_update, at, 1, 0, xen.DOMID_SELF)

    def batch(self, updates: list[tuple[str, int, tuple[str, int, int], int]]) -> tuple[int, int]:
        return self.guest.mmu_update([self.request(*update) for update in updates])

    def run(self, what: tuple[int, int, int, str, int, int, int | None]) -> tuple[int, int]:
        first, place, count, named, flags, step, left_out = what
        table, frame = self.guest.table(1) << 12, self.frame(named, first)
        numbers = [number for number in range(count) if number != left_out]
        return self.guest.mmu_update(
            [
                (table + 8 * (place + number), (frame + step * number) << 12 | flags if flags else 0)
                for number in numbers
            ]
        )

    def switch(self, ops: tuple[str, str, int, int]) -> int:
        root, user, first, second = ops
        raw = struct.pack("<IIQQ", first, 0, self.roots[root], 0) + struct.pack("<IIQQ", second, 0, self.roots[user], 0)
        copy_to_guest(self.guest.vcpu, self.guest.va(EXTRA_PFN) + OPS, raw)
        return self.guest.call(xen.HYPERVISOR_mmuext_op, self.guest.va(EXTRA_PFN) + OPS, 2, 0, xen.DOMID_SELF)

    def touch(self, what: tuple[int, bool]) -> int:
        pfn, writes = what
        vcpu, va = self.guest.vcpu, self.guest.va(pfn)
        try:
            if writes:
                copy_to_guest(vcpu, va + 8, b"12345678")
            return copy_from_guest(vcpu, va, 16)[0]
        except HypercallError as error:
            return -error.errno

    def assist(self, on: bool) -> int:
        return self.guest.call(xen.HYPERVISOR_vm_assist, int(not on), xen.VMASST_TYPE_m2p_strict)

    def state(self) -> list[bytes | int]:
        """All that matters afterwards: Xen's books, the tables, the roots."""
        hv, vcpu = self.hv, self.guest.vcpu
        frames = hv.frames
        arrays = (frames.owner_tag, frames.type, frames.flags, frames.type_count, frames.count)
        tables = [bytes(hv.memory.frame(self.guest.table(level))) for level in (1, 2, 3, 4)]
        roots = [bytes(hv.memory.frame(self.roots[name])) for name in ("second", "third")]
        return [*(array.tobytes() for array in arrays), *tables, *roots, vcpu.kernel_cr3, vcpu.user_cr3]


@pytest.mark.parametrize("machine_code", [False, True], ids=["python", "machine code"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=1, max_size=25))
def test_both_do_the_same(machine_code: bool, steps: list[tuple[str, object]]) -> None:
    twins = [Twin(general=general, machine_code=machine_code) for general in (True, False)]
    for name, what in steps:
        does: list[Callable[[object], object]] = [getattr(twin, name) for twin in twins]
        general, short = (do(what) for do in does)
        assert short == general, (name, what)
        for twin in twins:
            twin.world.check()
    assert twins[0].state() == twins[1].state()
    for twin in twins:
        twin.world.close()


@pytest.mark.parametrize("machine_code", [False, True], ids=["python", "machine code"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.one_of(RUNS, RUNS, RUNS, STEP), min_size=1, max_size=12))
def test_runs_are_what_their_entries_are(machine_code: bool, steps: list[tuple[str, object]]) -> None:
    test_both_do_the_same.hypothesis.inner_test(machine_code, steps)


def test_a_run_is_done_at_once() -> None:
    """Mapping, changing to what cannot be done at once, and unmapping; in the middle of a list of others."""
    twin = Twin(general=False, machine_code=False)
    mm, done = twin.hv.mm, []
    replace_run = mm.mmu_update._replace_run

    def counted(words: tuple[int, ...], position: int, tag: int) -> tuple[int, list[int]]:
        size, replaced = replace_run(words, position, tag)
        done.append(size)
        return size, replaced

    mm.mmu_update._replace_run = counted
    counts = twin.hv.frames.count
    before = counts.tolist()
    first = twin.guest.mfn(50)
    assert [twin.guest.mfn(50 + page) for page in range(40)] == list(range(first, first + 40))
    assert twin.run((50, 200, 40, "own", P | RW, 1, None)) == (0, 40)
    assert counts[first : first + 40].tolist() == [count + 1 for count in before[first : first + 40]]
    assert twin.run((50, 200, 40, "own", P, 1, None)) == (0, 40)
    assert done == [40, 0]
    assert twin.run((50, 200, 40, "own", P | RW, 1, None)) == (0, 40)
    assert twin.run((50, 200, 40, "own", 0, 1, None)) == (0, 40)
    assert done == [40, 0, 0, 40]
    assert counts.tolist() == before
    twin.world.close()


def test_translations_below_other_roots_are_kept_and_forgotten() -> None:
    """Of a page that is mapped below three roots; what changes below one changes below all, as they share tables."""
    twin = Twin(general=False, machine_code=True)
    vcpu = twin.guest.vcpu
    for root in ("first", "second", "third"):
        assert twin.switch((root, "none", 5, 15)) == 0
        assert twin.touch((40, True)) == twin.touch((41, False)) == 0
    known = vcpu.remembered()
    assert all(twin.guest.va(40) >> 12 in known[twin.roots[root]][0] for root in ("first", "second", "third"))
    # A frame that nothing is known of.
    assert twin.single(("l1", 47, ("own", 47, 0), 0)) == 0
    assert twin.guest.va(40) >> 12 in vcpu.tlb_r
    assert twin.single(("l1", 40, ("own", 40, 0), 0)) == 0
    for root in ("first", "second", "third"):
        assert twin.switch((root, "none", 5, 15)) == 0
        assert twin.touch((40, True)) == -14
        assert twin.touch((41, False)) == 0
    twin.world.close()
