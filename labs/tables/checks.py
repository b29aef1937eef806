"""The checks of lab 4. The submission's functions run as the kernel of a domU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypervisor.abi import xen
from hypervisor.abi.cpu import Cpu, PageFault
from hypervisor.mm.frame_table import PINNED as PINNED_FLAG
from hypervisor.mm.frame_table import PGT_l1_page_table, PGT_l4_page_table
from labs.kit.bench import Bench, Dom, Watched, boot_info, free_page
from labs.kit.check import Checks, Work, expect, expect_equal

CHECKS = Checks()
check = CHECKS.check

VIRT_BASE = 0xFFFF_FFFF_8000_0000
PRESENT, WRITABLE = 1, 2
FRAME = 0x000F_FFFF_FFFF_F000


class Scene:
    """What a check's kernel has: its processor, start_info, pages and tables; and Xen's books, which it has not."""

    def __init__(self, bench: Bench, cpu: Cpu, info: Any, dom: Dom) -> None:
        self.hv, self.cpu, self.info, self.dom = bench.hv, cpu, info, dom
        self.page = free_page(info)
        self._next = 1
        self.root = self.mfn((info.pt_base - VIRT_BASE) >> 12)

    def mfn(self, pfn: int) -> int:
        """Return the frame of a page, by the p2m."""
        return self.cpu.view(self.info.mfn_list + (pfn >> 9 << 12)).cast("Q")[pfn & 511]

    def table(self, mfn: int) -> memoryview:
        """Return the entries of a page table, read-only."""
        m2p = self.cpu.view(xen.MACH2PHYS_VIRT_START + (mfn * 8 & -4096), 4096, False).cast("Q")
        return self.cpu.view(VIRT_BASE + (m2p[mfn & 511] << 12), 4096, False).cast("Q")

    def alloc(self) -> tuple[int, int]:
        """Return a fresh page."""
        va = free_page(self.info, self._next)
        self._next += 1
        self.cpu.view(va)[:] = bytes(4096)
        return va, self.mfn((va - VIRT_BASE) >> 12)

    def entry(self, va: int) -> int:
        """Return the L1 entry of an address, as Xen finds it in memory; 0 if a table is missing."""
        mfn, words = self.root, self.hv.memory.q
        for shift in (39, 30, 21):
            entry = words[(mfn << 9) + (va >> shift & 511)]
            if not entry & PRESENT:
                return 0
            mfn = (entry & FRAME) >> 12
        return words[(mfn << 9) + (va >> 12 & 511)]

    def entry_address(self, va: int) -> int:
        """Return the machine address of the L1 entry of an address."""
        mfn, words = self.root, self.hv.memory.q
        for shift in (39, 30, 21):
            mfn = (words[(mfn << 9) + (va >> shift & 511)] & FRAME) >> 12
        return (mfn << 12) + (va >> 12 & 511) * 8

    def is_pinned(self, mfn: int) -> bool:
        """Return whether Xen's books say that a frame is pinned."""
        return bool(self.hv.frames.flags[mfn] & PINNED_FLAG)

    def can_write(self, va: int) -> bool:
        """Return whether a store at an address goes through."""
        try:
            self.cpu.view(va)
        except PageFault:
            return False
        return True

    def refusal(self, lab: Any, action: Callable[[], object]) -> bool:
        """Return whether an action raises XenError."""
        try:
            action()
        except lab.XenError:
            return True
        return False


def kernel(use: Callable[[Scene], Any]) -> Any:
    """Run `use` as a kernel; return what it returns."""
    found: list[Any] = []
    bench = Bench()

    def program(cpu: Cpu, start: int) -> None:
        found.append(use(Scene(bench, cpu, boot_info(cpu, start), dom)))

    dom = Dom(program)
    bench.run_guests(dom)
    return found[0]


@check(10, "index")
def index(work: Work) -> None:
    """An address is cut into its four indices."""
    lab = work.load("tables")
    for _ in range(50):
        wanted = [work.rng.randrange(512) for _ in range(4)]
        va = sum(number << (12 + 9 * at) for at, number in enumerate(wanted)) | work.rng.randrange(4096)
        va |= 0xFFFF << 48 if va >> 47 else 0
        found = [lab.index(va, level) for level in (1, 2, 3, 4)]
        expect_equal(found, wanted, f"index({va:#x}, level) for the levels 1 to 4")


@check(15, "walk")
def walk(work: Work) -> None:
    """Tables are walked as the processor does it, and end where nothing is mapped."""
    lab = work.load("tables")

    def use(scene: Scene) -> None:
        mapped = [VIRT_BASE + work.rng.randrange(1024) * 4096 + work.rng.randrange(4096) for _ in range(40)]
        nowhere = [0x1000, VIRT_BASE + (6 << 20), VIRT_BASE - (1 << 30), 0x7F00_0000_0000]
        for va in (*mapped, *nowhere):
            there = scene.entry(va)
            found = lab.walk(scene.table, scene.root, va)
            expect_equal(found, there if there & PRESENT else None, f"walk() of {va:#x}")

    kernel(use)


@check(15, "update")
def update(work: Work) -> None:
    """Many entries change with one hypercall, and a refusal is raised."""
    lab = work.load("tables")

    def use(scene: Scene) -> None:
        pages = [scene.alloc() for _ in range(work.rng.randrange(20, 60))]
        frames = [mfn for _, mfn in pages]
        work.rng.shuffle(frames)
        watched = Watched(scene.cpu)
        updates = [
            (scene.entry_address(va), mfn << 12 | PRESENT | WRITABLE)
            for (va, _), mfn in zip(pages, frames, strict=True)
        ]
        lab.update(watched, scene.page, updates)
        expect_equal(len(watched.calls), 1, f"the number of hypercalls for {len(updates)} updates")
        for (va, _), mfn in zip(pages, frames, strict=True):
            found = (scene.entry(va) & FRAME) >> 12
            expect_equal(found, mfn, f"the frame that is mapped at {va:#x} after the update")
        foreign = next(mfn for mfn in range(256, 1 << 14) if scene.hv.frames.owner(mfn) == 0)
        bad = [(scene.entry_address(pages[0][0]), foreign << 12 | PRESENT | WRITABLE)]
        refused = scene.refusal(lab, lambda: lab.update(scene.cpu, scene.page, bad))
        expect(refused, "an update that would map a frame of dom0 raises no XenError")

    kernel(use)


@check(10, "protect")
def protect(work: Work) -> None:
    """A page is made read-only, and writable again."""
    lab = work.load("tables")

    def use(scene: Scene) -> None:
        va, mfn = scene.alloc()
        scene.cpu.view(va)[0] = 1
        lab.protect(scene.cpu, va, mfn, writable=False)
        expect(scene.entry(va) & PRESENT, "the page is not mapped any more")
        expect(not scene.can_write(va), "a store goes through to a page that was made read-only")
        lab.protect(scene.cpu, va, mfn, writable=True)
        expect(scene.can_write(va), "a store faults on a page that was made writable again")
        table = (scene.entry_address(va)) >> 12
        refused = scene.refusal(lab, lambda: lab.protect(scene.cpu, va, table, writable=True))
        expect(refused, "mapping a page table writable raises no XenError")

    kernel(use)


@check(20, "add_l1")
def add_l1(work: Work) -> None:
    """Two more megabytes are mapped by a table that Xen accepts."""
    lab = work.load("tables")

    def use(scene: Scene) -> None:
        first = 1536
        va = VIRT_BASE + (first << 12)
        frames = [scene.mfn(pfn) for pfn in range(first, first + work.rng.randrange(300, 512))]
        work.rng.shuffle(frames)
        new = lab.add_l1(scene.cpu, scene.page, scene.alloc, scene.table, scene.root, va, frames)
        expect(isinstance(new, int), f"add_l1 returns {new!r}, no frame")
        kind = scene.hv.frames.type[new]
        expect_equal(kind, PGT_l1_page_table, "the type of the new table's frame, in Xen's books,")
        for number, mfn in enumerate(frames):
            found = scene.entry(va + (number << 12))
            expect_equal((found & FRAME) >> 12, mfn, f"the frame mapped at {va + (number << 12):#x}")
        mark = work.rng.randrange(256)
        scene.cpu.view(va)[5] = mark
        expect_equal(scene.hv.memory.b[(frames[0] << 12) + 5], mark, "what a store to the new mapping leaves in memory")
        behind = va + (len(frames) << 12)
        expect(not scene.entry(behind) & PRESENT, f"something is mapped at {behind:#x}, behind the last frame")

    kernel(use)


@check(10, "pin")
def pin(work: Work) -> None:
    """A frame is pinned as a table of its level; not while it is mapped writable."""
    lab = work.load("tables")

    def use(scene: Scene) -> None:
        va, mfn = scene.alloc()
        refused = scene.refusal(lab, lambda: lab.pin(scene.cpu, scene.page, mfn, 1))
        expect(refused, "pinning a page that is mapped writable raises no XenError")
        lab.protect(scene.cpu, va, mfn, writable=False)
        level = work.rng.choice([1, 2, 3, 4])
        lab.pin(scene.cpu, scene.page, mfn, level)
        expect(scene.is_pinned(mfn), "the frame is not pinned, by Xen's books")
        types = {1: PGT_l1_page_table, 4: PGT_l4_page_table}
        if level in types:
            expect_equal(scene.hv.frames.type[mfn], types[level], f"the type of a frame pinned at level {level}")

    kernel(use)


@check(5, "unpin")
def unpin(work: Work) -> None:
    """After unpinning the frame is an ordinary page again."""
    lab = work.load("tables")

    def use(scene: Scene) -> None:
        va, mfn = scene.alloc()
        lab.protect(scene.cpu, va, mfn, writable=False)
        lab.pin(scene.cpu, scene.page, mfn, 1)
        lab.unpin(scene.cpu, scene.page, mfn)
        expect(not scene.is_pinned(mfn), "the frame is still pinned, by Xen's books")
        lab.protect(scene.cpu, va, mfn, writable=True)
        expect(scene.can_write(va), "the page cannot be written")
        refused = scene.refusal(lab, lambda: lab.unpin(scene.cpu, scene.page, mfn))
        expect(refused, "unpinning what is not pinned raises no XenError")

    kernel(use)


@check(10, "new_space")
def new_space(work: Work) -> None:
    """A second address space shares the tables of the first, and is pinned."""
    lab = work.load("tables")

    def use(scene: Scene) -> None:
        new = lab.new_space(scene.cpu, scene.page, scene.alloc, scene.table, scene.root)
        expect(new != scene.root, "new_space returns the old root")
        expect(scene.is_pinned(new), "the new root is not pinned, by Xen's books")
        expect_equal(scene.hv.frames.type[new], PGT_l4_page_table, "the type of the new root")
        words = scene.hv.memory.q
        for slot in (*range(256), *range(272, 512)):
            old_entry, entry = words[(scene.root << 9) + slot], words[(new << 9) + slot]
            expect_equal(entry & FRAME, old_entry & FRAME, f"the frame in slot {slot} of the new root")

    kernel(use)


@check(5, "switch")
def switch(work: Work) -> None:
    """The vCPU walks the new tables, and all that was mapped still is."""
    lab = work.load("tables")

    def use(scene: Scene) -> None:
        va, mfn = scene.alloc()
        new = lab.new_space(scene.cpu, scene.page, scene.alloc, scene.table, scene.root)
        lab.switch(scene.cpu, scene.page, new)
        domain = scene.hv.domains[scene.dom.domid]
        vcpu = domain.vcpu(0)
        assert vcpu is not None
        expect_equal(vcpu.kernel_cr3, new, "the frame of the root that the vCPU uses")
        mark = work.rng.randrange(256)
        scene.cpu.view(va)[9] = mark
        expect_equal(scene.hv.memory.b[(mfn << 12) + 9], mark, "what a store leaves in memory after the switch")

    kernel(use)
