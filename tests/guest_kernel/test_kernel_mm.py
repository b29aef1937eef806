"""Pages, page tables made on demand, windows. The fake machine refuses a page table that is mapped writable."""

import contextlib

import pytest
from fake_cpu import KERNEL_PAGES, FakeMachine, run
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_kernel.errors import OutOfMemory, XenError
from guest_kernel.kernel import Kernel
from guest_kernel.mm import PAGE_SIZE, AddressSpace
from guest_kernel.symbols import VIRT_BASE
from hypervisor.abi import xen
from hypervisor.abi.cpu import PageFault
from hypervisor.abi.sched import SHUTDOWN_poweroff


def test_pages_are_the_domains_own_and_mapped() -> None:
    async def main(kernel: Kernel) -> None:
        page, other = kernel.mm.alloc_pages(2)
        assert page.va == VIRT_BASE + page.pfn * PAGE_SIZE
        assert kernel.mm.virt_to_mfn(page.va) == page.mfn == kernel.mm.mfn_of(page.pfn)
        assert kernel.mm.pfn_of(page.mfn) == page.pfn
        page.view[:8] = b"\x01\x02\x03\x04\x05\x06\x07\x08"
        assert (page.h[1], page.i[1], page.q[0]) == (0x0403, 0x08070605, 0x0807060504030201)
        assert kernel.cpu.view(page.va)[3] == 4
        assert not any(other.view)
        kernel.mm.free_page(page)
        with pytest.raises(ValueError, match="free already"):
            kernel.mm.free_page(page)
        again = kernel.mm.alloc_page()
        assert again.mfn == page.mfn
        assert not any(again.view)

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_all_of_memory_can_be_had_and_is_given_once() -> None:
    async def main(kernel: Kernel) -> None:
        mm = kernel.mm
        pages = []
        with contextlib.suppress(OutOfMemory):
            for _ in range(kernel.mm.nr_pages):
                pages.append(mm.alloc_page())
        assert len({page.mfn for page in pages}) == len(pages)
        # What is missing: what the builder loaded, shared_info's place, the kernel's own pages, new page tables.
        assert 4096 - 60 <= len(pages) < 4096
        for number, page in enumerate(pages):
            page.i[0] = number
        assert [page.i[0] for page in pages] == list(range(len(pages)))
        mm.free_pages_of(pages)
        free = mm.free_pages
        with pytest.raises(OutOfMemory):
            mm.alloc_pages(len(pages) + 1)
        assert mm.free_pages == free

    assert run(main, nr_pages=4096).shutdown == SHUTDOWN_poweroff


def test_a_small_domain_needs_no_new_page_table() -> None:
    async def main(kernel: Kernel) -> None:
        kernel.mm.alloc_pages(100)

    machine = run(main, nr_pages=1024)
    assert xen.HYPERVISOR_mmu_update not in machine.calls


def test_windows_map_machine_frames_and_undo_it() -> None:
    async def main(kernel: Kernel) -> None:
        mm = kernel.mm
        pages = mm.alloc_pages(3)
        for number, page in enumerate(pages):
            page.view[0] = number + 1
        before = mm._windows.free()
        mapping = mm.map_machine([page.mfn for page in pages])
        assert [view[0] for view in mapping] == [1, 2, 3]
        mapping[1][0] = 9
        assert pages[1].view[0] == 9
        assert mm.virt_to_mfn(mapping.va + PAGE_SIZE) == pages[1].mfn
        va = mapping.va
        mm.unmap_foreign(mapping)
        assert not mapping
        with pytest.raises(PageFault):
            kernel.cpu.view(va)
        with pytest.raises(KeyError):
            mm.virt_to_mfn(va)
        assert mm._windows.free() == before
        read_only = mm.map_machine([pages[0].mfn], writable=False)
        with pytest.raises(TypeError):
            read_only[0][0] = 1
        mm.unmap_foreign(read_only)
        assert mm.map_machine([]) == []

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_a_refused_mapping_leaves_nothing_behind() -> None:
    async def main(kernel: Kernel) -> None:
        mm = kernel.mm
        page = mm.alloc_page()
        before = mm._windows.free()
        table = mm.root
        with pytest.raises(XenError, match="entry 1 of 3"):
            mm.map_machine([page.mfn, table, page.mfn])
        assert mm._windows.free() == before
        assert mm.map_machine([table], writable=False)[0].readonly

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_large_windows_cross_page_tables() -> None:
    async def main(kernel: Kernel) -> None:
        page = kernel.mm.alloc_page()
        page.view[7] = 77
        mapping = kernel.mm.map_machine([page.mfn] * 1200)
        assert len(mapping) == 1200
        assert all(view[7] == 77 for view in mapping)

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_page_at_finds_pages_of_the_builder() -> None:
    async def main(kernel: Kernel) -> None:
        machine = kernel.cpu
        assert isinstance(machine, FakeMachine)
        page = kernel.mm.page_at(machine.mfn(KERNEL_PAGES))
        assert page.pfn == KERNEL_PAGES
        assert page.q[5] == kernel.mm.mfn_of(5)

    assert run(main).shutdown == SHUTDOWN_poweroff


@given(st.lists(st.integers(1, 9), max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_address_space_never_overlaps_and_merges_back(sizes: list[int], rng) -> None:  # type: ignore[no-untyped-def]
    space = AddressSpace((0x1000, 60), (0x100000, 20))
    taken: list[tuple[int, int]] = []
    for size in sizes:
        if taken and rng.random() < 0.4:
            space.give(*taken.pop(rng.randrange(len(taken))))
        va = space.take(size)
        if va is not None:
            taken.append((va, size))
    pages = [va + 4096 * n for va, size in taken for n in range(size)]
    assert len(set(pages)) == len(pages)
    assert space.free() == 80 - len(pages)
    for va, size in taken:
        space.give(va, size)
    assert space._ranges == [(0x1000, 60), (0x100000, 20)]
