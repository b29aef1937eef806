"""Numbers of address spaces: who shares one, and for how long."""

from __future__ import annotations

from typing import Any

from hypervisor.emulator.native_hooks import Space, space_of
from hypervisor.emulator.spaces import FEW_SPACES, MAX_SPACES, Spaces
from hypervisor.machine.memory import Memory

KERNEL, USER, XEN = 511, 3, 258
FIRST, SECOND, THIRD = 2, 3, 4


class Table:
    """In place of the block hook's: what it is told."""

    def __init__(self) -> None:
        self.used: list[Space] = []
        self.dropped: list[tuple[int, list[int]]] = []
        self.emptied = 0

    def use(self, space: Space) -> None:
        self.used.append(space)

    def drop(self, page: int, spaces: list[int]) -> None:
        self.dropped.append((page, spaces))

    def drop_all(self) -> None:
        self.emptied += 1


class Stage:
    def __init__(self) -> None:
        self.memory = Memory(MAX_SPACES + 8)
        self.table = Table()
        native: Any = self.table
        self.spaces = Spaces(self.memory, native)

    def entry(self, root: int, slot: int, value: int) -> None:
        self.memory.q[root * 512 + slot] = value

    def use(self, root: int) -> tuple[int, int]:
        """Use a root; returns the numbers of the halves of its address space."""
        self.spaces.use(root)
        lower, _, upper, _ = space = self.table.used[-1]
        assert space == space_of(lower >> 52, upper >> 52)
        return lower >> 52, upper >> 52


def test_roots_with_the_same_kernel_share_its_half_only() -> None:
    stage = Stage()
    for root in (FIRST, SECOND):
        stage.entry(root, KERNEL, 0x5067)
        stage.entry(root, XEN, root << 12 | 0x63)  # (its own part of it is another for each)
        stage.entry(root, USER, root << 12 | 0x67)
    stage.entry(THIRD, KERNEL, 0x6067)
    first, second, third = map(stage.use, (FIRST, SECOND, THIRD))
    assert first[1] == second[1] != third[1]
    assert len({first[0], second[0], third[0], first[1], third[1]}) == 5
    assert stage.use(FIRST) == first


def test_a_root_that_changes_has_other_numbers() -> None:
    stage = Stage()
    for root in (FIRST, SECOND):
        stage.entry(root, KERNEL, 0x5067)
    first, second = stage.use(FIRST), stage.use(SECOND)
    stage.entry(SECOND, KERNEL - 1, 0x7067)
    stage.spaces.forget_root(SECOND)
    again = stage.use(SECOND)
    assert again[0] != second[0]
    assert again[1] != first[1] == stage.use(FIRST)[1]


def test_a_half_that_no_root_has_any_more_is_not_known_again() -> None:
    stage = Stage()
    stage.entry(FIRST, KERNEL, 0x5067)
    stage.entry(SECOND, KERNEL, 0x5067)
    before = stage.use(FIRST)[1]
    assert stage.use(SECOND)[1] == before
    stage.spaces.forget_root(FIRST)
    assert stage.use(FIRST)[1] == before
    stage.spaces.forget_root(FIRST)
    stage.spaces.forget_root(SECOND)
    stage.spaces.forget_root(SECOND)
    assert stage.use(FIRST)[1] != before


def test_a_page_is_dropped_where_it_may_be() -> None:
    stage = Stage()
    stage.entry(FIRST, KERNEL, 0x5067)
    stage.entry(SECOND, KERNEL, 0x5067)
    first, second = stage.use(FIRST), stage.use(SECOND)
    stage.spaces.forget_page(0x1000)
    stage.spaces.forget_page(0xFFFFFFFF80001000)
    assert stage.table.dropped == [(1, [first[0], second[0]]), (0xFFFFFFFF80001, [first[1]])]
    stage.spaces.forget_page(None)
    assert stage.table.emptied == 1


def test_where_there_are_many_all_pages_are_dropped() -> None:
    stage = Stage()
    for root in range(1, FEW_SPACES + 2):
        stage.use(root)
    stage.spaces.forget_page(0x1000)
    assert (stage.table.dropped, stage.table.emptied) == ([], 1)


def test_numbers_run_out_and_begin_anew() -> None:
    stage = Stage()
    numbers = set()
    for root in range(1, MAX_SPACES):
        stage.entry(root, KERNEL, root << 12)
        numbers.update(stage.use(root))
    assert stage.table.emptied == 1
    assert max(numbers) <= MAX_SPACES
    assert min(numbers) == 1
