"""The checks of lab 3. The submission's functions run as the kernel of a domU, beside another domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypervisor.abi.cpu import Cpu, PageFault, Run
from labs.kit.bench import Bench, Dom, boot_info, free_page
from labs.kit.check import Checks, Work, expect, expect_equal

CHECKS = Checks()
check = CHECKS.check

VIRT_BASE = 0xFFFF_FFFF_8000_0000
INVALID = (1 << 64) - 1


class Scene:
    """What a check's kernel is given: its processor, its start_info, and what it must not be able to find out alone."""

    def __init__(self, bench: Bench, cpu: Cpu, info: Any, neighbour: Dom, own: Dom) -> None:
        self.bench, self.hv = bench, bench.hv
        self.cpu, self.info = cpu, info
        self.page = free_page(info)
        self.domid, self.other = own.domid, neighbour.domid

    def frames_of(self, domid: int) -> list[int]:
        """Return the frames that Xen says are a domain's."""
        frames = self.hv.frames
        return [mfn for mfn in range(frames.frames) if frames.owner(mfn) == domid]

    def p2m(self) -> list[int]:
        """Return the p2m as it is in memory."""
        info, words = self.info, []
        for start in range(0, info.nr_pages, 512):
            words += self.cpu.view(info.mfn_list + 8 * start).cast("Q").tolist()
        return words[: info.nr_pages]

    def spare_pfns(self, count: int) -> list[int]:
        """Return pages that nobody uses, in the order of their addresses."""
        first = (free_page(self.info, 1) - VIRT_BASE) >> 12
        return list(range(first, first + count))


def beside(use: Callable[[Scene], Any], *, mib: int = 8) -> Any:
    """Run `use` as a kernel, beside a domain that does nothing; return what it returns."""
    found: list[Any] = []
    bench = Bench()

    def waits(cpu: Cpu, start: int) -> Run:
        while not found and kernel.failure is None:
            yield 1000

    def program(cpu: Cpu, start: int) -> None:
        found.append(use(Scene(bench, cpu, boot_info(cpu, start), neighbour, kernel)))

    neighbour, kernel = Dom(waits, 4), Dom(program, mib)
    bench.run_guests(neighbour, kernel)
    return found[0]


@check(10, "mfn_of")
def mfn_of(work: Work) -> None:
    """The p2m is read, over all of its pages."""
    lab = work.load("frames")

    def use(scene: Scene) -> None:
        p2m = scene.p2m()
        for pfn in [0, 511, 512, len(p2m) - 1, *work.rng.sample(range(len(p2m)), 40)]:
            expect_equal(lab.mfn_of(scene.cpu, scene.info, pfn), p2m[pfn], f"mfn_of({pfn})")
        for pfn in (len(p2m), -1):
            try:
                found = lab.mfn_of(scene.cpu, scene.info, pfn)
            except IndexError:
                continue
            expect(False, f"mfn_of({pfn}) of {len(p2m)} pages is {found:#x}; it should raise IndexError")

    beside(use, mib=work.rng.randrange(6, 12))


@check(10, "set_mfn")
def set_mfn(work: Work) -> None:
    """The p2m is written: the entry, and no other."""
    lab = work.load("frames")

    def use(scene: Scene) -> None:
        wanted = scene.p2m()
        for pfn in work.rng.sample(range(len(wanted)), 10):
            wanted[pfn] = work.rng.choice([INVALID, work.rng.randrange(1 << 20)])
            lab.set_mfn(scene.cpu, scene.info, pfn, wanted[pfn])
        different = [pfn for pfn, (a, b) in enumerate(zip(scene.p2m(), wanted, strict=True)) if a != b]
        expect(not different, f"after set_mfn the entries of {different[:3]} are not what they should be")

    beside(use)


@check(15, "pfn_of")
def pfn_of(work: Work) -> None:
    """The M2P is read, for any number that somebody may ask about."""
    lab = work.load("frames")

    def use(scene: Scene) -> None:
        for pfn, mfn in work.rng.sample(list(enumerate(scene.p2m())), 30):
            expect_equal(lab.pfn_of(scene.cpu, mfn), pfn, f"pfn_of({mfn:#x})")
        free = next(mfn for mfn in range(256, scene.hv.frames.frames) if scene.hv.frames.owner(mfn) < 0)
        expect_equal(lab.pfn_of(scene.cpu, free), None, f"pfn_of({free:#x}), a frame of nobody,")
        for beyond in (1 << 30, (1 << 36) - 1):
            expect_equal(lab.pfn_of(scene.cpu, beyond), None, f"pfn_of({beyond:#x}), which no machine has,")

    beside(use)


@check(15, "owns")
def owns(work: Work) -> None:
    """Own frames are told from those of others, whose M2P entries look the same."""
    lab = work.load("frames")

    def use(scene: Scene) -> None:
        for mfn in work.rng.sample(scene.p2m(), 20):
            expect(lab.owns(scene.cpu, scene.info, mfn), f"owns({mfn:#x}) is false for a page of this domain")
        foreign = scene.frames_of(scene.other) + scene.frames_of(0)
        for mfn in work.rng.sample(foreign, 60):
            owner = scene.hv.frames.owner(mfn)
            expect(not lab.owns(scene.cpu, scene.info, mfn), f"owns({mfn:#x}) is true, and it is domain {owner}'s")
        shared = scene.info.shared_info >> 12
        expect(not lab.owns(scene.cpu, scene.info, shared), "owns() is true for shared_info, which is Xen's")
        expect(not lab.owns(scene.cpu, scene.info, 1 << 30), "owns() is true for a frame that no machine has")

    beside(use)


@check(10, "machine_address")
def machine_address(work: Work) -> None:
    """A virtual address is translated to the machine's, byte for byte."""
    lab = work.load("frames")

    def use(scene: Scene) -> None:
        for number in range(20):
            va = free_page(scene.info, 1 + number) + work.rng.randrange(4096)
            mark = work.rng.randrange(256)
            scene.cpu.view(va & -4096)[va & 4095] = mark
            address = lab.machine_address(scene.cpu, scene.info, va)
            expect(0 <= address < len(scene.hv.memory.b), f"machine_address({va:#x}) is {address:#x}: no such memory")
            expect_equal(scene.hv.memory.b[address], mark, f"the byte at machine_address({va:#x})")

    beside(use)


@check(10, "reservation")
def reservation(work: Work) -> None:
    """How much the domain has, and may have."""
    lab = work.load("frames")
    mib = work.rng.randrange(5, 20)

    def use(scene: Scene) -> None:
        domain = scene.hv.domains[scene.domid]
        domain.max_pages += work.rng.randrange(1, 1000)  # as XEN_DOMCTL_max_mem does
        found = lab.reservation(scene.cpu, scene.page)
        expect_equal(tuple(found), (domain.tot_pages, domain.max_pages), "reservation()")

    beside(use, mib=mib)


@check(15, "give_back")
def give_back(work: Work) -> None:
    """Pages are given back for good: unmapped, out of the p2m, free for others."""
    lab = work.load("frames")

    def use(scene: Scene) -> None:
        p2m = scene.p2m()
        pfns = work.rng.sample(scene.spare_pfns(60), work.rng.randrange(20, 40))
        lab.give_back(scene.cpu, scene.page, scene.info, pfns)
        for pfn in pfns:
            owner = scene.hv.frames.owner(p2m[pfn])
            expect(owner < 0, f"page {pfn} (frame {p2m[pfn]:#x}) still belongs to domain {owner}: who refers to it?")
            expect_equal(scene.p2m()[pfn], INVALID, f"the p2m's entry of page {pfn}, which is gone,")
            try:
                scene.cpu.view(VIRT_BASE + pfn * 4096)
            except PageFault:
                continue
            expect(False, f"page {pfn} is still mapped")
        rest = [pfn for pfn in range(len(p2m)) if pfn not in set(pfns)]
        expect(all(scene.p2m()[pfn] == p2m[pfn] for pfn in rest), "the p2m has changed for pages that were not given")

    beside(use)


@check(15, "take")
def take(work: Work) -> None:
    """Pages get memory again: in the p2m, in the M2P, and under their old addresses."""
    lab = work.load("frames")

    def use(scene: Scene) -> None:
        pfns = work.rng.sample(scene.spare_pfns(60), work.rng.randrange(20, 40))
        before = scene.hv.domains[scene.domid].tot_pages
        lab.give_back(scene.cpu, scene.page, scene.info, pfns)
        wanted = work.rng.sample(pfns, len(pfns) - 3)
        lab.take(scene.cpu, scene.page, scene.info, wanted)
        expect_equal(scene.hv.domains[scene.domid].tot_pages, before - 3, "the number of the domain's pages")
        for pfn in wanted:
            mfn = scene.p2m()[pfn]
            expect(mfn < scene.hv.frames.frames, f"the p2m's entry of page {pfn} is {mfn:#x}")
            expect_equal(scene.hv.frames.owner(mfn), scene.domid, f"the owner of page {pfn}'s frame")
            scene.cpu.view(VIRT_BASE + pfn * 4096)[7] = pfn & 0xFF
            expect_equal(scene.hv.memory.b[(mfn << 12) + 7], pfn & 0xFF, f"what is stored at page {pfn}'s address")
        for pfn in set(pfns) - set(wanted):
            expect_equal(scene.p2m()[pfn], INVALID, f"the p2m's entry of page {pfn}, which is still gone,")
        try:
            lab.take(scene.cpu, scene.page, scene.info, [*set(pfns) - set(wanted), *range(4000, 4060)])
        except lab.XenError:
            return
        expect(False, "take() of more than the domain may have raises no XenError")

    beside(use)
