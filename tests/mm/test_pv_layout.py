"""The layout of a PV domain and its first page tables, as computed and as a walk of them finds it."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.abi.pv_layout import (
    MAPPING_ALIGN,
    MIN_SLACK,
    PRESENT,
    RW,
    Area,
    LayoutError,
    PvLayout,
    build_tables,
    compute,
)

BASE = 0xFFFFFFFF80000000
MIB = 1 << 20


def walk(layout: PvLayout, p2m: list[int], va: int) -> int:
    """Translate by the built tables: the last entry, or 0."""
    frames = {p2m[pfn]: entries for pfn, entries in build_tables(layout, p2m)}
    mfn = p2m[layout.tables.pfn]
    for shift in (39, 30, 21, 12):
        entry = frames[mfn][va >> shift & 511]
        if not entry & PRESENT:
            return 0
        mfn = entry >> 12 & 0xFFFFFFFFFF
    return entry


def test_the_order_of_things() -> None:
    layout = compute(BASE, BASE + 16 * MIB, BASE + 20 * MIB + 5, 65536, module_size=3 * MIB + 1)
    assert layout.kernel == Area(4096, 1025)
    assert layout.module == Area(5121, 769)
    assert layout.p2m == Area(5890, 128)
    assert (layout.start_info, layout.xenstore, layout.console) == (6018, 6019, 6020)
    assert layout.tables == Area(6021, 3 + 14)
    assert layout.boot_stack == 6038
    assert layout.virt_end == BASE + 28 * MIB
    assert layout.stack_pointer == BASE + 6039 * 4096
    assert layout.mapped_pages == 7168


def test_dom0_has_no_rings() -> None:
    layout = compute(BASE, BASE, BASE + 1, 1024, magic_pages=False)
    assert (layout.xenstore, layout.console, layout.module) == (None, None, None)
    assert (layout.p2m, layout.start_info, layout.tables.pfn) == (Area(1, 2), 3, 4)


def test_what_does_not_fit() -> None:
    with pytest.raises(LayoutError, match="has 64 pages, its kernel needs"):
        compute(BASE, BASE, BASE + MIB, 64)
    with pytest.raises(LayoutError, match="outside of its base"):
        compute(BASE, BASE - 4096, BASE, 1024)
    with pytest.raises(LayoutError, match="not the address of a page"):
        compute(BASE + 8, BASE + 4096, BASE + 8192, 1024)
    with pytest.raises(LayoutError, match="end of the address space"):
        compute(BASE, BASE + 2040 * MIB, BASE + 2046 * MIB, 1 << 20)
    for base in ((1 << 47) - MIB, 1 << 47, 0xFFFF800000000000, 0xFFFF87FFFFF00000):
        with pytest.raises(LayoutError, match="may not map"):
            compute(base, base, base + 4096, 1 << 16)


@settings(max_examples=40, deadline=None)
@given(
    base=st.sampled_from([BASE, 0xFFFF880000000000, 0x40000000, 0x3FE00000, 0x7FFFC00000, 0xFFFFFFFF80201000]),
    kernel=st.integers(0, 9 * MIB),
    size=st.integers(1, 5 * MIB),
    module=st.integers(0, 3 * MIB),
    pages=st.integers(200, 9000),
    magic=st.booleans(),
)
def test_tables_map_what_the_layout_says(
    base: int, kernel: int, size: int, module: int, pages: int, magic: bool
) -> None:
    p2m = [5000 + 3 * (pages - pfn) for pfn in range(pages)]
    try:
        layout = compute(base, base + kernel, base + kernel + size, pages, module_size=module, magic_pages=magic)
    except LayoutError:
        return
    areas = [layout.kernel, layout.module, layout.p2m, Area(layout.start_info, 1)]
    areas += [Area(pfn, 1) for pfn in (layout.xenstore, layout.console) if pfn is not None]
    areas += [layout.tables, Area(layout.boot_stack, 1)]
    present = [area for area in areas if area is not None]
    assert all(a.end == b.pfn for a, b in itertools.pairwise(present))
    end = layout.va(layout.boot_stack + 1)
    assert layout.virt_end % MAPPING_ALIGN == 0
    assert MIN_SLACK <= layout.virt_end - end < MIN_SLACK + MAPPING_ALIGN
    built = build_tables(layout, p2m)
    assert [pfn for pfn, _ in built] == list(range(layout.tables.pfn, layout.tables.end))
    assert all(len(entries) == 512 for _, entries in built)
    for pfn in {0, layout.tables.pfn, layout.tables.end - 1, layout.boot_stack, layout.mapped_pages - 1}:
        entry = walk(layout, p2m, layout.va(pfn))
        assert entry >> 12 == p2m[pfn]
        assert bool(entry & RW) == (not layout.tables.pfn <= pfn < layout.tables.end)
    last = built[-layout.tables_by_level[3] :]
    assert sum(bool(entry) for _, entries in last for entry in entries) == layout.mapped_pages


def test_tables_are_built_fast() -> None:
    p2m = list(range(70000, 70000 + 16384))
    best = min(_time(p2m) for _ in range(5))
    assert best < 0.005  # seconds, for 64 MiB


def _time(p2m: list[int]) -> float:
    start = time.perf_counter()
    build_tables(compute(BASE, BASE, BASE + MIB, 16384), p2m)
    return time.perf_counter() - start
