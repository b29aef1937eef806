"""The questions of lab 3."""

from __future__ import annotations

import random
from typing import Any

from hypervisor.abi import memory, xen
from hypervisor.abi.cpu import Cpu, PageFault
from labs.frames.checks import Scene, beside
from labs.kit.bench import free_page
from labs.kit.questions import Question


def _m2p_of_foreign() -> str:
    def use(scene: Scene) -> bool:
        words = scene.frames_of(scene.other)
        table = scene.cpu.view(0xFFFF_8000_0000_0000 + (words[0] * 8 & -4096), 4096, False).cast("Q")
        return bool(table[words[0] & 511] < scene.info.nr_pages)

    return "yes" if beside(use) else "no"


def _kept(mapped: bool) -> int:
    """Give one page back, mapped or not; return how many frames fewer the domain has, as Xen's frame table says."""

    def use(scene: Scene) -> int:
        cpu, page = scene.cpu, scene.page
        pfn = scene.spare_pfns(1)[0]
        before = len(scene.frames_of(scene.domid))
        mfn = scene.p2m()[pfn]
        if not mapped:
            cpu.hypercall(xen.HYPERVISOR_update_va_mapping, free_page(scene.info, 1), 0, xen.UVMF_INVLPG)
        cpu.view(page).cast("Q")[4] = mfn
        memory.xen_memory_reservation.pack_into(
            cpu.view(page), 0, extent_start=page + 32, nr_extents=1, domid=xen.DOMID_SELF
        )
        assert cpu.hypercall(xen.HYPERVISOR_memory_op, memory.XENMEM_decrease_reservation, page) == 1
        return before - len(scene.frames_of(scene.domid))

    return int(beside(use))


def _store_to_m2p() -> str:
    def use(scene: Scene) -> str:
        return _attempt(scene.cpu, 0xFFFF_8000_0000_0000)

    return str(beside(use))


def _attempt(cpu: Cpu, address: int) -> str:
    try:
        cpu.view(address)
    except PageFault:
        return "a page fault"
    return "nothing"


def _table_pages(mib: int) -> int:
    def use(scene: Scene) -> Any:
        return -(-scene.info.nr_pages * 8 // 4096)

    return int(beside(use, mib=mib))


def questions(rng: random.Random) -> list[Question]:
    """Make the questions of one student."""
    mib = rng.randrange(5, 24)
    return [
        Question(
            f"How many pages does the p2m of a domain with {mib} MiB take?",
            lambda: _table_pages(mib),
            "Eight bytes for each page of 4096: a five hundredth of the memory.",
        ),
        Question(
            "A kernel looks up a frame of another domain in the M2P. Can it find a number there that is the pfn of a "
            "page of its own? (yes or no)",
            _m2p_of_foreign,
            "All domains count their pages from 0, so the number alone says nothing.",
        ),
        Question(
            "A kernel gives one page back by XENMEM_decrease_reservation, but leaves it mapped. The result is 1. How "
            "many frames fewer does the domain have, by Xen's books?",
            lambda: _kept(True),
            "The mapping is a reference: the frame stays until it goes. Nobody else gets a frame that you can read.",
        ),
        Question(
            "And if it had unmapped it before?",
            lambda: _kept(False),
            "Now nobody refers to the frame, and it is free at once.",
        ),
        Question(
            "What happens when a kernel stores into the M2P: a page fault, or nothing?",
            _store_to_m2p,
            "It is one table for all domains, mapped read-only: who could write it could lie to the others.",
        ),
    ]
